//! Windows: what they consist of, and how their bytes come.

use crate::engine::{PIECE_BITS, size};
use crate::error::Salvaged;
use crate::source::{Span, What};
use crate::window::{Part, PartKind, Piece, Seal, WINDOW_BYTES, Window};
use crate::{ConvertError, Engine, Monitor, Source, Target};
use alloc::vec::Vec;
use instar_storage::overlap::{Overlap, Transfer, Work};

/// A stretch without data ends a window if it is this long, in bytes.
const BREAK_BYTES: u64 = 64 << 10;
/// Reads of a window that are done by requests of their own; more go in one batch.
const MAX_PIECES: usize = 128;
/// Compressed bytes of a window that is decompressed by a job.
const MAX_INPUT_BYTES: u64 = 2 * WINDOW_BYTES;
/// Bytes of a sector, the least that is salvaged.
const SECTOR: usize = 512;
const SECTOR_BYTES: u64 = SECTOR as u64;

impl<I, S, T, M> Engine<'_, I, S, T, M>
where
    I: Overlap,
    S: Source,
    T: Target + ?Sized,
    M: Monitor,
{
    /// Begins to read the window at `at`.
    pub(crate) fn open_window(&mut self, at: u64) -> Result<(), ConvertError> {
        let mut window = self.plan_window(at)?;
        self.next = at.saturating_add(window.len as u64);
        self.pace(window.len as u64);
        let mut buf = match self.free.pop() {
            Some(buf) => buf,
            None => self.new_buffer()?,
        };
        window.buf = core::mem::take(&mut buf);
        if self.is_read_whole(&window) {
            window.pieces.clear();
            (window.streams, window.inputs) = (Vec::new(), Vec::new());
            self.read_whole(&mut window)?;
        } else {
            self.read_pieces(&mut window);
        }
        self.windows.push_back(window);
        Ok(())
    }

    /// Whether only the source itself can give the bytes of `window`, or does it with fewer requests.
    fn is_read_whole(&self, window: &Window) -> bool {
        let requests = window.pieces.len().saturating_add(window.inputs.len());
        let bytes = window.inputs.iter().map(|input| input.len);
        let bytes = bytes.fold(0, u64::saturating_add);
        window.packed
            || requests > MAX_PIECES
            || bytes > MAX_INPUT_BYTES
            || (!window.streams.is_empty() && self.unpacker.is_none())
    }

    /// Has the source read a window, which waits for it.
    pub(crate) fn read_whole(&self, window: &mut Window) -> Result<(), ConvertError> {
        let offset = window.offset;
        let bytes = window.buf.get_mut(..window.len).unwrap_or_default();
        if let Err(reason) = self.source.read_at(offset, bytes) {
            if !self.settings.salvage {
                return Err(ConvertError::Read { offset, reason });
            }
            window.failed = Some((offset, reason.errno));
        }
        Ok(())
    }

    /// Begins to read the pieces of a window, and what its clusters are compressed to.
    fn read_pieces(&mut self, window: &mut Window) {
        clear(&mut window.buf, &window.parts);
        let sealed = window.pieces.iter().any(|piece| piece.seal.is_some());
        window.unpacking = !window.streams.is_empty() || (sealed && self.unpacker.is_some());
        match window.pieces.as_slice() {
            [only] if only.at == 0 && window.streams.is_empty() => {
                let buf = core::mem::take(&mut window.buf);
                self.read(window, 0, *only, buf);
                window.reading = 1_usize.saturating_add(window.unpacking.into());
            }
            pieces => {
                for (index, piece) in pieces.iter().enumerate() {
                    self.read(window, index, *piece, alloc::vec![0; piece.len]);
                }
                for (index, input) in (pieces.len()..).zip(&window.inputs) {
                    let piece = Piece {
                        at: 0,
                        len: size(input.len),
                        file: input.file,
                        offset: input.offset,
                        seal: None,
                    };
                    self.read(window, index, piece, alloc::vec![0; piece.len]);
                }
                let requests = pieces.len().saturating_add(window.inputs.len());
                window.reading = requests.saturating_add(window.unpacking.into());
            }
        }
    }

    /// What the window at `at` consists of.
    fn plan_window(&mut self, at: u64) -> Result<Window, ConvertError> {
        self.serial = self.serial.wrapping_add(1) & (u64::MAX >> (PIECE_BITS.saturating_add(2)));
        let mut window = Window {
            serial: self.serial,
            offset: at,
            len: 0,
            parts: Vec::new(),
            pieces: Vec::new(),
            packed: false,
            streams: Vec::new(),
            inputs: Vec::new(),
            unpacking: false,
            again: false,
            reading: 0,
            failed: None,
            buf: Vec::new(),
        };
        let mut end = at.saturating_add(WINDOW_BYTES).min(self.total);
        let mut here = at;
        while here < end {
            let span = self.span(here)?;
            let no_data = match span.what {
                What::Zero => !self.settings.fill,
                What::Below => true,
                What::Data { .. } | What::Sealed { .. } | What::Packed(_) => false,
            };
            if no_data && here > at && span.len >= BREAK_BYTES.max(self.block) {
                let block_end = here.checked_next_multiple_of(self.block);
                end = end.min(block_end.unwrap_or(end));
            }
            let len = span.len.min(end.saturating_sub(here));
            if len > 0 {
                let seal = self.seal(&span);
                let at = size(here.saturating_sub(at));
                add_part(&mut window, at, size(len), span.what, seal);
            }
            here = here.saturating_add(len);
        }
        window.len = size(end.saturating_sub(at));
        Ok(window)
    }

    /// How a span is encrypted.
    fn seal(&self, span: &Span) -> Option<Seal> {
        match span.what {
            What::Sealed { file, guest, .. } => {
                let cipher = self.source.cipher(file)?;
                Some(Seal { cipher, guest })
            }
            _ => None,
        }
    }

    fn read(&mut self, window: &Window, index: usize, piece: Piece, buf: Vec<u8>) {
        self.backlog.push_back(Transfer {
            file: piece.file,
            token: (window.serial << PIECE_BITS) | index as u64,
            work: Work::Read {
                offset: piece.offset,
                len: piece.len,
            },
            buf,
        });
    }

    fn new_buffer(&mut self) -> Result<Vec<u8>, ConvertError> {
        let total = self.total.checked_next_multiple_of(self.block);
        let len = size(WINDOW_BYTES.min(total.unwrap_or(WINDOW_BYTES)));
        let mut buf = Vec::new();
        buf.try_reserve_exact(len)
            .map_err(|_| ConvertError::OutOfMemory)?;
        buf.resize(len, 0);
        self.buffers = self.buffers.saturating_add(1);
        Ok(buf)
    }

    /// Reads a window again sector by sector; what cannot be read becomes zeros.
    pub(crate) fn salvage(&mut self, window: &mut Window) -> Result<(), ConvertError> {
        let bytes = window.buf.get_mut(..window.len).unwrap_or_default();
        for (index, sector) in bytes.chunks_mut(SECTOR).enumerate() {
            let skip = (index as u64).saturating_mul(SECTOR as u64);
            let offset = window.offset.saturating_add(skip);
            if let Err(error) = self.source.read_at(offset, sector) {
                sector.fill(0);
                let errno = error.errno;
                self.monitor.salvaged(Salvaged { offset, errno });
            }
        }
        self.monitor.progress(self.next, self.total)?;
        Ok(())
    }
}

