//! A part of the disk on its way.

use alloc::vec::Vec;

/// Bytes of a window at most.
pub const WINDOW_BYTES: u64 = 2 << 20;
/// Windows that are on their way at once.
pub const WINDOWS: usize = 8;

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
    /// Reads that have not ended.
    pub reading: usize,
    /// The errno of a read that failed, and where its bytes are as the guest counts.
    pub failed: Option<(u64, u32)>,
    /// Its bytes, at least `len`; empty while a read has them.
    pub buf: Vec<u8>,
}

impl Window {
    /// Puts what a read gave into its place.
    pub fn take(&mut self, index: usize, buf: Vec<u8>) {
        let Some(piece) = self.pieces.get(index).copied() else {
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
