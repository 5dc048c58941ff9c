//! Why an image cannot be opened, in `qemu-img`'s words.

use crate::bitmaps::BitmapError;
use crate::extensions::{MAX_BITMAP_DIRECTORY_BYTES, MAX_BITMAPS};
use crate::snapshot::SnapshotError;
use crate::window::WindowError;
use alloc::vec::Vec;
use core::fmt;
use instar_luks::LuksError;
use instar_storage::Errno;
use instar_storage::StorageError;

/// Why an image cannot be opened.
///
/// `Display` is the text that `qemu-img` 10.0 prints after `Could not open
/// 'FILE': `; where it prints a second line of advice, that line is part of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The magic number differs.
    #[error("Image is not in qcow2 format")]
    NotQcow2,
    /// A version other than 2 and 3.
    #[error("Unsupported qcow2 version {version}")]
    UnsupportedVersion {
        /// As in the header.
        version: u32,
    },
    /// `cluster_bits` outside 9..=21.
    #[error("Unsupported cluster size: 2^{cluster_bits}")]
    UnsupportedClusterSize {
        /// As in the header.
        cluster_bits: u32,
    },
    /// Version 3, header length below 104.
    #[error("qcow2 header too short")]
    HeaderTooShort,
    /// Header length above the cluster size.
    #[error("qcow2 header exceeds cluster size")]
    HeaderExceedsCluster,
    /// The backing file name starts after the first cluster.
    #[error("Invalid backing file offset")]
    InvalidBackingFileOffset,
    /// Zlib, and the incompatible feature bit is set.
    #[error("qcow2: Compression type incompatible feature bit must not be set")]
    CompressionBitSet,
    /// Not zlib, and the incompatible feature bit is clear.
    #[error("qcow2: Compression type incompatible feature bit must be set")]
    CompressionBitClear,
    /// Neither zlib nor zstd.
    #[error("qcow2: unknown compression type: {compression_type}")]
    UnknownCompressionType {
        /// As in the header.
        compression_type: u8,
    },
    /// Incompatible feature bits without a known meaning.
    #[error("Unsupported qcow2 feature(s): {}", Lossy(names))]
    UnsupportedFeatures {
        /// The names that the image gives them, as the message lists them; at
        /// most 64 names of 46 bytes each.
        names: Vec<u8>,
    },
    /// Extended L2 entries with clusters below 16 KiB.
    #[error("Unsupported subcluster size: {size}")]
    UnsupportedSubclusterSize {
        /// Bytes.
        size: u64,
    },
    /// `refcount_order` above 6.
    #[error("Reference count entry width too large; may not exceed 64 bits")]
    RefcountWidth,
    /// A crypt method other than 0, 1 and 2.
    #[error("Unsupported encryption method {method}")]
    UnsupportedEncryption {
        /// As in the header; QEMU prints it as signed.
        method: i32,
    },
    /// No clusters in the refcount table (info only).
    #[error("Image does not contain a reference count table")]
    NoRefcountTable,
    /// Refcount table above its cap.
    #[error("Reference count table too large")]
    RefcountTableTooLarge,
    /// Refcount table unaligned or ending past 2^63.
    #[error("Reference count table offset invalid")]
    RefcountTableOffset,
    /// More snapshots than the cap (info only).
    #[error("Snapshot table too large")]
    SnapshotTableTooLarge,
    /// Snapshot table unaligned or ending past 2^63 (info only).
    #[error("Snapshot table offset invalid")]
    SnapshotTableOffset,
    /// L1 table above its cap.
    #[error("Active L1 table too large")]
    L1TableTooLarge,
    /// L1 table unaligned or ending past 2^63.
    #[error("Active L1 table offset invalid")]
    L1TableOffset,
    /// The virtual size needs more than 2^31 - 1 L1 entries.
    #[error("Image is too big")]
    ImageTooBig,
    /// Fewer L1 entries than the virtual size needs.
    #[error("L1 table is too small")]
    L1TableTooSmall,
    /// L1 table past any file's end.
    #[error("Could not read L1 table: Input/output error")]
    L1TablePastLimit,
    /// Refcount table past any file's end.
    #[error("Could not initialize refcount handling: Input/output error")]
    RefcountTablePastLimit,
    /// An extension reaches past the extension area.
    #[error("Header extension too large")]
    ExtensionTooLarge,
    /// Backing format name of 16 bytes or more.
    #[error("ERROR: ext_backing_format: len={len} too large (>=16)")]
    BackingFormatTooLong {
        /// Bytes.
        len: u32,
    },
    /// A LUKS header pointer in an image that is not encrypted with LUKS.
    #[error("CRYPTO header extension only expected with LUKS encryption method")]
    CryptoHeaderUnexpected,
    /// A LUKS header pointer of the wrong length.
    #[error("CRYPTO header extension size {len}, but expected size 16")]
    CryptoHeaderSize {
        /// Bytes.
        len: u32,
    },
    /// An unaligned LUKS header.
    #[error(
        "Encryption header offset '{offset}' is not a multiple of cluster size '{cluster_size}'"
    )]
    CryptoHeaderUnaligned {
        /// As in the extension.
        offset: u64,
        /// Bytes.
        cluster_size: u64,
    },
    /// LUKS without a LUKS header pointer.
    #[error("Missing CRYPTO header for crypt method 2")]
    CryptoHeaderMissing,
    /// An encrypted image is checked without a key.
    #[error("Parameter 'encrypt.key-secret' is required for cipher")]
    KeyRequired,
    /// Bitmaps extension not 24 bytes long.
    #[error("bitmaps_ext: Invalid extension length")]
    BitmapsExtensionLength,
    /// Reserved field of the bitmaps extension not 0.
    #[error("bitmaps_ext: Reserved field is not zero")]
    BitmapsReservedField,
    /// More bitmaps than the cap.
    #[error(
        "bitmaps_ext: Image has {nb_bitmaps} bitmaps, exceeding the QEMU supported maximum of {}",
        MAX_BITMAPS
    )]
    TooManyBitmaps {
        /// As in the extension.
        nb_bitmaps: u32,
    },
    /// Bitmaps extension without bitmaps.
    #[error("found bitmaps extension with zero bitmaps")]
    ZeroBitmaps,
    /// Unaligned bitmap directory.
    #[error("bitmaps_ext: invalid bitmap directory offset")]
    BitmapDirectoryOffset,
    /// Bitmap directory above its cap.
    #[error(
        "bitmaps_ext: bitmap directory size ({size}) exceeds the maximum supported size ({})",
        MAX_BITMAP_DIRECTORY_BYTES
    )]
    BitmapDirectoryTooLarge {
        /// Bytes.
        size: u64,
    },
    /// External data file bit set, no name, opened for check.
    #[error("'data-file' is required for this image")]
    DataFileMissing,
    /// `data-file-raw` bit set without a data file, opened for check.
    #[error("data-file-raw requires a data file")]
    DataFileRawWithoutDataFile,
    /// Backing file name above its cap or past the first cluster.
    #[error("Backing file name too long")]
    BackingNameTooLong,
    /// The LUKS header.
    #[error(transparent)]
    Luks(#[from] LuksRefusal),
    /// The snapshot table (info only).
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The bitmap directory.
    #[error(transparent)]
    Bitmap(#[from] BitmapError),
    /// The virtual size is no number of sectors below 2^63 bytes.
    #[error("Could not refresh total sector count: File too large")]
    SectorCount,
    /// The store failed.
    #[error("{stage}: {}", Errno(source.errno))]
    Storage {
        /// What was being read.
        stage: ReadStage,
        /// The store's error.
        source: StorageError,
    },
    /// No memory for a buffer.
    #[error("{stage}: Cannot allocate memory")]
    OutOfMemory {
        /// What was being read.
        stage: ReadStage,
    },
}

impl From<LuksError> for OpenError {
    fn from(error: LuksError) -> Self {
        Self::Luks(error.into())
    }
}

/// Why a LUKS header is refused. What words it comes along, so that a program that looks at no LUKS header does not
/// carry its sentences. `Display` is [`LuksError`]'s.
#[derive(Clone)]
pub struct LuksRefusal {
    error: LuksError,
    show: fn(&LuksError, &mut fmt::Formatter<'_>) -> fmt::Result,
}

impl From<LuksError> for LuksRefusal {
    fn from(error: LuksError) -> Self {
        let show = <LuksError as fmt::Display>::fmt;
        Self { error, show }
    }
}

impl PartialEq for LuksRefusal {
    fn eq(&self, other: &Self) -> bool {
        self.error == other.error
    }
}

impl Eq for LuksRefusal {}

impl fmt::Debug for LuksRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.error, f)
    }
}

impl fmt::Display for LuksRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.show)(&self.error, f)
    }
}

impl core::error::Error for LuksRefusal {}

/// What was being read when the store failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadStage {
    /// The header itself.
    #[error("Could not read qcow2 header")]
    Header,
    /// A header extension.
    #[error("qcow2_read_extension: ERROR: pread fail from offset {offset}")]
    Extension {
        /// Byte offset in the file.
        offset: u64,
    },
    /// The backing file name.
    #[error("Could not read backing file name")]
    BackingName,
}

impl ReadStage {
    /// The error of a read that the store failed.
    pub(crate) const fn failed(self, source: StorageError) -> OpenError {
        OpenError::Storage {
            stage: self,
            source,
        }
    }

    pub(crate) const fn window(self, e: WindowError) -> OpenError {
        match e {
            WindowError::Storage(source) => self.failed(source),
            WindowError::OutOfMemory => OpenError::OutOfMemory { stage: self },
        }
    }
}

/// Bytes shown as text; what is not UTF-8 becomes U+FFFD.
#[derive(Clone, Copy, Debug)]
pub struct Lossy<'a>(pub &'a [u8]);

impl fmt::Display for Lossy<'_> {
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
