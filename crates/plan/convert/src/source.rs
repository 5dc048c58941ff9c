//! What is read.

use crate::ReadError;
use instar_layers::CompressionType;
use instar_storage::Cipher;

/// The unit of a disk's size, in bytes.
const SECTOR_BYTES: u64 = 512;

/// A stretch of the source in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Length in bytes, never 0.
    pub len: u64,
    /// The state.
    pub what: What,
}

/// The state of a [`Span`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Bytes of a file.
    Data {
        /// Number of the file, as [`instar_storage::overlap::Transfer::file`].
        file: u16,
        /// Where they start there.
        offset: u64,
    },
    /// Bytes of a file that are encrypted.
    Sealed {
        /// Number of the file, as [`instar_storage::overlap::Transfer::file`].
        file: u16,
        /// Where they start there.
        offset: u64,
        /// Where they start in the disk of their image's guest.
        guest: u64,
    },
    /// Bytes that [`Source::read_at`] gives: compressed ones. What they are made of, if the span is all that is
    /// made of it.
    Packed(Option<Stream>),
    /// Zeros.
    Zero,
    /// Left to the target's backing file.
    Below,
}

/// A compressed cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Number of the file, as [`instar_storage::overlap::Transfer::file`].
    pub file: u16,
    /// Where its compressed bytes start there.
    pub offset: u64,
    /// They are at most this many.
    pub max_bytes: u32,
    /// Bytes of the cluster.
    pub cluster_bytes: u32,
    /// How it is compressed.
    pub kind: CompressionType,
}

/// What is copied: one image after the other, as one disk.
pub trait Source {
    /// Length in bytes; a multiple of 512.
    fn len_bytes(&self) -> u64;

    /// The span at `offset`, at most `max` bytes long.
    ///
    /// # Errors
    /// The tables cannot be read, or say what cannot be.
    fn span_at(&self, offset: u64, max: u64) -> Result<Span, ReadError>;

    /// Reads `buf.len()` bytes, whatever they are.
    ///
    /// # Errors
    /// They cannot be read.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError>;

    /// The cipher of what is encrypted in a file; none if only [`Self::read_at`] can read that.
    fn cipher(&self, _file: u16) -> Option<&'static dyn Cipher> {
        None
    }
}

/// A part of a source, filled up with zeros to whole sectors.
#[derive(Debug)]
pub struct Part<'a, S> {
    source: &'a S,
    start: u64,
    len: u64,
}

impl<'a, S: Source> Part<'a, S> {
    /// What `source` has from `start` on and before `end`.
    pub fn new(source: &'a S, start: u64, end: u64) -> Self {
        let end = end.min(source.len_bytes());
        Self {
            source,
            start,
            len: end.saturating_sub(start),
        }
    }
}

impl<S: Source> Source for Part<'_, S> {
    fn len_bytes(&self) -> u64 {
        let whole = self.len.checked_next_multiple_of(SECTOR_BYTES);
        whole.unwrap_or(self.len)
    }

    fn span_at(&self, offset: u64, max: u64) -> Result<Span, ReadError> {
        match self.len.checked_sub(offset) {
            Some(left) if left > 0 => {
                let at = self.start.saturating_add(offset);
                self.source.span_at(at, max.min(left))
            }
            _ => Ok(Span {
                len: max.max(1),
                what: What::Zero,
            }),
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (data, past) = buf.split_at_mut(left.min(buf.len()));
        past.fill(0);
        self.source.read_at(self.start.saturating_add(offset), data)
    }

    fn cipher(&self, file: u16) -> Option<&'static dyn Cipher> {
        self.source.cipher(file)
    }
}
