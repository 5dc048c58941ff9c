//! Where it goes.

use crate::TargetError;
use instar_storage::Cipher;

/// A place for data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the file.
    pub file: u16,
    /// First byte there.
    pub offset: u64,
    /// Bytes that have their place there, at least 1; maybe less than was asked for. At the disk's end it may be
    /// more, up to a whole unit: zeros follow the data there.
    pub len: u64,
}

/// How zeros come into a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeros {
    /// They are there.
    Done,
    /// By this request.
    Request {
        /// Number of the file.
        file: u16,
        /// First byte there.
        offset: u64,
    },
    /// By writing them as data.
    Write,
}

/// What takes the copy. Offsets and lengths are in bytes as the guest counts and, but at the disk's end, whole
/// units.
pub trait Target {
    /// Bytes that have a place together: the cluster size, a power of two; 1 where each byte has its own.
    fn unit(&self) -> u64;

    /// Bytes that are compressed together: the cluster size.
    fn cluster(&self) -> u64 {
        self.unit()
    }

    /// A place for data.
    ///
    /// # Errors
    /// There is none.
    fn place(&mut self, guest: u64, len: u64) -> Result<Place, TargetError>;

    /// A place for the `len` bytes that the unit at `guest` was compressed to.
    ///
    /// # Errors
    /// There is none.
    fn place_compressed(&mut self, guest: u64, len: u32) -> Result<Place, TargetError>;

    /// Makes the range read as zeros.
    ///
    /// # Errors
    /// It cannot.
    fn zeros(&mut self, guest: u64, len: u64) -> Result<Zeros, TargetError>;

    /// Bytes that [`Self::zeros`] takes at once.
    fn longest_zeros(&self) -> u64 {
        u64::MAX
    }

    /// Zeros take room between the data, so that they should come in the guest's order, too.
    fn keeps_order(&self) -> bool {
        false
    }

    /// Reads what the target's backing file has, zeros where there is none.
    ///
    /// # Errors
    /// It cannot be read.
    fn read_below(&self, guest: u64, buf: &mut [u8]) -> Result<(), TargetError>;

    /// The cipher of its data, if that is encrypted; compressed data is not.
    fn cipher(&self) -> Option<&'static dyn Cipher> {
        None
    }

    /// It has given as many places as it can keep in mind, and wants to write its tables.
    fn is_full(&self) -> bool {
        false
    }

    /// Writes its tables. Everything that was given a place has been written.
    ///
    /// # Errors
    /// It cannot.
    fn commit(&mut self) -> Result<(), TargetError> {
        Ok(())
    }
}

/// A raw file or device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawTarget {
    /// Number of the file.
    pub file: u16,
    /// It reads as zeros where nothing was written.
    pub zeroed: bool,
}

impl Target for RawTarget {
    fn unit(&self) -> u64 {
        1
    }

    fn place(&mut self, guest: u64, len: u64) -> Result<Place, TargetError> {
        Ok(Place {
            file: self.file,
            offset: guest,
            len,
        })
    }

    fn place_compressed(&mut self, guest: u64, len: u32) -> Result<Place, TargetError> {
        self.place(guest, u64::from(len))
    }

    fn zeros(&mut self, guest: u64, _len: u64) -> Result<Zeros, TargetError> {
        Ok(if self.zeroed {
            Zeros::Done
        } else {
            Zeros::Request {
                file: self.file,
                offset: guest,
            }
        })
    }

    fn read_below(&self, _guest: u64, buf: &mut [u8]) -> Result<(), TargetError> {
        buf.fill(0);
        Ok(())
    }
}
