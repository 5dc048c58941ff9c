//! Answers that were true when they were given: what a lookup says may be changed by a write that ends before it is heard.

use super::map::part;
use super::source::Extent;
use std::collections::VecDeque;

/// What has changed since the lookups were asked that are not answered yet.
#[derive(Debug, Default)]
pub struct Stale {
    /// Changes so far.
    count: u64,
    /// By lookup without an answer, oldest first: changes before it was asked.
    open: VecDeque<u64>,
    /// Number and range of each change since the oldest of them was asked.
    changes: VecDeque<(u64, u64, u64)>,
    /// Changes before the lookup that was answered last.
    answered: u64,
}

impl Stale {
    /// A lookup is asked.
    pub fn asked(&mut self) {
        self.open.push_back(self.count);
    }

    /// The oldest open lookup is answered.
    pub fn answered(&mut self) {
        self.answered = self.open.pop_front().unwrap_or(self.count);
        while self
            .changes
            .front()
            .is_some_and(|(number, ..)| *number <= self.answered)
        {
            self.changes.pop_front();
        }
    }

    /// `start..end` is elsewhere from now on.
    pub fn changed(&mut self, start: u64, end: u64) {
        self.count = self.count.saturating_add(1);
        if !self.open.is_empty() {
            self.changes.push_back((self.count, start, end));
        }
    }

    /// What of an extent of the answer is so still; `own` is the asker's range, where nothing changes meanwhile.
    pub fn fresh(&self, extent: Extent, (start, end): (u64, u64)) -> Option<Extent> {
        let overlaps = |(_, from, to): &(u64, u64, u64)| *from < extent.end() && extent.start < *to;
        if self.changes.iter().any(overlaps) {
            part(extent, start, end)
        } else {
            Some(extent)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::source::ExtentKind;

    #[test]
    fn only_what_has_not_changed_since_is_taken() {
        let extent = |start, len| Extent {
            start,
            len,
            kind: ExtentKind::Zero,
        };
        let mut stale = Stale::default();
        stale.changed(0, 10);
        stale.asked();
        stale.changed(20, 30);
        stale.asked();
        stale.answered();
        assert_eq!(stale.fresh(extent(0, 20), (5, 6)), Some(extent(0, 20)));
        assert_eq!(stale.fresh(extent(0, 100), (5, 6)), Some(extent(5, 1)));
        assert_eq!(stale.fresh(extent(10, 20), (5, 6)), None);
        stale.answered();
        assert_eq!(stale.fresh(extent(0, 100), (5, 6)), Some(extent(0, 100)));
        assert!(stale.changes.is_empty());
        stale.changed(0, 10);
        assert!(stale.changes.is_empty());
    }
}
