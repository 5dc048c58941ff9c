//! Where the parts of a disk lie, through its whole backing chain.
//!
//! [`map`] goes through a chain and gives extents, each as long as `qemu-img map` 10.0 makes it: what follows
//! without a gap, in the same state, in the same image and, where it has a place, at the next byte of its file.
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use core::ops::ControlFlow;
use instar_layers::{Chain, DataError, FileOf, Run, RunKind};
use instar_storage::Storage;

/// A part of the disk in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte, as the guest counts.
    pub start: u64,
    /// Length in bytes, never 0.
    pub len: u64,
    /// The image, 0 for the top.
    pub depth: usize,
    /// An image says what it is; otherwise it reads as zeros because none does.
    pub present: bool,
    /// Reads as zeros.
    pub zero: bool,
    /// Its bytes are in a file, compressed or not. With `zero`: that part of the file is a hole.
    pub data: bool,
    /// Compressed.
    pub compressed: bool,
    /// Its place, in bytes of `file`.
    pub offset: Option<u64>,
    /// Which file of the image the place is in.
    pub file: FileOf,
}

impl Extent {
    fn of<S: Storage>(chain: &Chain<S>, run: &Run) -> Self {
        let layer = chain.layers().get(run.depth);
        let mut extent = Self {
            start: run.offset,
            len: run.len,
            depth: run.depth,
            present: true,
            zero: false,
            data: true,
            compressed: false,
            offset: None,
            file: layer.map_or(FileOf::Image, |layer| layer.data_file_of()),
        };
        match run.kind {
            RunKind::Data { file, host_offset } => {
                extent.offset = Some(host_offset);
                extent.file = file;
            }
            RunKind::Compressed { .. } => extent.compressed = true,
            RunKind::Zero { host_offset } => {
                (extent.zero, extent.data, extent.offset) = (true, false, host_offset);
            }
            RunKind::Unallocated => {
                (extent.present, extent.zero, extent.data) = (false, true, false);
                extent.offset = run.reserved;
            }
        }
        // QEMU tells no place in an encrypted image.
        if layer.is_some_and(|layer| layer.cipher().is_some()) {
            extent.offset = None;
        }
        extent
    }

    /// Makes the extent longer by `next` if that goes on with it.
    fn join(&mut self, next: &Self) -> bool {
        let after = Self {
            start: self.start.saturating_add(self.len),
            len: next.len,
            offset: self.offset.map(|at| at.saturating_add(self.len)),
            ..*self
        };
        let joins = after == *next;
        if joins {
            self.len = self.len.saturating_add(next.len);
        }
        joins
    }
}

/// Why there is no further extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// What is said of the disk at `offset` cannot be read; the extent that ends there was not given.
    Data {
        /// In bytes, as the guest counts.
        offset: u64,
        /// What is wrong.
        source: DataError,
    },
    /// The receiver has seen enough.
    Stopped,
}

/// Gives `give` the extents of bytes `start..end` of the disk, as far as it goes, in order.
///
/// # Errors
/// What cannot be read, or `give` said that it is enough.
pub fn map<S: Storage>(
    chain: &Chain<S>,
    start: u64,
    end: u64,
    mut give: impl FnMut(&Extent) -> ControlFlow<()>,
) -> Result<(), MapError> {
    let end = end.min(chain.len_bytes());
    let mut at = start;
    let mut open: Option<Extent> = None;
    while at < end {
        let failed = |source| MapError::Data { offset: at, source };
        let next = extent_at(chain, at, end.saturating_sub(at)).map_err(failed)?;
        at = at.saturating_add(next.len);
        if open.as_mut().is_some_and(|last| last.join(&next)) {
            continue;
        }
        if let Some(last) = open.replace(next)
            && give(&last).is_break()
        {
            return Err(MapError::Stopped);
        }
    }
    match open {
        Some(last) if give(&last).is_break() => Err(MapError::Stopped),
        _ => Ok(()),
    }
}

/// What there is at `at`, at most `max` bytes of it.
fn extent_at<S: Storage>(chain: &Chain<S>, at: u64, max: u64) -> Result<Extent, DataError> {
    let run = chain.run_at(at, max)?;
    let mut extent = Extent::of(chain, &run);
    if let (RunKind::Data { file, host_offset }, Some(layer)) =
        (run.kind, chain.layers().get(run.depth))
        && let Some((hole, len)) = layer.hole_at(file, host_offset, run.len)?
    {
        (extent.zero, extent.len) = (hole, len);
    }
    Ok(extent)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use instar_layers::Layer;
    use instar_storage::{MemStorage, StorageMut};

    fn extents(chain: &Chain<MemStorage>, start: u64, end: u64) -> std::vec::Vec<Extent> {
        let mut all = std::vec::Vec::new();
        map(chain, start, end, |extent| {
            all.push(*extent);
            ControlFlow::Continue(())
        })
        .unwrap();
        all
    }

    #[test]
    fn a_raw_file_is_its_data_and_its_holes() {
        let store = MemStorage::hole(100_000);
        store.write_at(40_000, &[1; 10]).unwrap();
        let chain = Chain::new(std::vec![Layer::raw(store)]);
        let all = extents(&chain, 1000, u64::MAX);
        let short: std::vec::Vec<_> = all
            .iter()
            .map(|e| (e.start, e.len, e.data, e.zero, e.offset))
            .collect();
        // The store's holes are whole pages of 16 KiB; the disk ends with a whole sector.
        let expected = [
            (1000, 31_768, false, true, Some(1000)),
            (32_768, 16_384, true, false, Some(32_768)),
            (49_152, 51_200, false, true, Some(49_152)),
        ];
        assert_eq!(short, expected);
        assert!(extents(&chain, 200_000, u64::MAX).is_empty());
        assert!(extents(&chain, 0, 0).is_empty());
    }

    #[test]
    fn the_receiver_can_end_it() {
        let chain = Chain::new(std::vec![Layer::raw(MemStorage::hole(1 << 20))]);
        let ended = map(&chain, 0, u64::MAX, |_| ControlFlow::Break(()));
        assert_eq!(ended, Err(MapError::Stopped));
    }
}
