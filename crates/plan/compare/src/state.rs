//! What a disk has at an offset, as far as a comparison cares.

use instar_layers::{Chain, DataError, RunKind};
use instar_storage::Storage;

/// QEMU's longest answer about a disk, in bytes.
const MOST_BYTES: u64 = 0x7fff_fe00;

/// What a disk has from an offset on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub len: u64,
    pub state: State,
}

/// The state of a part. A strict comparison wants all of it equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// An image has it: as data, or as zeros.
    allocated: bool,
    pub zero: bool,
    data: bool,
    compressed: bool,
    /// It has a place in a file.
    placed: bool,
    /// The part goes to the end of the disk.
    last: bool,
}

impl State {
    /// Whether its bytes have to be looked at.
    pub const fn has_data(&self) -> bool {
        self.allocated && !self.zero
    }
}

/// What `chain` has at `offset`, which is below its size.
pub(crate) fn part_at<S: Storage>(chain: &Chain<S>, offset: u64) -> Result<Part, DataError> {
    let left = chain.len_bytes().saturating_sub(offset);
    let run = chain.run_at(offset, left.min(MOST_BYTES))?;
    let asked = chain.layers().iter().take(run.depth.saturating_add(1));
    let piece_end = asked.map(|layer| layer.piece_end(offset)).min();
    let mut len = run
        .len
        .min(piece_end.unwrap_or(u64::MAX).saturating_sub(offset));
    let mut state = State {
        allocated: true,
        zero: false,
        data: false,
        compressed: false,
        placed: false,
        last: false,
    };
    let layer = chain.layers().get(run.depth);
    match run.kind {
        RunKind::Data { file, host_offset } => {
            (state.data, state.placed) = (true, true);
            if let Some(layer) = layer
                && let Some((hole, here)) = layer.hole_at(file, host_offset, len)?
            {
                (state.zero, len) = (hole, here);
            }
        }
        RunKind::Compressed { .. } => (state.data, state.compressed) = (true, true),
        RunKind::Zero { host_offset } => (state.zero, state.placed) = (true, host_offset.is_some()),
        RunKind::Unallocated => {
            // A backing file that ends earlier counts as zeros that are there.
            let below = run.depth.saturating_add(1) < chain.layers().len();
            (state.zero, state.allocated) = (true, below);
            state.placed = !below && run.reserved.is_some();
        }
    }
    // QEMU tells no place in an encrypted image.
    state.placed &= layer.is_none_or(|layer| layer.cipher().is_none());
    state.last = len == left;
    Ok(Part { len, state })
}
