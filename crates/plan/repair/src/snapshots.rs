//! The snapshot table's entries, put right. qcow2 "Snapshots".
//!
//! What can be wrong with the table itself: too many entries, too many bytes,
//! too much extra data in an entry, or less of it than version 3 demands. The
//! new table goes to a new place, and the header's switch makes it valid.

use crate::job::failed;
use crate::{CheckError, MessageKind, Reporter};
use alloc::format;
use alloc::vec::Vec;
use instar_plan_check::parts::{Span, zeroed};
use instar_qcow2::Header;
use instar_qcow2::header::{MAX_FILE_BYTES, MAX_SNAPSHOTS};
use instar_qcow2::snapshot::{MAX_EXTRA_DATA_BYTES, MAX_SNAPSHOT_TABLE_BYTES, RawSnapshot};
use instar_storage::{Storage, StorageError, StorageMut};
use zerocopy::{FromZeros, IntoBytes};

/// Bytes of an entry before its extra data.
const ENTRY_BYTES: u64 = 40;
/// Extra data that version 3 demands.
const MIN_EXTRA_BYTES: u32 = 16;
/// Extra data that QEMU writes: also the instruction count.
const KNOWN_EXTRA_BYTES: u32 = 24;
/// QEMU: the largest offset.
const MAX_OFFSET: u64 = i64::MAX.unsigned_abs();
/// QEMU: where an entry of the old table may end, counted from the table's start.
const MAX_OLD_TABLE_BYTES: u64 = 0x7fff_ffff;
/// EFBIG.
const EFBIG: u32 = 27;
/// Bytes read ahead and written at once; more than the longest entry.
const BUFFER_BYTES: u64 = 256 << 10;

/// A snapshot table that is to take the old one's place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewTable {
    /// Snapshots that it has.
    pub(crate) count: u32,
    /// Its bytes.
    pub(crate) bytes: u64,
    /// First byte after the old table.
    pub(crate) old_end: u64,
    /// Damages that it repairs.
    pub(crate) repaired: u64,
    /// Bytes of the file when the old table was read; behind them are zeros.
    pub(crate) file_len: u64,
}

impl NewTable {
    /// Clusters of the entries that are kept, in the old table; `None` if all are
    /// dropped: then the table may have been anything.
    pub(crate) fn kept_span(&self, header: &Header) -> Option<Span> {
        (self.count > 0).then(|| self.old_span(header))
    }

    /// Clusters of the old table, the first and the last.
    pub(crate) fn old_span(&self, header: &Header) -> Span {
        let bits = header.cluster_bits.get();
        let start = header.snapshots_offset.get();
        let last = self.old_end.saturating_sub(1).max(start);
        (start >> bits, last >> bits)
    }
}

/// An entry as it is kept.
struct Entry {
    raw: RawSnapshot,
    /// Where it starts.
    offset: u64,
    /// Bytes of extra data that are kept.
    extra: u32,
}

impl Entry {
    fn names_bytes(&self) -> u64 {
        u64::from(self.raw.id_size.get()).saturating_add(self.raw.name_size.get().into())
    }

    fn names_offset(&self) -> u64 {
        self.offset
            .saturating_add(ENTRY_BYTES)
            .saturating_add(self.raw.extra_data_size.get().into())
    }

    fn end(&self) -> u64 {
        self.names_offset().saturating_add(self.names_bytes())
    }

    /// Extra data of the new entry.
    fn new_extra(&self) -> u32 {
        self.extra.max(KNOWN_EXTRA_BYTES)
    }

    /// Bytes of the new entry, with its padding.
    fn new_bytes(&self) -> u64 {
        let extra = u64::from(self.new_extra());
        let bytes = ENTRY_BYTES
            .saturating_add(extra)
            .saturating_add(self.names_bytes());
        bytes.saturating_add(7) & !7
    }
}

/// Reads entries through a buffer.
struct Reader<'s, S> {
    storage: &'s S,
    buf: Vec<u8>,
    /// Where the buffer's bytes are from.
    start: Option<u64>,
    /// What lies behind this offset is read as zeros, whatever has been written there since.
    end: u64,
}

impl<'s, S: Storage> Reader<'s, S> {
    fn new(storage: &'s S, end: u64) -> Result<Self, CheckError> {
        Ok(Self {
            storage,
            buf: zeroed(BUFFER_BYTES)?,
            start: None,
            end,
        })
    }

