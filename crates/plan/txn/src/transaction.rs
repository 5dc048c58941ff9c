//! The transaction: what planners build, and how it is committed.

use crate::header_write::{AreaOnDisk, Switch};
use crate::recent::{Recent, Writes};
use crate::refcounts::Refcounts;
use crate::snapshots::{self, SnapshotEntry};
use crate::space::Space;
use crate::tables::{first_word, flagged_cluster, read_l1, with_copied};
use crate::{Monitor, TxnError, without_zeros, zeroed};
use alloc::vec::Vec;
use instar_qcow2::entries::L1Entry;
use instar_qcow2::header::MAX_L1_BYTES;
use instar_qcow2::{Header, HostOffset};
use instar_storage::{Storage, StorageMut, Write};

/// Bytes of writes that are collected before they go out.
const BATCH_BYTES: usize = 2 << 20;
/// Bytes of the last batch that stay in memory for what follows the commit.
const RECENT_BYTES: usize = 512 << 10;
/// Refcount blocks that are filled before those in memory are looked at.
const BLOCKS_PER_PIECE: u64 = 16;
/// A file may stay longer than need be by this part of it.
pub(crate) const SLACK: u64 = 100;
/// Runs of freed clusters that are remembered for the host; more stay allocated there.
pub(crate) const MAX_DISCARDS: usize = 65_536;

/// How much a change writes, at most. It decides where copies go; too much does no harm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Clusters of L1 and L2 tables and of the snapshot table that are written anew.
    pub tables: u64,
    /// Clusters that are allocated where they stay.
    pub fixed: u64,
}

/// A change under way. Nothing of it shows before [`Transaction::commit`].
#[derive(Debug)]
pub struct Transaction<'s, S> {
    /// The header of the new state; the refcount table's fields are set by the commit.
    pub header: Header,
    pub(crate) old: Header,
    pub(crate) storage: &'s S,
    pub(crate) refcounts: Refcounts,
    pub(crate) space: Space,
    /// Writes that have not gone out.
    queue: Writes,
    queued: usize,
    /// Some have gone out.
    has_sent: bool,
    /// The last that have gone out, if they are few.
    sent: Writes,
    /// The header area, once it was read.
    area: Option<AreaOnDisk>,
    pub(crate) old_len: u64,
    /// Tables were allocated.
    pub(crate) has_tables: bool,
    /// Where the refcount table was before the last switch: first cluster and how many. The new state has
    /// refcount structures there if it can.
    pub(crate) table_before: Option<(u64, u64)>,
    /// The file is cut after its last cluster in use, even if it was longer before.
    pub cuts_tail: bool,
}

impl<'s, S: StorageMut> Transaction<'s, S> {
    /// A change of the image in `storage`, whose `header` was read from it.
    ///
    /// # Errors
    /// The store's; the refcount table cannot be used.
    pub fn begin(
        storage: &'s S,
        header: &Header,
        footprint: Footprint,
        monitor: &mut dyn Monitor,
    ) -> Result<Self, TxnError> {
        let refcounts = Refcounts::read(storage, header, monitor)?;
        let clusters = header.cluster_bits.clusters_for(storage.len_bytes());
        let blocks = refcounts.blocks().iter().filter(|b| b.home != 0).count() as u64;
        let copies = footprint
            .tables
            .saturating_add(blocks)
            .saturating_add(u64::from(header.refcount_table_clusters))
            .saturating_add(4);
        let gap = copies.saturating_add(footprint.fixed);
        let spread = storage.can_grow() && copies.saturating_mul(SLACK) > clusters;
        let tail = spread.then(|| clusters.saturating_add(gap));
        let space = Space::new(storage, header.cluster_bits, 0, tail);
        Ok(Self::new(storage, header, refcounts, space))
    }

    /// A change that puts everything into the lowest free clusters.
    pub(crate) fn begin_low(
        storage: &'s S,
        header: &Header,
        monitor: &mut dyn Monitor,
    ) -> Result<Self, TxnError> {
        let refcounts = Refcounts::read(storage, header, monitor)?;
        let space = Space::new(storage, header.cluster_bits, 0, None);
        Ok(Self::new(storage, header, refcounts, space))
    }

