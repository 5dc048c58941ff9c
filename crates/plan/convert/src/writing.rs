//! Windows that have been read: what of them is written, and where.

use crate::blocks::{self, Block, Stretch};
use crate::engine::{WINDOW, WRITE, size, write_error};
use crate::squeeze::Squeezer;
use crate::window::{WINDOW_BYTES, WINDOWS, Window};
use crate::{ConvertError, Engine, Monitor, Place, ReadError, Source, Target};
use alloc::vec::Vec;
use instar_storage::DataPlace;
use instar_storage::overlap::{Overlap, Transfer, Work};

impl<I, S, T, M> Engine<'_, I, S, T, M>
where
    I: Overlap,
    S: Source,
    T: Target + ?Sized,
    M: Monitor,
{
    /// Writes the windows that have been read; true if there was one.
    pub(crate) fn finish_windows(&mut self) -> Result<bool, ConvertError> {
        let mut finished = false;
        while self.spare_bytes < size(WINDOW_BYTES).saturating_mul(WINDOWS)
            && self.squeezer.as_ref().is_none_or(Squeezer::has_room)
        {
            let mut candidates = self.windows.iter();
            let ready = if self.settings.any_order {
                candidates.position(|window| window.reading == 0)
            } else {
                candidates.next().filter(|w| w.reading == 0).map(|_| 0)
            };
            let Some(window) = ready.and_then(|index| self.windows.remove(index)) else {
                break;
            };
            self.finish(window)?;
            finished = true;
        }
        Ok(finished)
    }

    /// Writes what a window holds.
    fn finish(&mut self, mut window: Window) -> Result<(), ConvertError> {
        if window.again {
            window.pieces.clear();
            self.read_whole(&mut window)?;
        }
        if window.failed.is_some() {
            window.pieces.clear();
            self.salvage(&mut window)?;
        }
        open_pieces(&mut window)?;
        self.fill_below(&mut window)?;
        // The last unit is written as a whole.
        let tail = window.len..window.len.next_multiple_of(self.rules.unit);
        if let Some(tail) = window.buf.get_mut(tail) {
            tail.fill(0);
        }
        let bytes = window.buf.get(..window.len).unwrap_or_default();
        let found = blocks::stretches(&window.parts, bytes, self.rules);
        if self.squeezer.is_some() {
            return self.squeeze_window(window, &found);
        }
        let mut data = found.iter().filter(|s| s.kind == Block::Data);
        let only = data.next().filter(|_| data.next().is_none()).cloned();
        for stretch in &found {
            let at = window.offset.saturating_add(stretch.range.start as u64);
            match stretch.kind {
                Block::Zero | Block::Blank => self.zeros(at, stretch.range.len() as u64)?,
                Block::Data if only.is_none() => self.write_part(&window, stretch)?,
                Block::Data | Block::Below => {}
            }
        }
        match only {
            Some(stretch) => self.write_window(window, &stretch),
            None => {
                self.free.push(window.buf);
                Ok(())
            }
        }
    }

    /// Reads the parts that lie below within blocks that are written.
    fn fill_below(&mut self, window: &mut Window) -> Result<(), ConvertError> {
        for range in blocks::mixed_below(&window.parts, window.len, self.rules.unit) {
            let at = window.offset.saturating_add(range.start as u64);
            let bytes = window.buf.get_mut(range).unwrap_or_default();
            let read = self.target.read_below(at, bytes);
            read.map_err(|reason| write_error(at, reason))?;
        }
        Ok(())
    }

    /// Writes a stretch of a window from the window's own buffer.
    fn write_window(&mut self, mut window: Window, stretch: &Stretch) -> Result<(), ConvertError> {
        let at = window.offset.saturating_add(stretch.range.start as u64);
        let len = stretch.range.len();
        let place = self.target.place(at, len as u64);
        let place = place.map_err(|reason| write_error(at, reason))?;
        let room = window.buf.len().saturating_sub(stretch.range.start);
        let placed = size(place.len).min(room);
        if placed < len {
            // The rest first: it is copied out of the buffer.
            let rest = Stretch {
                range: stretch.range.start.saturating_add(placed)..stretch.range.end,
                kind: stretch.kind,
            };
            self.write_part(&window, &rest)?;
        }
        let start = stretch.range.start;
        if start > 0 {
            let end = start.saturating_add(placed);
            window.buf.copy_within(start..end, 0);
        }
        let data = window.buf.get_mut(..placed).unwrap_or_default();
        self.seal_data(at, &place, data)?;
        self.backlog.push_back(Transfer {
            file: place.file,
            token: WRITE | WINDOW | at,
            work: Work::Write {
                offset: place.offset,
                len: placed,
            },
            buf: window.buf,
        });
        Ok(())
    }

    /// Writes a stretch of a window from buffers of its own.
    fn write_part(&mut self, window: &Window, stretch: &Stretch) -> Result<(), ConvertError> {
        let mut start = stretch.range.start;
        while start < stretch.range.end {
            let at = window.offset.saturating_add(start as u64);
            let left = stretch.range.end.saturating_sub(start);
            let place = self.target.place(at, left as u64);
            let place = place.map_err(|reason| write_error(at, reason))?;
            let room = window.buf.len().saturating_sub(start);
            let len = size(place.len).clamp(1, room.max(1));
            let end = start.saturating_add(len);
            let mut buf = window.buf.get(start..end).unwrap_or_default().to_vec();
            self.seal_data(at, &place, &mut buf)?;
            self.write_spare(at, place.file, place.offset, buf);
            start = end;
        }
        Ok(())
    }

    /// Enciphers what is about to be written to `place`, if the target is encrypted.
    pub(crate) fn seal_data(
        &self,
        guest: u64,
        place: &Place,
        data: &mut [u8],
    ) -> Result<(), ConvertError> {
        let Some(cipher) = self.target.cipher() else {
            return Ok(());
        };
        let at = DataPlace {
            host: place.offset,
            guest,
        };
        let sealed = cipher.encipher(at, data);
        sealed.map_err(|error| write_error(guest, error.into()))
    }

    /// Writes a buffer that is no window's.
    pub(crate) fn write_spare(&mut self, guest: u64, file: u16, offset: u64, buf: Vec<u8>) {
        self.spare_bytes = self.spare_bytes.saturating_add(buf.len());
        self.backlog.push_back(Transfer {
            file,
            token: WRITE | guest,
            work: Work::Write {
                offset,
                len: buf.len(),
            },
            buf,
        });
    }
}

/// Deciphers what of a window was read encrypted, and no job has deciphered.
fn open_pieces(window: &mut Window) -> Result<(), ConvertError> {
    for piece in &window.pieces {
        piece.open(&mut window.buf).map_err(|error| {
            let offset = window.offset.saturating_add(piece.at as u64);
            let reason = ReadError::from(error);
            ConvertError::Read { offset, reason }
        })?;
    }
    Ok(())
}
