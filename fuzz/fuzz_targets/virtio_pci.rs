//! All devices on a PCI bus, with a hostile driver.
#![no_main]

use instar_fuzz::{ALL, Transport, run};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|moves: &[u8]| run(Transport::Pci, ALL, moves));
