//! COPIED flags, and other flags of L1 and L2 entries that the metadata determines.
//!
//! Flags are changed where they are: eight bytes of one sector, so each entry is
//! the old or the new one at any moment. A table that shares its cluster with
//! something else is left alone.

use crate::job::{Job, Looked, failed};
use crate::patch::in_table;
use crate::{CheckError, Mode, Reporter};
use alloc::vec::Vec;
use instar_plan_check::MessageKind;
use instar_plan_check::parts::{Counter, Kind, Run, Span, zeroed};
use instar_qcow2::entries::{ALL_ZEROS, COPIED, L1Entry, L2Entry, SubclusterBitmap};
use instar_qcow2::header::{MAX_FILE_BYTES, MAX_L1_BYTES};
use instar_qcow2::snapshot::SnapshotTable;
use instar_storage::{Read, StorageMut};

/// Bytes of an L1 table read at once.
const PIECE_BYTES: u32 = 256 << 10;
/// Bytes of L2 tables read at once.
const BATCH_BYTES: usize = 2 << 20;
/// L2 tables with more than one user that need a change, at most; the rest is left alone.
const MAX_SHARED: usize = 1 << 18;
/// What never tears.
const SECTOR: usize = 512;

/// What a walk over the tables does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Notes tables with more than one user that need a change.
    Collect,
    /// Counts the L1 entries that name them.
    Count,
    /// Tells and repairs.
    Repair,
}

/// An L1 table.
#[derive(Clone, Copy)]
struct Level1 {
    offset: u64,
    entries: u32,
    active: bool,
}

/// The work on the flags.
pub(crate) struct Flags<'j, 'a, S> {
    job: &'j mut Job<'a, S>,
    looked: &'j Looked,
    step: Step,
    /// Flags may be changed, not only told.
    fix: bool,
    /// All stored refcounts are in memory.
    in_memory: bool,
    /// Clusters of L2 tables with more than one user, and how many L1 entries name them.
    shared: Vec<(u64, u64)>,
    /// The active L1 table may be written.
    l1_safe: bool,
    told: u64,
    /// Something wrong stays, since its table is not safe.
    left: bool,
}

/// A piece of a buffer to be written back.
#[derive(Default)]
struct Dirty(Option<(usize, usize)>);

impl Dirty {
    fn add(&mut self, at: usize) {
        let from = at & !SECTOR.saturating_sub(1);
        let to = from.saturating_add(SECTOR);
        self.0 = Some(match self.0 {
            Some((low, high)) => (low.min(from), high.max(to)),
            None => (from, to),
        });
    }

    fn write<S: StorageMut>(&self, storage: &S, offset: u64, buf: &[u8]) -> Result<(), CheckError> {
        let Some((from, to)) = self.0 else {
            return Ok(());
        };
        let bytes = buf.get(from..to.min(buf.len())).unwrap_or_default();
        storage
            .write_at(offset.saturating_add(from as u64), bytes)
            .map_err(failed)
    }
}

impl<'j, 'a, S: StorageMut> Flags<'j, 'a, S> {
    /// Tells the wrong flags and repairs those it may; gives how many were told.
    pub(crate) fn repair<T: Counter, R: Reporter>(
        job: &'j mut Job<'a, S>,
        reporter: &mut R,
        looked: &'j Looked,
    ) -> Result<u64, CheckError> {
        let header = job.header.clone();
        let mut run = Run::<S, T, R>::new(job.storage, &header, reporter)?;
        run.pages.begin(0);
        run.load_stored()?;
        let sound = looked.sum.corruptions == 0 && looked.sum.check_errors == 0;
        let mut flags = Self {
            fix: job.mode == Mode::All || sound,
            in_memory: run.pages.next_window().is_none() && run.bad.is_empty(),
            job,
            looked,
            step: Step::Collect,
            shared: Vec::new(),
            l1_safe: false,
            told: 0,
            left: false,
        };
        flags.l1_safe = flags.l1_is_safe(&mut run);
        if flags.fix {
            flags.all(&mut run)?;
            flags.count_shared(&mut run)?;
        }
        flags.step = Step::Repair;
        flags.all(&mut run)?;
        let told = flags.told.saturating_add(run.out.sum.corruptions);
        // The old structures may have been what was in the way.
        let moved = looked.rebuilt || looked.new_snapshots;
        flags.job.again |= flags.fix && flags.left && moved;
        flags.job.flush()?;
        Ok(told)
    }

