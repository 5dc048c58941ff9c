//! A part of the disk on its way.

use crate::Stream;
use alloc::vec::Vec;
use instar_storage::{Cipher, DataPlace, StorageError};

/// Bytes of a window at most.
pub const WINDOW_BYTES: u64 = 2 << 20;
/// Windows that are on their way at once.
pub const WINDOWS: usize = 8;

/// Most bytes between two compressed clusters that are read at once.
const GAP_BYTES: u64 = 4096;

/// What a part of a window is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PartKind {
    /// Bytes that were read.
    Data,
    /// Zeros.
    Zero,
    /// Left to the target's backing file.
    Below,
}

/// A part of a window; parts are in order and without gaps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// First byte in the window.
    pub at: usize,
    /// Length in bytes.
    pub len: usize,
    /// What it is.
    pub kind: PartKind,
}

/// A read of a window: `len` bytes of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    /// First byte in the window.
    pub at: usize,
    /// Length in bytes.
    pub len: usize,
    /// Number of the file.
    pub file: u16,
    /// First byte there.
    pub offset: u64,
    /// How it is encrypted.
    pub seal: Option<Seal>,
}

/// How a piece is encrypted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seal {
    /// Deciphers it.
    pub cipher: &'static dyn Cipher,
    /// Its first byte in the disk of the image's guest.
    pub guest: u64,
}

impl Piece {
    /// Deciphers the piece in its window's buffer, if it is encrypted.
    pub fn open(&self, window: &mut [u8]) -> Result<(), StorageError> {
        let Some(seal) = self.seal else {
            return Ok(());
        };
        let at = DataPlace {
            host: self.offset,
            guest: seal.guest,
        };
        let end = self.at.saturating_add(self.len);
        let bytes = window.get_mut(self.at..end).unwrap_or_default();
        seal.cipher.decipher(at, bytes)
    }
}

/// Compressed bytes of a file, read at once.
#[derive(Debug)]
pub(crate) struct Input {
    /// Number of the file.
    pub file: u16,
    /// First byte there.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// They, once they are read.
    pub bytes: Vec<u8>,
}

/// A compressed cluster of a window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    /// First byte of the cluster in the window.
    pub at: usize,
    /// Which input it is in.
    pub input: usize,
    /// What it is.
    pub stream: Stream,
}

/// A part of the disk on its way.
#[derive(Debug)]
pub(crate) struct Window {
    /// Its number; tokens of its reads begin with it.
    pub serial: u64,
    /// First byte, as the guest counts.
    pub offset: u64,
    /// Length in bytes.
    pub len: usize,
    /// What it consists of.
    pub parts: Vec<Part>,
    /// What is read by requests.
    pub pieces: Vec<Piece>,
    /// Only [`crate::Source::read_at`] gives its bytes.
    pub packed: bool,
    /// Compressed clusters, and the stretches that they are in.
    pub streams: Vec<Placed>,
    /// Numbered behind the pieces.
    pub inputs: Vec<Input>,
    /// It has, or had, compressed clusters or encrypted pieces for a job.
    pub unpacking: bool,
    /// What came is of no use: [`crate::Source::read_at`] gives its bytes, or says what is wrong.
    pub again: bool,
    /// Reads that have not ended, and one more while `unpacking` has not.
    pub reading: usize,
    /// The errno of a read that failed, and where its bytes are as the guest counts.
    pub failed: Option<(u64, u32)>,
    /// Its bytes, at least `len`; empty while a read has them.
    pub buf: Vec<u8>,
}

impl Input {
    /// Whether `stream` begins in it or close behind, so that one read serves both.
    const fn reaches(&self, stream: &Stream) -> bool {
        let end = self.offset.saturating_add(self.len);
        stream.offset >= self.offset
            && stream.offset <= end.saturating_add(GAP_BYTES)
            && self.len < WINDOW_BYTES
    }
}

impl Window {
    /// Adds a compressed cluster at byte `at`.
    pub fn add_stream(&mut self, at: usize, stream: Stream) {
        let end = stream.offset.saturating_add(stream.max_bytes.into());
        match self.inputs.last_mut() {
            Some(last) if last.file == stream.file && last.reaches(&stream) => {
                last.len = last.len.max(end.saturating_sub(last.offset));
            }
            _ => self.inputs.push(Input {
                file: stream.file,
                offset: stream.offset,
                len: stream.max_bytes.into(),
                bytes: Vec::new(),
            }),
        }
        let input = self.inputs.len().saturating_sub(1);
        self.streams.push(Placed { at, input, stream });
    }

    /// Puts what a read gave into its place.
    pub fn take(&mut self, index: usize, buf: Vec<u8>) {
        let Some(piece) = self.pieces.get(index).copied() else {
            let input = index.saturating_sub(self.pieces.len());
            if let Some(input) = self.inputs.get_mut(input) {
                input.bytes = buf;
            }
            return;
        };
        if self.buf.is_empty() {
            self.buf = buf;
            return;
        }
        let end = piece.at.saturating_add(piece.len);
        if let (Some(to), Some(from)) = (self.buf.get_mut(piece.at..end), buf.get(..piece.len)) {
            to.copy_from_slice(from);
        }
    }
}
