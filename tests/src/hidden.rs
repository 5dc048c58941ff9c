//! What `qemu-img` does not show of a qcow2 image: the header extensions and the bits of the bitmaps. And the
//! places in the header that tests set by hand.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// Offset of the incompatible feature bits; the compatible and the autoclear ones follow.
pub const INCOMPATIBLE: u64 = 72;
/// Offset of the compatible feature bits.
pub const COMPATIBLE: u64 = 80;
/// Offset of the autoclear feature bits.
pub const AUTOCLEAR: u64 = 88;

/// Extensions whose data says where something lies.
const PLACES: [u32; 2] = [BITMAPS, ENCRYPTION];
/// The names of feature bits, which each program writes in its own way, or not at all.
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
const ENCRYPTION: u32 = 0x0537_be77;
/// The largest bitmap table or bitmap that is read.
const LARGEST: u64 = 64 << 20;

/// What two images with the same history have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hidden {
    /// Type and data of each header extension; no data where it is about places in the file.
    extensions: Vec<(u32, Vec<u8>)>,
    bitmaps: Vec<Bitmap>,
}

#[derive(Clone, PartialEq, Eq)]
struct Bitmap {
    name: String,
    flags: u32,
    granularity_bits: u8,
    /// Those clusters of the bits that are not all zeros, by their number.
    bits: BTreeMap<u64, Vec<u8>>,
}

impl std::fmt::Debug for Bitmap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = self.bits.values().flatten();
        let ones: u32 = bytes.map(|byte| byte.count_ones()).sum();
        let (name, flags, g) = (&self.name, self.flags, self.granularity_bits);
        write!(f, "{name} flags {flags} granularity 2^{g} {ones} bits set")
    }
}

/// A qcow2 file that is read by hand.
struct Image {
    file: File,
    version: u32,
    cluster_bits: u32,
    size: u64,
}

/// One header extension, with the offset of its data.
#[derive(Debug)]
struct Extension {
    kind: u32,
    data: Vec<u8>,
    at: u64,
}

impl Image {
    /// None if the file is no qcow2 image.
    fn open(path: &Path, write: bool) -> Result<Option<Self>> {
        let file = File::options().read(true).write(write).open(path)?;
        let mut magic = [0; 4];
        let found = file.read_at(&mut magic, 0)?;
        if found < 4 || magic != *b"QFI\xfb" {
            return Ok(None);
        }
        let mut image = Self {
            file,
            version: 0,
            cluster_bits: 0,
            size: 0,
        };
        image.version = image.u32(4)?;
        image.cluster_bits = image.u32(20)?;
        image.size = image.u64(24)?;
        Ok(Some(image))
    }

    fn bytes(&self, at: u64, len: u64) -> Result<Vec<u8>> {
        ensure!(len <= LARGEST, "{len} bytes of metadata");
        let mut bytes = vec![0; usize::try_from(len)?];
        self.file
            .read_exact_at(&mut bytes, at)
            .with_context(|| format!("{len} bytes at {at}"))?;
        Ok(bytes)
    }

    fn u32(&self, at: u64) -> Result<u32> {
        Ok(u32::from_be_bytes(
            self.bytes(at, 4)?.as_slice().try_into()?,
        ))
    }

    fn u64(&self, at: u64) -> Result<u64> {
        Ok(u64::from_be_bytes(
            self.bytes(at, 8)?.as_slice().try_into()?,
        ))
    }

    /// The extensions, and the offset of the end marker.
    fn extensions(&self) -> Result<(Vec<Extension>, u64)> {
        let mut at = match self.version {
            2 => 72,
            _ => self.u32(100)?.into(),
        };
        let mut all = Vec::new();
        while at + 8 <= 1 << self.cluster_bits {
            let (kind, len) = (self.u32(at)?, u64::from(self.u32(at + 4)?));
            if kind == 0 {
                break;
            }
            let data = self.bytes(at + 8, len)?;
            all.push(Extension {
                kind,
                data,
                at: at + 8,
            });
            at += 8 + len.next_multiple_of(8);
        }
        Ok((all, at))
    }

    fn bitmaps(&self) -> Result<Vec<Bitmap>> {
        let (extensions, _) = self.extensions()?;
        let Some(extension) = extensions.iter().find(|e| e.kind == BITMAPS) else {
            return Ok(Vec::new());
        };
        let count = self.u32(extension.at)?;
        let mut at = self.u64(extension.at + 16)?;
        let mut all = Vec::new();
        for _ in 0..count {
            let granularity_bits = self.bytes(at + 17, 1)?[0];
            let name_len = u64::from(self.u32(at + 16)? & 0xffff);
            let extra = u64::from(self.u32(at + 20)?);
            let name = self.bytes(at + 24 + extra, name_len)?;
            all.push(Bitmap {
                name: String::from_utf8_lossy(&name).into_owned(),
                flags: self.u32(at + 12)?,
                granularity_bits,
                bits: self.bits(self.u64(at)?, self.u32(at + 8)?, granularity_bits)?,
            });
            at += (24 + extra + name_len).next_multiple_of(8);
        }
        Ok(all)
    }

