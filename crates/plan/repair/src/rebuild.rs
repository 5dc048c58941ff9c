//! Refcount blocks and refcount table written anew.
//!
//! All of it goes to clusters that nothing refers to and that no old refcount
//! structure is in; so does a new snapshot table. One write of the header's
//! first sector then switches from the old ones to the new ones.

use crate::job::{Job, failed};
use crate::patch::{References, left_low, recount};
use crate::snapshots::{self, NewTable};
use crate::space::{FreeRuns, avoid};
use crate::table::BlockTable;
use crate::{CheckError, Reporter};
use alloc::vec::Vec;
use instar_plan_check::parts::{Counter, PAGE_BITS, Run, Span, zeroed};
use instar_qcow2::HostOffset;
use instar_qcow2::header::{MAX_FILE_BYTES, MAX_REFCOUNT_TABLE_BYTES};
use instar_qcow2::refcount::RefcountWidth;
use instar_storage::StorageMut;

/// EFBIG.
const EFBIG: u32 = 27;
/// `refcount_table_offset` and `refcount_table_clusters` in the header.
const REFCOUNT_TABLE_AT: usize = 48;
/// `nb_snapshots` and `snapshots_offset` in the header.
const SNAPSHOTS_AT: usize = 60;

/// How much longer the file may get for nothing but references that point behind its end.
const MAX_GAP_BYTES: u64 = 64 << 20;

const TOO_LARGE: CheckError = CheckError::Failed { errno: EFBIG };

/// Where the new structures go: one run of clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    /// First cluster: of the blocks, which come first.
    start: u64,
    /// Clusters of blocks.
    blocks: u64,
    /// Clusters of the refcount table.
    table: u64,
    /// Clusters of the snapshot table.
    snapshots: u64,
}

impl Layout {
    const fn end(&self) -> u64 {
        self.start.saturating_add(self.len())
    }

    const fn len(&self) -> u64 {
        self.blocks
            .saturating_add(self.table)
            .saturating_add(self.snapshots)
    }
}

/// A rebuild under way.
pub(crate) struct Rebuild<'j, 'a, S> {
    job: &'j mut Job<'a, S>,
    table: &'j BlockTable,
    snapshots: Option<&'j NewTable>,
    width: RefcountWidth,
    /// Old structures: nothing is written there.
    old: Vec<Span>,
    /// Those of them that have to do with refcounts, which are free afterwards.
    structures: Vec<u64>,
    /// Indices of blocks that are needed, ascending.
    used: Vec<u64>,
    /// What is not counted keeps its refcount.
    keep: bool,
}

impl<'j, 'a, S: StorageMut> Rebuild<'j, 'a, S> {
    pub(crate) fn new(
        job: &'j mut Job<'a, S>,
        table: &'j BlockTable,
        snapshots: Option<&'j NewTable>,
    ) -> Result<Self, CheckError> {
        let width = RefcountWidth::from_order(job.header.refcount_order);
        let structures = table.clusters()?;
        let mut old: Vec<Span> = structures.iter().map(|n| (*n, *n)).collect();
        if let Some(new) = snapshots {
            old.push(new.old_span(&job.header));
            old.sort_unstable();
        }
        Ok(Self {
            job,
            table,
            snapshots,
            width: width.ok_or(CheckError::OutOfMemory)?,
            old,
            structures,
            used: Vec::new(),
            keep: false,
        })
    }

    /// Counts everything but the old structures, writes the new ones, switches.
    /// False if there is no place for the new ones.
    pub(crate) fn all<T: Counter, R: Reporter>(
        mut self,
        run: &mut Run<'_, S, T, R>,
    ) -> Result<bool, CheckError> {
        run.pages.be_silent();
        run.out.first_pass = false;
        run.count_refcounts = false;
        run.count_snapshot_table = self.snapshots.is_none();
        self.keep = run.out.found.uncounted;
        let (runs, one_window) = self.survey(run)?;
        let Some(layout) = self.place(run, &runs) else {
            return Ok(false);
        };
        self.job.mark(true)?;
        let len = self.job.storage.len_bytes();
        if let Err(e) = self.write(run, layout, one_window) {
            // Nothing names what was written; the file need not be longer for it.
            let _ = self.job.storage.set_len(len);
            return Err(e);
        }
        let bits = self.job.header.cluster_bits.get();
        let table_at = layout.start.saturating_add(layout.blocks);
        let snapshots_at = table_at.saturating_add(layout.table);
        self.switch(table_at << bits, layout.table, snapshots_at << bits)?;
        Ok(true)
    }

