//! The source of random bytes, with a hostile driver.
#![no_main]

use instar_fuzz::{Transport, fakes, run};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|moves: &[u8]| run(Transport::Mmio, &[fakes::rng], moves));
