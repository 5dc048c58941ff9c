//! The pipeline.

use crate::blocks::Rules;
use crate::error::Salvaged;
use crate::packing::Pack;
use crate::source::What;
use crate::squeeze::Squeezer;
use crate::target::Zeros;
use crate::unpack::Unpacker;
use crate::window::{WINDOW_BYTES, WINDOWS, Window};
use crate::{ConvertError, ReadError, Source, Target, TargetError};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use instar_storage::overlap::{Done, Overlap, Transfer, Work};

/// Longest request to copy, in bytes.
const COPY_BYTES: u64 = 16 << 20;
/// Requests to copy that are on their way at once.
const COPIES: usize = 4;
/// Longest request to make zeros, in bytes.
const ZERO_BYTES: u64 = 1 << 30;
/// Token of what is no read.
pub(crate) const WRITE: u64 = 1 << 63;
/// Token of a write whose buffer is a window's.
pub(crate) const WINDOW: u64 = 1 << 62;
/// Bits of a read's token that number it within its window.
pub(crate) const PIECE_BITS: u32 = 16;

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

    /// Says that bytes could not be read, and zeros stand for them.
    fn salvaged(&mut self, what: Salvaged);

    /// Waits until more may be copied than the `done` bytes.
    fn pace(&mut self, done: u64, total: u64);
}

/// How to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Zeros from this length on are left out, in bytes; 0: bytes are not looked at.
    pub sparse_bytes: u64,
    /// Zeros that the tables say are written, too.
    pub fill: bool,
    /// The host copies what need not be looked at.
    pub copy: bool,
    /// What cannot be read becomes zeros.
    pub salvage: bool,
    /// Windows may be written in another order than read.
    pub any_order: bool,
}

/// Copies a source into a target.
#[derive(Debug)]
pub struct Engine<'a, I, S, T: ?Sized, M> {
    pub(crate) io: &'a I,
    pub(crate) source: &'a S,
    pub(crate) target: &'a mut T,
    pub(crate) monitor: &'a mut M,
    pub(crate) settings: Settings,
    pub(crate) rules: Rules,
    pub(crate) block: u64,
    pub(crate) total: u64,
    pub(crate) next: u64,
    /// Bytes whose copying has begun; what is no data does not count.
    pub(crate) moved: u64,
    pub(crate) serial: u64,
    pub(crate) windows: VecDeque<Window>,
    pub(crate) free: Vec<Vec<u8>>,
    pub(crate) buffers: usize,
    pub(crate) backlog: VecDeque<Transfer>,
    pub(crate) spare_bytes: usize,
    pub(crate) others: usize,
    pub(crate) squeezer: Option<Squeezer<'a>>,
    pub(crate) unpacker: Option<Unpacker<'a>>,
    pub(crate) pack: Pack,
}

