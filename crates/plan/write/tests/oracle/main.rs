//! `qemu-img` and `qemu-io` as judges: they make images of every kind, this crate writes into them, and they say what is
//! there then, and whether it is sound. Power cuts are simulated at every point.
//!
//! `WRITE_SEED` and `WRITE_CASES` choose other writes and more of them.

// Test code may end in a panic, and its numbers are small.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::cast_possible_truncation)]

mod crash;
mod encrypted;
mod encrypted_crash;
mod image;
mod random;

/// The seed and the number of cases of this run; both are printed.
fn run_of(what: &str, cases: u64) -> (u64, u64) {
    instar_tests::judge::run_of("WRITE", what, 20_261_121, cases)
}
