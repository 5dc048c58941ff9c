//! Why an image was not made, in `qemu-img`'s words.

use crate::raw::EFBIG;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use instar_plan_resize::{Preallocation, ReserveError};
use instar_plan_txn::Cancelled;
use instar_qcow2::header::MAX_FILE_BYTES;
use instar_storage::{Errno, StorageError};

/// Why an image was not made. `Display` is what `qemu-img` prints after the image's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// No power of two from 512 bytes to 2 MiB.
    #[error("Cluster size must be a power of two between 512 and 2048k")]
    ClusterSize,
    /// Version 2 has no extended L2 entries.
    #[error(
        "Extended L2 entries are only supported with compatibility level 1.1 and above \
         (use version=v3 or greater)"
    )]
    ExtendedL2InVersion2,
    /// A subcluster has at least 512 bytes.
    #[error("Extended L2 entries are only supported with cluster sizes of at least 16384 bytes")]
    ExtendedL2ClusterSize,
    /// Clusters that hold zeros would hide the backing file.
    #[error(
        "Backing file and preallocation can only be used at the same time if extended_l2 is on"
    )]
    PreallocationWithBacking,
    /// A format for no file.
    #[error("Backing format cannot be used without backing file")]
    BackingFormatAlone,
    /// Version 2 has no lazy refcounts.
    #[error(
        "Lazy refcounts only supported with compatibility level 1.1 and above \
         (use version=v3 or greater)"
    )]
    LazyRefcountsInVersion2,
    /// Not 1, 2, 4, 8, 16, 32 or 64.
    #[error("Refcount width must be a power of two and may not exceed 64 bits")]
    RefcountBits,
    /// Version 2 has refcounts of 16 bits.
    #[error(
        "Different refcount widths than 16 bits require compatibility level 1.1 or above \
         (use version=v3 or greater)"
    )]
    RefcountBitsInVersion2,
    /// Nothing that could stay valid as a raw image.
    #[error("data-file-raw requires data-file")]
    DataFileRawAlone,
    /// A raw image has no backing file.
    #[error("Backing file and data-file-raw cannot be used at the same time")]
    DataFileRawWithBacking,
    /// Version 2 has no external data files.
    #[error(
        "External data files are only supported with compatibility level 1.1 and above \
         (use version=v3 or greater)"
    )]
    DataFileInVersion2,
    /// Version 2 has deflate only.
    #[error(
        "Non-zlib compression type is only supported with compatibility level 1.1 and above \
         (use version=v3 or greater)"
    )]
    CompressionInVersion2,
    /// The backing file's name is too long for the format or for the header's cluster.
    #[error(
        "Could not assign backing file '{}' with format '{}': {}",
        Text(name),
        Text(format),
        Errno(*errno)
    )]
    BackingName {
        /// The name.
        name: Vec<u8>,
        /// Its format.
        format: Vec<u8>,
        /// EINVAL, or ENOSPC if only the cluster is too small.
        errno: u32,
    },
    /// The data file's name does not fit the header's cluster.
    #[error("Could not write qcow2 header: No space left on device")]
    HeaderFull,
    /// An empty image could not be written.
    #[error("Could not write qcow2 header: {}", Errno(.0.errno))]
    Header(#[source] StorageError),
    /// Preallocated clusters could not be written.
    #[error("Could not resize image: Allocating clusters failed: {}", Errno(.0.errno))]
    Allocate(#[source] StorageError),
    /// 2^63 bytes or more, counted in whole sectors.
    #[error("Could not resize image: Image size cannot be negative")]
    NegativeSize,
    /// More than QEMU takes of any image.
    #[error("Could not resize image: offset({size}) exceeds maximum({MAX_FILE_BYTES})")]
    ExceedsMaximum {
        /// Bytes, whole sectors.
        size: u64,
    },
    /// The L1 table, the refcount table or an offset would not fit the format; or a raw file the host.
    #[error("The image size is too large for file format '{format}'{hint}")]
    TooLarge {
        /// `qcow2` or `raw`.
        format: &'static str,
        /// What to try; with a space before it.
        hint: &'static str,
    },
    /// Space could not be reserved in the image.
    #[error("Could not resize image: Failed to resize underlying file: {0}")]
    Reserve(ReserveError),
    /// The same of an external data file.
    #[error("Could not resize image: {0}")]
    ReserveData(ReserveError),
    /// The same of a raw file.
    #[error("{0}")]
    ReserveRaw(ReserveError),
    /// A device that is too short for all that is preallocated.
    #[error("Could not resize image: Cannot grow device files")]
    Device,
    /// A device that is too short for a raw image.
    #[error("Cannot grow device files")]
    DeviceRaw,
    /// Nothing can be reserved on a device.
    #[error("Unsupported preallocation mode '{}'", .0.name())]
    DevicePreallocation(Preallocation),
    /// Raw files have no metadata.
    #[error("Unsupported preallocation mode: metadata")]
    RawMetadata,
    /// The image's key cannot be made; why.
    #[error("{0}")]
    Encryption(String),
    /// The store failed.
    #[error("{}", Errno(.0.errno))]
    Storage(#[from] StorageError),
    /// The monitor asked for the end.
    #[error("cancelled")]
    Cancelled,
    /// No memory.
    #[error("Cannot allocate memory")]
    OutOfMemory,
    /// A range that is not a part of the disk or not aligned was asked for.
    #[error("Invalid argument")]
    Range,
}

impl CreateError {
    /// The format qcow2 cannot hold so much.
    pub const TOO_LARGE: Self = Self::TooLarge {
        format: "qcow2",
        hint: " (try using a larger cluster size)",
    };

    /// The error as `convert` and `dd` word it: `create` alone has a sentence of its own for sizes.
    #[must_use]
    pub const fn of_a_copy(&self) -> OfACopy<'_> {
        OfACopy(self)
    }

    /// The error as `create` words it, which says where the store failed.
    #[must_use]
    pub fn of_an_empty_image(self) -> Self {
        Self::doing(Self::Header)(self)
    }

    /// Tells cancellation from failure of a reservation.
    pub(crate) fn reserve(what: fn(ReserveError) -> Self) -> impl Fn(ReserveError) -> Self {
        move |e| match e {
            ReserveError::Cancelled => Self::Cancelled,
            e => what(e),
        }
    }

    /// Says of a failure of the store what was being written.
    pub(crate) fn doing(what: fn(StorageError) -> Self) -> impl Fn(Self) -> Self {
        move |e| match e {
            Self::Storage(e) => what(e),
            e => e,
        }
    }
}

/// What [`CreateError::of_a_copy`] gives.
#[derive(Clone, Copy, Debug)]
pub struct OfACopy<'a>(&'a CreateError);

impl fmt::Display for OfACopy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            CreateError::TooLarge { format: "raw", .. } => {
                write!(f, "Could not resize file: {}", Errno(EFBIG))
            }
            CreateError::TooLarge { .. } => {
                let what = "Could not resize image: Failed to grow the L1 table";
                write!(f, "{what}: {}", Errno(EFBIG))
            }
            error => error.fmt(f),
        }
    }
}

impl From<Cancelled> for CreateError {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}

/// Bytes of a name as text.
struct Text<'a>(&'a [u8]);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            f.write_str(chunk.valid())?;
            if !chunk.invalid().is_empty() {
                f.write_str("\u{fffd}")?;
            }
        }
        Ok(())
    }
}
