//! A window of the disk, and its bytes in both chains.

use crate::RebaseError;
use alloc::vec::Vec;
use core::ops::Range;
use instar_codec::Decoder;
use instar_layers::{Chain, DataError, RunKind};
use instar_storage::{Read, Storage};

/// Bytes of a window, which starts at a multiple of them: no cluster is larger.
pub const WINDOW_BYTES: u64 = 2 << 20;

/// A part of a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its bytes, counted from the window's first.
    pub range: Range<usize>,
    /// What is known of it.
    pub kind: PartKind,
}

/// What is known of a part without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartKind {
    /// The image's own.
    Kept,
    /// Zeros in both chains.
    Zeros,
    /// The same bytes of the same file in both chains.
    Shared,
    /// Which of the chains have data there; the other has zeros.
    Look {
        /// The old one.
        old: bool,
        /// The new one.
        new: bool,
    },
}

impl PartKind {
    /// Whether its bytes decide.
    pub const fn is_looked_at(self) -> bool {
        matches!(self, Self::Look { .. })
    }

    /// Whether bytes of that chain are read, 0 for the old one.
    pub const fn is_read(self, side: usize) -> bool {
        match self {
            Self::Look { old, new } => (side == 0 && old) || (side == 1 && new),
            _ => false,
        }
    }
}

/// The bytes of one chain.
#[derive(Debug)]
pub enum Side {
    /// Being read; the token says who it is. They begin at `base`.
    Flying {
        /// Of the request.
        token: u64,
        /// Counted from the window's first byte.
        base: usize,
    },
    /// In memory, from `base` on.
    Ready {
        /// The bytes.
        buf: Vec<u8>,
        /// Counted from the window's first byte.
        base: usize,
    },
    /// More than one place, something to decompress, or a read that failed.
    Later(Vec<u8>),
}

impl Side {
    /// The bytes of a range of the window.
    pub fn bytes(&self, range: &Range<usize>) -> Option<&[u8]> {
        match self {
            Self::Ready { buf, base } => {
                buf.get(range.start.checked_sub(*base)?..range.end.checked_sub(*base)?)
            }
            Self::Flying { .. } | Self::Later(_) => None,
        }
    }

    /// The buffer, if it is here.
    pub fn into_buffer(self) -> Option<Vec<u8>> {
        match self {
            Self::Ready { buf, .. } | Self::Later(buf) => Some(buf),
            Self::Flying { .. } => None,
        }
    }
}

/// A window.
#[derive(Debug)]
pub struct Window {
    /// Its first byte on the disk.
    pub start: u64,
    /// All of its bytes, in order.
    pub parts: Vec<Part>,
    /// What the old and the new chain have.
    pub sides: [Side; 2],
}

impl Window {
    /// Its length in bytes: shorter at the disk's end.
    pub fn len(&self) -> usize {
        self.parts.last().map_or(0, |part| part.range.end)
    }

    /// Whether a side is still being read.
    pub fn is_flying(&self) -> bool {
        let flying = |side: &Side| matches!(side, Side::Flying { .. });
        self.sides.iter().any(flying)
    }

    /// First byte on the disk of a range.
    pub const fn guest(&self, at: usize) -> u64 {
        self.start.saturating_add(at as u64)
    }

