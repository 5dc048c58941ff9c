//! The runtime that operation binaries link.
//!
//! An operation's `main.rs` is `#![no_std] #![no_main]`, one line
//! `instar_guest_ops::entry!(run);` and `fn run(ctx: &mut Context)`. It runs in
//! ring 3 (EL0) from its first instruction: no kernel, no interrupts, one
//! thread, but for jobs that a [`Crew`] runs. [`Context`] is everything it can do.
//!
//! All that reaches outside goes through one [`Platform`]; [`Machine`] is the
//! real one. So the whole crate is tested on a host, its virtqueue driver
//! against the device model of `instar-devices`.
//!
//! A guest build passes `--cfg instar_guest`. Without it [`entry!`] makes a
//! program that only says that it is no program, so that the workspace builds
//! and is linted as a whole.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;

mod context;
mod crew;
mod disk;
mod dma;
mod entry;
mod extents;
mod files;
mod machine;
#[cfg(all(
    target_arch = "x86_64",
    any(test, all(instar_guest, target_os = "linux"))
))]
mod mem;
mod memory;
mod page;
mod platform;
mod queries;
mod queue;
mod records;
#[cfg(any(instar_guest, target_os = "none"))]
mod runtime;
mod secrets;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

pub use context::{Context, MAX_RESULT_BYTES};
pub use crew::Crew;
pub use disk::{Disk, DiskError, DiskSet, MAX_PIECE_BYTES};
pub use files::{AnnounceError, OpenError};
pub use machine::Machine;
pub use platform::Platform;
pub use queries::Queries;
pub use queue::{Queue, QueueError, Segment};
pub use records::{PROGRESS_INTERVAL_MS, RecordTooLong, Records};
pub use secrets::Secret;

pub use instar_shared as shared;
pub use instar_storage as storage;

#[doc(hidden)]
pub use entry::start;
