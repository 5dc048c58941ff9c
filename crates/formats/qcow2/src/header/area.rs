//! The header area as it is written: header, extensions, backing file name.
//!
//! What a [`Header`] does not hold is kept as it was found: unknown fields of a
//! longer header, unknown extensions, the feature name table.

use super::wire::RawHeader;
use super::{CompressionType, CryptMethod, Header, MAGIC, V2_HEADER_BYTES};
use crate::extensions::{
    self, Area, EXT_BACKING_FORMAT, EXT_BITMAPS, EXT_CRYPTO_HEADER, EXT_DATA_FILE, EXT_END,
    EXT_FEATURE_TABLE,
};
use crate::units::HostOffset;
use crate::window::zeroed;
use alloc::vec::Vec;
use instar_storage::{Storage, StorageError};
use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromZeros, IntoBytes};

/// Bytes of the header as version 3 is written here.
const WRITTEN_HEADER_BYTES: u32 = 112;
/// The most bytes of unknown extensions that are kept.
const MAX_KEPT_BYTES: usize = 64 << 10;
/// Bytes that are read first: most areas end in them.
const FIRST_BYTES: usize = 4 << 10;

/// qcow2 "Feature name table": kind (0 incompatible, 1 compatible, 2 autoclear), bit and name.
const FEATURE_NAMES: [(u8, u8, &str); 8] = [
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
];

/// What is kept of a header area besides the [`Header`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderArea {
    /// First byte after header and extensions.
    end: usize,
    /// Fields past those that are known.
    unknown_fields: Vec<u8>,
    /// The feature name table's data.
    feature_table: Option<Vec<u8>>,
    /// Unknown extensions: type and data.
    unknown: Vec<(u32, Vec<u8>)>,
}

impl HeaderArea {
    /// Reads what `header`'s image has besides, and gives the bytes that were read for it, from the file's start on.
    ///
    /// # Errors
    /// The store's.
    pub fn read<S: Storage>(storage: &S, header: &Header) -> Result<(Self, Vec<u8>), StorageError> {
        let end = if header.backing_file_offset.get() == 0 {
            header.cluster_bits.size_bytes()
        } else {
            header.backing_file_offset.get()
        };
        let cluster = usize::try_from(header.cluster_bits.size_bytes()).unwrap_or(0);
        let area = usize::try_from(end).unwrap_or(usize::MAX);
        let area = area.min(cluster).min(MAX_KEPT_BYTES);
        let bytes = read_start(storage, cluster.min(FIRST_BYTES))?;
        let (kept, whole) = Self::parse(header, bytes.get(..area).unwrap_or(&bytes));
        if whole || bytes.len() >= area {
            return Ok((kept, bytes));
        }
        let bytes = read_start(storage, area)?;
        Ok((Self::parse(header, &bytes).0, bytes))
    }

    /// What `area` holds besides `header`, and whether the chain of extensions has its end in it.
    fn parse(header: &Header, area: &[u8]) -> (Self, bool) {
        let mut kept = Self::default();
        let known = usize::try_from(WRITTEN_HEADER_BYTES).unwrap_or(0);
        let header_end = usize::try_from(header.header_length).unwrap_or(0);
        kept.end = header_end;
        if header.version >= 3 {
            kept.unknown_fields = area.get(known..header_end).unwrap_or_default().to_vec();
        }
        let mut rest = area.get(header_end..).unwrap_or_default();
        while let Some((kind, data, after)) = split_extension(rest) {
            kept.end = area.len().saturating_sub(after.len());
            match kind {
                EXT_END => return (kept, true),
                EXT_FEATURE_TABLE => kept.feature_table = Some(data.to_vec()),
                EXT_BACKING_FORMAT | EXT_DATA_FILE | EXT_CRYPTO_HEADER | EXT_BITMAPS => {}
                _ => kept.unknown.push((kind, data.to_vec())),
            }
            rest = after;
        }
        if !rest.is_empty() {
            // Something that is no extension.
            kept.end = area.len();
        }
        (kept, false)
    }

