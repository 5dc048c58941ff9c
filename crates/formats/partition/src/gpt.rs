//! The GUID partition table. UEFI 2.10 §5.3.

use crate::{Kind, MAX_PARTITIONS, Partition, Scheme, Table, on_disk};
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use crc::{CRC_32_ISO_HDLC, Crc, Table as CrcTable};
use instar_storage::{Storage, StorageError};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// "EFI PART".
const SIGNATURE: [u8; 8] = *b"EFI PART";
/// Bytes of the header that its checksum covers, at least. UEFI 2.10 table 5-5.
const MIN_HEADER: u32 = 92;
/// Largest array of entries that is read, in bytes: ours; tables have 16 KiB.
const MAX_ARRAY: u64 = 1 << 20;
/// Attribute "legacy BIOS bootable". UEFI 2.10 table 5-8.
const ATTRIBUTE_LEGACY_BOOT: u64 = 1 << 2;
/// The checksum of headers and arrays.
const CRC32: Crc<u32, CrcTable<1>> = Crc::<u32, CrcTable<1>>::new(&CRC_32_ISO_HDLC);

/// The type of an EFI system partition.
pub const EFI_SYSTEM: Guid = Guid([
    0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
]);

/// A GUID, in the byte order of the disk: the first three groups are little-endian.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, KnownLayout, Unaligned, Default,
)]
#[repr(transparent)]
pub struct Guid(pub [u8; 16]);

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g, h, i, tail @ ..] = self.0;
        let first = u32::from_le_bytes([a, b, c, d]);
        let (second, third) = (u16::from_le_bytes([e, g]), u16::from_le_bytes([h, i]));
        write!(f, "{first:08x}-{second:04x}-{third:04x}-")?;
        for (index, byte) in tail.iter().enumerate() {
            if index == 2 {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// The header. UEFI 2.10 table 5-5.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    signature: [u8; 8],
    revision: U32,
    header_size: U32,
    header_crc: U32,
    reserved: U32,
    my_lba: U64,
    alternate_lba: U64,
    first_usable_lba: U64,
    last_usable_lba: U64,
    disk_guid: Guid,
    entries_lba: U64,
    entry_count: U32,
    entry_size: U32,
    entries_crc: U32,
}
const _: () = assert!(size_of::<Header>() == MIN_HEADER as usize);

/// An entry. UEFI 2.10 table 5-6.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry {
    kind: Guid,
    unique: Guid,
    first_lba: U64,
    last_lba: U64,
    attributes: U64,
    name: [U16; 36],
}
const _: () = assert!(size_of::<Entry>() == 128);

/// The table of a disk with sectors of `sector_size` bytes; the backup if the primary is damaged, `None` if there
/// is neither.
///
/// # Errors
/// The disk cannot be read.
pub fn read(disk: &impl Storage, sector_size: u64) -> Result<Option<Table>, StorageError> {
    let sectors = disk.len_bytes().checked_div(sector_size).unwrap_or(0);
    for (lba, from_backup) in [(1, false), (sectors.saturating_sub(1), true)] {
        if lba < 1 || lba >= sectors {
            continue;
        }
        if let Some(partitions) = read_copy(disk, sector_size, lba)? {
            return Ok(Some(Table {
                scheme: Scheme::Gpt { from_backup },
                partitions,
            }));
        }
    }
    Ok(None)
}

/// The partitions of the table whose header is in sector `lba`, if header and array are whole.
fn read_copy(
    disk: &impl Storage,
    sector_size: u64,
    lba: u64,
) -> Result<Option<Vec<Partition>>, StorageError> {
    let mut sector = vec![0; usize::try_from(sector_size).unwrap_or(0)];
    disk.read_at(lba.saturating_mul(sector_size), &mut sector)?;
    let Some(header) = parse_header(&sector, lba) else {
        return Ok(None);
    };
    let (count, size) = (header.entry_count.get(), header.entry_size.get());
    let Some(bytes) = array_bytes(count, size) else {
        return Ok(None);
    };
    let mut array = vec![0; bytes];
    let start = header.entries_lba.get().saturating_mul(sector_size);
    disk.read_at(start, &mut array)?;
    if CRC32.checksum(&array) != header.entries_crc.get() {
        return Ok(None);
    }
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    let entries = (1..).zip(array.chunks_exact(size));
    let partitions = entries.filter_map(|(number, raw)| {
        let (entry, _) = Entry::read_from_prefix(raw).ok()?;
        partition(disk, sector_size, number, &entry)
    });
    Ok(Some(partitions.take(MAX_PARTITIONS).collect()))
}

/// The header that `sector` begins with, if its checksum and its own place are right.
fn parse_header(sector: &[u8], lba: u64) -> Option<Header> {
    let (header, _) = Header::read_from_prefix(sector).ok()?;
    let size = header.header_size.get();
    if header.signature != SIGNATURE || size < MIN_HEADER || header.my_lba.get() != lba {
        return None;
    }
    let mut bytes = sector.get(..usize::try_from(size).ok()?)?.to_vec();
    bytes.get_mut(16..20)?.fill(0);
    (CRC32.checksum(&bytes) == header.header_crc.get()).then_some(header)
}

/// Length of the array of entries; `None` if it is none that a table has. An entry has 128 × 2^n bytes.
fn array_bytes(count: u32, size: u32) -> Option<usize> {
    if size < 128 || !size.is_power_of_two() {
        return None;
    }
    let bytes = u64::from(count).checked_mul(size.into())?;
    usize::try_from(bytes).ok().filter(|_| bytes <= MAX_ARRAY)
}

fn partition(
    disk: &impl Storage,
    sector_size: u64,
    number: u32,
    entry: &Entry,
) -> Option<Partition> {
    if entry.kind == Guid::default() {
        return None;
    }
    let (first, last) = (entry.first_lba.get(), entry.last_lba.get());
    let sectors = last.checked_sub(first)?.checked_add(1)?;
    let start = first.checked_mul(sector_size)?;
    let (start, len) = on_disk(disk, start, sectors.checked_mul(sector_size)?)?;
    let name = entry.name.iter().map(|unit| unit.get());
    let name = char::decode_utf16(name.take_while(|unit| *unit != 0));
    let name: String = name
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect();
    Some(Partition {
        number,
        start,
        len,
        kind: Kind::Gpt(entry.kind),
        uuid: entry.unique.to_string(),
        name,
        active: entry.attributes.get() & ATTRIBUTE_LEGACY_BOOT != 0,
    })
}
