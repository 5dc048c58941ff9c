//! The map of a disk that is in use: where its bytes are, and where new ones go.
//!
//! A [`LiveImage`] answers for an image and its backing chain while somebody else moves the data. It says where bytes are
//! ([`LiveImage::lookup`]), gives new bytes a place ([`LiveImage::allocate`]) and has the image's tables name it when they
//! are there ([`LiveImage::link`]). It reads and writes data itself only where nobody else can: what is compressed, what
//! surrounds new bytes in their cluster, and zeros that no table can say.
//!
//! A crash, of this code or of whoever moves the data, leaves leaked clusters at worst, and what was there at the last
//! [`LiveImage::flush`]: new refcounts, copies and data are durable before an entry leads to them, and the entry before a
//! refcount falls; see `instar_plan_write`.
//!
//! Places that are on their way to be written have a *ticket*. Between its allocation and its link or end nothing else may
//! be done to their clusters; other clusters do not care.
//!
//! Modules: `image` (questions to an image), `written` (to one that is written to), `below` (the backing chain), `extents`
//! (answers).
//!
//! Memory: 1 MiB for L2 tables and as much for refcount blocks, or four of each if that is more; the L1 table and
//! the refcount table; the tables of the backing chain (see `instar_layers`); the last cluster that was decompressed; what
//! at most [`MAX_TICKETS`] tickets take.
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;

mod below;
mod extents;
mod image;
mod written;

pub use below::Backing;
pub use extents::{Extent, ExtentKind, Extents};
pub use image::{LiveImage, Place};

use instar_layers::DataError;
use instar_plan_write::WriteError;
use instar_storage::StorageError;

/// Most tickets at a time.
pub const MAX_TICKETS: usize = 256;
/// Most extents of an answer.
pub const MAX_EXTENTS: usize = 256;
/// Unit of the disk's size, and of what is asked, in bytes.
pub const SECTOR_BYTES: u64 = 512;

/// Why a question has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LiveError {
    /// The image takes no writes.
    #[error("the image is read-only")]
    ReadOnly,
    /// The range is empty, or goes past the disk's end.
    #[error("the range is not on the disk")]
    Range,
    /// A ticket stands for a part of the clusters.
    #[error("a write to the same clusters is on its way")]
    Busy,
    /// There is no such ticket.
    #[error("there is no such ticket")]
    NoTicket,
    /// The range is in more pieces than an answer may have.
    #[error("the range is in too many pieces")]
    TooManyPieces,
    /// The image cannot be changed.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The image or its backing chain cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The file failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl LiveError {
    /// The errno (Linux numbering) that stands for it; never 0.
    #[must_use]
    pub fn errno(&self) -> u32 {
        let errno = match self {
            Self::ReadOnly => 30,
            Self::Range | Self::NoTicket => 22,
            Self::Busy => 16,
            Self::TooManyPieces => 7,
            Self::Write(e) => e.errno(),
            Self::Data(e) => e.errno(),
            Self::Storage(e) => e.errno,
        };
        if errno == 0 { 5 } else { errno }
    }
}
