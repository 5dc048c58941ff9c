//! Refcounts put right in the blocks where they are.
//!
//! Each refcount is the old one or the right one at any moment, whatever the
//! order in which sectors reach the disk. A block that is patched has been seen
//! to be in a cluster that nothing else uses.

use crate::job::{Job, failed};
use crate::table::BlockTable;
use crate::{CheckError, Mode, Reporter};
use alloc::vec::Vec;
use instar_plan_check::MessageKind;
use instar_plan_check::parts::{Counter, PAGE_BITS, PAGE_CLUSTERS, Run, Span, What, zeroed};
use instar_qcow2::refcount::RefcountWidth;
use instar_storage::StorageMut;

/// What never tears.
const SECTOR: usize = 512;

/// The references of one cluster.
#[derive(Clone, Copy)]
pub(crate) struct References {
    /// By tables; 0 where that is not known apart.
    pub(crate) tables: u64,
    /// By everything else.
    pub(crate) data: u64,
}

/// True if a cluster lies in a table of the sorted list.
pub(crate) fn in_table(tables: &[Span], cluster: u64) -> bool {
    let after = tables.partition_point(|(first, _)| *first <= cluster);
    after
        .checked_sub(1)
        .and_then(|at| tables.get(at))
        .is_some_and(|(_, last)| *last >= cluster)
}

impl References {
    /// True if a table's cluster has another use: which of the two is right the
    /// metadata does not say. Tables of the list have one user; an L2 table may
    /// have several, all of them L1 entries.
    pub(crate) fn overlap(self, tables: &[Span], cluster: u64) -> bool {
        let with_data = self.tables > 0 && self.data > 0;
        with_data || (self.tables > 1 && in_table(tables, cluster))
    }

    /// How many, at most `max`.
    pub(crate) fn count(self, max: u64) -> u64 {
        self.tables.saturating_add(self.data).min(max)
    }
}

/// The refcount of a cluster in which a table overlaps with something else: too
/// low, so that the check goes on to tell it, and above 1 if data in it is shared.
pub(crate) fn left_low(count: u64) -> u64 {
    count.saturating_sub(1).max(1)
}

/// Counts a window again without a word; `split` tells references by tables
/// (then in `stored`) from those by data.
pub(crate) fn recount<S: StorageMut, T: Counter, R: Reporter>(
    run: &mut Run<'_, S, T, R>,
    first: u64,
    split: bool,
) -> Result<(), CheckError> {
    run.pages.begin(first);
    if !split {
        return run.count_all();
    }
    run.what = What::Tables;
    run.count_all()?;
    run.pages.put_counted_aside();
    run.what = What::Data;
    run.count_all()?;
    run.what = What::All;
    Ok(())
}

/// The patching of all blocks.
pub(crate) struct Patch<'j, 'a, S, T> {
    job: &'j mut Job<'a, S>,
    table: &'j BlockTable,
    width: RefcountWidth,
    /// References by tables are in `stored` of the pages.
    split: bool,
    block: Vec<u8>,
    decoded: Vec<T>,
    /// Bytes of the block that were changed.
    dirty: Option<(usize, usize)>,
    /// Clusters that are free now.
    freed: Vec<Span>,
}

/// Entries of [`Patch::freed`], at most; further clusters keep their blocks on the host.
const MAX_FREED: usize = 1 << 16;

/// Some refcounts of a block that lie in one page.
struct Piece {
    /// First cluster.
    first: u64,
    /// Its place in the block.
    index: u64,
    /// How many.
    len: usize,
}

impl<'j, 'a, S: StorageMut, T: Counter> Patch<'j, 'a, S, T> {
    pub(crate) fn new(job: &'j mut Job<'a, S>, table: &'j BlockTable) -> Result<Self, CheckError> {
        let block = zeroed(job.header.cluster_bits.size_bytes())?;
        let width = RefcountWidth::from_order(job.header.refcount_order);
        let mut decoded = Vec::new();
        decoded
            .try_reserve_exact(PAGE_CLUSTERS)
            .map_err(|_| CheckError::OutOfMemory)?;
        decoded.resize(PAGE_CLUSTERS, T::default());
        Ok(Self {
            job,
            table,
            width: width.ok_or(CheckError::OutOfMemory)?,
            split: false,
            block,
            decoded,
            dirty: None,
            freed: Vec::new(),
        })
    }

    /// Goes over all windows.
    pub(crate) fn all<R: Reporter>(mut self, run: &mut Run<'_, S, T, R>) -> Result<(), CheckError> {
        self.split = self.job.mode == Mode::All && run.out.found.low > 0;
        let again = self.split || run.out.sum.passes != 1;
        run.pages.be_silent();
        run.out.first_pass = false;
        let mut first = 0;
        loop {
            if again {
                recount(run, first, self.split)?;
            }
            self.window(run)?;
            match run.pages.next_window() {
                Some(next) => first = next,
                None => break,
            }
        }
        self.job.flush()?;
        // Where something is damaged, a cluster without references may be what was lost.
        if run.out.sum.corruptions == 0 {
            self.discard();
        }
        Ok(())
    }

    /// Gives what is free now back to the host: a hint, so errors do not matter.
    fn discard(&self) {
        let bits = self.job.header.cluster_bits.get();
        for (first, last) in &self.freed {
            let len = last.saturating_sub(*first).saturating_add(1) << bits;
            let _ = self.job.storage.discard(first << bits, len);
        }
    }

