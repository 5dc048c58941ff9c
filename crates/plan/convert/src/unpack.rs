//! Decompression and deciphering of windows, on all cores.
//!
//! What the clusters of a window are compressed to, and what is encrypted, is read first; then the window's buffer goes into a job, which a
//! [`Crew`] runs, or the first core when the crew has enough. Jobs end in any order. If one fails, the window is
//! read by its source, which knows what is wrong, or that nothing is.

use crate::engine::size;
use crate::window::{Input, Piece, Placed, Window};
use crate::{Engine, Monitor, Source, Target};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::fmt;
use instar_codec::Decoder;
use instar_storage::overlap::{Crew, Overlap};

/// A window that is decompressed and deciphered.
#[derive(Debug, Default)]
pub struct Unpack {
    decoder: Decoder,
    serial: u64,
    streams: Vec<Placed>,
    inputs: Vec<Input>,
    pieces: Vec<Piece>,
    /// The window's.
    buf: Vec<u8>,
    failed: bool,
}

impl Unpack {
    /// Decompresses all clusters, and deciphers what is encrypted; allocates nothing.
    pub fn run(&mut self) {
        let opened = self.pieces.iter().all(|p| p.open(&mut self.buf).is_ok());
        self.failed = !opened
            || !self.streams.iter().all(|placed| {
                let (input, stream) = (self.inputs.get(placed.input), placed.stream);
                let packed = input.and_then(|input| {
                    let rest = input
                        .bytes
                        .get(size(stream.offset.checked_sub(input.offset)?)..)?;
                    rest.get(..size(stream.max_bytes.into()))
                });
                let rest = self.buf.get_mut(placed.at..);
                let out = rest.and_then(|rest| rest.get_mut(..size(stream.cluster_bytes.into())));
                match (packed, out) {
                    (Some(packed), Some(out)) => {
                        self.decoder.fill(stream.kind, packed, out).is_ok()
                    }
                    _ => false,
                }
            });
    }
}

/// Jobs in all their states.
pub struct Unpacker<'a> {
    crew: &'a dyn Crew<Unpack>,
    free: VecDeque<Box<Unpack>>,
    waiting: VecDeque<Box<Unpack>>,
    done: VecDeque<Box<Unpack>>,
}

impl fmt::Debug for Unpacker<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unpacker")
    }
}

impl<'a> Unpacker<'a> {
    /// Decompresses on `crew`.
    pub const fn new(crew: &'a dyn Crew<Unpack>) -> Self {
        Self {
            crew,
            free: VecDeque::new(),
            waiting: VecDeque::new(),
            done: VecDeque::new(),
        }
    }

    /// Takes a window whose reads have ended.
    fn take(&mut self, window: &mut Window) {
        let mut job = self.free.pop_back().unwrap_or_default();
        job.streams = core::mem::take(&mut window.streams);
        let mut kinds = job.streams.iter().map(|placed| placed.stream.kind);
        if window.again || !kinds.all(|kind| job.decoder.prepare(kind)) {
            (window.again, window.reading) = (true, 0);
            self.free.push_back(job);
            return;
        }
        job.serial = window.serial;
        job.inputs = core::mem::take(&mut window.inputs);
        job.pieces = core::mem::take(&mut window.pieces);
        job.buf = core::mem::take(&mut window.buf);
        self.waiting.push_back(job);
    }

    /// Gives out jobs and takes back what is done; true if there was anything to do.
    fn work(&mut self) -> bool {
        let mut worked = false;
        while let Some(job) = self.waiting.pop_front() {
            if let Err(job) = self.crew.submit(job) {
                self.waiting.push_front(job);
                break;
            }
            worked = true;
        }
        // The crew has enough: one is left for this core.
        if let Some(mut job) = self.waiting.pop_front() {
            job.run();
            self.done.push_back(job);
        }
        while let Some(job) = self.crew.poll() {
            self.done.push_back(job);
        }
        worked || !self.done.is_empty()
    }

    /// Jobs that the crew has.
    pub(crate) fn in_flight(&self) -> usize {
        self.crew.in_flight()
    }

    /// Jobs that are done wait to be taken.
    pub(crate) fn any_done(&self) -> bool {
        self.crew.any_done()
    }

    /// Waits for the crew.
    pub(crate) fn stop(&mut self) {
        while self.crew.wait().is_some() {}
    }
}

impl<I, S, T, M> Engine<'_, I, S, T, M>
where
    I: Overlap,
    S: Source,
    T: Target + ?Sized,
    M: Monitor,
{
    /// Goes on with decompression; true if there was anything to do.
    pub(crate) fn unpack(&mut self) -> bool {
        let Some(unpacker) = &mut self.unpacker else {
            return false;
        };
        // A job has the buffer of a window that it works on.
        let read = |w: &&mut Window| w.unpacking && w.reading == 1 && !w.buf.is_empty();
        for window in self.windows.iter_mut().filter(read) {
            unpacker.take(window);
        }
        let worked = unpacker.work();
        while let Some(mut job) = unpacker.done.pop_front() {
            let serial = job.serial;
            if let Some(window) = self.windows.iter_mut().find(|w| w.serial == serial) {
                window.buf = core::mem::take(&mut job.buf);
                (window.again, window.reading) = (job.failed, 0);
            }
            job.inputs.clear();
            unpacker.free.push_back(job);
        }
        worked
    }
}
