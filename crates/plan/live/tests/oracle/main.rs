//! `qemu-img` and `qemu-io` as judges: they make images of every kind, whoever uses a live image moves data as it says, and
//! they say what is there then, and whether it is sound. Power cuts are simulated at every point.
//!
//! `LIVE_SEED` and `LIVE_CASES` choose other requests and more of them.

// Test code may end in a panic, and its numbers are small.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::cast_possible_truncation)]

mod crash;
mod image;
mod random;
mod single;
mod user;

/// A small generator of random numbers (xorshift64*).
pub struct Rng(u64);

impl Rng {
    /// The generator of one case of a run.
    pub fn of(seed: u64, case: u64) -> Self {
        Self(seed.wrapping_add(case.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.number() >> 16) % n.max(1)
    }
}

/// The seed and the number of cases of this run; both are printed.
pub fn run_of(what: &str, cases: u64) -> (u64, u64) {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse().expect("a number"))
    };
    let seed = number("LIVE_SEED").unwrap_or(20_261_122);
    let cases = number("LIVE_CASES").unwrap_or(cases);
    println!("{what}: LIVE_SEED={seed} LIVE_CASES={cases}");
    (seed, cases)
}
