//! The snapshot table as it is written: qcow2 "Snapshots".

use crate::{TxnError, zeroed};
use alloc::vec::Vec;
use instar_qcow2::snapshot::{MAX_SNAPSHOT_TABLE_BYTES, RawSnapshot, SnapshotTable};
use instar_qcow2::{Header, HostOffset};
use instar_storage::Storage;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

/// Extra data that every written entry has: VM state size, disk size, instruction count.
const KNOWN_EXTRA_BYTES: usize = 24;

/// One entry of the snapshot table, with every byte of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotEntry {
    /// Where the snapshot's L1 table is.
    pub l1_table_offset: HostOffset,
    /// Its entries.
    pub l1_size: u32,
    /// The ID; any bytes, at most 65535.
    pub id: Vec<u8>,
    /// The name; any bytes, at most 65535.
    pub name: Vec<u8>,
    /// Seconds since the epoch.
    pub date_sec: u32,
    /// Nanoseconds.
    pub date_nsec: u32,
    /// Guest clock in nanoseconds.
    pub vm_clock_nsec: u64,
    /// VM state in bytes.
    pub vm_state_size: u64,
    /// Virtual disk size in bytes; the image's where the entry had none.
    pub disk_size: u64,
    /// Instruction count; all ones: none.
    pub icount: u64,
    /// Extra data past what is known.
    pub unknown_extra: Vec<u8>,
}

/// Reads the table of `header`'s image.
pub(crate) fn read<S: Storage>(
    storage: &S,
    header: &Header,
) -> Result<Vec<SnapshotEntry>, TxnError> {
    let damaged = TxnError::Corrupt {
        what: "snapshot table",
    };
    // In one go: a read for each of 65,536 entries would take seconds.
    let mut table = zeroed(table_bytes(storage, header)?)?;
    let start = header.snapshots_offset.get();
    storage.read_at(start, &mut table)?;
    let mut entries = Vec::new();
    for snapshot in SnapshotTable::new(storage, header) {
        let snapshot = snapshot.map_err(|_| damaged)?;
        let from = snapshot.entry_offset.get().saturating_sub(start);
        let end = from.saturating_add(snapshot.entry_bytes);
        let range = usize::try_from(from).unwrap_or(usize::MAX)..usize::try_from(end).unwrap_or(0);
        let raw = table.get(range).ok_or(damaged)?;
        entries.try_reserve(1).map_err(|_| TxnError::OutOfMemory)?;
        entries.push(decode(header, raw)?);
    }
    Ok(entries)
}

/// Bytes of the table of `header`'s image.
pub(crate) fn table_bytes<S: Storage>(storage: &S, header: &Header) -> Result<u64, TxnError> {
    let mut table = SnapshotTable::new(storage, header);
    for snapshot in table.by_ref() {
        snapshot.map_err(|_| TxnError::Corrupt {
            what: "snapshot table",
        })?;
    }
    Ok(table.bytes_read())
}

fn decode(header: &Header, bytes: &[u8]) -> Result<SnapshotEntry, TxnError> {
    let short = TxnError::Corrupt {
        what: "snapshot table",
    };
    let (raw, rest) = RawSnapshot::read_from_prefix(bytes).map_err(|_| short)?;
    let extra = usize::try_from(raw.extra_data_size.get()).map_err(|_| short)?;
    let (extra, rest) = rest.split_at_checked(extra).ok_or(short)?;
    let (id, name) = rest
        .split_at_checked(usize::from(raw.id_size.get()))
        .ok_or(short)?;
    let word = |at: usize| {
        let field = extra.get(at..).and_then(|rest| rest.first_chunk::<8>());
        field.map(|raw| u64::from_be_bytes(*raw))
    };
    Ok(SnapshotEntry {
        l1_table_offset: HostOffset(raw.l1_table_offset.get()),
        l1_size: raw.l1_size.get(),
        id: id.to_vec(),
        name: name.to_vec(),
        date_sec: raw.date_sec.get(),
        date_nsec: raw.date_nsec.get(),
        vm_clock_nsec: raw.vm_clock_nsec.get(),
        vm_state_size: word(0).unwrap_or_else(|| raw.vm_state_size.get().into()),
        disk_size: word(8).unwrap_or_else(|| header.whole_sectors_size()),
        icount: word(16).unwrap_or(u64::MAX),
        unknown_extra: extra.get(KNOWN_EXTRA_BYTES..).unwrap_or_default().to_vec(),
    })
}

/// The bytes of a table with these entries.
pub(crate) fn encode(entries: &[SnapshotEntry]) -> Result<Vec<u8>, TxnError> {
    let mut table = Vec::new();
    for entry in entries {
        table.resize(table.len().next_multiple_of(8), 0);
        let raw = RawSnapshot {
            l1_table_offset: U64::new(entry.l1_table_offset.get()),
            l1_size: U32::new(entry.l1_size),
            id_size: U16::new(u16::try_from(entry.id.len()).map_err(|_| TxnError::TooLarge)?),
            name_size: U16::new(u16::try_from(entry.name.len()).map_err(|_| TxnError::TooLarge)?),
            date_sec: U32::new(entry.date_sec),
            date_nsec: U32::new(entry.date_nsec),
            vm_clock_nsec: U64::new(entry.vm_clock_nsec),
            // The 32-bit field of older readers holds 0 where the size does not fit.
            vm_state_size: U32::new(u32::try_from(entry.vm_state_size).unwrap_or(0)),
            extra_data_size: U32::new(extra_bytes(entry)),
        };
        table.extend_from_slice(raw.as_bytes());
        table.extend_from_slice(&entry.vm_state_size.to_be_bytes());
        table.extend_from_slice(&entry.disk_size.to_be_bytes());
        table.extend_from_slice(&entry.icount.to_be_bytes());
        table.extend_from_slice(&entry.unknown_extra);
        table.extend_from_slice(&entry.id);
        table.extend_from_slice(&entry.name);
        if table.len() as u64 > MAX_SNAPSHOT_TABLE_BYTES {
            return Err(TxnError::TooLarge);
        }
    }
    Ok(table)
}

fn extra_bytes(entry: &SnapshotEntry) -> u32 {
    let bytes = KNOWN_EXTRA_BYTES.saturating_add(entry.unknown_extra.len());
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
