//! Several files that record together how they are changed, and what a power cut can leave of them.
//!
//! A flush makes one file durable. Of what was done to any file since its own last flush, any part may be there: an
//! overlay may be ahead of its base or of its data file, and the other way round.

// Only tests use it: what was recorded fits, and memory does not fail.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use crate::rng::Rng;
use instar_storage::{Extent, MemStorage, Reserve, Storage, StorageError, StorageMut};
use std::cell::RefCell;

/// Random subsets at each step.
const SAMPLES: u64 = 3;
/// Most steps that are not flushed of which each is left out and done alone.
const FEW: usize = 6;
/// What never tears, in bytes.
const SECTOR: u64 = 512;

/// A change, or a flush. Offsets and lengths are in bytes.
#[derive(Clone, Debug)]
pub enum Step {
    /// Bytes at an offset.
    Write(u64, Vec<u8>),
    /// Zeros at an offset, and how many.
    Zero(u64, u64),
    /// A range whose content does not matter any more.
    Discard(u64, u64),
    /// A new length of the file.
    SetLen(u64),
    /// All of the file is durable.
    Flush,
}

/// What was done to all files, in its order: the file's number and the step.
#[derive(Debug, Default)]
pub struct Log(RefCell<Vec<(usize, Step)>>);

impl Log {
    /// All that was done so far.
    pub fn steps(&self) -> Vec<(usize, Step)> {
        self.0.borrow().clone()
    }
}

/// A file.
#[derive(Debug)]
pub struct Recorded<'l> {
    /// Its number.
    pub number: usize,
    /// What the program sees of it.
    pub now: MemStorage,
    log: &'l Log,
}

impl<'l> Recorded<'l> {
    /// Starts with `image`, all of which is durable.
    pub fn new(number: usize, image: MemStorage, log: &'l Log) -> Self {
        Self {
            number,
            now: image,
            log,
        }
    }

    /// Files with numbers from 0 on.
    pub fn all(images: impl IntoIterator<Item = MemStorage>, log: &'l Log) -> Vec<Self> {
        let images = images.into_iter().enumerate();
        images
            .map(|(number, image)| Self::new(number, image, log))
            .collect()
    }

    fn record(&self, step: Step) -> Result<(), StorageError> {
        apply(&step, &self.now);
        self.log.0.borrow_mut().push((self.number, step));
        Ok(())
    }
}

/// Does a step.
fn apply(step: &Step, image: &MemStorage) {
    match step {
        Step::Write(offset, bytes) => image.write_at(*offset, bytes),
        Step::Zero(offset, len) => image.write_zeroes(*offset, *len),
        Step::Discard(offset, len) => image.discard(*offset, *len),
        Step::SetLen(len) => image.set_len(*len),
        Step::Flush => Ok(()),
    }
    .unwrap();
}

impl Storage for Recorded<'_> {
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

impl StorageMut for Recorded<'_> {
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), StorageError> {
        self.record(Step::Write(offset, buf.to_vec()))
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StorageError> {
        self.record(Step::Zero(offset, len))
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), StorageError> {
        self.record(Step::Discard(offset, len))
    }
    fn allocate(&self, offset: u64, len: u64, how: Reserve) -> Result<(), StorageError> {
        match how {
            Reserve::WrittenZeros => self.write_zeroes(offset, len),
            Reserve::Blocks => self.now.allocate(offset, len, how),
        }
    }
    fn set_len(&self, len: u64) -> Result<(), StorageError> {
        self.record(Step::SetLen(len))
    }
    fn flush(&self) -> Result<(), StorageError> {
        self.record(Step::Flush)
    }
}

/// What of the steps that were not flushed is there.
#[derive(Clone, Copy, Debug)]
pub enum Fate {
    /// All of them.
    All,
    /// None of them.
    None,
    /// All but one, counted from the first.
    But(usize),
    /// Only one.
    Only(usize),
    /// Some, of which some are torn, with a seed of their own.
    Random(u64),
}

