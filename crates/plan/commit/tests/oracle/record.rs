//! Several files that record together how they are changed, and what a power cut can leave of them.

use crate::Rng;
use instar_storage::{Extent, MemStorage, Reserve, Storage, StorageError, StorageMut};
use std::cell::RefCell;

/// A change, or a flush.
#[derive(Clone)]
pub enum Step {
    Write(u64, Vec<u8>),
    Zero(u64, u64),
    Discard(u64, u64),
    SetLen(u64),
    Flush,
}

/// What was done to all files, in its order: the file's number and the step.
#[derive(Default)]
pub struct Log(pub RefCell<Vec<(usize, Step)>>);

/// A file.
pub struct Recorded<'l> {
    pub number: usize,
    pub now: MemStorage,
    log: &'l Log,
}

impl<'l> Recorded<'l> {
    pub fn new(number: usize, image: MemStorage, log: &'l Log) -> Self {
        Self {
            number,
            now: image,
            log,
        }
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
    All,
    None,
    But(usize),
    Only(usize),
    Random(u64),
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
    let durable: Vec<usize> = (0..files.len())
        .map(|file| {
            let is_flush = |(of, step): &(usize, Step)| *of == file && matches!(step, Step::Flush);
            steps.iter().rposition(is_flush).unwrap_or(0)
        })
        .collect();
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
                let luck = Rng::of(seed, pending as u64).number() >> 20;
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

/// How many steps are not flushed before step `end`.
pub fn pending(steps: &[(usize, Step)], end: usize) -> usize {
    let flushed = |file: usize| {
        let is_flush = |(of, step): &(usize, Step)| *of == file && matches!(step, Step::Flush);
        steps[..end].iter().rposition(is_flush).unwrap_or(0)
    };
    let steps = steps[..end].iter().enumerate();
    steps
        .filter(|(at, (file, step))| *at >= flushed(*file) && !matches!(step, Step::Flush))
        .count()
}

/// Writes some sectors of a write.
fn tear(offset: u64, bytes: &[u8], luck: u64, image: &MemStorage) {
    let mut at = offset;
    let end = offset + bytes.len() as u64;
    while at < end {
        let next = (at / 512 + 1) * 512;
        let part = &bytes[(at - offset) as usize..(next.min(end) - offset) as usize];
        if Rng::of(luck, at).number() >> 40 & 1 == 1 {
            image.write_at(at, part).unwrap();
        }
        at = next;
    }
}
