//! Raw images.

use crate::prealloc::reserve;
use crate::{CreateError, Preallocation};
use alloc::vec;
use instar_plan_resize::ReserveError;
use instar_plan_txn::Monitor;
use instar_storage::StorageMut;

/// File too large.
pub(crate) const EFBIG: u32 = 27;
/// What holds a header's magic, in bytes.
const SECTOR: usize = 512;

/// Makes `image` a raw image of `size` bytes that reads as zeros; of a device, only the first sector does, so that
/// it shows no header of another format.
///
/// The length comes first: what the host's files cannot have is refused before a disk is filled on the way to it.
///
/// # Errors
/// The size is not the device's, or too large; space cannot be reserved; the store's.
pub fn create_raw<S: StorageMut>(
    image: &S,
    size: u64,
    preallocation: Preallocation,
    monitor: &mut dyn Monitor,
) -> Result<(), CreateError> {
    if !image.can_grow() {
        return clear_device(image, size, preallocation);
    }
    if preallocation == Preallocation::Metadata {
        return Err(CreateError::RawMetadata);
    }
    if image.len_bytes() > 0 {
        image.set_len(0)?;
    }
    image.set_len(size).map_err(|e| match e.errno {
        EFBIG => CreateError::TooLarge {
            format: "raw",
            hint: "",
        },
        errno => CreateError::ReserveRaw(ReserveError::Length(errno)),
    })?;
    reserve(image, size, preallocation, monitor)
        .map_err(CreateError::reserve(CreateError::ReserveRaw))?;
    Ok(image.flush()?)
}

fn clear_device<S: StorageMut>(
    image: &S,
    size: u64,
    preallocation: Preallocation,
) -> Result<(), CreateError> {
    if preallocation != Preallocation::Off {
        return Err(CreateError::DevicePreallocation(preallocation));
    }
    if size > image.len_bytes() {
        return Err(CreateError::DeviceRaw);
    }
    image.write_at(0, &vec![0; SECTOR])?;
    Ok(image.flush()?)
}
