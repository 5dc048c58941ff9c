//! The checks of the header's fields, each with QEMU's refusal.

use super::wire::{AutoclearFeatures, CompatibleFeatures, IncompatibleFeatures, RawHeader};
use super::{
    CompressionType, CryptMethod, Header, MAGIC, MAX_BACKING_NAME_BYTES, MAX_FILE_BYTES,
    MAX_L1_BYTES, MAX_REFCOUNT_TABLE_BYTES, MAX_SNAPSHOTS, MIN_SUBCLUSTER_BYTES, OpenError,
    OpenMode, ReadStage, SNAPSHOT_HEADER_BYTES, V3_HEADER_BYTES,
};
use crate::extensions::{self, Extensions};
use crate::units::{ClusterBits, HostOffset};
use crate::window::Window;
use alloc::vec::Vec;
use instar_storage::Storage;
use zerocopy::big_endian::{U32, U64};

/// The fields that the extensions are judged by.
pub(crate) struct RawHeaderFields {
    pub(crate) version: u32,
    pub(crate) cluster_bits: ClusterBits,
    pub(crate) header_length: u64,
    pub(crate) backing_file_offset: u64,
    pub(super) raw: RawHeader,
}

impl RawHeaderFields {
    /// Extensions end where the backing file name starts, or with the cluster.
    pub(crate) const fn extensions_end(&self) -> u64 {
        if self.backing_file_offset == 0 {
            self.cluster_bits.size_bytes()
        } else {
            self.backing_file_offset
        }
    }

    pub(crate) const fn is_luks(&self) -> bool {
        self.raw.crypt_method.get() == 2
    }

    pub(crate) const fn has_external_data_file(&self) -> bool {
        self.incompatible().external_data_file()
    }

    pub(crate) const fn has_bitmaps_autoclear_bit(&self) -> bool {
        AutoclearFeatures(self.raw.autoclear_features.get()).bitmaps()
    }

    pub(super) const fn incompatible(&self) -> IncompatibleFeatures {
        IncompatibleFeatures(self.raw.incompatible_features.get())
    }

    /// Version, cluster size and header length; the rest is not judged yet.
    pub(super) fn new(mut raw: RawHeader) -> Result<Self, OpenError> {
        if raw.magic.get() != MAGIC {
            return Err(OpenError::NotQcow2);
        }
        let version = raw.version.get();
        if !matches!(version, 2 | 3) {
            return Err(OpenError::UnsupportedVersion { version });
        }
        let bits = raw.cluster_bits.get();
        let Some(cluster_bits) = ClusterBits::new(bits) else {
            return Err(OpenError::UnsupportedClusterSize { cluster_bits: bits });
        };
        if version == 2 {
            clear_v3_fields(&mut raw);
        }
        let header_length = u64::from(raw.header_length.get());
        if version == 3 && header_length < V3_HEADER_BYTES {
            return Err(OpenError::HeaderTooShort);
        }
        if header_length > cluster_bits.size_bytes() {
            return Err(OpenError::HeaderExceedsCluster);
        }
        let backing_file_offset = raw.backing_file_offset.get();
        if backing_file_offset > cluster_bits.size_bytes() {
            return Err(OpenError::InvalidBackingFileOffset);
        }
        if header_length <= V3_HEADER_BYTES {
            raw.compression_type = 0;
        }
        Ok(Self {
            version,
            cluster_bits,
            header_length,
            backing_file_offset,
            raw,
        })
    }

    pub(super) fn compression_type(&self) -> Result<CompressionType, OpenError> {
        let kind = match self.raw.compression_type {
            0 => CompressionType::Zlib,
            1 => CompressionType::Zstd,
            other => {
                return Err(OpenError::UnknownCompressionType {
                    compression_type: other,
                });
            }
        };
        match (kind, self.incompatible().compression_type()) {
            (CompressionType::Zlib, true) => Err(OpenError::CompressionBitSet),
            (CompressionType::Zstd, false) => Err(OpenError::CompressionBitClear),
            _ => Ok(kind),
        }
    }