/// The power cuts to try of what was recorded: before which step, and the fate of what was not flushed by then.
pub fn cuts(steps: &[(usize, Step)], files: usize, seed: u64) -> Vec<(usize, Fate)> {
    let fates = |end: usize| {
        let count = pending(steps, end, files);
        let seed = seed.wrapping_mul(31).wrapping_add(end as u64);
        let mut fates = vec![Fate::All];
        if count > 0 {
            fates.push(Fate::None);
            fates.extend((0..SAMPLES).map(|n| Fate::Random(seed.wrapping_add(n))));
        }
        if count <= FEW {
            fates.extend((0..count).flat_map(|n| [Fate::But(n), Fate::Only(n)]));
        }
        fates.into_iter().map(move |fate| (end, fate))
    };
    (0..=steps.len()).flat_map(fates).collect()
}

/// The files after a power cut before step `end`: what each file had flushed by then, and of the rest what `fate` says.
/// Writes of more than a sector may be torn.
pub fn cut(
    start: &[MemStorage],
    steps: &[(usize, Step)],
    end: usize,
    fate: Fate,
) -> Vec<MemStorage> {
    let files: Vec<MemStorage> = start.to_vec();
    let steps = &steps[..end];
    let durable = durable(steps, files.len());
    let mut pending = 0;
    for (index, (file, step)) in steps.iter().enumerate() {
        if index < durable[*file] || matches!(step, Step::Flush) {
            apply(step, &files[*file]);
            continue;
        }
        let there = match fate {
            Fate::All => true,
            Fate::None => false,
            Fate::But(n) => pending != n,
            Fate::Only(n) => pending == n,
            Fate::Random(seed) => {
                let luck = Rng::of(seed, pending as u64).next_u64() >> 20;
                if let (0, Step::Write(offset, bytes)) = (luck % 5, step) {
                    tear(*offset, bytes, luck, &files[*file]);
                }
                luck % 5 > 2
            }
        };
        pending += 1;
        if there {
            apply(step, &files[*file]);
        }
    }
    files
}

/// For each file the index of its last flush: what comes before is there.
fn durable(steps: &[(usize, Step)], files: usize) -> Vec<usize> {
    let mut durable = vec![0; files];
    for (index, (file, step)) in steps.iter().enumerate() {
        if matches!(step, Step::Flush) {
            durable[*file] = index;
        }
    }
    durable
}

/// How many steps are not flushed before step `end`.
fn pending(steps: &[(usize, Step)], end: usize, files: usize) -> usize {
    let steps = &steps[..end];
    let durable = durable(steps, files);
    let steps = steps.iter().enumerate();
    steps
        .filter(|(at, (file, step))| *at >= durable[*file] && !matches!(step, Step::Flush))
        .count()
}

/// Writes some sectors of a write.
fn tear(offset: u64, bytes: &[u8], luck: u64, image: &MemStorage) {
    let mut at = offset;
    let end = offset + bytes.len() as u64;
    while at < end {
        let next = (at / SECTOR + 1) * SECTOR;
        let part = &bytes[(at - offset) as usize..(next.min(end) - offset) as usize];
        if Rng::of(luck, at).next_u64() >> 40 & 1 == 1 {
            image.write_at(at, part).unwrap();
        }
        at = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_of_one_file_says_nothing_about_another() {
        let log = Log::default();
        let start = vec![MemStorage::new(vec![b'o'; 512]); 2];
        // Stores share what is cloned until it is written.
        let files = Recorded::all(start.iter().cloned(), &log);
        files[0].write_at(0, b"a").unwrap();
        files[1].write_at(0, b"b").unwrap();
        files[0].flush().unwrap();
        let (steps, end) = (log.steps(), log.steps().len());
        let first = |images: &[MemStorage]| [images[0].to_vec()[0], images[1].to_vec()[0]];
        assert_eq!(first(&cut(&start, &steps, end, Fate::None)), *b"ao");
        assert_eq!(first(&cut(&start, &steps, end, Fate::All)), *b"ab");
        assert_eq!(first(&cut(&start, &steps, 2, Fate::None)), *b"oo");
        assert_eq!(first(&cut(&start, &steps, 2, Fate::Only(1))), *b"ob");
        assert_eq!(first(&cut(&start, &steps, 2, Fate::But(1))), *b"ao");
        assert_eq!(pending(&steps, end, 2), 1);
        assert!(cuts(&steps, 2, 7).len() > end);
    }
}
