//! Whether two disks have the same content.
//!
//! [`compare`] goes through both chains at once, in *steps*: parts of at most 2 MiB that are in one state in either
//! disk, as `qemu-img compare` 10.0 makes them, so that it stops where that stops and names the same offset. Many
//! steps are read at once, and the next ones while these are looked at; zeros on both sides are not read at all.
//!
//! Modules: `state` says what a disk has at an offset; `steps` plans a batch; `pipe` reads some ahead; `bytes` looks
//! at the bytes.
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;

mod bytes;
mod pipe;
mod state;
mod steps;

use instar_layers::{Chain, DataError, Decompress};
use instar_storage::Storage;
use instar_storage::overlap::Overlap;
use pipe::Pipe;
use steps::{Ended, Steps};

/// What the comparison came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The guest reads the same from both, as far as the shorter one goes, and zeros beyond.
    Identical,
    /// The first sector that differs starts at this byte.
    Content(u64),
    /// Strict: from this byte on, one has what the other has not, or has it otherwise.
    Allocation(u64),
    /// Strict: they differ in size. Nothing else was looked at.
    Size,
}

/// What a comparison found, and what of it the user is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The result.
    pub verdict: Verdict,
    /// The common part was equal and one disk is longer.
    pub longer: bool,
}

/// Why there is no verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareError {
    /// What a disk has cannot be said.
    State(Failed),
    /// A disk cannot be read.
    Data(Failed),
    /// The monitor asked for the end.
    Cancelled,
    /// No memory for buffers.
    OutOfMemory,
}

/// Where something failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    /// 0 or 1.
    pub disk: usize,
    /// First byte of the step.
    pub offset: u64,
    /// What is wrong.
    pub source: DataError,
    /// The common part was equal and one disk is longer.
    pub longer: bool,
}

/// The user wants the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancelled;

/// Who is told how far it is.
pub trait Monitor {
    /// Bytes done, of the longer disk's.
    ///
    /// # Errors
    /// [`Cancelled`] ends the comparison.
    fn progress(&mut self, done: u64, total: u64) -> Result<(), Cancelled>;
}

/// The two disks, and how their files' requests overlap.
pub struct Disks<'a, S, O> {
    /// Both chains.
    pub chains: [&'a Chain<S>; 2],
    /// Takes requests of all their files.
    pub overlap: &'a O,
    /// The number of a file there.
    pub number: fn(&S) -> u16,
}

/// Compares two disks. With `strict`, they must be of one size and have data, zeros and nothing at the same places.
///
/// # Errors
/// Why there is no verdict.
pub fn compare<S: Storage, O: Overlap>(
    disks: &Disks<'_, S, O>,
    strict: bool,
    codec: &mut dyn Decompress,
    monitor: &mut impl Monitor,
) -> Result<Found, CompareError> {
    let [one, two] = disks.chains;
    let total = one.len_bytes().max(two.len_bytes());
    if strict && one.len_bytes() != two.len_bytes() {
        return Ok(Found {
            verdict: Verdict::Size,
            longer: false,
        });
    }
    let mut steps = Steps::new(disks.chains, strict);
    let mut pipe = Pipe::new(disks, codec, steps.common_bytes());
    loop {
        let batch = pipe.next(&mut steps)?;
        let judged = pipe.judge(&batch)?;
        let (ended, next) = (batch.ended, batch.next_offset);
        pipe.give_back(batch);
        if let Some(found) = judged {
            return Ok(found);
        }
        match ended {
            Ended::Full => monitor
                .progress(next, total)
                .map_err(|Cancelled| CompareError::Cancelled)?,
            Ended::Done => {
                return Ok(Found {
                    verdict: Verdict::Identical,
                    longer: one.len_bytes() != two.len_bytes(),
                });
            }
            Ended::Differ(offset) => {
                return Ok(Found {
                    verdict: Verdict::Allocation(offset),
                    longer: false,
                });
            }
            Ended::Failed(failed) => return Err(CompareError::State(failed)),
        }
    }
}

#[cfg(test)]
mod tests;
