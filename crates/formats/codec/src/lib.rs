//! Compression of qcow2 clusters, both ways. qcow2 "Compressed Clusters Descriptor" and "compression type".
//!
//! A compressed cluster is one raw deflate stream whose matches reach back at most 4 KiB, or one zstd frame.
//! [`Decoder`] takes them apart, [`Encoder`] makes them; each works in memory that it got beforehand, bounded
//! by the cluster size and not by what a stream claims.
//!
//! On x86-64 both are C, in the versions of the crates libdeflate-sys and zstd-sys: `build.rs`, `c/`. Elsewhere they
//! are miniz_oxide and ruzstd, which allocates while it works ([`Encoder::ALLOCATES`]).
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;
#[cfg(test)]
extern crate std;

#[cfg(target_arch = "x86_64")]
mod context;
mod decoder;
#[cfg(target_arch = "x86_64")]
mod deflate;
#[cfg(not(target_arch = "x86_64"))]
#[path = "deflate_portable.rs"]
mod deflate;
mod encoder;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod zstd;
#[cfg(not(target_arch = "x86_64"))]
#[path = "zstd_portable.rs"]
mod zstd;

pub use decoder::Decoder;
pub use encoder::Encoder;

/// Largest cluster of qcow2, in bytes.
pub const MAX_CLUSTER_BYTES: usize = 2 << 20;
