//! The copy: runs of the images above the base, many at once.

use crate::CommitError;
use crate::base::{Base, Numbers};
use alloc::vec::Vec;
use instar_layers::{Chain, Decompress, Run, RunKind};
use instar_storage::overlap::{Done, Overlap, Transfer, Work};
use instar_storage::{DataPlace, StorageMut};

/// Longest request to copy, in bytes.
const COPY_BYTES: u64 = 8 << 20;
/// Most bytes that are deciphered or enciphered at once.
const REWRITE_BYTES: u64 = 1 << 20;
/// Requests that are on their way at once.
const REQUESTS: usize = 16;
/// Bytes that requests with buffers have on their way at once.
const BUFFER_BYTES: usize = 8 << 20;

/// The copy is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancelled;

/// Who watches the copy.
pub trait Monitor {
    /// Says how far it is, in bytes.
    ///
    /// # Errors
    /// It is to stop.
    fn progress(&mut self, done: u64, total: u64) -> Result<(), Cancelled>;

    /// Waits until more may be copied than the `done` bytes.
    fn pace(&mut self, done: u64, total: u64);
}

/// What is copied, and where to.
#[derive(Debug)]
pub struct Job<'a, I, S, D> {
    /// All files, by number.
    pub io: &'a I,
    /// The images above the base, the top first.
    pub above: &'a Chain<S>,
    /// A store's number.
    pub number: fn(&S) -> u16,
    /// For compressed clusters.
    pub codec: &'a mut D,
    /// The base's files.
    pub base: Numbers,
}

/// Copies everything that the images above `base` say into it, and makes it durable. Nothing is on its way when
/// it returns.
///
/// # Errors
/// The first failure. Nothing is said in the base of what may not have been written.
pub fn copy<I, S, D>(
    job: Job<'_, I, S, D>,
    base: &mut Base<'_, S>,
    monitor: &mut dyn Monitor,
) -> Result<(), CommitError>
where
    I: Overlap,
    S: StorageMut,
    D: Decompress,
{
    let mut copier = Copier {
        total: job.above.len_bytes(),
        job,
        base,
        monitor,
        next: 0,
        moved: 0,
        buffered: 0,
        waiting: None,
    };
    let copied = copier.run();
    // Buffers belong to the requests until these have ended.
    while copier.job.io.wait().is_some() {}
    copied?;
    copier.base.finish()
}

struct Copier<'a, 'b, 'w, I, S, D> {
    job: Job<'a, I, S, D>,
    base: &'b mut Base<'w, S>,
    monitor: &'b mut dyn Monitor,
    total: u64,
    /// All before it is copied, or on its way.
    next: u64,
    /// Bytes whose copying has begun; what is no data does not count.
    moved: u64,
    /// Bytes in buffers that are on their way.
    buffered: usize,
    /// A request that found no room.
    waiting: Option<Transfer>,
}

