//! What the requests go to.

use crate::BenchError;
use instar_plan_convert::{ReadError, Source, What};

/// The first bytes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// How many, 1 or more.
    pub len: usize,
    /// The file that holds them, and where they start there, in bytes; nothing if they are done.
    pub at: Option<(u16, u64)>,
}

/// An image that takes requests.
pub trait Image {
    /// Virtual size in bytes.
    fn len_bytes(&self) -> u64;

    /// Where the first bytes of `buf` lie that are read at `guest`. If they lie nowhere, they are in `buf` now.
    ///
    /// # Errors
    /// They cannot be read.
    fn read(&mut self, guest: u64, buf: &mut [u8]) -> Result<Piece, BenchError>;

    /// Where the first bytes of `data` go that are written at `guest`, or that they are written. What it gives a place
    /// is written before the next [`Self::flush`] if [`Self::rests_for_flush`] says so, or never.
    ///
    /// # Errors
    /// They cannot be written.
    fn write(&mut self, guest: u64, data: &[u8]) -> Result<Piece, BenchError>;

    /// Makes durable what was written by requests that are done: by a flush of the file that it names.
    ///
    /// # Errors
    /// It cannot.
    fn flush(&mut self) -> Result<Option<u16>, BenchError>;

    /// It has given as many places as it can keep in mind, and wants a flush.
    fn is_full(&self) -> bool {
        false
    }

    /// A flush has to wait until everything that was given a place is written.
    fn rests_for_flush(&self) -> bool {
        false
    }

    /// Something that was given a place could not be written.
    fn write_failed(&mut self) {}
}

/// EBADF: it was not opened for that.
const EBADF: u32 = 9;
const NOT_OPEN_FOR_IT: BenchError = BenchError::Request { errno: EBADF };

impl From<ReadError> for BenchError {
    fn from(error: ReadError) -> Self {
        Self::Request { errno: error.errno }
    }
}

/// An image with its backing chain, that is read.
#[derive(Debug)]
pub struct Reader<S>(pub S);

impl<S: Source> Image for Reader<S> {
    fn len_bytes(&self) -> u64 {
        self.0.len_bytes()
    }

    fn read(&mut self, guest: u64, buf: &mut [u8]) -> Result<Piece, BenchError> {
        let span = self.0.span_at(guest, buf.len() as u64)?;
        let len = usize::try_from(span.len).map_or(buf.len(), |len| len.min(buf.len()));
        let part = buf.get_mut(..len).unwrap_or_default();
        let at = match span.what {
            What::Data { file, offset } => Some((file, offset)),
            What::Sealed { .. } | What::Packed(_) => {
                self.0.read_at(guest, part)?;
                None
            }
            What::Zero | What::Below => {
                part.fill(0);
                None
            }
        };
        Ok(Piece { len, at })
    }

    fn write(&mut self, _guest: u64, _data: &[u8]) -> Result<Piece, BenchError> {
        Err(NOT_OPEN_FOR_IT)
    }

    fn flush(&mut self) -> Result<Option<u16>, BenchError> {
        Ok(None)
    }
}

/// A raw file or device that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawWriter {
    /// Number of the file.
    pub file: u16,
    /// Virtual size in bytes.
    pub len_bytes: u64,
}

impl Image for RawWriter {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read(&mut self, guest: u64, buf: &mut [u8]) -> Result<Piece, BenchError> {
        self.write(guest, buf)
    }

    fn write(&mut self, guest: u64, data: &[u8]) -> Result<Piece, BenchError> {
        Ok(Piece {
            len: data.len(),
            at: Some((self.file, guest)),
        })
    }

    fn flush(&mut self) -> Result<Option<u16>, BenchError> {
        Ok(Some(self.file))
    }
}
