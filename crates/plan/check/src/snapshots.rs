//! Internal snapshots: the snapshot table and the L1 tables it names.
//!
//! qcow2 "Snapshots". The table is read through a small buffer and its entries
//! are not kept: a check and each pass read it again.

use crate::counter::Counter;
use crate::run::{EFBIG, EINVAL, Run, TABLE_BYTES, zeroed};
use crate::{CheckError, MessageKind, Reporter};
use alloc::vec::Vec;
use instar_qcow2::header::{MAX_L1_BYTES, MAX_SNAPSHOTS};
use instar_storage::{Storage, StorageError};

/// Bytes of an entry before its extra data.
const ENTRY_BYTES: u64 = 40;
/// Extra data that version 3 demands.
const MIN_EXTRA_BYTES: u32 = 16;
/// QEMU: the most extra data of an entry.
const MAX_EXTRA_BYTES: u32 = 1024;
/// QEMU: the most bytes of a snapshot table.
const MAX_TABLE_BYTES: u64 = 1024 * MAX_SNAPSHOTS as u64;

/// An entry of the snapshot table.
struct Entry {
    l1_offset: u64,
    l1_size: u32,
    id_len: u16,
    name_len: u16,
    extra_bytes: u32,
    /// Where the id starts; the name follows.
    id_offset: u64,
}

impl Entry {
    /// First byte after the entry, without padding.
    fn end(&self) -> u64 {
        self.id_offset
            .saturating_add(self.id_len.into())
            .saturating_add(self.name_len.into())
    }
}

/// The snapshot table, read ahead.
struct Table {
    buf: Vec<u8>,
    start: u64,
    filled: bool,
}

impl Table {
    fn new() -> Result<Self, CheckError> {
        Ok(Self {
            buf: zeroed(TABLE_BYTES)?,
            start: 0,
            filled: false,
        })
    }

    /// `len` bytes at `offset`; at most [`TABLE_BYTES`].
    fn bytes<S: Storage>(
        &mut self,
        storage: &S,
        offset: u64,
        len: usize,
    ) -> Result<&[u8], StorageError> {
        crate::run::check_range(offset, len as u64)?;
        let end = offset.saturating_add(len as u64);
        if !self.filled
            || offset < self.start
            || end > self.start.saturating_add(self.buf.len() as u64)
        {
            self.filled = false;
            storage.read_at(offset, &mut self.buf)?;
            self.start = offset;
            self.filled = true;
        }
        let from = usize::try_from(offset.saturating_sub(self.start)).unwrap_or(usize::MAX);
        Ok(self
            .buf
            .get(from..)
            .and_then(|rest| rest.get(..len))
            .unwrap_or_default())
    }

    /// The entry at `offset`, which is a multiple of 8.
    fn entry<S: Storage>(&mut self, storage: &S, offset: u64) -> Result<Entry, StorageError> {
        let bytes = self.bytes(storage, offset, 40)?;
        let be64 = |at: usize| {
            bytes
                .get(at..)
                .and_then(|b| b.first_chunk())
                .map_or(0, |b| u64::from_be_bytes(*b))
        };
        let be32 = |at: usize| {
            bytes
                .get(at..)
                .and_then(|b| b.first_chunk())
                .map_or(0, |b| u32::from_be_bytes(*b))
        };
        let be16 = |at: usize| {
            bytes
                .get(at..)
                .and_then(|b| b.first_chunk())
                .map_or(0, |b| u16::from_be_bytes(*b))
        };
        let extra_bytes = be32(36);
        Ok(Entry {
            l1_offset: be64(0),
            l1_size: be32(8),
            id_len: be16(12),
            name_len: be16(14),
            extra_bytes,
            id_offset: offset
                .saturating_add(ENTRY_BYTES)
                .saturating_add(extra_bytes.into()),
        })
    }

    /// A text, up to its first NUL.
    fn text<S: Storage>(
        &mut self,
        storage: &S,
        offset: u64,
        len: u16,
    ) -> Result<Vec<u8>, StorageError> {
        let bytes = self.bytes(storage, offset, len.into())?;
        Ok(bytes
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default()
            .to_vec())
    }
}

/// The next multiple of 8, where an entry starts.
const fn entry_start(offset: u64) -> u64 {
    offset.saturating_add(7) & !7
}