impl<I, S, D> Copier<'_, '_, '_, I, S, D>
where
    I: Overlap,
    S: StorageMut,
    D: Decompress,
{
    fn run(&mut self) -> Result<(), CommitError> {
        while self.next < self.total {
            self.monitor.progress(self.next, self.total)?;
            while self.has_room() {
                self.step()?;
            }
            if self.base.is_full() {
                self.drain()?;
                self.base.commit()?;
                continue;
            }
            let mut done = self.job.io.wait();
            while let Some(ended) = done {
                self.ended(ended)?;
                done = self.job.io.poll();
            }
            self.send();
        }
        self.drain()?;
        self.monitor.progress(self.total, self.total)?;
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.next < self.total
            && self.waiting.is_none()
            && !self.base.is_full()
            && self.job.io.in_flight() < REQUESTS
            && self.buffered < BUFFER_BYTES
    }

    /// Waits for everything that is on its way.
    fn drain(&mut self) -> Result<(), CommitError> {
        loop {
            self.send();
            match self.job.io.wait() {
                Some(done) => self.ended(done)?,
                None => return Ok(()),
            }
        }
    }

    /// Submits what waits, if there is room now.
    fn send(&mut self) {
        if let Some(transfer) = self.waiting.take() {
            self.waiting = self.job.io.submit(transfer).err();
        }
    }

    fn submit(&mut self, transfer: Transfer) {
        self.buffered = self.buffered.saturating_add(transfer.buf.len());
        self.waiting = self.job.io.submit(transfer).err();
    }

    fn ended(&mut self, done: Done) -> Result<(), CommitError> {
        self.buffered = self.buffered.saturating_sub(done.buf.len());
        Ok(done.result?)
    }

    /// Begins with what comes next.
    fn step(&mut self) -> Result<(), CommitError> {
        let at = self.next;
        let left = self.total.saturating_sub(at);
        let run = self.job.above.run_at(at, left)?;
        let len = run.len.clamp(1, left.max(1));
        let done = match run.kind {
            RunKind::Unallocated if self.is_below(&run) => len,
            RunKind::Unallocated | RunKind::Zero { .. } => self.zeros(at, len)?,
            RunKind::Data { file, host_offset } => {
                let layer = self.job.above.layers().get(run.depth);
                let is_plain = layer.is_none_or(|layer| layer.cipher().is_none());
                if is_plain && self.base.cipher().is_none() {
                    let from = layer.map_or(0, |layer| (self.job.number)(layer.store(file)));
                    self.copy(at, len, from, host_offset)?
                } else {
                    self.rewrite(at, len.min(REWRITE_BYTES))?
                }
            }
            RunKind::Compressed { .. } => self.rewrite(at, len)?,
        };
        self.next = at.saturating_add(done);
        Ok(())
    }

    /// Whether what no image above the base has is the base's: none of them ends before it.
    fn is_below(&self, run: &Run) -> bool {
        run.depth.saturating_add(1) >= self.job.above.layers().len()
    }

    fn zeros(&mut self, at: u64, len: u64) -> Result<u64, CommitError> {
        let (len, work) = self.base.zeros(at, len)?;
        if let Some(work) = work {
            let request = self.job.base.request(false, at, work, Vec::new());
            self.submit(request);
        }
        Ok(len)
    }

    /// Waits until `len` bytes more may be copied.
    fn pace(&mut self, len: u64) {
        self.monitor.pace(self.moved, self.total);
        self.moved = self.moved.saturating_add(len);
    }

    /// Has the host copy the first of `len` bytes.
    fn copy(&mut self, at: u64, len: u64, from: u16, offset: u64) -> Result<u64, CommitError> {
        let place = self.base.place(at, len.min(COPY_BYTES))?;
        let len = place.len.clamp(1, len);
        self.pace(len);
        let work = Work::Copy {
            from,
            from_offset: offset,
            offset: place.offset,
            len,
        };
        let request = self
            .job
            .base
            .request(place.in_data_file, at, work, Vec::new());
        self.submit(request);
        Ok(len)
    }

    /// Reads bytes that are compressed or encrypted, or are to be encrypted, and writes the first of them.
    fn rewrite(&mut self, at: u64, len: u64) -> Result<u64, CommitError> {
        let place = self.base.place(at, len)?;
        let len = place.len.clamp(1, len);
        self.pace(len);
        let bytes = usize::try_from(len).map_err(|_| CommitError::OutOfMemory)?;
        let mut buf = Vec::new();
        buf.try_reserve_exact(bytes)
            .map_err(|_| CommitError::OutOfMemory)?;
        buf.resize(bytes, 0);
        self.job.above.read_at(at, &mut buf, self.job.codec)?;
        if let Some(cipher) = self.base.cipher() {
            let place = DataPlace {
                host: place.offset,
                guest: at,
            };
            cipher.encipher(place, &mut buf)?;
        }
        let work = Work::Write {
            offset: place.offset,
            len: bytes,
        };
        let request = self.job.base.request(place.in_data_file, at, work, buf);
        self.submit(request);
        Ok(len)
    }
}
