//! What is known of a disk's data and holes.

use alloc::vec::Vec;
use instar_shared::blk::{EXTENT_DATA, StatusExtent};
use instar_storage::Extent;

/// The runs of the last block status answer, in order and without gaps.
#[derive(Debug, Default)]
pub(crate) struct ExtentCache {
    runs: Vec<Extent>,
}

impl ExtentCache {
    /// The run that holds `offset`.
    pub(crate) fn find(&self, offset: u64) -> Option<Extent> {
        let past = self.runs.partition_point(|run| run.offset <= offset);
        let run = self.runs.get(past.checked_sub(1)?)?;
        (offset.checked_sub(run.offset)? < run.len).then_some(*run)
    }

    /// Forgets everything: the disk was changed.
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
    }

    /// Takes an answer whose first run starts at `offset`, of a disk of `len_bytes`.
    ///
    /// Runs of equal kind that follow each other become one. An answer that ends early is made whole
    /// by the caller's next question; one that says nothing becomes data to the disk's end.
    pub(crate) fn replace(&mut self, offset: u64, len_bytes: u64, answer: &[StatusExtent]) {
        self.runs.clear();
        let mut at = offset;
        for extent in answer {
            let len = extent.len.get().min(len_bytes.saturating_sub(at));
            if len == 0 {
                break;
            }
            let data = extent.flags.get() & EXTENT_DATA != 0;
            self.push(Extent {
                offset: at,
                len,
                data,
            });
            at = at.saturating_add(len);
        }
        if self.runs.is_empty() {
            let len = len_bytes.saturating_sub(offset);
            self.push(Extent {
                offset,
                len,
                data: true,
            });
        }
    }

    fn push(&mut self, run: Extent) {
        match self.runs.last_mut() {
            Some(last) if last.data == run.data => last.len = last.len.saturating_add(run.len),
            _ => self.runs.push(run),
        }
    }
}
