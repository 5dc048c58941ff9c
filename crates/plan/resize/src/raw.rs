//! raw: the file is the disk.

use crate::error::ReserveError;
use crate::request::target;
use crate::reserve::{Work, reserve};
use crate::{Preallocation, Request, ResizeError, Resized};
use instar_plan_txn::Monitor;
use instar_storage::{StorageError, StorageMut};

/// Resizes a raw image.
///
/// # Errors
/// [`ResizeError`]; the file then has its old length.
pub fn resize_raw<S: StorageMut>(
    storage: &S,
    request: &Request,
    monitor: &mut dyn Monitor,
) -> Result<Resized, ResizeError> {
    let len = storage.len_bytes();
    // QEMU sees a file as whole sectors.
    let old_size = len.checked_next_multiple_of(512).unwrap_or(len);
    let new_size = target(request, old_size)?;
    let done = Resized { old_size, new_size };
    if !storage.can_grow() {
        return match request.preallocation {
            Preallocation::Off if new_size == old_size => Ok(done),
            Preallocation::Off => Err(ResizeError::DeviceLength),
            how => Err(ResizeError::PreallocationOnDevice(how)),
        };
    }
    let result = match request.preallocation {
        Preallocation::Metadata => {
            return Err(ResizeError::UnsupportedPreallocation(
                Preallocation::Metadata,
            ));
        }
        Preallocation::Off => Ok(()),
        how => {
            let total = new_size.saturating_sub(len);
            let mut work = Work {
                monitor,
                done: 0,
                total,
            };
            reserve(storage, len, new_size, how, &mut work)
        }
    };
    if let Err(e) = result {
        // Should this fail as well, the file is longer than before, by zeros.
        let _ = storage.set_len(len);
        return Err(ResizeError::file(e));
    }
    let failed = |e: StorageError| ResizeError::File(ReserveError::Length(e.errno));
    if storage.len_bytes() > new_size {
        storage.set_len(new_size).map_err(failed)?;
    }
    storage.write_through(&[], new_size).map_err(failed)?;
    Ok(done)
}
