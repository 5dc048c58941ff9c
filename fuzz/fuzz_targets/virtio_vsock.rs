//! The socket device, with a hostile driver and programs of the host that read and write as they like.
#![no_main]

use instar_fuzz::{Transport, fakes, run};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|moves: &[u8]| run(Transport::Mmio, &[fakes::vsock], moves));
