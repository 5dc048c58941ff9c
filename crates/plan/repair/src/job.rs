//! The order of a repair's parts, and the marks in the header.

use crate::copied::Flags;
use crate::patch::Patch;
use crate::places::Places;
use crate::rebuild::Rebuild;
use crate::snapshots::{self, NewTable};
use crate::table::{BlockTable, is_shared};
use crate::{CheckError, CheckSummary, Mode, Repaired, Reporter};
use alloc::vec::Vec;
use instar_plan_check::MessageKind;
use instar_plan_check::parts::{Counter, Found, Run, Span};
use instar_qcow2::Header;
use instar_qcow2::header::{AutoclearFeatures, IncompatibleFeatures};
use instar_storage::{StorageError, StorageMut};

/// Clusters that [`Job::refused`] names, at most; past them nothing that is shared is written.
const MAX_REFUSED: usize = 1 << 16;
/// Incompatible feature bit 0.
const DIRTY: u64 = 1 << 0;
/// Incompatible feature bit 1.
const CORRUPT: u64 = 1 << 1;
/// Where the feature bits are in the header.
const INCOMPATIBLE_AT: usize = 72;
/// Where the autoclear feature bits are.
const AUTOCLEAR_AT: usize = 88;
/// What never tears: the part of the header that switches.
const SECTOR: usize = 512;

/// A repair under way.
pub(crate) struct Job<'a, S> {
    pub(crate) storage: &'a S,
    /// As it is in the file.
    pub(crate) header: Header,
    pub(crate) mode: Mode,
    /// Something but the marks was written.
    pub(crate) changed: bool,
    /// Clusters whose refcounts stay wrong, since tables overlap in them.
    pub(crate) refused: Vec<u64>,
    /// Not all of those clusters are known.
    pub(crate) refused_cut: bool,
    /// What the repair has done asks for another one.
    pub(crate) again: bool,
    /// The incompatible features before the repair.
    features: u64,
    /// The header has been prepared for changes.
    marked: bool,
}

/// What the first check and the work on the refcounts came to.
pub(crate) struct Looked {
    pub(crate) sum: CheckSummary,
    pub(crate) found: Found,
    /// A COPIED flag did not fit its refcount, or may not do so any more.
    pub(crate) look_at_copied: bool,
    /// The refcounts need what the mode does not allow.
    pub(crate) stuck: bool,
    /// The snapshot table was replaced.
    pub(crate) new_snapshots: bool,
}

/// The errno of a store as the check's end.
pub(crate) const fn failed(error: StorageError) -> CheckError {
    CheckError::Failed { errno: error.errno }
}

impl<'a, S: StorageMut> Job<'a, S> {
    pub(crate) fn new(storage: &'a S, header: &Header, mode: Mode) -> Self {
        Self {
            storage,
            header: header.clone(),
            mode,
            changed: false,
            refused: Vec::new(),
            refused_cut: false,
            again: false,
            features: header.incompatible.0,
            marked: false,
        }
    }

    /// Repairs, and checks again what was changed.
    pub(crate) fn all<T: Counter, R: Reporter>(
        &mut self,
        reporter: &mut R,
    ) -> Result<Repaired, CheckError> {
        let (before, mended) = self.work::<T, R>(reporter)?;
        if self.again {
            // The file has grown over places that were outside it before, and
            // are clusters of zeros with references now.
            self.work::<T, R>(reporter)?;
        }
        let mut repaired = Repaired {
            summary: before,
            corruptions_fixed: 0,
            leaks_fixed: 0,
        };
        if self.changed || mended > 0 {
            let after = instar_plan_check::check(self.storage, &self.header, reporter)?;
            let before = before.corruptions.saturating_add(mended);
            repaired.corruptions_fixed = before.saturating_sub(after.corruptions);
            repaired.leaks_fixed = repaired.summary.leaks.saturating_sub(after.leaks);
            repaired.summary = after;
        }
        let clean = repaired.summary.corruptions == 0 && repaired.summary.check_errors == 0;
        self.unmark(clean)?;
        Ok(repaired)
    }

