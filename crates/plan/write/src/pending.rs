//! Places for data that is on its way: tables name them when it is there.

use crate::WriteError;
use crate::image::WriteImage;
use crate::place::Placed;
use crate::runs::TopKind;
use instar_storage::StorageMut;

/// A place that was given, and that no table names yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// First byte of the disk that has its place here. What of its bytes was not asked for is there already.
    pub guest: u64,
    /// The place of all of it.
    pub placed: Placed,
    /// What [`WriteImage::link`] does.
    step: Step,
    /// Clusters were allocated for it.
    allocated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The tables say so already.
    Nothing,
    /// A guest cluster lies at `host`, these units of it and what it had.
    Part { cluster: u64, host: u64, units: u32 },
    /// `count` guest clusters lie at `host`.
    Whole { cluster: u64, host: u64, count: u64 },
}

impl<S: StorageMut> WriteImage<'_, S> {
    /// As [`Self::place`], but for the tables, which say what they said until [`Self::link`]. Other places may be given
    /// meanwhile, and [`Self::commit`] may come, but nothing else is done to these clusters.
    ///
    /// # Errors
    /// There is no place; what was there cannot be read or copied.
    pub fn reserve(&mut self, guest: u64, len: u64) -> Result<Pending, WriteError> {
        self.check_range(guest, len)?;
        if len == 0 {
            return Err(WriteError::PastEnd);
        }
        let bits = self.header.cluster_bits;
        let (cluster, start) = (guest >> bits.get(), guest & bits.mask());
        let whole = if start == 0 { len >> bits.get() } else { 0 };
        if whole > 0 {
            return self.reserve_whole(cluster, whole);
        }
        let len = len.min(bits.size_bytes().saturating_sub(start));
        self.reserve_part(cluster, start, len)
    }

    fn reserve_part(&mut self, cluster: u64, start: u64, len: u64) -> Result<Pending, WriteError> {
        let (host, allocated, found) = self.part_place(cluster, start, len, None)?;
        let unit = self.division.unit();
        let low = start & !unit.saturating_sub(1);
        let high = start.saturating_add(len).next_multiple_of(unit);
        let guest = (cluster << self.header.cluster_bits.get()).saturating_add(low);
        // What lies past the disk's end has a place, too, but nobody asks for it.
        let left = self.len_bytes().saturating_sub(guest);
        Ok(Pending {
            guest,
            placed: Placed {
                in_data_file: self.data.is_some(),
                offset: host.saturating_add(low),
                len: high.saturating_sub(low).min(left),
            },
            step: if found {
                Step::Nothing
            } else {
                Step::Part {
                    cluster,
                    host,
                    units: self.units(start, len),
                }
            },
            allocated,
        })
    }

    fn reserve_whole(&mut self, cluster: u64, count: u64) -> Result<Pending, WriteError> {
        let bits = self.header.cluster_bits.get();
        let (host, count, allocated) = self.whole_place(cluster, count)?;
        // So that a link needs nothing but what there is.
        self.tables.own(self.image, &mut self.counts, cluster)?;
        Ok(Pending {
            guest: cluster << bits,
            placed: Placed {
                in_data_file: self.data.is_some(),
                offset: host,
                len: count << bits,
            },
            step: Step::Whole {
                cluster,
                host,
                count,
            },
            allocated,
        })
    }

    /// The data for this place is written: the tables name it from now on, in the file after the next
    /// [`Self::commit`]. What they named before is not given again before that.
    ///
    /// # Errors
    /// A table cannot be read; the place stays as it was, or part of it is named.
    pub fn link(&mut self, pending: &Pending) -> Result<(), WriteError> {
        match pending.step {
            Step::Nothing => {}
            Step::Part {
                cluster,
                host,
                units,
            } => self.name_part(cluster, host, units)?,
            Step::Whole {
                cluster,
                host,
                count,
            } => self.name_whole(cluster, host, count)?,
        }
        self.recorder.note(pending.guest, pending.placed.len);
        Ok(())
    }

    /// The data for this place is not written, or only in part, and will not be: its clusters are free again.
    ///
    /// # Errors
    /// A refcount cannot be read; a raw data file cannot be written.
    pub fn give_up(&mut self, pending: &Pending) -> Result<(), WriteError> {
        if !pending.allocated {
            return self.clear_raw_file(pending);
        }
        let bits = self.header.cluster_bits;
        let (host, count) = match pending.step {
            Step::Nothing => return Ok(()),
            Step::Part { host, .. } => (host, 1),
            Step::Whole { host, count, .. } => (host, count),
        };
        for index in 0..count {
            let place = host.saturating_add(index << bits.get());
            self.counts.give_back(self.image, place)?;
        }
        Ok(())
    }

    /// Whether [`Self::link`] has anything to do for this place.
    #[must_use]
    pub const fn needs_link(&self, pending: &Pending) -> bool {
        !matches!(pending.step, Step::Nothing) || self.recorder.records()
    }

    /// A raw data file is read by itself: what the tables call zeros is zeros there, too.
    fn clear_raw_file(&mut self, pending: &Pending) -> Result<(), WriteError> {
        if !self.header.autoclear.data_file_raw() {
            return Ok(());
        }
        let (mut at, end) = (
            pending.guest,
            pending.guest.saturating_add(pending.placed.len),
        );
        while at < end {
            let run = self.run_at(at, end.saturating_sub(at))?;
            if !matches!(run.kind, TopKind::Data { .. }) {
                self.zero_raw_file(at, run.len)?;
            }
            at = at.saturating_add(run.len);
        }
        Ok(())
    }
}