    pub(super) fn check_features<S: Storage>(
        &self,
        window: &mut Window<'_, S>,
    ) -> Result<(), OpenError> {
        let unsupported = self.incompatible().0 & !IncompatibleFeatures::KNOWN;
        if unsupported != 0 {
            let table = extensions::find_feature_table(window, self);
            let names = extensions::name_features(window, table, unsupported);
            return Err(OpenError::UnsupportedFeatures { names });
        }
        let subcluster_bytes = self.cluster_bits.size_bytes() >> 5;
        if self.incompatible().extended_l2() && subcluster_bytes < MIN_SUBCLUSTER_BYTES {
            return Err(OpenError::UnsupportedSubclusterSize {
                size: subcluster_bytes,
            });
        }
        Ok(())
    }

    pub(super) fn crypt_method(&self) -> Result<CryptMethod, OpenError> {
        match self.raw.crypt_method.get() {
            0 => Ok(CryptMethod::None),
            1 => Ok(CryptMethod::Aes),
            2 => Ok(CryptMethod::Luks),
            method => Err(OpenError::UnsupportedEncryption {
                method: method.cast_signed(),
            }),
        }
    }

    /// Bytes of guest data that one L1 entry maps, as a logarithm.
    pub(super) const fn l1_entry_bits(&self) -> u32 {
        l1_entry_bits(self.cluster_bits, self.incompatible().extended_l2())
    }

    pub(super) fn check_tables(&self, mode: OpenMode) -> Result<(), OpenError> {
        let raw = &self.raw;
        if raw.refcount_table_clusters.get() == 0 && !mode.is_check() {
            return Err(OpenError::NoRefcountTable);
        }
        let clusters = u64::from(raw.refcount_table_clusters.get());
        let bytes = clusters.saturating_mul(self.cluster_bits.size_bytes());
        if bytes > MAX_REFCOUNT_TABLE_BYTES {
            return Err(OpenError::RefcountTableTooLarge);
        }
        if !self.table_fits(raw.refcount_table_offset.get(), bytes) {
            return Err(OpenError::RefcountTableOffset);
        }
        if !mode.is_check() {
            self.check_snapshot_table()?;
        }
        self.check_l1_table()
    }

    pub(super) fn check_snapshot_table(&self) -> Result<(), OpenError> {
        let count = self.raw.nb_snapshots.get();
        if count > MAX_SNAPSHOTS {
            return Err(OpenError::SnapshotTableTooLarge);
        }
        let bytes = u64::from(count).saturating_mul(SNAPSHOT_HEADER_BYTES);
        if !self.table_fits(self.raw.snapshots_offset.get(), bytes) {
            return Err(OpenError::SnapshotTableOffset);
        }
        Ok(())
    }

    pub(super) fn check_l1_table(&self) -> Result<(), OpenError> {
        let entries = u64::from(self.raw.l1_size.get());
        let bytes = entries.saturating_mul(8);
        let offset = self.raw.l1_table_offset.get();
        if bytes > MAX_L1_BYTES {
            return Err(OpenError::L1TableTooLarge);
        }
        if !self.table_fits(offset, bytes) {
            return Err(OpenError::L1TableOffset);
        }
        let needed = l1_entries_as_qemu_counts(self.raw.size.get(), self.l1_entry_bits());
        if needed > i32::MAX.unsigned_abs().into() {
            return Err(OpenError::ImageTooBig);
        }
        if entries < needed {
            return Err(OpenError::L1TableTooSmall);
        }
        if bytes > 0 && offset.saturating_add(bytes) > MAX_FILE_BYTES {
            return Err(OpenError::L1TablePastLimit);
        }
        Ok(())
    }

    pub(super) fn check_refcount_table_readable(&self) -> Result<(), OpenError> {
        let clusters = u64::from(self.raw.refcount_table_clusters.get());
        let bytes = clusters.saturating_mul(self.cluster_bits.size_bytes());
        let offset = self.raw.refcount_table_offset.get();
        if bytes > 0 && offset.saturating_add(bytes) > MAX_FILE_BYTES {
            return Err(OpenError::RefcountTablePastLimit);
        }
        Ok(())
    }

    /// Aligned, and ends below 2^63.
    pub(super) fn table_fits(&self, offset: u64, bytes: u64) -> bool {
        let limit = i64::MAX.unsigned_abs();
        self.cluster_bits.is_aligned(offset)
            && limit.checked_sub(bytes).is_some_and(|most| offset <= most)
    }

