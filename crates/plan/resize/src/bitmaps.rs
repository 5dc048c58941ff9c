//! Bitmaps of a disk that gets another size.
//!
//! A bitmap's table has one entry for each cluster of its bits, so it gets longer or shorter with the disk; bits of
//! the grown part are clear, those of the cut part are gone. qcow2 "Bitmap directory", "Bitmap table", "Bitmap data".
//!
//! The clusters of bits stay where they are, but for the one in which the shorter of the two bitmaps ends: bits
//! after that end are not to appear when the disk grows.

use crate::ResizeError;
use crate::content::zeroed;
use crate::error::{At, Stage};
use alloc::vec::Vec;
use instar_plan_txn::{Monitor, Transaction, TxnError};
use instar_qcow2::bitmaps::{BitmapTableEntry, MAX_BITMAP_BYTES, RawBitmap};
use instar_qcow2::extensions::BitmapsExtension;
use instar_qcow2::{ClusterBits, Header, HostOffset};
use instar_storage::{Storage, StorageMut};
use zerocopy::FromBytes;

/// Bytes of a directory entry before extra data and name.
const ENTRY_BYTES: usize = 24;
/// Flag bit 0 of a directory entry: not saved properly.
const IN_USE: u32 = 1;
/// Offset of the table's offset and size in a directory entry; together they are 12 bytes.
const TABLE_FIELDS: core::ops::Range<usize> = 0..12;

/// The bitmap directory of an image that is to be resized.
#[derive(Debug)]
pub struct Bitmaps {
    extension: BitmapsExtension,
    directory: Vec<u8>,
    /// Clusters that new tables, bits and the directory take at most.
    pub clusters: u64,
}

/// A directory entry that is looked at.
struct Item {
    /// Where it is in the directory.
    at: usize,
    raw: RawBitmap,
}

fn buffer(len: u64, monitor: &mut dyn Monitor) -> Result<Vec<u8>, ResizeError> {
    if len >= 1 << 20 && monitor.grant(len) < len {
        return Err(ResizeError::OutOfMemory);
    }
    zeroed(len)
}

/// Bits of a bitmap of a disk of `size` bytes.
fn bits_for(size: u64, raw: &RawBitmap) -> u64 {
    let granularity = 1_u64.checked_shl(raw.granularity_bits.into());
    size.div_ceil(granularity.unwrap_or(u64::MAX).max(1))
}

/// Entries of the bitmap table that `bits` bits need.
const fn entries_for(cluster_bits: ClusterBits, bits: u64) -> u64 {
    cluster_bits.clusters_for(bits.div_ceil(8))
}

impl Bitmaps {
    /// Reads the directory; `None` if the image has no bitmaps.
    ///
    /// # Errors
    /// A bitmap is inconsistent; the store's.
    pub fn read<S: Storage>(
        storage: &S,
        header: &Header,
        monitor: &mut dyn Monitor,
    ) -> Result<Option<Self>, ResizeError> {
        let Some(extension) = header.extensions.bitmaps else {
            return Ok(None);
        };
        let mut directory = buffer(extension.directory_size, monitor)?;
        storage
            .read_at(extension.directory_offset.get(), &mut directory)
            .map_err(TxnError::from)
            .at(Stage::Bitmaps)?;
        let bitmaps = Self {
            extension,
            directory,
            clusters: header.cluster_bits.clusters_for(extension.directory_size),
        };
        let mut at = 0;
        while let Some((item, next)) = bitmaps.item(at)? {
            if item.raw.flags.get() & IN_USE != 0 {
                let name = bitmaps.name(&item);
                return Err(ResizeError::BitmapInconsistent { name });
            }
            at = next;
        }
        Ok(Some(bitmaps))
    }

    /// Counts the clusters that the bitmaps of the new size take.
    ///
    /// # Errors
    /// A bitmap would be too large.
    pub fn plan(&mut self, header: &Header, new_size: u64) -> Result<(), ResizeError> {
        let mut at = 0;
        while let Some((item, next)) = self.item(at)? {
            let entries = entries_for(header.cluster_bits, bits_for(new_size, &item.raw));
            let bytes = entries.saturating_mul(header.cluster_bits.size_bytes());
            if bytes > MAX_BITMAP_BYTES {
                let name = self.name(&item);
                return Err(ResizeError::BitmapTooLarge { name });
            }
            let table = header.cluster_bits.clusters_for(entries.saturating_mul(8));
            self.clusters = self.clusters.saturating_add(table).saturating_add(1);
            at = next;
        }
        Ok(())
    }

