//! Clusters that neither the old state nor the new one uses.

use crate::TxnError;
use crate::refcounts::Refcounts;
use alloc::collections::BTreeMap;
use instar_qcow2::ClusterBits;
use instar_qcow2::header::MAX_FILE_BYTES;
use instar_storage::{StorageError, StorageMut};

/// The first byte that no entry's offset field can name: bits 9-55.
const OFFSET_LIMIT: u64 = 1 << 56;

/// The errno of a device without room.
const ENOSPC: u32 = 28;

/// Numbers of clusters for which is known where the search for so many begins.
const MAX_LENGTHS: usize = 64;

/// Where to look for space.
#[derive(Debug)]
pub struct Space {
    /// For a number of clusters: below this one there are not so many free ones in a row. What is freed stays
    /// pinned, so that holds for good.
    low: BTreeMap<u64, u64>,
    /// Where tables go; `None`: where everything goes.
    tail: Option<u64>,
    /// Where the tail began.
    tail_start: u64,
    /// First cluster that can have no data.
    limit: u64,
    /// What it means that there is no room below.
    full: TxnError,
    /// One past the highest cluster that was given.
    top: u64,
    /// Clusters that are being given: first and one past the last.
    reserved: (u64, u64),
}

impl Space {
    /// Everything goes into the lowest free clusters from `low` on; tables from `tail` on if it is given.
    pub fn new<S: StorageMut>(storage: &S, bits: ClusterBits, low: u64, tail: Option<u64>) -> Self {
        let format = MAX_FILE_BYTES.min(OFFSET_LIMIT) >> bits.get();
        let (limit, full) = if storage.can_grow() {
            (format, TxnError::TooLarge)
        } else {
            let end = storage.len_bytes();
            let no_space = StorageError {
                errno: ENOSPC,
                offset: end,
            };
            (format.min(end >> bits.get()), no_space.into())
        };
        Self {
            // The header's cluster is in use whatever its refcount says.
            low: BTreeMap::from([(1, low.max(1))]),
            tail,
            tail_start: tail.unwrap_or(u64::MAX),
            limit,
            full,
            top: 0,
            reserved: (0, 0),
        }
    }

    /// One past the highest cluster that was given; 0 if none was.
    pub const fn top(&self) -> u64 {
        self.top
    }

    /// The first cluster of the tail, if tables go there.
    pub fn tail_start(&self) -> Option<u64> {
        self.tail.map(|_| self.tail_start)
    }

    /// Puts tables at `cluster` or after it from now on.
    pub fn take_tables_from(&mut self, cluster: u64) {
        let tail = self.tail.get_or_insert(cluster);
        *tail = cluster.max(*tail);
        self.tail_start = self.tail_start.min(*tail);
    }

    /// `count` clusters in a row, for a table that may be moved later.
    pub fn table<S: StorageMut>(
        &mut self,
        refcounts: &mut Refcounts,
        storage: &S,
        count: u64,
    ) -> Result<u64, TxnError> {
        let Some(tail) = self.tail else {
            return self.fixed(refcounts, storage, count);
        };
        let first = self.find(refcounts, storage, tail, count)?;
        self.tail = Some(first.saturating_add(count));
        self.take(refcounts, storage, first, count)
    }

    /// `count` clusters in a row, as low as possible.
    pub fn fixed<S: StorageMut>(
        &mut self,
        refcounts: &mut Refcounts,
        storage: &S,
        count: u64,
    ) -> Result<u64, TxnError> {
        let first = self.find_low(refcounts, storage, count)?;
        self.take(refcounts, storage, first, count)
    }

    fn find_low<S: StorageMut>(
        &mut self,
        refcounts: &mut Refcounts,
        storage: &S,
        count: u64,
    ) -> Result<u64, TxnError> {
        let known = self.low.range(..=count).map(|(_, start)| *start).max();
        let first = self.find(refcounts, storage, known.unwrap_or(1), count)?;
        if self.low.len() >= MAX_LENGTHS {
            self.low.retain(|length, _| *length == 1);
        }
        self.low.insert(count, first);
        Ok(first)
    }

    /// Finds `count` clusters in a row, as low as possible, that nobody else is given until they are taken.
    pub fn reserve<S: StorageMut>(
        &mut self,
        refcounts: &mut Refcounts,
        storage: &S,
        count: u64,
    ) -> Result<u64, TxnError> {
        let first = self.find_low(refcounts, storage, count)?;
        self.reserved = (first, first.saturating_add(count));
        Ok(first)
    }

    /// Gives clusters that were found.
    pub fn take<S: StorageMut>(
        &mut self,
        refcounts: &mut Refcounts,
        storage: &S,
        first: u64,
        count: u64,
    ) -> Result<u64, TxnError> {
        refcounts.change(storage, first, count, false)?;
        let end = first.saturating_add(count);
        self.top = self.top.max(end);
        if self.reserved.1 == end {
            self.reserved = (0, 0);
        }
        Ok(first)
    }

    /// The first of `count` free clusters in a row, not below `start`.
    fn find<S: StorageMut>(
        &self,
        refcounts: &mut Refcounts,
        storage: &S,
        start: u64,
        count: u64,
    ) -> Result<u64, TxnError> {
        let (mut first, mut cluster) = (start, start);
        loop {
            if cluster.saturating_sub(first) >= count {
                return Ok(first);
            }
            if cluster >= self.limit || first.saturating_add(count) > self.limit {
                return Err(self.full);
            }
            if (self.reserved.0..self.reserved.1).contains(&cluster) {
                (first, cluster) = (self.reserved.1, self.reserved.1);
                continue;
            }
            let (index, at) = refcounts.place(cluster);
            let per_block = refcounts.per_block();
            if refcounts.is_absent(index) {
                let end = cluster.saturating_add(per_block.saturating_sub(at));
                let reserved = Some(self.reserved.0).filter(|start| *start > cluster);
                cluster = reserved.map_or(end, |start| end.min(start));
                continue;
            }
            let width = refcounts.width;
            let block = refcounts.load(storage, index)?;
            let used = run_of_used(width, block, at);
            if used > 0 {
                cluster = cluster.saturating_add(used);
                first = cluster;
                continue;
            }
            if refcounts.is_pinned(cluster) {
                first = cluster.saturating_add(1);
            }
            cluster = cluster.saturating_add(1);
        }
    }
}

/// How many refcounts from `at` on are not 0.
fn run_of_used(width: instar_qcow2::refcount::RefcountWidth, block: &[u8], at: u64) -> u64 {
    if width.bits() == 16 {
        let from = usize::try_from(at).unwrap_or(usize::MAX);
        let entries = block.as_chunks::<2>().0.get(from..).unwrap_or_default();
        let free = entries.iter().position(|entry| *entry == [0; 2]);
        return free.unwrap_or(entries.len()) as u64;
    }
    let mut used = 0_u64;
    while width
        .get(block, at.saturating_add(used))
        .is_some_and(|refcount| refcount != 0)
    {
        used = used.saturating_add(1);
    }
    used
}
