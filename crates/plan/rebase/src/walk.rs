//! Which parts of the disk have to be looked at.

use crate::window::{Part, PartKind, WINDOW_BYTES, size};
use crate::{Image, RebaseError};
use alloc::vec::Vec;
use instar_layers::{Chain, DataError, Layer, Run, RunKind, View};
use instar_storage::Storage;

/// What lies below the image, now and then.
pub struct Chains<'a, S> {
    /// The old backing file and what lies below it, if there is one.
    pub old: Option<&'a Chain<S>>,
    /// The new one.
    pub new: Option<&'a Chain<S>>,
    /// Whether a layer of the old chain is the same image as one of the new chain.
    pub shared: &'a dyn Fn(usize, usize) -> bool,
}

impl<S> Clone for Chains<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Chains<'_, S> {}

impl<S> core::fmt::Debug for Chains<'_, S> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Chains")
    }
}

impl<S: Storage> Chains<'_, S> {
    /// First byte of the disk that the old backing file does not have.
    pub fn old_end(&self) -> u64 {
        self.old.map_or(0, Chain::len_bytes)
    }
}

/// What a chain has: `None` for zeros.
type Below = Option<Run>;

/// Goes through the disk once.
pub struct Walk<'a, S> {
    image: Image<'a, S>,
    top: Chain<&'a S>,
    chains: Chains<'a, S>,
    /// Layer of the old chain that the new chain begins with.
    common: Option<usize>,
    at: u64,
    /// Bytes that both chains were asked for.
    pub compared: u64,
    counted_to: u64,
}

impl<'a, S: Storage> Walk<'a, S> {
    /// At the first byte.
    pub fn new(image: Image<'a, S>, chains: Chains<'a, S>) -> Self {
        let layers = chains.old.map_or(0, |old| old.layers().len());
        let common = (0..layers).find(|depth| chains.new.is_some() && (chains.shared)(*depth, 0));
        Self {
            top: open(image),
            image,
            chains,
            common,
            at: 0,
            compared: 0,
            counted_to: 0,
        }
    }

    /// Virtual size in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.top.len_bytes()
    }

    /// Reads the image's tables anew: they were changed where the walk has been.
    pub fn refresh(&mut self) {
        self.top = open(self.image);
    }

    /// The first byte of the next window with something to look at, whose parts are put into `parts`; `None` at the
    /// end.
    ///
    /// # Errors
    /// What is wrong with a table.
    pub fn next(&mut self, parts: &mut Vec<Part>) -> Result<Option<u64>, RebaseError> {
        let end = self.len_bytes();
        'windows: while self.at < end {
            let start = self.at;
            let stop = start.saturating_add(WINDOW_BYTES).min(end);
            parts.clear();
            let (mut pos, mut looked) = (start, false);
            while pos < stop {
                let (kind, len) = self.part_at(pos, end.saturating_sub(pos))?;
                let next = pos.saturating_add(len.max(1));
                looked |= kind.is_looked_at();
                if !looked && next >= stop {
                    // Nothing up to here: on to the window that the part ends in.
                    self.at = if next >= end {
                        end
                    } else {
                        next & !WINDOW_BYTES.saturating_sub(1)
                    };
                    continue 'windows;
                }
                let from = size(pos.saturating_sub(start));
                let to = size(next.min(stop).saturating_sub(start));
                parts.push(Part {
                    range: from..to,
                    kind,
                });
                pos = next;
            }
            self.at = stop;
            return Ok(Some(start));
        }
        Ok(None)
    }

    /// The part at `pos`, at most `max` bytes long.
    fn part_at(&mut self, pos: u64, max: u64) -> Result<(PartKind, u64), RebaseError> {
        let run = self.top.run_at(pos, max).map_err(RebaseError::Metadata)?;
        if run.kind != RunKind::Unallocated {
            return Ok((PartKind::Kept, run.len));
        }
        let (old, max) = below(self.chains.old, pos, run.len).map_err(RebaseError::Old)?;
        if self
            .common
            .is_some_and(|depth| is_from(old.as_ref(), depth))
        {
            return Ok((PartKind::Shared, max));
        }
        let (new, len) = below(self.chains.new, pos, max).map_err(RebaseError::New)?;
        let end = pos.saturating_add(len);
        let first = self.counted_to.max(pos);
        self.compared = self.compared.saturating_add(end.saturating_sub(first));
        self.counted_to = self.counted_to.max(end);
        let old = old.filter(has_data);
        Ok((self.judge(old, new.filter(has_data)), len))
    }

    fn judge(&self, old: Below, new: Below) -> PartKind {
        match (old, new) {
            (None, None) => PartKind::Zeros,
            (Some(one), Some(two))
                if one.kind == two.kind && (self.chains.shared)(one.depth, two.depth) =>
            {
                PartKind::Shared
            }
            (old, new) => PartKind::Look {
                old: old.is_some(),
                new: new.is_some(),
            },
        }
    }
}

fn open<S: Storage>(image: Image<'_, S>) -> Chain<&S> {
    let layer = Layer::qcow2_with(
        image.storage,
        image.data,
        image.header.clone(),
        View::Active,
        image.cipher,
    );
    Chain::new(Vec::from([layer]))
}

/// What `chain` has at `pos`, and for how many bytes that is the answer. `None`: there is no such chain, or it ends
/// before.
fn below<S: Storage>(
    chain: Option<&Chain<S>>,
    pos: u64,
    max: u64,
) -> Result<(Below, u64), DataError> {
    match chain {
        Some(chain) if pos < chain.len_bytes() => {
            let run = chain.run_at(pos, max)?;
            Ok((Some(run), run.len.clamp(1, max)))
        }
        _ => Ok((None, max)),
    }
}

const fn has_data(run: &Run) -> bool {
    matches!(run.kind, RunKind::Data { .. } | RunKind::Compressed { .. })
}

/// Whether nothing above layer `depth` has a say.
fn is_from(run: Option<&Run>, depth: usize) -> bool {
    run.is_some_and(|run| run.depth >= depth)
}
