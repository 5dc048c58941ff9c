//! Writes into an image.

use crate::bitmaps::mark_in_use;
use crate::counts::Counts;
use crate::mapping::{Division, Mapping, mask};
use crate::tables::Tables;
use crate::{WriteError, zeroed};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use instar_layers::{Chain, Decompress};
use instar_plan_txn::write_header;
use instar_qcow2::Header;
use instar_qcow2::entries::CompressedDescriptor;
use instar_qcow2::header::CryptMethod;
use instar_storage::{Storage, StorageMut};

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

/// An image that takes writes.
pub struct WriteImage<'a, S> {
    image: &'a S,
    data: Option<&'a S>,
    below: Box<dyn Below + 'a>,
    codec: Box<dyn Decompress + 'a>,
    header: Header,
    division: Division,
    tables: Tables,
    counts: Counts,
    /// Clusters with metadata, ascending: nothing may be written there as data.
    metadata: Vec<u64>,
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
        if header.crypt_method != CryptMethod::None {
            return Err(WriteError::Encrypted);
        }
        if header.incompatible.external_data_file() != data.is_some() {
            let what = "data file";
            return Err(WriteError::Corrupt { what });
        }
        let counts = Counts::read(image, header)?;
        let tables = Tables::read(image, header)?;
        let metadata = metadata(header, &counts, &tables)?;
        // Unknown autoclear bits are cleared by whoever writes.
        let header = write_header(image, header, header)?;
        mark_in_use(image, &header)?;
        Ok(Self {
            image,
            data,
            below,
            codec,
            division: Division::of(&header),
            header,
            tables,
            counts,
            metadata,
        })
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
        let end = guest.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.len_bytes()) {
            return Err(WriteError::PastEnd);
        }
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
            if self.tables.is_full() || self.counts.is_full() {
                self.commit()?;
            }
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
        let at = mapping.host.saturating_add(start);
        Ok(Some((self.data.is_some(), at, len)))
    }

    /// Writes what the tables have to say of all that was written before, and makes everything durable.
    ///
    /// # Errors
    /// The store's; the same may be tried again.
    pub fn commit(&mut self) -> Result<(), WriteError> {
        if self.tables.is_dirty() || self.counts.is_dirty() {
            self.header = self.counts.name_blocks(self.image, &self.header)?;
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

    fn mapping(&mut self, cluster: u64) -> Result<Mapping, WriteError> {
        let words = self.tables.get(self.image, cluster)?;
        Mapping::decode(words, self.division, self.data.is_some())
    }

    /// The units that hold `len` bytes from byte `start` of a cluster on.
    const fn units(&self, start: u64, len: u64) -> u32 {
        if !self.division.extended {
            return 1;
        }
        let shift = self.division.unit().trailing_zeros();
        let last = start.saturating_add(len).saturating_sub(1);
        mask(start >> shift, last >> shift)
    }

    /// Whether data may be written to a cluster.
    fn check_place(&self, host: u64) -> Result<(), WriteError> {
        let cluster = host >> self.header.cluster_bits.get();
        if self.data.is_none() && self.metadata.binary_search(&cluster).is_ok() {
            let what = "data cluster overlaps with metadata";
            return Err(WriteError::Corrupt { what });
        }
        Ok(())
    }

    /// Writes `bytes` at byte `start` of a guest cluster.
    fn write_cluster(&mut self, cluster: u64, start: u64, bytes: &[u8]) -> Result<(), WriteError> {
        let old = self.mapping(cluster)?;
        let touched = self.units(start, bytes.len() as u64);
        let stays = old.placed && old.owned;
        if stays {
            self.check_place(old.host)?;
            if old.data & touched == touched {
                let at = old.host.saturating_add(start);
                return Ok(self.file().write_at(at, bytes)?);
            }
        }
        self.tables.own(self.image, &mut self.counts, cluster)?;
        let host = if stays {
            old.host
        } else if self.data.is_some() {
            cluster << self.header.cluster_bits.get()
        } else {
            self.counts.allocate(self.image, 1)?
        };
        // What moves along from a cluster that is left.
        let carried = match (stays, old.compressed) {
            (true, _) => 0,
            (false, Some(_)) => self.division.all(),
            (false, None) => old.data,
        };
        let written = self.fill(cluster, &old, host, start, bytes, carried);
        if let Err(error) = written {
            if !stays && self.data.is_none() {
                self.counts.give_back(self.image, host)?;
            }
            return Err(error);
        }
        let kept = if stays { old.data } else { carried };
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

    /// Writes `bytes` and, around them, what the units that they touch and the `carried` ones held.
    fn fill(
        &mut self,
        cluster: u64,
        old: &Mapping,
        host: u64,
        start: u64,
        bytes: &[u8],
        carried: u32,
    ) -> Result<(), WriteError> {
        let unit = self.division.unit();
        let end = start.saturating_add(bytes.len() as u64);
        let (mut low, mut high) = (start & !unit.saturating_sub(1), end.next_multiple_of(unit));
        if carried != 0 {
            let first = u64::from(carried.trailing_zeros()).saturating_mul(unit);
            let last = u64::from(32_u32.saturating_sub(carried.leading_zeros()));
            (low, high) = (low.min(first), high.max(last.saturating_mul(unit)));
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
        if let Some(part) = buf.get_mut(at(start)..at(end)) {
            part.copy_from_slice(bytes);
        }
        Ok(self.file().write_at(host.saturating_add(low), &buf)?)
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
            let at = old.host.saturating_add(offset);
            return Ok(self.file().read_at(at, buf)?);
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
    fn leave(&mut self, old: &Mapping) {
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
    clusters.sort_unstable();
    Ok(clusters)
}
