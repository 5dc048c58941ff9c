//! `qemu-img snapshot` as the judge: chains of actions on images of every kind, done by both on copies of the same
//! image. After each step the outcome, what `qemu-img` shows of the image, its check and every byte of the disk and
//! of each snapshot have to be the same. Then images that are refused, damaged ones, and power cuts.
//!
//! `SNAPSHOT_SEED` and `SNAPSHOT_CASES` choose other chains and more of them.

// Test code may end in a panic, and its numbers are small.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::cast_possible_truncation)]

mod chains;
mod crash;
mod damage;
mod kinds;
mod ours;
mod qemu;
mod refusals;
mod state;

/// A small generator of random numbers (xorshift64*).
struct Rng(u64);

impl Rng {
    /// The generator of one case of a run.
    fn of(seed: u64, case: u64) -> Self {
        Self(seed.wrapping_add(case.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`.
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}

/// The seed and the number of cases of this run; both are printed.
fn run_of(what: &str, cases: u64) -> (u64, u64) {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse().expect("a number"))
    };
    let seed = number("SNAPSHOT_SEED").unwrap_or(20_261_121);
    let cases = number("SNAPSHOT_CASES").unwrap_or(cases);
    println!("{what}: SNAPSHOT_SEED={seed} SNAPSHOT_CASES={cases}");
    (seed, cases)
}
