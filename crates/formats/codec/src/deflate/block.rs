//! One block: its symbols, and how it is written. RFC 1951 §3.2.3 "Details of block format".

use super::bits::BitWriter;
use super::huffman::{Code, MAX_BITS, MAX_SYMBOLS};
use super::matches::Match;

/// A literal, or a match: its length in the upper half, its distance in the lower.
pub(super) type Token = u32;

/// The token of a match.
pub(super) const fn match_token(found: Match) -> Token {
    found.len << 16 | found.distance
}

/// Input bytes that a token stands for.
pub(super) const fn token_len(token: Token) -> usize {
    let len = token >> 16;
    if len == 0 { 1 } else { len as usize }
}

const END_OF_BLOCK: usize = 256;
const DISTANCES: usize = 32;
/// Symbols that describe code lengths.
const LEN_SYMBOLS: usize = 19;
/// The order in which their own lengths are written. RFC 1951 §3.2.7.
const LEN_ORDER: [usize; LEN_SYMBOLS] = [
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
];
const MAX_LEN_BITS: usize = 7;

/// A symbol with the bits that follow it.
struct Symbol {
    symbol: usize,
    extra: u64,
    extra_bits: u32,
}

/// Symbol of a match's length. RFC 1951 §3.2.5.
#[inline(always)]
fn length_symbol(len: u32) -> Symbol {
    let over = len - 3;
    if over < 8 {
        let symbol = 257 + over as usize;
        return Symbol {
            symbol,
            extra: 0,
            extra_bits: 0,
        };
    }
    if len == 258 {
        return Symbol {
            symbol: 285,
            extra: 0,
            extra_bits: 0,
        };
    }
    let extra_bits = over.ilog2() - 2;
    let symbol = 257 + 4 * (extra_bits + 1) + (over >> extra_bits & 3);
    Symbol {
        symbol: symbol as usize,
        extra: (over & ((1 << extra_bits) - 1)).into(),
        extra_bits,
    }
}

/// Symbol of a match's distance. RFC 1951 §3.2.5.
#[inline(always)]
fn distance_symbol(distance: u32) -> Symbol {
    let over = distance - 1;
    if over < 4 {
        return Symbol {
            symbol: over as usize,
            extra: 0,
            extra_bits: 0,
        };
    }
    let extra_bits = over.ilog2() - 1;
    let symbol = 2 * (extra_bits + 1) + (over >> extra_bits & 1);
    Symbol {
        symbol: symbol as usize,
        extra: (over & ((1 << extra_bits) - 1)).into(),
        extra_bits,
    }
}

/// How often each symbol occurs in a run of tokens.
#[derive(Clone, Debug)]
pub(super) struct Counts {
    literals: [u32; MAX_SYMBOLS],
    distances: [u32; DISTANCES],
    /// Bits that follow the symbols, whatever the codes are.
    extra_bits: u32,
}

impl Counts {
    /// Of no tokens.
    pub(super) const fn new() -> Self {
        Self {
            literals: [0; MAX_SYMBOLS],
            distances: [0; DISTANCES],
            extra_bits: 0,
        }
    }

    /// Counts one token.
    #[inline(always)]
    pub(super) fn add(&mut self, token: Token) {
        let len = token >> 16;
        if len == 0 {
            bump(&mut self.literals, token as usize);
            return;
        }
        let length = length_symbol(len);
        let distance = distance_symbol(token & 0xffff);
        bump(&mut self.literals, length.symbol);
        bump(&mut self.distances, distance.symbol);
        self.extra_bits += length.extra_bits + distance.extra_bits;
    }

    /// Adds the counts of another run.
    pub(super) fn merge(&mut self, other: &Self) {
        for (own, more) in self.literals.iter_mut().zip(&other.literals) {
            *own += more;
        }
        for (own, more) in self.distances.iter_mut().zip(&other.distances) {
            *own += more;
        }
        self.extra_bits += other.extra_bits;
    }

    /// About how many bits the symbols take in a block of their own, in 1/256; without extra bits.
    pub(super) fn estimate(&self) -> u64 {
        entropy(&self.literals) + entropy(&self.distances)
    }
}

fn bump<const N: usize>(counts: &mut [u32; N], symbol: usize) {
    if let Some(count) = counts.get_mut(symbol) {
        *count += 1;
    }
}

/// Bits that name a symbol's code length in the header of a block, in 1/256.
const SYMBOL_COST: u64 = 3 << 8;