    fn new(storage: &'s S, header: &Header, refcounts: Refcounts, space: Space) -> Self {
        Self {
            header: header.clone(),
            old: header.clone(),
            storage,
            refcounts,
            space,
            queue: Vec::new(),
            queued: 0,
            has_sent: false,
            sent: Vec::new(),
            area: None,
            old_len: storage.len_bytes(),
            has_tables: false,
            table_before: None,
            cuts_tail: false,
        }
    }

    /// A change of the state that this one was switched to, as `header` says. It puts everything into the lowest
    /// free clusters; with `back`, refcount structures go where they were before this change.
    pub(crate) fn next(self, header: Header, back: bool) -> Self {
        let bits = header.cluster_bits;
        let table = bits.cluster_of(self.old.refcount_table_offset).get();
        let moved = header.refcount_table_offset != self.old.refcount_table_offset;
        let clusters = u64::from(self.old.refcount_table_clusters);
        let mut refcounts = self.refcounts;
        refcounts.switched();
        Self {
            table_before: (back && moved).then_some((table, clusters)),
            space: Space::new(self.storage, bits, 0, None),
            header: header.clone(),
            old: header,
            old_len: self.storage.len_bytes(),
            has_sent: false,
            has_tables: false,
            refcounts,
            ..self
        }
    }

    /// The header of the old state.
    #[must_use]
    pub const fn old_header(&self) -> &Header {
        &self.old
    }

