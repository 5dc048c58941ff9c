//! Reads ahead in both chains, and writes of what differs.
//!
//! ```text
//!   walk --> window: reads in flight --> in order: judged --> places, writes in flight --> buffer free
//! ```
//!
//! Entries of tables that lead to what was written are written by a commit of the image, before which all writes have
//! ended.

use crate::pack::Packer;
use crate::walk::{Chains, Walk};
use crate::window::{Side, WINDOW_BYTES, Window, one_place, size};
use crate::{Image, Monitor, RebaseError, judge};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::ops::Range;
use instar_codec::Decoder;
use instar_layers::Chain;
use instar_plan_write::{Below, WriteError, WriteImage};
use instar_storage::overlap::{Done, Overlap, Transfer, Work};
use instar_storage::{DataPlace, Storage, StorageMut};

/// Buffers of a window's length.
pub const BUFFERS: usize = 12;
/// Bytes of other buffers that are being written.
pub const SPARE_BYTES: u64 = 8 << 20;
/// Windows that are read at once.
const DEPTH: usize = 3;
/// Token of a write.
const WRITE: u64 = 1 << 63;
/// Token of a write whose buffer is a window's.
const WHOLE: u64 = 1 << 62;

/// How requests of the files overlap.
pub struct Io<'a, S, O> {
    /// Takes requests of all files of both chains, and of the image.
    pub overlap: &'a O,
    /// The number of a file there.
    pub number: fn(&S) -> u16,
}

impl<S, O> core::fmt::Debug for Io<'_, S, O> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Io")
    }
}

/// Makes what the old chain shows the image's own wherever the new one shows something else; compressed if so asked.
/// It is durable then. Gives how many bytes of the disk were looked at in both chains.
///
/// # Errors
/// The image shows what it did; a part may have been copied.
pub fn copy_differences<S: StorageMut, O: Overlap>(
    image: Image<'_, S>,
    chains: Chains<'_, S>,
    compress: bool,
    io: &Io<'_, S, O>,
    monitor: &mut impl Monitor,
) -> Result<u64, RebaseError> {
    let cluster = size(image.header.cluster_bits.size_bytes());
    let extended = image.header.incompatible.extended_l2();
    let mut copy = Copy {
        image,
        chains,
        io,
        walk: Walk::new(image, chains),
        writer: None,
        packer: if compress {
            Some(Packer::new(image.header.compression_type, cluster)?)
        } else {
            None
        },
        unit: if extended && !compress {
            cluster >> 5
        } else {
            cluster
        },
        windows: VecDeque::new(),
        ended: None,
        free: Vec::new(),
        made: 0,
        token: 0,
        spare_bytes: 0,
        codec: Decoder::new(),
    };
    let done = copy.run(monitor);
    // Buffers belong to the requests until these have ended.
    while io.overlap.wait().is_some() {}
    done
}

/// A copy under way.
pub(crate) struct Copy<'a, S, O> {
    pub image: Image<'a, S>,
    pub chains: Chains<'a, S>,
    io: &'a Io<'a, S, O>,
    walk: Walk<'a, S>,
    /// Open once something differs.
    pub writer: Option<WriteImage<'a, S>>,
    pub packer: Option<Packer>,
    /// Bytes that become the image's own together.
    unit: usize,
    windows: VecDeque<Window>,
    /// The walk is over, or failed.
    ended: Option<Result<(), RebaseError>>,
    free: Vec<Vec<u8>>,
    made: usize,
    token: u64,
    spare_bytes: u64,
    pub codec: Decoder,
}

