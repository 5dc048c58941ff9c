//! Power cuts: what a store can hold after one, for every point at which it may come.
//!
//! [`CrashStorage`] records the changes that a planner makes to a starting image, with the flushes
//! between them. [`states`] then gives the images that a power cut can leave:
//!
//! - Everything before a flush that returned is there. Of the *interval* that follows, up to the next
//!   flush, any part may be there, in units of 512 bytes that never tear.
//! - Every prefix of an interval's steps.
//! - Every subset of them if there are at most [`MAX_EXHAUSTIVE`], else every one dropped alone, every
//!   one applied alone, and seeded random subsets.
//! - Every write of more than one sector torn: after each sector, from either end, if it has at most
//!   [`MAX_SMALL_SECTORS`], else at seeded places; and torn writes among random subsets.
//! - New lengths are steps like writes: applied or lost, in their order.
//! - Discarded ranges read as zeros or as before; prefixes come both ways, the others as the seed says.
//!
//! States are made one by one over pages that they share, so one costs about as much as the writes of
//! its interval. The same recording, seed and number of samples give the same states.
//!
//! ```
//! use instar_storage::{CrashStorage, MemStorage, Storage, StorageMut, crash};
//!
//! let store = CrashStorage::new(MemStorage::new(vec![b'o'; 1024]));
//! store.write_at(512, b"new").unwrap();
//! store.flush().unwrap();
//! let recording = store.finish();
//! for (label, image) in crash::states(&recording, 1, 2000) {
//!     let mut seen = [0; 3];
//!     image.read_at(512, &mut seen).unwrap();
//!     let committed = label.durable == recording.steps();
//!     assert!(&seen == b"new" || (!committed && &seen == b"ooo"), "{label}");
//! }
//! ```

mod choice;
mod step;

pub use choice::{Label, Shape, Tear};

use crate::{Extent, MemStorage, Reserve, Storage, StorageError, StorageMut};
use choice::choices;
use std::cell::RefCell;
use std::vec::Vec;
use step::Step;

/// Most steps of an interval of which all subsets are tried.
pub const MAX_EXHAUSTIVE: usize = 12;
/// Most sectors of a write that is torn at every one of them.
pub const MAX_SMALL_SECTORS: u64 = 16;
/// What never tears, in bytes.
pub const SECTOR: u64 = 512;

/// A store in memory that records how it is changed.
#[derive(Debug)]
pub struct CrashStorage {
    now: MemStorage,
    recording: RefCell<Recording>,
}

/// A starting image and what was done to it.
#[derive(Clone, Debug)]
pub struct Recording {
    start: MemStorage,
    steps: Vec<Step>,
    /// For each flush, how many steps came before it.
    flushes: Vec<usize>,
}

impl CrashStorage {
    /// Starts with `image`, all of which is durable.
    #[must_use]
    pub fn new(image: MemStorage) -> Self {
        let recording = Recording {
            start: image.clone(),
            steps: Vec::new(),
            flushes: Vec::new(),
        };
        Self {
            now: image,
            recording: RefCell::new(recording),
        }
    }

    /// How many steps (changes other than flushes) were recorded so far: to be compared with
    /// [`Label::durable`].
    #[must_use]
    pub fn steps(&self) -> usize {
        self.recording.borrow().steps.len()
    }

    /// The image as the program sees it now.
    #[must_use]
    pub fn image(&self) -> MemStorage {
        self.now.clone()
    }

    /// Ends the recording.
    #[must_use]
    pub fn finish(self) -> Recording {
        self.recording.into_inner()
    }

    /// Does a change and records it, unless it is of nothing.
    fn record(&self, step: Step) -> Result<(), StorageError> {
        step.apply(&self.now, true)?;
        if !step.is_empty() {
            self.recording.borrow_mut().steps.push(step);
        }
        Ok(())
    }
}

impl Storage for CrashStorage {
    fn len_bytes(&self) -> u64 {
        self.now.len_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        self.now.read_at(offset, buf)
    }

