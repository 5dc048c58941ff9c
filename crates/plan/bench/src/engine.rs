//! The stream of requests.

use crate::{BenchError, Image, Monitor, Settings, Writes};
use alloc::vec::Vec;
use instar_storage::overlap::{Done, Overlap, Transfer, Work};

/// EIO: what lies past the disk's end can neither be read nor written.
const EIO: u32 = 5;
/// Token of a flush; requests have small ones.
const FLUSH: u64 = u64::MAX;

/// Sends the requests; returns when all are done.
///
/// # Errors
/// The first request that failed; all that were sent are done all the same.
pub fn run<O: Overlap>(
    overlap: &O,
    image: &mut dyn Image,
    settings: &Settings,
    monitor: &mut dyn Monitor,
) -> Result<(), BenchError> {
    let mut engine = Engine {
        overlap,
        image,
        settings: *settings,
        monitor,
        offset: settings.start,
        started: 0,
        done: 0,
        flushes: 0,
        flush_due: false,
        pieces: Vec::new(),
        idle: Vec::new(),
        buffers: Vec::new(),
    };
    let result = engine.run();
    if result.is_err() {
        while let Some(done) = overlap.wait() {
            if done.result.is_err() {
                engine.image.write_failed();
            }
        }
    }
    result
}

struct Engine<'a, O> {
    overlap: &'a O,
    image: &'a mut dyn Image,
    settings: Settings,
    monitor: &'a mut dyn Monitor,
    /// Where the next request starts.
    offset: u64,
    started: u32,
    done: u32,
    /// Flushes in flight.
    flushes: u32,
    /// A flush that waits for what is in flight.
    flush_due: bool,
    /// Pieces in flight of each request; its index is their token.
    pieces: Vec<usize>,
    /// Indexes in `pieces` of requests that are done.
    idle: Vec<usize>,
    /// Buffers that are not in use.
    buffers: Vec<Vec<u8>>,
}

