//! How long the file of an image becomes.

use crate::spec::{MIN_EXTENDED_CLUSTER, cluster_bits};
use crate::{Encryption, Options, Preallocation};
use instar_qcow2::ClusterBits;
use instar_qcow2::header::MAX_L1_BYTES;

/// The sector, in bytes: what a raw image's size is rounded up to.
const SECTOR: u64 = 512;
/// Bytes of a bitmap directory entry before the name.
const DIRECTORY_ENTRY_BYTES: u64 = 24;

/// Guest data that a new image has to hold, counted run by run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    cluster_bits: ClusterBits,
    clusters: u64,
    /// The first cluster that has not been counted.
    next: u64,
}

impl Content {
    /// No data, for an image with clusters of that size.
    #[must_use]
    pub const fn new(cluster_bits: ClusterBits) -> Self {
        Self {
            cluster_bits,
            clusters: 0,
            next: 0,
        }
    }

    /// Counts the clusters of a run of `len` bytes; runs come in ascending order and do not overlap.
    pub fn add(&mut self, offset: u64, len: u64) {
        let shift = self.cluster_bits.get();
        let first = (offset >> shift).max(self.next);
        let end = self.cluster_bits.clusters_for(offset.saturating_add(len));
        self.clusters = self.clusters.saturating_add(end.saturating_sub(first));
        self.next = self.next.max(end);
    }

    /// Bytes of all clusters that were counted.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.clusters.saturating_mul(self.cluster_bits.size_bytes())
    }
}

/// Lengths of a file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// With the data that there is.
    pub required: u64,
    /// With data everywhere.
    pub fully_allocated: u64,
}

/// Why a size cannot be measured. `Display` is `qemu-img`'s text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeasureError {
    /// No power of two from 512 bytes to 2 MiB.
    #[error("Cluster size must be a power of two between 512 and 2048k")]
    ClusterSize,
    /// A subcluster has at least 512 bytes.
    #[error("Extended L2 entries are only supported with cluster sizes of at least 16384 bytes")]
    ExtendedL2ClusterSize,
    /// Not 1, 2, 4, 8, 16, 32 or 64.
    #[error("Refcount width must be a power of two and may not exceed 64 bits")]
    RefcountBits,
    /// Version 2 has refcounts of 16 bits.
    #[error(
        "Different refcount widths than 16 bits require compatibility level 1.1 or above \
         (use compat=1.1 or greater)"
    )]
    RefcountBitsInVersion2,
    /// The L1 table would not fit the format.
    #[error("The image size is too large (try using a larger cluster size)")]
    TooLarge,
}

/// The length of a qcow2 image with `content`, as QEMU counts: all metadata that a full image has. Names do not
/// count.
///
/// # Errors
/// What is wrong with the options; QEMU does not look at all of them.
pub fn measure(options: &Options<'_>, content: Option<&Content>) -> Result<Measured, MeasureError> {
    let bits = cluster_bits(options.cluster_bytes).map_err(|_| MeasureError::ClusterSize)?;
    if options.extended_l2 && options.cluster_bytes < MIN_EXTENDED_CLUSTER {
        return Err(MeasureError::ExtendedL2ClusterSize);
    }
    let width = options.refcount_bits;
    if !width.is_power_of_two() || width > 64 {
        return Err(MeasureError::RefcountBits);
    }
    if options.version < 3 && width != 16 {
        return Err(MeasureError::RefcountBitsInVersion2);
    }
    let data = bits.clusters_for(options.size);
    let entry_bits = if options.extended_l2 { 4 } else { 3 };
    let l2_tables = data.div_ceil(bits.size_bytes() >> entry_bits);
    let l1_bytes = l2_tables.saturating_mul(8);
    if l1_bytes > MAX_L1_BYTES {
        return Err(MeasureError::TooLarge);
    }
    let tables = bits.clusters_for(l1_bytes).saturating_add(l2_tables);
    let others = data.saturating_add(tables).saturating_add(1);
    let per_block = bits
        .size_bytes()
        .saturating_mul(8)
        .checked_div(width)
        .unwrap_or(1);
    let counts = refcount_clusters(others, per_block, bits);
    let all = others.saturating_add(counts);
    // QEMU counts no refcounts for these clusters.
    let header = match options.encryption {
        Encryption::Luks { header_bytes } => bits.clusters_for(header_bytes),
        Encryption::None | Encryption::Aes => 0,
    };
    let all = all.saturating_add(header);
    let fully_allocated = all.saturating_mul(bits.size_bytes());
    let reserved = matches!(
        options.preallocation,
        Preallocation::Falloc | Preallocation::Full
    );
    let data_bytes = data.saturating_mul(bits.size_bytes());
    let held = content.map_or(0, Content::bytes).min(data_bytes);
    Ok(Measured {
        required: if reserved {
            fully_allocated
        } else {
            fully_allocated.saturating_sub(data_bytes.saturating_sub(held))
        },
        fully_allocated,
    })
}

/// Bytes that bitmaps take in an image of `size` bytes: name lengths and granularities as logarithms are given.
#[must_use]
pub fn measure_bitmaps(
    size: u64,
    cluster_bits: ClusterBits,
    bitmaps: impl Iterator<Item = (u64, u8)>,
) -> u64 {
    let mut directory = 0_u64;
    let mut clusters = 0_u64;
    for (name_bytes, granularity_bits) in bitmaps {
        let granularity = 1_u64.checked_shl(granularity_bits.into()).unwrap_or(1);
        let bits = size.div_ceil(granularity);
        let data = cluster_bits.clusters_for(bits.div_ceil(8));
        let table = cluster_bits.clusters_for(data.saturating_mul(8));
        clusters = clusters.saturating_add(data).saturating_add(table);
        let entry = DIRECTORY_ENTRY_BYTES.saturating_add(name_bytes);
        directory = directory.saturating_add(entry.next_multiple_of(8));
    }
    clusters
        .saturating_add(cluster_bits.clusters_for(directory))
        .saturating_mul(cluster_bits.size_bytes())
}

/// Clusters of refcount blocks and refcount table for `others` other clusters and themselves.
fn refcount_clusters(others: u64, per_block: u64, bits: ClusterBits) -> u64 {
    let per_table_cluster = bits.size_bytes() >> 3;
    let mut own = 0_u64;
    loop {
        let all = others.saturating_add(own);
        let blocks = all.div_ceil(per_block.max(1));
        let needed = blocks.saturating_add(blocks.div_ceil(per_table_cluster.max(1)));
        if needed <= own {
            return own;
        }
        own = needed;
    }
}

/// The length of a raw image: its size.
#[must_use]
pub const fn measure_raw(size: u64) -> Measured {
    let size = match size.checked_next_multiple_of(SECTOR) {
        Some(whole) => whole,
        None => size,
    };
    Measured {
        required: size,
        fully_allocated: size,
    }
}
