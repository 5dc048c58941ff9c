//! The bitmap directory.
//!
//! qcow2 "Bitmap directory" and "Bitmap table". QEMU loads every consistent
//! bitmap when it opens an image, for info and check alike, so a directory that
//! it refuses keeps the image closed: [`validate`] judges as it does.

use crate::bits;
use crate::entries::OFFSET_MASK;
use crate::extensions::{BitmapsExtension, cut_at_nul};
use crate::header::{Header, Lossy, MAX_FILE_BYTES};
use crate::units::HostOffset;
use crate::window::{Window, WindowError, zeroed};
use alloc::vec::Vec;
use instar_storage::Errno;
use instar_storage::{Storage, StorageError};
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

mod names;
use names::NameSet;

/// QEMU: the most entries a bitmap table may have.
pub const MAX_BITMAP_TABLE_ENTRIES: u32 = 0x0800_0000;
/// QEMU: the most bytes a bitmap may have.
pub const MAX_BITMAP_BYTES: u64 = 0x2000_0000;
/// QEMU: the longest bitmap name.
pub const MAX_BITMAP_NAME_BYTES: u16 = 1023;
/// QEMU: the smallest granularity, as a logarithm.
pub const MIN_GRANULARITY_BITS: u8 = 9;
/// QEMU: the largest granularity, as a logarithm.
pub const MAX_GRANULARITY_BITS: u8 = 31;
/// Our cap on the bytes of bitmap tables that opening an image reads. An honest
/// image stays far below; tables past it are not judged when opening.
pub const MAX_TABLE_BYTES_JUDGED: u64 = 256 << 20;

/// Reserved bits of a bitmap table entry.
pub const BITMAP_TABLE_RESERVED: u64 = bits(1, 8) | bits(56, 63);

const FLAG_IN_USE: u32 = 1;
const FLAG_AUTO: u32 = 2;
const FLAG_EXTRA_DATA_COMPATIBLE: u32 = 4;
const TYPE_DIRTY_TRACKING: u8 = 1;

/// The fixed part of a directory entry.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RawBitmap {
    /// Where the bitmap table is.
    pub table_offset: U64,
    /// Its entries.
    pub table_size: U32,
    /// Bit 0 in use, 1 auto, 2 extra data compatible.
    pub flags: U32,
    /// 1: dirty tracking.
    pub bitmap_type: u8,
    /// Logarithm of the granularity.
    pub granularity_bits: u8,
    /// Bytes of the name.
    pub name_size: U16,
    /// Bytes of extra data.
    pub extra_data_size: U32,
}
wire_layout!(RawBitmap, size = 24, {
    table_offset @ 0, table_size @ 8, flags @ 12, bitmap_type @ 16,
    granularity_bits @ 17, name_size @ 18, extra_data_size @ 20,
});

/// Why a bitmap directory is refused. `Display` is `qemu-img`'s text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BitmapError {
    /// A directory of 0 bytes.
    #[error("Requested bitmap directory size is zero")]
    DirectoryEmpty,
    /// The store failed, or the directory lies past any file's end.
    #[error("Failed to read bitmap directory: {}", Errno(.0.errno))]
    Directory(#[source] StorageError),
    /// No memory for an entry.
    #[error("Failed to read bitmap directory: Cannot allocate memory")]
    OutOfMemory,
    /// An entry reaches past the directory.
    #[error("Broken bitmap directory")]
    Broken,
    /// More entries than the extension says.
    #[error("More bitmaps found than specified in header extension")]
    More,
    /// Fewer entries than the extension says.
    #[error("Less bitmaps found than specified in header extension")]
    Less,
    /// Extra data, which nothing defines.
    #[error("Bitmap extra data is not supported")]
    ExtraData,
    /// A field out of its range.
    #[error("Bitmap '{}' doesn't satisfy the constraints", Lossy(name))]
    Constraints {
        /// Up to 65535 bytes.
        name: Vec<u8>,
    },
    /// Two consistent bitmaps of one name.
    #[error("Bitmap already exists: {}", Lossy(name))]
    Duplicate {
        /// Up to 1023 bytes.
        name: Vec<u8>,
    },
    /// The table cannot be read, or an entry has reserved bits set.
    #[error(
        "Could not read bitmap_table table from image for bitmap '{}': {}",
        Lossy(name),
        Errno(*errno)
    )]
    Table {
        /// Up to 1023 bytes.
        name: Vec<u8>,
        /// 22 for reserved bits, else the store's.
        errno: u32,
    },
    /// The table has not the size that virtual size and granularity ask for.
    #[error("Could not read bitmap '{}' from image: Invalid argument", Lossy(name))]
    TableSize {
        /// Up to 1023 bytes.
        name: Vec<u8>,
    },
}

impl From<WindowError> for BitmapError {
    fn from(e: WindowError) -> Self {
        match e {
            WindowError::Storage(e) => Self::Directory(e),
            WindowError::OutOfMemory => Self::OutOfMemory,
        }
    }
}