impl<'a, I, S, T, M> Engine<'a, I, S, T, M>
where
    I: Overlap,
    S: Source,
    T: Target + ?Sized,
    M: Monitor,
{
    /// An engine that has copied nothing yet. With a squeezer the target is compressed.
    pub fn new(
        io: &'a I,
        source: &'a S,
        target: &'a mut T,
        monitor: &'a mut M,
        settings: Settings,
        squeezer: Option<Squeezer<'a>>,
    ) -> Self {
        let (unit, sparse) = match &squeezer {
            // Of what is compressed every cluster counts by itself.
            Some(_) if settings.sparse_bytes > 0 => (target.cluster(), target.cluster()),
            Some(_) => (target.cluster(), 0),
            None => (target.unit(), settings.sparse_bytes.min(WINDOW_BYTES)),
        };
        // Blocks are aligned, so only powers of two serve.
        let aligned = match sparse {
            0 => 1,
            bytes => 1 << bytes.ilog2(),
        };
        let block = unit.max(aligned).clamp(512, WINDOW_BYTES);
        Self {
            io,
            source,
            settings,
            rules: Rules {
                unit: size(unit),
                block: size(aligned.max(512)),
                sparse: size(sparse),
                fill: settings.fill,
            },
            block,
            total: source.len_bytes(),
            next: 0,
            moved: 0,
            serial: 0,
            windows: VecDeque::new(),
            free: Vec::new(),
            buffers: 0,
            backlog: VecDeque::new(),
            spare_bytes: 0,
            others: 0,
            squeezer,
            unpacker: None,
            pack: Pack::default(),
            target,
            monitor,
        }
    }

    /// Has compressed clusters of the source decompressed by jobs, besides on this core.
    #[must_use]
    pub fn unpacking(mut self, unpacker: Option<Unpacker<'a>>) -> Self {
        self.unpacker = unpacker;
        self
    }

    /// Copies everything. Nothing is in flight when it returns.
    ///
    /// # Errors
    /// The first failure; part of the copy may have been written.
    pub fn run(&mut self) -> Result<(), ConvertError> {
        let done = self.copy_all();
        // Buffers belong to the requests until these have ended.
        while self.io.wait().is_some() {}
        if let Some(squeezer) = &mut self.squeezer {
            squeezer.stop();
        }
        if let Some(unpacker) = &mut self.unpacker {
            unpacker.stop();
        }
        done
    }

    fn copy_all(&mut self) -> Result<(), ConvertError> {
        loop {
            let started = self.start()?;
            let mut finished = self.unpack();
            finished |= self.finish_windows()?;
            finished |= self.squeeze()?;
            self.send();
            self.commit_full()?;
            self.monitor.progress(self.next, self.total)?;
            if self.is_done() {
                return Ok(());
            }
            let mut done = self.io.poll();
            if done.is_none() && !started && !finished {
                done = self.wait();
            }
            while let Some(ended) = done {
                self.ended(ended)?;
                done = self.io.poll();
            }
        }
    }

    /// Lets a target that is full write its tables, once everything that it gave places to is written.
    fn commit_full(&mut self) -> Result<(), ConvertError> {
        if !self.target.is_full() {
            return Ok(());
        }
        self.write_pack();
        loop {
            self.send();
            match self.io.wait() {
                Some(ended) => self.ended(ended)?,
                None => break,
            }
        }
        let committed = self.target.commit();
        committed.map_err(|reason| write_error(self.next, reason))
    }

    fn is_done(&self) -> bool {
        self.next >= self.total
            && self.windows.is_empty()
            && self.backlog.is_empty()
            && self.squeezer.as_ref().is_none_or(Squeezer::is_idle)
            && self.io.in_flight() == 0
    }

    /// Waits for a request, or for a job of a crew.
    fn wait(&self) -> Option<Done> {
        let squeezing = self.squeezer.as_ref().map_or(0, Squeezer::in_flight);
        let unpacking = self.unpacker.as_ref().map_or(0, Unpacker::in_flight);
        if squeezing == 0 && unpacking == 0 {
            return self.io.wait();
        }
        let squeezed = self.squeezer.as_ref().is_some_and(Squeezer::any_done);
        let unpacked = self.unpacker.as_ref().is_some_and(Unpacker::any_done);
        if !squeezed && !unpacked {
            self.io.idle();
        }
        self.io.poll()
    }

    /// Begins with what comes next, as far as there is room; true if it did.
    fn start(&mut self) -> Result<bool, ConvertError> {
        let mut started = false;
        while self.next < self.total
            && self.windows.len() < WINDOWS
            && (!self.free.is_empty() || self.buffers < WINDOWS)
            && self.others < COPIES
            && self.backlog.is_empty()
            && !self.target.is_full()
        {
            if !self.step()? {
                break;
            }
            self.send();
            started = true;
        }
        Ok(started)
    }

    /// Begins with the span that comes next; false if windows before it have to get their places first.
    fn step(&mut self) -> Result<bool, ConvertError> {
        let at = self.next;
        let span = self.span(at)?;
        let whole = self.whole_blocks(at, span.len);
        match span.what {
            What::Zero if !self.settings.fill && whole > 0 => {
                if !self.windows.is_empty() && self.target.keeps_order() {
                    return Ok(false);
                }
                let len = whole.min(self.target.longest_zeros());
                self.zeros(at, len)?;
                self.next = at.saturating_add(len);
            }
            What::Below if whole > 0 => self.next = at.saturating_add(whole),
            What::Data { file, offset } if self.copies() && whole > 0 => {
                if !self.windows.is_empty() && !self.settings.any_order {
                    return Ok(false);
                }
                let len = whole.min(COPY_BYTES);
                self.pace(len);
                self.copy(at, file, offset, len)?;
                self.next = at.saturating_add(len);
            }
            _ => self.open_window(at)?,
        }
        Ok(true)
    }

    /// Whether the host copies data that need not be looked at.
    fn copies(&self) -> bool {
        self.settings.copy && self.target.cipher().is_none()
    }

    /// Waits until `len` bytes more may be copied.
    pub(crate) fn pace(&mut self, len: u64) {
        self.monitor.pace(self.moved, self.total);
        self.moved = self.moved.saturating_add(len);
    }

    pub(crate) fn span(&self, at: u64) -> Result<crate::Span, ConvertError> {
        let left = self.total.saturating_sub(at);
        let mut span = self.source.span_at(at, left).map_err(|reason| {
            // Where a table is damaged, nothing says whether data was meant.
            ConvertError::Status { offset: at, reason }
        })?;
        span.len = span.len.clamp(1, left.max(1));
        Ok(span)
    }

    /// Bytes of whole blocks from `at`, a block's first byte, within `len` bytes.
    fn whole_blocks(&self, at: u64, len: u64) -> u64 {
        let end = at.saturating_add(len);
        if end >= self.total {
            return self.total.saturating_sub(at);
        }
        self.floor(end).saturating_sub(at)
    }

    pub(crate) fn floor(&self, at: u64) -> u64 {
        at & !self.block.saturating_sub(1)
    }

    /// Has the host copy `len` bytes.
    fn copy(&mut self, at: u64, from: u16, offset: u64, len: u64) -> Result<(), ConvertError> {
        let mut done = 0;
        while done < len {
            let guest = at.saturating_add(done);
            let place = self.target.place(guest, len.saturating_sub(done));
            let place = place.map_err(|reason| write_error(guest, reason))?;
            self.others = self.others.saturating_add(1);
            self.backlog.push_back(Transfer {
                file: place.file,
                token: WRITE | guest,
                work: Work::Copy {
                    from,
                    from_offset: offset.saturating_add(done),
                    offset: place.offset,
                    len: place.len,
                },
                buf: Vec::new(),
            });
            done = done.saturating_add(place.len.max(1));
        }
        Ok(())
    }

    /// Makes `len` bytes read as zeros.
    pub(crate) fn zeros(&mut self, at: u64, len: u64) -> Result<(), ConvertError> {
        let zeros = self.target.zeros(at, len);
        let zeros = zeros.map_err(|reason| write_error(at, reason))?;
        let Zeros::Request { file, offset } = zeros else {
            return Ok(());
        };
        let mut done = 0;
        while done < len {
            let now = len.saturating_sub(done).min(ZERO_BYTES);
            self.others = self.others.saturating_add(1);
            self.backlog.push_back(Transfer {
                file,
                token: WRITE | at.saturating_add(done),
                work: Work::Zero {
                    offset: offset.saturating_add(done),
                    len: now,
                },
                buf: Vec::new(),
            });
            done = done.saturating_add(now);
        }
        Ok(())
    }

    /// Submits what waits, as far as there is room.
    fn send(&mut self) {
        while let Some(transfer) = self.backlog.pop_front() {
            if let Err(transfer) = self.io.submit(transfer) {
                self.backlog.push_front(transfer);
                return;
            }
        }
    }

    /// Takes back a request that has ended.
    fn ended(&mut self, done: Done) -> Result<(), ConvertError> {
        if done.token & WRITE == 0 {
            self.read_ended(done)
        } else {
            self.write_ended(done)
        }
    }

    fn read_ended(&mut self, done: Done) -> Result<(), ConvertError> {
        let serial = done.token >> PIECE_BITS;
        let index = size(done.token & (1_u64 << PIECE_BITS).saturating_sub(1));
        let salvage = self.settings.salvage;
        let Some(window) = self.windows.iter_mut().find(|w| w.serial == serial) else {
            return Ok(());
        };
        let at = window.pieces.get(index).map_or(0, |piece| piece.at);
        let offset = window.offset.saturating_add(at as u64);
        window.take(index, done.buf);
        window.reading = window.reading.saturating_sub(1);
        match done.result {
            Ok(()) => {}
            Err(_) if window.unpacking => window.again = true,
            Err(error) if salvage => window.failed = Some((offset, error.errno)),
            Err(error) => {
                let reason = ReadError::from(error);
                return Err(ConvertError::Read { offset, reason });
            }
        }
        Ok(())
    }

    fn write_ended(&mut self, done: Done) -> Result<(), ConvertError> {
        let guest = done.token & !(WRITE | WINDOW);
        if let Err(error) = done.result {
            return Err(write_error(guest, error.into()));
        }
        if done.token & WINDOW != 0 {
            self.free.push(done.buf);
        } else if done.buf.is_empty() {
            self.others = self.others.saturating_sub(1);
        } else {
            self.spare_bytes = self.spare_bytes.saturating_sub(done.buf.len());
        }
        Ok(())
    }
}

pub(crate) fn write_error(offset: u64, reason: TargetError) -> ConvertError {
    ConvertError::Write { offset, reason }
}

/// A number of bytes that is known to fit memory.
pub(crate) fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