    /// The entry at `at`, and where the next one is.
    fn item(&self, at: usize) -> Result<Option<(Item, usize)>, ResizeError> {
        if at >= self.directory.len() {
            return Ok(None);
        }
        let broken = || TxnError::Corrupt {
            what: "bitmap directory",
        };
        let rest = self.directory.get(at..).unwrap_or_default();
        let (raw, _) = RawBitmap::read_from_prefix(rest)
            .map_err(|_| broken())
            .at(Stage::Bitmaps)?;
        let extra = usize::try_from(raw.extra_data_size.get()).unwrap_or(usize::MAX);
        let len = ENTRY_BYTES
            .saturating_add(raw.name_size.get().into())
            .saturating_add(extra)
            .checked_next_multiple_of(8);
        let next = len.and_then(|len| at.checked_add(len));
        let next = next.ok_or_else(broken).at(Stage::Bitmaps)?;
        Ok(Some((Item { at, raw }, next)))
    }

    fn name(&self, item: &Item) -> Vec<u8> {
        let extra = usize::try_from(item.raw.extra_data_size.get()).unwrap_or(usize::MAX);
        let from = item.at.saturating_add(ENTRY_BYTES).saturating_add(extra);
        let name = self.directory.get(from..).unwrap_or_default();
        let name = name
            .get(..item.raw.name_size.get().into())
            .unwrap_or_default();
        name.split(|b| *b == 0).next().unwrap_or_default().to_vec()
    }

    /// Gives every bitmap the new size, and the image a new directory if one of them changed.
    ///
    /// # Errors
    /// The transaction's, the store's; a bitmap table is damaged.
    pub fn resize<S: StorageMut>(
        mut self,
        txn: &mut Transaction<'_, S>,
        old_size: u64,
        new_size: u64,
        monitor: &mut dyn Monitor,
    ) -> Result<(), ResizeError> {
        let (mut at, mut changed) = (0, false);
        while let Some((item, next)) = self.item(at)? {
            if let Some((offset, entries)) =
                resize_one(txn, &item.raw, old_size, new_size, monitor)?
            {
                let fields = offset
                    .get()
                    .to_be_bytes()
                    .into_iter()
                    .chain(entries.to_be_bytes());
                let entry = self.directory.get_mut(item.at..).unwrap_or_default();
                let place = entry.get_mut(TABLE_FIELDS).unwrap_or_default();
                place
                    .iter_mut()
                    .zip(fields)
                    .for_each(|(to, from)| *to = from);
                changed = true;
            }
            at = next;
        }
        if !changed {
            return Ok(());
        }
        let size = self.extension.directory_size;
        txn.free(self.extension.directory_offset, size)
            .at(Stage::Bitmaps)?;
        self.extension.directory_offset = write_padded(txn, self.directory)?;
        txn.header.extensions.bitmaps = Some(self.extension);
        Ok(())
    }
}

/// Writes `bytes` into new clusters, the last one filled with zeros.
fn write_padded<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    mut bytes: Vec<u8>,
) -> Result<HostOffset, ResizeError> {
    let bits = txn.old_header().cluster_bits;
    let clusters = bits.clusters_for(bytes.len() as u64);
    let place = txn.allocate_fixed(clusters).at(Stage::Bitmaps)?;
    let padded = clusters.saturating_mul(bits.size_bytes());
    let padded = usize::try_from(padded).map_err(|_| ResizeError::OutOfMemory)?;
    bytes
        .try_reserve_exact(padded.saturating_sub(bytes.len()))
        .map_err(|_| ResizeError::OutOfMemory)?;
    bytes.resize(padded, 0);
    txn.write(place, bytes).at(Stage::Bitmaps)?;
    Ok(place)
}

