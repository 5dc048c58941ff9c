//! `qemu-img` as the judge of repairs: images of every kind, damaged at places
//! that the specification names and repaired. What `qemu-img check` then says has to be what the
//! repair has promised, and what `qemu-img convert` reads, of the disk and of each
//! snapshot, has to be what it read before.
//!
//! `REPAIR_SEED` and `REPAIR_CASES` choose other damages and more of them. `REPAIR_SHOW` shows
//! where a repaired file is longer than that of `qemu-img`, or less is repaired, and `REPAIR_KEEP`
//! names a folder for these images and for those that fail.

// Test code may end in a panic, and its numbers are small.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]

#[path = "../../../check/tests/oracle/base.rs"]
mod base;
#[path = "../../../check/tests/oracle/damage.rs"]
mod damage;
mod judge;
mod kinds;
mod random;

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
        self.next() % n.max(1)
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().expect("a number"))
}
