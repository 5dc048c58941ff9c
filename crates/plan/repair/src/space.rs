//! Room for new structures: free clusters of the file, or behind its end.

use instar_plan_check::parts::Span;

/// Classes of lengths, by their logarithm.
const CLASSES: usize = 64;

/// Free clusters, seen in ascending order.
pub(crate) struct FreeRuns {
    /// For each class of lengths, the first run: its start and length.
    runs: [Option<(u64, u64)>; CLASSES],
    /// Where the run that is open starts.
    open: u64,
}

impl FreeRuns {
    pub(crate) const fn new() -> Self {
        Self {
            runs: [None; CLASSES],
            open: 0,
        }
    }

    /// Notes a cluster in use; they come in ascending order, perhaps twice.
    pub(crate) fn in_use(&mut self, cluster: u64) {
        let Some(len) = cluster.checked_sub(self.open) else {
            return;
        };
        let class = usize::try_from(len.checked_ilog2().unwrap_or(0)).unwrap_or(0);
        let place = self.runs.get_mut(class);
        if let Some(run @ None) = place.filter(|_| len > 0) {
            *run = Some((self.open, len));
        }
        self.open = cluster.saturating_add(1);
    }

    /// Notes that everything up to this cluster is in use.
    pub(crate) fn in_use_to(&mut self, cluster: u64) {
        self.open = self.open.max(cluster.saturating_add(1));
    }

    /// Where a run of `len(start)` clusters fits, the lowest place if possible.
    pub(crate) fn find(&self, len: impl Fn(u64) -> u64) -> Option<u64> {
        let fitting = self.runs.iter().flatten().filter(|run| run.1 >= len(run.0));
        fitting.map(|run| run.0).min()
    }

    /// The first cluster behind all that are in use.
    pub(crate) const fn tail(&self) -> u64 {
        self.open
    }
}

/// The first place from `start` on where `len(place)` clusters overlap with none of
/// `taken`, which is sorted by the first clusters.
pub(crate) fn avoid(mut start: u64, taken: &[Span], len: impl Fn(u64) -> u64) -> u64 {
    for (first, last) in taken {
        if *last >= start && *first < start.saturating_add(len(start)) {
            start = last.saturating_add(1);
        }
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_run_that_is_long_enough_is_found() {
        let mut runs = FreeRuns::new();
        for cluster in [0, 1, 3, 3, 8, 20] {
            runs.in_use(cluster);
        }
        assert_eq!(runs.find(|_| 1), Some(2));
        assert_eq!(runs.find(|_| 2), Some(4));
        assert_eq!(runs.find(|_| 5), Some(9));
        assert_eq!(runs.find(|_| 12), None);
        assert_eq!(runs.tail(), 21);
    }

    #[test]
    fn places_that_are_referred_to_are_avoided() {
        let taken = [(5, 5), (10, 12), (11, 11)];
        assert_eq!(avoid(0, &taken, |_| 5), 0);
        assert_eq!(avoid(0, &taken, |_| 6), 13);
        assert_eq!(avoid(6, &taken, |_| 4), 6);
        assert_eq!(avoid(20, &taken, |_| 100), 20);
    }
}
