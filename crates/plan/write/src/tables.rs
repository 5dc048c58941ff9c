//! L1 and L2 tables of the active state.

use crate::counts::Counts;
use crate::sorted::Sorted;
use crate::{CACHE_BYTES, WriteError, zeroed};
use alloc::vec::Vec;
use core::ops::Range;
use instar_plan_txn::read_l1;
use instar_qcow2::Header;
use instar_qcow2::entries::{COPIED, L1Entry};
use instar_storage::StorageMut;

/// What does not tear.
const SECTOR: usize = 512;

/// An L2 table in memory.
#[derive(Debug)]
struct Table {
    place: u64,
    bytes: Vec<u8>,
    /// What differs from the file's.
    dirty: Range<usize>,
    /// The L1 table in the file does not name it.
    fresh: bool,
}

impl Table {
    fn is_dirty(&self) -> bool {
        self.fresh || !self.dirty.is_empty()
    }
}

/// The tables.
#[derive(Debug)]
pub struct Tables {
    l1: Vec<u64>,
    l1_place: u64,
    entry_bytes: usize,
    per_table: u64,
    cluster: u64,
    tables: Sorted<usize, Table>,
    /// Bytes of tables in memory, unless that is less than four of them.
    pub cache: u64,
}

impl Tables {
    /// Reads the L1 table.
    pub fn read<S: StorageMut>(image: &S, header: &Header) -> Result<Self, WriteError> {
        let l1 = read_l1(image, header, header.l1_table_offset, header.l1_size)?;
        Ok(Self {
            l1,
            l1_place: header.l1_table_offset.get(),
            entry_bytes: usize::try_from(header.l2_entry_bytes()).unwrap_or(8),
            per_table: header.l2_entries().max(1),
            cluster: header.cluster_bits.size_bytes(),
            tables: Sorted::default(),
            cache: CACHE_BYTES,
        })
    }

    /// Where L2 tables lie.
    pub fn places(&self) -> impl Iterator<Item = u64> {
        let entries = self
            .l1
            .iter()
            .map(|entry| L1Entry(*entry).l2_offset().get());
        entries.filter(|place| *place != 0)
    }

    /// Index in the L1 table, and the first byte in the L2 table, of a guest cluster's entry.
    fn find(&self, cluster: u64) -> (usize, usize) {
        let index = cluster.checked_div(self.per_table).unwrap_or(0);
        let at = cluster.checked_rem(self.per_table).unwrap_or(0);
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        (index, at.saturating_mul(self.entry_bytes))
    }

    /// Reads a table, if there is one and it is not in memory.
    fn load<S: StorageMut>(&mut self, image: &S, index: usize) -> Result<bool, WriteError> {
        if self.tables.get(index).is_some() {
            return Ok(true);
        }
        let entry = self.l1.get(index).copied();
        let entry = L1Entry(entry.ok_or(WriteError::PastEnd)?);
        if entry.is_unallocated() {
            return Ok(false);
        }
        let place = entry.l2_offset().get();
        if place & self.cluster.saturating_sub(1) != 0 {
            let what = "L2 table is not cluster aligned";
            return Err(WriteError::Corrupt { what });
        }
        self.make_room();
        let mut bytes = zeroed(self.cluster)?;
        image.read_at(place, &mut bytes)?;
        let table = Table {
            place,
            bytes,
            dirty: 0..0,
            fresh: false,
        };
        self.tables.insert(index, table);
        Ok(true)
    }

    /// Lets go of tables that are as in the file, if there are many.
    fn make_room(&mut self) {
        if self.bytes_of(self.tables.len()) >= self.budget() {
            self.tables.retain(|table| table.is_dirty());
        }
    }

    fn bytes_of(&self, tables: usize) -> u64 {
        (tables as u64).saturating_mul(self.cluster)
    }

    fn budget(&self) -> u64 {
        self.cache.max(self.cluster.saturating_mul(4))
    }

    /// Changed tables take more memory than they should.
    pub fn is_full(&self) -> bool {
        let dirty = self
            .tables
            .values()
            .filter(|table| table.is_dirty())
            .count();
        self.bytes_of(dirty) >= self.budget()
    }

    /// Something is to be written.
    pub fn is_dirty(&self) -> bool {
        self.tables.values().any(Table::is_dirty)
    }

