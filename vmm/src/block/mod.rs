//! Block backends: a host file, read and written without copies straight from and to guest memory.
//!
//! A read that the page cache holds is done inside the kick (`RWF_NOWAIT`). One
//! that would sleep is announced to the kernel, which fetches it while the guest
//! runs on and submits more; the guest's wait then finishes it. So requests
//! overlap on the device without a thread: a process that lives for 3 ms does
//! not pay for one, and its jail needs no second filter.
//!
//! An operation that moves whole images asks for I/O threads ([`IoPool`]): long requests
//! go to them, so that copying overlaps with what the guest computes.
//!
//! A full machine has threads for its disks, off its vCPUs: there a kick comes on the disk's thread ([`Handover`]).
//!
//! Changes are made inside the kick, to the page cache. One that takes longer, such
//! as zeros written over a large range, is done in pieces by the guest's wait, so
//! that limits and cancellation are looked at between them.
//!
//! A file that was opened with `O_DIRECT` is read and written past the page cache ([`HostFile`]): by the threads, if
//! there are any, else inside the kick.

mod calls;
mod copy;
mod file;
mod files;
mod host;
mod pool;
mod range;
mod transfer;
mod work;

pub use file::{ChangeLimits, FileBackend, Handover, Shared};
pub use files::Files;
pub use host::HostFile;
pub use pool::{Finish, Finished, IoPool};
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub use {
    pool::Job,
    transfer::{Step, Transfer},
    work::Work,
};
