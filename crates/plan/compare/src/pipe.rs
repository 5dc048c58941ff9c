//! Batches of steps: what they need is read ahead, and looked at in order.

use crate::steps::{Ended, Sides, Step, Steps};
use crate::{CompareError, Disks, Failed, Found, Verdict, bytes};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use instar_layers::{DataError, Decompress, RunKind};
use instar_storage::overlap::{Done, Overlap, Transfer, Work};
use instar_storage::{Read, Storage};

/// Bytes of each disk in a batch.
const BATCH_BYTES: usize = 2 << 20;
/// Batches that are under way at once: one is looked at while the others are read.
const DEPTH: usize = 3;

/// The bytes of one disk in a batch.
#[derive(Debug)]
enum Side {
    /// Not read yet: more than one place, or something to decompress.
    Later(Vec<u8>),
    /// Being read; the token says who it is.
    Flying(u64),
    /// Read.
    Ready(Vec<u8>),
    /// Could not be read as one.
    Failed(Vec<u8>),
}

impl Side {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Later(buffer) | Self::Ready(buffer) | Self::Failed(buffer) => buffer,
            Self::Flying(_) => &[],
        }
    }
}

/// Steps that are read together.
#[derive(Debug)]
pub(crate) struct Batch {
    steps: Vec<Step>,
    sides: [Side; 2],
    /// Why it has no more steps.
    pub ended: Ended,
    /// First byte that no step up to here is about.
    pub next_offset: u64,
}

/// The batches under way.
pub(crate) struct Pipe<'a, S, O> {
    disks: &'a Disks<'a, S, O>,
    codec: &'a mut dyn Decompress,
    /// Bytes that both disks have.
    common: u64,
    batches: VecDeque<Batch>,
    free: Vec<(Vec<Step>, [Vec<u8>; 2])>,
    made: usize,
    tokens: u64,
    all_planned: bool,
}

impl<'a, S: Storage, O: Overlap> Pipe<'a, S, O> {
    pub fn new(disks: &'a Disks<'a, S, O>, codec: &'a mut dyn Decompress, common: u64) -> Self {
        Self {
            disks,
            codec,
            common,
            batches: VecDeque::new(),
            free: Vec::new(),
            made: 0,
            tokens: 0,
            all_planned: false,
        }
    }

    /// The next batch, with its bytes.
    pub fn next(&mut self, steps: &mut Steps<'_, S>) -> Result<Batch, CompareError> {
        while !self.all_planned && self.batches.len() < DEPTH {
            let Some((mut planned, buffers)) = self.buffers() else {
                if self.batches.is_empty() {
                    return Err(CompareError::OutOfMemory);
                }
                break;
            };
            let ended = steps.plan(&mut planned, BATCH_BYTES);
            self.all_planned = ended != Ended::Full;
            let [one, two] = buffers;
            let sides = [self.begin(0, &planned, one), self.begin(1, &planned, two)];
            self.batches.push_back(Batch {
                steps: planned,
                sides,
                ended,
                next_offset: steps.next_offset(),
            });
        }
        self.disks.overlap.kick();
        while self.batches.front().is_some_and(is_flying) {
            let Some(done) = self.disks.overlap.wait() else {
                return Err(CompareError::OutOfMemory);
            };
            self.land(done);
        }
        let mut batch = self.batches.pop_front().ok_or(CompareError::OutOfMemory)?;
        for disk in [0, 1] {
            self.read_late(disk, &mut batch);
        }
        Ok(batch)
    }

    /// Takes back the memory of a batch that was judged.
    pub fn give_back(&mut self, batch: Batch) {
        let bytes = |side| match side {
            Side::Later(buffer) | Side::Ready(buffer) | Side::Failed(buffer) => buffer,
            Side::Flying(_) => Vec::new(),
        };
        self.free.push((batch.steps, batch.sides.map(bytes)));
    }

    fn buffers(&mut self) -> Option<(Vec<Step>, [Vec<u8>; 2])> {
        if let Some(free) = self.free.pop() {
            return Some(free);
        }
        let buffer = || {
            let mut buffer = Vec::new();
            buffer.try_reserve_exact(BATCH_BYTES).ok()?;
            buffer.resize(BATCH_BYTES, 0);
            Some(buffer)
        };
        self.made = self.made.checked_add(1).filter(|made| *made <= DEPTH)?;
        Some((Vec::new(), [buffer()?, buffer()?]))
    }

    /// Begins to read what a batch needs of a disk, if that is one place of a file.
    fn begin(&mut self, disk: usize, steps: &[Step], buf: Vec<u8>) -> Side {
        let Some((file, offset, len)) = self.one_place(disk, steps) else {
            return Side::Later(buf);
        };
        self.tokens = self.tokens.wrapping_add(1);
        let token = self.tokens;
        let work = Work::Read { offset, len };
        let transfer = Transfer {
            file,
            token,
            work,
            buf,
        };
        match self.disks.overlap.submit(transfer) {
            Ok(()) => Side::Flying(token),
            Err(transfer) => Side::Later(transfer.buf),
        }
    }