    /// The active tables, and those of snapshots if an entry of theirs may need mending.
    fn all<T: Counter, R: Reporter>(
        &mut self,
        run: &mut Run<'_, S, T, R>,
    ) -> Result<(), CheckError> {
        let header = run.header_of();
        let active = Level1 {
            offset: header.l1_table_offset.get(),
            entries: header.l1_size,
            active: true,
        };
        self.walk(run, active)?;
        if self.step == Step::Count || self.looked.found.mendable > 0 {
            for snapshot in SnapshotTable::new(self.job.storage, header) {
                let Ok(snapshot) = snapshot else { break };
                let level1 = Level1 {
                    offset: snapshot.l1_table_offset.get(),
                    entries: snapshot.l1_size,
                    active: false,
                };
                let sound = header.cluster_bits.is_aligned(level1.offset)
                    && u64::from(level1.entries) <= MAX_L1_BYTES / 8;
                if sound {
                    self.walk(run, level1)?;
                }
            }
        }
        Ok(())
    }

    fn count_shared<T: Counter, R: Reporter>(
        &mut self,
        run: &mut Run<'_, S, T, R>,
    ) -> Result<(), CheckError> {
        self.shared.sort_unstable();
        self.shared.dedup();
        if self.shared.is_empty() {
            return Ok(());
        }
        self.step = Step::Count;
        self.all(run)
    }

    /// The refcount that the image stores now.
    fn stored<T: Counter, R: Reporter>(
        &self,
        run: &mut Run<'_, S, T, R>,
        cluster: u64,
    ) -> Option<u64> {
        if self.in_memory && cluster < run.clusters {
            return Some(run.stored_in_window(cluster));
        }
        run.look_up(cluster)
    }

    /// True if nothing else is known to be in the cluster whose refcount is `stored`.
    fn is_unshared<T: Counter, R: Reporter>(
        &self,
        run: &Run<'_, S, T, R>,
        cluster: u64,
        stored: u64,
    ) -> bool {
        !self.may_overflow(run, cluster, stored)
            && !self.job.refused_cut
            && self.job.refused.binary_search(&cluster).is_err()
    }

    /// True if a cluster may have more references than its refcount says.
    fn may_overflow<T: Counter, R: Reporter>(
        &self,
        run: &Run<'_, S, T, R>,
        cluster: u64,
        stored: u64,
    ) -> bool {
        let found = &self.looked.found;
        stored == run.max_refcount()
            && (found.overflows_cut || found.overflows.binary_search(&cluster).is_ok())
    }

    fn l1_is_safe<T: Counter, R: Reporter>(&self, run: &mut Run<'_, S, T, R>) -> bool {
        let header = run.header_of();
        let bits = header.cluster_bits.get();
        let start = header.l1_table_offset.get();
        let bytes = u64::from(header.l1_size).saturating_mul(8);
        let end = start.saturating_add(bytes).saturating_sub(1);
        bytes > 0
            && end >> bits < run.clusters
            && (start >> bits..=end >> bits).all(|cluster| {
                self.stored(run, cluster) == Some(1) && self.is_unshared(run, cluster, 1)
            })
    }

    /// True if an L2 table may be written where it is.
    fn l2_is_safe<T: Counter, R: Reporter>(&self, run: &mut Run<'_, S, T, R>, offset: u64) -> bool {
        let bits = run.header_of().cluster_bits;
        let cluster = offset >> bits.get();
        let Some(stored) = self.stored(run, cluster) else {
            return false;
        };
        let tables: &[Span] = &self.looked.found.tables;
        let fits = bits.is_aligned(offset) && cluster < run.clusters;
        if !self.fix
            || !fits
            || !self.is_unshared(run, cluster, stored)
            || in_table(tables, cluster)
        {
            return false;
        }
        let place = self.shared.binary_search_by_key(&cluster, |entry| entry.0);
        let users = place.ok().and_then(|at| self.shared.get(at));
        stored == 1 || users.is_some_and(|(_, users)| *users == stored)
    }

    fn walk<T: Counter, R: Reporter>(
        &mut self,
        run: &mut Run<'_, S, T, R>,
        level1: Level1,
    ) -> Result<(), CheckError> {
        let mut piece = zeroed(
            u64::from(level1.entries)
                .saturating_mul(8)
                .min(PIECE_BYTES.into()),
        )?;
        let mut index = 0_u32;
        while index < level1.entries {
            let n = (PIECE_BYTES / 8).min(level1.entries.saturating_sub(index));
            let len = usize::try_from(n).unwrap_or(0).saturating_mul(8);
            let piece = piece.get_mut(..len).unwrap_or_default();
            let offset = level1
                .offset
                .saturating_add(u64::from(index).saturating_mul(8));
            self.job.storage.read_at(offset, piece).map_err(failed)?;
            let dirty = self.piece(run, level1, index, piece)?;
            if dirty.0.is_some() {
                self.job.mark(self.job.mode == Mode::All)?;
                dirty.write(self.job.storage, offset, piece)?;
            }
            index = index.saturating_add(n);
            run.out.progress(0)?;
        }
        Ok(())
    }

