//! Why an image was not rebased.

use crate::Cancelled;
use alloc::string::String;
use alloc::vec::Vec;
use instar_layers::DataError;
use instar_plan_write::WriteError;
use instar_storage::Errno;

/// Why an image was not rebased. `Display` is the sentence that `qemu-img` prints after its name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RebaseError {
    /// The image's own tables.
    #[error("error while reading image metadata: {0}")]
    Metadata(DataError),
    /// What the disk has now.
    #[error("error while reading from old backing file")]
    Old(DataError),
    /// What it would have.
    #[error("error while reading from new backing file")]
    New(DataError),
    /// What differs was not written.
    #[error("Error while writing to COW image: {}", Errno(*errno))]
    Write {
        /// The errno (Linux numbering).
        errno: u32,
    },
    /// The header was not changed.
    #[error(
        "Could not change the backing file to '{}': {reason}",
        String::from_utf8_lossy(name)
    )]
    Name {
        /// The new backing file, as typed.
        name: Vec<u8>,
        /// Why.
        reason: Refusal,
    },
    /// It was to stop.
    #[error("cancelled")]
    Cancelled,
    /// No memory for buffers.
    #[error("Cannot allocate memory")]
    OutOfMemory,
}

/// Why a header does not take a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A backing file needs a format.
    #[error("backing format must be specified")]
    NoFormat,
    /// The image's format has no backing files.
    #[error("Operation not supported")]
    NotSupported,
    /// The name is too long, or the image's data file is to be all of the disk.
    #[error("Invalid argument")]
    Invalid,
    /// The header's cluster is full.
    #[error("No space left in the file header")]
    HeaderFull,
    /// The store failed.
    #[error("{}", Errno(*.0))]
    Failed(u32),
}

impl From<WriteError> for RebaseError {
    fn from(error: WriteError) -> Self {
        Self::Write {
            errno: error.errno(),
        }
    }
}

impl From<Cancelled> for RebaseError {
    fn from(Cancelled: Cancelled) -> Self {
        Self::Cancelled
    }
}

impl RebaseError {
    /// What was met in a table or a file, if that is the reason.
    #[must_use]
    pub const fn source_of(&self) -> Option<&DataError> {
        match self {
            Self::Metadata(source) | Self::Old(source) | Self::New(source) => Some(source),
            _ => None,
        }
    }
}