/// An entry of the bitmap directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Its place in the directory, from 0.
    pub index: u32,
    /// Where its bitmap table is; not judged.
    pub table_offset: HostOffset,
    /// Entries of its bitmap table; not judged.
    pub table_size: u32,
    /// All flag bits.
    pub flags: u32,
    /// 1: dirty tracking; not judged.
    pub bitmap_type: u8,
    /// Logarithm of the granularity in bytes; not judged.
    pub granularity_bits: u8,
    /// Bytes of the name as stored.
    pub name_size: u16,
    /// Name, up to its first NUL; any bytes.
    pub name: Vec<u8>,
}

impl Bitmap {
    /// Bit 0: not saved properly, to be considered inconsistent.
    pub const fn in_use(&self) -> bool {
        self.flags & FLAG_IN_USE != 0
    }

    /// Bit 1: records writes while the image is open.
    pub const fn auto(&self) -> bool {
        self.flags & FLAG_AUTO != 0
    }

    /// Bit 2: unknown extra data may be ignored.
    pub const fn extra_data_compatible(&self) -> bool {
        self.flags & FLAG_EXTRA_DATA_COMPATIBLE != 0
    }

    /// Bytes of the disk that one bit stands for; 0 if past 2^63.
    pub fn granularity_bytes(&self) -> u64 {
        1_u64.checked_shl(self.granularity_bits.into()).unwrap_or(0)
    }

    /// Bytes of the bitmap table.
    pub const fn table_bytes(&self) -> u64 {
        (self.table_size as u64).saturating_mul(8)
    }

    /// True if QEMU takes the entry's fields for this image.
    pub fn satisfies_constraints(&self, header: &Header) -> bool {
        let offset = self.table_offset.get();
        let known_flags = FLAG_IN_USE | FLAG_AUTO;
        let fields = self.table_size != 0
            && self.table_size <= MAX_BITMAP_TABLE_ENTRIES
            && offset != 0
            && header.cluster_bits.is_aligned(offset)
            && self.granularity_bits >= MIN_GRANULARITY_BITS
            && self.granularity_bits <= MAX_GRANULARITY_BITS
            && self.flags & !known_flags == 0
            && self.bitmap_type == TYPE_DIRTY_TRACKING
            && self.name_size <= MAX_BITMAP_NAME_BYTES;
        let bytes = u64::from(self.table_size).saturating_mul(header.cluster_bits.size_bytes());
        let covers = (u128::from(bytes) << 3) << self.granularity_bits.min(63);
        fields && bytes <= MAX_BITMAP_BYTES && u128::from(header.whole_sectors_size()) <= covers
    }

    /// Entries that the table must have: the bitmap's clusters.
    fn expected_table_size(&self, header: &Header) -> u64 {
        let granularity = self.granularity_bytes().max(1);
        let bitmap_bits = header.whole_sectors_size().div_ceil(granularity);
        header.cluster_bits.clusters_for(bitmap_bits.div_ceil(8))
    }
}

/// An entry of a bitmap table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct BitmapTableEntry(pub u64);

impl BitmapTableEntry {
    /// Takes the 8 bytes of the table.
    pub const fn from_be_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_be_bytes(bytes))
    }

    /// Where the cluster of the bitmap is; 0 if none is allocated.
    pub const fn host_offset(self) -> HostOffset {
        HostOffset(self.0 & OFFSET_MASK)
    }

    /// Bit 0 without a cluster: all bits of the bitmap's cluster are ones.
    pub const fn all_ones(self) -> bool {
        self.0 & 1 != 0
    }

    /// True if QEMU takes the entry: reserved bits clear, offset aligned, bit 0
    /// clear where there is a cluster.
    pub const fn is_valid(self, header: &Header) -> bool {
        let offset = self.host_offset().get();
        self.0 & BITMAP_TABLE_RESERVED == 0
            && header.cluster_bits.is_aligned(offset)
            && (offset == 0 || !self.all_ones())
    }
}

/// Iterates over a bitmap directory; ends after the first error.
pub struct BitmapDirectory<'s, S> {
    window: Option<Window<'s, S>>,
    storage: &'s S,
    extension: BitmapsExtension,
    position: u64,
    index: u32,
    done: bool,
}

impl<'s, S: Storage> BitmapDirectory<'s, S> {
    /// The directory that the extension points to.
    pub const fn new(storage: &'s S, extension: BitmapsExtension) -> Self {
        Self {
            window: None,
            storage,
            extension,
            position: 0,
            index: 0,
            done: false,
        }
    }

    fn read(&mut self, position: u64, out: &mut [u8]) -> Result<(), BitmapError> {
        let window = match &mut self.window {
            Some(window) => window,
            None => self.window.insert(Window::new(self.storage)?),
        };
        let offset = self
            .extension
            .directory_offset
            .get()
            .saturating_add(position);
        window.read(offset, out).map_err(BitmapError::Directory)
    }

