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

/// The seed and the number of cases of this run; both are printed.
fn run_of(what: &str, cases: u64) -> (u64, u64) {
    instar_tests::judge::run_of("LIVE", what, 20_261_122, cases)
}
