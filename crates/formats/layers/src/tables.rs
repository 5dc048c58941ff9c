//! L1 and L2 tables, read through a window of bounded size.
//!
//! The window holds the *slices* of L2 tables that follow each other in the virtual disk. A slice is a table, or
//! 64 KiB of one that is larger. Whoever goes through a disk in order gets more of them with each miss, by one
//! batch of reads in which neighbours in the file are one read; whoever jumps gets one.

use crate::error::{Corruption, DataError};
use alloc::vec::Vec;
use instar_qcow2::entries::L1Entry;
use instar_storage::{Read, Storage};

/// Most bytes of a slice, and of the piece of the L1 table in memory.
const PIECE_BYTES: u64 = 64 << 10;
/// Most slices of a window, allocated or not.
const MAX_SLICES: usize = 8192;
/// How much the window grows from one miss in order to the next.
const GROWTH: u64 = 8;

/// Where a slice is.
#[derive(Clone, Copy, Debug)]
enum Slice {
    /// The L1 entry names no table.
    Unallocated,
    /// In the buffer from this byte on; the table starts at `l2_offset` of the file.
    At { pos: usize, l2_offset: u64 },
    /// The table starts inside a cluster.
    Unaligned { offset: u64, l1_index: u64 },
}

/// A slice that was looked up.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Found<'a> {
    /// No table: nothing of it is allocated.
    Unallocated,
    /// Its entries, and where its table starts.
    Entries { bytes: &'a [u8], l2_offset: u64 },
}

/// Where the tables are and how they are cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    /// First byte of the L1 table.
    pub l1_offset: u64,
    /// Its entries; what lies past them is not allocated.
    pub l1_entries: u64,
    /// Bytes of an L2 table: a cluster.
    pub table_bytes: u64,
    /// Bytes of the disk that a table maps.
    pub table_span: u64,
    /// Slices of the whole disk.
    slices: u64,
}

impl Geometry {
    pub(crate) fn new(l1: (u64, u64), table_bytes: u64, table_span: u64, disk_bytes: u64) -> Self {
        let mut geometry = Self {
            l1_offset: l1.0,
            l1_entries: l1.1,
            table_bytes,
            table_span,
            slices: 0,
        };
        geometry.slices = disk_bytes.div_ceil(geometry.slice_span().max(1));
        geometry
    }

    fn slices_per_table(&self) -> u64 {
        self.table_bytes.div_ceil(PIECE_BYTES).max(1)
    }

    pub(crate) fn slice_bytes(&self) -> u64 {
        self.table_bytes.min(PIECE_BYTES)
    }

    /// Bytes of the disk that a slice maps; a power of two.
    pub(crate) fn slice_span(&self) -> u64 {
        let per_table = self.slices_per_table();
        self.table_span.checked_div(per_table).unwrap_or(1).max(1)
    }

    /// The slice that maps byte `guest`.
    pub(crate) fn slice_of(&self, guest: u64) -> u64 {
        guest >> self.slice_span().trailing_zeros()
    }
}

/// The tables of one image state.
#[derive(Debug)]
pub(crate) struct Tables {
    geometry: Geometry,
    /// Most bytes of the buffer; one slice fits in any case.
    budget: u64,
    /// Index of the first slice in the window.
    first: u64,
    slices: Vec<Slice>,
    buf: Vec<u8>,
    /// The slice after the last window, and how many tables that had.
    next: u64,
    ahead: u64,
    l1_first: u64,
    l1: Vec<u8>,
}

impl Tables {
    pub(crate) const fn new(geometry: Geometry, budget: u64) -> Self {
        Self {
            geometry,
            budget,
            first: 0,
            slices: Vec::new(),
            buf: Vec::new(),
            next: 0,
            ahead: 1,
            l1_first: 0,
            l1: Vec::new(),
        }
    }

    /// Sets the most bytes of L2 tables held from now on.
    pub(crate) const fn set_budget(&mut self, bytes: u64) {
        self.budget = bytes;
    }

    pub(crate) const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// First slice past the window.
    pub(crate) const fn end(&self) -> u64 {
        self.first.saturating_add(self.slices.len() as u64)
    }

