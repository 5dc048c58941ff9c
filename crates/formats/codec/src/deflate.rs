//! Compression to a raw deflate stream. RFC 1951.
//!
//! Matches are looked up in hash chains over a window of 4 KiB, and put off by a byte where
//! that gives a better one. The tokens of a stretch of input are cut into blocks where the statistics
//! change. Nothing is allocated after [`Deflate::new`].
#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "all numbers are positions in one cluster and counts of its bytes; nothing is read from the input but bytes"
)]

mod bits;
mod block;
mod huffman;
mod matches;

use alloc::vec::Vec;

use bits::BitWriter;
use block::{Block, Counts, Token, match_token, token_len};
use matches::{Effort, Match, Matches};

/// Tokens that are held before blocks are made of them.
const HELD: usize = 1 << 16;
/// Tokens between two places where a block may end.
const PIECE: usize = 1 << 11;
/// What a block's header costs besides its symbols' lengths, in 1/256 bits.
const HEADER_COST: u64 = 60 << 8;
/// The search at a new position.
const FIRST: Effort = Effort {
    depth: 16,
    enough: 48,
};
/// The search one byte later, where a match is known.
const SECOND: Effort = Effort {
    depth: 8,
    enough: 48,
};

/// Compresses one buffer after the other.
#[derive(Debug)]
pub(crate) struct Deflate {
    matches: Matches,
    tokens: Vec<Token>,
    previous_len: usize,
}

impl Deflate {
    /// Everything that compressing needs, 0.4 MiB; `None` without memory.
    pub(crate) fn new() -> Option<Self> {
        let mut tokens = Vec::new();
        // The parser may go on for a few tokens after the last whole piece.
        tokens.try_reserve_exact(HELD + 8).ok()?;
        Some(Self {
            matches: Matches::new()?,
            tokens,
            previous_len: 0,
        })
    }

    /// Compresses `input`, at most 4 MiB, to the front of `out`; `None` if it does not fit.
    pub(crate) fn compress(&mut self, input: &[u8], out: &mut [u8]) -> Option<usize> {
        self.matches.start(self.previous_len, input.len());
        self.previous_len = input.len();
        let mut out = BitWriter::new(out);
        let mut at = 0;
        loop {
            self.tokens.clear();
            let end = self.parse(input, at);
            let last = end >= input.len();
            let held = input.get(at..end).unwrap_or_default();
            write_blocks(&self.tokens, held, last, &mut out);
            if out.is_full() {
                return None;
            }
            if last {
                return out.finish();
            }
            at = end;
        }
    }

    /// Turns input from `at` on into tokens until enough are held; gives where they end.
    fn parse(&mut self, input: &[u8], mut at: usize) -> usize {
        while at < input.len() && self.tokens.len() < HELD {
            let found = self.matches.find(input, at, 0, FIRST);
            if found.len == 0 {
                self.literal(input, at);
                at += 1;
            } else {
                at = self.settle(input, at, found);
            }
        }
        at
    }

    /// Takes a match at `at`, or a better one that begins soon after; gives where it ends.
    #[inline(always)]
    fn settle(&mut self, input: &[u8], mut at: usize, mut found: Match) -> usize {
        loop {
            // Positions noted from `at` on.
            let mut noted = 1;
            if found.len < FIRST.enough {
                let next = self.matches.find(input, at + 1, found.len - 1, SECOND);
                noted = 2;
                if worth(next, found) > 2 {
                    self.literal(input, at);
                    (at, found) = (at + 1, next);
                    continue;
                }
            }
            self.tokens.push(match_token(found));
            let end = at + found.len as usize;
            self.matches.skip(
                input,
                at + noted,
                (found.len as usize).saturating_sub(noted),
            );
            return end;
        }
    }

    fn literal(&mut self, input: &[u8], at: usize) {
        if let Some(byte) = input.get(at) {
            self.tokens.push((*byte).into());
        }
    }
}

/// About how many quarters of a byte `next` saves more than `found`.
#[inline(always)]
fn worth(next: Match, found: Match) -> i32 {
    if next.len == 0 {
        return i32::MIN;
    }
    let nearer = found.distance.ilog2().cast_signed() - next.distance.ilog2().cast_signed();
    4 * (next.len.cast_signed() - found.len.cast_signed()) + nearer
}

/// Writes tokens as blocks that end where the statistics change. `bytes` is what the tokens stand for.
fn write_blocks(tokens: &[Token], bytes: &[u8], last: bool, out: &mut BitWriter<'_>) {
    let mut start = 0;
    let mut bytes = bytes;
    let mut counts = Counts::new();
    let mut estimate = 0;
    let mut end = 0;
    for piece in tokens.chunks(PIECE) {
        let mut more = Counts::new();
        piece.iter().for_each(|token| more.add(*token));
        let alone = more.estimate();
        let mut both = counts.clone();
        both.merge(&more);
        let together = both.estimate();
        if end > start && together > estimate + alone + HEADER_COST {
            let block = tokens.get(start..end).unwrap_or_default();
            bytes = write_block(block, bytes, counts, false, out);
            start = end;
            (counts, estimate) = (more, alone);
        } else {
            (counts, estimate) = (both, together);
        }
        end += piece.len();
    }
    let block = tokens.get(start..).unwrap_or_default();
    write_block(block, bytes, counts, last, out);
}

/// Writes one block; gives the bytes after it.
fn write_block<'a>(
    tokens: &[Token],
    bytes: &'a [u8],
    counts: Counts,
    last: bool,
    out: &mut BitWriter<'_>,
) -> &'a [u8] {
    let len = tokens.iter().map(|token| token_len(*token)).sum();
    let (bytes, rest) = bytes.split_at_checked(len).unwrap_or((bytes, &[]));
    Block {
        tokens,
        bytes,
        last,
    }
    .write(counts, out);
    rest
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn compress_starts_over_before_positions_overflow() {
        let input: Vec<u8> = (0..20_000_u32).map(|at| (at % 251) as u8).collect();
        let mut out = vec![0; 20_000];
        let wanted = Deflate::new().unwrap().compress(&input, &mut out);
        let mut late = Deflate::new().unwrap();
        late.matches.set_base(u32::MAX - 100_000);
        for _ in 0..20 {
            assert_eq!(late.compress(&input, &mut out), wanted);
        }
    }
}
