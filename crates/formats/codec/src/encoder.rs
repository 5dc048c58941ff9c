//! Compression of one cluster.

use instar_layers::CompressionType;

use crate::{MAX_CLUSTER_BYTES, deflate, zstd};

/// Compresses clusters of one image.
#[derive(Debug)]
pub struct Encoder {
    kind: Kind,
    cluster_bytes: usize,
}

#[derive(Debug)]
enum Kind {
    Zlib(deflate::Encoder),
    Zstd(zstd::Encoder),
}

impl Encoder {
    /// Whether [`Self::compress`] allocates; then it can run only where the heap is.
    pub const ALLOCATES: bool = zstd::ALLOCATES;

    /// An encoder for clusters of `cluster_bytes`, with all the memory it takes: 0.6 MiB for zlib; for zstd 0.6 MiB with
    /// clusters of 64 KiB and 2 MiB with the largest. `None` without memory, or if no cluster is that large.
    #[must_use]
    pub fn new(kind: CompressionType, cluster_bytes: usize) -> Option<Self> {
        if cluster_bytes > MAX_CLUSTER_BYTES {
            return None;
        }
        let kind = match kind {
            CompressionType::Zlib => Kind::Zlib(deflate::Encoder::new()?),
            CompressionType::Zstd => Kind::Zstd(zstd::Encoder::new(cluster_bytes)?),
        };
        Some(Self {
            kind,
            cluster_bytes,
        })
    }

    /// Compresses `input`, a cluster or less, to the front of `out`. Gives the length; `None` if it does not fit.
    #[must_use]
    pub fn compress(&mut self, input: &[u8], out: &mut [u8]) -> Option<usize> {
        if input.len() > self.cluster_bytes {
            return None;
        }
        match &mut self.kind {
            Kind::Zlib(deflate) => deflate.compress(input, out),
            Kind::Zstd(zstd) => zstd.compress(input, out),
        }
    }
}
