//! Which L2 entries the clusters of the grown part get, and where their data goes.
//!
//! qcow2 "Standard Cluster Descriptor", "Extended L2 Entries".

use instar_qcow2::Header;
use instar_qcow2::bits;
use instar_qcow2::entries::{ALL_ZEROS, COPIED};

/// All subclusters of a cluster are allocated.
pub const ALL_ALLOCATED: u64 = bits(0, 31);
/// All subclusters of a cluster read as zeros.
pub const ALL_SUBCLUSTERS_ZERO: u64 = bits(32, 63);

/// Runs of host clusters, in the order in which guest clusters take them.
#[derive(Debug, Default)]
pub struct Runs {
    runs: alloc::vec::Vec<(u64, u64)>,
    next: usize,
    used: u64,
}

impl Runs {
    /// Adds `count` clusters from `first` on.
    pub fn push(&mut self, first: u64, count: u64) {
        if let Some((start, len)) = self.runs.last_mut()
            && start.saturating_add(*len) == first
        {
            *len = len.saturating_add(count);
            return;
        }
        self.runs.push((first, count));
    }

    /// All runs: first cluster and number of clusters.
    pub fn all(&self) -> &[(u64, u64)] {
        &self.runs
    }

    /// The next cluster; `None` when all are taken.
    pub fn take(&mut self) -> Option<u64> {
        let (first, count) = *self.runs.get(self.next)?;
        let cluster = first.saturating_add(self.used);
        self.used = self.used.saturating_add(1);
        if self.used >= count {
            self.next = self.next.saturating_add(1);
            self.used = 0;
        }
        Some(cluster)
    }
}

/// The two halves of an L2 entry; the second counts where entries are extended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry(pub u64, pub u64);

/// The entry of a cluster that hides the backing file and holds nothing.
pub const fn zero(extended: bool) -> Entry {
    if extended {
        Entry(0, ALL_SUBCLUSTERS_ZERO)
    } else {
        Entry(ALL_ZEROS, 0)
    }
}

/// The entry of a cluster at `offset` that is not read before it is written: `hide` says that the backing
/// file would show otherwise.
pub const fn metadata(extended: bool, offset: u64, hide: bool) -> Entry {
    let zero = match (hide, extended) {
        (true, true) => Entry(0, ALL_SUBCLUSTERS_ZERO),
        (true, false) => Entry(ALL_ZEROS, 0),
        (false, _) => Entry(0, 0),
    };
    Entry(offset | COPIED | zero.0, zero.1)
}

/// The entry of a cluster at `offset` whose bytes there are its data. Subclusters are marked only where the
/// backing file would show through those that are not.
pub const fn data(extended: bool, offset: u64, hide: bool) -> Entry {
    let marks = if extended && hide { ALL_ALLOCATED } else { 0 };
    Entry(offset | COPIED, marks)
}

/// The range of guest clusters that a growth touches: from the one in which the old disk ends to its new end.
pub const fn clusters(header: &Header, old_size: u64, new_size: u64) -> (u64, u64) {
    let bits = header.cluster_bits;
    (old_size >> bits.get(), bits.clusters_for(new_size))
}
