//! What follows the commit: tables move down, the file is cut, space goes back to the host.
//!
//! The image is the new one already. What fails here leaves it so, only longer
//! than it need be.

use crate::snapshots::SnapshotEntry;
use crate::tables::l2_offset;
use crate::transaction::{MAX_DISCARDS, SLACK, Transaction};
use crate::{Monitor, TxnError, nonzero_end, zeroed};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use instar_qcow2::entries::{L1Entry, OFFSET_MASK};
use instar_qcow2::{Header, HostOffset};
use instar_storage::StorageMut;

/// How often tables are moved into holes: a copy may have no room but behind the one before it.
const MAX_MOVES: usize = 3;

/// Runs of clusters: first and count.
type Runs = Vec<(u64, u64)>;

/// Ends the transaction `done`, which has been switched to `header`.
///
/// # Errors
/// The store's, if something that was written may not have reached it.
pub fn after_commit<S: StorageMut>(
    done: Transaction<'_, S>,
    header: Header,
) -> Result<Header, TxnError> {
    let storage = done.storage;
    let cuts_tail = done.cuts_tail;
    let keep = if cuts_tail { 0 } else { done.old_len };
    let tail = done.space.tail_start();
    let tail = tail.filter(|tail| done.space.top() > *tail);
    let mut freed = pinned(&done);
    let has_tables = done.has_tables;
    let mut last = done.next(header, !cuts_tail);
    if tail.is_none() && !cuts_tail {
        give_back(&mut last, &freed, u64::MAX)?;
        return Ok(last.old);
    }
    let mut tables_end = 0;
    if let Some(tail) = tail {
        let header = last.old.clone();
        match move_down(last, (tail, has_tables), &mut freed) {
            Ok(moved) => (last, tables_end) = moved,
            // No room, or no memory, to make it shorter: it stays as it is.
            Err(_) => return Ok(header),
        }
    }
    for _ in 0..MAX_MOVES {
        let Some(used) = last.used_of_holey()?.filter(|_| cuts_tail) else {
            break;
        };
        // Tables behind the holes would keep the file long.
        let header = last.old.clone();
        match move_down(last, (used, true), &mut freed) {
            Ok(moved) => (last, tables_end) = moved,
            Err(_) => last = Transaction::begin_low(storage, &header, &mut Silent)?,
        }
    }
    let mut end = last.used_end()?;
    if end == tables_end && end > keep {
        end = without_trailing_zeros(&last, end)?;
    }
    let end = keep.max(end);
    give_back(&mut last, &freed, end)?;
    cut(storage, end)?;
    Ok(last.old)
}

/// Makes a file that is longer end at byte `end`. Nothing depends on when that reaches the disk.
fn cut<S: StorageMut>(storage: &S, end: u64) -> Result<(), TxnError> {
    if storage.can_grow() && storage.len_bytes() > end {
        storage.set_len(end)?;
    }
    Ok(())
}

/// A monitor that neither stops nor grants.
struct Silent;

impl Monitor for Silent {
    fn progress(&mut self, _: u64, _: u64) -> Result<(), crate::Cancelled> {
        Ok(())
    }
    fn grant(&mut self, _: u64) -> u64 {
        0
    }
}

/// What the transaction has freed, as far as it is remembered.
fn pinned<S: StorageMut>(done: &Transaction<'_, S>) -> Runs {
    let mut runs = Vec::new();
    if done.refcounts.any_pinned {
        done.refcounts.for_each_pinned(&mut |first, count| {
            if runs.len() < MAX_DISCARDS {
                runs.push((first, count));
            }
        });
    }
    runs
}

/// Discards those of the clusters before byte `end` that are free in the state of `now`, unless they are a small
/// part of the file, which the next change can use.
fn give_back<S: StorageMut>(
    now: &mut Transaction<'_, S>,
    freed: &[(u64, u64)],
    end: u64,
) -> Result<(), TxnError> {
    let bits = now.header.cluster_bits.get();
    let file_end = now.storage.len_bytes();
    let clusters = freed
        .iter()
        .fold(0_u64, |sum, (_, count)| sum.saturating_add(*count));
    if clusters.saturating_mul(SLACK) < file_end >> bits {
        return Ok(());
    }
    let file_end = if now.storage.can_grow() {
        file_end.min(end)
    } else {
        file_end
    };
    for &(first, count) in freed {
        let end = first.saturating_add(count);
        let mut cluster = first;
        while cluster < end {
            let start = cluster;
            while cluster < end && now.refcount(cluster)? == 0 {
                cluster = cluster.saturating_add(1);
            }
            let (from, to) = (start << bits, (cluster << bits).min(file_end));
            if from < to {
                // A host that keeps the space has harmed nothing.
                let _ = now.storage.discard(from, to.saturating_sub(from));
            }
            cluster = cluster.saturating_add(1);
        }
    }
    Ok(())
}

