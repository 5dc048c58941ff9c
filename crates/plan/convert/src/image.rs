//! A new qcow2 image as a target.

use crate::{Place, Target, TargetError, Zeros};
use alloc::boxed::Box;
use core::cell::RefCell;
use core::fmt;
use instar_layers::{Chain, Decompress};
use instar_plan_create::{CreateError, NewImage, PlacedIn, Preallocation, Spec};
use instar_storage::{Cipher, Storage, StorageMut};

/// I/O error; no memory; invalid argument; file too large.
const EIO: u32 = 5;
const ENOMEM: u32 = 12;
const EINVAL: u32 = 22;
const EFBIG: u32 = 27;

impl From<CreateError> for TargetError {
    fn from(error: CreateError) -> Self {
        let errno = match error {
            CreateError::Storage(error) => error.errno,
            CreateError::OutOfMemory => ENOMEM,
            CreateError::Range => EINVAL,
            CreateError::TooLarge { .. } => EFBIG,
            _ => EIO,
        };
        Self { errno }
    }
}

/// The image below a new one, as far as it is read.
pub struct Below<'a, B> {
    chain: &'a Chain<B>,
    codec: RefCell<Box<dyn Decompress + 'a>>,
}

impl<B> fmt::Debug for Below<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Below")
    }
}

impl<'a, B: Storage> Below<'a, B> {
    /// The backing file with its own chain.
    pub fn new(chain: &'a Chain<B>, codec: Box<dyn Decompress + 'a>) -> Self {
        Self {
            chain,
            codec: RefCell::new(codec),
        }
    }
}

/// A qcow2 image that is being filled.
#[derive(Debug)]
pub struct NewTarget<'a, S, B> {
    image: NewImage<'a, S>,
    /// Numbers of the image file and of its data file.
    files: (u16, u16),
    unit: u64,
    cluster: u64,
    /// Zeros need no entry.
    zeroed: bool,
    below: Option<Below<'a, B>>,
    cipher: Option<&'static dyn Cipher>,
}

impl<'a, S: StorageMut, B: Storage> NewTarget<'a, S, B> {
    /// Fills `image`, begun as `spec` says. `files` are the numbers of its file and of its data file; `clean`
    /// says that both read as zeros where nothing was written.
    pub fn new(
        image: NewImage<'a, S>,
        spec: &Spec,
        files: (u16, u16),
        clean: bool,
        below: Option<Below<'a, B>>,
    ) -> Self {
        let reserved = spec.preallocation() != Preallocation::Off || spec.has_data_file();
        // What nobody has written deciphers to anything.
        let clean = clean && !spec.is_encrypted();
        Self {
            image,
            files,
            unit: spec.unit_bytes(),
            cluster: spec.cluster_bits().size_bytes(),
            zeroed: !spec.has_backing() && (clean || !reserved),
            below,
            cipher: None,
        }
    }

    /// As it is, with the data enciphered.
    #[must_use]
    pub fn enciphered(mut self, cipher: Option<&'static dyn Cipher>) -> Self {
        self.image.encipher_with(cipher);
        self.cipher = cipher;
        self
    }

    /// The image, filled.
    #[must_use]
    pub fn into_image(self) -> NewImage<'a, S> {
        self.image
    }
}

impl<S: StorageMut, B: Storage> Target for NewTarget<'_, S, B> {
    fn unit(&self) -> u64 {
        self.unit
    }

    fn cluster(&self) -> u64 {
        self.cluster
    }

    fn place(&mut self, guest: u64, len: u64) -> Result<Place, TargetError> {
        let place = self.image.place(guest, len)?;
        Ok(Place {
            file: match place.file {
                PlacedIn::Image => self.files.0,
                PlacedIn::DataFile => self.files.1,
            },
            offset: place.offset,
            len: place.len,
        })
    }

    fn place_compressed(&mut self, guest: u64, len: u32) -> Result<Place, TargetError> {
        Ok(Place {
            file: self.files.0,
            offset: self.image.place_compressed(guest, len)?,
            len: len.into(),
        })
    }

    fn zeros(&mut self, guest: u64, len: u64) -> Result<Zeros, TargetError> {
        if !self.zeroed {
            self.image.zero(guest, len)?;
        }
        Ok(Zeros::Done)
    }

    fn cipher(&self) -> Option<&'static dyn Cipher> {
        self.cipher
    }

    fn read_below(&self, guest: u64, buf: &mut [u8]) -> Result<(), TargetError> {
        let Some(below) = &self.below else {
            buf.fill(0);
            return Ok(());
        };
        let mut codec = below.codec.borrow_mut();
        let read = below.chain.read_at(guest, buf, &mut **codec);
        read.map_err(|error| TargetError {
            errno: error.errno(),
        })
    }
}
