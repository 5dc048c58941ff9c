//! The harness of the tests that run guests in real microVMs.
//!
//! Each test runs in a process of its own ([`alone()`]): a crash, an abort or a
//! hang of the host fails that test with a sentence, and the vCPU is on a main
//! thread, as in the worker. [`Guest`] says what to run; [`Outcome`] is what
//! became of it. Nothing is skipped: no `/dev/kvm`, no `qemu-img`, no pass.

mod alone;
mod frozen;
mod guest;
mod image;

pub use alone::{Failed, alone};
pub use frozen::Frozen;
pub use guest::{Guest, Host, Outcome, TEST_GUEST, limits, operation_file, writable_file};
pub use image::{Verdict, image_file, mutate, run_image, seed_images};
