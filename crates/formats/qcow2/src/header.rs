//! The qcow2 header: wire layout, and the checks that an image has to pass to
//! be opened.
//!
//! qcow2 "Header". The order of the checks and the texts of [`OpenError`] are
//! those that `qemu-img` 10.0 shows for a damaged image, so the first of several
//! damages is the one reported.

use crate::bitmaps;
use crate::extensions::{self, Extensions, Found};
use crate::snapshot::SnapshotTable;
use crate::units::{ClusterBits, HostOffset};
use crate::window::Window;
use alloc::vec::Vec;
use instar_luks::LuksInfo;
use instar_storage::Storage;
use zerocopy::{FromZeros, IntoBytes};

mod area;
mod checks;
mod error;
mod wire;
pub(crate) use checks::RawHeaderFields;
use checks::{check_encryption, l1_entry_bits};

pub use area::HeaderArea;
pub use error::{Lossy, LuksRefusal, OpenError, ReadStage};
pub use wire::{AutoclearFeatures, CompatibleFeatures, IncompatibleFeatures, RawHeader};

/// `QFI\xfb`.
pub const MAGIC: u32 = 0x5146_49fb;
/// Length of a version 2 header.
pub const V2_HEADER_BYTES: u64 = 72;
/// Length of a version 3 header without additional fields.
pub const V3_HEADER_BYTES: u64 = 104;
/// QEMU: the most bytes an L1 table may have.
pub const MAX_L1_BYTES: u64 = 32 << 20;
/// QEMU: the most bytes a refcount table may have.
pub const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// QEMU: the most internal snapshots.
pub const MAX_SNAPSHOTS: u32 = 65_536;
/// QEMU: the longest backing file name.
pub const MAX_BACKING_NAME_BYTES: u32 = 1023;
/// QEMU: no file it reads ends past this offset.
pub const MAX_FILE_BYTES: u64 = 0x7fff_ffff_c000_0000;
/// QEMU: the smallest subcluster.
pub const MIN_SUBCLUSTER_BYTES: u64 = 512;
/// Bytes of a snapshot table entry before its variable part.
const SNAPSHOT_HEADER_BYTES: u64 = 40;

/// What the image is opened for; QEMU's checks differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// `info`: no data is read, so neither key nor data file is needed.
    Info,
    /// `check` without a key: encrypted images are refused, a damaged snapshot
    /// table or a missing refcount table is the check's to report.
    Check,
    /// `check` where the caller holds the key: as [`OpenMode::Check`], and the
    /// LUKS header is read.
    CheckWithKey,
    /// A change of the metadata: all tables must be sound, no key is needed.
    Change,
    /// Guest data where the caller holds no key: as [`OpenMode::Change`], and encrypted images are refused.
    Keyless,
}

impl OpenMode {
    /// True for both kinds of check.
    pub const fn is_check(self) -> bool {
        matches!(self, Self::Check | Self::CheckWithKey)
    }

    /// True if encrypted images are refused. QEMU asks for the key before it looks at a LUKS header.
    pub(crate) const fn is_keyless(self) -> bool {
        matches!(self, Self::Check | Self::Keyless)
    }

    /// True if guest data may be looked at, so that its file has to be there.
    const fn needs_data_file(self) -> bool {
        !matches!(self, Self::Info)
    }
}

/// Encryption of the guest data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CryptMethod {
    /// Not encrypted.
    None,
    /// The legacy AES-CBC scheme.
    Aes,
    /// LUKS, version 1 header.
    Luks,
}

/// Compression of compressed clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionType {
    /// Raw deflate.
    Zlib,
    /// Zstandard.
    Zstd,
}

/// A header that an image can be opened with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// The cluster size.
    pub cluster_bits: ClusterBits,
    /// Virtual disk size in bytes, at most 2^63 - 512; need not be a multiple
    /// of 512.
    pub virtual_size: u64,
    /// The backing file name, up to its first NUL; `None` if there is none or
    /// it is empty. At most [`MAX_BACKING_NAME_BYTES`].
    pub backing_file: Option<Vec<u8>>,
    /// As in the header: 0 if there is no backing file.
    pub backing_file_offset: HostOffset,
    /// As in the header; meaningless where the offset is 0.
    pub backing_file_size: u32,
    /// Encryption.
    pub crypt_method: CryptMethod,
    /// Entries of the active L1 table, enough for the virtual size; at most
    /// [`MAX_L1_BYTES`] / 8.
    pub l1_size: u32,
    /// A multiple of the cluster size.
    pub l1_table_offset: HostOffset,
    /// A multiple of the cluster size.
    pub refcount_table_offset: HostOffset,
    /// At most [`MAX_REFCOUNT_TABLE_BYTES`] in all; 0 only when opened for check.
    pub refcount_table_clusters: u32,
    /// At most [`MAX_SNAPSHOTS`] when opened for info; anything for check.
    pub nb_snapshots: u32,
    /// A multiple of the cluster size when opened for info; anything for check.
    pub snapshots_offset: HostOffset,
    /// Known bits only.
    pub incompatible: IncompatibleFeatures,
    /// Any bits.
    pub compatible: CompatibleFeatures,
    /// Any bits.
    pub autoclear: AutoclearFeatures,
    /// Logarithm of the refcount width in bits, 0..=6.
    pub refcount_order: u32,
    /// Bytes of the header, 72 for version 2, else 104 to the cluster size.
    pub header_length: u32,
    /// Compression type.
    pub compression_type: CompressionType,
    /// Header extensions.
    pub extensions: Extensions,
}