    pub(super) fn read_backing_name<S: Storage>(
        &self,
        window: &mut Window<'_, S>,
    ) -> Result<Option<Vec<u8>>, OpenError> {
        let offset = self.backing_file_offset;
        if offset == 0 {
            return Ok(None);
        }
        let len = self.raw.backing_file_size.get();
        let room = self.cluster_bits.size_bytes().saturating_sub(offset);
        if len > MAX_BACKING_NAME_BYTES || u64::from(len) > room {
            return Err(OpenError::BackingNameTooLong);
        }
        let len = usize::try_from(len).map_err(|_| OpenError::BackingNameTooLong)?;
        let mut name = window
            .read_vec(offset, len)
            .map_err(|e| ReadStage::BackingName.window(e))?;
        extensions::cut_at_nul(&mut name);
        Ok(Some(name).filter(|name| !name.is_empty()))
    }
}

/// Version 2 has none of these fields; what lies there are extensions.
fn clear_v3_fields(raw: &mut RawHeader) {
    raw.incompatible_features = U64::ZERO;
    raw.compatible_features = U64::ZERO;
    raw.autoclear_features = U64::ZERO;
    raw.refcount_order = U32::new(4);
    raw.header_length = U32::new(72);
    raw.compression_type = 0;
}

/// Bytes of guest data that one L1 entry maps, as a logarithm (15 to 39).
pub(super) const fn l1_entry_bits(cluster_bits: ClusterBits, extended_l2: bool) -> u32 {
    let entry_bits = if extended_l2 { 4 } else { 3 };
    cluster_bits
        .get()
        .saturating_mul(2)
        .saturating_sub(entry_bits)
}

/// L1 entries for a disk of `size` bytes. QEMU's sum wraps at 2^64, so that a
/// size just below it asks for no entry at all.
const fn l1_entries_as_qemu_counts(size: u64, entry_bits: u32) -> u64 {
    size.wrapping_add((1_u64 << entry_bits).wrapping_sub(1)) >> entry_bits
}

impl RawHeaderFields {
    pub(super) fn check_data_file(&self, extensions: &Extensions) -> Result<(), OpenError> {
        if self.has_external_data_file() {
            if extensions.data_file_name.is_none() {
                return Err(OpenError::DataFileMissing);
            }
        } else if AutoclearFeatures(self.raw.autoclear_features.get()).data_file_raw() {
            return Err(OpenError::DataFileRawWithoutDataFile);
        }
        Ok(())
    }

    pub(super) fn check_virtual_size(&self) -> Result<(), OpenError> {
        let most = i64::MAX.unsigned_abs() & !511;
        if self.raw.size.get() > most {
            return Err(OpenError::SectorCount);
        }
        Ok(())
    }

    pub(super) fn into_header(
        self,
        crypt_method: CryptMethod,
        compression_type: CompressionType,
        extensions: Extensions,
        backing_file: Option<Vec<u8>>,
    ) -> Header {
        let raw = self.raw;
        Header {
            version: self.version,
            cluster_bits: self.cluster_bits,
            virtual_size: raw.size.get(),
            backing_file,
            backing_file_offset: HostOffset(self.backing_file_offset),
            backing_file_size: raw.backing_file_size.get(),
            crypt_method,
            l1_size: raw.l1_size.get(),
            l1_table_offset: HostOffset(raw.l1_table_offset.get()),
            refcount_table_offset: HostOffset(raw.refcount_table_offset.get()),
            refcount_table_clusters: raw.refcount_table_clusters.get(),
            nb_snapshots: raw.nb_snapshots.get(),
            snapshots_offset: HostOffset(raw.snapshots_offset.get()),
            incompatible: IncompatibleFeatures(raw.incompatible_features.get()),
            compatible: CompatibleFeatures(raw.compatible_features.get()),
            autoclear: AutoclearFeatures(raw.autoclear_features.get()),
            refcount_order: raw.refcount_order.get(),
            header_length: raw.header_length.get(),
            compression_type,
            extensions,
        }
    }
}

pub(super) fn check_encryption(
    is_keyless: bool,
    method: CryptMethod,
    extensions: &Extensions,
) -> Result<(), OpenError> {
    match method {
        CryptMethod::Luks if extensions.crypto_header.is_none() => {
            Err(OpenError::CryptoHeaderMissing)
        }
        CryptMethod::Aes if is_keyless => Err(OpenError::KeyRequired),
        _ => Ok(()),
    }
}
