//! `qemu-img bitmap` as the judge: the same commands done by both to copies of one image. Exit code, words,
//! what `info` and `check` say, every bit of every bitmap and the guest's data have to be the same.
//!
//! `BITMAP_SEED` and `BITMAP_CASES` choose other commands and more of them.

// Test code may end in a panic, and its numbers are small.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]

mod crash;
mod damage;
mod decode;
mod image;
mod judge;
mod limits;
mod random;
mod texts;

/// A small generator of random numbers (xorshift64*).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`.
    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n.max(1)
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize].clone()
    }

    /// The generator of one case.
    fn of_case(seed: u64, case: u64) -> Self {
        Self(seed.wrapping_add(case.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1)
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().expect("a number"))
}

/// The seed of a test, printed with how many cases it makes.
fn seed_and_cases(what: &str, cases: u64) -> (u64, u64) {
    let seed = number("BITMAP_SEED").unwrap_or(20_261_121);
    let cases = number("BITMAP_CASES").unwrap_or(cases);
    println!("{what}: BITMAP_SEED={seed} BITMAP_CASES={cases}");
    (seed, cases)
}