    /// Writes all of the new structures and makes them durable.
    fn write<T: Counter, R: Reporter>(
        &mut self,
        run: &mut Run<'_, S, T, R>,
        layout: Layout,
        one_window: bool,
    ) -> Result<(), CheckError> {
        let table = self.write_blocks(run, layout, one_window)?;
        let bits = self.job.header.cluster_bits.get();
        let table_at = layout.start.saturating_add(layout.blocks);
        let storage = self.job.storage;
        storage.write_at(table_at << bits, &table).map_err(failed)?;
        let snapshots_at = table_at.saturating_add(layout.table);
        if let Some(new) = self.snapshots {
            snapshots::write(storage, &self.job.header, new, snapshots_at << bits)?;
        }
        // The last cluster may be written in part.
        let end = layout.end() << bits;
        if storage.len_bytes() < end {
            storage.set_len(end).map_err(failed)?;
        }
        self.job.flush()
    }

    fn switch(&mut self, table: u64, clusters: u64, snapshots: u64) -> Result<(), CheckError> {
        let clusters = u32::try_from(clusters).map_err(|_| TOO_LARGE)?;
        let header = &mut self.job.header;
        header.refcount_table_offset = HostOffset(table);
        header.refcount_table_clusters = clusters;
        if let Some(new) = self.snapshots {
            header.nb_snapshots = new.count;
            header.snapshots_offset = HostOffset(if new.count == 0 { 0 } else { snapshots });
        }
        write_places(self.job)
    }

    /// Finds out which blocks are needed and where there is room. True if all
    /// of the counts are in memory.
    fn survey<T: Counter, R: Reporter>(
        &mut self,
        run: &mut Run<'_, S, T, R>,
    ) -> Result<(FreeRuns, bool), CheckError> {
        let (mut runs, mut first) = (FreeRuns::new(), 0);
        if self.keep {
            self.used
                .extend((0..self.table.len()).filter(|index| self.table.block(*index).is_some()));
        }
        let clusters = run.clusters.saturating_add(u64::from(run.grown));
        let mut old = self.old_within(clusters).into_iter().peekable();
        loop {
            recount(run, first, true)?;
            let end = run.pages.next_window().map_or(u64::MAX, |n| n << PAGE_BITS);
            for cluster in in_use(run) {
                if cluster >= end {
                    break;
                }
                while let Some((first, last)) = old.next_if(|span| span.0 <= cluster) {
                    runs.in_use(first);
                    runs.in_use_to(last);
                }
                runs.in_use(cluster);
                let index = cluster >> self.table.block_bits();
                if self.used.last() != Some(&index) {
                    self.used
                        .try_reserve(1)
                        .map_err(|_| CheckError::OutOfMemory)?;
                    self.used.push(index);
                }
            }
            match run.pages.next_window() {
                Some(next) => first = next,
                None => break,
            }
        }
        for (first, last) in old {
            runs.in_use(first);
            runs.in_use_to(last);
        }
        self.used.sort_unstable();
        self.used.dedup();
        Ok((runs, first == 0))
    }

    /// The old structures in the first `clusters` clusters: those of the file. What lies
    /// behind them is zeros.
    fn old_within(&self, clusters: u64) -> Vec<Span> {
        let last = clusters.saturating_sub(1);
        let within = self.old.iter().filter(|span| span.0 <= last);
        within.map(|span| (span.0, span.1.min(last))).collect()
    }

    /// Chooses where the new structures go, if there is a place.
    fn place<T: Counter, R: Reporter>(
        &mut self,
        run: &mut Run<'_, S, T, R>,
        runs: &FreeRuns,
    ) -> Option<Layout> {
        let len = |start| self.layout(start).len();
        let inside = runs.find(len).filter(|_| !self.keep);
        let clusters = run.clusters.saturating_add(u64::from(run.grown));
        let tail = if self.keep { clusters } else { runs.tail() };
        let start = match inside {
            Some(start) => start,
            None if run.out.found.outside_cut => return None,
            None => {
                let outside = &mut run.out.found.outside;
                let replaced = self.snapshots.and_then(|n| n.kept_span(&self.job.header));
                if let Some(at) = outside.iter().position(|span| Some(*span) == replaced) {
                    outside.swap_remove(at);
                }
                outside.sort_unstable();
                avoid(tail, outside, len)
            }
        };
        let layout = self.layout(start);
        let bytes = self.job.header.cluster_bits.size_bytes();
        let gap = layout.start.saturating_sub(tail).saturating_mul(bytes);
        let end = layout.end().checked_mul(bytes)?;
        let table = layout.table.saturating_mul(bytes);
        if end > MAX_FILE_BYTES || gap > MAX_GAP_BYTES || table > MAX_REFCOUNT_TABLE_BYTES {
            return None;
        }
        // Places that were outside the file are clusters of zeros with references now.
        let grown_over = inside.is_none() && start > tail;
        self.job.grown_over |= grown_over;
        self.job.again |= grown_over;
        Some(layout)
    }

