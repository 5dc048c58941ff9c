//! Block backends: a host file, read without copies straight into guest memory.
//!
//! A read that the page cache holds is done inside the kick (`RWF_NOWAIT`);
//! one that would sleep goes to the I/O thread, and the guest runs on.

mod file;
mod io_thread;
mod transfer;

pub use file::FileBackend;
pub use io_thread::{IoQueue, OnStart};