    fn extent_at(&self, offset: u64) -> Result<Option<Extent>, StorageError> {
        self.now.extent_at(offset)
    }
}

impl StorageMut for CrashStorage {
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), StorageError> {
        let bytes = buf.to_vec();
        self.record(Step::Write { offset, bytes })
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StorageError> {
        self.record(Step::Zero { offset, len })
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), StorageError> {
        self.record(Step::Discard { offset, len })
    }

    fn allocate(&self, offset: u64, len: u64, how: Reserve) -> Result<(), StorageError> {
        match how {
            Reserve::WrittenZeros => self.write_zeroes(offset, len),
            Reserve::Blocks => self.record(Step::Reserve { offset, len }),
        }
    }

    fn set_len(&self, len: u64) -> Result<(), StorageError> {
        self.record(Step::SetLen(len))
    }

    fn flush(&self) -> Result<(), StorageError> {
        let mut recording = self.recording.borrow_mut();
        let steps = recording.steps.len();
        recording.flushes.push(steps);
        Ok(())
    }
}

impl Recording {
    /// How many steps were recorded.
    #[must_use]
    pub const fn steps(&self) -> usize {
        self.steps.len()
    }

    /// How many flushes were recorded.
    #[must_use]
    pub const fn flushes(&self) -> usize {
        self.flushes.len()
    }

    /// Where the steps of each interval lie: before the first flush, between flushes, after the last.
    fn intervals(&self) -> impl Iterator<Item = Interval<'_>> {
        let starts = std::iter::once(0).chain(self.flushes.iter().copied());
        let ends = self.flushes.iter().copied();
        let ends = ends.chain(std::iter::once(self.steps.len()));
        let discards = self.steps.iter().map(Step::is_discard);
        let first_discard = discards.take_while(|discard| !discard).count();
        let last = self.flushes.len();
        starts
            .zip(ends)
            .enumerate()
            .map(move |(flushes, (start, end))| Interval {
                flushes,
                durable: start,
                steps: self.steps.get(start..end).unwrap_or_default(),
                last: flushes == last,
                discards: first_discard < end,
            })
    }
}

/// What lies between two flushes.
#[derive(Clone, Copy)]
struct Interval<'a> {
    /// Flushes before it.
    flushes: usize,
    /// Steps before it.
    durable: usize,
    steps: &'a [Step],
    /// No flush ends it.
    last: bool,
    /// It or one before it discards.
    discards: bool,
}

/// The image at the start of an interval.
#[derive(Clone)]
struct Bases {
    /// Discarded ranges read as zeros.
    discarded: MemStorage,
    /// Discards did nothing.
    ignored: MemStorage,
}

impl Bases {
    const fn pick(&self, discard: bool) -> &MemStorage {
        if discard {
            &self.discarded
        } else {
            &self.ignored
        }
    }

    /// Goes on to the end of an interval.
    fn advance(&self, steps: &[Step]) {
        for step in steps {
            // A step that was recorded fits.
            let _ = step.apply(&self.discarded, true);
            let _ = step.apply(&self.ignored, false);
        }
    }
}

/// Every image that a power cut can leave, as the module says, `samples` random ones of each interval
/// that is too long for all its subsets.
pub fn states(
    recording: &Recording,
    seed: u64,
    samples: usize,
) -> impl Iterator<Item = (Label, MemStorage)> + '_ {
    let first = Bases {
        discarded: recording.start.clone(),
        ignored: recording.start.clone(),
    };
    let intervals = recording.intervals().scan(first, |bases, interval| {
        let start = bases.clone();
        bases.advance(interval.steps);
        Some((start, interval))
    });
    intervals.flat_map(move |(bases, interval)| {
        choices(interval, seed, samples).map(move |(shape, discard)| {
            let image = bases.pick(discard).clone();
            shape.apply(interval.steps, &image, discard);
            let label = Label {
                flushes: interval.flushes,
                durable: interval.durable,
                shape,
                discards_ignored: !discard,
            };
            (label, image)
        })
    })
}

#[cfg(test)]
mod tests;
