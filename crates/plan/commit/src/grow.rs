//! A base that is shorter than the overlay.

use crate::CommitError;
use alloc::vec::Vec;
use instar_layers::{Chain, FileOf};
use instar_plan_resize::{Layer, NewSize, Preallocation, Request, resize_qcow2_to, resize_raw};
use instar_plan_txn::Monitor;
use instar_qcow2::Header;
use instar_storage::{Cipher, StorageMut};

/// Bytes of a sector, the unit of a disk's size.
const SECTOR_BYTES: u64 = 512;

/// An image that is changed.
#[derive(Debug)]
pub struct Image<S> {
    /// The image.
    pub disk: S,
    /// Its external data file.
    pub data: Option<S>,
    /// `None`: it is raw.
    pub header: Option<Header>,
}

impl<S: StorageMut> Image<S> {
    /// Virtual size in bytes.
    pub fn len_bytes(&self) -> u64 {
        match &self.header {
            Some(header) => header.whole_sectors_size(),
            None => self
                .disk
                .len_bytes()
                .checked_next_multiple_of(SECTOR_BYTES)
                .unwrap_or(u64::MAX),
        }
    }
}

/// Makes the base as long as the overlay, which has `size` bytes, if it is shorter; what is new reads as zeros whatever
/// lies below. The new header, if it is qcow2, is to be read from the disk. `cipher` is that of the base's data.
///
/// # Errors
/// The base is as it was.
pub fn grow<S: StorageMut>(
    base: &Image<S>,
    cipher: Option<&'static dyn Cipher>,
    below: &Chain<S>,
    size: u64,
    monitor: &mut dyn Monitor,
) -> Result<(), CommitError> {
    if base.len_bytes() >= size {
        return Ok(());
    }
    let Some(header) = &base.header else {
        let request = Request {
            size: NewSize::Absolute(size),
            preallocation: Preallocation::Off,
            shrink: false,
        };
        resize_raw(&base.disk, &request, monitor)?;
        return Ok(());
    };
    let layers: Vec<Layer<'_, S>> = below
        .layers()
        .iter()
        .map(|layer| Layer {
            storage: layer.store(FileOf::Image),
            data: (layer.data_file_of() == FileOf::DataFile).then(|| layer.store(FileOf::DataFile)),
            header: layer.header(),
            cipher: layer.cipher().map(|cipher| cipher as _),
        })
        .collect();
    let image = instar_plan_resize::Image {
        storage: &base.disk,
        data: base.data.as_ref(),
        header,
        cipher: cipher.map(|cipher| cipher as _),
    };
    resize_qcow2_to(image, &layers, size, Preallocation::Off, monitor)?;
    Ok(())
}
