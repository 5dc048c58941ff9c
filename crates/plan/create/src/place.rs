//! Where guest data goes.

use crate::pages::{entry, set_entry, zeroed};
use crate::{CreateError, NewImage};
use instar_qcow2::bits;
use instar_qcow2::entries::{ALL_ZEROS, COMPRESSED, COPIED, OFFSET_MASK, SUBCLUSTERS};
use instar_storage::{DataPlace, StorageMut};

/// Bytes of a sector, in which the length of compressed data is stored.
const SECTOR: u64 = 512;

/// Bytes of zeros that are enciphered at a time.
const ZEROS_BYTES: u64 = 64 << 10;

/// Which file a place is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlacedIn {
    /// The image.
    Image,
    /// The external data file.
    DataFile,
}

/// A run of bytes that guest data is to be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PlacedIn,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes; never more than was asked for, rounded up to [`crate::Spec::unit_bytes`].
    pub len: u64,
}

/// What is to become of a range of guest data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// It holds data.
    Data,
    /// It has a place, but no data: subclusters stay unallocated.
    Reserved,
}

/// Entries of one L2 table that a run covers.
#[derive(Clone, Copy, Debug)]
struct Span {
    /// Offset of the L2 table.
    table: u64,
    /// First entry.
    first: u64,
    /// Entries.
    count: u64,
}

