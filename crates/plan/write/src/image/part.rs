//! A part of a cluster gets a place, and what surrounds it moves along.

use super::WriteImage;
use crate::mapping::Mapping;
use crate::{WriteError, zeroed};
use instar_storage::{DataPlace, StorageMut};

/// Where a cluster goes.
struct Target {
    /// Its place.
    host: u64,
    /// The place reads as zeros.
    fresh: bool,
    /// Units that move along from a cluster that is left.
    carried: u32,
}

impl<S: StorageMut> WriteImage<'_, S> {
    /// Gives the `len` bytes at byte `start` of a guest cluster a place, with all that surrounds them, and writes them
    /// if they are there. Returns where the cluster lies.
    pub(crate) fn place_part(
        &mut self,
        cluster: u64,
        start: u64,
        len: u64,
        bytes: Option<&[u8]>,
    ) -> Result<u64, WriteError> {
        let (host, _, found) = self.part_place(cluster, start, len, bytes)?;
        if !found {
            self.name_part(cluster, host, self.units(start, len))?;
        }
        Ok(host)
    }

    /// Finds a place for the `len` bytes at byte `start` of a guest cluster, and writes there what surrounds them, and them
    /// if they are there. Says where the cluster lies, whether that was allocated, and whether the tables say so already.
    pub(crate) fn part_place(
        &mut self,
        cluster: u64,
        start: u64,
        len: u64,
        bytes: Option<&[u8]>,
    ) -> Result<(u64, bool, bool), WriteError> {
        let old = self.mapping(cluster)?;
        let touched = self.units(start, len);
        let stays = old.placed && old.owned;
        if stays {
            self.check_place(old.host)?;
            if old.data & touched == touched {
                if let Some(bytes) = bytes {
                    self.write_data(self.data_place(cluster, old.host).advanced(start), bytes)?;
                }
                return Ok((old.host, false, true));
            }
        }
        self.tables.own(self.image, &mut self.counts, cluster)?;
        let allocated = !stays && self.data.is_none();
        let (host, fresh) = if stays {
            (old.host, false)
        } else if allocated {
            self.counts.allocate_one(self.image)?
        } else {
            (cluster << self.header.cluster_bits.get(), false)
        };
        let to = Target {
            host,
            fresh: fresh && self.cipher.is_none(),
            carried: if stays { 0 } else { self.carried(&old) },
        };
        let end = start.saturating_add(len);
        let written = self.fill(cluster, &old, &to, (start, end), bytes);
        if let Err(error) = written {
            if allocated {
                self.counts.give_back(self.image, host)?;
            }
            return Err(error);
        }
        Ok((host, allocated, false))
    }

    /// Units that move along when a cluster gets another place.
    const fn carried(&self, old: &Mapping) -> u32 {
        match old.compressed {
            Some(_) => self.division.all(),
            None => old.data,
        }
    }

    /// A guest cluster lies at `host`: what it had, and the units `touched`.
    pub(crate) fn name_part(
        &mut self,
        cluster: u64,
        host: u64,
        touched: u32,
    ) -> Result<(), WriteError> {
        let old = self.mapping(cluster)?;
        self.tables.own(self.image, &mut self.counts, cluster)?;
        let stays = old.placed && old.owned;
        let kept = if stays { old.data } else { self.carried(&old) };
        let data = kept | touched;
        let new = Mapping {
            host,
            placed: true,
            owned: true,
            data,
            zeros: old.zeros & !data,
            compressed: None,
        };
        self.tables.set(cluster, new.encode(self.division));
        if !stays {
            self.leave(&old);
        }
        Ok(())
    }

    /// Writes what the units that hold `range` and those that move along held, around the range, and the range if `bytes`
    /// are there.
    fn fill(
        &mut self,
        cluster: u64,
        old: &Mapping,
        to: &Target,
        (start, end): (u64, u64),
        bytes: Option<&[u8]>,
    ) -> Result<(), WriteError> {
        let carried = to.carried;
        let unit = self.division.unit();
        let (mut low, mut high) = (start & !unit.saturating_sub(1), end.next_multiple_of(unit));
        if carried != 0 {
            let first = u64::from(carried.trailing_zeros()).saturating_mul(unit);
            let last = u64::from(32_u32.saturating_sub(carried.leading_zeros()));
            (low, high) = (low.min(first), high.max(last.saturating_mul(unit)));
        }
        let place = self.data_place(cluster, to.host);
        if (low, high) == (start, end) {
            return self.write_around(place, low, &[], (start, end), bytes);
        }
        let around = high.saturating_sub(low);
        if to.fresh && bytes.is_none() && self.is_zero(cluster, old, low, around) {
            return Ok(());
        }
        let mut buf = zeroed(around)?;
        let at = |offset: u64| usize::try_from(offset.saturating_sub(low)).unwrap_or(usize::MAX);
        if let Some(data) = old.compressed {
            // All of it is carried, so that `low` is 0.
            self.decompress(data, &mut buf)?;
        } else {
            let mut offset = low;
            while offset < high {
                let next = offset.saturating_add(unit);
                let whole = start <= offset && next <= end;
                if let (false, Some(part)) = (whole, buf.get_mut(at(offset)..at(next))) {
                    self.read_unit(cluster, old, offset, part)?;
                }
                offset = next;
            }
        }
        if to.fresh && bytes.is_none() && buf.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        self.write_around(place, low, &buf, (start, end), bytes)
    }

    /// Whether the tables say that the `len` bytes at byte `start` of a guest cluster, whole units, read as zeros.
    fn is_zero(&self, cluster: u64, old: &Mapping, start: u64, len: u64) -> bool {
        let units = self.units(start, len);
        let guest = (cluster << self.header.cluster_bits.get()).saturating_add(start);
        old.compressed.is_none()
            && old.data & units == 0
            && (old.zeros & units == units || self.below.is_zero(guest, len))
    }

    /// Writes `bytes` with what is around them, at once, or without them what is around them. `cluster` is where it
    /// begins.
    fn write_around(
        &self,
        cluster: DataPlace,
        low: u64,
        around: &[u8],
        (start, end): (u64, u64),
        bytes: Option<&[u8]>,
    ) -> Result<(), WriteError> {
        let head = usize::try_from(start.saturating_sub(low)).unwrap_or(usize::MAX);
        let tail = usize::try_from(end.saturating_sub(low)).unwrap_or(usize::MAX);
        let before = around.get(..head).unwrap_or_default();
        let after = around.get(tail..).unwrap_or_default();
        match bytes {
            Some(bytes) if before.is_empty() && after.is_empty() => {
                self.write_data(cluster.advanced(start), bytes)?;
            }
            Some(bytes) => {
                let all = [before, bytes, after].concat();
                self.write_data(cluster.advanced(low), &all)?;
            }
            None => {
                if !before.is_empty() {
                    self.write_data(cluster.advanced(low), before)?;
                }
                if !after.is_empty() {
                    self.write_data(cluster.advanced(end), after)?;
                }
            }
        }
        Ok(())
    }
}
