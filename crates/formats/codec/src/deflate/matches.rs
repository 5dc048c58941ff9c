//! Finds earlier occurrences of the bytes at a position.

use alloc::boxed::Box;
use alloc::vec::Vec;

/// How far back a match may lie: less than the 4 KiB window that QEMU's decoder promises.
pub(super) const WINDOW: usize = 4096;
/// Longest match. RFC 1951 §3.2.5.
pub(super) const MAX_MATCH: usize = 258;
/// Shortest match that a hash chain finds.
const CHAINED: usize = 4;
const CHAIN_HASH_BITS: u32 = 14;
const SHORT_HASH_BITS: u32 = 12;
/// A match of three bytes from farther back costs more than three literals, as a rule.
const SHORT_WINDOW: u32 = 2048;

/// Bytes that occurred before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Match {
    /// 0 for none, else 3 to [`MAX_MATCH`].
    pub(super) len: u32,
    /// How far back, from 1.
    pub(super) distance: u32,
}

/// How hard a search tries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    /// Candidates looked at.
    pub(super) depth: u32,
    /// Length that ends the search.
    pub(super) enough: u32,
}

/// Where each sequence of bytes was last seen.
///
/// Positions are counted on from one input to the next, so that entries of an earlier input are too
/// far back by themselves; 0 is before all of them.
#[derive(Debug)]
pub(super) struct Matches {
    chains: Box<[u32; 1 << CHAIN_HASH_BITS]>,
    shorts: Box<[u32; 1 << SHORT_HASH_BITS]>,
    /// The previous position with the same hash, at the position modulo the window.
    before: Box<[u32; WINDOW]>,
    base: u32,
}

impl Matches {
    /// Nothing seen; `None` without memory.
    pub(super) fn new() -> Option<Self> {
        Some(Self {
            chains: zeroed_array()?,
            shorts: zeroed_array()?,
            before: zeroed_array()?,
            base: WINDOW as u32,
        })
    }

    /// Forgets all inputs; the next one is `len` bytes long.
    pub(super) fn start(&mut self, previous_len: usize, len: usize) {
        let base = self.base as usize + previous_len + WINDOW;
        if base + len < u32::MAX as usize {
            self.base = base as u32;
            return;
        }
        self.chains.fill(0);
        self.shorts.fill(0);
        self.base = WINDOW as u32;
    }

    /// Counts from `base` on, as after much input.
    #[cfg(test)]
    pub(super) const fn set_base(&mut self, base: u32) {
        self.base = base;
    }

    /// Notes position `at` of the input and gives the best match there that is longer than `than`.
    #[inline(always)]
    pub(super) fn find(&mut self, input: &[u8], at: usize, than: u32, effort: Effort) -> Match {
        let Some((candidate, short)) = self.note(input, at) else {
            return Match::default();
        };
        let here = self.base.wrapping_add(at as u32);
        let mut best = Match::default();
        if than < 3 && here.wrapping_sub(short) <= SHORT_WINDOW {
            let from = short.wrapping_sub(self.base) as usize;
            if load(input, from) << 8 == load(input, at) << 8 {
                best = Match {
                    len: 3,
                    distance: here.wrapping_sub(short),
                };
            }
        }
        self.walk(
            input,
            at,
            candidate,
            Match {
                len: than.max(best.len),
                ..best
            },
            effort,
        )
    }

    /// The best match along a chain, if it is longer than `best`, which stands in the place of none.
    #[inline(always)]
    fn walk(&self, input: &[u8], at: usize, mut from: u32, floor: Match, effort: Effort) -> Match {
        let here = self.base.wrapping_add(at as u32);
        let mut best = floor;
        let first = load(input, at);
        let oldest = here.wrapping_sub(WINDOW as u32 - 1);
        let limit = input.len().wrapping_sub(at).min(MAX_MATCH);
        for _ in 0..effort.depth {
            if from < oldest || best.len as usize >= limit {
                break;
            }
            let place = from.wrapping_sub(self.base) as usize;
            // A longer match must have equal bytes around its new end.
            let tail = (best.len as usize).saturating_sub(CHAINED - 1);
            if load(input, place.wrapping_add(tail)) == load(input, at.wrapping_add(tail))
                && load(input, place) == first
            {
                let len = common(input, place, at, limit) as u32;
                if len > best.len {
                    best = Match {
                        len,
                        distance: here.wrapping_sub(from),
                    };
                    if len >= effort.enough {
                        break;
                    }
                }
            }
            from = self
                .before
                .get(from as usize % WINDOW)
                .copied()
                .unwrap_or(0);
        }
        if best.distance == 0 {
            Match::default()
        } else {
            best
        }
    }

    /// Enters a position, and gives those of the last equal hashes of four and three bytes; `None` near the end.
    #[inline(always)]
    fn note(&mut self, input: &[u8], at: usize) -> Option<(u32, u32)> {
        let bytes = input.get(at..at.wrapping_add(CHAINED))?;
        let word = u32::from_le_bytes(bytes.try_into().ok()?);
        let here = self.base.wrapping_add(at as u32);
        let chain = self
            .chains
            .get_mut((word.wrapping_mul(0x9e37_79b1) >> (32 - CHAIN_HASH_BITS)) as usize)?;
        let candidate = core::mem::replace(chain, here);
        let short_hash = (word << 8).wrapping_mul(0x9e37_79b1) >> (32 - SHORT_HASH_BITS);
        let short = core::mem::replace(self.shorts.get_mut(short_hash as usize)?, here);
        *self.before.get_mut(here as usize % WINDOW)? = candidate;
        Some((candidate, short))
    }

    /// Enters `count` positions from `at`.
    #[inline(always)]
    pub(super) fn skip(&mut self, input: &[u8], at: usize, count: usize) {
        for at in at..at.wrapping_add(count) {
            if self.note(input, at).is_none() {
                return;
            }
        }
    }
}

/// The four bytes at a place, or 0 past the end.
#[inline(always)]
fn load(input: &[u8], at: usize) -> u32 {
    let bytes = input.get(at..at.wrapping_add(4));
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

/// How many bytes are equal from two places on, at most `limit`.
#[inline(always)]
fn common(input: &[u8], from: usize, at: usize, limit: usize) -> usize {
    let theirs = input
        .get(from..from.wrapping_add(limit))
        .unwrap_or_default();
    let ours = input.get(at..at.wrapping_add(limit)).unwrap_or_default();
    let mut len = 0;
    let words = ours
        .as_chunks::<8>()
        .0
        .iter()
        .zip(theirs.as_chunks::<8>().0);
    for (ours, theirs) in words {
        let differ = u64::from_le_bytes(*ours) ^ u64::from_le_bytes(*theirs);
        if differ != 0 {
            return len + (differ.trailing_zeros() / 8) as usize;
        }
        len += 8;
    }
    let tails = ours.iter().skip(len).zip(theirs.iter().skip(len));
    len + tails.take_while(|(ours, theirs)| ours == theirs).count()
}

/// An array of zeros on the heap; `None` without memory.
fn zeroed_array<const N: usize>() -> Option<Box<[u32; N]>> {
    let mut array = Vec::new();
    array.try_reserve_exact(N).ok()?;
    array.resize(N, 0);
    array.into_boxed_slice().try_into().ok()
}
