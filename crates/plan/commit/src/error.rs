//! Why a commit failed.

use crate::copy::Cancelled;
use instar_layers::{DataError, Notice};
use instar_plan_resize::{ReserveError, ResizeError};
use instar_plan_txn::TxnError;
use instar_plan_write::WriteError;
use instar_storage::{Errno, StorageError};

/// Operation not permitted by what the image is.
const ENOTSUP: u32 = 95;
/// I/O error; invalid argument.
const EIO: u32 = 5;
const EINVAL: u32 = 22;

/// Why a commit failed. `Display` is the sentence of `qemu-img`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// An image above the base cannot be read.
    #[error("Block job failed: {}", Errno(.0.errno()))]
    Read(DataError),
    /// Something cannot be written, or the base has a table that makes no sense.
    #[error("Block job failed: {}", Errno(*errno))]
    Failed {
        /// The errno (Linux numbering).
        errno: u32,
    },
    /// It was cancelled.
    #[error("The operation was cancelled")]
    Cancelled,
    /// No memory.
    #[error("Block job failed: Cannot allocate memory")]
    OutOfMemory,
}

impl CommitError {
    /// The line for standard error that comes before the sentence.
    #[must_use]
    pub const fn notice(&self) -> Option<Notice> {
        match self {
            Self::Read(error) => error.notice(),
            _ => None,
        }
    }
}

impl From<Cancelled> for CommitError {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}

impl From<DataError> for CommitError {
    fn from(error: DataError) -> Self {
        match error {
            DataError::OutOfMemory => Self::OutOfMemory,
            other => Self::Read(other),
        }
    }
}

impl From<StorageError> for CommitError {
    fn from(error: StorageError) -> Self {
        Self::Failed { errno: error.errno }
    }
}

impl From<WriteError> for CommitError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::OutOfMemory => Self::OutOfMemory,
            other => Self::Failed {
                errno: other.errno(),
            },
        }
    }
}

impl From<TxnError> for CommitError {
    fn from(error: TxnError) -> Self {
        match error {
            TxnError::OutOfMemory => Self::OutOfMemory,
            TxnError::Cancelled => Self::Cancelled,
            other => Self::Failed {
                errno: other.errno(),
            },
        }
    }
}

impl From<ResizeError> for CommitError {
    fn from(error: ResizeError) -> Self {
        let errno = match error {
            ResizeError::Cancelled
            | ResizeError::File(ReserveError::Cancelled)
            | ResizeError::Underlying(ReserveError::Cancelled) => return Self::Cancelled,
            ResizeError::OutOfMemory => return Self::OutOfMemory,
            ResizeError::Failed { errno, .. } => errno,
            ResizeError::File(reserve) | ResizeError::Underlying(reserve) => match reserve {
                ReserveError::Length(errno)
                | ReserveError::Falloc(errno)
                | ReserveError::Full(errno) => errno,
                ReserveError::Device(_) | ReserveError::Cancelled => ENOTSUP,
            },
            ResizeError::SnapshotsInVersion2
            | ResizeError::DeviceLength
            | ResizeError::DeviceFull => ENOTSUP,
            ResizeError::BitmapInconsistent { .. } | ResizeError::BitmapTooLarge { .. } => EINVAL,
            ResizeError::KeyRequired => EIO,
            _ => EINVAL,
        };
        Self::Failed { errno }
    }
}