/// Bits that symbols take with ideal codes, and their share of the header, in 1/256.
fn entropy(counts: &[u32]) -> u64 {
    let total: u32 = counts.iter().sum();
    let whole = log2(total);
    let occurring = counts.iter().filter(|count| **count != 0);
    let bits = occurring.map(|count| u64::from(*count) * (whole - log2(*count)) + SYMBOL_COST);
    bits.sum()
}

/// The binary logarithm in 1/256, within 3/256; 0 for 0.
fn log2(value: u32) -> u64 {
    let Some(whole) = value.checked_ilog2() else {
        return 0;
    };
    // What is above the power of two, as a fraction of it, and a parabola for the curve.
    let over = ((u64::from(value) << 32) >> whole) & 0xffff_ffff;
    let over = over >> 16;
    let curve = (over * (0x1_0000 - over)) >> 16;
    (u64::from(whole) << 8) + ((over + curve * 88 / 256) >> 8)
}

/// A run of tokens and what it says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block<'a> {
    /// The tokens.
    pub(super) tokens: &'a [Token],
    /// The input bytes they stand for.
    pub(super) bytes: &'a [u8],
    /// Whether no block follows.
    pub(super) last: bool,
}

impl Block<'_> {
    /// Writes the block in the form that takes the fewest bits.
    pub(super) fn write(&self, mut counts: Counts, out: &mut BitWriter<'_>) {
        bump(&mut counts.literals, END_OF_BLOCK);
        let own = Codes {
            literals: Code::best(&counts.literals, MAX_BITS),
            distances: Code::best(&counts.distances, MAX_BITS),
        };
        let header = Header::new(&own);
        let fixed = Codes::fixed();
        let own_cost = header.cost() + own.cost(&counts);
        let fixed_cost = fixed.cost(&counts);
        let symbols_cost = own_cost.min(fixed_cost) + counts.extra_bits;
        if self.stored_cost(out) <= symbols_cost as usize {
            self.write_stored(out);
            return;
        }
        let last = u64::from(self.last);
        let codes = if fixed_cost <= own_cost {
            out.put(last | 1 << 1, 3);
            &fixed
        } else {
            out.put(last | 2 << 1, 3);
            header.write(out);
            &own
        };
        codes.write(self.tokens, out);
    }

    /// Bits of the block stored, less the three that every form has.
    fn stored_cost(&self, out: &BitWriter<'_>) -> usize {
        let pieces = self.bytes.len().div_ceil(MAX_STORED).max(1);
        // Each further piece has three bits and fills up to a byte.
        self.bytes.len() * 8 + pieces * 40 + (out.to_boundary() as usize + 5) % 8
    }

    fn write_stored(&self, out: &mut BitWriter<'_>) {
        let mut pieces = self.bytes.chunks(MAX_STORED).peekable();
        while let Some(piece) = pieces.next() {
            let last = self.last && pieces.peek().is_none();
            out.put(last.into(), 3);
            out.put(0, out.to_boundary());
            let len = piece.len() as u64;
            out.put(len | (len ^ 0xffff) << 16, 32);
            out.put_bytes(piece);
        }
    }
}

/// Most bytes of a stored block. RFC 1951 §3.2.4.
const MAX_STORED: usize = 0xffff;

/// The two codes of a block.
struct Codes {
    literals: Code<MAX_SYMBOLS>,
    distances: Code<DISTANCES>,
}

impl Codes {
    /// RFC 1951 §3.2.6 "Compression with fixed Huffman codes".
    fn fixed() -> Self {
        let mut literals = [8; MAX_SYMBOLS];
        for (symbol, len) in literals.iter_mut().enumerate() {
            *len = match symbol {
                144..256 => 9,
                256..280 => 7,
                _ => 8,
            };
        }
        Self {
            literals: Code::from_lens(literals),
            distances: Code::from_lens([5; DISTANCES]),
        }
    }

    fn cost(&self, counts: &Counts) -> u32 {
        self.literals.cost(&counts.literals) + self.distances.cost(&counts.distances)
    }

    /// Writes tokens and the end of the block.
    fn write(&self, tokens: &[Token], out: &mut BitWriter<'_>) {
        for token in tokens {
            let len = token >> 16;
            if len == 0 {
                let (word, count) = self.literals.word(*token as usize);
                out.put(word, count);
                continue;
            }
            // At most 15 + 5 + 15 + 13 bits.
            let (mut bits, mut count) = (0, 0);
            let length = length_symbol(len);
            let distance = distance_symbol(token & 0xffff);
            let length_word = self.literals.word(length.symbol);
            let distance_word = self.distances.word(distance.symbol);
            let parts = [
                length_word,
                (length.extra, length.extra_bits),
                distance_word,
                (distance.extra, distance.extra_bits),
            ];
            for (part, part_bits) in parts {
                bits |= part << count;
                count += part_bits;
            }
            out.put(bits, count);
        }
        let (word, count) = self.literals.word(END_OF_BLOCK);
        out.put(word, count);
    }
}

