//! Entries of folders, with long names.

use crate::{FsError, MAX_ENTRIES};
use alloc::string::String;
use alloc::vec::Vec;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Attributes: *Microsoft FAT Specification*, "FAT Directory Structure".
const VOLUME: u8 = 0x08;
const FOLDER: u8 = 0x10;
/// Attributes of an entry that is a part of a long name, and the mask to compare with.
const LONG: u8 = 0x0f;
const LONG_MASK: u8 = 0x3f;
/// First byte of an entry that is free, and of the first one that was never used.
const FREE: u8 = 0xe5;
const END: u8 = 0;
/// Lower case flags of a short name's base and extension, as Windows NT and Linux write them.
const LOWER_BASE: u8 = 0x08;
const LOWER_EXTENSION: u8 = 0x10;
/// Characters of a part of a long name.
const PART: usize = 13;
/// Parts of a long name at most.
const MAX_PARTS: usize = 20;

/// A file or a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its long name, or else its short one.
    pub name: Vec<u8>,
    /// Its short name.
    short: Vec<u8>,
    /// It is a folder.
    pub folder: bool,
    /// First cluster.
    pub first_cluster: u32,
    /// Length of a file in bytes.
    pub len: u32,
}

impl Entry {
    /// Whether the entry has this name, in any case.
    pub fn is_named(&self, name: &[u8]) -> bool {
        self.name.eq_ignore_ascii_case(name) || self.short.eq_ignore_ascii_case(name)
    }
}

#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Short {
    base: [u8; 8],
    extension: [u8; 3],
    attributes: u8,
    case: u8,
    times: [u8; 7],
    cluster_high: U16,
    written: [u8; 4],
    cluster_low: U16,
    len: U32,
}
const _: () = assert!(size_of::<Short>() == 32);

#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Long {
    /// Number of the part, from 1; the last one, which comes first, has bit 6.
    order: u8,
    first: [U16; 5],
    attributes: u8,
    kind: u8,
    /// Of the short name.
    checksum: u8,
    second: [U16; 6],
    zero: U16,
    third: [U16; 2],
}
const _: () = assert!(size_of::<Long>() == 32);

impl Short {
    fn name(&self) -> Vec<u8> {
        let part = |bytes: &[u8], lower: bool| -> Vec<u8> {
            let bytes = bytes.trim_ascii_end();
            if lower {
                bytes.to_ascii_lowercase()
            } else {
                bytes.to_vec()
            }
        };
        let mut name = part(&self.base, self.case & LOWER_BASE != 0);
        let extension = part(&self.extension, self.case & LOWER_EXTENSION != 0);
        if !extension.is_empty() {
            name.push(b'.');
            name.extend(extension);
        }
        name
    }

    /// What parts of the long name of this entry have as checksum.
    fn checksum(&self) -> u8 {
        let bytes = self.base.iter().chain(&self.extension);
        bytes.fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
    }

    fn cluster(&self) -> u32 {
        (u32::from(self.cluster_high.get()) << 16) | u32::from(self.cluster_low.get())
    }
}

/// A long name while its parts come, the last part first.
#[derive(Default)]
struct LongName {
    /// Of its short name.
    checksum: u8,
    /// The number of the part that came last.
    order: u8,
    units: Vec<u16>,
}

impl LongName {
    fn add(&mut self, part: &Long) {
        let order = part.order & 0x3f;
        let first = part.order & 0x40 != 0;
        if first && usize::from(order) <= MAX_PARTS {
            self.units.clear();
            self.checksum = part.checksum;
        } else if order.checked_add(1) != Some(self.order) || self.checksum != part.checksum {
            self.units.clear();
            self.order = 0;
            return;
        }
        self.order = order;
        let units = part.first.iter().chain(&part.second).chain(&part.third);
        let units: Vec<u16> = units.map(|unit| unit.get()).take(PART).collect();
        self.units.splice(0..0, units);
    }

    /// The name, if all its parts have come and it is that of `short`.
    fn take(&mut self, short: &Short) -> Option<Vec<u8>> {
        let whole = self.order == 1 && self.checksum == short.checksum();
        let units = core::mem::take(&mut self.units);
        self.order = 0;
        let units = units.into_iter().take_while(|unit| *unit != 0);
        let text = char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER));
        let name: String = text.collect();
        (whole && !name.is_empty()).then(|| name.into_bytes())
    }
}

/// The entries of a folder, without `.`, `..` and the volume's label.
///
/// # Errors
/// There are too many.
pub fn parse(bytes: &[u8]) -> Result<Vec<Entry>, FsError> {
    let mut entries = Vec::new();
    let mut long = LongName::default();
    for raw in bytes.as_chunks::<32>().0 {
        let (Ok(short), Ok(part)) = (Short::read_from_bytes(raw), Long::read_from_bytes(raw))
        else {
            break;
        };
        match raw.first() {
            None | Some(&END) => break,
            Some(&FREE) => continue,
            Some(_) if short.attributes & LONG_MASK == LONG => {
                long.add(&part);
                continue;
            }
            Some(_) => {}
        }
        let name = short.name();
        let long = long.take(&short);
        if short.attributes & VOLUME != 0 || name == b"." || name == b".." {
            continue;
        }
        entries.push(Entry {
            name: long.unwrap_or_else(|| name.clone()),
            short: name,
            folder: short.attributes & FOLDER != 0,
            first_cluster: short.cluster(),
            len: short.len.get(),
        });
        if entries.len() > MAX_ENTRIES {
            return Err(FsError::TooManyEntries);
        }
    }
    Ok(entries)
}