    /// Fills the buffer from `offset` on.
    fn fill(&mut self, offset: u64) -> Result<(), StorageError> {
        self.start = None;
        self.storage.read_at(offset, &mut self.buf)?;
        let left = usize::try_from(self.end.saturating_sub(offset)).unwrap_or(usize::MAX);
        if let Some(behind) = self.buf.get_mut(left..) {
            behind.fill(0);
        }
        self.start = Some(offset);
        Ok(())
    }

    /// `len` bytes at `offset`, at most [`BUFFER_BYTES`].
    fn bytes(&mut self, offset: u64, len: u64) -> Result<&[u8], StorageError> {
        let end = offset.saturating_add(len);
        if end > MAX_FILE_BYTES {
            return Err(StorageError { errno: 5, offset });
        }
        let held = |start: u64| offset >= start && end <= start.saturating_add(BUFFER_BYTES);
        let start = match self.start.filter(|start| held(*start)) {
            Some(start) => start,
            None => {
                self.fill(offset)?;
                offset
            }
        };
        let from = usize::try_from(offset.saturating_sub(start)).unwrap_or(usize::MAX);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        Ok(self
            .buf
            .get(from..)
            .and_then(|rest| rest.get(..len))
            .unwrap_or_default())
    }

    /// The entry that starts at or after `offset`.
    fn entry(&mut self, offset: u64) -> Result<Entry, StorageError> {
        let offset = offset.saturating_add(7) & !7;
        let mut raw = RawSnapshot::new_zeroed();
        raw.as_mut_bytes()
            .copy_from_slice(self.bytes(offset, ENTRY_BYTES)?);
        let extra = raw.extra_data_size.get().min(MAX_EXTRA_DATA_BYTES);
        Ok(Entry { raw, offset, extra })
    }
}

fn say<R: Reporter>(reporter: &mut R, line: &str) {
    reporter.message(MessageKind::Plain, line.as_bytes());
}

/// Looks for damages of the snapshot table; `None` if there are none, or if it
/// cannot be read, which the check tells.
pub(crate) fn look<S: Storage, R: Reporter>(
    storage: &S,
    header: &Header,
    reporter: &mut R,
) -> Result<Option<NewTable>, CheckError> {
    let start = header.snapshots_offset.get();
    let aligned = header.cluster_bits.is_aligned(start);
    let mut new = NewTable {
        count: header.nb_snapshots.min(MAX_SNAPSHOTS),
        bytes: 0,
        old_end: start,
        repaired: 0,
        file_len: storage.len_bytes(),
    };
    if header.nb_snapshots == 0 {
        if aligned && start <= MAX_OFFSET {
            return Ok(None);
        }
        say(
            reporter,
            &format!("Repairing snapshot table offset {start:x}: there are no snapshots"),
        );
        new.repaired = 1;
        return Ok(Some(new));
    }
    if !aligned || start > MAX_OFFSET / 2 {
        return Ok(None);
    }
    let over = header.nb_snapshots.saturating_sub(MAX_SNAPSHOTS);
    if over > 0 {
        say(
            reporter,
            &format!("Discarding {over} overhanging snapshots"),
        );
        new.repaired = over.into();
    }
    let mut reader = Reader::new(storage, new.file_len)?;
    let Ok(incomplete) = measure(&mut reader, header, &mut new, reporter) else {
        return Ok(None);
    };
    if incomplete {
        tell_incomplete(&mut reader, header, &mut new, reporter)?;
    }
    if new.bytes > MAX_SNAPSHOT_TABLE_BYTES {
        return Err(CheckError::Failed { errno: EFBIG });
    }
    Ok(Some(new).filter(|new| new.repaired > 0))
}

const fn is_incomplete(entry: &Entry, header: &Header) -> bool {
    header.version >= 3 && entry.extra < MIN_EXTRA_BYTES
}

