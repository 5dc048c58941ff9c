//! Disks, with a hostile driver and a store that finishes requests in any order.
#![no_main]

use instar_fuzz::{Transport, fakes, run};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|moves: &[u8]| run(Transport::Mmio, &[fakes::blk, fakes::limited_blk], moves));
