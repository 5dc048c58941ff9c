//! The console, with a hostile driver and a terminal with little room.
#![no_main]

use instar_fuzz::{Transport, fakes, run};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|moves: &[u8]| run(Transport::Mmio, &[fakes::console], moves));