    /// The first byte after header and extensions as they were read; a backing file name may follow.
    #[must_use]
    pub const fn end(&self) -> usize {
        self.end
    }

    /// `header` as it is read from `area`, the bytes that [`Self::encode`] has made of it.
    #[must_use]
    pub fn as_written(header: &Header, area: &[u8]) -> Header {
        let mut written = header.clone();
        let field = |at: usize| area.get(at..).and_then(<[u8]>::first_chunk::<4>);
        let field = |at: usize| field(at).map_or(0, |raw| u32::from_be_bytes(*raw));
        let wide =
            |at: usize| (u64::from(field(at)) << 32) | u64::from(field(at.saturating_add(4)));
        written.backing_file_offset = HostOffset(wide(8));
        written.backing_file_size = field(16);
        written.backing_file = written.backing_file.filter(|name| !name.is_empty());
        let ext = &mut written.extensions;
        ext.backing_format = ext.backing_format.take().filter(|f| !f.is_empty());
        ext.bitmaps_ignored = None;
        ext.feature_name_table = None;
        if header.version < 3 {
            written.header_length = u32::try_from(V2_HEADER_BYTES).unwrap_or(0);
            (written.incompatible.0, written.compatible.0) = (0, 0);
            written.autoclear.0 = 0;
            return written;
        }
        written.header_length = field(100);
        let mut at = usize::try_from(written.header_length).unwrap_or(usize::MAX);
        while let Some((kind, data, after)) = area.get(at..).and_then(split_extension) {
            match (kind, u32::try_from(data.len())) {
                (EXT_END, _) => break,
                (EXT_FEATURE_TABLE, Ok(len)) => {
                    let offset = HostOffset((at as u64).saturating_add(8));
                    written.extensions.feature_name_table = Some(Area { offset, len });
                }
                _ => {}
            }
            at = area.len().saturating_sub(after.len());
        }
        written
    }

    /// Nothing but the names of all features that are known here, as a new image has it.
    #[must_use]
    pub fn with_feature_names() -> Self {
        let mut table = Vec::new();
        for (kind, bit, name) in FEATURE_NAMES {
            let mut entry = extensions::RawFeatureName::new_zeroed();
            entry.feature_type = kind;
            entry.bit = bit;
            if let Some(field) = entry.name.get_mut(..name.len()) {
                field.copy_from_slice(name.as_bytes());
            }
            table.extend_from_slice(entry.as_bytes());
        }
        Self {
            feature_table: Some(table),
            ..Self::default()
        }
    }

    /// The bytes of the area for `header`, zeros after them not included.
    ///
    /// Without `all`, what a reader can do without is left out: the feature
    /// name table, which stands last, so that what changes is in the first
    /// sector.
    #[must_use]
    pub fn encode(&self, header: &Header, all: bool) -> Vec<u8> {
        let v3 = header.version >= 3;
        let mut out = Vec::new();
        let mut raw = raw_header(header);
        if v3 {
            let extra = u32::try_from(self.unknown_fields.len()).unwrap_or(0);
            raw.header_length
                .set(WRITTEN_HEADER_BYTES.saturating_add(extra));
        }
        out.extend_from_slice(raw.as_bytes());
        if v3 {
            out.extend_from_slice(&self.unknown_fields);
        } else {
            out.truncate(usize::try_from(V2_HEADER_BYTES).unwrap_or(0));
        }
        self.put_extensions(&mut out, header, all && v3);
        if let Some(name) = &header.backing_file {
            let at = u64::try_from(out.len()).unwrap_or(0);
            out.extend_from_slice(name);
            raw.backing_file_offset.set(at);
            raw.backing_file_size
                .set(u32::try_from(name.len()).unwrap_or(0));
            if let (Some(to), Some(from)) = (out.get_mut(8..20), raw.as_bytes().get(8..20)) {
                to.copy_from_slice(from);
            }
        }
        out
    }

