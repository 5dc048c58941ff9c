//! FAT12, FAT16 and FAT32 with long names, read-only. *Microsoft FAT Specification*, 2005.
//!
//! Names are compared without regard to ASCII case. Chains of clusters end after as many as the volume has.

mod entry;

use crate::part::Part;
use crate::{FileSystem, FsError, Node, NodeKind};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use entry::Entry;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Bytes of the boot sector that are looked at.
const BOOT_SECTOR: usize = 512;
/// Largest folder in bytes. *Microsoft FAT Specification*, "FAT Directory Structure".
const MAX_FOLDER: usize = 65536 * 32;
/// Largest count of clusters of FAT12 and of FAT16. *Microsoft FAT Specification*, "FAT Type Determination".
const MAX_CLUSTERS_12: u64 = 4085;
const MAX_CLUSTERS_16: u64 = 65525;
/// First cluster of the data region.
const FIRST_CLUSTER: u32 = 2;

/// The beginning of the boot sector.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct BootSector {
    jump: [u8; 3],
    oem: [u8; 8],
    sector_bytes: U16,
    cluster_sectors: u8,
    reserved_sectors: U16,
    fats: u8,
    root_entries: U16,
    sectors_16: U16,
    media: u8,
    fat_sectors_16: U16,
    geometry: [u8; 8],
    sectors_32: U32,
    fat_sectors_32: U32,
    flags: U16,
    version: U16,
    root_cluster: U32,
}
const _: () = assert!(size_of::<BootSector>() == 48);

/// Bits of an entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Twelve,
    Sixteen,
    ThirtyTwo,
}

/// A file system that is open.
#[derive(Debug)]
pub struct FatFs {
    part: Part,
    width: Width,
    cluster_bytes: u32,
    clusters: u32,
    /// Places in bytes.
    fat_at: u64,
    root_at: u64,
    root_bytes: usize,
    data_at: u64,
    root_cluster: u32,
    serial: u32,
    label: String,
}

impl FatFs {
    /// Opens the file system in `part`; `None` if it is none.
    pub fn open(part: Part) -> Option<Self> {
        let mut sector = [0; BOOT_SECTOR];
        part.read_at(0, &mut sector).ok()?;
        let (boot, _) = BootSector::read_from_prefix(&sector).ok()?;
        let [.., 0x55, 0xaa] = sector else {
            return None;
        };
        let bytes = u64::from(boot.sector_bytes.get());
        let cluster_bytes = bytes.checked_mul(boot.cluster_sectors.into())?;
        let powers = bytes.is_power_of_two() && cluster_bytes.is_power_of_two();
        if !powers || !(512..=4096).contains(&bytes) || !matches!(boot.fats, 1 | 2) {
            return None;
        }
        let either = |short: u16, long: u32| if short == 0 { long } else { short.into() };
        let fat_sectors = either(boot.fat_sectors_16.get(), boot.fat_sectors_32.get());
        let sectors = either(boot.sectors_16.get(), boot.sectors_32.get());
        let fat_at = bytes.checked_mul(boot.reserved_sectors.get().into())?;
        let fat_len = bytes.checked_mul(fat_sectors.into())?;
        let root_at = fat_at.checked_add(fat_len.checked_mul(boot.fats.into())?)?;
        let root_len = u64::from(boot.root_entries.get()).checked_mul(32)?;
        let data_at = root_at.checked_add(root_len.checked_next_multiple_of(bytes)?)?;
        let end = bytes.checked_mul(sectors.into())?.min(part.len_bytes());
        let clusters = end.checked_sub(data_at)?.checked_div(cluster_bytes)?;
        let width = match clusters {
            ..MAX_CLUSTERS_12 => Width::Twelve,
            MAX_CLUSTERS_12..MAX_CLUSTERS_16 => Width::Sixteen,
            _ => Width::ThirtyTwo,
        };
        if fat_at == 0 || fat_len == 0 || (width == Width::ThirtyTwo) != (root_len == 0) {
            return None;
        }
        let ids = if root_len == 0 { 67 } else { 39 };
        let serial = U32::read_from_bytes(sector.get(ids..)?.get(..4)?).ok()?;
        let label = sector.get(ids..)?.get(4..15)?;
        Some(Self {
            part,
            width,
            cluster_bytes: u32::try_from(cluster_bytes).ok()?,
            clusters: u32::try_from(clusters).ok()?,
            fat_at,
            root_at,
            root_bytes: usize::try_from(root_len).ok()?,
            data_at,
            root_cluster: boot.root_cluster.get(),
            serial: serial.get(),
            label: String::from_utf8_lossy(label).trim_end().to_string(),
        })
    }

    fn read_part(&self, at: u64, buf: &mut [u8]) -> Result<(), FsError> {
        let read = self.part.read_at(at, buf);
        read.map_err(|e| broken(e.to_string()))
    }

    /// The place of a cluster, in bytes.
    fn place(&self, cluster: u32) -> Result<u64, FsError> {
        let index = cluster.checked_sub(FIRST_CLUSTER);
        let index = index.filter(|index| *index < self.clusters);
        let index = index.ok_or_else(|| broken(format!("there is no cluster {cluster}")))?;
        let bytes = u64::from(index).saturating_mul(self.cluster_bytes.into());
        Ok(self.data_at.saturating_add(bytes))
    }