    /// Whether there is a table for a guest cluster.
    pub fn is_there(&self, cluster: u64) -> Result<bool, WriteError> {
        let (index, _) = self.find(cluster);
        let entry = self.l1.get(index).copied();
        let entry = L1Entry(entry.ok_or(WriteError::PastEnd)?);
        Ok(!entry.is_unallocated())
    }

    /// The entry of a guest cluster: 64 bits, and 64 more if entries are extended.
    pub fn get<S: StorageMut>(
        &mut self,
        image: &S,
        cluster: u64,
    ) -> Result<(u64, u64), WriteError> {
        let (index, at) = self.find(cluster);
        if !self.load(image, index)? {
            return Ok((0, 0));
        }
        let bytes = self.tables.get(index).map(|table| table.bytes.as_slice());
        let entry = bytes.and_then(|bytes| bytes.get(at..)).unwrap_or_default();
        let word = |at: usize| {
            let word = entry.get(at..).and_then(|rest| rest.first_chunk::<8>());
            word.map_or(0, |word| u64::from_be_bytes(*word))
        };
        let second = if self.entry_bytes > 8 { word(8) } else { 0 };
        Ok((word(0), second))
    }

    /// Makes sure that a guest cluster's entry can be set: in a table of its own.
    pub fn own<S: StorageMut>(
        &mut self,
        image: &S,
        counts: &mut Counts,
        cluster: u64,
    ) -> Result<(), WriteError> {
        let (index, _) = self.find(cluster);
        let loaded = self.load(image, index)?;
        let entry = self.l1.get(index).copied();
        let entry = L1Entry(entry.ok_or(WriteError::PastEnd)?);
        if loaded && entry.is_copied() {
            return Ok(());
        }
        let bytes = match self.tables.remove(index) {
            Some(table) => table.bytes,
            None => zeroed(self.cluster)?,
        };
        let place = counts.allocate(image, 1)?;
        if !entry.is_unallocated() {
            // A snapshot's, which keeps it.
            let first = entry.l2_offset().get().checked_div(self.cluster);
            counts.drop_later(first.unwrap_or(0), 1);
        }
        let table = Table {
            place,
            bytes,
            dirty: 0..0,
            fresh: true,
        };
        self.tables.insert(index, table);
        if let Some(entry) = self.l1.get_mut(index) {
            *entry = place | COPIED;
        }
        Ok(())
    }

    /// Sets an entry in a table that is the caller's.
    pub fn set(&mut self, cluster: u64, words: (u64, u64)) {
        let (index, at) = self.find(cluster);
        let Some(table) = self.tables.get_mut(index) else {
            return;
        };
        let end = at.saturating_add(self.entry_bytes);
        let raw = words.0.to_be_bytes().into_iter();
        let raw = raw.chain(words.1.to_be_bytes());
        let slot = table.bytes.get_mut(at..end).unwrap_or_default();
        slot.iter_mut().zip(raw).for_each(|(to, from)| *to = from);
        table.dirty = if table.dirty.is_empty() {
            at..end
        } else {
            table.dirty.start.min(at)..table.dirty.end.max(end)
        };
    }

    /// Step 2 of a commit: tables that nothing names yet.
    pub fn write_fresh<S: StorageMut>(&mut self, image: &S) -> Result<(), WriteError> {
        for table in self.tables.values().filter(|table| table.fresh) {
            image.write_at(table.place, &table.bytes)?;
        }
        Ok(())
    }

    /// Step 3 of a commit: what leads to what is new.
    pub fn write_links<S: StorageMut>(&mut self, image: &S) -> Result<(), WriteError> {
        for (index, table) in self.tables.iter() {
            if table.fresh {
                let entry = self.l1.get(*index).copied().unwrap_or(0);
                let at = (*index as u64).saturating_mul(8);
                let at = self.l1_place.saturating_add(at);
                image.write_at(at, &entry.to_be_bytes())?;
            } else if !table.dirty.is_empty() {
                let start = table.dirty.start & !SECTOR.saturating_sub(1);
                let end = table.dirty.end.next_multiple_of(SECTOR);
                let part = table.bytes.get(start..end).unwrap_or_default();
                image.write_at(table.place.saturating_add(start as u64), part)?;
            }
        }
        Ok(())
    }

    /// Step 3 of a commit is durable.
    pub fn settled(&mut self) {
        for table in self.tables.values_mut() {
            (table.fresh, table.dirty) = (false, 0..0);
        }
    }
}
