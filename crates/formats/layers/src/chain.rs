//! A stack of images.

use crate::error::DataError;
use crate::layer::{Layer, TABLE_BUDGET};
use crate::read::Decompressed;
use crate::{Run, RunKind};
use alloc::vec::Vec;
use core::cell::RefCell;
use instar_storage::Storage;

/// Bytes of L2 tables held for a whole chain, unless it is so long that each layer's least is more.
const CHAIN_BUDGET: u64 = 8 * TABLE_BUDGET;
/// Least bytes of L2 tables held for a layer.
const LEAST_BUDGET: u64 = 128 << 10;

/// A stack of images: what a guest of the top one would read.
#[derive(Debug)]
pub struct Chain<S> {
    layers: Vec<Layer<S>>,
    pub(crate) decompressed: RefCell<Decompressed>,
}

impl<S: Storage> Chain<S> {
    /// A chain; `layers[0]` is the top, each next one the backing file of the one before.
    pub fn new(layers: Vec<Layer<S>>) -> Self {
        let each = CHAIN_BUDGET.checked_div(layers.len() as u64).unwrap_or(0);
        for layer in &layers {
            layer.set_budget(each.clamp(LEAST_BUDGET, TABLE_BUDGET));
        }
        Self {
            layers,
            decompressed: RefCell::default(),
        }
    }

    /// The layers, the top first.
    #[must_use]
    pub fn layers(&self) -> &[Layer<S>] {
        &self.layers
    }

    /// Virtual size of the top layer in bytes; 0 if there is none.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.layers.first().map_or(0, Layer::len_bytes)
    }

    /// The run that holds `offset`, at most `max` bytes long and not past the end of the top layer. What follows
    /// it may be in the same state. Past the end: [`RunKind::Unallocated`].
    ///
    /// # Errors
    /// What is wrong at `offset`; damage further on is told to whoever asks there.
    pub fn run_at(&self, offset: u64, max: u64) -> Result<Run, DataError> {
        self.run_at_above(offset, max, self.layers.len())
    }

    /// As [`Chain::run_at`], of the first `depth` layers alone.
    ///
    /// # Errors
    /// As there.
    pub fn run_at_above(&self, offset: u64, max: u64, depth: usize) -> Result<Run, DataError> {
        let max = max.max(1);
        let mut run = Run {
            offset,
            len: max,
            depth: 0,
            kind: RunKind::Unallocated,
            reserved: None,
        };
        for (index, layer) in self.layers.iter().take(depth).enumerate() {
            let left = layer.len_bytes().saturating_sub(offset);
            if left == 0 {
                // A backing file that ends earlier reads as zeros from there on.
                break;
            }
            let found = layer.run_at(offset)?;
            if let Some(error) = found.then.filter(|_| found.len < run.len.min(left)) {
                return Err(error);
            }
            run = Run {
                offset,
                len: run.len.min(found.len).min(left).max(1),
                depth: index,
                kind: found.state.kind,
                reserved: found.state.reserved,
            };
            if run.kind != RunKind::Unallocated {
                break;
            }
        }
        Ok(run)
    }
}
