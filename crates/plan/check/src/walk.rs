//! L1 tables, and the L2 tables they name, read in batches.

use crate::counter::Counter;
use crate::run::{BUFFER_BYTES, Run, TABLE_BYTES, What, zeroed};
use crate::{CheckError, MessageKind, Reporter};
use alloc::vec::Vec;
use instar_qcow2::entries::L1Entry;
use instar_storage::bytes::is_zero;
use instar_storage::{Read, Storage, StorageError};

/// L1 entries planned before their tables are read, at most.
const MAX_PLANNED: usize = 4096;

/// What a walk is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Count references. For the active table also note wrong COPIED flags and
    /// count guest clusters.
    Count { active: bool },
    /// Tell each wrong COPIED flag.
    Copied,
}

/// An L1 entry whose L2 table is about to be walked.
struct Planned {
    index: u32,
    entry: L1Entry,
    /// Which table of the buffer; `None` where the file has zeros.
    slot: Option<usize>,
}

/// L2 tables to be read at once.
struct Batch {
    planned: Vec<Planned>,
    slots: usize,
    buf: Vec<u8>,
    table_bytes: usize,
}

impl Batch {
    /// The tables read, or the error of the batch.
    fn read<S: Storage>(&mut self, storage: &S) -> Result<(), StorageError> {
        let mut reads: Vec<Read<'_>> = Vec::new();
        let mut left = self.buf.as_mut_slice();
        let mut start: Option<(u64, usize)> = None;
        for planned in self.planned.iter().filter(|planned| planned.slot.is_some()) {
            let offset = planned.entry.l2_offset().get();
            start = match start {
                Some((at, len)) if at.saturating_add(len as u64) == offset => {
                    Some((at, len.saturating_add(self.table_bytes)))
                }
                Some(run) => {
                    left = push_read(&mut reads, left, run);
                    Some((offset, self.table_bytes))
                }
                None => Some((offset, self.table_bytes)),
            };
        }
        if let Some(run) = start {
            push_read(&mut reads, left, run);
        }
        if reads.is_empty() {
            Ok(())
        } else {
            storage.read_batch(&mut reads)
        }
    }

    fn is_full(&self) -> bool {
        let used = self
            .slots
            .saturating_add(1)
            .saturating_mul(self.table_bytes);
        used > self.buf.len() || self.planned.len() >= MAX_PLANNED
    }
}

/// Takes the head of `left` for a read; gives the rest.
fn push_read<'b>(
    reads: &mut Vec<Read<'b>>,
    left: &'b mut [u8],
    (offset, len): (u64, usize),
) -> &'b mut [u8] {
    let (buf, rest) = left.split_at_mut(len.min(left.len()));
    reads.push(Read { offset, buf });
    rest
}

