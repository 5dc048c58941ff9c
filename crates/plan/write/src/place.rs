//! Places for data that the caller writes itself, and zeros.

use crate::WriteError;
use crate::image::WriteImage;
use crate::mapping::Mapping;
use instar_storage::StorageMut;

/// The flag of a compressed cluster's entry: qcow2 "Standard Cluster Descriptor", bit 62.
const COMPRESSED: u64 = 1 << 62;
/// Bytes of what a compressed cluster's length is counted in.
const SECTOR_BYTES: u64 = 512;

/// Where bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The file is the data file.
    pub in_data_file: bool,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes that lie there in a row, at least 1 if any were asked for.
    pub len: u64,
}

/// Where the next compressed cluster goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Packed {
    /// First free byte; 0: nowhere.
    next: u64,
    /// End of its cluster.
    end: u64,
}

impl<S: StorageMut> WriteImage<'_, S> {
    /// Gives the first of the `len` bytes at `guest` a place that is the image's own, and says how many of them lie
    /// there. What surrounds them in a cluster is there already, copied from where it was.
    ///
    /// The caller writes the bytes there, in any order and overlapped with everything else, and does not
    /// [`Self::commit`] before these writes have ended: until then a crash leaves the old bytes, unless the place is
    /// where they were. After a failed write it does not commit at all.
    ///
    /// # Errors
    /// There is no place; what was there cannot be read or copied.
    pub fn place(&mut self, guest: u64, len: u64) -> Result<Placed, WriteError> {
        self.check_range(guest, len)?;
        let bits = self.header.cluster_bits;
        let (cluster, start) = (guest >> bits.get(), guest & bits.mask());
        let whole = if start == 0 { len >> bits.get() } else { 0 };
        let (offset, len) = if whole > 0 {
            let (host, count) = self.place_whole(cluster, whole)?;
            (host, count << bits.get())
        } else {
            let len = len.min(bits.size_bytes().saturating_sub(start));
            let host = self.place_part(cluster, start, len, None)?;
            (host.saturating_add(start), len)
        };
        self.recorder.note(guest, len);
        Ok(Placed {
            in_data_file: self.data.is_some(),
            offset,
            len,
        })
    }

    /// The place that a guest cluster keeps, or must have.
    fn own_place(&self, cluster: u64, old: &Mapping) -> Result<Option<u64>, WriteError> {
        if old.placed && old.owned {
            self.check_place(old.host)?;
            return Ok(Some(old.host));
        }
        let bits = self.header.cluster_bits.get();
        Ok(self.data.is_some().then_some(cluster << bits))
    }

    /// As [`Self::whole_place`], and the tables name them: the first one, and how many lie there in a row.
    fn place_whole(&mut self, cluster: u64, count: u64) -> Result<(u64, u64), WriteError> {
        let (host, same, _) = self.whole_place(cluster, count)?;
        self.name_whole(cluster, host, same)?;
        Ok((host, same))
    }

    /// `count` guest clusters in a row are at `host`, all of them data.
    pub(crate) fn name_whole(
        &mut self,
        cluster: u64,
        host: u64,
        count: u64,
    ) -> Result<(), WriteError> {
        let bits = self.header.cluster_bits;
        for index in 0..count {
            let place = host.saturating_add(index << bits.get());
            self.set_whole(cluster.saturating_add(index), place)?;
        }
        Ok(())
    }

    /// Places for at most `count` whole clusters, all of whose bytes are about to be written: the first one, how many lie
    /// there in a row, and whether they are new.
    pub(crate) fn whole_place(
        &mut self,
        cluster: u64,
        count: u64,
    ) -> Result<(u64, u64, bool), WriteError> {
        let bits = self.header.cluster_bits;
        // Those of one table, so that one step makes it the active state's own.
        let table = self.header.l2_entries().max(1);
        let left = table.saturating_sub(cluster.checked_rem(table).unwrap_or(0));
        let count = count.min(left);
        let old = self.mapping(cluster)?;
        let first = self.own_place(cluster, &old)?;
        let mut same = 1;
        while same < count {
            let next = cluster.saturating_add(same);
            let mapping = self.mapping(next)?;
            let expected = first.map(|host| host.saturating_add(same << bits.get()));
            if self.own_place(next, &mapping)? != expected {
                break;
            }
            same = same.saturating_add(1);
        }
        if let Some(host) = first {
            return Ok((host, same, false));
        }
        self.tables.own(self.image, &mut self.counts, cluster)?;
        let (host, given) = self.counts.allocate_run(self.image, same)?;
        Ok((host, given, true))
    }

    /// A cluster's data is at `host`, all of it.
    fn set_whole(&mut self, cluster: u64, host: u64) -> Result<(), WriteError> {
        let old = self.mapping(cluster)?;
        let data = self.division.all();
        let new = Mapping {
            host,
            placed: true,
            owned: true,
            data,
            zeros: 0,
            compressed: None,
        };
        if old == new {
            return Ok(());
        }
        self.tables.own(self.image, &mut self.counts, cluster)?;
        self.tables.set(cluster, new.encode(self.division));
        if !(old.placed && old.owned) {
            self.leave(&old);
        }
        Ok(())
    }

    /// Gives the `len` bytes that the cluster at `guest` was compressed to a place behind the last such bytes. The
    /// caller writes them, on the terms of [`Self::place`].
    ///
    /// # Errors
    /// The cluster has a place or is compressed, as nothing compressed goes over what is there; the image has a data
    /// file; there is no room.
    pub fn place_compressed(&mut self, guest: u64, len: u32) -> Result<u64, WriteError> {
        if self.data.is_some() {
            return Err(WriteError::NotSupported);
        }
        let bits = self.header.cluster_bits;
        let bytes = u64::from(len);
        if bytes == 0 || bytes > bits.size_bytes() || !bits.is_aligned(guest) {
            return Err(WriteError::PastEnd);
        }
        self.check_range(guest, 1)?;
        let cluster = guest >> bits.get();
        let old = self.mapping(cluster)?;
        if old.placed || old.compressed.is_some() {
            return Err(WriteError::Occupied);
        }
        self.tables.own(self.image, &mut self.counts, cluster)?;
        let offset = self.pack(bytes)?;
        // cluster_bits is 9..=21, so the offset is 49 to 61 bits wide.
        let offset_bits = 70_u32.saturating_sub(bits.get());
        let end = offset.saturating_add(bytes);
        if end >> offset_bits != 0 {
            return Err(WriteError::TooLarge);
        }
        let sectors = (end.saturating_sub(1) / SECTOR_BYTES).saturating_sub(offset / SECTOR_BYTES);
        let entry = COMPRESSED | (sectors << offset_bits) | offset;
        self.tables.set(cluster, (entry, 0));
        self.recorder.note(guest, bits.size_bytes());
        Ok(offset)
    }

    /// Room for `bytes` compressed bytes, at most a cluster: in one cluster, or in two that adjoin.
    fn pack(&mut self, bytes: u64) -> Result<u64, WriteError> {
        let bits = self.header.cluster_bits;
        let Packed { next, end } = self.packed;
        let last = end.saturating_sub(1) >> bits.get();
        let more = last.saturating_add(1);
        let room = end.saturating_sub(next);
        let crosses = bytes > room;
        let fits = room > 0
            && (!crosses
                || (self.counts.is_free(self.image, more)?
                    && self.counts.take(self.image, more)?));
        if fits {
            // One more reference may not be counted, or it has been freed meanwhile.
            if self.counts.share(self.image, last)? {
                self.packed.next = next.saturating_add(bytes);
                if crosses {
                    self.packed.end = end.saturating_add(bits.size_bytes());
                }
                return Ok(next);
            }
            if crosses {
                self.counts.give_back(self.image, more << bits.get())?;
            }
        }
        let host = self.counts.allocate(self.image, 1)?;
        self.packed = Packed {
            next: host.saturating_add(bytes),
            end: host.saturating_add(bits.size_bytes()),
        };
        Ok(host)
    }

    /// Makes the `len` bytes at `guest` read as zeros, by entries of the tables where they can say so: whole clusters
    /// lose their places. An image of version 2 with a backing file gets zeros as data, as do parts of a cluster.
    ///
    /// It takes memory for the tables of the whole range: see [`Self::is_full`].
    ///
    /// # Errors
    /// A part may have been made zeros.
    pub fn zeros(&mut self, guest: u64, len: u64) -> Result<(), WriteError> {
        self.make_zeros(guest, len, false)
    }

    /// As [`Self::zeros`], but clusters keep their places where the tables can say that.
    ///
    /// # Errors
    /// As there.
    pub fn zeros_in_place(&mut self, guest: u64, len: u64) -> Result<(), WriteError> {
        self.make_zeros(guest, len, true)
    }

    fn make_zeros(&mut self, guest: u64, len: u64, keep: bool) -> Result<(), WriteError> {
        self.check_range(guest, len)?;
        let bits = self.header.cluster_bits;
        let (mut at, end) = (guest, guest.saturating_add(len));
        self.zero_raw_file(guest, len)?;
        while at < end {
            let start = at & bits.mask();
            let left = bits.size_bytes().saturating_sub(start);
            let now = left.min(end.saturating_sub(at));
            // What lies past the disk's end does not count.
            let whole = start == 0 && (now == left || end == self.len_bytes());
            let cluster = at >> bits.get();
            if whole {
                self.zero_cluster(cluster, keep)?;
            } else {
                self.zero_part(cluster, start, now)?;
            }
            at = at.saturating_add(now);
        }
        self.recorder.note(guest, len);
        Ok(())
    }

    /// Raw data files are read by themselves: zeros are zeros there, too, and lie where the guest sees them.
    pub(crate) fn zero_raw_file(&self, guest: u64, len: u64) -> Result<(), WriteError> {
        let Some(data) = self.data.filter(|_| self.header.autoclear.data_file_raw()) else {
            return Ok(());
        };
        let len = len.min(data.len_bytes().saturating_sub(guest));
        if len > 0 {
            data.write_zeroes(guest, len)?;
        }
        Ok(())
    }

    /// Gives the whole clusters among the `len` bytes at `guest` back where the tables can say that they are zeros then;
    /// the rest stays as it is.
    ///
    /// # Errors
    /// A part may have been given back.
    pub fn forget(&mut self, guest: u64, len: u64) -> Result<(), WriteError> {
        self.check_range(guest, len)?;
        if !self.division.version_3 && self.header.backing_file.is_some() {
            return Ok(());
        }
        let bits = self.header.cluster_bits;
        let end = guest.saturating_add(len);
        let start = guest.next_multiple_of(bits.size_bytes());
        // What lies past the disk's end does not count.
        let end = if end == self.len_bytes() {
            end
        } else {
            end & !bits.mask()
        };
        if start >= end {
            return Ok(());
        }
        self.zeros(start, end.saturating_sub(start))
    }

    /// `keep`: it keeps its place if it has one of its own.
    fn zero_cluster(&mut self, cluster: u64, keep: bool) -> Result<(), WriteError> {
        let old = self.mapping(cluster)?;
        let backed = self.header.backing_file.is_some();
        if !self.division.version_3 && backed {
            return self.write_zeros(cluster, 0, self.header.cluster_bits.size_bytes());
        }
        let keep = keep && self.division.version_3 && old.placed && old.owned;
        let new = Mapping {
            host: if keep { old.host } else { 0 },
            placed: keep,
            owned: keep,
            data: 0,
            zeros: if self.division.version_3 {
                self.division.all()
            } else {
                0
            },
            compressed: None,
        };
        if old == new {
            return Ok(());
        }
        self.tables.own(self.image, &mut self.counts, cluster)?;
        self.tables.set(cluster, new.encode(self.division));
        if !keep {
            self.leave(&old);
        }
        Ok(())
    }

    /// Zeros for a part of a cluster: its whole subclusters have a bit for that.
    fn zero_part(&mut self, cluster: u64, start: u64, len: u64) -> Result<(), WriteError> {
        let unit = self.division.unit();
        let end = start.saturating_add(len);
        let (low, high) = (start.next_multiple_of(unit), end & !unit.saturating_sub(1));
        if !self.division.extended || low >= high {
            return self.write_zeros(cluster, start, len);
        }
        self.write_zeros(cluster, start, low.saturating_sub(start))?;
        self.write_zeros(cluster, high, end.saturating_sub(high))?;
        let zeros = self.units(low, high.saturating_sub(low));
        let old = self.mapping(cluster)?;
        if old.zeros & zeros == zeros {
            return Ok(());
        }
        if old.compressed.is_some() {
            return self.write_zeros(cluster, low, high.saturating_sub(low));
        }
        self.tables.own(self.image, &mut self.counts, cluster)?;
        let new = Mapping {
            data: old.data & !zeros,
            zeros: old.zeros | zeros,
            ..old
        };
        self.tables.set(cluster, new.encode(self.division));
        Ok(())
    }

    /// Zeros as data, where there is something else.
    fn write_zeros(&mut self, cluster: u64, start: u64, len: u64) -> Result<(), WriteError> {
        if len == 0 {
            return Ok(());
        }
        let old = self.mapping(cluster)?;
        let units = self.units(start, len);
        let backed = self.header.backing_file.is_some();
        let blank = !backed && old.data & units == 0 && old.compressed.is_none();
        if blank && !old.placed && !self.division.extended {
            return self.zero_cluster(cluster, false);
        }
        if blank || old.zeros & units == units {
            return Ok(());
        }
        // A part of a cluster, and its bytes are all the same.
        let zeros = crate::zeroed(len)?;
        self.write_cluster(cluster, start, &zeros)
    }

    /// What changed in the tables takes as much memory as it should: time for a [`Self::commit`].
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.tables.is_full() || self.counts.is_full() || self.recorder.is_full()
    }

    /// Something was given a place, or made zeros, that no table in the file names yet.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.tables.is_dirty() || self.counts.is_dirty()
    }

    /// Bytes that are allocated together, in bytes: a cluster, or a subcluster.
    #[must_use]
    pub const fn unit_bytes(&self) -> u64 {
        self.division.unit()
    }

    /// Bytes of a cluster.
    #[must_use]
    pub const fn cluster_bytes(&self) -> u64 {
        self.header.cluster_bits.size_bytes()
    }

    /// Takes `bytes` of memory for tables, and as much for refcounts, in place of [`crate::CACHE_BYTES`].
    pub const fn set_cache(&mut self, bytes: u64) {
        self.tables.cache = bytes;
        self.counts.cache = bytes;
    }

    /// Something was linked, placed or made zeros that no table in the file says yet. Places that wait for their data do
    /// not count.
    #[must_use]
    pub fn is_changed(&self) -> bool {
        self.tables.is_dirty()
    }

    /// Gives the blocks of clusters that become free back to the host.
    pub fn punch(&mut self) {
        self.counts.punch = true;
    }
}