impl<S: Storage, T: Counter, R: Reporter> Run<'_, S, T, R> {
    /// Judges the snapshot table before anything is counted.
    pub(crate) fn check_snapshot_table(&mut self) -> Result<(), CheckError> {
        let count = self.header.nb_snapshots;
        let start = self.header.snapshots_offset.get();
        if count > MAX_SNAPSHOTS {
            self.prefixed(format_args!("ERROR snapshot table too large"));
            return Err(self.overhanging(count.saturating_sub(MAX_SNAPSHOTS)));
        }
        let most = i64::MAX
            .unsigned_abs()
            .saturating_sub(ENTRY_BYTES.saturating_mul(count.into()));
        if start > most || !self.header.cluster_bits.is_aligned(start) {
            self.prefixed(format_args!("ERROR snapshot table offset invalid"));
            return Err(CheckError::Failed { errno: EINVAL });
        }
        if count == 0 {
            return Ok(());
        }
        let incomplete = self.read_snapshot_table(start, count)?;
        if incomplete > 0 {
            self.tell_incomplete(start, count)?;
        }
        Ok(())
    }

    /// Reads the table to its end; gives how many entries are incomplete.
    fn read_snapshot_table(&mut self, start: u64, count: u32) -> Result<u32, CheckError> {
        let mut table = Table::new()?;
        let (mut offset, mut incomplete) = (start, 0_u32);
        for index in 0..count {
            let entry = table
                .entry(self.storage, entry_start(offset))
                .map_err(|e| self.table_failed(e))?;
            if entry.extra_bytes > MAX_EXTRA_BYTES {
                return Err(self.too_much_extra(index));
            }
            incomplete = incomplete.saturating_add(u32::from(self.is_incomplete(&entry)));
            offset = entry.end();
            self.out
                .total_add(u64::from(entry.l1_size).min(MAX_L1_BYTES / 8));
            if offset.saturating_sub(start) > MAX_TABLE_BYTES {
                self.prefixed(format_args!(
                    "ERROR failed to read the snapshot table: Snapshot table is too big"
                ));
                return Err(self.overhanging(count.saturating_sub(index)));
            }
            if index % 1024 == 0 {
                self.out.progress(0)?;
            }
        }
        Ok(incomplete)
    }

    /// Version 3 demands extra data that version 2 leaves to the writer.
    const fn is_incomplete(&self, entry: &Entry) -> bool {
        self.header.version >= 3 && entry.extra_bytes < MIN_EXTRA_BYTES
    }

    fn tell_incomplete(&mut self, start: u64, count: u32) -> Result<(), CheckError> {
        let mut table = Table::new()?;
        let mut offset = start;
        for index in 0..count {
            let entry = table
                .entry(self.storage, entry_start(offset))
                .map_err(|e| self.table_failed(e))?;
            offset = entry.end();
            if self.is_incomplete(&entry) {
                self.out.corruption(format_args!(
                    "ERROR snapshot table entry {index} is incomplete"
                ));
            }
        }
        Ok(())
    }

    #[cold]
    fn too_much_extra(&mut self, index: u32) -> CheckError {
        self.prefixed(format_args!(
            "ERROR failed to read the snapshot table: Too much extra metadata in snapshot table entry {index}"
        ));
        self.out.print(
            MessageKind::Plain,
            format_args!("You can force-remove this extra metadata with qemu-img check -r all"),
        );
        CheckError::Failed { errno: EFBIG }
    }

    fn prefixed(&mut self, args: core::fmt::Arguments<'_>) {
        self.out.print(MessageKind::Prefixed, args);
    }

    fn overhanging(&mut self, count: u32) -> CheckError {
        self.out.print(
            MessageKind::Plain,
            format_args!(
                "You can force-remove all {count} overhanging snapshots with qemu-img check -r all"
            ),
        );
        CheckError::Failed { errno: EFBIG }
    }

    #[cold]
    fn table_failed(&mut self, error: StorageError) -> CheckError {
        let text = crate::compare::errno_text(error.errno);
        self.prefixed(format_args!(
            "ERROR failed to read the snapshot table: Failed to read snapshot table: {text}"
        ));
        CheckError::Failed { errno: error.errno }
    }

    /// Counts the snapshots' L1 tables, what is below them, and their table.
    pub(crate) fn count_snapshots(&mut self) -> Result<(), CheckError> {
        let start = self.header.snapshots_offset.get();
        let mut offset = start;
        if self.header.nb_snapshots == 0 {
            return Ok(());
        }
        if self.header.incompatible.external_data_file() {
            let count = self.header.nb_snapshots;
            self.out.corruption(format_args!(
                "ERROR {count} snapshots in image with data file"
            ));
        }
        let mut table = Table::new()?;
        for _ in 0..self.header.nb_snapshots {
            let entry = table
                .entry(self.storage, entry_start(offset))
                .map_err(|e| CheckError::Failed { errno: e.errno })?;
            offset = entry.end();
            self.count_snapshot(&entry, &mut table)?;
        }
        if !self.count_snapshot_table {
            return Ok(());
        }
        self.count_table_region(start, offset.saturating_sub(start))
    }

    fn count_snapshot(&mut self, entry: &Entry, table: &mut Table) -> Result<(), CheckError> {
        let (offset, size) = (entry.l1_offset, entry.l1_size);
        let complaint = if !self.header.cluster_bits.is_aligned(offset) {
            alloc::format!("l1_offset=0x{offset:x}: L1 table is not cluster aligned")
        } else if u64::from(size) > MAX_L1_BYTES / 8 {
            alloc::format!("l1_size=0x{size:x}: L1 table is too large")
        } else {
            return self.count_l1(offset, size, false);
        };
        self.out.found.uncounted = true;
        if !self.out.first_pass {
            return Ok(());
        }
        let failed = |e: StorageError| CheckError::Failed { errno: e.errno };
        let id = table
            .text(self.storage, entry.id_offset, entry.id_len)
            .map_err(failed)?;
        let name_offset = entry.id_offset.saturating_add(entry.id_len.into());
        let name = table
            .text(self.storage, name_offset, entry.name_len)
            .map_err(failed)?;
        self.out.corruption_bytes(&[
            b"ERROR snapshot ",
            &id,
            b" (",
            &name,
            b") ",
            complaint.as_bytes(),
            b"; snapshot table entry corrupted",
        ]);
        Ok(())
    }
}