impl<S: Storage, T: Counter, R: Reporter> Run<'_, S, T, R> {
    /// Counts an L1 table and everything below it.
    pub(crate) fn count_l1(
        &mut self,
        offset: u64,
        entries: u32,
        active: bool,
    ) -> Result<(), CheckError> {
        self.count_table_region(offset, u64::from(entries).saturating_mul(8))?;
        self.walk(offset, entries, Purpose::Count { active })
    }

    /// Walks an L1 table and its L2 tables.
    pub(crate) fn walk(
        &mut self,
        offset: u64,
        entries: u32,
        purpose: Purpose,
    ) -> Result<(), CheckError> {
        let table_bytes = self.header.cluster_bits.size_bytes();
        let mut batch: Option<Batch> = None;
        let mut piece = zeroed(TABLE_BYTES.min(u64::from(entries).saturating_mul(8)))?;
        let mut index = 0_u32;
        while index < entries {
            let n = entries
                .saturating_sub(index)
                .min(u32::try_from(TABLE_BYTES / 8).unwrap_or(1));
            let at = offset.saturating_add(u64::from(index).saturating_mul(8));
            let len = usize::try_from(n).unwrap_or(0).saturating_mul(8);
            let piece = piece.get_mut(..len).unwrap_or_default();
            if self.read_l1_piece(at, piece)? {
                let batch = match &mut batch {
                    Some(batch) => batch,
                    None => batch.insert(new_batch(table_bytes, entries)?),
                };
                self.walk_piece(index, piece, purpose, batch)?;
            }
            index = index.saturating_add(n);
            self.out.progress(u64::from(n))?;
        }
        Ok(())
    }

    /// Reads a piece of an L1 table. False if it is all zeros.
    fn read_l1_piece(&mut self, at: u64, piece: &mut [u8]) -> Result<bool, CheckError> {
        let in_range = crate::run::check_range(at, piece.len() as u64);
        if in_range.is_ok() && self.holes.are_zeros(self.storage, at, piece.len() as u64) {
            return Ok(false);
        }
        if let Err(e) = in_range.and_then(|()| self.storage.read_at(at, piece)) {
            self.out.print(
                MessageKind::Plain,
                format_args!("ERROR: I/O error in check_refcounts_l1"),
            );
            return Err(CheckError::Failed { errno: e.errno });
        }
        let zeros = is_zero(piece);
        self.holes.saw(zeros);
        Ok(!zeros)
    }

    fn walk_piece(
        &mut self,
        first: u32,
        piece: &[u8],
        purpose: Purpose,
        batch: &mut Batch,
    ) -> Result<(), CheckError> {
        let table_bytes = batch.table_bytes as u64;
        for (bytes, index) in piece.as_chunks::<8>().0.iter().zip(first..) {
            let entry = L1Entry::from_be_bytes(*bytes);
            // A nonzero entry without an offset is walked as a table at 0 when
            // references are counted, and skipped when COPIED is checked.
            if entry.0 == 0 || (purpose == Purpose::Copied && entry.is_unallocated()) {
                continue;
            }
            let zeros = self.what == What::Tables
                || self
                    .holes
                    .are_zeros(self.storage, entry.l2_offset().get(), table_bytes);
            let slot = (!zeros).then_some(batch.slots);
            batch.slots = batch.slots.saturating_add(usize::from(!zeros));
            batch.planned.push(Planned { index, entry, slot });
            if batch.is_full() {
                self.walk_batch(purpose, batch)?;
            }
        }
        self.walk_batch(purpose, batch)
    }

    /// Reads the planned tables and walks them in order.
    fn walk_batch(&mut self, purpose: Purpose, batch: &mut Batch) -> Result<(), CheckError> {
        let failed = batch.read(self.storage).is_err();
        let Batch {
            planned,
            buf,
            table_bytes,
            slots,
        } = batch;
        for Planned { index, entry, slot } in planned.drain(..) {
            match purpose {
                Purpose::Count { .. } if self.what == What::Data => {}
                Purpose::Count { .. } => self.count_l1_entry(entry)?,
                Purpose::Copied if self.tell_l1_copied(index, entry) => {}
                Purpose::Copied => continue,
            }
            if let Purpose::Count { active: true } = purpose {
                self.note_l1_copied(entry);
            }
            let from = slot.map(|slot| slot.saturating_mul(*table_bytes));
            let Some(table) = from.and_then(|from| buf.get_mut(from..)?.get_mut(..*table_bytes))
            else {
                continue;
            };
            if failed {
                self.reread_table(entry, table, purpose)?;
            }
            match purpose {
                Purpose::Count { active } => self.count_l2(table, active)?,
                Purpose::Copied => self.tell_l2_copied(table),
            }
        }
        *slots = 0;
        self.out.progress(0)
    }

    #[cold]
    fn reread_table(
        &mut self,
        entry: L1Entry,
        table: &mut [u8],
        purpose: Purpose,
    ) -> Result<(), CheckError> {
        if let Err(e) = self.storage.read_at(entry.l2_offset().get(), table) {
            if purpose != Purpose::Copied {
                self.out.print(
                    MessageKind::Plain,
                    format_args!("ERROR: I/O error in check_refcounts_l2"),
                );
            }
            return Err(CheckError::Failed { errno: e.errno });
        }
        Ok(())
    }

    /// Judges an L1 entry and counts its L2 table.
    fn count_l1_entry(&mut self, entry: L1Entry) -> Result<(), CheckError> {
        let offset = entry.l2_offset().get();
        if entry.reserved_bits() != 0 {
            self.out.corruption(format_args!(
                "ERROR found L1 entry with reserved bits set: {:x}",
                entry.0
            ));
        }
        self.count_region(offset, self.header.cluster_bits.size_bytes())?;
        if !self.header.cluster_bits.is_aligned(offset) {
            self.out.corruption(format_args!(
                "ERROR l2_offset={offset:x}: Table is not cluster aligned; L1 entry corrupted"
            ));
        }
        Ok(())
    }

    fn note_l1_copied(&mut self, entry: L1Entry) {
        if entry.is_unallocated() {
            return;
        }
        let cluster = entry.l2_offset().get() >> self.header.cluster_bits.get();
        self.note_copied(cluster, entry.is_copied());
    }
}

/// A batch of as many tables as fit the buffer, at least one.
fn new_batch(table_bytes: u64, entries: u32) -> Result<Batch, CheckError> {
    let want = table_bytes.saturating_mul(entries.into());
    let buf = zeroed(want.min(BUFFER_BYTES).max(table_bytes))?;
    let table_bytes = usize::try_from(table_bytes).map_err(|_| CheckError::OutOfMemory)?;
    Ok(Batch {
        planned: Vec::new(),
        slots: 0,
        buf,
        table_bytes,
    })
}