    fn note_free(&mut self, cluster: u64) {
        if let Some((_, last)) = self.freed.last_mut()
            && last.saturating_add(1) == cluster
        {
            *last = cluster;
        } else if self.freed.len() < MAX_FREED && self.freed.try_reserve(1).is_ok() {
            self.freed.push((cluster, cluster));
        }
    }

    fn window<R: Reporter>(&mut self, run: &mut Run<'_, S, T, R>) -> Result<(), CheckError> {
        let clusters = run.clusters.saturating_add(u64::from(run.grown));
        let start = run.pages.first() << PAGE_BITS;
        let end = run
            .pages
            .next_window()
            .map_or(clusters, |page| clusters.min(page << PAGE_BITS));
        let bits = self.table.block_bits();
        let mut index = start >> bits;
        while index < self.table.len() && index << bits < end {
            if let Some(offset) = self.table.block(index) {
                self.block(run, index, offset, (start, end))?;
            }
            index = index.saturating_add(1);
        }
        Ok(())
    }

    /// Patches what of a block lies in the window.
    fn block<R: Reporter>(
        &mut self,
        run: &mut Run<'_, S, T, R>,
        index: u64,
        offset: u64,
        (start, end): (u64, u64),
    ) -> Result<(), CheckError> {
        self.job
            .storage
            .read_at(offset, &mut self.block)
            .map_err(failed)?;
        let bits = self.table.block_bits();
        let base = index << bits;
        let last = end.min(base.saturating_add(1 << bits));
        let mut first = start.max(base);
        while first < last {
            let page_end = (first | (PAGE_CLUSTERS as u64).saturating_sub(1)).saturating_add(1);
            let len = last.min(page_end).saturating_sub(first);
            let piece = Piece {
                first,
                index: first.saturating_sub(base),
                len: usize::try_from(len).unwrap_or(0),
            };
            self.piece(run, &piece)?;
            first = first.saturating_add(len);
        }
        run.out.progress(0)?;
        self.write(offset)
    }

    fn piece<R: Reporter>(
        &mut self,
        run: &mut Run<'_, S, T, R>,
        piece: &Piece,
    ) -> Result<(), CheckError> {
        let order = self.job.header.refcount_order;
        let from = usize::try_from((piece.index << order) / 8).unwrap_or(usize::MAX);
        let bytes = self.block.get(from..).unwrap_or_default();
        let out = self.decoded.get_mut(..piece.len).unwrap_or_default();
        T::decode(order, bytes, out);
        let at = usize::try_from(piece.first).unwrap_or(0) % PAGE_CLUSTERS;
        let page = run.pages.get(piece.first >> PAGE_BITS);
        let counted = page.and_then(|page| page.counted.get(at..)?.get(..piece.len));
        if !self.split && counted.is_some_and(|counted| *counted == *out) {
            return Ok(());
        }
        for place in 0..piece.len {
            let stored: u64 = self.decoded.get(place).map_or(0, |n| (*n).into());
            let at = at.saturating_add(place);
            let page = run.pages.get(piece.first >> PAGE_BITS);
            let data = page.and_then(|page| page.counted.get(at));
            let tables = page.and_then(|page| page.stored.get(at));
            let references = References {
                data: data.map_or(0, |n| (*n).into()),
                tables: tables.filter(|_| self.split).map_or(0, |n| (*n).into()),
            };
            let max: u64 = run.max_refcount();
            if references.count(max) != stored {
                let cluster = piece.first.saturating_add(place as u64);
                let index = piece.index.saturating_add(place as u64);
                self.cluster(run, (cluster, index), stored, references)?;
            }
        }
        Ok(())
    }

    /// Judges a cluster whose refcount is wrong.
    fn cluster<R: Reporter>(
        &mut self,
        run: &mut Run<'_, S, T, R>,
        (cluster, index): (u64, u64),
        stored: u64,
        references: References,
    ) -> Result<(), CheckError> {
        let count = references.count(run.max_refcount());
        let high = stored > count;
        let overlap = !high && self.split && references.overlap(&run.out.found.tables, cluster);
        let lower = high && !run.out.found.uncounted;
        let repair = lower || (!high && self.job.mode == Mode::All && !overlap);
        let kind = match (repair, high) {
            (true, _) => "Repairing",
            (false, true) => "Leaked",
            (false, false) => "ERROR",
        };
        run.out.print(
            MessageKind::Plain,
            format_args!("{kind} cluster {cluster} refcount={stored} reference={count}"),
        );
        if overlap {
            self.job.refuse(run, cluster);
        }
        let value = if overlap {
            stored.max(left_low(count))
        } else {
            count
        };
        if (repair || overlap) && value != stored {
            self.job.mark(!high)?;
            self.set(index, value);
            if value == 0 {
                self.note_free(cluster);
            }
        }
        Ok(())
    }

    fn set(&mut self, index: u64, value: u64) {
        self.width.set(&mut self.block, index, value);
        let bits = self.job.header.refcount_order;
        let from = usize::try_from((index << bits) / 8).unwrap_or(0) & !SECTOR.saturating_sub(1);
        let to = from.saturating_add(SECTOR);
        self.dirty = Some(match self.dirty {
            Some((low, high)) => (low.min(from), high.max(to)),
            None => (from, to),
        });
    }

    fn write(&mut self, offset: u64) -> Result<(), CheckError> {
        let Some((from, to)) = self.dirty.take() else {
            return Ok(());
        };
        let to = to.min(self.block.len());
        let bytes = self.block.get(from..to).unwrap_or_default();
        self.job
            .storage
            .write_at(offset.saturating_add(from as u64), bytes)
            .map_err(failed)
    }
}
