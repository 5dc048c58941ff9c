//! Why a copy failed, in the sentences of `qemu-img`.

use crate::engine::Cancelled;
use alloc::string::String;
use core::fmt;
use instar_storage::{Errno, StorageError};

/// Why a source cannot be read. `Display` is the text of the errno.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", Errno(*errno))]
pub struct ReadError {
    /// The errno (Linux numbering).
    pub errno: u32,
    /// A line for standard error that comes before the sentence.
    pub notice: Option<String>,
}

impl From<StorageError> for ReadError {
    fn from(error: StorageError) -> Self {
        Self {
            errno: error.errno,
            notice: None,
        }
    }
}

/// Why a target takes no data. `Display` is the reason alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", Errno(*errno))]
pub struct TargetError {
    /// The errno (Linux numbering).
    pub errno: u32,
}

impl From<StorageError> for TargetError {
    fn from(error: StorageError) -> Self {
        Self { errno: error.errno }
    }
}

/// Why a copy failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// The source could not be read.
    #[error("error while reading at byte {offset}: {reason}")]
    Read {
        /// First byte of what was read, as the guest counts.
        offset: u64,
        /// Why not.
        reason: ReadError,
    },
    /// It is not known what the source holds.
    #[error("error while reading block status at offset {offset}: {reason}")]
    Status {
        /// First byte, as the guest counts.
        offset: u64,
        /// Why not.
        reason: ReadError,
    },
    /// The target could not be written.
    #[error("error while writing at byte {offset}: {reason}")]
    Write {
        /// First byte, as the guest counts.
        offset: u64,
        /// Why not.
        reason: TargetError,
    },
    /// The copy was cancelled.
    #[error("The operation was cancelled")]
    Cancelled,
    /// No memory for the buffers.
    #[error("Cannot allocate memory")]
    OutOfMemory,
}

impl ConvertError {
    /// The line for standard error that comes before the sentence.
    #[must_use]
    pub fn notice(&self) -> Option<&str> {
        match self {
            Self::Read { reason, .. } | Self::Status { reason, .. } => reason.notice.as_deref(),
            _ => None,
        }
    }
}

impl From<Cancelled> for ConvertError {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}

/// The warning about bytes that could not be read and became zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Salvaged {
    /// First byte, as the guest counts.
    pub offset: u64,
    /// The errno (Linux numbering).
    pub errno: u32,
}

impl fmt::Display for Salvaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = Errno(self.errno);
        write!(
            f,
            "warning: error while reading offset {}: {reason}",
            self.offset
        )
    }
}
