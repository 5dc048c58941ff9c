//! Answers.

use crate::{MAX_EXTENTS, SECTOR_BYTES};
use alloc::vec::Vec;

/// A run of the disk's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, whole sectors.
    pub len: u64,
    /// Where they are.
    pub kind: ExtentKind,
}

/// Where the bytes of a run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// In a file.
    Data {
        /// The file's number.
        file: u16,
        /// First byte in the file.
        offset: u64,
        /// They may be overwritten there.
        in_place: bool,
    },
    /// Nowhere: they are zeros.
    Zero,
    /// They have to be made: see [`crate::LiveImage::fetch`].
    Fetch,
}

impl ExtentKind {
    /// Whether `next`, which starts `by` bytes further on, goes on with it.
    fn goes_on(self, by: u64, next: Self) -> bool {
        match self {
            Self::Data {
                file,
                offset,
                in_place,
            } => {
                next == Self::Data {
                    file,
                    offset: offset.saturating_add(by),
                    in_place,
                }
            }
            Self::Zero | Self::Fetch => self == next,
        }
    }
}

/// Extents without gaps; neighbours differ.
#[derive(Debug, Default)]
pub struct Extents {
    /// First byte of the first one.
    pub start: u64,
    /// The extents, at most [`MAX_EXTENTS`].
    pub list: Vec<Extent>,
    end: u64,
}

impl Extents {
    /// Forgets all, and begins at `start`.
    pub(crate) fn begin(&mut self, start: u64) {
        self.list.clear();
        (self.start, self.end) = (start, start);
    }

    /// First byte behind the last one.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Adds a run; false if there are too many. One that ends inside a sector is taken for all of that: it is the last of
    /// its file, behind which everything reads as zeros.
    pub(crate) fn push(&mut self, len: u64, kind: ExtentKind) -> bool {
        let len = len.next_multiple_of(SECTOR_BYTES);
        if let Some(last) = self.list.last_mut()
            && last.kind.goes_on(last.len, kind)
        {
            last.len = last.len.saturating_add(len);
        } else if self.list.len() >= MAX_EXTENTS {
            return false;
        } else {
            self.list.push(Extent { len, kind });
        }
        self.end = self.end.saturating_add(len);
        true
    }
}
