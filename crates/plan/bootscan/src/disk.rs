//! The partitions of a disk, and what they hold.

use crate::Place;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use instar_filesystem::{Content, Files, FsError, NodeKind, Part, probe};
use instar_partition::{Partition, PartitionError, Scheme, Table};
use instar_storage::Storage;

/// What a volume holds.
#[derive(Debug)]
pub enum Held {
    /// A file system.
    Files(Files),
    /// Something that is not read.
    Other(&'static str),
    /// Nothing that is known.
    Unknown,
    /// A file system that cannot be read.
    Broken(FsError),
}

/// A partition, or the whole disk.
#[derive(Debug)]
pub struct Volume {
    /// The partition; `None` for the whole disk.
    pub partition: Option<Partition>,
    /// Length in bytes.
    pub len: u64,
    /// What it holds.
    pub held: Held,
}

/// A disk.
#[derive(Debug)]
pub struct Disk {
    /// Its kind of table.
    pub scheme: Scheme,
    /// Its partitions in order, or the whole disk.
    pub volumes: Vec<Volume>,
}

impl Disk {
    /// Reads the partition table, and opens every file system.
    ///
    /// # Errors
    /// The partition table cannot be read.
    pub fn open(store: Rc<dyn Storage>) -> Result<Self, PartitionError> {
        let Table { scheme, partitions } = instar_partition::read(&store_of(&store))?;
        let mut volumes = Vec::new();
        for partition in partitions {
            let (start, len) = (partition.start, partition.len);
            volumes.push(Volume {
                held: held(&Part::new(store.clone(), start, len)),
                partition: Some(partition),
                len,
            });
        }
        if scheme == Scheme::None {
            let len = store.len_bytes();
            volumes.push(Volume {
                partition: None,
                len,
                held: held(&Part::new(store, 0, len)),
            });
        }
        Ok(Self { scheme, volumes })
    }

    /// The file systems that are read, with the indices of their volumes.
    pub fn files(&self) -> impl Iterator<Item = (usize, &Files)> {
        let all = self.volumes.iter().enumerate();
        all.filter_map(|(index, volume)| Some((index, volume.files()?)))
    }

    /// The file system of a volume.
    #[must_use]
    pub fn files_of(&self, volume: usize) -> Option<&Files> {
        self.volumes.get(volume)?.files()
    }

    /// Whether an EFI firmware would boot the disk.
    #[must_use]
    pub fn is_efi(&self) -> bool {
        self.volumes.iter().any(Volume::is_efi_system)
    }

    /// A volume as GRUB names it, without parentheses.
    #[must_use]
    pub fn grub_name(&self, volume: usize) -> String {
        let partition = self.volumes.get(volume).and_then(|v| v.partition.as_ref());
        match (partition, self.scheme) {
            (None, _) => "hd0".to_string(),
            (Some(partition), Scheme::Mbr) => format!("hd0,msdos{}", partition.number),
            (Some(partition), _) => format!("hd0,gpt{}", partition.number),
        }
    }

    /// The volume that GRUB calls `name`, without parentheses. Other disks than the first are not there.
    #[must_use]
    pub fn by_grub_name(&self, name: &[u8]) -> Option<usize> {
        let mut parts = name.splitn(2, |byte| *byte == b',');
        if parts.next() != Some(b"hd0") {
            return None;
        }
        let number = parts.next().map(|part| {
            let digits = part.iter().position(u8::is_ascii_digit);
            let digits = part.get(digits.unwrap_or(part.len())..);
            let digits = core::str::from_utf8(digits.unwrap_or(&[])).unwrap_or("");
            digits.parse::<u32>().ok()
        });
        self.volumes
            .iter()
            .position(|volume| match (&volume.partition, number) {
                (None, None) => true,
                (Some(partition), Some(number)) => Some(partition.number) == number,
                _ => false,
            })
    }

    /// The kind of what is at a place.
    #[must_use]
    pub fn kind_at(&self, place: &Place) -> Option<NodeKind> {
        let files = self.files_of(place.volume)?;
        files.node(&place.path).ok().map(|node| node.kind)
    }

    /// All bytes of a file of at most `max` bytes.
    ///
    /// # Errors
    /// It is not there, is larger, or cannot be read.
    pub fn read(&self, place: &Place, max: u64) -> Result<Vec<u8>, FsError> {
        let files = self.files_of(place.volume).ok_or(FsError::NotFound)?;
        files.read_all(&place.path, max)
    }
}

impl Volume {
    /// Its file system.
    #[must_use]
    pub const fn files(&self) -> Option<&Files> {
        match &self.held {
            Held::Files(files) => Some(files),
            _ => None,
        }
    }

    /// Its table says that it is an EFI system partition.
    #[must_use]
    pub fn is_efi_system(&self) -> bool {
        let kind = self.partition.as_ref().map(|partition| partition.kind);
        kind.is_some_and(|kind| kind.is_efi_system())
    }
}

fn held(part: &Part) -> Held {
    match probe(part) {
        Ok(Content::Files(files)) => Held::Files(files),
        Ok(Content::Other(name)) => Held::Other(name),
        Ok(Content::Unknown) => Held::Unknown,
        Err(error) => Held::Broken(error),
    }
}

/// A reference that is a store itself.
fn store_of(store: &Rc<dyn Storage>) -> &dyn Storage {
    &**store
}
