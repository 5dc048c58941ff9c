//! Why content cannot be read.

use core::fmt;
use instar_storage::{Errno, StorageError};

/// I/O error.
const EIO: u32 = 5;
/// Out of memory.
const ENOMEM: u32 = 12;

/// Why content cannot be read. `Display` is the text of its errno, as `qemu-img` ends its sentence with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    /// A file failed.
    #[error("{}", Errno(.0.errno))]
    Storage(#[from] StorageError),
    /// A table of the image says what cannot be. [`DataError::notice`] has `qemu-img`'s line about it.
    #[error("Input/output error")]
    Corrupt(Corruption),
    /// The bytes of a compressed cluster are no stream of the image's compression type, or of another length.
    #[error("Input/output error")]
    Decompress {
        /// Where the compressed bytes start, in bytes from the start of the image file.
        host_offset: u64,
    },
    /// No memory for a buffer.
    #[error("Cannot allocate memory")]
    OutOfMemory,
}

impl DataError {
    /// The errno (Linux numbering) that `qemu-img` words.
    #[must_use]
    pub const fn errno(&self) -> u32 {
        match self {
            Self::Storage(e) => e.errno,
            Self::OutOfMemory => ENOMEM,
            Self::Corrupt(_) | Self::Decompress { .. } => EIO,
        }
    }

    /// What `qemu-img` prints on standard error as soon as it meets the damage, once for an image; no
    /// program name stands before it.
    #[must_use]
    pub const fn notice(&self) -> Option<Notice> {
        match self {
            Self::Corrupt(what) => Some(Notice(*what)),
            _ => None,
        }
    }
}

/// The line about a damaged table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice(Corruption);

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "qcow2: Image is corrupt: {}; further non-fatal corruption events will be suppressed",
            self.0
        )
    }
}

/// What is wrong with a table. All offsets are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corruption {
    /// An L1 entry whose L2 table starts inside a cluster.
    #[error("L2 table offset {offset:#x} unaligned (L1 index: {})", Hex(*.l1_index))]
    L2TableUnaligned {
        /// Where the table would start.
        offset: u64,
        /// Index of the entry.
        l1_index: u64,
    },
    /// A cluster that starts inside a host cluster.
    #[error("Cluster allocation offset {offset:#x} unaligned (L2 offset: {l2_offset:#x}, L2 index: {})", Hex(*.l2_index))]
    ClusterUnaligned {
        /// Where the cluster would start.
        offset: u64,
        /// Where the L2 table starts.
        l2_offset: u64,
        /// Index of the entry.
        l2_index: u64,
    },
    /// The zero flag in a version 2 image.
    #[error("Zero cluster entry found in pre-v3 image (L2 offset: {l2_offset:#x}, L2 index: {})", Hex(*.l2_index))]
    ZeroClusterInVersion2 {
        /// Where the L2 table starts.
        l2_offset: u64,
        /// Index of the entry.
        l2_index: u64,
    },
    /// An extended entry that says allocated and zero of one subcluster, or allocated without an offset.
    #[error("Invalid cluster entry found  (L2 offset: {l2_offset:#x}, L2 index: {})", Hex(*.l2_index))]
    InvalidEntry {
        /// Where the L2 table starts.
        l2_offset: u64,
        /// Index of the entry.
        l2_index: u64,
    },
    /// A compressed cluster although the data lies in a file of its own.
    #[error("Compressed cluster entry found in image with external data file (L2 offset: {l2_offset:#x}, L2 index: {})", Hex(*.l2_index))]
    CompressedWithDataFile {
        /// Where the L2 table starts.
        l2_offset: u64,
        /// Index of the entry.
        l2_index: u64,
    },
    /// A cluster of a data file that is not where the guest has it.
    #[error("External data file host cluster offset {offset:#x} does not match guest cluster offset: {}, L2 index: {})", Hex(*.guest_offset), Hex(*.l2_index))]
    DataFileMoved {
        /// Where the cluster would start in the data file.
        offset: u64,
        /// Where the guest has it.
        guest_offset: u64,
        /// Index of the entry.
        l2_index: u64,
    },
}

/// A number as C's `%#x` prints it: zero has no prefix.
struct Hex(u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("0"),
            n => write!(f, "{n:#x}"),
        }
    }
}