impl<S: StorageMut, O: Overlap> Copy<'_, S, O> {
    fn run(&mut self, monitor: &mut impl Monitor) -> Result<u64, RebaseError> {
        let total = self.walk.len_bytes();
        while let Some(window) = self.next_window()? {
            self.write(window)?;
            if self.writer.as_ref().is_some_and(WriteImage::is_full) {
                self.commit()?;
            }
            monitor.progress(self.walk.compared, total)?;
        }
        self.commit()?;
        if let Some(writer) = &mut self.writer {
            writer.finish()?;
        }
        Ok(self.walk.compared)
    }

    /// Waits for all writes, then makes them the image's.
    fn commit(&mut self) -> Result<(), RebaseError> {
        while self.io.overlap.in_flight() > 0 {
            self.land_next()?;
        }
        if let Some(writer) = &mut self.writer {
            writer.commit()?;
            self.walk.refresh();
        }
        Ok(())
    }

    /// The next window with its bytes; `None` at the end.
    fn next_window(&mut self) -> Result<Option<Window>, RebaseError> {
        self.read_ahead()?;
        while self.windows.front().is_some_and(Window::is_flying) {
            self.land_next()?;
        }
        let Some(mut window) = self.windows.pop_front() else {
            return self.ended.take().unwrap_or(Ok(())).map(|()| None);
        };
        let Chains { old, new, .. } = self.chains;
        let late = window.read_late(0, old, &mut self.codec);
        late.map_err(RebaseError::Old)?;
        let late = window.read_late(1, new, &mut self.codec);
        late.map_err(RebaseError::New)?;
        Ok(Some(window))
    }

    /// Begins to read more windows, as far as there are buffers.
    fn read_ahead(&mut self) -> Result<(), RebaseError> {
        while self.ended.is_none() && self.windows.len() < DEPTH {
            let room = BUFFERS.saturating_sub(self.made);
            if self.free.len().saturating_add(room) < 2 {
                if !self.windows.is_empty() {
                    break;
                }
                // All are being written.
                self.land_next()?;
                continue;
            }
            let mut parts = Vec::new();
            match self.walk.next(&mut parts) {
                Ok(Some(start)) => {
                    let mut window = Window {
                        start,
                        parts,
                        sides: [Side::Later(Vec::new()), Side::Later(Vec::new())],
                    };
                    let Chains { old, new, .. } = self.chains;
                    for (side, chain) in [old, new].into_iter().enumerate() {
                        let begun = self.begin(side, &window, chain)?;
                        if let Some(slot) = window.sides.get_mut(side) {
                            *slot = begun;
                        }
                    }
                    self.windows.push_back(window);
                }
                Ok(None) => self.ended = Some(Ok(())),
                Err(error) => self.ended = Some(Err(error)),
            }
        }
        self.io.overlap.kick();
        Ok(())
    }

    /// Begins to read what a window needs of a chain, if that is one place of a file.
    fn begin(
        &mut self,
        side: usize,
        window: &Window,
        chain: Option<&Chain<S>>,
    ) -> Result<Side, RebaseError> {
        let is_read = window.parts.iter().any(|part| part.kind.is_read(side));
        let Some(chain) = chain.filter(|_| is_read) else {
            let buf = Vec::new();
            return Ok(Side::Ready { buf, base: 0 });
        };
        let buf = self.buffer()?;
        let (start, parts) = (window.start, &window.parts);
        let place = one_place(side, start, parts, chain, self.io.number);
        let Some((file, offset, range)) = place else {
            return Ok(Side::Later(buf));
        };
        self.token = self.token.wrapping_add(1) & !(WRITE | WHOLE);
        let (token, base, len) = (self.token, range.start, range.len());
        let transfer = Transfer {
            file,
            token,
            work: Work::Read { offset, len },
            buf,
        };
        Ok(match self.io.overlap.submit(transfer) {
            Ok(()) => Side::Flying { token, base },
            Err(transfer) => Side::Later(transfer.buf),
        })
    }

    fn buffer(&mut self) -> Result<Vec<u8>, RebaseError> {
        if let Some(buf) = self.free.pop() {
            return Ok(buf);
        }
        let len = size(WINDOW_BYTES);
        let mut buf = Vec::new();
        let reserved = buf.try_reserve_exact(len);
        reserved.map_err(|_| RebaseError::OutOfMemory)?;
        buf.resize(len, 0);
        self.made = self.made.saturating_add(1);
        Ok(buf)
    }

    /// Waits for a request, and takes it back.
    fn land_next(&mut self) -> Result<(), RebaseError> {
        match self.io.overlap.wait() {
            Some(done) => self.land(done),
            None => Err(RebaseError::OutOfMemory),
        }
    }

    fn land(&mut self, done: Done) -> Result<(), RebaseError> {
        if done.token & WRITE == 0 {
            let sides = self.windows.iter_mut().flat_map(|window| &mut window.sides);
            for side in sides {
                if let Side::Flying { token, base } = side
                    && *token == done.token
                {
                    let (buf, base) = (done.buf, *base);
                    *side = match done.result {
                        Ok(()) => Side::Ready { buf, base },
                        // Read again by itself, which tells what is wrong.
                        Err(_) => Side::Later(buf),
                    };
                    break;
                }
            }
            return Ok(());
        }
        if done.token & WHOLE != 0 {
            self.free.push(done.buf);
        } else {
            let bytes = done.buf.len() as u64;
            self.spare_bytes = self.spare_bytes.saturating_sub(bytes);
        }
        done.result
            .map_err(|e| RebaseError::Write { errno: e.errno })
    }

    /// Writes what of a window differs.
    fn write(&mut self, mut window: Window) -> Result<(), RebaseError> {
        let found = judge::differences(&window, self.unit);
        if !found.is_empty() && self.writer.is_none() {
            self.open()?;
        }
        let alone = found.len() == 1;
        for range in found {
            let (data, zeros) = self.split(&window, range);
            if !zeros.is_empty() {
                self.zeros(&mut window, zeros)?;
            }
            if data.is_empty() {
                continue;
            }
            if self.packer.is_some() {
                self.pack(&mut window, data)?;
            } else {
                self.plain(&mut window, data, alone)?;
            }
        }
        let buffers = window.sides.into_iter().filter_map(Side::into_buffer);
        self.free.extend(buffers.filter(|buf| !buf.is_empty()));
        Ok(())
    }

    fn open(&mut self) -> Result<(), RebaseError> {
        let below = Old {
            chain: self.chains.old,
            codec: Decoder::new(),
        };
        let Image {
            storage,
            data,
            header,
            cipher,
        } = self.image;
        let codec = Box::new(Decoder::new());
        let below = Box::new(below);
        self.writer = Some(WriteImage::open_with(
            storage, data, header, below, codec, cipher,
        )?);
        Ok(())
    }

    /// A stretch of units, parted into those that are data and those that begin where the old chain has ended, which
    /// are zeros by the tables if there is a flag for that.
    fn split(&self, window: &Window, range: Range<usize>) -> (Range<usize>, Range<usize>) {
        let end = self.chains.old_end().saturating_sub(window.start);
        let cut = size(end).checked_next_multiple_of(self.unit);
        let cut = cut.unwrap_or(usize::MAX).clamp(range.start, range.end);
        if self.image.header.version < 3 {
            return (range.clone(), range.end..range.end);
        }
        (range.start..cut, cut..range.end)
    }

    /// Makes a range of whole units zeros.
    fn zeros(&mut self, window: &mut Window, range: Range<usize>) -> Result<(), RebaseError> {
        for range in window.not_kept(&range) {
            // A part of a subcluster, at the disk's end, has no flag of its own.
            let unit = match &self.writer {
                Some(writer) if self.image.header.incompatible.extended_l2() => writer.unit_bytes(),
                _ => 1,
            };
            let end = range.end & !size(unit).saturating_sub(1);
            let end = end.max(range.start);
            let (guest, len) = (window.guest(range.start), end.saturating_sub(range.start));
            if let Some(writer) = &mut self.writer
                && len > 0
            {
                writer.zeros(guest, len as u64)?;
            }
            if end < range.end {
                self.plain(window, end..range.end, false)?;
            }
        }
        Ok(())
    }

    /// Writes what the old chain shows in a range, as it is. `alone`: nothing else of the window is written.
    pub fn plain(
        &mut self,
        window: &mut Window,
        range: Range<usize>,
        alone: bool,
    ) -> Result<(), RebaseError> {
        let mut at = range.start;
        while at < range.end {
            let (guest, left) = (window.guest(at), range.end.saturating_sub(at));
            let writer = self.writer.as_mut().ok_or(RebaseError::OutOfMemory)?;
            let place = writer.place(guest, left as u64)?;
            let len = size(place.len).clamp(1, left);
            let piece = at..at.saturating_add(len);
            at = piece.end;
            let whole = if alone && piece == range {
                window.take_old(&piece)
            } else {
                None
            };
            let (token, mut buf) = match whole {
                Some(buf) => (WRITE | WHOLE, buf),
                None => (WRITE, self.old_bytes(window, &piece)?),
            };
            if let Some(cipher) = self.image.cipher {
                let at = DataPlace {
                    host: place.offset,
                    guest,
                };
                let sealed = cipher.encipher(at, buf.get_mut(..len).unwrap_or_default());
                sealed.map_err(|e| RebaseError::Write { errno: e.errno })?;
            }
            self.submit(place.in_data_file, place.offset, token, len, buf)?;
        }
        Ok(())
    }

    /// What the old chain shows in a range.
    pub fn old_bytes(
        &mut self,
        window: &Window,
        range: &Range<usize>,
    ) -> Result<Vec<u8>, RebaseError> {
        let mut buf = Vec::new();
        window.old_bytes(range, self.chains.old, &mut self.codec, &mut buf)?;
        Ok(buf)
    }

    /// Writes a buffer that is no window's.
    pub fn submit_spare(&mut self, offset: u64, buf: Vec<u8>) -> Result<(), RebaseError> {
        let len = buf.len();
        self.submit(false, offset, WRITE, len, buf)
    }

    fn submit(
        &mut self,
        in_data_file: bool,
        offset: u64,
        token: u64,
        len: usize,
        buf: Vec<u8>,
    ) -> Result<(), RebaseError> {
        if token & WHOLE == 0 {
            self.spare_bytes = self.spare_bytes.saturating_add(buf.len() as u64);
            while self.spare_bytes > SPARE_BYTES && self.io.overlap.in_flight() > 0 {
                self.land_next()?;
            }
        }
        let data = self.image.data.filter(|_| in_data_file);
        let mut transfer = Transfer {
            file: (self.io.number)(data.unwrap_or(self.image.storage)),
            token,
            work: Work::Write { offset, len },
            buf,
        };
        while let Err(refused) = self.io.overlap.submit(transfer) {
            transfer = refused;
            self.land_next()?;
        }
        Ok(())
    }
}

/// The old chain, for what surrounds the units that are written.
struct Old<'a, S> {
    chain: Option<&'a Chain<S>>,
    codec: Decoder,
}

impl<S: Storage> Below for Old<'_, S> {
    fn read_below(&mut self, guest: u64, buf: &mut [u8]) -> Result<(), WriteError> {
        let left = self.chain.map_or(0, Chain::len_bytes);
        let left = size(left.saturating_sub(guest)).min(buf.len());
        let (inside, past) = buf.split_at_mut(left);
        past.fill(0);
        match self.chain {
            Some(chain) if !inside.is_empty() => {
                Ok(chain.read_at(guest, inside, &mut self.codec)?)
            }
            _ => Ok(()),
        }
    }
}
