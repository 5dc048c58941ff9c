//! The network device, with a hostile driver and packets of any length.
#![no_main]

use instar_fuzz::{Transport, fakes, run};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|moves: &[u8]| run(Transport::Mmio, &[fakes::net], moves));
