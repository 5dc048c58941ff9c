//! The backing chain, or a whole chain that is only read.

use crate::{ExtentKind, LiveError};
use alloc::rc::Rc;
use core::cell::RefCell;
use core::fmt;
use instar_layers::{Chain, Decompress, RunKind};
use instar_plan_write::{Below, WriteError};
use instar_storage::Storage;

/// Images that are only read, and what their compressed clusters need.
pub struct Backing<S, D> {
    chain: (Chain<S>, D),
    number: fn(&S) -> u16,
}

impl<S, D> fmt::Debug for Backing<S, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backing").finish_non_exhaustive()
    }
}

impl<S: Storage, D: Decompress> Backing<S, D> {
    /// Over `chain`; `number` is a file's number in answers.
    pub const fn new(chain: Chain<S>, codec: D, number: fn(&S) -> u16) -> Self {
        Self {
            chain: (chain, codec),
            number,
        }
    }

    /// Virtual size in bytes.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.chain.0.len_bytes()
    }

    /// The run from `guest` on, at most `most` bytes, which are not 0: its length, and where it is. Zeros past the end.
    pub(crate) fn run_at(&self, guest: u64, most: u64) -> Result<(u64, ExtentKind), LiveError> {
        let chain = &self.chain.0;
        let left = chain.len_bytes().saturating_sub(guest);
        if left == 0 {
            return Ok((most, ExtentKind::Zero));
        }
        let run = chain.run_at(guest, most.min(left))?;
        let kind = match run.kind {
            RunKind::Data { file, host_offset } => match chain.layers().get(run.depth) {
                Some(layer) if layer.cipher().is_none() => ExtentKind::Data {
                    file: (self.number)(layer.store(file)),
                    offset: host_offset,
                    in_place: false,
                },
                _ => ExtentKind::Fetch,
            },
            RunKind::Compressed { .. } => ExtentKind::Fetch,
            RunKind::Zero { .. } | RunKind::Unallocated => ExtentKind::Zero,
        };
        Ok((run.len, kind))
    }

    /// Fills `buf` with what is at `guest`.
    pub(crate) fn read(&mut self, guest: u64, buf: &mut [u8]) -> Result<(), LiveError> {
        Ok(self.chain.read_below(guest, buf)?)
    }
}

/// A backing chain that is asked by the image above it, too.
pub struct SharedBacking<S, D>(pub Rc<RefCell<Backing<S, D>>>);

impl<S: Storage, D: Decompress> Below for SharedBacking<S, D> {
    fn read_below(&mut self, guest: u64, buf: &mut [u8]) -> Result<(), WriteError> {
        self.0.borrow_mut().chain.read_below(guest, buf)
    }

    fn is_zero(&self, guest: u64, len: u64) -> bool {
        let run = self.0.borrow().run_at(guest, len);
        matches!(run, Ok((run, ExtentKind::Zero)) if run >= len)
    }
}
