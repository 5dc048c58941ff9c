//! Frames on a stream: a program at its other end that writes any bytes in any pieces, and a guest that sends and takes
//! packets in buffers of any lengths. What each gets is what the other has sent.
#![no_main]

use instar_vmm::machine::seam::run_net_stream;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|moves: &[u8]| run_net_stream(moves));
