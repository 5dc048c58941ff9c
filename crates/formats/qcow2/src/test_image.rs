//! Builds small images for unit tests.

use crate::header::{MAGIC, RawHeader};
use alloc::vec::Vec;
use instar_storage::MemStorage;
use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromZeros, IntoBytes};

/// Where the bitmap directory is put.
pub(crate) const DIRECTORY: usize = 0x4_0000;
/// Where all bitmap tables are put: past a directory of 65535 short names.
pub(crate) const BITMAP_TABLE: usize = 0x40_0000;

/// A header, extensions and a backing file name; the rest of the image is zeros.
#[derive(Clone)]
pub(crate) struct Builder {
    pub(crate) raw: RawHeader,
    pub(crate) extensions: Vec<u8>,
    pub(crate) tail: Vec<(usize, Vec<u8>)>,
}

impl Builder {
    /// Version 3, 64 KiB clusters, 64 MiB, as `qemu-img create` makes it.
    pub(crate) fn v3() -> Self {
        let mut raw = RawHeader::new_zeroed();
        raw.magic = U32::new(MAGIC);
        raw.version = U32::new(3);
        raw.cluster_bits = U32::new(16);
        raw.size = U64::new(64 << 20);
        raw.l1_size = U32::new(1);
        raw.l1_table_offset = U64::new(0x3_0000);
        raw.refcount_table_offset = U64::new(0x1_0000);
        raw.refcount_table_clusters = U32::new(1);
        raw.refcount_order = U32::new(4);
        raw.header_length = U32::new(112);
        Self {
            raw,
            extensions: Vec::new(),
            tail: Vec::new(),
        }
    }

    pub(crate) fn extension(&mut self, kind: u32, data: &[u8]) {
        self.extensions.extend_from_slice(&kind.to_be_bytes());
        self.extensions
            .extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
        self.extensions.extend_from_slice(data);
        self.extensions
            .resize(self.extensions.len().next_multiple_of(8), 0);
    }

    pub(crate) fn backing(&mut self, offset: usize, name: &[u8]) {
        self.raw.backing_file_offset = U64::new(offset as u64);
        self.raw.backing_file_size = U32::new(name.len().try_into().unwrap());
        self.tail.push((offset, name.to_vec()));
    }

    /// A directory of consistent bitmaps with empty tables, 64 KiB granularity.
    pub(crate) fn bitmaps(&mut self, names: &[&[u8]]) {
        let mut directory = Vec::new();
        for name in names {
            directory.extend_from_slice(&(BITMAP_TABLE as u64).to_be_bytes());
            directory.extend_from_slice(&1_u32.to_be_bytes());
            directory.extend_from_slice(&2_u32.to_be_bytes());
            directory.extend_from_slice(&[1, 16]);
            directory.extend_from_slice(&u16::try_from(name.len()).unwrap().to_be_bytes());
            directory.extend_from_slice(&0_u32.to_be_bytes());
            directory.extend_from_slice(name);
            directory.resize(directory.len().next_multiple_of(8), 0);
        }
        let mut data = Vec::new();
        data.extend_from_slice(&u32::try_from(names.len()).unwrap().to_be_bytes());
        data.extend_from_slice(&0_u32.to_be_bytes());
        data.extend_from_slice(&(directory.len() as u64).to_be_bytes());
        data.extend_from_slice(&(DIRECTORY as u64).to_be_bytes());
        self.extension(crate::extensions::EXT_BITMAPS, &data);
        self.raw.autoclear_features = U64::new(1);
        self.tail.push((DIRECTORY, directory));
    }

    /// The image; sparse towards its end.
    pub(crate) fn storage(&self) -> MemStorage {
        let mut bytes = self.raw.as_bytes().to_vec();
        bytes.extend_from_slice(&self.extensions);
        bytes.resize(bytes.len().max(1024), 0);
        for (at, data) in &self.tail {
            bytes.resize(bytes.len().max(at + data.len()), 0);
            bytes[*at..*at + data.len()].copy_from_slice(data);
        }
        MemStorage::new(bytes)
    }
}
