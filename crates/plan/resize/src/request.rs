//! What is asked, and what is checked of a new size before anything else.

use crate::ResizeError;
use instar_qcow2::header::MAX_FILE_BYTES;

/// How the new size is given, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewSize {
    /// The size itself.
    Absolute(u64),
    /// Added to the size that the image has.
    Grow(u64),
    /// Taken from it.
    Shrink(u64),
}

/// What is reserved of the part that is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing.
    Off,
    /// qcow2: clusters and their tables, but no space for data.
    Metadata,
    /// Space, by the host's `fallocate`.
    Falloc,
    /// Space, by writing zeros.
    Full,
}

impl Preallocation {
    /// The word on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Metadata => "metadata",
            Self::Falloc => "falloc",
            Self::Full => "full",
        }
    }
}

/// A resize.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The new size.
    pub size: NewSize,
    /// What is reserved.
    pub preallocation: Preallocation,
    /// Making the image smaller is meant.
    pub shrink: bool,
}

/// A resize that was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resized {
    /// Virtual size before, in bytes: whole sectors.
    pub old_size: u64,
    /// Virtual size now, in bytes.
    pub new_size: u64,
}

/// The new size in bytes, checked as `qemu-img` does for an image of any format. `old_size` is
/// its size in whole sectors.
///
/// # Errors
/// What is wrong with the size, in `qemu-img`'s order.
pub fn target(request: &Request, old_size: u64) -> Result<u64, ResizeError> {
    // QEMU computes with 64 signed bits; what passes 2^63 wraps.
    let size = match request.size {
        NewSize::Absolute(size) => size,
        NewSize::Grow(by) => old_size.wrapping_add(by),
        NewSize::Shrink(by) => old_size.wrapping_sub(by),
    };
    if size.cast_signed() <= 0 {
        return Err(ResizeError::NotPositive);
    }
    if size <= old_size && request.preallocation != Preallocation::Off {
        return Err(ResizeError::PreallocationWithoutGrowth);
    }
    if size < old_size && !request.shrink {
        return Err(ResizeError::ShrinkNotAsked);
    }
    if size > MAX_FILE_BYTES {
        return Err(ResizeError::ExceedsMaximum { size });
    }
    Ok(size)
}
