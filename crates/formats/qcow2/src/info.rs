//! What a user is shown of an image.
//!
//! [`ImageInfo`] holds what `qemu-img info` prints as format-specific, in bounded
//! memory: snapshots and bitmaps are iterated over, never collected.

use crate::bitmaps::BitmapDirectory;
use crate::extensions::BitmapsIgnored;
use crate::header::{CompressionType, CryptMethod, Header, OpenError, OpenMode};
use crate::snapshot::SnapshotTable;
use instar_luks::LuksInfo;
use instar_storage::Storage;

/// How the guest data is encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "one per image; a box would be an allocation"
)]
pub enum Encryption {
    /// The legacy AES-CBC scheme: shown as format "aes".
    Aes,
    /// LUKS: shown as format "luks" with the header's fields.
    Luks(LuksInfo),
}

/// What a user is shown of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// The header behind it.
    pub header: Header,
    /// Encryption, if any.
    pub encryption: Option<Encryption>,
}

impl ImageInfo {
    /// Opens the image as `qemu-img info` does.
    ///
    /// # Errors
    /// [`OpenError`]: the first thing wrong, in QEMU's order.
    pub fn read<S: Storage>(storage: &S) -> Result<Self, OpenError> {
        let (header, luks) = Header::read_with_luks(storage, OpenMode::Info)?;
        let encryption = match header.crypt_method {
            CryptMethod::None => None,
            CryptMethod::Aes => Some(Encryption::Aes),
            CryptMethod::Luks => luks.map(Encryption::Luks),
        };
        Ok(Self { header, encryption })
    }

    /// "0.10" for version 2, "1.1" for version 3.
    pub const fn compat(&self) -> &'static str {
        if self.header.version == 2 {
            "0.10"
        } else {
            "1.1"
        }
    }

    /// Virtual size in bytes as shown: whole sectors.
    pub const fn virtual_size(&self) -> u64 {
        self.header.whole_sectors_size()
    }

    /// Bytes of a cluster.
    pub const fn cluster_size(&self) -> u64 {
        self.header.cluster_bits.size_bytes()
    }

    /// "zlib" or "zstd".
    pub const fn compression_type(&self) -> &'static str {
        match self.header.compression_type {
            CompressionType::Zlib => "zlib",
            CompressionType::Zstd => "zstd",
        }
    }

    /// Shown for version 3 only.
    pub const fn lazy_refcounts(&self) -> Option<bool> {
        self.if_v3(self.header.compatible.lazy_refcounts())
    }

    /// Bits of a refcount.
    pub const fn refcount_bits(&self) -> u32 {
        self.header.refcount_bits()
    }

    /// The external data file's name as the header gives it, with or without the
    /// feature bit that makes it count. Any bytes; may be empty.
    pub fn data_file(&self) -> Option<&[u8]> {
        self.header.extensions.data_file_name.as_deref()
    }

    /// Shown where the image has an external data file.
    pub const fn data_file_raw(&self) -> Option<bool> {
        if self.header.incompatible.external_data_file() {
            Some(self.header.autoclear.data_file_raw())
        } else {
            None
        }
    }

    /// Shown for version 3 only.
    pub const fn corrupt(&self) -> Option<bool> {
        self.if_v3(self.header.incompatible.corrupt())
    }

    /// Shown for version 3 only.
    pub const fn extended_l2(&self) -> Option<bool> {
        self.if_v3(self.header.incompatible.extended_l2())
    }

    /// The "dirty-flag" of the JSON output.
    pub const fn dirty_flag(&self) -> bool {
        self.header.incompatible.dirty()
    }

    /// Guest data is encrypted.
    pub const fn encrypted(&self) -> bool {
        self.encryption.is_some()
    }

    /// How guest data is encrypted.
    pub const fn crypt_method(&self) -> CryptMethod {
        self.header.crypt_method
    }

    /// The backing file name; any bytes, never empty.
    pub fn backing_file(&self) -> Option<&[u8]> {
        self.header.backing_file.as_deref()
    }

    /// The backing format; any bytes, never empty, and only where there is a
    /// backing file.
    pub fn backing_format(&self) -> Option<&[u8]> {
        self.header.backing_file.as_ref()?;
        self.header
            .extensions
            .backing_format
            .as_deref()
            .filter(|name| !name.is_empty())
    }

    /// A warning that is due before any output.
    pub const fn warning(&self) -> Option<BitmapsIgnored> {
        self.header.extensions.bitmaps_ignored
    }

    /// True if there are snapshots to list. QEMU lists none where guest data is
    /// in an external data file, which it does not open for info.
    pub const fn has_snapshots(&self) -> bool {
        self.header.nb_snapshots > 0 && !self.header.incompatible.external_data_file()
    }

    /// The internal snapshots, in the table's order.
    pub fn snapshots<'s, S: Storage>(&self, storage: &'s S) -> SnapshotTable<'s, S> {
        SnapshotTable::new(storage, &self.header)
    }

    /// The bitmaps, in the directory's order; `None` if none are to be shown.
    pub fn bitmaps<'s, S: Storage>(&self, storage: &'s S) -> Option<BitmapDirectory<'s, S>> {
        let extension = self.header.extensions.bitmaps?;
        Some(BitmapDirectory::new(storage, extension))
    }

    const fn if_v3(&self, value: bool) -> Option<bool> {
        if self.header.version >= 3 {
            Some(value)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests;