    /// The bits of a bitmap whose table has `entries` entries.
    fn bits(
        &self,
        table: u64,
        entries: u32,
        granularity_bits: u8,
    ) -> Result<BTreeMap<u64, Vec<u8>>> {
        let cluster = 1_u64 << self.cluster_bits;
        let wanted = self.size.div_ceil(1 << granularity_bits).div_ceil(8);
        let mut bits = BTreeMap::new();
        for index in 0..u64::from(entries) {
            let mut bytes = match self.u64(table + index * 8)? {
                0 => continue,
                1 => vec![0xff; usize::try_from(cluster)?],
                offset => self.bytes(offset, cluster)?,
            };
            let rest = wanted.saturating_sub(index * cluster);
            bytes.truncate(usize::try_from(rest)?);
            if bytes.iter().any(|byte| *byte != 0) {
                bits.insert(index, bytes);
            }
        }
        Ok(bits)
    }
}

/// Reads what is hidden of an image; none if the file is no qcow2 image.
pub fn hidden(path: &Path) -> Result<Option<Hidden>> {
    let Some(image) = Image::open(path, false)? else {
        return Ok(None);
    };
    // Only this bit says that the bitmaps are right; version 2 does not have it.
    let bitmaps_are_right = image.version == 3 && image.u64(AUTOCLEAR)? & 1 == 1;
    let (extensions, _) = image.extensions()?;
    let mut extensions: Vec<_> = extensions
        .into_iter()
        .filter(|e| e.kind != FEATURE_NAMES && (e.kind != BITMAPS || bitmaps_are_right))
        .map(|e| match PLACES.contains(&e.kind) {
            true => (e.kind, Vec::new()),
            false => (e.kind, e.data),
        })
        .collect();
    extensions.sort();
    let bitmaps = match bitmaps_are_right {
        true => image.bitmaps()?,
        false => Vec::new(),
    };
    Ok(Some(Hidden {
        extensions,
        bitmaps,
    }))
}

/// The cluster size of an image in bytes; 1 if the file is no qcow2 image.
pub fn cluster_size(path: &Path) -> Result<u64> {
    let image = Image::open(path, false)?;
    Ok(image.map_or(1, |image| 1 << image.cluster_bits))
}

fn open(path: &Path) -> Result<Image> {
    Image::open(path, true)?.with_context(|| format!("{} is no qcow2 image", path.display()))
}

/// Sets or clears bit `bit` of the feature bits at `offset`.
pub fn set_feature(path: &Path, offset: u64, bit: u32, on: bool) -> Result<()> {
    let image = open(path)?;
    ensure!(image.version == 3, "version {}", image.version);
    let old = image.u64(offset)?;
    let new = if on {
        old | 1 << bit
    } else {
        old & !(1 << bit)
    };
    ensure!(old != new, "bit {bit} at {offset} is so already");
    Ok(image.file.write_all_at(&new.to_be_bytes(), offset)?)
}

/// Adds a header extension at the end of those that are there.
pub fn add_extension(path: &Path, kind: u32, data: &[u8]) -> Result<()> {
    let image = open(path)?;
    let (_, end) = image.extensions()?;
    let len = u32::try_from(data.len())?;
    let mut bytes = [kind.to_be_bytes(), len.to_be_bytes()].concat();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(8) + 8, 0);
    Ok(image.file.write_all_at(&bytes, end)?)
}

/// Marks the first bitmap as in use, which makes it inconsistent.
pub fn mark_bitmap_in_use(path: &Path) -> Result<()> {
    let image = open(path)?;
    let (extensions, _) = image.extensions()?;
    let extension = extensions.iter().find(|e| e.kind == BITMAPS);
    let directory = image.u64(extension.context("no bitmaps")?.at + 16)?;
    let flags = image.u32(directory + 12)? | 1;
    Ok(image
        .file
        .write_all_at(&flags.to_be_bytes(), directory + 12)?)
}

/// Sets the refcount of the last cluster of the file, which must be 16 bits wide.
pub fn set_last_refcount(path: &Path, value: u16) -> Result<()> {
    let image = open(path)?;
    let last = (image.file.metadata()?.len() - 1) >> image.cluster_bits;
    let block = image.u64(image.u64(48)?)?;
    if last >= 1 << (image.cluster_bits - 1) {
        bail!("the file has more than one refcount block");
    }
    Ok(image
        .file
        .write_all_at(&value.to_be_bytes(), block + last * 2)?)
}

/// Takes the extra data out of every entry of the snapshot table, as old versions of QEMU wrote it.
pub fn strip_snapshots(path: &Path) -> Result<()> {
    let image = open(path)?;
    let (count, start) = (image.u32(60)?, image.u64(64)?);
    let (mut at, mut table) = (start, Vec::new());
    for _ in 0..count {
        let extra = u64::from(image.u32(at + 36)?);
        let names = u64::from(image.u32(at + 12)? >> 16) + u64::from(image.u32(at + 12)? & 0xffff);
        table.extend(image.bytes(at, 36)?);
        table.extend([0; 4]);
        table.extend(image.bytes(at + 40 + extra, names)?);
        table.resize(table.len().next_multiple_of(8), 0);
        at += (40 + extra + names).next_multiple_of(8);
    }
    table.resize(usize::try_from(at - start)?, 0);
    Ok(image.file.write_all_at(&table, start)?)
}