/// Reads the table once, and cuts it where it is too long. True if an entry is incomplete.
fn measure<S: Storage, R: Reporter>(
    reader: &mut Reader<'_, S>,
    header: &Header,
    new: &mut NewTable,
    reporter: &mut R,
) -> Result<bool, StorageError> {
    let (mut kept, mut incomplete) = (0_u64, false);
    let start = header.snapshots_offset.get();
    for index in 0..new.count {
        let entry = reader.entry(new.old_end)?;
        let extra = entry.raw.extra_data_size.get();
        if extra > MAX_EXTRA_DATA_BYTES {
            let line = format!(
                "Discarding too much extra metadata in snapshot table entry {index} \
                 ({extra} > {MAX_EXTRA_DATA_BYTES})"
            );
            say(reporter, &line);
            new.repaired = new.repaired.saturating_add(1);
        }
        kept = kept.saturating_add(7) & !7;
        let bytes = ENTRY_BYTES.saturating_add(entry.extra.into());
        kept = kept
            .saturating_add(bytes)
            .saturating_add(entry.names_bytes());
        let far = entry.end().saturating_sub(start) > MAX_OLD_TABLE_BYTES;
        if kept > MAX_SNAPSHOT_TABLE_BYTES || far {
            let over = new.count.saturating_sub(index);
            let line =
                format!("Discarding {over} overhanging snapshots (snapshot table is too big)");
            say(reporter, &line);
            new.repaired = new.repaired.saturating_add(over.into());
            new.count = index;
            break;
        }
        new.old_end = entry.end();
        new.bytes = new.bytes.saturating_add(entry.new_bytes());
        incomplete |= is_incomplete(&entry, header);
    }
    Ok(incomplete)
}

fn tell_incomplete<S: Storage, R: Reporter>(
    reader: &mut Reader<'_, S>,
    header: &Header,
    new: &mut NewTable,
    reporter: &mut R,
) -> Result<(), CheckError> {
    let mut offset = header.snapshots_offset.get();
    for index in 0..new.count {
        let entry = reader.entry(offset).map_err(failed)?;
        offset = entry.end();
        if is_incomplete(&entry, header) {
            let line = format!("Repairing snapshot table entry {index} is incomplete");
            say(reporter, &line);
            new.repaired = new.repaired.saturating_add(1);
        }
    }
    Ok(())
}

/// Writes the new table to `place`, where nothing of the old one is.
pub(crate) fn write<S: StorageMut>(
    storage: &S,
    header: &Header,
    new: &NewTable,
    place: u64,
) -> Result<(), CheckError> {
    let mut reader = Reader::new(storage, new.file_len)?;
    let mut out: Vec<u8> = Vec::new();
    let (mut offset, mut place) = (header.snapshots_offset.get(), place);
    let room = usize::try_from(BUFFER_BYTES.saturating_mul(2)).unwrap_or(0);
    out.try_reserve_exact(room)
        .map_err(|_| CheckError::OutOfMemory)?;
    for _ in 0..new.count {
        let entry = reader.entry(offset).map_err(failed)?;
        offset = entry.end();
        append(&mut out, &mut reader, &entry, header).map_err(failed)?;
        if out.len() as u64 >= BUFFER_BYTES {
            storage.write_at(place, &out).map_err(failed)?;
            place = place.saturating_add(out.len() as u64);
            out.clear();
        }
    }
    // To the end of the sector, not of as many bytes: what follows the last cluster is in use.
    let rest = usize::try_from(place.saturating_add(out.len() as u64).wrapping_neg() % 512);
    out.resize(out.len().saturating_add(rest.unwrap_or(0)), 0);
    storage.write_at(place, &out).map_err(failed)
}

/// Appends an entry with the extra data that QEMU writes: VM state size, disk
/// size and instruction count, and then what else the old entry had.
fn append<S: Storage>(
    out: &mut Vec<u8>,
    reader: &mut Reader<'_, S>,
    entry: &Entry,
    header: &Header,
) -> Result<(), StorageError> {
    let mut raw = entry.raw;
    raw.extra_data_size = entry.new_extra().into();
    out.extend_from_slice(raw.as_bytes());
    let extra_offset = entry.offset.saturating_add(ENTRY_BYTES);
    out.extend_from_slice(reader.bytes(extra_offset, entry.extra.into())?);
    let missing = [
        u64::from(raw.vm_state_size.get()),
        header.whole_sectors_size(),
        u64::MAX,
    ];
    for (value, end) in missing.into_iter().zip((8_u32..).step_by(8)) {
        let start = end.saturating_sub(8);
        if entry.extra < end {
            // A field of which only a part is there counts as missing.
            let surplus = entry.extra.saturating_sub(start);
            let kept = out
                .len()
                .saturating_sub(usize::try_from(surplus).unwrap_or(0));
            if entry.extra > start {
                out.truncate(kept);
            }
            out.extend_from_slice(&value.to_be_bytes());
        }
    }
    out.extend_from_slice(reader.bytes(entry.names_offset(), entry.names_bytes())?);
    let padded = out.len().next_multiple_of(8);
    out.resize(padded, 0);
    Ok(())
}

#[cfg(test)]
mod tests;