    /// The parts of `range` that are not the image's own; adjoining ones are one.
    pub fn not_kept(&self, range: &Range<usize>) -> Vec<Range<usize>> {
        let mut found: Vec<Range<usize>> = Vec::new();
        for part in &self.parts {
            let start = part.range.start.max(range.start);
            let end = part.range.end.min(range.end);
            if start >= end || part.kind == PartKind::Kept {
                continue;
            }
            match found.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => found.push(start..end),
            }
        }
        found
    }

    /// The buffer of the old chain's bytes, if it has all of `range`, moved to its front.
    pub fn take_old(&mut self, range: &Range<usize>) -> Option<Vec<u8>> {
        let touched = |part: &&Part| part.range.start < range.end && range.start < part.range.end;
        let all_read = self.parts.iter().filter(touched).all(|p| p.kind.is_read(0));
        let side = self.sides.first_mut().filter(|_| all_read)?;
        let Side::Ready { buf, base } = side else {
            return None;
        };
        let from = range.start.checked_sub(*base)?;
        let to = range.end.checked_sub(*base).filter(|to| *to <= buf.len())?;
        if from > 0 {
            buf.copy_within(from..to, 0);
        }
        Some(core::mem::take(buf))
    }

    /// Reads what was left for later of one side.
    pub fn read_late<S: Storage>(
        &mut self,
        side: usize,
        chain: Option<&Chain<S>>,
        codec: &mut Decoder,
    ) -> Result<(), DataError> {
        let Some(slot) = self.sides.get_mut(side) else {
            return Ok(());
        };
        let Side::Later(buf) = slot else {
            return Ok(());
        };
        let mut buf = core::mem::take(buf);
        let result = read_parts(side, self.start, &self.parts, chain, codec, &mut buf);
        *slot = Side::Ready { buf, base: 0 };
        result
    }

    /// What the old chain shows in `range`, which is not the image's own.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn old_bytes<S: Storage>(
        &self,
        range: &Range<usize>,
        chain: Option<&Chain<S>>,
        codec: &mut Decoder,
        out: &mut Vec<u8>,
    ) -> Result<(), RebaseError> {
        out.clear();
        let reserved = out.try_reserve_exact(range.len());
        reserved.map_err(|_| RebaseError::OutOfMemory)?;
        for part in &self.parts {
            let start = part.range.start.max(range.start);
            let end = part.range.end.min(range.end);
            if start >= end {
                continue;
            }
            let old = self.sides.first().filter(|_| part.kind.is_read(0));
            match old.and_then(|side| side.bytes(&(start..end))) {
                Some(bytes) => out.extend_from_slice(bytes),
                None => {
                    let at = out.len();
                    out.resize(at.saturating_add(end.saturating_sub(start)), 0);
                    if let (PartKind::Shared, Some(chain)) = (part.kind, chain) {
                        let tail = out.get_mut(at..).unwrap_or_default();
                        let read = chain.read_at(self.guest(start), tail, codec);
                        read.map_err(RebaseError::Old)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Where all that the parts need of a chain lies, if that is one place: number of the file, offset there, and the
/// range of the window.
pub fn one_place<S: Storage>(
    side: usize,
    start: u64,
    parts: &[Part],
    chain: &Chain<S>,
    number: fn(&S) -> u16,
) -> Option<(u16, u64, Range<usize>)> {
    let mut read = parts.iter().filter(|part| part.kind.is_read(side));
    let first = read.next()?.range.clone();
    let end = read.next_back().map_or(first.end, |part| part.range.end);
    let len = end.saturating_sub(first.start) as u64;
    let run = chain.run_at(start.saturating_add(first.start as u64), len);
    let run = run.ok().filter(|run| run.len == len)?;
    match run.kind {
        RunKind::Data { file, host_offset } => {
            let layer = chain.layers().get(run.depth)?;
            // What is encrypted is deciphered by the chain.
            let plain = layer.cipher().is_none();
            plain.then(|| (number(layer.store(file)), host_offset, first.start..end))
        }
        _ => None,
    }
}

/// Reads the parts that need it, each to its place in `buf`.
fn read_parts<S: Storage>(
    side: usize,
    start: u64,
    parts: &[Part],
    chain: Option<&Chain<S>>,
    codec: &mut Decoder,
    buf: &mut [u8],
) -> Result<(), DataError> {
    let Some(chain) = chain else {
        return Ok(());
    };
    let mut reads: Vec<Read<'_>> = Vec::new();
    let (mut left, mut from) = (buf, 0_usize);
    for part in parts.iter().filter(|part| part.kind.is_read(side)) {
        let skip = part.range.start.saturating_sub(from).min(left.len());
        let (_, rest) = left.split_at_mut(skip);
        let (now, rest) = rest.split_at_mut(part.range.len().min(rest.len()));
        reads.push(Read {
            offset: start.saturating_add(part.range.start as u64),
            buf: now,
        });
        (left, from) = (rest, part.range.end);
    }
    chain.read_many(reads, codec)
}

/// A number of bytes that is known to fit a window.
pub fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
