//! Block backends: a host file, read without copies straight into guest memory.
//!
//! A read that the page cache holds is done inside the kick (`RWF_NOWAIT`). One
//! that would sleep is announced to the kernel, which fetches it while the guest
//! runs on and submits more; the guest's wait then finishes it. So requests
//! overlap on the device without a thread: a process that lives for 3 ms does
//! not pay for one, and its jail needs no second filter.

mod file;
mod transfer;

pub use file::FileBackend;
