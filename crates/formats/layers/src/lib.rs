//! The content of images and their backing chains.
//!
//! A [`Layer`] is one image opened for what its guest would read: raw, or qcow2 in its active state or in that
//! of an internal snapshot. A [`Chain`] is a stack of layers, the top first. Both answer with *runs*: stretches
//! of the virtual disk in one state, with the place of their bytes, so that whoever moves data asks for it in
//! large pieces. The states and the damages are those that `qemu-img` 10.0 was seen to tell apart.
//!
//! Modules:
//! - `tables`: L1 and L2 tables through a window of bounded size.
//! - `entry`: what an L2 entry says of a cluster or subcluster; `scan`: runs of entries.
//! - `layer`: runs of one image; `chain`: of a stack; `read`: bytes.
//! - `sparse`: images with preallocated metadata, whose data may lie in holes of the file.
//! - `error`: damages and their texts.
//!
//! Memory: the window of L2 tables, at most 1 MiB for a layer, less in long chains; 64 KiB of its L1 table; and
//! the last cluster that was decompressed.
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;

mod chain;
mod entry;
mod error;
mod layer;
mod read;
mod scan;
mod sparse;
mod tables;

pub use chain::Chain;
pub use error::{Corruption, DataError, Notice};
pub use instar_qcow2::header::CompressionType;
pub use layer::{Layer, View};
pub use read::{Corrupt, Decompress};

/// Which of a layer's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileOf {
    /// The image file.
    Image,
    /// The external data file.
    DataFile,
}

/// A stretch of the virtual disk in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First byte, as the guest counts.
    pub offset: u64,
    /// Length in bytes, never 0.
    pub len: u64,
    /// The layer that decides, 0 for the top. Of [`RunKind::Unallocated`]: the last one that was asked, whose
    /// backing file is none, or ends before `offset`.
    pub depth: usize,
    /// The state.
    pub kind: RunKind,
    /// Of [`RunKind::Unallocated`]: where the run would lie in a cluster that the last layer has for its
    /// neighbours (extended L2 entries), in bytes.
    pub reserved: Option<u64>,
}

/// The state of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunKind {
    /// Bytes at a place.
    Data {
        /// In this file of the layer.
        file: FileOf,
        /// The place of the run's first byte there, in bytes.
        host_offset: u64,
    },
    /// A compressed cluster or a part of it, never more.
    Compressed {
        /// Where the compressed bytes start in the image file; any alignment.
        host_offset: u64,
        /// They are at most this many.
        max_bytes: u32,
        /// Where the run starts in the decompressed cluster, in bytes.
        in_cluster: u64,
        /// Bytes of the decompressed cluster.
        cluster_len: u32,
    },
    /// Reads as zeros whatever lies below.
    Zero {
        /// Space that the run has all the same: a preallocated cluster, in the file that data of the layer
        /// lies in, or the hole of a raw file.
        host_offset: Option<u64>,
    },
    /// In no layer that was asked: reads as zeros where all were.
    Unallocated,
}

impl RunKind {
    /// The same state `by` bytes further on.
    #[must_use]
    pub const fn advanced(self, by: u64) -> Self {
        match self {
            Self::Data { file, host_offset } => Self::Data {
                file,
                host_offset: host_offset.saturating_add(by),
            },
            Self::Compressed {
                host_offset,
                max_bytes,
                in_cluster,
                cluster_len,
            } => Self::Compressed {
                host_offset,
                max_bytes,
                in_cluster: in_cluster.saturating_add(by),
                cluster_len,
            },
            Self::Zero {
                host_offset: Some(at),
            } => Self::Zero {
                host_offset: Some(at.saturating_add(by)),
            },
            Self::Zero { host_offset: None } | Self::Unallocated => self,
        }
    }
}
