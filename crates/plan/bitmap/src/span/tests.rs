use super::*;
use alloc::vec;
use alloc::vec::Vec;

/// A small generator of random numbers (xorshift64*).
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n.max(1)
    }
}

fn bit(bytes: &[u8], at: u64) -> bool {
    bytes[usize::try_from(at / 8).unwrap()] >> (at % 8) & 1 == 1
}

/// The merged bits, worked out sector by sector.
fn expected(source: &[u8], from: u8, to: u8, disk_bytes: u64) -> Vec<bool> {
    let count = disk_bytes.div_ceil(1 << to);
    let mut bits = vec![false; usize::try_from(count).unwrap()];
    for sector in 0..disk_bytes / 512 {
        if bit(source, (sector * 512) >> from) {
            bits[usize::try_from((sector * 512) >> to).unwrap()] = true;
        }
    }
    bits
}

#[test]
fn merged_bits_agree_with_a_walk_by_sectors() {
    let mut rng = Rng(0x5eed);
    for round in 0..400 {
        let disk_bytes = 512 * (1 + rng.below(5000));
        let (from, to) = (9 + rng.below(8), 9 + rng.below(8));
        let (from, to) = (u8::try_from(from).unwrap(), u8::try_from(to).unwrap());
        let source_bits = disk_bytes.div_ceil(1 << from);
        let density = 1 + rng.below(40);
        let mut source = vec![0; usize::try_from(source_bits.div_ceil(8)).unwrap()];
        for byte in &mut source {
            for shift in 0..8 {
                *byte |= u8::from(rng.below(density) == 0) << shift;
            }
        }
        let wanted = expected(&source, from, to, disk_bytes);
        let total = wanted.len() as u64;
        // In stretches, and the source in pieces.
        let (stretch, piece) = (8 * (1 + rng.below(40)), 1 + rng.below(9));
        let mut first = 0;
        while first < total {
            let count = stretch.min(total - first);
            let mut bytes = vec![0; usize::try_from(stretch / 8).unwrap()];
            let mut span = Span {
                bytes: &mut bytes,
                first,
                count,
                granularity_bits: to,
                disk_bytes,
            };
            let (start, end) = span.covered(from);
            let mut at = start;
            while at < end {
                let piece_first = at / 8 / piece * piece * 8;
                let low = usize::try_from(piece_first / 8).unwrap();
                let high = (low + usize::try_from(piece).unwrap()).min(source.len());
                let stop = (piece_first + piece * 8).min(end);
                span.merge(&source[low..high], piece_first, at, stop, from);
                at = stop;
            }
            span.clear_tail();
            for n in 0..stretch {
                let is = bit(&bytes, n);
                let should = n < count && wanted[usize::try_from(first + n).unwrap()];
                assert_eq!(
                    is,
                    should,
                    "round {round}: bit {} of {from} in {to}",
                    first + n
                );
            }
            first += count;
        }
    }
}

#[test]
fn set_bits_end_at_the_disk() {
    let mut bytes = [0; 2];
    let mut span = Span {
        bytes: &mut bytes,
        first: 0,
        count: 11,
        granularity_bits: 9,
        disk_bytes: 11 * 512,
    };
    span.set(0, 1, 31);
    assert_eq!(bytes, [0xff, 0x07]);
}