    /// Repairs; gives the totals before it, and how many damages that those do
    /// not count have been dealt with.
    pub(crate) fn work<T: Counter, R: Reporter>(
        &mut self,
        reporter: &mut R,
    ) -> Result<(CheckSummary, u64), CheckError> {
        let snapshots = match self.mode {
            Mode::All => snapshots::look(self.storage, &self.header, reporter)?,
            Mode::Leaks => None,
        };
        let len = self.storage.len_bytes();
        let looked = self.refcounts::<T, R>(reporter, snapshots.as_ref())?;
        if self.storage.len_bytes() > len.saturating_add(len / 128) && !looked.found.uncounted {
            // The structures were written behind its end: now there is other room.
            let snapshots = snapshots.filter(|_| looked.new_snapshots);
            let bytes = snapshots.map_or(0, |new| new.bytes);
            Places::new(self)?.move_down(bytes, len)?;
        }
        let mut sum = looked.sum;
        let mut mended = looked.found.mendable;
        let repaired = snapshots.filter(|_| looked.new_snapshots);
        mended = mended.saturating_add(repaired.map_or(0, |new| new.repaired));
        if !looked.stuck && (looked.look_at_copied || looked.found.mendable > 0) {
            let told = Flags::repair::<T, R>(self, reporter, &looked)?;
            sum.corruptions = sum.corruptions.saturating_add(told);
        }
        if self.changed {
            self.flush()?;
        }
        Ok((sum, mended))
    }

    /// The first check, and all that makes the refcounts right.
    fn refcounts<T: Counter, R: Reporter>(
        &mut self,
        reporter: &mut R,
        snapshots: Option<&NewTable>,
    ) -> Result<Looked, CheckError> {
        let mut header = self.header.clone();
        if let Some(new) = snapshots {
            header.nb_snapshots = new.count;
        }
        let table = BlockTable::read(self.storage, &header)?;
        let mut run = Run::<S, T, R>::new(self.storage, &header, reporter)?;
        run.mend = self.mode == Mode::All;
        run.keep_places = true;
        if snapshots.is_some() {
            run.start_totals();
        } else {
            run.start()?;
        }
        let old = snapshots.map(|new| new.old_span(&self.header));
        let (broken, shared) = count(&mut run, &table, old)?;
        let snapshots = snapshots.filter(|_| !shared);
        if shared {
            self.changed = true;
            run.out.print(
                MessageKind::Plain,
                format_args!("The snapshot table is not repaired: it overlaps with something else"),
            );
        }
        run.keep_places = false;
        sort_tables(&mut run.out.found.tables);
        run.out.found.overflows.sort_unstable();
        let broken = broken || overflows_in(&run.out.found, &table)?;
        let wrong = run.out.found.low > 0 || run.out.found.high > 0;
        let stuck = broken && self.mode == Mode::Leaks;
        if stuck {
            run.out.print(
                MessageKind::Plain,
                format_args!("ERROR need to rebuild refcount structures"),
            );
            run.out.first_pass = true;
            run.check_copied()?;
        } else if wrong && !broken {
            Patch::new(self, &table)?.all(&mut run)?;
        }
        if broken && !stuck {
            run.out.print(
                MessageKind::Plain,
                format_args!("Rebuilding refcount structure"),
            );
        }
        let mut rebuild = !stuck && broken;
        if let Some(new) = snapshots.filter(|_| !stuck && !broken) {
            let may_grow = run.out.found.outside.is_empty() && !run.out.found.outside_cut;
            let counted = !run.out.found.uncounted;
            rebuild = !(counted && Places::new(self)?.replace_snapshots(new, may_grow)?);
        }
        if rebuild {
            Rebuild::new(self, &table, snapshots)?.all(&mut run)?;
        }
        Ok(Looked {
            sum: run.out.sum,
            look_at_copied: broken || run.copied_wrong || run.out.found.wrong_in_use,
            found: core::mem::take(&mut run.out.found),
            stuck,
            new_snapshots: snapshots.is_some(),
        })
    }

    /// Notes a cluster whose refcount stays as it is.
    pub(crate) fn refuse<T: Counter, R: Reporter>(
        &mut self,
        run: &mut Run<'_, S, T, R>,
        cluster: u64,
    ) {
        if self.refused.len() >= MAX_REFUSED || self.refused.try_reserve(1).is_err() {
            self.refused_cut = true;
            return;
        }
        let place = self.refused.partition_point(|known| *known < cluster);
        if self.refused.get(place) != Some(&cluster) {
            self.refused.insert(place, cluster);
            run.out.print(
                MessageKind::Plain,
                format_args!(
                    "Cluster {cluster} is not repaired: a table in it overlaps with something else"
                ),
            );
        }
    }

