//! Bitmaps that record writes.
//!
//! They are marked as in use while the image is written to, which other programs take for the truth that they miss
//! something. What was written is collected as ranges; [`WriteImage::finish`] sets their bits and takes the mark off
//! again. A bitmap that makes no sense keeps the mark.

use crate::counts::Counts;
use crate::image::WriteImage;
use crate::place::Packed;
use crate::sorted::Sorted;
use crate::tables::Tables;
use crate::{WriteError, zeroed};
use alloc::vec::Vec;
use instar_qcow2::Header;
use instar_qcow2::bitmaps::BitmapTableEntry;
use instar_storage::StorageMut;

/// Flag: it misses what was written since it was saved.
const FLAG_IN_USE: u32 = 1 << 0;
/// Flag: it records writes.
const FLAG_AUTO: u32 = 1 << 1;
/// Bytes of a directory entry before what varies.
const FIXED_BYTES: usize = 24;
/// Where the flags are in an entry.
const FLAGS_AT: usize = 12;
/// Granularities that a bitmap may have, as logarithms.
const KNOWN_GRANULARITIES: core::ops::RangeInclusive<u32> = 9..=31;
/// Ranges that are collected before their bits are set.
const MOST_RANGES: usize = 1 << 15;

/// A bitmap that records.
#[derive(Clone, Copy, Debug)]
struct Recording {
    /// Where its flags are in the file.
    flags_at: u64,
    /// They, without the mark.
    flags: u32,
    table_offset: u64,
    table_size: u32,
    granularity_bits: u32,
    /// It cannot be used: it stays marked.
    broken: bool,
}

/// What has been written, for the bitmaps that want to know.
#[derive(Debug)]
pub struct Recorder {
    bitmaps: Vec<Recording>,
    /// Ranges of bytes: start and end; they neither overlap nor adjoin.
    ranges: Sorted<u64, u64>,
    /// Bytes that no bitmap tells apart, as a logarithm.
    granularity_bits: u32,
}

impl Recorder {
    /// Marks the bitmaps that record writes as in use; flushes if there are any.
    ///
    /// # Errors
    /// The store's.
    pub fn open<S: StorageMut>(image: &S, header: &Header) -> Result<Self, WriteError> {
        let mut recorder = Self {
            bitmaps: Vec::new(),
            ranges: Sorted::default(),
            granularity_bits: 31,
        };
        let Some(directory) = header.extensions.bitmaps else {
            return Ok(recorder);
        };
        let start = directory.directory_offset.get();
        let mut bytes = zeroed(directory.directory_size)?;
        image.read_at(start, &mut bytes)?;
        let mut at = 0_usize;
        while let Some(entry) = bytes.get(at..).filter(|rest| rest.len() >= FIXED_BYTES) {
            let flags = be32(entry, FLAGS_AT);
            if flags & FLAG_AUTO != 0 && flags & FLAG_IN_USE == 0 {
                let place = start.saturating_add(at as u64);
                let flags_at = place.saturating_add(FLAGS_AT as u64);
                image.write_at(flags_at, &(flags | FLAG_IN_USE).to_be_bytes())?;
                recorder.add(entry, flags_at);
            }
            let name = be32(entry, 16) & 0xffff;
            let extra = be32(entry, 20);
            let varies = (name as usize).saturating_add(extra as usize);
            let len = FIXED_BYTES.saturating_add(varies).next_multiple_of(8);
            at = at.saturating_add(len);
        }
        if !recorder.bitmaps.is_empty() {
            image.flush()?;
        }
        Ok(recorder)
    }

    fn add(&mut self, entry: &[u8], flags_at: u64) {
        let granularity_bits = be32(entry, 16) >> 16 & 0xff;
        if KNOWN_GRANULARITIES.contains(&granularity_bits) {
            self.granularity_bits = self.granularity_bits.min(granularity_bits);
        }
        let table = entry.first_chunk::<8>().copied().unwrap_or_default();
        self.bitmaps.push(Recording {
            flags_at,
            flags: be32(entry, FLAGS_AT),
            table_offset: u64::from_be_bytes(table),
            table_size: be32(entry, 8),
            granularity_bits,
            broken: !KNOWN_GRANULARITIES.contains(&granularity_bits),
        });
    }