    /// The cluster after `cluster`; `None` at the end of its chain.
    fn next(&self, cluster: u32) -> Result<Option<u32>, FsError> {
        let number = u64::from(cluster);
        let (offset, end) = match self.width {
            Width::Twelve => (number.saturating_add(number >> 1), 0xff8),
            Width::Sixteen => (number << 1, 0xfff8),
            Width::ThirtyTwo => (number << 2, 0x0fff_fff8),
        };
        let mut raw = [0; 4];
        let len = if self.width == Width::ThirtyTwo { 4 } else { 2 };
        if let Some(raw) = raw.get_mut(..len) {
            self.read_part(self.fat_at.saturating_add(offset), raw)?;
        }
        let raw = u32::from_le_bytes(raw);
        let next = match self.width {
            Width::Twelve if cluster & 1 != 0 => raw >> 4,
            Width::Twelve => raw & 0xfff,
            Width::Sixteen => raw,
            Width::ThirtyTwo => raw & 0x0fff_ffff,
        };
        Ok((next < end).then_some(next))
    }

    /// Calls `take` with the place of each run of neighbouring clusters of a chain, and its length in bytes, until it
    /// says that it has enough.
    fn walk(
        &self,
        first: u32,
        take: &mut dyn FnMut(u64, u64) -> Result<bool, FsError>,
    ) -> Result<(), FsError> {
        let mut cluster = first;
        let (mut start, mut len) = (self.place(first)?, u64::from(self.cluster_bytes));
        for _ in 0..self.clusters {
            let next = self.next(cluster)?;
            if let Some(next) = next
                && next == cluster.saturating_add(1)
            {
                len = len.saturating_add(self.cluster_bytes.into());
                cluster = next;
                continue;
            }
            if !take(start, len)? {
                return Ok(());
            }
            let Some(next) = next else {
                return Ok(());
            };
            (start, len) = (self.place(next)?, self.cluster_bytes.into());
            cluster = next;
        }
        Err(broken("a chain of clusters loops".to_string()))
    }

    /// The bytes of a folder; `None` is the root.
    fn folder(&self, first: Option<u32>) -> Result<Vec<u8>, FsError> {
        let first = match (first, self.width) {
            (Some(first), _) => first,
            (None, Width::ThirtyTwo) => self.root_cluster,
            (None, _) => {
                let mut bytes = vec![0; self.root_bytes];
                self.read_part(self.root_at, &mut bytes)?;
                return Ok(bytes);
            }
        };
        let mut bytes = Vec::new();
        self.walk(first, &mut |at, len| {
            let old = bytes.len();
            let more = usize::try_from(len).unwrap_or(usize::MAX);
            let new = old.saturating_add(more).min(MAX_FOLDER);
            bytes.resize(new, 0);
            self.read_part(at, bytes.get_mut(old..).unwrap_or(&mut []))?;
            Ok(new < MAX_FOLDER)
        })?;
        Ok(bytes)
    }

    /// The entry of a path; `None` for the root.
    fn find(&self, path: &[u8]) -> Result<Option<Entry>, FsError> {
        let mut at: Option<Entry> = None;
        for name in path.split(|byte| *byte == b'/').filter(|n| !n.is_empty()) {
            let found = self.entries(at.as_ref())?;
            let found = found.into_iter().find(|entry| entry.is_named(name));
            at = Some(found.ok_or(FsError::NotFound)?);
        }
        Ok(at)
    }

    fn entries(&self, folder: Option<&Entry>) -> Result<Vec<Entry>, FsError> {
        if folder.is_some_and(|entry| !entry.folder) {
            return Err(FsError::NotAFolder);
        }
        let bytes = self.folder(folder.map(|entry| entry.first_cluster))?;
        entry::parse(&bytes)
    }
}

fn broken(reason: String) -> FsError {
    FsError::Broken {
        name: "vfat",
        reason,
    }
}

impl FileSystem for FatFs {
    fn name(&self) -> &'static str {
        "vfat"
    }

    fn uuid(&self) -> String {
        format!("{:04X}-{:04X}", self.serial >> 16, self.serial & 0xffff)
    }

    fn label(&self) -> String {
        if self.label == "NO NAME" {
            return String::new();
        }
        self.label.clone()
    }

    fn node(&self, path: &[u8]) -> Result<Node, FsError> {
        Ok(match self.find(path)? {
            Some(entry) if !entry.folder => Node {
                kind: NodeKind::File,
                len: entry.len.into(),
            },
            _ => Node {
                kind: NodeKind::Folder,
                len: 0,
            },
        })
    }

    fn link(&self, _path: &[u8]) -> Result<Vec<u8>, FsError> {
        Err(FsError::NotALink)
    }

    fn list(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, FsError> {
        let entries = self.entries(self.find(path)?.as_ref())?;
        Ok(entries.into_iter().map(|entry| entry.name).collect())
    }

    fn read(&self, path: &[u8], offset: u64, buf: &mut [u8]) -> Result<usize, FsError> {
        let entry = self.find(path)?.filter(|entry| !entry.folder);
        let entry = entry.ok_or(FsError::NotAFile)?;
        let left = u64::from(entry.len).saturating_sub(offset);
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let (mut skip, mut done) = (offset, 0_usize);
        if want == 0 {
            return Ok(0);
        }
        self.walk(entry.first_cluster, &mut |at, len| {
            let Some(here) = len.checked_sub(skip).filter(|here| *here > 0) else {
                skip = skip.saturating_sub(len);
                return Ok(true);
            };
            let len = usize::try_from(here).unwrap_or(usize::MAX);
            let end = done.saturating_add(len).min(want);
            self.read_part(
                at.saturating_add(skip),
                buf.get_mut(done..end).unwrap_or(&mut []),
            )?;
            (skip, done) = (0, end);
            Ok(done < want)
        })?;
        Ok(done)
    }
}
