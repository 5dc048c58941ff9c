//! Copying the content of images into another one, as `qemu-img convert` does.
//!
//! An [`Engine`] walks its [`Source`] once from the first byte to the last. What is no data (zeros, or left to the
//! target's backing file) it tells the [`Target`], in runs of any length; the rest it cuts into *windows* of at
//! most [`WINDOW_BYTES`]. Several windows are in flight: read, looked through for zeros, and written, each by
//! requests that overlap ([`instar_storage::overlap`]). Places in the target are given in the guest's order, so
//! that a file that is written from its start grows in order.
//!
//! ```text
//!   spans of the source --> window: reads in flight --> in order: blocks --> writes in flight --> buffer free
//!          |                                               |
//!          '-- zeros, below: target.zeros() <--------------'
//! ```
//!
//! Data that need not be looked at is copied by the host ([`Settings::copy`]), and does not come by.
//!
//! *Crash safety* is the target's: a raw file is complete when the copy is, a new qcow2 image is none before its
//! header is written, last. One that is there has of each sector the old or the new content: its tables are written
//! when no write is in flight.
//!
//! Of compressed clusters, what they are made of is read instead, and a crew decompresses them ([`Unpacker`]).
//!
//! *Memory:* [`WINDOWS`] buffers of [`WINDOW_BYTES`], at most as much again for parts of windows, with an
//! [`Unpacker`] at most twice as much for compressed bytes, and what source and target take.
//!
//! Modules: `source` (what is read), `chains` (backing chains as one), `target` (where it goes),
//! `image` (a new qcow2 image as that), `into` (one that is there), `blocks` (zeros in a window), `window`, `squeeze`
//! (compression), `unpack` (decompression), `both` (a crew for the two), `engine` (the pipeline) with
//! `reading`, `writing` and `packing`, `bitmaps`, `error`.
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;

mod bitmaps;
mod blocks;
mod both;
mod chains;
mod engine;
mod error;
mod image;
mod into;
mod packing;
mod reading;
mod source;
mod squeeze;
mod target;
mod unpack;
mod window;
mod writing;

pub use bitmaps::{bitmaps_of, copy_bitmap};
pub use both::{Both, Work};
pub use chains::{Chains, Onto};
pub use engine::{Cancelled, Engine, Monitor, Settings};
pub use error::{ConvertError, ReadError, Salvaged, TargetError};
pub use image::{Below, NewTarget};
pub use into::{IntoImage, Manner};
pub use source::{Part, Source, Span, Stream, What};
pub use squeeze::{Squeeze, Squeezer};
pub use target::{Place, RawTarget, Target, Zeros};
pub use unpack::{Unpack, Unpacker};
pub use window::{WINDOW_BYTES, WINDOWS};

#[cfg(test)]
mod tests;
