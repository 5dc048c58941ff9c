//! Why an image was not resized, in `qemu-img`'s words.

use crate::Preallocation;
use alloc::vec::Vec;
use instar_plan_txn::{Cancelled, TxnError};
use instar_qcow2::header::Lossy;
use instar_storage::Errno;

/// What `qemu-img` warns of after [`ResizeError::ShrinkNotAsked`], after `warning: `.
pub const SHRINK_WARNING: &str = "Shrinking an image will delete all data beyond the shrunken image's end. Before \
                                  performing such an operation, make sure there is no important data there.";

/// What was being done when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stage {
    /// A longer L1 table.
    #[error("Failed to grow the L1 table")]
    L1,
    /// Clusters for `preallocation=metadata`.
    #[error("Allocating clusters failed")]
    Allocate,
    /// The same with an external data file.
    #[error("Mapping clusters failed")]
    Map,
    /// Refcounts of reserved space.
    #[error("Failed to resize refcount structures")]
    Refcounts,
    /// L2 tables of reserved space.
    #[error("Failed to update L2 tables")]
    L2,
    /// New clusters that have to hide the backing file.
    #[error("Failed to zero out new clusters")]
    Zero,
    /// Clusters past the new size.
    #[error("Failed to discard cropped clusters")]
    Crop,
    /// The bitmaps' tables and directory.
    #[error("Failed to update bitmap extension")]
    Bitmaps,
    /// The switch to the new state.
    #[error("Failed to update the image size")]
    Switch,
}

/// Why space was not reserved, or a file not brought to a length. The errno is Linux's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReserveError {
    /// A new length.
    #[error("Could not resize file: {}", Errno(*.0))]
    Length(u32),
    /// `fallocate`.
    #[error("Could not preallocate new data: {}", Errno(*.0))]
    Falloc(u32),
    /// Written zeros.
    #[error("Could not write zeros for preallocation: {}", Errno(*.0))]
    Full(u32),
    /// A device: there is nothing to reserve.
    #[error("Preallocation mode '{}' unsupported for this non-regular file", .0.name())]
    Device(Preallocation),
    /// The monitor asked for the end.
    #[error("cancelled")]
    Cancelled,
}

impl From<Cancelled> for ReserveError {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}

/// Why an image was not resized. `Display` is what `qemu-img` prints after its name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResizeError {
    /// 0, or less.
    #[error("New image size must be positive")]
    NotPositive,
    /// Nothing is new, so nothing can be reserved.
    #[error("Preallocation can only be used for growing images")]
    PreallocationWithoutGrowth,
    /// A smaller size, and nobody said that it is meant. [`SHRINK_WARNING`] follows.
    #[error("Use the --shrink option to perform a shrink operation.")]
    ShrinkNotAsked,
    /// More than QEMU takes of any image.
    #[error(
        "offset({size}) exceeds maximum({})",
        instar_qcow2::header::MAX_FILE_BYTES
    )]
    ExceedsMaximum {
        /// Bytes.
        size: u64,
    },
    /// qcow2: not whole sectors.
    #[error("The new size must be a multiple of 512")]
    NotWholeSectors,
    /// Version 2 does not keep a snapshot's disk size.
    #[error("Can't resize a v2 image which has snapshots")]
    SnapshotsInVersion2,
    /// A bitmap that was not saved properly.
    #[error(
        "Bitmap '{}' is inconsistent and cannot be used\n\
         Try block-dirty-bitmap-remove to delete this bitmap from disk",
        Lossy(name)
    )]
    BitmapInconsistent {
        /// Up to 1023 bytes.
        name: Vec<u8>,
    },
    /// A bitmap of the new size would be longer than QEMU takes.
    #[error(
        "Bitmap '{}' doesn't satisfy the constraints: Too much space will be occupied by the bitmap. \
         Use larger granularity",
        Lossy(name)
    )]
    BitmapTooLarge {
        /// Up to 1023 bytes.
        name: Vec<u8>,
    },
    /// raw: there are no tables.
    #[error("Unsupported preallocation mode: {}", .0.name())]
    UnsupportedPreallocation(Preallocation),
    /// raw, or an external data file, on a device.
    #[error("{}", ReserveError::Device(*.0))]
    PreallocationOnDevice(Preallocation),
    /// raw, or an external data file, on a device of another length.
    #[error("Cannot resize device files")]
    DeviceLength,
    /// qcow2 on a device that has no room for the data, or an external data file on one.
    #[error("Cannot grow device files")]
    DeviceFull,
    /// Encrypted data would have to be copied.
    #[error("Parameter 'encrypt.key-secret' is required for cipher")]
    KeyRequired,
    /// A compressed cluster would have to be read, and there is no decompressor: nothing has been written.
    #[error("the disk ends in a compressed cluster")]
    Compressed,
    /// A step failed.
    #[error("{stage}: {}", Errno(*errno))]
    Failed {
        /// Which.
        stage: Stage,
        /// Linux errno.
        errno: u32,
    },
    /// Space for data in the image itself.
    #[error("Failed to resize underlying file: {0}")]
    Underlying(ReserveError),
    /// A raw image, or an external data file.
    #[error("{0}")]
    File(ReserveError),
    /// The monitor asked for the end: the image is as it was.
    #[error("cancelled")]
    Cancelled,
    /// No memory: the image is as it was.
    #[error("Cannot allocate memory")]
    OutOfMemory,
}

impl From<Cancelled> for ResizeError {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}

impl ResizeError {
    /// An image's own file could not get more space.
    pub(crate) const fn underlying(e: ReserveError) -> Self {
        match e {
            ReserveError::Cancelled => Self::Cancelled,
            other => Self::Underlying(other),
        }
    }

    /// A transaction's step failed.
    pub(crate) const fn at_stage(e: TxnError, stage: Stage) -> Self {
        match e {
            TxnError::Cancelled => Self::Cancelled,
            TxnError::OutOfMemory => Self::OutOfMemory,
            other => Self::Failed {
                stage,
                errno: other.errno(),
            },
        }
    }

    /// An image's own file is a device, of which nothing is reserved.
    pub(crate) const fn underlying_on_device(how: Preallocation) -> Self {
        Self::Underlying(ReserveError::Device(how))
    }

    /// A raw file could not get more space or another length.
    pub(crate) const fn file(e: ReserveError) -> Self {
        match e {
            ReserveError::Cancelled => Self::Cancelled,
            other => Self::File(other),
        }
    }
}

/// Says at which step a transaction failed.
pub trait At<T> {
    /// The result with the step in its error.
    ///
    /// # Errors
    /// The error it had.
    fn at(self, stage: Stage) -> Result<T, ResizeError>;
}

impl<T> At<T> for Result<T, TxnError> {
    fn at(self, stage: Stage) -> Result<T, ResizeError> {
        self.map_err(|e| ResizeError::at_stage(e, stage))
    }
}
