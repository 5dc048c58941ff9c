//! Finds the places of a qcow2 image that tests overwrite.
//!
//! The field offsets are those of the qcow2 specification, "Header" and the
//! sections after it. The images read here were made by `qemu-img`, so a place
//! that is out of range is a mistake of the test and an error.

use anyhow::{Context, Result, ensure};

use crate::scratch::Scratch;

/// A header field: name, offset and length in bytes.
pub type Field = (&'static str, usize, usize);

/// The fields of the version 3 header, qcow2 "Header".
pub const HEADER: &[Field] = &[
    ("magic", 0, 4),
    ("version", 4, 4),
    ("backing_file_offset", 8, 8),
    ("backing_file_size", 16, 4),
    ("cluster_bits", 20, 4),
    ("size", 24, 8),
    ("crypt_method", 32, 4),
    ("l1_size", 36, 4),
    ("l1_table_offset", 40, 8),
    ("refcount_table_offset", 48, 8),
    ("refcount_table_clusters", 56, 4),
    ("nb_snapshots", 60, 4),
    ("snapshots_offset", 64, 8),
    ("incompatible_features", 72, 8),
    ("compatible_features", 80, 8),
    ("autoclear_features", 88, 8),
    ("refcount_order", 96, 4),
    ("header_length", 100, 4),
    ("compression_type", 104, 1),
];

/// Header extension: bitmaps.
pub const EXT_BITMAPS: u32 = 0x2385_2875;
/// Header extension: full disk encryption header.
pub const EXT_CRYPTO: u32 = 0x0537_be77;
/// Header extension: backing file format name.
pub const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
/// Header extension: feature name table.
pub const EXT_FEATURES: u32 = 0x6803_f857;
/// Header extension: external data file name.
pub const EXT_DATA_FILE: u32 = 0x4441_5441;

/// Bits of a table entry that hold an offset, qcow2 "Cluster mapping".
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

/// An image in memory, to be changed and written out again.
#[derive(Debug, Clone)]
pub struct Image {
    bytes: Vec<u8>,
}

impl Image {
    /// Reads an image of the scratch folder.
    pub fn load(scratch: &Scratch, name: &str) -> Result<Self> {
        Ok(Self {
            bytes: scratch.read(name)?,
        })
    }

    /// Writes it under a name. The last MiB-sized holes are not kept.
    pub fn save(&self, scratch: &Scratch, name: &str) -> Result<()> {
        // A new inode, so that no earlier run's locks or cached sizes remain.
        let _ = std::fs::remove_file(scratch.file(name));
        scratch.write(name, &self.bytes)
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A big-endian number of 1 to 8 bytes.
    pub fn get(&self, at: usize, len: usize) -> Result<u64> {
        let part = self
            .bytes
            .get(at..at + len)
            .with_context(|| format!("the image has no {len} bytes at {at:#x}"))?;
        Ok(part
            .iter()
            .fold(0, |number, byte| (number << 8) | u64::from(*byte)))
    }

    /// Overwrites a big-endian number of 1 to 8 bytes.
    pub fn set(&mut self, at: usize, len: usize, value: u64) -> Result<()> {
        let bytes = value.to_be_bytes();
        self.put(at, &bytes[8 - len..])
    }

    /// Overwrites bytes.
    pub fn put(&mut self, at: usize, bytes: &[u8]) -> Result<()> {
        self.bytes
            .get_mut(at..at + bytes.len())
            .with_context(|| format!("the image has no {} bytes at {at:#x}", bytes.len()))?
            .copy_from_slice(bytes);
        Ok(())
    }

    /// A field of the header by name.
    pub fn field(&self, name: &str) -> Result<u64> {
        let (_, at, len) = named(name)?;
        self.get(at, len)
    }

    /// Overwrites a field of the header by name.
    pub fn set_field(&mut self, name: &str, value: u64) -> Result<()> {
        let (_, at, len) = named(name)?;
        self.set(at, len, value)
    }

    /// Bytes in a cluster.
    pub fn cluster_size(&self) -> Result<usize> {
        Ok(1 << self.field("cluster_bits")?)
    }

    /// Where each L1 entry is.
    pub fn l1_entries(&self) -> Result<Vec<usize>> {
        let start = usize::try_from(self.field("l1_table_offset")?)?;
        let count = usize::try_from(self.field("l1_size")?)?;
        Ok((0..count).map(|index| start + 8 * index).collect())
    }

    /// Bytes of an L2 entry: 16 with extended L2 entries.
    pub fn l2_entry_len(&self) -> Result<usize> {
        let extended =
            self.field("version")? >= 3 && self.field("incompatible_features")? & 16 != 0;
        Ok(if extended { 16 } else { 8 })
    }

    /// Where each L2 entry of each allocated L2 table of the active L1 table
    /// is; the image offset, not the guest offset.
    pub fn l2_entries(&self) -> Result<Vec<usize>> {
        let entry = self.l2_entry_len()?;
        let mut places = Vec::new();
        for table in self.tables(&self.l1_entries()?)? {
            places.extend((table..table + self.cluster_size()?).step_by(entry));
        }
        Ok(places)
    }

    /// Where the L2 entries that map something are.
    pub fn used_l2_entries(&self) -> Result<Vec<usize>> {
        let mut used = Vec::new();
        for place in self.l2_entries()? {
            if self.get(place, 8)? != 0 {
                used.push(place);
            }
        }
        ensure!(!used.is_empty(), "the image maps nothing");
        Ok(used)
    }

    /// Where each refcount table entry is.
    pub fn refcount_table(&self) -> Result<Vec<usize>> {
        let start = usize::try_from(self.field("refcount_table_offset")?)?;
        let clusters = usize::try_from(self.field("refcount_table_clusters")?)?;
        let len = clusters * self.cluster_size()?;
        Ok((start..start + len).step_by(8).collect())
    }

    /// Where each allocated refcount block starts.
    pub fn refcount_blocks(&self) -> Result<Vec<usize>> {
        self.tables(&self.refcount_table()?)
    }

    /// Bits of a refcount.
    pub fn refcount_bits(&self) -> Result<usize> {
        Ok(match self.field("version")? {
            2 => 16,
            _ => 1 << self.field("refcount_order")?,
        })
    }

    /// Overwrites the refcount of a cluster that has a refcount block.
    pub fn set_refcount(&mut self, cluster: usize, value: u64) -> Result<()> {
        let bits = self.refcount_bits()?;
        let per_block = self.cluster_size()? * 8 / bits;
        let blocks = self.refcount_blocks()?;
        let block = *blocks
            .get(cluster / per_block)
            .context("the cluster has no refcount block")?;
        let index = cluster % per_block;
        if bits >= 8 {
            return self.set(block + index * bits / 8, bits / 8, value);
        }
        // Below 8 bits the lowest bits of a byte belong to the first cluster.
        let (at, shift) = (block + index * bits / 8, index * bits % 8);
        let mask = ((1_u64 << bits) - 1) << shift;
        let old = self.get(at, 1)?;
        self.set(at, 1, (old & !mask) | ((value << shift) & mask))
    }

    /// The clusters of the file.
    pub fn clusters(&self) -> Result<usize> {
        Ok(self.len().div_ceil(self.cluster_size()?))
    }

    /// Where the data of a header extension is, and its length.
    pub fn extension(&self, magic: u32) -> Result<(usize, usize)> {
        let mut at = match self.field("version")? {
            2 => 72,
            _ => usize::try_from(self.field("header_length")?)?,
        };
        loop {
            let (kind, len) = (self.get(at, 4)?, usize::try_from(self.get(at + 4, 4)?)?);
            if kind == u64::from(magic) {
                return Ok((at + 8, len));
            }
            ensure!(kind != 0, "the image has no header extension {magic:#x}");
            at += 8 + len.next_multiple_of(8);
        }
    }

    /// Takes the backing file format away: the extension becomes an unknown
    /// one, which readers ignore.
    pub fn forget_backing_format(&mut self) -> Result<()> {
        let (data, _) = self.extension(EXT_BACKING_FORMAT)?;
        self.set(data - 8, 4, 0x7465_7374)
    }

    /// Where each snapshot table entry starts, qcow2 "Snapshots".
    pub fn snapshots(&self) -> Result<Vec<usize>> {
        let mut at = usize::try_from(self.field("snapshots_offset")?)?;
        let mut places = Vec::new();
        for _ in 0..self.field("nb_snapshots")? {
            places.push(at);
            let id = usize::try_from(self.get(at + 12, 2)?)?;
            let name = usize::try_from(self.get(at + 14, 2)?)?;
            let extra = usize::try_from(self.get(at + 36, 4)?)?;
            at = (at + 40 + extra + id + name).next_multiple_of(8);
        }
        Ok(places)
    }

    /// Where each bitmap directory entry starts, qcow2 "Bitmaps".
    pub fn bitmaps(&self) -> Result<Vec<usize>> {
        let (data, _) = self.extension(EXT_BITMAPS)?;
        let mut at = usize::try_from(self.get(data + 16, 8)?)?;
        let mut places = Vec::new();
        for _ in 0..self.get(data, 4)? {
            places.push(at);
            let name = usize::try_from(self.get(at + 18, 2)?)?;
            let extra = usize::try_from(self.get(at + 20, 4)?)?;
            at = (at + 24 + extra + name).next_multiple_of(8);
        }
        Ok(places)
    }

    fn tables(&self, entries: &[usize]) -> Result<Vec<usize>> {
        let mut tables = Vec::new();
        for entry in entries {
            let offset = self.get(*entry, 8)? & OFFSET_MASK;
            if offset != 0 {
                tables.push(usize::try_from(offset)?);
            }
        }
        Ok(tables)
    }
}

fn named(name: &str) -> Result<Field> {
    HEADER
        .iter()
        .copied()
        .find(|field| field.0 == name)
        .with_context(|| format!("the header has no field {name}"))
}
