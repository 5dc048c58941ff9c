//! What a partition holds, by its magic numbers.

use crate::btrfs::{self, BtrfsFs};
use crate::ext4::{self, Ext4Fs};
use crate::fat::FatFs;
use crate::xfs::{self, XfsFs};
use crate::{FileSystem, Files, FsError, Part};
use alloc::boxed::Box;

/// What a partition holds.
#[derive(Debug)]
pub enum Content {
    /// A file system that is read.
    Files(Files),
    /// Something known that is not read: its name.
    Other(&'static str),
    /// Nothing that is known.
    Unknown,
}

/// Magic numbers of what is not read: where, what, and its name.
const OTHERS: &[(u64, &[u8], &str)] = &[
    (0, b"LUKS\xba\xbe", "LUKS encryption"),
    (512 + 24, b"LVM2 001", "an LVM physical volume"),
    (4086, b"SWAPSPACE2", "swap space"),
    (0, b"hsqs", "squashfs"),
    (32769, b"CD001", "ISO 9660"),
    (1024, b"\x10\x20\xf5\xf2", "f2fs"),
    (1024, b"\xe2\xe1\xf5\xe0", "EROFS"),
    (3, b"NTFS    ", "NTFS"),
    (3, b"EXFAT   ", "exFAT"),
    (4096, b"\xfc\x4e\x2b\xa9", "a RAID member"),
];

/// Opens what is in `part`.
///
/// # Errors
/// It is a file system that is damaged, or has features that are not read.
pub fn probe(part: &Part) -> Result<Content, FsError> {
    let has = |at: u64, magic: &[u8]| {
        let mut found = [0; 16];
        let found = found.get_mut(..magic.len());
        found.is_some_and(|found| part.read_at(at, found).is_ok() && found == magic)
    };
    if let Some((_, _, name)) = OTHERS.iter().find(|(at, magic, _)| has(*at, magic)) {
        return Ok(Content::Other(name));
    }
    let fs: Box<dyn FileSystem> = if has(ext4::SUPERBLOCK + 0x38, &ext4::MAGIC.to_le_bytes()) {
        Box::new(Ext4Fs::open(part.clone())?)
    } else if has(0, &xfs::MAGIC) {
        Box::new(XfsFs::open(part.clone())?)
    } else if has(btrfs::MAGIC_AT, &btrfs::MAGIC) {
        Box::new(BtrfsFs::open(part.clone())?)
    } else {
        match FatFs::open(part.clone()) {
            Some(fs) => Box::new(fs),
            None => return Ok(Content::Unknown),
        }
    };
    Ok(Content::Files(Files::new(fs)))
}
