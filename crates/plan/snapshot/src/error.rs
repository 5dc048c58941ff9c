//! Why an action was not done. `Display` is what `qemu-img` says after `Could not … snapshot 'NAME': `.

use alloc::string::{String, ToString};
use instar_plan_txn::TxnError;
use instar_qcow2::header::MAX_FILE_BYTES;

/// Why no snapshot was created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// The guest data is in an external data file.
    #[error("Operation not supported")]
    ExternalData,
    /// There are as many as QEMU takes.
    #[error("File too large")]
    TooMany,
    /// The change could not be made.
    #[error("{0}")]
    Change(#[from] TxnError),
}

/// Why a snapshot was not applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The image has bitmaps, which would not fit the disk any more.
    #[error("Device has active dirty bitmaps")]
    Bitmaps,
    /// The guest data is in an external data file.
    #[error("Failed to load snapshot: Operation not supported")]
    ExternalData,
    /// No snapshot has this ID or name.
    #[error("Failed to load snapshot: No such file or directory")]
    NotFound,
    /// Its L1 table is longer than QEMU takes.
    #[error("Failed to load snapshot: File too large")]
    L1TooLarge,
    /// Its L1 table is not at a cluster's start, or past any file's end.
    #[error("Failed to load snapshot: Invalid argument")]
    L1Misplaced,
    /// The snapshot's disk size is 2^63 bytes or more.
    #[error("Failed to load snapshot: Invalid argument")]
    SizeNegative,
    /// The snapshot's disk size is more than QEMU takes.
    #[error("Failed to load snapshot: Input/output error")]
    SizePastLimit {
        /// Bytes.
        size: u64,
    },
    /// The snapshot's disk size is not a multiple of 512.
    #[error("Failed to load snapshot: Invalid argument")]
    SizeNotSectors,
    /// Version 2 says the disk's size once for all snapshots.
    #[error("Failed to load snapshot: Operation not supported")]
    ResizeOfVersion2,
    /// The L1 table would be too long.
    #[error("Failed to load snapshot: File too large")]
    SizeNeedsLargeL1,
    /// The change could not be made.
    #[error("Failed to load snapshot: {0}")]
    Change(#[from] TxnError),
}

/// Why a snapshot was not deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeleteError {
    /// No snapshot has this name.
    #[error("snapshot not found")]
    NotFound,
    /// Its name or ID is longer than QEMU shows, and what is shown is no snapshot's.
    #[error("Can't find the snapshot")]
    Lost,
    /// Its L1 table is longer than QEMU takes.
    #[error("Snapshot L1 table too large")]
    L1TooLarge,
    /// Its L1 table is not at a cluster's start, or past any file's end.
    #[error("Snapshot L1 table offset invalid")]
    L1Misplaced,
    /// The change could not be made.
    #[error("Failed to free the cluster and L1 table: {0}")]
    Change(#[from] TxnError),
}

/// The line about damage that goes before the error's own.
fn damage(error: &TxnError) -> Option<String> {
    match error {
        TxnError::Corrupt { what } => Some(alloc::format!(
            "Image is damaged: {what}; 'check' says what can be done"
        )),
        _ => None,
    }
}

impl CreateError {
    /// A line that `qemu-img`, or `instar` of a damage, prints before the error's own.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        match self {
            Self::Change(e) => damage(e),
            _ => None,
        }
    }
}

impl ApplyError {
    /// A line that `qemu-img`, or `instar` of a damage, prints before the error's own.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        let text = match self {
            Self::L1TooLarge => "Snapshot L1 table too large",
            Self::L1Misplaced => "Snapshot L1 table offset invalid",
            Self::SizeNegative => "Image size cannot be negative",
            Self::SizePastLimit { size } => {
                return Some(alloc::format!(
                    "offset({size}) exceeds maximum({MAX_FILE_BYTES})"
                ));
            }
            Self::SizeNotSectors => "The new size must be a multiple of 512",
            Self::ResizeOfVersion2 => "Can't resize a v2 image which has snapshots",
            Self::SizeNeedsLargeL1 => "Failed to grow the L1 table: File too large",
            Self::Change(e) => return damage(e),
            Self::Bitmaps | Self::ExternalData | Self::NotFound => return None,
        };
        Some(text.to_string())
    }
}

impl DeleteError {
    /// A line that `instar` prints of a damage before the error's own.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        match self {
            Self::Change(e) => damage(e),
            _ => None,
        }
    }
}