/// A step of the description of code lengths: a symbol, and the bits that follow it.
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    symbol: u8,
    extra: u8,
}

impl Step {
    const fn extra_bits(self) -> u32 {
        match self.symbol {
            16 => 2,
            17 => 3,
            18 => 7,
            _ => 0,
        }
    }
}

/// What comes before the symbols of a block with codes of its own. RFC 1951 §3.2.7.
struct Header {
    literals: usize,
    distances: usize,
    steps: [Step; MAX_SYMBOLS + DISTANCES],
    step_count: usize,
    code: Code<LEN_SYMBOLS>,
    /// How many of [`LEN_ORDER`] are written.
    lens: usize,
}

impl Header {
    fn new(codes: &Codes) -> Self {
        let used = |lens: &[u8], least: usize| {
            let last = lens.iter().rposition(|len| *len != 0);
            last.map_or(least, |last| (last + 1).max(least))
        };
        // The alphabets of the format have 286 and 30 symbols; the others never occur.
        let literals = used(&codes.literals.lens, 257);
        let distances = used(&codes.distances.lens, 1);
        let mut all = [0; MAX_SYMBOLS + DISTANCES];
        let lens = codes.literals.lens.iter().take(literals);
        let lens = lens.chain(codes.distances.lens.iter().take(distances));
        for (place, len) in all.iter_mut().zip(lens) {
            *place = *len;
        }
        let all = all.get(..literals + distances).unwrap_or_default();
        let mut steps = [Step::default(); MAX_SYMBOLS + DISTANCES];
        let step_count = describe(all, &mut steps);
        let mut counts = [0; LEN_SYMBOLS];
        for step in steps.iter().take(step_count) {
            bump(&mut counts, step.symbol.into());
        }
        // Decoders refuse a code of one word here.
        if counts.iter().filter(|count| **count != 0).count() < 2 {
            let other = usize::from(counts[0] != 0);
            bump(&mut counts, other);
        }
        let code = Code::best(&counts, MAX_LEN_BITS);
        let needed = |symbol: &usize| code.lens.get(*symbol).is_some_and(|len| *len != 0);
        let lens = LEN_ORDER.iter().rposition(needed);
        Self {
            literals,
            distances,
            steps,
            step_count,
            lens: lens.map_or(4, |last| (last + 1).max(4)),
            code,
        }
    }

    fn steps(&self) -> &[Step] {
        self.steps.get(..self.step_count).unwrap_or_default()
    }

    /// Bits of the header, less the three that every block has.
    fn cost(&self) -> u32 {
        let bits = |step: &Step| self.code.word(step.symbol.into()).1 + step.extra_bits();
        14 + 3 * self.lens as u32 + self.steps().iter().map(bits).sum::<u32>()
    }

    fn write(&self, out: &mut BitWriter<'_>) {
        out.put((self.literals - 257) as u64, 5);
        out.put((self.distances - 1) as u64, 5);
        out.put((self.lens - 4) as u64, 4);
        for symbol in LEN_ORDER.iter().take(self.lens) {
            out.put(self.code.word(*symbol).1.into(), 3);
        }
        for step in self.steps() {
            let (word, count) = self.code.word(step.symbol.into());
            out.put(word, count);
            out.put(step.extra.into(), step.extra_bits());
        }
    }
}

/// Describes code lengths by steps, runs taken together. Gives how many steps.
fn describe(lens: &[u8], steps: &mut [Step]) -> usize {
    let mut places = steps.iter_mut();
    let mut count = 0;
    let mut step = |symbol: u8, extra: usize| {
        if let Some(place) = places.next() {
            *place = Step {
                symbol,
                extra: extra as u8,
            };
            count += 1;
        }
    };
    for run in lens.chunk_by(|a, b| a == b) {
        let len = run.first().copied().unwrap_or(0);
        let mut left = run.len();
        if len == 0 {
            while left >= 11 {
                let now = left.min(138);
                step(18, now - 11);
                left -= now;
            }
            if left >= 3 {
                step(17, left - 3);
                left = 0;
            }
        } else {
            step(len, 0);
            left -= 1;
            while left >= 3 {
                let now = left.min(6);
                step(16, now - 3);
                left -= now;
            }
        }
        for _ in 0..left {
            step(len, 0);
        }
    }
    count
}
