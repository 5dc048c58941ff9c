//! Compressed clusters: given out, taken back in order, and written one behind the other.

use crate::blocks::{Block, Stretch};
use crate::engine::{size, write_error};
use crate::squeeze::{Squeeze, Squeezed};
use crate::window::Window;
use crate::{ConvertError, Engine, Monitor, Source, Target};
use alloc::vec::Vec;
use instar_storage::overlap::Overlap;

/// Compressed bytes that are written at once.
const PACK_BYTES: usize = 1 << 20;

/// Compressed clusters that lie one behind the other.
#[derive(Debug, Default)]
pub(crate) struct Pack {
    file: u16,
    /// Where the first begins in the file.
    offset: u64,
    /// The first, as the guest counts.
    guest: u64,
    bytes: Vec<u8>,
}

impl<I, S, T, M> Engine<'_, I, S, T, M>
where
    I: Overlap,
    S: Source,
    T: Target + ?Sized,
    M: Monitor,
{
    /// Has a window's clusters compressed.
    pub(crate) fn squeeze_window(
        &mut self,
        window: Window,
        found: &[Stretch],
    ) -> Result<(), ConvertError> {
        for stretch in found {
            let at = window.offset.saturating_add(stretch.range.start as u64);
            match stretch.kind {
                Block::Zero | Block::Blank => self.zeros(at, stretch.range.len() as u64)?,
                Block::Data => {
                    let bytes = window.buf.get(stretch.range.clone()).unwrap_or_default();
                    if let Some(squeezer) = &mut self.squeezer {
                        squeezer.take(at, bytes)?;
                    }
                }
                Block::Below => {}
            }
        }
        self.free.push(window.buf);
        Ok(())
    }

    /// Goes on with compression; true if there was anything to do.
    pub(crate) fn squeeze(&mut self) -> Result<bool, ConvertError> {
        let Some(mut squeezer) = self.squeezer.take() else {
            return Ok(false);
        };
        if self.next >= self.total && self.windows.is_empty() {
            squeezer.end();
        }
        let mut worked = squeezer.work();
        let mut result = Ok(());
        while let Some(job) = squeezer.next_done() {
            worked = true;
            result = self.store(&job);
            squeezer.give_back(job);
            if result.is_err() {
                break;
            }
        }
        if squeezer.is_idle() {
            self.write_pack();
        }
        self.squeezer = Some(squeezer);
        result.map(|()| worked)
    }

    /// Gives the clusters of a job their places.
    fn store(&mut self, job: &Squeeze) -> Result<(), ConvertError> {
        for (guest, squeezed) in job.results() {
            match squeezed {
                Squeezed::Packed(bytes) => self.pack(guest, bytes)?,
                Squeezed::Plain(bytes) => self.store_plain(guest, bytes)?,
            }
        }
        Ok(())
    }

    fn pack(&mut self, guest: u64, bytes: &[u8]) -> Result<(), ConvertError> {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let place = self.target.place_compressed(guest, len);
        let place = place.map_err(|reason| write_error(guest, reason))?;
        let end = self
            .pack
            .offset
            .saturating_add(self.pack.bytes.len() as u64);
        let follows = end == place.offset && self.pack.bytes.len() < PACK_BYTES;
        if !follows || self.pack.bytes.is_empty() {
            self.write_pack();
            self.pack = Pack {
                file: place.file,
                offset: place.offset,
                guest,
                // It grows with what comes: often the next cluster lies elsewhere.
                bytes: Vec::new(),
            };
        }
        self.pack.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Writes the compressed clusters that have their places.
    pub(crate) fn write_pack(&mut self) {
        let Pack {
            file,
            offset,
            guest,
            bytes,
        } = core::mem::take(&mut self.pack);
        if bytes.is_empty() {
            return;
        }
        self.write_spare(guest, file, offset, bytes);
    }

    /// Writes a cluster that did not become smaller.
    fn store_plain(&mut self, guest: u64, bytes: &[u8]) -> Result<(), ConvertError> {
        let left = size(self.total.saturating_sub(guest)).min(bytes.len());
        let mut done = 0_usize;
        while done < left {
            let at = guest.saturating_add(done as u64);
            let place = self.target.place(at, left.saturating_sub(done) as u64);
            let place = place.map_err(|reason| write_error(at, reason))?;
            let end = done.saturating_add(size(place.len).max(1)).min(bytes.len());
            let mut buf = bytes.get(done..end).unwrap_or_default().to_vec();
            self.seal_data(at, &place, &mut buf)?;
            self.write_spare(at, place.file, place.offset, buf);
            done = end;
        }
        Ok(())
    }
}
