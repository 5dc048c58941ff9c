//! Writes into an image.

use crate::counts::Counts;
use crate::header::{keep_known_autoclear, write_fields};
use crate::mapping::{Division, Mapping, mask};
use crate::place::Packed;
use crate::record::Recorder;
use crate::tables::Tables;
use crate::{WriteError, zeroed};
use alloc::boxed::Box;
use alloc::collections::BinaryHeap;
use alloc::vec::Vec;
use core::fmt;
use instar_layers::{Chain, Decompress};
use instar_qcow2::Header;
use instar_qcow2::entries::CompressedDescriptor;
use instar_qcow2::header::CryptMethod;
use instar_storage::{Cipher, DataPlace, Storage, StorageMut};

/// What lies below the image.
pub trait Below {
    /// Fills `buf` with what a guest would read at `guest`; zeros past the end.
    ///
    /// # Errors
    /// It cannot be read.
    fn read_below(&mut self, guest: u64, buf: &mut [u8]) -> Result<(), WriteError>;
}

/// No backing file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NothingBelow;

impl Below for NothingBelow {
    fn read_below(&mut self, _guest: u64, buf: &mut [u8]) -> Result<(), WriteError> {
        buf.fill(0);
        Ok(())
    }
}

/// A backing chain, and what its compressed clusters need.
impl<S: Storage, D: Decompress> Below for (Chain<S>, D) {
    fn read_below(&mut self, guest: u64, buf: &mut [u8]) -> Result<(), WriteError> {
        let left = self.0.len_bytes().saturating_sub(guest);
        let len = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
        let (inside, past) = buf.split_at_mut(len);
        past.fill(0);
        if inside.is_empty() {
            return Ok(());
        }
        Ok(self.0.read_at(guest, inside, &mut self.1)?)
    }
}

/// Where a cluster goes.
struct Target {
    /// Its place.
    host: u64,
    /// The place reads as zeros.
    fresh: bool,
    /// Units that move along from a cluster that is left.
    carried: u32,
}

/// An image that takes writes.
pub struct WriteImage<'a, S> {
    pub(crate) image: &'a S,
    pub(crate) data: Option<&'a S>,
    below: Box<dyn Below + 'a>,
    codec: Box<dyn Decompress + 'a>,
    /// Of the guest data, if that is encrypted.
    cipher: Option<&'static dyn Cipher>,
    pub(crate) header: Header,
    pub(crate) division: Division,
    pub(crate) tables: Tables,
    pub(crate) counts: Counts,
    /// Clusters with metadata, ascending: nothing may be written there as data.
    pub(crate) metadata: Vec<u64>,
    pub(crate) packed: Packed,
    pub(crate) recorder: Recorder,
}

impl<S> fmt::Debug for WriteImage<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteImage")
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

impl<'a, S: StorageMut> WriteImage<'a, S> {
    /// Opens the image with this header, which is neither dirty nor corrupt, for writing. `data` is its data file if
    /// it has one.
    ///
    /// # Errors
    /// A table cannot be used; the image is encrypted.
    pub fn open(
        image: &'a S,
        data: Option<&'a S>,
        header: &Header,
        below: Box<dyn Below + 'a>,
        codec: Box<dyn Decompress + 'a>,
    ) -> Result<Self, WriteError> {
        Self::open_with(image, data, header, below, codec, None)
    }

    /// As [`Self::open`], with the cipher of the guest data if that is encrypted.
    ///
    /// # Errors
    /// A table cannot be used; the image is encrypted and there is no cipher.
    pub fn open_with(
        image: &'a S,
        data: Option<&'a S>,
        header: &Header,
        below: Box<dyn Below + 'a>,
        codec: Box<dyn Decompress + 'a>,
        cipher: Option<&'static dyn Cipher>,
    ) -> Result<Self, WriteError> {
        if cipher.is_some() != (header.crypt_method != CryptMethod::None) {
            return Err(WriteError::Encrypted);
        }
        if header.incompatible.external_data_file() != data.is_some() {
            let what = "data file";
            return Err(WriteError::Corrupt { what });
        }
        let counts = Counts::read(image, header)?;
        let tables = Tables::read(image, header)?;
        let metadata = metadata(header, &counts, &tables)?;
        let mut header = header.clone();
        keep_known_autoclear(&mut header);
        write_fields(image, &header)?;
        let recorder = Recorder::open(image, &header)?;
        Ok(Self {
            image,
            data,
            below,
            codec,
            cipher,
            division: Division::of(&header),
            header,
            tables,
            counts,
            metadata,
            packed: Packed::default(),
            recorder,
        })
    }