/// `end`, or where the zeros begin that the last cluster before it ends with.
fn without_trailing_zeros<S: StorageMut>(
    now: &Transaction<'_, S>,
    end: u64,
) -> Result<u64, TxnError> {
    let cluster = now.header.cluster_bits.size_bytes();
    let mut last = zeroed(cluster)?;
    let start = end.saturating_sub(cluster);
    now.read(start, &mut last)?;
    Ok(start.saturating_add(nonzero_end(&last).max(1) as u64))
}

/// Moves every table that lies at cluster `tail` or after it into the lowest free clusters; without `tables`, all
/// such tables are the refcount structures. The transaction that goes on from there, and where the highest table
/// ends that was moved.
fn move_down<'s, S: StorageMut>(
    mut txn: Transaction<'s, S>,
    (tail, tables): (u64, bool),
    freed: &mut Runs,
) -> Result<(Transaction<'s, S>, u64), TxnError> {
    let mut mover = Mover {
        txn,
        tail,
        moved: BTreeMap::new(),
    };
    let moved = mover
        .move_all(tables)
        .and_then(|()| mover.txn.prepare(&mut Silent));
    txn = mover.txn;
    match moved {
        Ok(switch) => {
            let header = txn.switch(switch)?;
            freed.extend(pinned(&txn));
            let end = txn.space.top() << header.cluster_bits.get();
            Ok((txn.next(header, false), end))
        }
        Err(e) => {
            txn.abandon();
            Err(e)
        }
    }
}

struct Mover<'s, S> {
    txn: Transaction<'s, S>,
    /// First cluster of what is to move.
    tail: u64,
    /// L2 tables: old offset to new one.
    moved: BTreeMap<u64, u64>,
}