    /// The store.
    #[must_use]
    pub const fn storage(&self) -> &'s S {
        self.storage
    }

    /// The refcount of a cluster in the new state.
    ///
    /// # Errors
    /// The store's.
    pub fn refcount(&mut self, cluster: u64) -> Result<u64, TxnError> {
        self.refcounts.get(self.storage, cluster)
    }

    /// One reference more to each of `count` clusters from `first` on.
    ///
    /// # Errors
    /// [`TxnError::RefcountOverflow`], or the store's.
    pub fn add_references(&mut self, first: u64, count: u64) -> Result<(), TxnError> {
        self.refcounts.change(self.storage, first, count, false)?;
        self.make_room()
    }

    /// One reference less to each of `count` clusters from `first` on. One that has none left is free after
    /// the commit, and given back to the host.
    ///
    /// # Errors
    /// [`TxnError::Corrupt`] if one has none now, or the store's.
    pub fn drop_references(&mut self, first: u64, count: u64) -> Result<(), TxnError> {
        self.refcounts.change(self.storage, first, count, true)?;
        self.make_room()
    }

    /// As [`Self::drop_references`], for the clusters of `bytes` bytes at `offset`.
    ///
    /// # Errors
    /// As [`Self::drop_references`].
    pub fn free(&mut self, offset: HostOffset, bytes: u64) -> Result<(), TxnError> {
        let count = self.header.cluster_bits.clusters_for(bytes);
        let first = self.header.cluster_bits.cluster_of(offset);
        self.drop_references(first.get(), count)
    }

    /// Gives a cluster a refcount.
    ///
    /// # Errors
    /// [`TxnError::RefcountOverflow`], or the store's.
    pub fn set_refcount(&mut self, cluster: u64, value: u64) -> Result<(), TxnError> {
        self.refcounts.set(self.storage, cluster, value)?;
        self.make_room()
    }

    /// Changes the width of refcounts to `1 << order` bits: before anything else that changes refcounts.
    ///
    /// # Errors
    /// [`TxnError::RefcountOverflow`] if a refcount does not fit, or the store's.
    pub fn change_refcount_width(
        &mut self,
        order: u32,
        monitor: &mut dyn Monitor,
    ) -> Result<(), TxnError> {
        self.header.refcount_order = order;
        // Each block is looked at once.
        self.refcounts.keep_one_block();
        let mut wide = Refcounts::empty(&self.header)?;
        let per_block = self.refcounts.per_block();
        let width = self.refcounts.width;
        let total = self.refcounts.blocks().len() as u64;
        let storage = self.storage;
        for index in 0..total {
            monitor.progress(index, total)?;
            if self.refcounts.is_absent(index) {
                continue;
            }
            let base = index.saturating_mul(per_block);
            let block = self.refcounts.load(storage, index)?;
            let mut result = Ok(());
            width.for_each_nonzero(block, |at, value| {
                if result.is_ok() {
                    result = wide.set(storage, base.saturating_add(at), value);
                }
            });
            result?;
            if wide.is_over_budget() {
                // Room for blocks that leave memory is taken past all clusters that any block speaks of.
                self.space.take_tables_from(total.saturating_mul(per_block));
                core::mem::swap(&mut self.refcounts, &mut wide);
                let made = self.make_room();
                core::mem::swap(&mut self.refcounts, &mut wide);
                made?;
            }
        }
        let old = core::mem::replace(&mut self.refcounts, wide);
        let bits = self.header.cluster_bits;
        for home in old.blocks().iter().map(|b| b.home).filter(|h| *h != 0) {
            self.drop_references(home >> bits.get(), 1)?;
        }
        Ok(())
    }

    /// `clusters` clusters in a row for a table: L1, L2 or snapshot table. Its refcounts are 1.
    ///
    /// # Errors
    /// [`TxnError::TooLarge`], or the store's.
    pub fn allocate_table(&mut self, clusters: u64) -> Result<HostOffset, TxnError> {
        let first = self
            .space
            .table(&mut self.refcounts, self.storage, clusters)?;
        self.has_tables = true;
        self.make_room()?;
        Ok(HostOffset(first << self.header.cluster_bits.get()))
    }

    /// `clusters` clusters in a row for what stays where it is: guest data, bitmaps. Their refcounts are 1.
    ///
    /// # Errors
    /// [`TxnError::TooLarge`], or the store's.
    pub fn allocate_fixed(&mut self, clusters: u64) -> Result<HostOffset, TxnError> {
        let first = self
            .space
            .reserve(&mut self.refcounts, self.storage, clusters)?;
        let piece = self.refcounts.per_block().saturating_mul(BLOCKS_PER_PIECE);
        let mut taken = 0;
        while taken < clusters {
            let count = piece.min(clusters.saturating_sub(taken));
            let at = first.saturating_add(taken);
            self.space
                .take(&mut self.refcounts, self.storage, at, count)?;
            self.make_room()?;
            taken = taken.saturating_add(count);
        }
        Ok(HostOffset(first << self.header.cluster_bits.get()))
    }

    /// Writes into clusters that this transaction has allocated. The bytes go out some time before the commit.
    ///
    /// # Errors
    /// The store's, of this or an earlier write.
    pub fn write(&mut self, offset: HostOffset, bytes: Vec<u8>) -> Result<(), TxnError> {
        self.queued = self.queued.saturating_add(bytes.len());
        self.queue.push((offset.get(), bytes));
        if self.queued >= BATCH_BYTES {
            self.send_queue()?;
        }
        Ok(())
    }

    /// Sends what was [written](Self::write) to the store.
    ///
    /// # Errors
    /// The store's, of this or an earlier write.
    pub fn send_queue(&mut self) -> Result<(), TxnError> {
        let writes: Vec<Write<'_>> = self
            .queue
            .iter()
            .map(|(offset, bytes)| Write {
                offset: *offset,
                buf: bytes,
            })
            .collect();
        self.storage.write_batch(&writes)?;
        self.has_sent |= !self.queue.is_empty();
        self.queue.clear();
        self.queued = 0;
        Ok(())
    }

    /// Writes all that is left: the queue, refcount blocks, `table` at its offset, and what comes before the
    /// `switch`. All of it is durable then.
    pub(crate) fn send_all(
        &mut self,
        table: Option<&(u64, Vec<u8>)>,
        switch: &Switch,
    ) -> Result<(), TxnError> {
        let zeros_from = self.old_len;
        // What was sent may be written over.
        let queue_from = if self.has_sent { u64::MAX } else { zeros_from };
        let queue = self.queue.iter().chain(table);
        let mut writes: Vec<Write<'_>> = queue
            .filter_map(|(offset, bytes)| without_zeros(*offset, bytes, queue_from))
            .collect();
        writes.extend(switch.early().map(|(offset, buf)| Write { offset, buf }));
        let end = self.space.top() << self.header.cluster_bits.get();
        self.refcounts
            .write_all(self.storage, &writes, (zeros_from, end))?;
        self.sent = core::mem::take(&mut self.queue);
        if self.queued > RECENT_BYTES {
            self.sent = Vec::new();
        }
        self.queued = 0;
        Ok(())
    }

    /// How the header becomes the new state's.
    pub(crate) fn plan_switch(&mut self) -> Result<Switch, TxnError> {
        let area = match &mut self.area {
            Some(area) => area,
            none => none.insert(AreaOnDisk::read(self.storage, &self.old)?),
        };
        area.plan(self.storage, &self.old, &self.header)
    }

    /// Makes the new state the image's.
    pub(crate) fn switch(&mut self, switch: Switch) -> Result<Header, TxnError> {
        let area = self.area.as_mut().ok_or(TxnError::Corrupt {
            what: "the switch was not planned",
        })?;
        area.switch(self.storage, switch)
    }

    /// The store as it is with all that was written.
    pub(crate) const fn recent(&self) -> Recent<'_, S> {
        Recent {
            storage: self.storage,
            writes: [&self.sent, &self.queue],
        }
    }

    /// Reads the image as the transaction has it: what was written in it is seen.
    ///
    /// # Errors
    /// The store's.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), TxnError> {
        Ok(self.recent().read_at(offset, buf)?)
    }

    /// Reads an L1 table, active or a snapshot's.
    ///
    /// # Errors
    /// As [`crate::read_l1`].
    pub fn read_l1(&self, offset: HostOffset, entries: u32) -> Result<Vec<u64>, TxnError> {
        read_l1(&self.recent(), &self.header, offset, entries)
    }

    /// Writes a new L1 table; where it is, 0 if it has no entry.
    ///
    /// # Errors
    /// [`TxnError::TooLarge`] past QEMU's limit, or the store's.
    pub fn write_l1(&mut self, entries: &[u64]) -> Result<HostOffset, TxnError> {
        let bytes = (entries.len() as u64).saturating_mul(8);
        if bytes > MAX_L1_BYTES {
            return Err(TxnError::TooLarge);
        }
        self.write_table(entries.iter().flat_map(|e| e.to_be_bytes()), bytes)
    }

    /// Writes an L1 table into clusters that are allocated.
    pub(crate) fn write_l1_at(
        &mut self,
        place: HostOffset,
        entries: &[u64],
    ) -> Result<(), TxnError> {
        let bytes = (entries.len() as u64).saturating_mul(8);
        self.write_padded(place, entries.iter().flat_map(|e| e.to_be_bytes()), bytes)
    }

    /// Allocates and writes a table.
    fn write_table(
        &mut self,
        bytes: impl Iterator<Item = u8>,
        len: u64,
    ) -> Result<HostOffset, TxnError> {
        if len == 0 {
            return Ok(HostOffset(0));
        }
        let offset = self.allocate_table(self.header.cluster_bits.clusters_for(len))?;
        self.write_padded(offset, bytes, len)?;
        Ok(offset)
    }

    /// Writes a table, padded with zeros to whole clusters.
    fn write_padded(
        &mut self,
        offset: HostOffset,
        bytes: impl Iterator<Item = u8>,
        len: u64,
    ) -> Result<(), TxnError> {
        let clusters = self.header.cluster_bits.clusters_for(len);
        let padded = clusters.saturating_mul(self.header.cluster_bits.size_bytes());
        let mut table = zeroed(padded)?;
        table
            .iter_mut()
            .zip(bytes)
            .for_each(|(to, from)| *to = from);
        self.write(offset, table)
    }

    /// Makes `entries` the new state's active L1 table, and frees the clusters of the one before.
    ///
    /// # Errors
    /// As [`Self::write_l1`].
    pub fn replace_active_l1(&mut self, entries: &[u64]) -> Result<(), TxnError> {
        let before = u64::from(self.header.l1_size).saturating_mul(8);
        self.free(self.header.l1_table_offset, before)?;
        self.header.l1_table_offset = self.write_l1(entries)?;
        self.header.l1_size = u32::try_from(entries.len()).map_err(|_| TxnError::TooLarge)?;
        Ok(())
    }

    /// The snapshot table.
    ///
    /// # Errors
    /// [`TxnError::Corrupt`], or the store's.
    pub fn read_snapshots(&self) -> Result<Vec<SnapshotEntry>, TxnError> {
        snapshots::read(&self.recent(), &self.header)
    }

    /// Makes `entries` the new state's snapshot table, and frees the clusters of the one before.
    ///
    /// # Errors
    /// [`TxnError::TooLarge`], or the store's.
    pub fn replace_snapshots(&mut self, entries: &[SnapshotEntry]) -> Result<(), TxnError> {
        let before = snapshots::table_bytes(&self.recent(), &self.header)?;
        self.free(self.header.snapshots_offset, before)?;
        let table = snapshots::encode(entries)?;
        let len = table.len() as u64;
        self.header.snapshots_offset = self.write_table(table.into_iter(), len)?;
        self.header.nb_snapshots = u32::try_from(entries.len()).map_err(|_| TxnError::TooLarge)?;
        Ok(())
    }

    /// Sets each COPIED bit of an L2 table by the refcounts of the new state; true if one changed.
    ///
    /// # Errors
    /// The store's.
    pub fn refresh_copied(&mut self, l2: &mut [u8]) -> Result<bool, TxnError> {
        if self.header.incompatible.external_data_file() {
            return Ok(false);
        }
        let stride = usize::try_from(self.header.l2_entry_bytes()).unwrap_or(8);
        let mut changed = false;
        let mut entries = l2.chunks_exact_mut(stride).peekable();
        while let Some(next) = entries.peek() {
            let Some(cluster) = flagged_cluster(&self.header, first_word(next)) else {
                entries.next();
                continue;
            };
            // All entries of one refcount block in one go.
            let (index, _) = self.refcounts.place(cluster);
            let (width, per_block) = (self.refcounts.width, self.refcounts.per_block());
            let absent = self.refcounts.is_absent(index);
            let block: &[u8] = if absent {
                &[]
            } else {
                self.refcounts.load(self.storage, index)?
            };
            let base = index.saturating_mul(per_block);
            while let Some(entry) = entries.next_if(|raw| {
                let cluster = flagged_cluster(&self.header, first_word(raw));
                cluster.is_none_or(|c| c.wrapping_sub(base) < per_block)
            }) {
                let word = first_word(entry);
                let Some(cluster) = flagged_cluster(&self.header, word) else {
                    continue;
                };
                let refcount = width.get(block, cluster.wrapping_sub(base));
                let new = with_copied(word, refcount == Some(1));
                if let (true, Some(to)) = (new != word, entry.first_chunk_mut::<8>()) {
                    *to = new.to_be_bytes();
                    changed = true;
                }
            }
        }
        Ok(changed)
    }

    /// `entry` of an L1 table with its COPIED bit as the refcount of its L2 table says.
    ///
    /// # Errors
    /// The store's.
    pub fn with_copied_by_refcount(&mut self, entry: u64) -> Result<u64, TxnError> {
        if L1Entry(entry).is_unallocated() {
            return Ok(entry);
        }
        let cluster = L1Entry(entry).l2_offset().get() >> self.header.cluster_bits.get();
        Ok(with_copied(entry, self.refcount(cluster)? == 1))
    }
}