/// The new table's offset and number of entries; `None` if the bitmap is right as it is.
fn resize_one<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    raw: &RawBitmap,
    old_size: u64,
    new_size: u64,
    monitor: &mut dyn Monitor,
) -> Result<Option<(HostOffset, u32)>, ResizeError> {
    let cluster_bits = txn.old_header().cluster_bits;
    let (old_bits, new_bits) = (bits_for(old_size, raw), bits_for(new_size, raw));
    let old_entries = raw.table_size.get();
    let new_entries = entries_for(cluster_bits, new_bits);
    let count = u32::try_from(new_entries).map_err(|_| ResizeError::OutOfMemory)?;
    if old_bits == new_bits {
        return Ok(None);
    }
    let old_bytes = u64::from(old_entries).saturating_mul(8);
    let mut table = buffer(old_bytes, monitor)?;
    txn.read(raw.table_offset.get(), &mut table)
        .at(Stage::Bitmaps)?;
    let kept_bits = old_bits.min(new_bits);
    let mut changed = count != old_entries;
    drop_past(txn, &mut table, entries_for(cluster_bits, kept_bits))?;
    changed |= cut_last(txn, &mut table, kept_bits)?;
    if !changed {
        return Ok(None);
    }
    let new_bytes = usize::try_from(new_entries.saturating_mul(8)).unwrap_or(usize::MAX);
    table
        .try_reserve_exact(new_bytes.saturating_sub(table.len()))
        .map_err(|_| ResizeError::OutOfMemory)?;
    table.resize(new_bytes, 0);
    txn.free(HostOffset(raw.table_offset.get()), old_bytes)
        .at(Stage::Bitmaps)?;
    Ok(Some((write_padded(txn, table)?, count)))
}

/// Drops the clusters of the entries from `keep` on.
fn drop_past<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    table: &mut [u8],
    keep: u64,
) -> Result<(), ResizeError> {
    let keep = usize::try_from(keep).unwrap_or(usize::MAX);
    for raw in table.as_chunks_mut::<8>().0.iter_mut().skip(keep) {
        let entry = BitmapTableEntry::from_be_bytes(*raw);
        drop_bits(txn, entry)?;
        *raw = [0; 8];
    }
    Ok(())
}

fn drop_bits<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    entry: BitmapTableEntry,
) -> Result<(), ResizeError> {
    let offset = entry.host_offset();
    if offset.get() == 0 {
        return Ok(());
    }
    let cluster = txn.old_header().cluster_bits.size_bytes();
    txn.free(offset, cluster).at(Stage::Bitmaps)
}

/// Clears what the cluster in which the kept bits end has after them; true if its entry changed.
fn cut_last<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    table: &mut [u8],
    kept_bits: u64,
) -> Result<bool, ResizeError> {
    let cluster = txn.old_header().cluster_bits.size_bytes();
    let per_entry = cluster.saturating_mul(8);
    let within = kept_bits.checked_rem(per_entry).unwrap_or(0);
    let index = kept_bits.checked_div(per_entry).unwrap_or(u64::MAX);
    let index = usize::try_from(index).unwrap_or(usize::MAX);
    let raw = table.as_chunks_mut::<8>().0.get_mut(index);
    let Some(raw) = raw.filter(|raw| within != 0 && **raw != [0; 8]) else {
        return Ok(false);
    };
    let entry = BitmapTableEntry::from_be_bytes(*raw);
    let mut bits = zeroed(cluster)?;
    if entry.all_ones() {
        bits.fill(0xff);
    }
    if entry.host_offset().get() != 0 {
        txn.read(entry.host_offset().get(), &mut bits)
            .at(Stage::Bitmaps)?;
    }
    if !clear_from(&mut bits, within) {
        return Ok(false);
    }
    drop_bits(txn, entry)?;
    *raw = [0; 8];
    if bits.iter().any(|byte| *byte != 0) {
        *raw = write_padded(txn, bits)?.get().to_be_bytes();
    }
    Ok(true)
}

/// Clears the bits from number `first` on, the lowest bit of a byte being the first; true if one was set.
fn clear_from(bits: &mut [u8], first: u64) -> bool {
    let byte = usize::try_from(first / 8).unwrap_or(usize::MAX);
    let mut any = false;
    for (number, value) in bits.iter_mut().enumerate().skip(byte) {
        let keep = if number == byte {
            (1_u8 << (first % 8)).wrapping_sub(1)
        } else {
            0
        };
        any |= *value & !keep != 0;
        *value &= keep;
    }
    any
}