    /// Works on a piece of an L1 table and the L2 tables it names.
    fn piece<T: Counter, R: Reporter>(
        &mut self,
        run: &mut Run<'_, S, T, R>,
        level1: Level1,
        first: u32,
        piece: &mut [u8],
    ) -> Result<Dirty, CheckError> {
        let mut dirty = Dirty::default();
        if self.step == Step::Count {
            self.count_entries(run, piece);
            return Ok(dirty);
        }
        let bytes =
            usize::try_from(run.header_of().cluster_bits.size_bytes()).unwrap_or(usize::MAX);
        let mut buf = Vec::new();
        let mut at = 0;
        while at < piece.len() {
            let mut batch = Vec::new();
            let most = BATCH_BYTES.checked_div(bytes).unwrap_or(1).max(1);
            while let Some(entry) = piece.get(at..).and_then(|rest| rest.first_chunk()) {
                let entry = L1Entry::from_be_bytes(*entry);
                if !entry.is_unallocated() {
                    batch.push((at, entry));
                }
                at = at.saturating_add(8);
                if batch.len() >= most {
                    break;
                }
            }
            self.read_batch(&batch, bytes, &mut buf)?;
            for ((place, entry), table) in batch.into_iter().zip(buf.chunks_exact_mut(bytes.max(1)))
            {
                let index = first.saturating_add(u32::try_from(place / 8).unwrap_or(0));
                let Some(new) = self.level1_entry(run, level1, index, entry) else {
                    continue;
                };
                if let (true, Some(slot)) = (
                    new != entry.0,
                    piece.get_mut(place..place.saturating_add(8)),
                ) {
                    slot.copy_from_slice(&new.to_be_bytes());
                    dirty.add(place);
                }
                self.level2(run, level1.active, entry.l2_offset().get(), table)?;
            }
            run.out.progress(0)?;
        }
        Ok(dirty)
    }

    fn read_batch(
        &self,
        batch: &[(usize, L1Entry)],
        bytes: usize,
        buf: &mut Vec<u8>,
    ) -> Result<(), CheckError> {
        let want = batch.len().saturating_mul(bytes);
        if buf.len() < want {
            let more = want.saturating_sub(buf.len());
            buf.try_reserve_exact(more)
                .map_err(|_| CheckError::OutOfMemory)?;
            buf.resize(want, 0);
        }
        let mut reads: Vec<Read<'_>> = Vec::new();
        for ((_, entry), buf) in batch.iter().zip(buf.chunks_exact_mut(bytes.max(1))) {
            let offset = entry.l2_offset().get().min(MAX_FILE_BYTES);
            reads.push(Read { offset, buf });
        }
        if reads.is_empty() {
            return Ok(());
        }
        self.job.storage.read_batch(&mut reads).map_err(failed)
    }

    fn count_entries<T: Counter, R: Reporter>(&mut self, run: &Run<'_, S, T, R>, piece: &[u8]) {
        let bits = run.header_of().cluster_bits;
        for entry in piece.as_chunks::<8>().0 {
            let entry = L1Entry::from_be_bytes(*entry);
            let cluster = entry.l2_offset().get() >> bits.get();
            if entry.is_unallocated() {
                continue;
            }
            if let Ok(place) = self.shared.binary_search_by_key(&cluster, |entry| entry.0)
                && let Some((_, users)) = self.shared.get_mut(place)
            {
                *users = users.saturating_add(1);
            }
        }
    }

    /// Judges an L1 entry: gives what it should be, or `None` if its L2 table is
    /// to be left alone, as the check does where a refcount cannot be read.
    fn level1_entry<T: Counter, R: Reporter>(
        &mut self,
        run: &mut Run<'_, S, T, R>,
        level1: Level1,
        index: u32,
        entry: L1Entry,
    ) -> Option<u64> {
        if !level1.active {
            return Some(entry.0);
        }
        let cluster = entry.l2_offset().get() >> run.header_of().cluster_bits.get();
        let refcount = self.stored(run, cluster)?;
        if (refcount == 1) == entry.is_copied() || self.step == Step::Collect {
            return Some(entry.0);
        }
        let safe = self.fix && self.l1_safe;
        self.left |= !safe;
        self.tell(
            run,
            safe,
            format_args!(
                "OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={:x} refcount={refcount}",
                entry.0
            ),
        );
        Some(if safe { entry.0 ^ COPIED } else { entry.0 })
    }