    /// These bytes are written.
    pub fn note(&mut self, guest: u64, len: u64) {
        if self.bitmaps.is_empty() || len == 0 {
            return;
        }
        let mask = u64::MAX.checked_shl(self.granularity_bits).unwrap_or(0);
        let mut start = guest & mask;
        let mut end = guest.saturating_add(len).saturating_sub(1) | !mask;
        end = end.saturating_add(1);
        // What it touches becomes one with it.
        while let Some(&(from, to)) = self.ranges.last_to(end) {
            if to < start {
                break;
            }
            (start, end) = (start.min(from), end.max(to));
            self.ranges.remove(from);
        }
        self.ranges.insert(start, end);
    }

    /// There are bitmaps that record.
    pub const fn records(&self) -> bool {
        !self.bitmaps.is_empty()
    }

    /// Whether writes at `guest` are noted, and for how many of the `len` bytes, which are not 0, that is the answer.
    pub fn knows(&self, guest: u64, len: u64) -> (bool, u64) {
        if self.bitmaps.is_empty() {
            return (true, len);
        }
        if let Some((_, end)) = self.ranges.last_to(guest)
            && *end > guest
        {
            return (true, end.saturating_sub(guest).min(len));
        }
        let next = self.ranges.iter().find(|(start, _)| *start > guest);
        let until = next.map_or(u64::MAX, |(start, _)| *start);
        (false, until.saturating_sub(guest).min(len))
    }

    /// There are as many ranges as there should be.
    pub fn is_full(&self) -> bool {
        self.ranges.len() >= MOST_RANGES
    }
}

/// A part of a bitmap's table that is to be written.
struct NewEntry {
    at: u64,
    entry: u64,
}