    /// The layout from cluster `start` on: the new structures need refcounts
    /// themselves, perhaps in further blocks.
    fn layout(&self, start: u64) -> Layout {
        let bits = self.table.block_bits();
        let cluster = self.job.header.cluster_bits;
        let snapshots = self.snapshots.map_or(0, |new| new.bytes);
        let mut layout = Layout {
            start,
            blocks: self.used.len() as u64,
            table: 1,
            snapshots: cluster.clusters_for(snapshots),
        };
        loop {
            let last = layout.end().saturating_sub(1) >> bits;
            let first = start >> bits;
            let known = self.used_between(first, last);
            let all = last.saturating_sub(first).saturating_add(1);
            let blocks = (self.used.len() as u64).saturating_add(all.saturating_sub(known));
            let highest = self.used.last().copied().unwrap_or(0).max(last);
            let entries = highest.saturating_add(1).saturating_mul(8);
            let next = Layout {
                blocks,
                table: cluster.clusters_for(entries),
                ..layout
            };
            if next == layout {
                return layout;
            }
            layout = next;
        }
    }

    fn used_between(&self, first: u64, last: u64) -> u64 {
        let from = self.used.partition_point(|index| *index < first);
        let to = self.used.partition_point(|index| *index <= last);
        to.saturating_sub(from) as u64
    }

    /// Writes the blocks; gives the refcount table.
    fn write_blocks<T: Counter, R: Reporter>(
        &mut self,
        run: &mut Run<'_, S, T, R>,
        layout: Layout,
        one_window: bool,
    ) -> Result<Vec<u8>, CheckError> {
        let bytes = self.job.header.cluster_bits.size_bytes();
        let mut writer = Writer {
            layout,
            written: 0,
            block: zeroed(bytes)?,
            index: None,
            table: zeroed(layout.table.saturating_mul(bytes))?,
        };
        let mut first = 0;
        loop {
            if !one_window {
                recount(run, first, true)?;
            }
            self.write_window(run, &mut writer)?;
            match run.pages.next_window() {
                Some(next) => first = next,
                None => break,
            }
        }
        writer.finish(self)?;
        let bits = self.table.block_bits();
        let own = (layout.start >> bits)..=(layout.end().saturating_sub(1) >> bits);
        let used = core::mem::take(&mut self.used);
        for index in used.into_iter().chain(own) {
            if !writer.has(index) {
                writer.enter(self, index)?;
                writer.finish(self)?;
            }
        }
        Ok(writer.table)
    }

    fn write_window<T: Counter, R: Reporter>(
        &mut self,
        run: &mut Run<'_, S, T, R>,
        writer: &mut Writer,
    ) -> Result<(), CheckError> {
        let clusters = run.clusters.saturating_add(u64::from(run.grown));
        let end = run
            .pages
            .next_window()
            .map_or(clusters, |n| clusters.min(n << PAGE_BITS));
        let max: u64 = run.max_refcount();
        for number in run.pages.numbers() {
            let first = number << PAGE_BITS;
            for (place, cluster) in (0..instar_plan_check::parts::PAGE_CLUSTERS).zip(first..end) {
                let Some(references) = references(run, number, place) else {
                    continue;
                };
                let mut value = references.count(max);
                if references.overlap(&run.out.found.tables, cluster) {
                    value = left_low(value);
                    self.job.refuse(run, cluster);
                }
                writer.enter(self, cluster >> self.table.block_bits())?;
                writer.set(self, cluster, value);
            }
            run.out.progress(0)?;
        }
        Ok(())
    }
}

/// Writes to the header where refcount table and snapshot table are.
pub(crate) fn write_places<S: StorageMut>(job: &Job<'_, S>) -> Result<(), CheckError> {
    let header = &job.header;
    let mut refcounts = [0; 12];
    let (at, count) = refcounts.split_at_mut(8);
    at.copy_from_slice(&header.refcount_table_offset.get().to_be_bytes());
    count.copy_from_slice(&header.refcount_table_clusters.to_be_bytes());
    let mut table = [0; 12];
    let (count, at) = table.split_at_mut(4);
    count.copy_from_slice(&header.nb_snapshots.to_be_bytes());
    at.copy_from_slice(&header.snapshots_offset.get().to_be_bytes());
    job.write_header(&[(REFCOUNT_TABLE_AT, &refcounts), (SNAPSHOTS_AT, &table)])
}

