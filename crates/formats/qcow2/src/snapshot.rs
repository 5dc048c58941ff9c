//! The snapshot table.
//!
//! qcow2 "Snapshots": entries of variable length, one after the other. The table
//! is read entry by entry; memory is bounded by one entry's strings, 128 KiB.

use crate::extensions::cut_at_nul;
use crate::header::{Header, MAX_FILE_BYTES, MAX_SNAPSHOTS};
use crate::units::HostOffset;
use crate::window::{Window, WindowError};
use alloc::vec::Vec;
use instar_storage::Errno;
use instar_storage::{Storage, StorageError};
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// QEMU: the most bytes a snapshot table may have.
pub const MAX_SNAPSHOT_TABLE_BYTES: u64 = 1024 * 65_536;
/// QEMU: the most bytes of extra data of an entry.
pub const MAX_EXTRA_DATA_BYTES: u32 = 1024;
/// QEMU shows this many bytes of a snapshot's ID.
pub const SHOWN_ID_BYTES: usize = 127;
/// QEMU shows this many bytes of a snapshot's name.
pub const SHOWN_NAME_BYTES: usize = 255;

/// The fixed part of an entry.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RawSnapshot {
    /// Where the snapshot's L1 table is.
    pub l1_table_offset: U64,
    /// Its entries.
    pub l1_size: U32,
    /// Bytes of the ID.
    pub id_size: U16,
    /// Bytes of the name.
    pub name_size: U16,
    /// Seconds since the epoch.
    pub date_sec: U32,
    /// Nanoseconds.
    pub date_nsec: U32,
    /// Guest clock in nanoseconds.
    pub vm_clock_nsec: U64,
    /// VM state in bytes, low 32 bits.
    pub vm_state_size: U32,
    /// Bytes of extra data.
    pub extra_data_size: U32,
}
wire_layout!(RawSnapshot, size = 40, {
    l1_table_offset @ 0, l1_size @ 8, id_size @ 12, name_size @ 14, date_sec @ 16,
    date_nsec @ 20, vm_clock_nsec @ 24, vm_state_size @ 32, extra_data_size @ 36,
});

/// The known extra data.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawExtraData {
    vm_state_size_large: U64,
    disk_size: U64,
    icount: U64,
}
wire_layout!(RawExtraData, size = 24, { vm_state_size_large @ 0, disk_size @ 8, icount @ 16 });

/// Why a snapshot table cannot be read. `Display` is `qemu-img`'s text, its
/// advice on a second line included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Extra data above its cap.
    #[error(
        "Too much extra metadata in snapshot table entry {index}\n\
         You can force-remove this extra metadata with qemu-img check -r all"
    )]
    TooMuchExtraData {
        /// From 0.
        index: u32,
    },
    /// The table goes past its cap.
    #[error(
        "Snapshot table is too big\n\
         You can force-remove all {overhanging} overhanging snapshots with qemu-img check -r all"
    )]
    TableTooBig {
        /// Snapshots that end past the cap.
        overhanging: u32,
    },
    /// The store failed, or the table lies past any file's end.
    #[error("Failed to read snapshot table: {}", Errno(.0.errno))]
    Storage(#[source] StorageError),
    /// No memory for an entry's strings.
    #[error("Failed to read snapshot table: Cannot allocate memory")]
    OutOfMemory,
}

impl From<WindowError> for SnapshotError {
    fn from(e: WindowError) -> Self {
        match e {
            WindowError::Storage(e) => Self::Storage(e),
            WindowError::OutOfMemory => Self::OutOfMemory,
        }
    }
}

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its place in the table, from 0.
    pub index: u32,
    /// Where its entry starts.
    pub entry_offset: HostOffset,
    /// Bytes of its entry, padding not counted.
    pub entry_bytes: u64,
    /// Where its L1 table is; not judged.
    pub l1_table_offset: HostOffset,
    /// Entries of its L1 table; not judged.
    pub l1_size: u32,
    /// Unique ID, up to its first NUL; any bytes, at most 65535.
    pub id: Vec<u8>,
    /// Name, up to its first NUL; any bytes, at most 65535.
    pub name: Vec<u8>,
    /// Seconds since the epoch.
    pub date_sec: u32,
    /// Nanoseconds; not judged.
    pub date_nsec: u32,
    /// Guest clock in nanoseconds.
    pub vm_clock_nsec: u64,
    /// VM state in bytes: the 64-bit field where the entry has it.
    pub vm_state_size: u64,
    /// Virtual disk size, where the entry has it.
    pub disk_size: Option<u64>,
    /// Instruction count, where the entry has it and it is not -1.
    pub icount: Option<u64>,
    /// Bytes of extra data, known and unknown.
    pub extra_data_size: u32,
}

impl Snapshot {
    /// The part of the ID that `qemu-img info` shows.
    pub fn shown_id(&self) -> &[u8] {
        self.id.get(..SHOWN_ID_BYTES).unwrap_or(&self.id)
    }

    /// The part of the name that `qemu-img info` shows.
    pub fn shown_name(&self) -> &[u8] {
        self.name.get(..SHOWN_NAME_BYTES).unwrap_or(&self.name)
    }

    /// Version 3 asks for VM state size and disk size in the extra data.
    pub const fn is_incomplete(&self) -> bool {
        self.extra_data_size < 16
    }
}