    fn put_extensions(&self, out: &mut Vec<u8>, header: &Header, feature_table: bool) {
        let ext = &header.extensions;
        if let Some(format) = ext.backing_format.as_ref().filter(|f| !f.is_empty()) {
            put(out, EXT_BACKING_FORMAT, format);
        }
        if let Some(name) = &ext.data_file_name {
            put(out, EXT_DATA_FILE, name);
        }
        if let Some(crypto) = ext.crypto_header {
            let pointer = extensions::RawCryptoHeaderPointer {
                offset: U64::new(crypto.offset.get()),
                length: U64::new(crypto.length),
            };
            put(out, EXT_CRYPTO_HEADER, pointer.as_bytes());
        }
        if let Some(bitmaps) = ext.bitmaps {
            let raw = extensions::RawBitmapsExtension {
                nb_bitmaps: U32::new(bitmaps.nb_bitmaps),
                reserved: U32::ZERO,
                directory_size: U64::new(bitmaps.directory_size),
                directory_offset: U64::new(bitmaps.directory_offset.get()),
            };
            put(out, EXT_BITMAPS, raw.as_bytes());
        }
        for (kind, data) in &self.unknown {
            put(out, *kind, data);
        }
        if let Some(table) = self.feature_table.as_ref().filter(|_| feature_table) {
            put(out, EXT_FEATURE_TABLE, table);
        }
        put(out, EXT_END, &[]);
    }
}

/// The first `len` bytes of the store.
fn read_start<S: Storage>(storage: &S, len: usize) -> Result<Vec<u8>, StorageError> {
    let mut bytes = zeroed(len).ok_or(StorageError {
        errno: 12,
        offset: 0,
    })?;
    storage.read_at(0, &mut bytes)?;
    Ok(bytes)
}

/// Type, data and what follows of the first extension in `bytes`.
fn split_extension(bytes: &[u8]) -> Option<(u32, &[u8], &[u8])> {
    let (kind, rest) = bytes.split_first_chunk::<4>()?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
    let data = rest.get(..len)?;
    let after = rest
        .get(len.checked_next_multiple_of(8)?..)
        .unwrap_or_default();
    Some((u32::from_be_bytes(*kind), data, after))
}

fn put(out: &mut Vec<u8>, kind: u32, data: &[u8]) {
    out.extend_from_slice(&kind.to_be_bytes());
    let len = u32::try_from(data.len()).unwrap_or(0);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(8), 0);
}

fn raw_header(header: &Header) -> RawHeader {
    let mut raw = RawHeader::new_zeroed();
    raw.magic = U32::new(MAGIC);
    raw.version = U32::new(header.version);
    raw.cluster_bits = U32::new(header.cluster_bits.get());
    raw.size = U64::new(header.virtual_size);
    raw.crypt_method = U32::new(match header.crypt_method {
        CryptMethod::None => 0,
        CryptMethod::Aes => 1,
        CryptMethod::Luks => 2,
    });
    raw.l1_size = U32::new(header.l1_size);
    raw.l1_table_offset = U64::new(header.l1_table_offset.get());
    raw.refcount_table_offset = U64::new(header.refcount_table_offset.get());
    raw.refcount_table_clusters = U32::new(header.refcount_table_clusters);
    raw.nb_snapshots = U32::new(header.nb_snapshots);
    raw.snapshots_offset = U64::new(header.snapshots_offset.get());
    raw.incompatible_features = U64::new(header.incompatible.0);
    raw.compatible_features = U64::new(header.compatible.0);
    raw.autoclear_features = U64::new(header.autoclear.0);
    raw.refcount_order = U32::new(header.refcount_order);
    raw.compression_type = match header.compression_type {
        CompressionType::Zlib => 0,
        CompressionType::Zstd => 1,
    };
    raw
}