impl<S: StorageMut> Mover<'_, S> {
    fn move_all(&mut self, tables: bool) -> Result<(), TxnError> {
        self.txn.return_refcounts()?;
        if tables {
            self.move_tables()?;
        }
        self.move_refcount_blocks()
    }

    fn move_tables(&mut self) -> Result<(), TxnError> {
        // Tables of several clusters choose first: what moves after them may lie anywhere.
        let (offset, size) = (self.txn.header.l1_table_offset, self.txn.header.l1_size);
        let active = self.new_place(offset, size)?;
        let snapshots = self.txn.read_snapshots()?;
        let mut places = Vec::new();
        for entry in &snapshots {
            places.push(self.new_place(entry.l1_table_offset, entry.l1_size)?);
        }
        if let Some(place) = active {
            self.move_l1(offset, size, place)?;
            self.txn.header.l1_table_offset = place;
        }
        self.move_snapshots(snapshots, &places)
    }

    /// Where an L1 table goes, if it is to move or an L2 table of it is.
    fn new_place(&mut self, offset: HostOffset, size: u32) -> Result<Option<HostOffset>, TxnError> {
        if size == 0 {
            return Ok(None);
        }
        let moves = self.is_in_tail(offset) || {
            let l1 = self.txn.read_l1(offset, size)?;
            l1.iter()
                .any(|entry| self.is_in_tail(L1Entry(*entry).l2_offset()))
        };
        let bytes = u64::from(size).saturating_mul(8);
        let clusters = self.txn.header.cluster_bits.clusters_for(bytes);
        moves.then(|| self.txn.allocate_table(clusters)).transpose()
    }

    /// Writes an L1 table with moved L2 tables at its new place.
    fn move_l1(
        &mut self,
        offset: HostOffset,
        size: u32,
        place: HostOffset,
    ) -> Result<(), TxnError> {
        let mut l1 = self.txn.read_l1(offset, size)?;
        self.move_l2s(&mut l1)?;
        self.txn.write_l1_at(place, &l1)?;
        self.txn.free(offset, u64::from(size).saturating_mul(8))
    }

    fn is_in_tail(&self, offset: HostOffset) -> bool {
        offset.get() != 0 && self.txn.header.cluster_bits.cluster_of(offset).get() >= self.tail
    }

    /// Moves the L2 tables that the entries name.
    fn move_l2s(&mut self, l1: &mut [u64]) -> Result<(), TxnError> {
        for entry in l1 {
            let Some(old) = l2_offset(&self.txn.header, *entry)? else {
                continue;
            };
            if !self.is_in_tail(HostOffset(old)) {
                continue;
            }
            let new = match self.moved.get(&old) {
                Some(new) => *new,
                None => self.move_l2(old)?,
            };
            *entry = (*entry & !OFFSET_MASK) | new;
        }
        Ok(())
    }

    /// Copies an L2 table down, with as many references as it has.
    fn move_l2(&mut self, old: u64) -> Result<u64, TxnError> {
        let bits = self.txn.header.cluster_bits;
        let references = self.txn.refcount(old >> bits.get())?;
        let mut table = zeroed(bits.size_bytes())?;
        self.txn.read(old, &mut table)?;
        let new = self.txn.allocate_table(1)?;
        self.txn.write(new, table)?;
        self.txn.set_refcount(new.get() >> bits.get(), references)?;
        self.txn.set_refcount(old >> bits.get(), 0)?;
        self.moved.insert(old, new.get());
        Ok(new.get())
    }

    fn move_snapshots(
        &mut self,
        mut entries: Vec<SnapshotEntry>,
        places: &[Option<HostOffset>],
    ) -> Result<(), TxnError> {
        let mut changed = self.is_in_tail(self.txn.header.snapshots_offset);
        for (entry, place) in entries.iter_mut().zip(places) {
            if let Some(place) = *place {
                self.move_l1(entry.l1_table_offset, entry.l1_size, place)?;
                entry.l1_table_offset = place;
                changed = true;
            }
        }
        if changed && !entries.is_empty() {
            self.txn.replace_snapshots(&entries)?;
        }
        Ok(())
    }

    /// Blocks in the tail are written again, which gives them a new place.
    fn move_refcount_blocks(&mut self) -> Result<(), TxnError> {
        let bits = self.txn.header.cluster_bits.get();
        let table = self.txn.header.refcount_table_offset;
        let homes: Vec<u64> = self.txn.refcounts.blocks().iter().map(|b| b.home).collect();
        for (home, index) in homes.iter().zip(0_u64..) {
            if home >> bits >= self.tail {
                self.txn.refcounts.touch(self.txn.storage, index)?;
                self.txn.make_room()?;
            }
        }
        let any = self.txn.refcounts.blocks().iter().any(|b| b.changed);
        if self.is_in_tail(table) && !any {
            // The table moves when a block does.
            self.txn.refcounts.touch(self.txn.storage, 0)?;
        }
        Ok(())
    }
}

impl<S: StorageMut> Transaction<'_, S> {
    /// How many clusters are in use, if there are free ones between them worth closing.
    fn used_of_holey(&mut self) -> Result<Option<u64>, TxnError> {
        let blocks = self.refcounts.blocks().len() as u64;
        let mut used = 0_u64;
        for index in 0..blocks {
            if self.refcounts.is_absent(index) {
                continue;
            }
            let width = self.refcounts.width;
            let block = self.refcounts.load(self.storage, index)?;
            width.for_each_nonzero(block, |_, _| used = used.saturating_add(1));
            self.make_room()?;
        }
        let end = self.used_end()? >> self.header.cluster_bits.get();
        let holey = end > used.saturating_add(used / SLACK);
        Ok(holey.then_some(used))
    }

    /// The first byte after the last cluster that is in use.
    fn used_end(&mut self) -> Result<u64, TxnError> {
        let per_block = self.refcounts.per_block();
        let blocks = self.refcounts.blocks().len() as u64;
        for index in (0..blocks).rev() {
            if self.refcounts.is_absent(index) {
                continue;
            }
            let bits = u64::from(self.refcounts.width.bits());
            let block = self.refcounts.load(self.storage, index)?;
            let used = nonzero_end(block) as u64;
            if used > 0 {
                let entries = self.last_used(index, used.saturating_mul(8).div_ceil(bits))?;
                let cluster = index.saturating_mul(per_block).saturating_add(entries);
                return Ok(cluster << self.header.cluster_bits.get());
            }
        }
        Ok(0)
    }

    /// One past the last refcount of a block before entry `end` that is not 0: several share a byte.
    fn last_used(&mut self, index: u64, end: u64) -> Result<u64, TxnError> {
        let width = self.refcounts.width;
        let block = self.refcounts.load(self.storage, index)?;
        let last = (0..end)
            .rev()
            .find(|at| width.get(block, *at).is_some_and(|n| n != 0));
        Ok(last.map_or(0, |at| at.saturating_add(1)))
    }
}