impl Header {
    /// Reads and checks the header, its extensions and all that QEMU reads of an
    /// image when it opens it for `mode`.
    ///
    /// # Errors
    /// [`OpenError`]: the first thing wrong, in QEMU's order.
    pub fn read<S: Storage>(storage: &S, mode: OpenMode) -> Result<Self, OpenError> {
        Self::read_with_luks(storage, mode).map(|(header, _)| header)
    }

    /// As [`Header::read`], and gives the LUKS header where there is one and
    /// `mode` reads it.
    ///
    /// # Errors
    /// [`OpenError`]: the first thing wrong, in QEMU's order.
    pub fn read_with_luks<S: Storage>(
        storage: &S,
        mode: OpenMode,
    ) -> Result<(Self, Option<LuksInfo>), OpenError> {
        Self::read_by::<S, true>(storage, mode)
    }

    /// As [`Header::read`], without the code for LUKS headers: [`OpenError::KeyRequired`] where another program has to
    /// look at one, or at the image's data.
    ///
    /// # Errors
    /// [`OpenError`]: the first thing wrong, in QEMU's order.
    pub fn read_unencrypted<S: Storage>(storage: &S, mode: OpenMode) -> Result<Self, OpenError> {
        Self::read_by::<S, false>(storage, mode).map(|(header, _)| header)
    }

    /// Reads the header; without `LUKS`, encrypted images are refused in all modes.
    fn read_by<S: Storage, const LUKS: bool>(
        storage: &S,
        mode: OpenMode,
    ) -> Result<(Self, Option<LuksInfo>), OpenError> {
        let is_keyless = !LUKS || mode.is_keyless();
        let mut window = Window::new(storage).map_err(|e| ReadStage::Header.window(e))?;
        let mut raw = RawHeader::new_zeroed();
        window
            .read(0, raw.as_mut_bytes())
            .map_err(|e| ReadStage::Header.failed(e))?;
        let fields = RawHeaderFields::new(raw)?;
        let compression_type = fields.compression_type()?;
        fields.check_features(&mut window)?;
        if fields.raw.refcount_order.get() > 6 {
            return Err(OpenError::RefcountWidth);
        }
        fields.check_tables(mode)?;
        let crypt_method = fields.crypt_method()?;
        fields.check_refcount_table_readable()?;
        let Found { extensions, luks } = extensions::read(&mut window, &fields, is_keyless)?;
        if mode.needs_data_file() {
            fields.check_data_file(&extensions)?;
        }
        check_encryption(is_keyless, crypt_method, &extensions)?;
        let backing_file = fields.read_backing_name(&mut window)?;
        let sectors = fields.check_virtual_size();
        let header = fields.into_header(crypt_method, compression_type, extensions, backing_file);
        if !mode.is_check() {
            for snapshot in SnapshotTable::new(storage, &header) {
                snapshot?;
            }
        }
        if let Some(extension) = header.extensions.bitmaps {
            bitmaps::validate(storage, &header, extension)?;
        }
        sectors.map(|()| (header, luks))
    }

    /// The virtual size as QEMU counts it: whole sectors of 512 bytes.
    pub const fn whole_sectors_size(&self) -> u64 {
        self.virtual_size & !511
    }

    /// Bytes of guest data that one L2 table maps.
    pub const fn l2_table_span(&self) -> u64 {
        1 << l1_entry_bits(self.cluster_bits, self.incompatible.extended_l2())
    }

    /// L1 entries that the virtual size needs.
    pub const fn l1_entries_needed(&self) -> u64 {
        self.virtual_size.div_ceil(self.l2_table_span())
    }

    /// Bytes of an L2 entry: 8, or 16 where entries are extended.
    pub const fn l2_entry_bytes(&self) -> u64 {
        if self.incompatible.extended_l2() {
            16
        } else {
            8
        }
    }

    /// Entries of an L2 table.
    pub const fn l2_entries(&self) -> u64 {
        self.cluster_bits.size_bytes()
            >> if self.incompatible.extended_l2() {
                4
            } else {
                3
            }
    }

    /// Width of a refcount in bits: 1, 2, 4, 8, 16, 32 or 64.
    pub const fn refcount_bits(&self) -> u32 {
        1 << self.refcount_order
    }

    /// Refcounts in a refcount block.
    pub const fn refcounts_per_block(&self) -> u64 {
        self.cluster_bits.size_bytes().saturating_mul(8) >> self.refcount_order
    }

    /// Bytes of the refcount table.
    pub const fn refcount_table_bytes(&self) -> u64 {
        (self.refcount_table_clusters as u64).saturating_mul(self.cluster_bits.size_bytes())
    }

    /// Memory in bytes that a writer takes for tables it holds as a whole: the L1 table twice, and the refcount table.
    pub fn table_bytes(&self) -> u64 {
        let l1_tables = self.l1_entries_needed().saturating_mul(16);
        l1_tables.saturating_add(self.refcount_table_bytes())
    }
}

#[cfg(test)]
mod tests;