    /// File, place and length of all that `steps` need of a disk, if that is one piece.
    fn one_place(&self, disk: usize, steps: &[Step]) -> Option<(u16, u64, usize)> {
        let first = steps.first().filter(|first| first.place == 0)?;
        let mut len = 0_usize;
        for step in steps {
            if !step.sides.has(disk) || (len > 0 && !step.follows(first, len)) {
                return None;
            }
            len = len.checked_add(step.len)?;
        }
        let chain = self.disks.chains.get(disk)?;
        let run = chain.run_at(first.offset, len as u64).ok()?;
        match run.kind {
            RunKind::Data { file, host_offset } if run.len == len as u64 => {
                let layer = chain.layers().get(run.depth)?;
                // What is encrypted is deciphered by the chain.
                let plain = layer.cipher().is_none();
                plain.then(|| ((self.disks.number)(layer.store(file)), host_offset, len))
            }
            _ => None,
        }
    }

    /// Puts what was read to its batch.
    fn land(&mut self, done: Done) {
        let sides = self.batches.iter_mut().flat_map(|batch| &mut batch.sides);
        let of = |side: &&mut Side| matches!(side, Side::Flying(token) if *token == done.token);
        if let Some(side) = sides.into_iter().find(of) {
            *side = match done.result {
                Ok(()) => Side::Ready(done.buf),
                Err(_) => Side::Failed(done.buf),
            };
        }
    }

    /// Reads what was left for later.
    fn read_late(&mut self, disk: usize, batch: &mut Batch) {
        let Batch { steps, sides, .. } = batch;
        let Some(side) = sides.get_mut(disk) else {
            return;
        };
        let Side::Later(buffer) = side else {
            return;
        };
        let mut buffer = core::mem::take(buffer);
        *side = match self.read(disk, steps, &mut buffer) {
            Ok(()) => Side::Ready(buffer),
            Err(_) => Side::Failed(buffer),
        };
    }

    /// Reads all that the steps need of one disk.
    fn read(&mut self, disk: usize, steps: &[Step], buffer: &mut [u8]) -> Result<(), DataError> {
        let Some(chain) = self.disks.chains.get(disk) else {
            return Ok(());
        };
        let mut left = buffer;
        let mut from = 0_usize;
        let mut reads: Vec<Read<'_>> = Vec::new();
        let mut steps = steps.iter().filter(|step| step.sides.has(disk)).peekable();
        while let Some(first) = steps.next() {
            let mut len = first.len;
            while let Some(next) = steps.next_if(|next| next.follows(first, len)) {
                len = len.saturating_add(next.len);
            }
            let skip = first.place.saturating_sub(from).min(left.len());
            let (_, rest) = left.split_at_mut(skip);
            let (buf, rest) = rest.split_at_mut(len.min(rest.len()));
            reads.push(Read {
                offset: first.offset,
                buf,
            });
            (left, from) = (rest, first.place.saturating_add(len));
        }
        chain.read_many(reads, &mut *self.codec)
    }

    /// Looks at a batch: the first difference, if there is one.
    pub fn judge(&mut self, batch: &Batch) -> Result<Option<Found>, CompareError> {
        let failed = |side: &Side| matches!(side, Side::Failed(_));
        let in_steps = batch.sides.iter().any(failed);
        for step in &batch.steps {
            let at = if in_steps {
                // What differs before the place that cannot be read comes first.
                self.read_and_judge(step)?
            } else {
                let [one, two] = &batch.sides;
                difference(step, step.place, [one.bytes(), two.bytes()])
            };
            if let Some(at) = at {
                let offset = step.offset.saturating_add(at);
                return Ok(Some(Found {
                    verdict: Verdict::Content(offset),
                    longer: step.offset >= self.common,
                }));
            }
        }
        Ok(None)
    }

    /// Reads and looks at one step alone.
    #[cold]
    fn read_and_judge(&mut self, step: &Step) -> Result<Option<u64>, CompareError> {
        let alone = Step { place: 0, ..*step };
        let mut both = [Vec::new(), Vec::new()];
        for (disk, buffer) in both.iter_mut().enumerate() {
            if !step.sides.has(disk) {
                continue;
            }
            let reserved = buffer.try_reserve_exact(step.len);
            reserved.map_err(|_| CompareError::OutOfMemory)?;
            buffer.resize(step.len, 0);
            let read = self.read(disk, core::slice::from_ref(&alone), buffer);
            read.map_err(|source| {
                CompareError::Data(Failed {
                    disk,
                    offset: step.begin,
                    source,
                    longer: step.begin >= self.common,
                })
            })?;
        }
        let [one, two] = &both;
        Ok(difference(step, 0, [one, two]))
    }
}

fn is_flying(batch: &Batch) -> bool {
    let flying = |side: &Side| matches!(side, Side::Flying(_));
    batch.sides.iter().any(flying)
}

/// Where in a step the first sector that differs starts; its bytes are at `place` of the buffers.
fn difference(step: &Step, place: usize, [one, two]: [&[u8]; 2]) -> Option<u64> {
    let range = place..place.checked_add(step.len)?;
    match step.sides {
        Sides::Both => bytes::first_difference(one.get(range.clone())?, two.get(range)?),
        Sides::One => bytes::first_data(one.get(range)?),
        Sides::Two => bytes::first_data(two.get(range)?),
    }
}