    fn read_entry(&mut self) -> Result<Option<Bitmap>, BitmapError> {
        let size = self.extension.directory_size;
        if self.position == 0 {
            self.check_directory()?;
        }
        if self.position >= size {
            let complete = self.index >= self.extension.nb_bitmaps;
            return if complete {
                Ok(None)
            } else {
                Err(BitmapError::Less)
            };
        }
        let left = size.saturating_sub(self.position);
        if left < 24 {
            return Err(BitmapError::Broken);
        }
        if self.index >= self.extension.nb_bitmaps {
            return Err(BitmapError::More);
        }
        let mut raw = RawBitmap::new_zeroed();
        self.read(self.position, raw.as_mut_bytes())?;
        let entry_bytes = entry_bytes(&raw);
        if i64::from(entry_bytes) > left.cast_signed() {
            return Err(BitmapError::Broken);
        }
        if raw.extra_data_size.get() != 0 {
            return Err(BitmapError::ExtraData);
        }
        let mut name = zeroed(raw.name_size.get().into()).ok_or(BitmapError::OutOfMemory)?;
        self.read(self.position.saturating_add(24), &mut name)?;
        cut_at_nul(&mut name);
        let bitmap = Bitmap {
            index: self.index,
            table_offset: HostOffset(raw.table_offset.get()),
            table_size: raw.table_size.get(),
            flags: raw.flags.get(),
            bitmap_type: raw.bitmap_type,
            granularity_bits: raw.granularity_bits,
            name_size: raw.name_size.get(),
            name,
        };
        self.index = self.index.saturating_add(1);
        self.position = self
            .position
            .saturating_add(u64::from(entry_bytes.unsigned_abs()));
        Ok(Some(bitmap))
    }

    fn check_directory(&self) -> Result<(), BitmapError> {
        let BitmapsExtension {
            directory_size,
            directory_offset,
            ..
        } = self.extension;
        if directory_size == 0 {
            return Err(BitmapError::DirectoryEmpty);
        }
        let offset = directory_offset.get();
        if offset.saturating_add(directory_size) > MAX_FILE_BYTES {
            return Err(BitmapError::Directory(StorageError { errno: 5, offset }));
        }
        Ok(())
    }
}

/// Bytes of an entry with its padding. QEMU counts them in 32 signed bits, so
/// that extra data of 2 GiB gives a negative number.
fn entry_bytes(raw: &RawBitmap) -> i32 {
    let bytes = 24_u32
        .wrapping_add(raw.name_size.get().into())
        .wrapping_add(raw.extra_data_size.get())
        .wrapping_add(7);
    (bytes & !7).cast_signed()
}

impl<S: Storage> Iterator for BitmapDirectory<'_, S> {
    type Item = Result<Bitmap, BitmapError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let entry = self.read_entry();
        self.done = !matches!(entry, Ok(Some(_)));
        entry.transpose()
    }
}

/// Judges the whole directory as QEMU does when it opens the image.
///
/// # Errors
/// [`BitmapError`]: the first thing wrong, in QEMU's order.
pub fn validate<S: Storage>(
    storage: &S,
    header: &Header,
    extension: BitmapsExtension,
) -> Result<(), BitmapError> {
    for bitmap in BitmapDirectory::new(storage, extension) {
        let bitmap = bitmap?;
        if !bitmap.satisfies_constraints(header) {
            return Err(BitmapError::Constraints { name: bitmap.name });
        }
    }
    let mut names = NameSet::new(extension.nb_bitmaps).ok_or(BitmapError::OutOfMemory)?;
    let mut budget = MAX_TABLE_BYTES_JUDGED;
    for bitmap in BitmapDirectory::new(storage, extension) {
        let bitmap = bitmap?;
        if bitmap.in_use() {
            continue;
        }
        if !names.insert(&bitmap.name) {
            return Err(BitmapError::Duplicate { name: bitmap.name });
        }
        if let Some(left) = budget.checked_sub(bitmap.table_bytes()) {
            budget = left;
            validate_table(storage, header, &bitmap)?;
        }
        if u64::from(bitmap.table_size) != bitmap.expected_table_size(header) {
            return Err(BitmapError::TableSize { name: bitmap.name });
        }
    }
    Ok(())
}

fn validate_table<S: Storage>(
    storage: &S,
    header: &Header,
    bitmap: &Bitmap,
) -> Result<(), BitmapError> {
    let failed = |errno| BitmapError::Table {
        name: bitmap.name.clone(),
        errno,
    };
    let start = bitmap.table_offset.get();
    let end = start.saturating_add(bitmap.table_bytes());
    if end > MAX_FILE_BYTES {
        return Err(failed(5));
    }
    let mut window = Window::new(storage)?;
    let mut at = start;
    while at < end {
        let mut raw = [0; 8];
        window.read(at, &mut raw).map_err(|e| failed(e.errno))?;
        if !BitmapTableEntry::from_be_bytes(raw).is_valid(header) {
            return Err(failed(22));
        }
        at = at.saturating_add(8);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