    /// Slice `index`, which the window has.
    ///
    /// # Errors
    /// Its table is not at a cluster's start.
    pub(crate) fn get(&self, index: u64) -> Result<Found<'_>, DataError> {
        let at = usize::try_from(index.saturating_sub(self.first)).unwrap_or(usize::MAX);
        match self.slices.get(at).copied() {
            Some(Slice::Unaligned { offset, l1_index }) => {
                Err(DataError::Corrupt(Corruption::L2TableUnaligned {
                    offset,
                    l1_index,
                }))
            }
            Some(Slice::At { pos, l2_offset }) => {
                let len = usize::try_from(self.geometry.slice_bytes()).unwrap_or(0);
                let bytes = self.buf.get(pos..).and_then(|buf| buf.get(..len));
                let bytes = bytes.unwrap_or_default();
                Ok(Found::Entries { bytes, l2_offset })
            }
            Some(Slice::Unallocated) | None => Ok(Found::Unallocated),
        }
    }

    /// Sees to it that slice `index`, which the disk has, is in the window.
    ///
    /// # Errors
    /// The file failed, or there is no memory.
    pub(crate) fn fetch<S: Storage>(&mut self, store: &S, index: u64) -> Result<(), DataError> {
        if index >= self.first && index < self.end() {
            return Ok(());
        }
        let slice_bytes = self.geometry.slice_bytes();
        let most = self.budget.checked_div(slice_bytes).unwrap_or(1).max(1);
        let ahead = if index == self.next {
            self.ahead.saturating_mul(GROWTH).min(most)
        } else {
            1
        };
        let planned = self.plan(store, index, ahead)?;
        if let Err(e) = self.read(store, &planned) {
            if planned.len() == 1 {
                self.slices.clear();
                return Err(e);
            }
            // Only a failure of the slice that is asked for counts.
            let planned = self.plan(store, index, 1)?;
            if let Err(e) = self.read(store, &planned) {
                self.slices.clear();
                return Err(e);
            }
        }
        self.ahead = ahead;
        self.next = self.end();
        Ok(())
    }

    /// Fills `slices` from `index` on, with at most `tables` that are to be read; gives their places in the file.
    fn plan<S: Storage>(
        &mut self,
        store: &S,
        index: u64,
        tables: u64,
    ) -> Result<Vec<u64>, DataError> {
        let geometry = self.geometry;
        let (per_table, slice_bytes) = (geometry.slices_per_table(), geometry.slice_bytes());
        let mut planned: Vec<u64> = Vec::new();
        self.first = index;
        self.slices.clear();
        let mut slice = index;
        while slice < geometry.slices && self.slices.len() < MAX_SLICES {
            let l1_index = slice.checked_div(per_table).unwrap_or(slice);
            // One piece of the L1 table is enough for a window.
            if slice != index && !self.has_l1(l1_index) {
                break;
            }
            let entry = self.l1_entry(store, l1_index)?;
            let offset = entry.l2_offset().get();
            let state = if offset == 0 {
                Slice::Unallocated
            } else if offset & geometry.table_bytes.saturating_sub(1) != 0 {
                Slice::Unaligned { offset, l1_index }
            } else if planned.len() as u64 >= tables {
                break;
            } else {
                let within = slice.checked_rem(per_table).unwrap_or(0);
                let within = within.saturating_mul(slice_bytes);
                let number = planned.len() as u64;
                let pos = usize::try_from(number.saturating_mul(slice_bytes));
                planned.push(offset.saturating_add(within));
                Slice::At {
                    pos: pos.map_err(|_| DataError::OutOfMemory)?,
                    l2_offset: offset,
                }
            };
            self.slices.push(state);
            slice = slice.saturating_add(1);
        }
        Ok(planned)
    }

    /// Reads the slices at `places` into the buffer, one after the other.
    fn read<S: Storage>(&mut self, store: &S, places: &[u64]) -> Result<(), DataError> {
        let slice_bytes = self.geometry.slice_bytes();
        let bytes = slice_bytes.saturating_mul(places.len() as u64);
        let bytes = usize::try_from(bytes).map_err(|_| DataError::OutOfMemory)?;
        grow(&mut self.buf, bytes)?;
        let mut reads: Vec<Read<'_>> = Vec::new();
        let mut left = self.buf.get_mut(..bytes).unwrap_or_default();
        let mut rest = places;
        while let Some(first) = rest.first() {
            let follows = (*first..)
                .step_by(usize::try_from(slice_bytes).unwrap_or(usize::MAX))
                .zip(rest)
                .take_while(|(expected, place)| expected == *place)
                .count();
            let (_, later) = rest.split_at(follows.min(rest.len()));
            let len = slice_bytes.saturating_mul(follows as u64);
            let len = usize::try_from(len).unwrap_or(usize::MAX).min(left.len());
            let (buf, after) = left.split_at_mut(len);
            reads.push(Read {
                offset: *first,
                buf,
            });
            (left, rest) = (after, later);
        }
        if !reads.is_empty() {
            store.read_batch(&mut reads)?;
        }
        Ok(())
    }

    fn has_l1(&self, index: u64) -> bool {
        let entries = (self.l1.len() as u64) >> 3;
        index >= self.geometry.l1_entries
            || (index >= self.l1_first && index < self.l1_first.saturating_add(entries))
    }

    fn l1_entry<S: Storage>(&mut self, store: &S, index: u64) -> Result<L1Entry, DataError> {
        if index >= self.geometry.l1_entries {
            return Ok(L1Entry(0));
        }
        if !self.has_l1(index) {
            let left = self.geometry.l1_entries.saturating_sub(index);
            let bytes = left.saturating_mul(8).min(PIECE_BYTES);
            let bytes = usize::try_from(bytes).map_err(|_| DataError::OutOfMemory)?;
            let at = self
                .geometry
                .l1_offset
                .saturating_add(index.saturating_mul(8));
            self.l1.clear();
            let mut piece = core::mem::take(&mut self.l1);
            grow(&mut piece, bytes)?;
            store.read_at(at, &mut piece)?;
            (self.l1, self.l1_first) = (piece, index);
        }
        let at = usize::try_from(index.saturating_sub(self.l1_first)).unwrap_or(usize::MAX);
        let entry = self.l1.as_chunks::<8>().0.get(at).copied();
        Ok(L1Entry::from_be_bytes(entry.unwrap_or_default()))
    }
}

/// Makes `buf` at least `len` bytes long.
pub(crate) fn grow(buf: &mut Vec<u8>, len: usize) -> Result<(), DataError> {
    let more = len.saturating_sub(buf.len());
    buf.try_reserve_exact(more)
        .map_err(|_| DataError::OutOfMemory)?;
    if more > 0 {
        buf.resize(len, 0);
    }
    Ok(())
}
