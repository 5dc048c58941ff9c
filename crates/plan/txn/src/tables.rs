//! L1 and L2 tables: reading them, and what they refer to.

use crate::{TxnError, zeroed};
use alloc::vec::Vec;
use instar_qcow2::entries::{COPIED, L1Entry, L2Entry};
use instar_qcow2::header::{MAX_FILE_BYTES, MAX_L1_BYTES};
use instar_qcow2::{Header, HostOffset};
use instar_storage::{Read, Storage};

/// Bytes of L2 tables read at once.
const BATCH_BYTES: u64 = 2 << 20;

/// Reads an L1 table, active or a snapshot's.
///
/// # Errors
/// It is longer than QEMU takes, lies outside any file, or the store fails.
pub fn read_l1<S: Storage>(
    storage: &S,
    header: &Header,
    offset: HostOffset,
    entries: u32,
) -> Result<Vec<u64>, TxnError> {
    let bytes = u64::from(entries).saturating_mul(8);
    let corrupt = |what| Err(TxnError::Corrupt { what });
    if bytes > MAX_L1_BYTES {
        return corrupt("L1 table is too large");
    }
    let end = offset.get().saturating_add(bytes);
    if !header.cluster_bits.is_aligned(offset.get()) || end > MAX_FILE_BYTES {
        return corrupt("L1 table is misplaced");
    }
    let mut raw = zeroed(bytes)?;
    storage.read_at(offset.get(), &mut raw)?;
    let mut table = Vec::new();
    table
        .try_reserve_exact(raw.len() / 8)
        .map_err(|_| TxnError::OutOfMemory)?;
    table.extend(
        raw.as_chunks::<8>()
            .0
            .iter()
            .map(|e| u64::from_be_bytes(*e)),
    );
    Ok(table)
}

/// Where the L2 table of an L1 entry is; `None` if there is none.
///
/// # Errors
/// The entry is not a cluster's offset.
pub(crate) fn l2_offset(header: &Header, entry: u64) -> Result<Option<u64>, TxnError> {
    let entry = L1Entry(entry);
    if entry.is_unallocated() {
        return Ok(None);
    }
    let offset = entry.l2_offset().get();
    if !header.cluster_bits.is_aligned(offset) {
        return Err(TxnError::Corrupt {
            what: "L2 table is not cluster aligned",
        });
    }
    Ok(Some(offset))
}

/// Takes the index of an L1 entry and the bytes of its L2 table.
pub type TableVisitor<'v> = dyn FnMut(usize, &mut [u8]) -> Result<(), TxnError> + 'v;

/// Reads the L2 tables of `l1`, several at once, and calls `visit` with the index of each L1 entry that has
/// one and the table's bytes.
///
/// # Errors
/// The store's, an L1 entry that is no offset, or what `visit` returns.
pub fn for_each_l2<S: Storage>(
    storage: &S,
    header: &Header,
    l1: &[u64],
    visit: &mut TableVisitor<'_>,
) -> Result<(), TxnError> {
    let bytes = header.cluster_bits.size_bytes();
    let cluster = usize::try_from(bytes).map_err(|_| TxnError::OutOfMemory)?;
    let most = usize::try_from((BATCH_BYTES >> header.cluster_bits.get()).max(1)).unwrap_or(1);
    let present = l1.iter().filter(|e| !L1Entry(**e).is_unallocated()).count();
    let tables = most.min(present);
    let mut buffer = zeroed(bytes.saturating_mul(tables as u64))?;
    let mut batch: Vec<(usize, u64)> = Vec::with_capacity(tables);
    let mut entries = l1.iter().enumerate();
    loop {
        batch.clear();
        while batch.len() < tables {
            let Some((index, entry)) = entries.next() else {
                break;
            };
            if let Some(offset) = l2_offset(header, *entry)? {
                batch.push((index, offset));
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        let places = batch.iter().zip(buffer.chunks_exact_mut(cluster));
        let mut reads: Vec<Read<'_>> = places
            .map(|(&(_, offset), buf)| Read { offset, buf })
            .collect();
        storage.read_batch(&mut reads)?;
        drop(reads);
        for (&(index, _), table) in batch.iter().zip(buffer.chunks_exact_mut(cluster)) {
            visit(index, table)?;
        }
    }
}

/// Calls `visit` with runs (first cluster, count) of the host clusters that the entries of an L2 table refer
/// to. A compressed entry refers once to each cluster that its data touches. Guest data in an external data
/// file has no refcounts and is left out.
///
/// # Errors
/// An entry is no cluster's offset, or what `visit` returns.
pub fn references(
    header: &Header,
    l2: &[u8],
    visit: &mut dyn FnMut(u64, u64) -> Result<(), TxnError>,
) -> Result<(), TxnError> {
    if header.incompatible.external_data_file() {
        return Ok(());
    }
    let bits = header.cluster_bits;
    let (mut first, mut count) = (0_u64, 0_u64);
    let stride = usize::try_from(header.l2_entry_bytes()).unwrap_or(8);
    for raw in l2.chunks_exact(stride) {
        let entry = L2Entry(first_word(raw));
        let (cluster, clusters) = match entry.compressed(bits) {
            Some(data) => {
                let start = data.first_sector_offset().get() >> bits.get();
                let end = data.end_offset().get().saturating_sub(1) >> bits.get();
                (start, end.saturating_sub(start).saturating_add(1))
            }
            None => {
                let offset = entry.host_offset().get();
                if offset == 0 {
                    continue;
                }
                if !bits.is_aligned(offset) {
                    return Err(TxnError::Corrupt {
                        what: "data cluster is not cluster aligned",
                    });
                }
                (offset >> bits.get(), 1)
            }
        };
        if first.saturating_add(count) == cluster {
            count = count.saturating_add(clusters);
        } else {
            if count > 0 {
                visit(first, count)?;
            }
            (first, count) = (cluster, clusters);
        }
    }
    if count > 0 {
        visit(first, count)?;
    }
    Ok(())
}

/// The first 64 bits of an entry.
pub(crate) fn first_word(entry: &[u8]) -> u64 {
    entry
        .first_chunk::<8>()
        .map_or(0, |raw| u64::from_be_bytes(*raw))
}

/// The cluster of an entry whose COPIED bit means something: allocated, not compressed.
pub(crate) fn flagged_cluster(header: &Header, entry: u64) -> Option<u64> {
    let entry = L2Entry(entry);
    let offset = entry.host_offset().get();
    (!entry.is_compressed() && offset != 0).then(|| offset >> header.cluster_bits.get())
}

/// `entry` with its COPIED bit as `copied` says.
pub(crate) const fn with_copied(entry: u64, copied: bool) -> u64 {
    if copied {
        entry | COPIED
    } else {
        entry & !COPIED
    }
}
