//! Guest data as a reader of the image sees it: through the tables, compressed or not, and through the
//! backing chain. Only the cluster in which the old disk ends is ever read, so nothing is cached.
//!
//! qcow2 "L2 table entry", "Extended L2 Entries", "Compressed Clusters Descriptor".

use crate::ResizeError;
use crate::error::Stage;
use alloc::vec::Vec;
use instar_codec::Decoder;
use instar_layers::Decompress;
use instar_qcow2::Header;
use instar_qcow2::entries::{L1Entry, L2Entry, SUBCLUSTERS, SubclusterBitmap};
use instar_qcow2::header::{CompressionType, CryptMethod};
use instar_storage::{Cipher, DataPlace, Storage, StorageError};

/// EIO.
const EIO: u32 = 5;

/// Decompresses a cluster from the front of some bytes; false if they are damaged.
pub type Unpack = fn(CompressionType, &[u8], &mut [u8]) -> bool;

/// The decompressors of all types.
pub fn unpack(kind: CompressionType, packed: &[u8], cluster: &mut [u8]) -> bool {
    Decoder::new().decompress(kind, packed, cluster).is_ok()
}

/// One image of a chain.
#[derive(Debug)]
pub struct Layer<'a, S> {
    /// The image.
    pub storage: &'a S,
    /// Its external data file, if it has one.
    pub data: Option<&'a S>,
    /// Its header; `None`: it is raw.
    pub header: Option<&'a Header>,
    /// The cipher of its data, if that is encrypted and its key is known.
    pub cipher: Option<&'a dyn Cipher>,
}

impl<S> Clone for Layer<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Layer<'_, S> {}

/// What an L2 entry says of one cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// The entry.
    pub entry: L2Entry,
    /// Its second half, where entries are extended.
    pub bitmap: SubclusterBitmap,
}

/// What a subcluster, or a cluster without subclusters, holds.
enum Place {
    /// Nothing: the layer below shows.
    Below,
    /// Zeros.
    Zeros,
    /// Data at this offset.
    Data(u64),
    /// A part of a compressed cluster.
    Compressed,
}

/// Guest data cannot be read. What is damaged is an I/O error, as in QEMU.
fn failed(e: StorageError) -> ResizeError {
    ResizeError::Failed {
        stage: Stage::Zero,
        errno: e.errno,
    }
}

const DAMAGED: ResizeError = ResizeError::Failed {
    stage: Stage::Zero,
    errno: EIO,
};

/// So many zeros.
///
/// # Errors
/// There is no memory.
pub fn zeroed(len: u64) -> Result<Vec<u8>, ResizeError> {
    let len = usize::try_from(len).map_err(|_| ResizeError::OutOfMemory)?;
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(len)
        .map_err(|_| ResizeError::OutOfMemory)?;
    bytes.resize(len, 0);
    Ok(bytes)
}

impl<S: Storage> Layer<'_, S> {
    /// Bytes of the disk, in whole sectors.
    pub fn size_bytes(&self) -> u64 {
        match self.header {
            Some(header) => header.whole_sectors_size(),
            None => self.storage.len_bytes().next_multiple_of(512),
        }
    }

    /// The entry of a guest cluster.
    ///
    /// # Errors
    /// The store's; the L2 table is misplaced.
    pub fn mapping(&self, header: &Header, cluster: u64) -> Result<Mapping, ResizeError> {
        let per_table = header.l2_entries();
        let l1_index = cluster.checked_div(per_table).unwrap_or(u64::MAX);
        if l1_index >= u64::from(header.l1_size) {
            return Ok(Mapping::default());
        }
        let mut raw = [0; 8];
        let at = header
            .l1_table_offset
            .get()
            .saturating_add(l1_index.saturating_mul(8));
        self.storage.read_at(at, &mut raw).map_err(failed)?;
        let l1 = L1Entry::from_be_bytes(raw);
        if l1.is_unallocated() {
            return Ok(Mapping::default());
        }
        let table = l1.l2_offset().get();
        if !header.cluster_bits.is_aligned(table) {
            return Err(DAMAGED);
        }
        let index = cluster.checked_rem(per_table).unwrap_or(0);
        let at = table.saturating_add(index.saturating_mul(header.l2_entry_bytes()));
        self.storage.read_at(at, &mut raw).map_err(failed)?;
        let mut mapping = Mapping {
            entry: L2Entry::from_be_bytes(raw),
            bitmap: SubclusterBitmap::default(),
        };
        if header.incompatible.extended_l2() {
            self.storage
                .read_at(at.saturating_add(8), &mut raw)
                .map_err(failed)?;
            mapping.bitmap = SubclusterBitmap::from_be_bytes(raw);
        }
        Ok(mapping)
    }

    /// Reads the compressed cluster of an entry, whole.
    fn inflate(
        &self,
        header: &Header,
        entry: L2Entry,
        unpack: Option<Unpack>,
    ) -> Result<Vec<u8>, ResizeError> {
        let unpack = unpack.ok_or(ResizeError::Compressed)?;
        let bits = header.cluster_bits;
        let descriptor = entry.compressed(bits).ok_or(DAMAGED)?;
        let mut packed = zeroed(descriptor.size_bytes())?;
        self.storage
            .read_at(descriptor.offset.get(), &mut packed)
            .map_err(failed)?;
        let mut cluster = zeroed(bits.size_bytes())?;
        unpack(header.compression_type, &packed, &mut cluster)
            .then_some(cluster)
            .ok_or(DAMAGED)
    }
}