/// Adds a span to a window.
fn add_part(window: &mut Window, at: usize, len: usize, what: What, seal: Option<Seal>) {
    let kind = match what {
        What::Zero => PartKind::Zero,
        What::Below => PartKind::Below,
        What::Packed(stream) => {
            match stream.filter(|stream| len == size(stream.cluster_bytes.into())) {
                Some(stream) => window.add_stream(at, stream),
                None => window.packed = true,
            }
            PartKind::Data
        }
        What::Data { file, offset } | What::Sealed { file, offset, .. } => {
            let is_sealed = matches!(what, What::Sealed { .. });
            let whole = offset.is_multiple_of(SECTOR_BYTES) && len.is_multiple_of(SECTOR);
            // Parts of encrypted sectors are their image's affair.
            window.packed |= is_sealed && !(whole && seal.is_some());
            window.pieces.push(Piece {
                at,
                len,
                file,
                offset,
                seal,
            });
            PartKind::Data
        }
    };
    match window.parts.last_mut() {
        Some(last) if last.kind == kind => last.len = last.len.saturating_add(len),
        _ => window.parts.push(Part { at, len, kind }),
    }
}

/// Clears the parts that no read fills.
fn clear(buf: &mut [u8], parts: &[Part]) {
    for part in parts.iter().filter(|part| part.kind != PartKind::Data) {
        let end = part.at.saturating_add(part.len);
        if let Some(bytes) = buf.get_mut(part.at..end) {
            bytes.fill(0);
        }
    }
}
