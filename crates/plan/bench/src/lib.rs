//! A steady stream of requests to an image, as `qemu-img bench` sends them.
//!
//! [`run`] keeps up to [`Settings::depth`] requests in flight until [`Settings::count`] are done. Each begins one
//! step after the one before, and starts over at the disk's end. Requests overlap
//! ([`instar_storage::overlap`]), in the file that holds their bytes; what lies in no file, or
//! compressed in one, an [`Image`] does itself while the others are in flight.
//!
//! The bytes that are read are used for nothing. All bytes that are written are the same, so that every buffer fits
//! every request.
//!
//! *Crash safety:* each written sector is old or new: an image whose tables have to say where new data lies writes them
//! when no request is in flight.
//!
//! *Memory:* a buffer for each request in flight, and for each further piece of a request whose bytes lie in several
//! places.
//!
//! Modules: `engine` (the stream), `image` (what it goes to).
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;

mod engine;
mod image;

pub use engine::run;
pub use image::{Image, Piece, RawWriter, Reader};

use instar_storage::{Errno, StorageError};

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Requests in all.
    pub count: u32,
    /// Requests in flight at most, 1 or more.
    pub depth: u32,
    /// Bytes of each, 1 or more.
    pub len: u32,
    /// Bytes from the start of one to the start of the next.
    pub step: u32,
    /// Where the first starts, in bytes as the guest counts.
    pub start: u64,
    /// They write; else they read.
    pub write: Option<Writes>,
}

/// How it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writes {
    /// The byte that is written.
    pub pattern: u8,
    /// Requests after which there is a flush; 0 for none.
    pub flush_interval: u32,
    /// A flush waits for all that was sent, and what follows waits for the flush.
    pub drain: bool,
}

/// Told how many requests are done, now and then.
pub trait Monitor {
    /// After each request that is done.
    ///
    /// # Errors
    /// The run is to end.
    fn progress(&mut self, done: u64, total: u64) -> Result<(), Cancelled>;
}

/// The user, or the host on its behalf, wants the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancelled;

/// Why a run stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BenchError {
    /// A request failed.
    #[error("Failed request: {}", Errno(*errno))]
    Request {
        /// The errno (Linux numbering).
        errno: u32,
    },
    /// The run was cancelled.
    #[error("The operation was cancelled")]
    Cancelled,
    /// No memory for the buffers.
    #[error("Cannot allocate memory")]
    OutOfMemory,
}

impl From<Cancelled> for BenchError {
    fn from(_: Cancelled) -> Self {
        Self::Cancelled
    }
}

impl From<StorageError> for BenchError {
    fn from(error: StorageError) -> Self {
        Self::Request { errno: error.errno }
    }
}

#[cfg(test)]
mod tests;
