//! The order of a repair's parts, and the marks in the header.

use crate::copied::Flags;
use crate::patch::{Patch, recount};
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
/// The header's cluster.
const HEADER: Span = (0, 0);
/// How often a repair that has made more repairs possible goes on with these.
const MORE_ROUNDS: usize = 3;
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
    /// The file has grown over places that were outside it before and have references.
    pub(crate) grown_over: bool,
    /// What the repair has done makes more of it possible.
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
    /// The refcounts need what the mode does not allow, or for what there is no place.
    pub(crate) stuck: bool,
    /// Refcount table and blocks are in new places.
    pub(crate) rebuilt: bool,
    /// The snapshot table was replaced.
    pub(crate) new_snapshots: bool,
}

/// What became of the refcounts.
#[derive(Clone, Copy, Default)]
struct Done {
    /// See [`Looked::stuck`].
    stuck: bool,
    /// See [`Looked::rebuilt`].
    rebuilt: bool,
    /// See [`Looked::new_snapshots`].
    new_snapshots: bool,
}

impl Done {
    const STUCK: Self = Self {
        stuck: true,
        rebuilt: false,
        new_snapshots: false,
    };
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
            grown_over: false,
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
        let first = self.round::<T, R>(reporter)?;
        for _ in 0..MORE_ROUNDS {
            if core::mem::take(&mut self.again) {
                self.round::<T, R>(reporter)?;
            }
        }
        Ok(first)
    }

    /// One of the rounds of [`Job::work`].
    fn round<T: Counter, R: Reporter>(
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
        let old = snapshots.and_then(|new| new.kept_span(&self.header));
        let counted = count(&mut run, &table, old)?;
        run.keep_places = false;
        sort_tables(&mut run.out.found.tables);
        run.out.found.overflows.sort_unstable();
        let snapshots = snapshots.filter(|_| !counted.snapshots_shared);
        if counted.snapshots_shared {
            self.changed = true;
            run.out.print(
                MessageKind::Plain,
                format_args!("The snapshot table is not repaired: it overlaps with something else"),
            );
        }
        let header_shared = self.mode == Mode::All && header_is_shared(&mut run)?;
        let snapshots = snapshots.filter(|_| !header_shared);
        if header_shared {
            self.only_leaks(&mut run);
        }
        let broken = counted.broken || overflows_in(&run.out.found, &table)?;
        let done = self.mend_refcounts(&mut run, &table, broken, snapshots)?;
        // What the old structures were in the way of, or what they hid.
        self.again |= done.rebuilt && (counted.snapshots_shared || run.out.found.uncounted);
        Ok(Looked {
            sum: run.out.sum,
            look_at_copied: broken || run.copied_wrong || run.out.found.wrong_in_use,
            found: core::mem::take(&mut run.out.found),
            stuck: done.stuck,
            rebuilt: done.rebuilt,
            new_snapshots: done.new_snapshots,
        })
    }

    /// Makes the refcounts right, and puts a new snapshot table in its place.
    fn mend_refcounts<T: Counter, R: Reporter>(
        &mut self,
        run: &mut Run<'_, S, T, R>,
        table: &BlockTable,
        broken: bool,
        snapshots: Option<&NewTable>,
    ) -> Result<Done, CheckError> {
        if broken && self.mode == Mode::Leaks {
            run.out.print(
                MessageKind::Plain,
                format_args!("ERROR need to rebuild refcount structures"),
            );
            run.out.first_pass = true;
            run.check_copied()?;
            return Ok(Done::STUCK);
        }
        if broken {
            run.out.print(
                MessageKind::Plain,
                format_args!("Rebuilding refcount structure"),
            );
        } else {
            if run.out.found.low > 0 || run.out.found.high > 0 {
                Patch::new(self, table)?.all(run)?;
            }
            let Some(new) = snapshots else {
                return Ok(Done::default());
            };
            let may_grow = run.out.found.outside.is_empty() && !run.out.found.outside_cut;
            let counted = !run.out.found.uncounted;
            if counted && Places::new(self)?.replace_snapshots(new, may_grow)? {
                return Ok(Done {
                    new_snapshots: true,
                    ..Done::default()
                });
            }
        }
        if Rebuild::new(self, table, snapshots)?.all(run)? {
            return Ok(Done {
                stuck: false,
                rebuilt: true,
                new_snapshots: snapshots.is_some(),
            });
        }
        run.out.print(
            MessageKind::Plain,
            format_args!("Nothing is rebuilt: something refers to where the file would grow"),
        );
        // The check after the repair tells what stays.
        self.changed = true;
        Ok(Done::STUCK)
    }

    /// Leaves everything as it is that needs a write to the header.
    fn only_leaks<T: Counter, R: Reporter>(&mut self, run: &mut Run<'_, S, T, R>) {
        self.mode = Mode::Leaks;
        // The check after the repair tells what stays, though it was said to be repaired.
        self.changed = true;
        let out = &mut run.out;
        let mendable = core::mem::take(&mut out.found.mendable);
        out.sum.corruptions = out.sum.corruptions.saturating_add(mendable);
        out.print(
            MessageKind::Plain,
            format_args!("Only leaks are repaired: the header overlaps with something else"),
        );
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

/// What counting has shown.
#[derive(Default)]
struct Counted {
    /// The refcount structures are beyond patching.
    broken: bool,
    /// The snapshot table's clusters have a second use.
    snapshots_shared: bool,
}

/// Counts and compares all windows; the snapshot table is in the clusters of `snapshots`.
fn count<S: StorageMut, T: Counter, R: Reporter>(
    run: &mut Run<'_, S, T, R>,
    table: &BlockTable,
    snapshots: Option<Span>,
) -> Result<Counted, CheckError> {
    let mut counted = Counted::default();
    let mut first = 0;
    loop {
        run.count_window(first)?;
        counted.broken |= table.is_broken(run);
        counted.snapshots_shared |= snapshots.is_some_and(|span| is_shared(run, span));
        match run.pages.next_window() {
            Some(next) => first = next,
            None => break,
        }
    }
    counted.broken |= run.out.found.broken_refcounts;
    Ok(counted)
}

/// True if something that is not a refcount structure is in the header's cluster too: a
/// change of the header would change that. All windows have been counted.
fn header_is_shared<S: StorageMut, T: Counter, R: Reporter>(
    run: &mut Run<'_, S, T, R>,
) -> Result<bool, CheckError> {
    let found = &run.out.found;
    if found.outside.iter().any(|span| span.0 == 0) {
        // It starts in the header and ends outside the file.
        return Ok(true);
    }
    let overflows = found.overflows.binary_search(&0).is_ok();
    if run.pages.first() == 0 && !overflows && !is_shared(run, HEADER) {
        return Ok(false);
    }
    let overflows = core::mem::take(&mut run.out.found.overflows);
    run.pages.be_silent();
    run.keep_places = true;
    run.count_refcounts = false;
    recount(run, 0, false)?;
    let shared = run.out.found.overflows.contains(&0) || is_shared(run, HEADER);
    run.count_refcounts = true;
    run.keep_places = false;
    run.out.found.overflows = overflows;
    // As before, for those who go on with the only window.
    run.pages.begin(0);
    run.load_stored()?;
    run.count_all()?;
    Ok(shared)
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
