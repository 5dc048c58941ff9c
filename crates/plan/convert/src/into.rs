//! A qcow2 image that is there as a target: it keeps what is not copied over, its snapshots, bitmaps and options.

use crate::{Place, Target, TargetError, Zeros};
use core::cell::RefCell;
use core::fmt;
use instar_plan_write::{WriteError, WriteImage};
use instar_storage::{Cipher, StorageMut};

/// Invalid argument.
const EINVAL: u32 = 22;

impl From<WriteError> for TargetError {
    fn from(error: WriteError) -> Self {
        Self {
            errno: error.errno(),
        }
    }
}

/// How an image is written to that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manner {
    /// Bytes that are copied: it may be larger.
    pub source_bytes: u64,
    /// It reads as zeros, the user says, so that zeros need not be written.
    pub is_zero: bool,
    /// Data is compressed.
    pub compress: bool,
}

/// An image that is written to.
pub struct IntoImage<'a, S> {
    image: RefCell<WriteImage<'a, S>>,
    /// Numbers of the image file and of its data file.
    files: (u16, u16),
    unit: u64,
    cluster: u64,
    size: u64,
    manner: Manner,
}

impl<S> fmt::Debug for IntoImage<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IntoImage")
            .field("manner", &self.manner)
            .finish_non_exhaustive()
    }
}

impl<'a, S: StorageMut> IntoImage<'a, S> {
    /// Copies into `image`, whose file and data file have these numbers.
    pub fn new(mut image: WriteImage<'a, S>, files: (u16, u16), manner: Manner) -> Self {
        image.punch();
        Self {
            files,
            unit: image.unit_bytes(),
            cluster: image.cluster_bytes(),
            size: image.len_bytes(),
            image: RefCell::new(image),
            manner,
        }
    }

    /// The image, with all that was copied.
    #[must_use]
    pub fn into_image(self) -> WriteImage<'a, S> {
        self.image.into_inner()
    }

    /// QEMU: compressed data is whole clusters, but at the end of the disk.
    fn check_whole(&self, guest: u64) -> Result<(), TargetError> {
        let end = guest.saturating_add(self.cluster).min(self.size);
        if self.manner.compress && end > self.manner.source_bytes {
            return Err(TargetError { errno: EINVAL });
        }
        Ok(())
    }
}

impl<S: StorageMut> Target for IntoImage<'_, S> {
    fn unit(&self) -> u64 {
        self.unit
    }

    fn cluster(&self) -> u64 {
        self.cluster
    }

    fn place(&mut self, guest: u64, len: u64) -> Result<Place, TargetError> {
        self.check_whole(guest)?;
        let placed = self.image.get_mut().place(guest, len)?;
        Ok(Place {
            file: if placed.in_data_file {
                self.files.1
            } else {
                self.files.0
            },
            offset: placed.offset,
            len: placed.len,
        })
    }

    fn place_compressed(&mut self, guest: u64, len: u32) -> Result<Place, TargetError> {
        self.check_whole(guest)?;
        Ok(Place {
            file: self.files.0,
            offset: self.image.get_mut().place_compressed(guest, len)?,
            len: len.into(),
        })
    }

    fn zeros(&mut self, guest: u64, len: u64) -> Result<Zeros, TargetError> {
        if !self.manner.is_zero {
            self.image.get_mut().zeros(guest, len)?;
        }
        Ok(Zeros::Done)
    }

    fn longest_zeros(&self) -> u64 {
        // As many entries as take 2 MiB.
        self.cluster.saturating_mul(1 << 17)
    }

    fn keeps_order(&self) -> bool {
        // A table that zeros need would stand between two runs of data.
        !self.manner.is_zero
    }

    fn read_below(&self, guest: u64, buf: &mut [u8]) -> Result<(), TargetError> {
        // What is not copied stays as it is.
        Ok(self.image.borrow_mut().read_at(guest, buf)?)
    }

    fn cipher(&self) -> Option<&'static dyn Cipher> {
        self.image.borrow().cipher()
    }

    fn is_full(&self) -> bool {
        self.image.borrow().is_full()
    }

    fn commit(&mut self) -> Result<(), TargetError> {
        Ok(self.image.get_mut().commit()?)
    }
}
