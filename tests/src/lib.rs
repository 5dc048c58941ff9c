//! The harness of the end-to-end tests.
//!
//! A test builds an image with `qemu-img` and `qemu-io`, runs the program
//! under test and `qemu-img` with the same words, and compares what they said.
//! `qemu-img` 10.0.x is the oracle; another version, or none, fails the test
//! with a sentence. Nothing here is skipped.
//!
//! * `INSTAR_BIN` names the program under test. Naming `qemu-img` there checks
//!   the harness itself: every equality test passes.
//! * `INSTAR_SEED` repeats a run of the seeded tests; a failure prints its seed.

pub mod compare;
pub mod corpus;
pub mod crafted;
pub mod family;
pub mod faults;
pub mod front;
pub mod hidden;
pub mod holder;
pub mod image;
pub mod joint;
pub mod judge;
pub mod kernel;
pub mod kinds;
pub mod lab;
pub mod layouts;
pub mod live;
pub mod places;
pub mod rng;
pub mod run;
pub mod scratch;
pub mod terminal;
pub mod tools;
pub mod totals;
pub mod twins;