    fn tell<T: Counter, R: Reporter>(
        &mut self,
        run: &mut Run<'_, S, T, R>,
        safe: bool,
        args: core::fmt::Arguments<'_>,
    ) {
        if safe {
            self.told = self.told.saturating_add(1);
            run.out
                .print(MessageKind::Plain, format_args!("Repairing {args}"));
        } else {
            run.out.corruption(format_args!("ERROR {args}"));
        }
    }

    /// Works on an L2 table.
    fn level2<T: Counter, R: Reporter>(
        &mut self,
        run: &mut Run<'_, S, T, R>,
        active: bool,
        offset: u64,
        table: &mut [u8],
    ) -> Result<(), CheckError> {
        let step = usize::try_from(run.header_of().l2_entry_bytes()).unwrap_or(8);
        let mut dirty = Dirty::default();
        let mut safe = None;
        for at in (0..table.len()).step_by(step) {
            let word = |at: usize| table.get(at..).and_then(|rest| rest.first_chunk());
            let Some(entry) = word(at).map(|bytes| L2Entry::from_be_bytes(*bytes)) else {
                break;
            };
            if entry.0 == 0 {
                continue;
            }
            let map = word(at.saturating_add(8))
                .filter(|_| step == 16)
                .map(|bytes| SubclusterBitmap::from_be_bytes(*bytes));
            let mended = self.mended(run, entry, map);
            let wrong = if mended == entry.0 && active {
                self.wrong_copied(run, entry)
            } else {
                None
            };
            if mended == entry.0 && wrong.is_none() {
                continue;
            }
            if self.step == Step::Collect {
                self.collect(run, offset);
                return Ok(());
            }
            let safe = *safe.get_or_insert_with(|| self.l2_is_safe(run, offset));
            self.left |= !safe;
            if let Some(refcount) = wrong {
                self.tell(
                    run,
                    safe,
                    format_args!(
                        "OFLAG_COPIED data cluster: l2_entry={:x} refcount={refcount}",
                        entry.0
                    ),
                );
            }
            let new = if wrong.is_some() {
                entry.0 ^ COPIED
            } else {
                mended
            };
            if let (true, Some(slot)) = (safe, table.get_mut(at..at.saturating_add(8))) {
                slot.copy_from_slice(&new.to_be_bytes());
                dirty.add(at);
            }
        }
        if dirty.0.is_some() {
            self.job.mark(self.job.mode == Mode::All)?;
            dirty.write(self.job.storage, offset, table)?;
        }
        Ok(())
    }

    fn collect<T: Counter, R: Reporter>(&mut self, run: &mut Run<'_, S, T, R>, offset: u64) {
        let cluster = offset >> run.header_of().cluster_bits.get();
        let shared = self.stored(run, cluster).is_some_and(|stored| stored > 1);
        if shared && self.shared.len() < MAX_SHARED && self.shared.try_reserve(1).is_ok() {
            self.shared.push((cluster, 0));
        }
    }

    /// The entry without what the walk has told as being repaired.
    fn mended<T: Counter, R: Reporter>(
        &self,
        run: &Run<'_, S, T, R>,
        entry: L2Entry,
        map: Option<SubclusterBitmap>,
    ) -> u64 {
        if self.job.mode == Mode::Leaks {
            return entry.0;
        }
        if entry.is_compressed() {
            return entry.0 & !COPIED;
        }
        let has_data = map.map_or(!entry.has_zero_flag(), |map| map.allocated() != 0);
        let aligned = run
            .header_of()
            .cluster_bits
            .is_aligned(entry.host_offset().get());
        if run.kind(entry) != Kind::Allocated || aligned || has_data {
            return entry.0;
        }
        if map.is_some() { 0 } else { ALL_ZEROS }
    }

    /// The refcount, if the COPIED flag does not agree with it.
    fn wrong_copied<T: Counter, R: Reporter>(
        &self,
        run: &mut Run<'_, S, T, R>,
        entry: L2Entry,
    ) -> Option<u64> {
        if entry.is_compressed() || run.kind(entry) != Kind::Allocated {
            return None;
        }
        let header = run.header_of();
        let cluster = entry.host_offset().get() >> header.cluster_bits.get();
        // Clusters of a data file have no refcount; they count as used once.
        let refcount = if header.incompatible.external_data_file() {
            1
        } else {
            self.stored(run, cluster)?
        };
        ((refcount == 1) != entry.is_copied()).then_some(refcount)
    }
}