impl<O: Overlap> Engine<'_, O> {
    fn run(&mut self) -> Result<(), BenchError> {
        loop {
            self.start_all()?;
            if self.is_over() {
                return Ok(());
            }
            if !self.await_one()? && !self.flush_due {
                // Nothing is in flight although something must be.
                return Err(BenchError::Request { errno: EIO });
            }
        }
    }

    fn is_over(&self) -> bool {
        self.done == self.settings.count && self.flushes == 0 && !self.flush_due
    }

    const fn in_flight(&self) -> u32 {
        self.started.saturating_sub(self.done)
    }

    /// Starts as many requests as there may be in flight.
    fn start_all(&mut self) -> Result<(), BenchError> {
        loop {
            self.flush_due |= self.image.is_full();
            if self.flush_due {
                if self.in_flight() > 0 {
                    return Ok(());
                }
                self.flush_due = false;
                self.flush()?;
            }
            let drains = self.settings.write.is_some_and(|writes| writes.drain);
            let may = self.started < self.settings.count
                && self.in_flight() < self.settings.depth
                && !(drains && self.flushes > 0);
            if !may {
                return Ok(());
            }
            self.start()?;
        }
    }

    /// Starts the next request.
    fn start(&mut self) -> Result<(), BenchError> {
        let (size, len) = (self.image.len_bytes(), self.settings.len as usize);
        let end = self.offset.checked_add(u64::from(self.settings.len));
        if end.is_none_or(|end| end > size) {
            return Err(BenchError::Request { errno: EIO });
        }
        self.started = self.started.saturating_add(1);
        let index = match self.idle.pop() {
            Some(index) => index,
            None => {
                self.pieces.push(0);
                self.pieces.len().saturating_sub(1)
            }
        };
        // One more than there are, until all are sent: those that end meanwhile do not end the request.
        self.count_piece(index);
        let guest = self.offset;
        let mut sent = 0_usize;
        while sent < len {
            let at = guest.saturating_add(sent as u64);
            let piece = self.send(index, at, len.saturating_sub(sent))?;
            sent = sent.saturating_add(piece);
        }
        let next = self.offset.saturating_add(u64::from(self.settings.step));
        self.offset = next.checked_rem(size).unwrap_or(0);
        if let Some(writes) = self.settings.write {
            self.flush_due = writes.drain && is_interval(writes, self.started);
        }
        self.end_piece(index)
    }

    fn count_piece(&mut self, index: usize) {
        if let Some(pieces) = self.pieces.get_mut(index) {
            *pieces = pieces.saturating_add(1);
        }
    }

    /// Sends the first piece of the `len` bytes at `guest`; returns its length.
    fn send(&mut self, index: usize, guest: u64, len: usize) -> Result<usize, BenchError> {
        let mut buf = self.buffer()?;
        let bytes = buf.get_mut(..len).unwrap_or_default();
        let piece = if self.settings.write.is_some() {
            self.image.write(guest, bytes)?
        } else {
            self.image.read(guest, bytes)?
        };
        let len = piece.len.clamp(1, len);
        let Some((file, offset)) = piece.at else {
            self.buffers.push(buf);
            return Ok(len);
        };
        let work = if self.settings.write.is_some() {
            Work::Write { offset, len }
        } else {
            Work::Read { offset, len }
        };
        self.count_piece(index);
        let token = index as u64;
        self.submit(Transfer {
            file,
            token,
            work,
            buf,
        })?;
        Ok(len)
    }

    /// A buffer for a whole request.
    fn buffer(&mut self) -> Result<Vec<u8>, BenchError> {
        if let Some(buf) = self.buffers.pop() {
            return Ok(buf);
        }
        let len = self.settings.len as usize;
        let mut buf = Vec::new();
        buf.try_reserve_exact(len)
            .map_err(|_| BenchError::OutOfMemory)?;
        buf.resize(len, self.settings.write.map_or(0, |writes| writes.pattern));
        Ok(buf)
    }

    /// Hands a transfer over, when there is room for it.
    fn submit(&mut self, mut transfer: Transfer) -> Result<(), BenchError> {
        while let Err(back) = self.overlap.submit(transfer) {
            transfer = back;
            let waited = self.await_one();
            if waited != Ok(true) {
                // It has its place and is not written.
                self.image.write_failed();
                waited?;
                return Err(BenchError::Request { errno: EIO });
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), BenchError> {
        let Some(file) = self.image.flush()? else {
            return Ok(());
        };
        self.flushes = self.flushes.saturating_add(1);
        self.submit(Transfer {
            file,
            token: FLUSH,
            work: Work::Flush,
            buf: Vec::new(),
        })
    }

    /// Waits for something to end, and takes all that has: what follows then goes together. False if nothing is in
    /// flight.
    fn await_one(&mut self) -> Result<bool, BenchError> {
        let Some(mut done) = self.overlap.wait() else {
            return Ok(false);
        };
        loop {
            self.ended(done)?;
            match self.overlap.poll() {
                Some(next) => done = next,
                None => return Ok(true),
            }
        }
    }

    fn ended(&mut self, done: Done) -> Result<(), BenchError> {
        if done.token == FLUSH {
            self.flushes = self.flushes.saturating_sub(1);
            return Ok(done.result?);
        }
        self.buffers.push(done.buf);
        if let Err(error) = done.result {
            self.image.write_failed();
            return Err(error.into());
        }
        match usize::try_from(done.token) {
            Ok(index) => self.end_piece(index),
            Err(_) => Ok(()),
        }
    }

    /// A piece of a request is done, and with the last one the request.
    fn end_piece(&mut self, index: usize) -> Result<(), BenchError> {
        let Some(pieces) = self.pieces.get_mut(index) else {
            return Ok(());
        };
        *pieces = pieces.saturating_sub(1);
        if *pieces > 0 {
            return Ok(());
        }
        self.idle.push(index);
        self.done = self.done.saturating_add(1);
        let (done, total) = (u64::from(self.done), u64::from(self.settings.count));
        self.monitor.progress(done, total)?;
        match self.settings.write {
            Some(writes) if !writes.drain && is_interval(writes, self.done) => {
                if self.image.rests_for_flush() {
                    self.flush_due = true;
                    return Ok(());
                }
                self.flush()
            }
            _ => Ok(()),
        }
    }
}

/// Whether a flush follows on so many requests.
const fn is_interval(writes: Writes, requests: u32) -> bool {
    match requests.checked_rem(writes.flush_interval) {
        Some(rest) => rest == 0,
        None => false,
    }
}