impl<S: StorageMut> NewImage<'_, S> {
    /// Gives the front of a range its place, to which the caller writes whole units: the last cluster too, zeros
    /// after its data. What has a place already keeps it.
    ///
    /// # Errors
    /// [`CreateError::Range`] for a range that is not in the disk, not aligned or stored compressed; the
    /// format's limits; the store's.
    pub fn place(&mut self, guest: u64, len: u64) -> Result<Place, CreateError> {
        self.map(guest, len, Mapped::Data)
    }

    pub(crate) fn map(
        &mut self,
        guest: u64,
        len: u64,
        mapped: Mapped,
    ) -> Result<Place, CreateError> {
        let len = self.checked(guest, len)?;
        let span = self.span(guest, len)?;
        let cluster = self.header.cluster_bits;
        let in_cluster = guest & cluster.mask();
        let (host, count) = self.host_run(span, guest.saturating_sub(in_cluster))?;
        let run = count
            .saturating_mul(cluster.size_bytes())
            .saturating_sub(in_cluster)
            .min(len);
        let span = Span { count, ..span };
        self.set_data(span, host, (in_cluster, run), mapped)?;
        Ok(Place {
            file: self.placed_in(),
            offset: host.saturating_add(in_cluster),
            len: run,
        })
    }

    const fn placed_in(&self) -> PlacedIn {
        if self.header.incompatible.external_data_file() {
            PlacedIn::DataFile
        } else {
            PlacedIn::Image
        }
    }

    /// The range's length in whole units.
    fn checked(&self, guest: u64, len: u64) -> Result<u64, CreateError> {
        let unit = self.unit_bytes();
        let end = guest.checked_add(len).ok_or(CreateError::Range)?;
        let size = self.header.virtual_size.next_multiple_of(unit);
        if len == 0 || end > size || guest & unit.saturating_sub(1) != 0 {
            return Err(CreateError::Range);
        }
        Ok(len.next_multiple_of(unit))
    }

    pub(crate) const fn unit_bytes(&self) -> u64 {
        let cluster = self.header.cluster_bits.size_bytes();
        if self.header.incompatible.extended_l2() {
            cluster >> 5
        } else {
            cluster
        }
    }

    /// The entries of a range, cut at the end of their table, which is made if it is not there.
    fn span(&mut self, guest: u64, len: u64) -> Result<Span, CreateError> {
        let table = self.l2_table(guest)?;
        Ok(self.span_in(table, guest, len))
    }

    fn span_in(&self, table: u64, guest: u64, len: u64) -> Span {
        let shift = self.header.cluster_bits.get();
        let entries = self.header.l2_entries();
        let first = (guest >> shift) & entries.saturating_sub(1);
        let last = guest.saturating_add(len).saturating_sub(1) >> shift;
        let count = last.saturating_sub(guest >> shift).saturating_add(1);
        Span {
            table,
            first,
            count: count.min(entries.saturating_sub(first)),
        }
    }

    /// 8-byte words of an L2 entry.
    const fn words(&self) -> u64 {
        self.header.l2_entry_bytes() >> 3
    }

    /// The host clusters of the front of a span: those that it has, or new ones; `guest` is the span's start.
    fn host_run(&mut self, span: Span, guest: u64) -> Result<(u64, u64), CreateError> {
        if self.placed_in() == PlacedIn::DataFile {
            return Ok((guest, span.count));
        }
        let words = self.words();
        let shift = self.header.cluster_bits.get();
        let page = self.pages.get(span.table)?;
        let host = |index: u64| placed(entry(page, index.saturating_mul(words)));
        let had = host(span.first)?;
        let mut count = 1_u64;
        while count < span.count {
            let next = host(span.first.saturating_add(count));
            let follows = had.map(|had| had.saturating_add(count << shift));
            if next != Ok(follows) {
                break;
            }
            count = count.saturating_add(1);
        }
        match had {
            Some(had) => Ok((had, count)),
            None => Ok((self.refcounts.take(&mut self.pages, count)?, count)),
        }
    }

    /// Writes the entries of a span; `part` is where in it the data begins, and its length.
    fn set_data(
        &mut self,
        span: Span,
        host: u64,
        part: (u64, u64),
        mapped: Mapped,
    ) -> Result<(), CreateError> {
        let words = self.words();
        let cluster = self.header.cluster_bits.size_bytes();
        let unit = self.unit_bytes();
        let page = self.pages.get(span.table)?;
        for i in 0..span.count {
            let at = span.first.saturating_add(i).saturating_mul(words);
            let offset = i.saturating_mul(cluster);
            set_entry(page, at, COPIED | host.saturating_add(offset));
            if words == 2 && mapped == Mapped::Data {
                let mask = subclusters(part, offset, unit);
                let at = at.saturating_add(1);
                let old = entry(page, at);
                set_entry(page, at, (old | mask) & !(mask << SUBCLUSTERS));
            }
        }
        Ok(())
    }

    /// Gives `bytes` bytes of compressed data their place in the image, behind the last such bytes: the cluster
    /// at `guest`, which has no place yet, is stored there. Returns the first byte's offset; the caller writes
    /// the bytes.
    ///
    /// # Errors
    /// [`CreateError::Range`] for no bytes or more than a cluster, or an image with a data file; else as for
    /// [`NewImage::place`].
    pub fn place_compressed(&mut self, guest: u64, bytes: u32) -> Result<u64, CreateError> {
        let cluster = self.header.cluster_bits;
        let bytes = u64::from(bytes);
        let fits = bytes > 0 && bytes <= cluster.size_bytes() && cluster.is_aligned(guest);
        if !fits || self.placed_in() == PlacedIn::DataFile {
            return Err(CreateError::Range);
        }
        self.checked(guest, 1)?;
        let span = self.span(guest, 1)?;
        let at = span.first.saturating_mul(self.words());
        if entry(self.pages.get(span.table)?, at) & OFFSET_MASK != 0 {
            return Err(CreateError::Range);
        }
        let offset = self.refcounts.take_packed(&mut self.pages, bytes)?;
        // cluster_bits is 9..=21, so the offset is 49 to 61 bits wide.
        let offset_bits = 70_u32.saturating_sub(cluster.get());
        let end = offset.saturating_add(bytes);
        if end > bits(0, offset_bits.saturating_sub(1)) {
            return Err(CreateError::TOO_LARGE);
        }
        let sectors = (end.saturating_sub(1) / SECTOR).saturating_sub(offset / SECTOR);
        let descriptor = COMPRESSED | offset | (sectors << offset_bits);
        set_entry(self.pages.get(span.table)?, at, descriptor);
        Ok(offset)
    }

    /// Makes a range read as zeros although there is a backing file, or something else where it was placed.
    ///
    /// # Errors
    /// As for [`NewImage::place`].
    pub fn zero(&mut self, guest: u64, len: u64) -> Result<(), CreateError> {
        let len = self.checked(guest, len)?;
        let end = guest.saturating_add(len);
        let mut at = guest;
        while at < end {
            at = self.zero_in_table(at, end)?;
        }
        Ok(())
    }

    /// Zeros the part of `guest..end` that one L2 table maps; returns where the rest begins.
    fn zero_in_table(&mut self, guest: u64, end: u64) -> Result<u64, CreateError> {
        let table_span = self.header.l2_table_span();
        let next = guest
            .checked_div(table_span)
            .and_then(|index| index.checked_add(1)?.checked_mul(table_span))
            .unwrap_or(end)
            .min(end);
        let len = next.saturating_sub(guest);
        let hides = self.header.backing_file.is_some();
        let table = match self.l2_table_if_any(guest)? {
            Some(table) => table,
            None if hides => self.l2_table(guest)?,
            None => return Ok(next),
        };
        if self.header.version < 3 {
            return self.zero_data(guest, next);
        }
        let span = self.span_in(table, guest, len);
        let words = self.words();
        let cluster = self.header.cluster_bits;
        let unit = self.unit_bytes();
        let part = (guest & cluster.mask(), len);
        let page = self.pages.get(table)?;
        for i in 0..span.count {
            let at = span.first.saturating_add(i).saturating_mul(words);
            let old = entry(page, at);
            placed(old)?;
            if old == 0 && !hides {
                continue;
            }
            if words == 1 {
                set_entry(page, at, old | ALL_ZEROS);
            } else {
                let mask = subclusters(part, i.saturating_mul(cluster.size_bytes()), unit);
                let at = at.saturating_add(1);
                let old = entry(page, at);
                set_entry(page, at, (old & !mask) | (mask << SUBCLUSTERS));
            }
        }
        Ok(next)
    }

    /// Writes zeros to a place of the image, which read as zeros.
    fn write_zeros(&self, guest: u64, place: Place) -> Result<(), CreateError> {
        let Some(cipher) = &self.cipher else {
            return Ok(self.image.write_zeroes(place.offset, place.len)?);
        };
        let mut done = 0;
        while done < place.len {
            let at = DataPlace {
                host: place.offset.saturating_add(done),
                guest: guest.saturating_add(done),
            };
            let len = place.len.saturating_sub(done).min(ZEROS_BYTES);
            let mut zeros = zeroed(len)?;
            cipher.encipher(at, &mut zeros)?;
            self.image.write_at(at.host, &zeros)?;
            done = done.saturating_add(len);
        }
        Ok(())
    }

    /// Zeros as data, for version 2, which has no flag.
    fn zero_data(&mut self, guest: u64, end: u64) -> Result<u64, CreateError> {
        let mut at = guest;
        while at < end {
            let place = self.place(at, end.saturating_sub(at))?;
            self.write_zeros(at, place)?;
            at = at.saturating_add(place.len);
        }
        Ok(end)
    }
}

/// The host offset of an entry that has a cluster of its own; what is stored compressed keeps no place for data.
const fn placed(word: u64) -> Result<Option<u64>, CreateError> {
    if word & COMPRESSED != 0 {
        return Err(CreateError::Range);
    }
    match word & OFFSET_MASK {
        0 => Ok(None),
        offset => Ok(Some(offset)),
    }
}

/// The subclusters, of the cluster that starts `offset` bytes into a span, that lie in `part` of the span.
fn subclusters(part: (u64, u64), offset: u64, unit: u64) -> u64 {
    let (start, len) = part;
    let number = |byte: u64| {
        let n = byte.saturating_sub(offset).checked_div(unit).unwrap_or(0);
        n.min(u64::from(SUBCLUSTERS))
    };
    let (from, to) = (number(start), number(start.saturating_add(len)));
    let below = |n: u64| {
        1_u64
            .checked_shl(u32::try_from(n).unwrap_or(64))
            .unwrap_or(0)
    };
    below(to).wrapping_sub(below(from))
}