    /// Writes to the header's first sector, which is there in whole or not at all.
    pub(crate) fn write_header(&self, parts: &[(usize, &[u8])]) -> Result<(), CheckError> {
        let mut sector = [0; SECTOR];
        self.storage.read_at(0, &mut sector).map_err(failed)?;
        for (at, bytes) in parts {
            let end = at.saturating_add(bytes.len());
            if let Some(place) = sector.get_mut(*at..end) {
                place.copy_from_slice(bytes);
            }
        }
        self.storage.write_at(0, &sector).map_err(failed)?;
        self.flush()
    }

    /// Makes everything durable.
    pub(crate) fn flush(&self) -> Result<(), CheckError> {
        self.storage.flush().map_err(failed)
    }

    /// Before the first change: unknown autoclear features go, as the format
    /// demands of a writer, and unless only leaks are repaired the image is
    /// marked corrupt until it has been checked again.
    pub(crate) fn mark(&mut self, corrupt: bool) -> Result<(), CheckError> {
        self.changed = true;
        let old = (self.header.incompatible.0, self.header.autoclear.0);
        let features = old.0 | if corrupt { CORRUPT } else { 0 };
        let known = old.1 & AutoclearFeatures::KNOWN;
        if self.header.version < 3 || (features, known) == old {
            return Ok(());
        }
        self.marked |= corrupt;
        self.header.autoclear = AutoclearFeatures(known);
        self.write_features(features)
    }

    /// After the repair: a clean image is neither dirty nor corrupt, another one
    /// is what it was before.
    pub(crate) fn unmark(&mut self, clean: bool) -> Result<(), CheckError> {
        if self.header.version < 3 {
            return Ok(());
        }
        let features = if clean {
            self.header.incompatible.0 & !(DIRTY | CORRUPT)
        } else {
            self.features
        };
        if features == self.header.incompatible.0 {
            return Ok(());
        }
        self.flush()?;
        self.write_features(features)
    }

    /// The refcounts are as right as they can be.
    pub(crate) const fn no_longer_dirty(&mut self) {
        self.features &= !DIRTY;
    }

    fn write_features(&mut self, features: u64) -> Result<(), CheckError> {
        let autoclear = self.header.autoclear.0.to_be_bytes();
        self.write_header(&[
            (INCOMPATIBLE_AT, &features.to_be_bytes()),
            (AUTOCLEAR_AT, &autoclear),
        ])?;
        self.header.incompatible = IncompatibleFeatures(features);
        Ok(())
    }
}

/// Counts and compares all windows. Tells whether the refcount structures are
/// beyond patching, and whether the clusters of `span` have a second use.
fn count<S: StorageMut, T: Counter, R: Reporter>(
    run: &mut Run<'_, S, T, R>,
    table: &BlockTable,
    span: Option<Span>,
) -> Result<(bool, bool), CheckError> {
    let (mut broken, mut shared) = (false, false);
    let mut first = 0;
    loop {
        run.count_window(first)?;
        broken |= table.is_broken(run);
        shared |= span.is_some_and(|span| is_shared(run, span));
        match run.pages.next_window() {
            Some(next) => first = next,
            None => return Ok((broken || run.out.found.broken_refcounts, shared)),
        }
    }
}

/// True if something else may be in a cluster of the refcount table or of a
/// block, which a refcount of so few bits does not say.
fn overflows_in(found: &Found, table: &BlockTable) -> Result<bool, CheckError> {
    if found.overflows.is_empty() {
        return Ok(false);
    }
    let clusters = table.clusters()?;
    let overflows = |cluster| found.overflows.binary_search(cluster).is_ok();
    Ok(found.overflows_cut || clusters.iter().any(overflows))
}

/// In ascending order, with `last` never falling, so that a search needs to look
/// at one entry.
fn sort_tables(tables: &mut [Span]) {
    tables.sort_unstable();
    let mut highest = 0;
    for (_, last) in tables {
        highest = highest.max(*last);
        *last = highest;
    }
}