/// Iterates over the entries of a snapshot table; ends after the first error.
pub struct SnapshotTable<'s, S> {
    window: Option<Window<'s, S>>,
    storage: &'s S,
    cursor: Cursor,
}

impl<'s, S: Storage> SnapshotTable<'s, S> {
    /// The table that the header points to. Entries past [`MAX_SNAPSHOTS`] are
    /// left out; where the table may lie is for the caller to judge (opening for
    /// info has judged it).
    pub fn new(storage: &'s S, header: &Header) -> Self {
        Self::at(storage, header.snapshots_offset, header.nb_snapshots)
    }

    /// A table of `count` entries at `offset`.
    pub fn at(storage: &'s S, offset: HostOffset, count: u32) -> Self {
        let start = offset.get();
        let cursor = Cursor {
            start,
            offset: start,
            index: 0,
            count: count.min(MAX_SNAPSHOTS),
        };
        Self {
            window: None,
            storage,
            cursor,
        }
    }

    /// Bytes from the table's start to the end of the last entry given, padding
    /// not counted after it.
    pub const fn bytes_read(&self) -> u64 {
        self.cursor.bytes_read()
    }
}

impl<S: Storage> Iterator for SnapshotTable<'_, S> {
    type Item = Result<Snapshot, SnapshotError>;

    fn next(&mut self) -> Option<Self::Item> {
        let Self {
            window,
            storage,
            cursor,
        } = self;
        cursor.next(&mut |offset, out| {
            let window = match window {
                Some(window) => window,
                None => window.insert(Window::new(*storage)?),
            };
            window.read(offset, out).map_err(SnapshotError::Storage)
        })
    }
}

/// Fills a buffer from a byte offset of the image.
type Read<'a> = &'a mut dyn FnMut(u64, &mut [u8]) -> Result<(), SnapshotError>;

/// A place in a snapshot table. Of what it does there is one copy, for all stores.
struct Cursor {
    start: u64,
    offset: u64,
    index: u32,
    count: u32,
}

impl Cursor {
    const fn bytes_read(&self) -> u64 {
        self.offset.saturating_sub(self.start)
    }

    fn next(&mut self, read: Read<'_>) -> Option<Result<Snapshot, SnapshotError>> {
        if self.index >= self.count {
            return None;
        }
        let entry = self.read_entry(&mut |offset, out| {
            if offset.saturating_add(out.len() as u64) > MAX_FILE_BYTES {
                return Err(SnapshotError::Storage(StorageError { errno: 5, offset }));
            }
            read(offset, out)
        });
        self.index = if entry.is_ok() {
            self.index.saturating_add(1)
        } else {
            self.count
        };
        Some(entry)
    }

    fn read_entry(&mut self, read: Read<'_>) -> Result<Snapshot, SnapshotError> {
        let entry = self.offset.checked_next_multiple_of(8).unwrap_or(u64::MAX);
        let mut raw = RawSnapshot::new_zeroed();
        read(entry, raw.as_mut_bytes())?;
        let extra_data_size = raw.extra_data_size.get();
        if extra_data_size > MAX_EXTRA_DATA_BYTES {
            return Err(SnapshotError::TooMuchExtraData { index: self.index });
        }
        let mut extra = RawExtraData::new_zeroed();
        let known = usize::try_from(extra_data_size).unwrap_or(0).min(24);
        let extra_offset = entry.saturating_add(40);
        let known_bytes = extra.as_mut_bytes().get_mut(..known).unwrap_or_default();
        read(extra_offset, known_bytes)?;
        let id_offset = extra_offset.saturating_add(u64::from(extra_data_size));
        let id = read_string(read, id_offset, raw.id_size.get())?;
        let name_offset = id_offset.saturating_add(u64::from(raw.id_size.get()));
        let name = read_string(read, name_offset, raw.name_size.get())?;
        self.offset = name_offset.saturating_add(u64::from(raw.name_size.get()));
        if self.bytes_read() > MAX_SNAPSHOT_TABLE_BYTES {
            let overhanging = self.count.saturating_sub(self.index);
            return Err(SnapshotError::TableTooBig { overhanging });
        }
        let has = |bytes: u32| extra_data_size >= bytes;
        let vm_state_size = if has(8) {
            extra.vm_state_size_large.get()
        } else {
            u64::from(raw.vm_state_size.get())
        };
        Ok(Snapshot {
            index: self.index,
            entry_offset: HostOffset(entry),
            entry_bytes: self.offset.saturating_sub(entry),
            l1_table_offset: HostOffset(raw.l1_table_offset.get()),
            l1_size: raw.l1_size.get(),
            id,
            name,
            date_sec: raw.date_sec.get(),
            date_nsec: raw.date_nsec.get(),
            vm_clock_nsec: raw.vm_clock_nsec.get(),
            vm_state_size,
            disk_size: has(16).then(|| extra.disk_size.get()),
            icount: has(24)
                .then(|| extra.icount.get())
                .filter(|n| *n != u64::MAX),
            extra_data_size,
        })
    }
}

fn read_string(read: Read<'_>, offset: u64, len: u16) -> Result<Vec<u8>, SnapshotError> {
    let mut text = crate::window::zeroed(usize::from(len)).ok_or(SnapshotError::OutOfMemory)?;
    read(offset, &mut text)?;
    cut_at_nul(&mut text);
    Ok(text)
}

#[cfg(test)]
mod tests;