/// The references of a cluster of a page that is split; `None` if there are none.
fn references<S: StorageMut, T: Counter, R: Reporter>(
    run: &Run<'_, S, T, R>,
    number: u64,
    place: usize,
) -> Option<References> {
    let page = run.pages.get(number)?;
    let references = References {
        tables: (*page.stored.get(place)?).into(),
        data: (*page.counted.get(place)?).into(),
    };
    (references.count(u64::MAX) > 0).then_some(references)
}

/// Clusters of the window with references, ascending.
fn in_use<'r, S: StorageMut, T: Counter, R: Reporter>(
    run: &'r Run<'_, S, T, R>,
) -> impl Iterator<Item = u64> + 'r {
    let zero = T::default();
    run.pages.numbers().into_iter().flat_map(move |number| {
        let page = run.pages.get(number);
        let pairs = page
            .into_iter()
            .flat_map(|page| page.counted.iter().zip(page.stored.iter()));
        let first = number << PAGE_BITS;
        pairs
            .zip(first..)
            .filter(move |((data, tables), _)| **data != zero || **tables != zero)
            .map(|(_, cluster)| cluster)
    })
}

/// Writes blocks one after the other.
struct Writer {
    layout: Layout,
    /// Blocks written.
    written: u64,
    block: Vec<u8>,
    /// The block that is being filled.
    index: Option<u64>,
    /// The refcount table.
    table: Vec<u8>,
}

impl Writer {
    /// Goes on to a block.
    fn enter<S: StorageMut>(
        &mut self,
        rebuild: &Rebuild<'_, '_, S>,
        index: u64,
    ) -> Result<(), CheckError> {
        if self.index == Some(index) {
            return Ok(());
        }
        self.finish(rebuild)?;
        self.index = Some(index);
        self.block.fill(0);
        if rebuild.keep {
            self.load_old(rebuild, index)?;
        }
        let bits = rebuild.table.block_bits();
        let start = self.layout.start.max(index << bits);
        let end = self.layout.end().min(index.saturating_add(1) << bits);
        for cluster in start..end {
            self.set(rebuild, cluster, 1);
        }
        Ok(())
    }

    /// Starts with the refcounts that the image has.
    fn load_old<S: StorageMut>(
        &mut self,
        rebuild: &Rebuild<'_, '_, S>,
        index: u64,
    ) -> Result<(), CheckError> {
        let Some(offset) = rebuild.table.block(index) else {
            return Ok(());
        };
        let storage = rebuild.job.storage;
        storage.read_at(offset, &mut self.block).map_err(failed)?;
        let bits = rebuild.table.block_bits();
        let first = index << bits;
        for cluster in first..first.saturating_add(1 << bits) {
            if rebuild.structures.binary_search(&cluster).is_ok() {
                let place = cluster.saturating_sub(first);
                rebuild.width.set(&mut self.block, place, 0);
            }
        }
        Ok(())
    }

    /// Sets a refcount in the block; where refcounts are kept, none gets lower.
    fn set<S: StorageMut>(&mut self, rebuild: &Rebuild<'_, '_, S>, cluster: u64, value: u64) {
        let mask = (1_u64 << rebuild.table.block_bits()).saturating_sub(1);
        let old = rebuild.width.get(&self.block, cluster & mask).unwrap_or(0);
        rebuild
            .width
            .set(&mut self.block, cluster & mask, value.max(old));
    }

    /// Writes the block that is being filled.
    fn finish<S: StorageMut>(&mut self, rebuild: &Rebuild<'_, '_, S>) -> Result<(), CheckError> {
        let Some(index) = self.index.take() else {
            return Ok(());
        };
        if self.written >= self.layout.blocks {
            return Err(TOO_LARGE);
        }
        let cluster = self.layout.start.saturating_add(self.written);
        let offset = cluster << rebuild.job.header.cluster_bits.get();
        self.written = self.written.saturating_add(1);
        let entry = usize::try_from(index).unwrap_or(usize::MAX);
        if let Some(place) = self.table.as_chunks_mut::<8>().0.get_mut(entry) {
            *place = offset.to_be_bytes();
        }
        rebuild
            .job
            .storage
            .write_at(offset, &self.block)
            .map_err(failed)
    }

    /// True if the table names the block.
    fn has(&self, index: u64) -> bool {
        let entry = usize::try_from(index).unwrap_or(usize::MAX);
        let place = self.table.as_chunks::<8>().0.get(entry);
        place.is_some_and(|place| *place != [0; 8])
    }
}