/// Fills `buf` with the guest data at `offset` of the first of `layers`, the others being its backing chain.
/// What no layer holds is zeros.
///
/// # Errors
/// The store's; damaged tables or compressed data; encrypted data without its key.
pub fn read_guest<S: Storage>(
    layers: &[Layer<'_, S>],
    offset: u64,
    buf: &mut [u8],
) -> Result<(), ResizeError> {
    read_guest_by(Some(unpack), layers, offset, buf)
}

/// As [`read_guest`], by other decompressors or none.
///
/// # Errors
/// As there; [`ResizeError::Compressed`].
pub fn read_guest_by<S: Storage>(
    unpack: Option<Unpack>,
    layers: &[Layer<'_, S>],
    offset: u64,
    buf: &mut [u8],
) -> Result<(), ResizeError> {
    let Some((layer, below)) = layers.split_first() else {
        buf.fill(0);
        return Ok(());
    };
    let size = layer.size_bytes();
    let within = usize::try_from(size.saturating_sub(offset))
        .unwrap_or(usize::MAX)
        .min(buf.len());
    let (mut rest, past_end) = buf.split_at_mut(within);
    past_end.fill(0);
    let Some(header) = layer.header else {
        return layer.storage.read_at(offset, rest).map_err(failed);
    };
    let unit = unit_bytes(header);
    let mut at = offset;
    while !rest.is_empty() {
        let left = unit.saturating_sub(at.checked_rem(unit).unwrap_or(0));
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
        let (piece, after) = rest.split_at_mut(len);
        let chain = (layer, header, below);
        read_unit(unpack, chain, at, piece)?;
        at = at.saturating_add(len as u64);
        rest = after;
    }
    Ok(())
}

/// Bytes of a subcluster, or of a cluster where there are none.
pub fn unit_bytes(header: &Header) -> u64 {
    let cluster = header.cluster_bits.size_bytes();
    if header.incompatible.extended_l2() {
        cluster >> SUBCLUSTERS.trailing_zeros()
    } else {
        cluster
    }
}

/// Reads within one subcluster, or cluster.
fn read_unit<S: Storage>(
    unpack: Option<Unpack>,
    (layer, header, below): (&Layer<'_, S>, &Header, &[Layer<'_, S>]),
    offset: u64,
    buf: &mut [u8],
) -> Result<(), ResizeError> {
    let bits = header.cluster_bits;
    let in_cluster = offset & bits.mask();
    let mapping = layer.mapping(header, offset >> bits.get())?;
    let unit = in_cluster.checked_div(unit_bytes(header)).unwrap_or(0);
    match place(header, mapping, unit)? {
        Place::Below => read_guest_by(unpack, below, offset, buf),
        Place::Zeros => {
            buf.fill(0);
            Ok(())
        }
        _ if header.crypt_method != CryptMethod::None && layer.cipher.is_none() => {
            Err(ResizeError::KeyRequired)
        }
        Place::Data(start) => {
            let data = layer.data.unwrap_or(layer.storage);
            let host = start.saturating_add(in_cluster);
            let at = DataPlace {
                host,
                guest: offset,
            };
            data.read_at(host, buf).map_err(failed)?;
            let Some(cipher) = layer.cipher else {
                return Ok(());
            };
            cipher.decipher(at, buf).map_err(failed)
        }
        Place::Compressed => {
            let cluster = layer.inflate(header, mapping.entry, unpack)?;
            let from = usize::try_from(in_cluster).map_err(|_| DAMAGED)?;
            let bytes = cluster.get(from..).and_then(|c| c.get(..buf.len()));
            buf.copy_from_slice(bytes.ok_or(DAMAGED)?);
            Ok(())
        }
    }
}

/// Where subcluster `unit` of a cluster is.
fn place(header: &Header, mapping: Mapping, unit: u64) -> Result<Place, ResizeError> {
    let entry = mapping.entry;
    if entry.is_compressed() {
        return Ok(Place::Compressed);
    }
    let offset = entry.host_offset().get();
    if !header.cluster_bits.is_aligned(offset) {
        return Err(DAMAGED);
    }
    // In a data file, offset 0 is a place like any other.
    let allocated = offset != 0 || (header.incompatible.external_data_file() && entry.is_copied());
    if header.incompatible.extended_l2() {
        let bit = 1_u64.checked_shl(u32::try_from(unit).unwrap_or(64));
        let bit = bit.unwrap_or(0);
        return Ok(if mapping.bitmap.zeros() & bit != 0 {
            Place::Zeros
        } else if mapping.bitmap.allocated() & bit != 0 && allocated {
            Place::Data(offset)
        } else {
            Place::Below
        });
    }
    Ok(if entry.has_zero_flag() {
        Place::Zeros
    } else if allocated {
        Place::Data(offset)
    } else {
        Place::Below
    })
}