    /// The cipher of the guest data, if that is encrypted. Whoever writes data to a place that was given enciphers it;
    /// compressed data stays as it is.
    #[must_use]
    pub const fn cipher(&self) -> Option<&'static dyn Cipher> {
        self.cipher
    }

    /// Virtual size in bytes.
    #[must_use]
    pub const fn len_bytes(&self) -> u64 {
        self.header.whole_sectors_size()
    }

    /// Writes all of `bytes` at `guest`, of any alignment.
    ///
    /// # Errors
    /// A part may have been written.
    pub fn write_at(&mut self, guest: u64, bytes: &[u8]) -> Result<(), WriteError> {
        self.check_range(guest, bytes.len() as u64)?;
        self.recorder.note(guest, bytes.len() as u64);
        let bits = self.header.cluster_bits;
        let (mut at, mut rest) = (guest, bytes);
        while !rest.is_empty() {
            let start = at & bits.mask();
            let len =
                usize::try_from(bits.size_bytes().saturating_sub(start)).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at(len.min(rest.len()));
            self.write_cluster(at >> bits.get(), start, now)?;
            at = at.saturating_add(now.len() as u64);
            rest = later;
            if self.is_full() {
                self.commit()?;
            }
        }
        Ok(())
    }

    pub(crate) fn check_range(&self, guest: u64, len: u64) -> Result<(), WriteError> {
        let end = guest.checked_add(len);
        if end.is_none_or(|end| end > self.len_bytes()) {
            return Err(WriteError::PastEnd);
        }
        Ok(())
    }

    /// Fills `buf` with what a guest reads at `guest` now; writes to places that were given must have ended.
    ///
    /// # Errors
    /// The tables, the data or the backing file cannot be read.
    pub fn read_at(&mut self, guest: u64, buf: &mut [u8]) -> Result<(), WriteError> {
        self.check_range(guest, buf.len() as u64)?;
        let (bits, unit) = (self.header.cluster_bits, self.division.unit());
        let (mut at, mut rest) = (guest, buf);
        while !rest.is_empty() {
            let (cluster, start) = (at >> bits.get(), at & bits.mask());
            let old = self.mapping(cluster)?;
            let whole = if old.compressed.is_some() {
                bits.size_bytes()
            } else {
                unit
            };
            let skip = start & whole.saturating_sub(1);
            let len = usize::try_from(whole.saturating_sub(skip)).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at_mut(len.min(rest.len()));
            if let Some(data) = old.compressed {
                let mut all = zeroed(whole)?;
                self.decompress(data, &mut all)?;
                let skip = usize::try_from(skip).unwrap_or(usize::MAX);
                let part = all.get(skip..).unwrap_or_default();
                now.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
            } else {
                self.read_unit(cluster, &old, start, now)?;
            }
            at = at.saturating_add(now.len() as u64);
            rest = later;
        }
        Ok(())
    }

    /// Where the bytes at `guest` lie if nothing but they need be written, and how many of `len` do in a row: the file
    /// (true: the data file) and the offset there. The caller may write them itself, at any time.
    ///
    /// # Errors
    /// The tables cannot be read.
    pub fn in_place(
        &mut self,
        guest: u64,
        len: u64,
    ) -> Result<Option<(bool, u64, u64)>, WriteError> {
        let bits = self.header.cluster_bits;
        let start = guest & bits.mask();
        let len = len.min(bits.size_bytes().saturating_sub(start));
        if len == 0
            || guest
                .checked_add(len)
                .is_none_or(|end| end > self.len_bytes())
        {
            return Ok(None);
        }
        let mapping = self.mapping(guest >> bits.get())?;
        let units = self.units(start, len);
        if !mapping.owned || mapping.data & units != units {
            return Ok(None);
        }
        self.check_place(mapping.host)?;
        self.recorder.note(guest, len);
        let at = mapping.host.saturating_add(start);
        Ok(Some((self.data.is_some(), at, len)))
    }

    /// Writes what the tables have to say of all that was written before, and makes everything durable.
    ///
    /// # Errors
    /// The store's; the same may be tried again.
    pub fn commit(&mut self) -> Result<(), WriteError> {
        if self.recorder.is_full() {
            self.record()?;
        }
        self.commit_tables()
    }

    pub(crate) fn commit_tables(&mut self) -> Result<(), WriteError> {
        if self.tables.is_dirty() || self.counts.is_dirty() {
            self.counts.name_blocks(self.image, &mut self.header)?;
            self.counts.write_counts(self.image)?;
            self.tables.write_fresh(self.image)?;
            self.flush_data()?;
            self.image.flush()?;
            self.tables.write_links(self.image)?;
            self.image.flush()?;
            self.tables.settled();
            return self.counts.apply_drops(self.image);
        }
        self.flush_data()
    }

    /// As [`Self::commit`], with refcounts that fell.
    ///
    /// # Errors
    /// As there.
    pub fn flush(&mut self) -> Result<(), WriteError> {
        self.commit()?;
        Ok(self.image.flush()?)
    }

    fn flush_data(&self) -> Result<(), WriteError> {
        match self.data {
            Some(data) => Ok(data.flush()?),
            None => Ok(()),
        }
    }

    /// The file that guest data lies in.
    const fn file(&self) -> &'a S {
        match self.data {
            Some(data) => data,
            None => self.image,
        }
    }

    pub(crate) fn mapping(&mut self, cluster: u64) -> Result<Mapping, WriteError> {
        let words = self.tables.get(self.image, cluster)?;
        Mapping::decode(words, self.division, self.data.is_some())
    }

    /// The units that hold `len` bytes from byte `start` of a cluster on.
    pub(crate) const fn units(&self, start: u64, len: u64) -> u32 {
        if !self.division.extended {
            return 1;
        }
        let shift = self.division.unit().trailing_zeros();
        let last = start.saturating_add(len).saturating_sub(1);
        mask(start >> shift, last >> shift)
    }

    /// Whether data may be written to a cluster.
    pub(crate) fn check_place(&self, host: u64) -> Result<(), WriteError> {
        let cluster = host >> self.header.cluster_bits.get();
        if self.data.is_none() && self.metadata.binary_search(&cluster).is_ok() {
            let what = "data cluster overlaps with metadata";
            return Err(WriteError::Corrupt { what });
        }
        Ok(())
    }

    /// Writes `bytes` at byte `start` of a guest cluster.
    pub(crate) fn write_cluster(
        &mut self,
        cluster: u64,
        start: u64,
        bytes: &[u8],
    ) -> Result<(), WriteError> {
        let len = bytes.len() as u64;
        self.place_part(cluster, start, len, Some(bytes)).map(drop)
    }

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
        let mut buf = zeroed(high.saturating_sub(low))?;
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

    /// The first byte of a guest cluster that lies at `host`.
    const fn data_place(&self, cluster: u64, host: u64) -> DataPlace {
        DataPlace {
            host,
            guest: cluster << self.header.cluster_bits.get(),
        }
    }

    /// Writes guest data.
    fn write_data(&self, at: DataPlace, bytes: &[u8]) -> Result<(), WriteError> {
        let file = self.file();
        let written = match self.cipher {
            Some(cipher) => cipher.write(file, at, bytes),
            None => file.write_at(at.host, bytes),
        };
        Ok(written?)
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

    /// Reads a unit of a cluster that is not compressed, at byte `offset` of it.
    fn read_unit(
        &mut self,
        cluster: u64,
        old: &Mapping,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), WriteError> {
        let unit = self.units(offset, 1);
        if old.data & unit != 0 {
            let at = self.data_place(cluster, old.host).advanced(offset);
            let read = match self.cipher {
                Some(cipher) => cipher.read(self.file(), at, buf),
                None => self.file().read_at(at.host, buf),
            };
            return Ok(read?);
        }
        if old.zeros & unit != 0 {
            buf.fill(0);
            return Ok(());
        }
        let guest = (cluster << self.header.cluster_bits.get()).saturating_add(offset);
        self.below.read_below(guest, buf)
    }

    fn decompress(&mut self, data: CompressedDescriptor, buf: &mut [u8]) -> Result<(), WriteError> {
        let mut packed = zeroed(data.size_bytes())?;
        self.image.read_at(data.offset.get(), &mut packed)?;
        let kind = self.header.compression_type;
        let taken = self.codec.decompress(kind, &packed, buf);
        taken.map_err(|_| WriteError::Corrupt {
            what: "compressed cluster",
        })
    }

    /// Nothing refers to the old place of a cluster any more.
    pub(crate) fn leave(&mut self, old: &Mapping) {
        let bits = self.header.cluster_bits.get();
        if let Some(data) = old.compressed {
            let first = data.first_sector_offset().get() >> bits;
            let last = data.end_offset().get().saturating_sub(1) >> bits;
            let count = last.saturating_sub(first).saturating_add(1);
            self.counts.drop_later(first, count);
        } else if old.placed && self.data.is_none() {
            self.counts.drop_later(old.host >> bits, 1);
        }
    }
}

/// Clusters with metadata, ascending.
fn metadata(header: &Header, counts: &Counts, tables: &Tables) -> Result<Vec<u64>, WriteError> {
    let bits = header.cluster_bits;
    let mut clusters = Vec::new();
    let room = counts
        .places()
        .count()
        .saturating_add(tables.places().count());
    let reserved = clusters.try_reserve(room);
    reserved.map_err(|_| WriteError::OutOfMemory)?;
    clusters.push(0);
    for place in counts.places().chain(tables.places()) {
        clusters.push(place >> bits.get());
    }
    let l1_bytes = u64::from(header.l1_size).saturating_mul(8);
    for (offset, bytes) in [
        (header.l1_table_offset, l1_bytes),
        (header.refcount_table_offset, header.refcount_table_bytes()),
    ] {
        let first = bits.cluster_of(offset).get();
        clusters.extend(first..first.saturating_add(bits.clusters_for(bytes)));
    }
    // By a heap, which is a tenth of the code of the other ways.
    Ok(BinaryHeap::from(clusters).into_sorted_vec())
}