impl<S: StorageMut> WriteImage<'_, S> {
    /// Ends the writing: everything is durable, and bitmaps that record have recorded it. Without it they stay marked
    /// as in use, which other programs call inconsistent.
    ///
    /// # Errors
    /// The store's; there is no room for a bitmap's bits. Data is as after [`Self::commit`], or before it.
    pub fn finish(&mut self) -> Result<(), WriteError> {
        self.flush()?;
        if self.recorder.bitmaps.is_empty() {
            return Ok(());
        }
        self.record()?;
        self.flush()?;
        for bitmap in self.recorder.bitmaps.iter().filter(|b| !b.broken) {
            let flags = bitmap.flags.to_be_bytes();
            self.image.write_at(bitmap.flags_at, &flags)?;
        }
        self.recorder.bitmaps.clear();
        Ok(self.image.flush()?)
    }

    /// As [`Self::finish`] where something that was given a place is not written: what was not committed is as it was
    /// before.
    ///
    /// # Errors
    /// As there.
    pub fn abandon(&mut self) -> Result<(), WriteError> {
        self.counts = Counts::read(self.image, &self.header)?;
        self.tables = Tables::read(self.image, &self.header)?;
        self.packed = Packed::default();
        self.finish()
    }

    /// Sets the bits of what was collected. The bitmaps are in use, so that nobody relies on them meanwhile.
    pub(crate) fn record(&mut self) -> Result<(), WriteError> {
        let ranges = core::mem::take(&mut self.recorder.ranges);
        let mut bitmaps = core::mem::take(&mut self.recorder.bitmaps);
        let mut entries = Vec::new();
        let mut result = Ok(());
        for bitmap in bitmaps.iter_mut().filter(|bitmap| !bitmap.broken) {
            if result.is_ok() {
                result = self.set_ranges(bitmap, &ranges, &mut entries);
            }
        }
        self.recorder.bitmaps = bitmaps;
        result?;
        // Clusters have their refcounts before something leads to them.
        self.commit_tables()?;
        for NewEntry { at, entry } in entries {
            self.image.write_at(at, &entry.to_be_bytes())?;
        }
        Ok(())
    }

    fn set_ranges(
        &mut self,
        bitmap: &mut Recording,
        ranges: &Sorted<u64, u64>,
        entries: &mut Vec<NewEntry>,
    ) -> Result<(), WriteError> {
        let bits = bitmap.granularity_bits;
        let per_cluster = self.header.cluster_bits.size_bytes().saturating_mul(8);
        // The cluster in memory: its index, whether it is new, its place, its bits.
        let mut open: Option<Cluster> = None;
        for (start, end) in ranges.iter() {
            let end = (*end).min(self.len_bytes());
            let mut bit = start.checked_shr(bits).unwrap_or(0);
            let last = end.saturating_sub(1).checked_shr(bits).unwrap_or(0);
            while bit <= last {
                let index = bit.checked_div(per_cluster).unwrap_or(0);
                if open.as_ref().is_none_or(|cluster| cluster.index != index) {
                    self.close(open.take())?;
                    open = match self.open_cluster(bitmap, index, entries)? {
                        Some(cluster) => Some(cluster),
                        None => return Ok(()),
                    };
                }
                let next = index.saturating_add(1).saturating_mul(per_cluster);
                let until = last.saturating_add(1).min(next);
                let first = index.saturating_mul(per_cluster);
                if let Some(cluster) = &mut open {
                    set_bits(
                        &mut cluster.bytes,
                        bit.saturating_sub(first),
                        until.saturating_sub(first),
                    );
                }
                bit = until;
            }
        }
        self.close(open)
    }

    /// Reads a bitmap's cluster, or gives it one. Nothing if the bitmap cannot be used.
    fn open_cluster(
        &mut self,
        bitmap: &mut Recording,
        index: u64,
        entries: &mut Vec<NewEntry>,
    ) -> Result<Option<Cluster>, WriteError> {
        let bits = self.header.cluster_bits;
        let at = bitmap.table_offset.saturating_add(index.saturating_mul(8));
        let fits = index < u64::from(bitmap.table_size) && bits.is_aligned(bitmap.table_offset);
        if !fits || bitmap.table_offset == 0 || !self.may_write(at) {
            bitmap.broken = true;
            return Ok(None);
        }
        let mut raw = [0; 8];
        self.image.read_at(at, &mut raw)?;
        let entry = BitmapTableEntry::from_be_bytes(raw);
        let host = entry.host_offset().get();
        if !entry.is_valid(&self.header) || (host != 0 && !self.may_write(host)) {
            bitmap.broken = true;
            return Ok(None);
        }
        let mut bytes = zeroed(bits.size_bytes())?;
        if host == 0 && entry.all_ones() {
            // All is set, and stays so.
            return Ok(Some(Cluster {
                index,
                host: 0,
                bytes,
            }));
        }
        let host = if host == 0 {
            let host = self.counts.allocate(self.image, 1)?;
            entries.push(NewEntry { at, entry: host });
            host
        } else {
            self.image.read_at(host, &mut bytes)?;
            host
        };
        Ok(Some(Cluster { index, host, bytes }))
    }

    fn close(&self, cluster: Option<Cluster>) -> Result<(), WriteError> {
        match cluster {
            Some(Cluster { host, bytes, .. }) if host != 0 => {
                Ok(self.image.write_at(host, &bytes)?)
            }
            _ => Ok(()),
        }
    }

    /// Whether no metadata that guest data depends on lies there.
    fn may_write(&self, at: u64) -> bool {
        let cluster = at >> self.header.cluster_bits.get();
        self.metadata.binary_search(&cluster).is_err()
    }
}

/// A cluster of a bitmap.
struct Cluster {
    /// Its number in the bitmap.
    index: u64,
    /// Where it lies; 0 if all its bits are set.
    host: u64,
    bytes: Vec<u8>,
}

/// Sets the bits from `first` on and before `end`, the lowest of a byte first.
fn set_bits(bytes: &mut [u8], first: u64, end: u64) {
    let mut bit = first;
    while bit < end {
        let index = usize::try_from(bit >> 3).unwrap_or(usize::MAX);
        let whole = bit & 7 == 0 && end.saturating_sub(bit) >= 8;
        let Some(byte) = bytes.get_mut(index) else {
            return;
        };
        if whole {
            *byte = u8::MAX;
            bit = bit.saturating_add(8);
        } else {
            *byte |= 1 << (bit & 7);
            bit = bit.saturating_add(1);
        }
    }
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
    word.map_or(0, |word| u32::from_be_bytes(*word))
}
