//! Persistent bitmaps of the source, copied into a new image.

use alloc::vec::Vec;
use instar_plan_create::{CreateError, NewImage};
use instar_qcow2::Header;
use instar_qcow2::bitmaps::{Bitmap, BitmapDirectory, BitmapError, BitmapTableEntry};
use instar_storage::{Storage, StorageError, StorageMut};

/// I/O error.
const EIO: u32 = 5;

/// All bitmaps of an image, consistent or not.
///
/// # Errors
/// The directory is damaged.
pub fn bitmaps_of<S: Storage>(store: &S, header: &Header) -> Result<Vec<Bitmap>, BitmapError> {
    match header.extensions.bitmaps {
        Some(extension) => BitmapDirectory::new(store, extension).collect(),
        None => Ok(Vec::new()),
    }
}

/// Copies `bitmap` of the image in `store` into `image`, which has the same virtual size.
///
/// # Errors
/// It cannot be read or written.
pub fn copy_bitmap<S: Storage, T: StorageMut>(
    store: &S,
    header: &Header,
    bitmap: &Bitmap,
    image: &mut NewImage<'_, T>,
    cluster_bytes: u64,
) -> Result<(), CreateError> {
    let enabled = bitmap.auto();
    let mut new = image.new_bitmap(&bitmap.name, bitmap.granularity_bits, enabled)?;
    let granularity = bitmap.granularity_bytes().max(1);
    let len = header
        .whole_sectors_size()
        .div_ceil(granularity)
        .div_ceil(8);
    let mut data = Vec::new();
    let (mut index, mut at) = (0, 0);
    while at < len {
        let now = len.saturating_sub(at).min(cluster_bytes);
        let bytes = usize::try_from(now).map_err(|_| CreateError::OutOfMemory)?;
        data.clear();
        data.try_reserve_exact(bytes)
            .map_err(|_| CreateError::OutOfMemory)?;
        data.resize(bytes, 0);
        read_bits(store, header, bitmap, at, &mut data)?;
        image.put_bits(&mut new, index, &data)?;
        index = index.saturating_add(1);
        at = at.saturating_add(now);
    }
    image.add_bitmap(new);
    Ok(())
}

/// Reads bytes of a bitmap's data.
fn read_bits<S: Storage>(
    store: &S,
    header: &Header,
    bitmap: &Bitmap,
    start: u64,
    out: &mut [u8],
) -> Result<(), CreateError> {
    let cluster = header.cluster_bits;
    let (mut at, mut rest) = (start, out);
    while !rest.is_empty() {
        let in_cluster = at & cluster.mask();
        let left = cluster.size_bytes().saturating_sub(in_cluster);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
        let (now, later) = rest.split_at_mut(len);
        let entry = table_entry(store, header, bitmap, at >> cluster.get())?;
        match entry.host_offset().get() {
            0 if entry.all_ones() => now.fill(u8::MAX),
            0 => now.fill(0),
            offset => store.read_at(offset.saturating_add(in_cluster), now)?,
        }
        at = at.saturating_add(len as u64);
        rest = later;
    }
    Ok(())
}

fn table_entry<S: Storage>(
    store: &S,
    header: &Header,
    bitmap: &Bitmap,
    index: u64,
) -> Result<BitmapTableEntry, CreateError> {
    if index >= u64::from(bitmap.table_size) {
        return Ok(BitmapTableEntry::default());
    }
    let offset = index.saturating_mul(8);
    let offset = bitmap.table_offset.get().saturating_add(offset);
    let mut bytes = [0; 8];
    store.read_at(offset, &mut bytes)?;
    let entry = BitmapTableEntry::from_be_bytes(bytes);
    if entry.is_valid(header) {
        Ok(entry)
    } else {
        let errno = EIO;
        Err(StorageError { errno, offset }.into())
    }
}
