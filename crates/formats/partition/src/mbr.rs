//! The master boot record, and the chain of extended boot records behind it.

use crate::{Kind, MAX_PARTITIONS, Partition, on_disk};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use instar_storage::{Storage, StorageError};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Bytes of a boot record, and of the sectors that MBRs count in here.
pub const SECTOR: usize = 512;
/// The same, as a length on a disk.
const SECTOR_BYTES: u64 = SECTOR as u64;
/// What a boot record ends with.
const SIGNATURE: u16 = 0xaa55;
/// Type byte of the protective entry in front of a GPT. UEFI 2.10 §5.2.3.
const PROTECTIVE: u8 = 0xee;
/// Type byte of an EFI system partition. UEFI 2.10 §5.2.2.
pub const EFI_SYSTEM: u8 = 0xef;
/// Type bytes of extended partitions.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// First number of a logical partition.
const FIRST_LOGICAL: u32 = 5;

/// One of the four entries.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Entry {
    /// 0x80 for the active one, else 0.
    status: u8,
    first_chs: [u8; 3],
    kind: u8,
    last_chs: [u8; 3],
    first_lba: U32,
    sectors: U32,
}

/// A boot record.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Record {
    code: [u8; 440],
    disk_signature: U32,
    reserved: U16,
    entries: [Entry; 4],
    signature: U16,
}
const _: () = assert!(size_of::<Record>() == SECTOR);

impl Entry {
    fn is_extended(&self) -> bool {
        EXTENDED.contains(&self.kind)
    }

    /// The place in bytes, counted from the sector `base`.
    fn place(&self, base: u64) -> (u64, u64) {
        let first = base.saturating_add(self.first_lba.get().into());
        let bytes = |sectors: u64| sectors.saturating_mul(SECTOR_BYTES);
        (bytes(first), bytes(self.sectors.get().into()))
    }

    fn is_used(&self) -> bool {
        self.kind != 0 && self.sectors.get() > 0
    }

    /// A status byte is one of two in every table that is one.
    fn is_plausible(&self) -> bool {
        self.status & 0x7f == 0
    }
}

impl Record {
    /// Stands in front of a GPT.
    pub fn is_protective(&self) -> bool {
        self.entries.iter().any(|entry| entry.kind == PROTECTIVE)
    }

    fn partition(
        &self,
        disk: &impl Storage,
        entry: &Entry,
        base: u64,
        number: u32,
    ) -> Option<Partition> {
        let (start, len) = entry.place(base);
        let (start, len) = on_disk(disk, start, len)?;
        Some(Partition {
            number,
            start,
            len,
            kind: Kind::Mbr(entry.kind),
            uuid: format!("{:08x}-{number:02x}", self.disk_signature.get()),
            name: String::new(),
            active: entry.status & 0x80 != 0,
        })
    }
}

/// The boot record that `sector` is, if it is one.
pub fn parse(sector: &[u8; SECTOR]) -> Option<Record> {
    let record = Record::read_from_bytes(sector.as_slice()).ok()?;
    let plausible = record.entries.iter().all(Entry::is_plausible);
    (record.signature.get() == SIGNATURE && plausible).then_some(record)
}

/// The partitions of a disk that begins with `record`.
///
/// # Errors
/// The disk cannot be read.
pub fn partitions(disk: &impl Storage, record: &Record) -> Result<Vec<Partition>, StorageError> {
    let mut found = Vec::new();
    let mut extended = None;
    for (number, entry) in (1..).zip(&record.entries) {
        if !entry.is_used() {
            continue;
        }
        if entry.is_extended() {
            extended = extended.or(Some(entry.first_lba.get()));
        } else {
            found.extend(record.partition(disk, entry, 0, number));
        }
    }
    if let Some(first) = extended {
        logical(disk, record, first.into(), &mut found)?;
    }
    Ok(found)
}

/// Adds the logical partitions of the extended one at sector `first`. Each record has one, and the place of the next
/// record, which counts from `first`. A chain that goes on past [`MAX_PARTITIONS`] or back is cut.
fn logical(
    disk: &impl Storage,
    master: &Record,
    first: u64,
    found: &mut Vec<Partition>,
) -> Result<(), StorageError> {
    let mut at = first;
    let numbers = FIRST_LOGICAL..;
    for (number, _) in numbers.zip(0..MAX_PARTITIONS) {
        let mut sector = [0; SECTOR];
        disk.read_at(at.saturating_mul(SECTOR_BYTES), &mut sector)?;
        let Some(record) = parse(&sector) else {
            return Ok(());
        };
        let [entry, link, ..] = &record.entries;
        if entry.is_used() && !entry.is_extended() {
            found.extend(master.partition(disk, entry, at, number));
        }
        if !link.is_used() || !link.is_extended() {
            return Ok(());
        }
        let next = first.saturating_add(link.first_lba.get().into());
        if next <= at {
            return Ok(());
        }
        at = next;
    }
    Ok(())
}
