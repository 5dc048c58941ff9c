//! Partition tables of disks: GPT (UEFI 2.10 §5) with its backup, and MBR with logical partitions.
//!
//! [`read`] gives the partitions of a disk. Left out: hybrid MBRs (a valid GPT wins), BSD labels, and tables of
//! disks with sectors other than 512 and 4,096 bytes. Every table is hostile: counts and chains are bounded, and a
//! partition that does not lie on the disk is left out.
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;

mod gpt;
mod mbr;

pub use gpt::Guid;

use alloc::string::String;
use alloc::vec::Vec;
use instar_storage::{Storage, StorageError};

/// Most partitions of a disk that are looked at.
pub const MAX_PARTITIONS: usize = 256;

/// Sector sizes that a GPT is looked for with, in bytes.
const SECTOR_SIZES: [u64; 2] = [512, 4096];

/// What kind of table a disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// A GUID partition table.
    Gpt {
        /// The primary table is damaged, and the backup at the end of the disk was read.
        from_backup: bool,
    },
    /// A master boot record.
    Mbr,
    /// None: the whole disk may be one file system.
    None,
}

/// What a partition is for, as its table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The type GUID of a GPT entry.
    Gpt(Guid),
    /// The type byte of an MBR entry.
    Mbr(u8),
}

impl Kind {
    /// An EFI system partition: UEFI 2.10 §5.3.3 and §5.2.2.
    #[must_use]
    pub fn is_efi_system(self) -> bool {
        match self {
            Self::Gpt(guid) => guid == gpt::EFI_SYSTEM,
            Self::Mbr(kind) => kind == mbr::EFI_SYSTEM,
        }
    }
}

/// A partition that lies on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1, as Linux and GRUB count.
    pub number: u32,
    /// First byte on the disk.
    pub start: u64,
    /// Length in bytes, never 0.
    pub len: u64,
    /// What it is for.
    pub kind: Kind,
    /// What `PARTUUID=` names: the entry's GUID, or the disk's signature with the number.
    pub uuid: String,
    /// The name of a GPT entry; empty for none.
    pub name: String,
    /// The firmware of a PC boots from it: the active flag, or the attribute "legacy BIOS bootable".
    pub active: bool,
}

impl Partition {
    /// Stands for a disk without partitions: number 0.
    #[must_use]
    pub const fn whole() -> Self {
        Self {
            number: 0,
            start: 0,
            len: 0,
            kind: Kind::Mbr(0),
            uuid: String::new(),
            name: String::new(),
            active: false,
        }
    }
}

/// The partitions of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The kind of table.
    pub scheme: Scheme,
    /// In the order of their numbers.
    pub partitions: Vec<Partition>,
}

/// A table cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartitionError {
    /// The protective MBR says GPT, and neither copy of it is whole.
    #[error("Both copies of its GPT are damaged")]
    BothGptsDamaged,
    /// The disk cannot be read.
    #[error("Its partition table cannot be read: {0}")]
    Storage(#[from] StorageError),
}

/// Reads the partition table of a disk.
///
/// # Errors
/// The disk cannot be read, or has a GPT of which no copy is whole.
pub fn read(disk: &impl Storage) -> Result<Table, PartitionError> {
    let mut sector = [0; mbr::SECTOR];
    disk.read_at(0, &mut sector)?;
    let record = mbr::parse(&sector);
    for size in SECTOR_SIZES {
        if let Some(table) = gpt::read(disk, size)? {
            return Ok(table);
        }
    }
    let Some(record) = record else {
        return Ok(Table {
            scheme: Scheme::None,
            partitions: Vec::new(),
        });
    };
    if record.is_protective() {
        return Err(PartitionError::BothGptsDamaged);
    }
    let partitions = mbr::partitions(disk, &record)?;
    let scheme = if partitions.is_empty() {
        // A boot sector of a file system ends with the same two bytes.
        Scheme::None
    } else {
        Scheme::Mbr
    };
    Ok(Table { scheme, partitions })
}

/// The place of a partition, if all of it is on the disk.
fn on_disk(disk: &impl Storage, start: u64, len: u64) -> Option<(u64, u64)> {
    let end = start.checked_add(len)?;
    (len > 0 && end <= disk.len_bytes()).then_some((start, len))
}
