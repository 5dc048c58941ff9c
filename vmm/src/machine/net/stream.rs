//! Frames on a stream: each behind its length, four bytes, the highest first. QEMU `net/stream.c`, passt `tap.c`.
//!
//! Frames that come are read as many as there are, and handed on one by one. A frame that the socket takes in part is kept
//! as a whole, so that what the other side reads is always frames: nobody finds the beginning of the next one otherwise.

use super::super::vectors;
use instar_devices::net::{NetBackend, Offloads};
use instar_shared::net::Header;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use std::io;
use std::iter;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use vm_memory::VolatileSlice;

/// Length of virtio-net's header in bytes, which is not on the stream. VirtIO 1.3 §5.1.6.
const HEADER_BYTES: usize = size_of::<Header>();
/// Length of a frame's length in bytes.
const LENGTH_BYTES: usize = 4;
/// Shortest frame in bytes: an Ethernet header.
const MIN_FRAME_BYTES: usize = 14;
/// Longest frame in bytes. passt ends when it hears of a longer one, or of a shorter one than the shortest.
const MAX_FRAME_BYTES: usize = 65_535;
/// Bytes that are read ahead: two of the longest frames.
const AHEAD_BYTES: usize = 2 * (LENGTH_BYTES + MAX_FRAME_BYTES);

/// A stream of frames behind a network card.
#[derive(Debug)]
pub(super) struct Stream {
    socket: OwnedFd,
    ahead: Vec<u8>,
    /// Of it, what was handed on.
    start: usize,
    /// Of it, what was read.
    end: usize,
    /// The rest of a frame that was taken.
    unsent: Vec<u8>,
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Stream {
    /// On a connected socket that does not block.
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            ahead: vec![0; AHEAD_BYTES],
            start: 0,
            end: 0,
            unsent: Vec::new(),
        }
    }

    /// The next frame of what was read, if it is whole.
    ///
    /// # Errors
    /// It cannot be as long as it says it is: the other side speaks another language.
    fn next(&self) -> io::Result<Option<&[u8]>> {
        let read = self.ahead.get(self.start..self.end).unwrap_or_default();
        let Some((length, rest)) = read.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > MAX_FRAME_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(rest.get(..length))
    }

    /// Reads more.
    fn read(&mut self) -> io::Result<()> {
        self.ahead.copy_within(self.start..self.end, 0);
        self.end = self.end.saturating_sub(self.start);
        self.start = 0;
        let room = self.ahead.get_mut(self.end..).unwrap_or_default();
        let (_, len) = rustix::net::recv(&self.socket, room, RecvFlags::DONTWAIT)?;
        if len == 0 {
            // Nobody is at the other end any more.
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.end = self.end.saturating_add(len);
        Ok(())
    }
}

/// Fills the slices, in order, from the bytes, as far as they fit.
fn fill<'a>(into: impl IntoIterator<Item = VolatileSlice<'a>>, bytes: &[u8]) {
    let mut rest = bytes;
    for slice in into {
        let (now, later) = rest.split_at(rest.len().min(slice.len()));
        slice.copy_from(now);
        rest = later;
    }
}

/// The slices without their first bytes.
fn behind<'a>(
    slices: impl IntoIterator<Item = VolatileSlice<'a>>,
    skipped: usize,
) -> impl Iterator<Item = VolatileSlice<'a>> {
    let mut left = skipped;
    slices.into_iter().filter_map(move |slice| {
        let here = left.min(slice.len());
        left = left.saturating_sub(here);
        slice.offset(here).ok().filter(|slice| !slice.is_empty())
    })
}

impl NetBackend for Stream {
    fn receive(&mut self, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        loop {
            let len = match self.next() {
                Ok(Some(frame)) => {
                    let into = || into.iter().copied();
                    fill(into(), &[0; HEADER_BYTES]);
                    fill(behind(into(), HEADER_BYTES), frame);
                    frame.len()
                }
                Ok(None) => {
                    self.read()?;
                    continue;
                }
                Err(error) => {
                    // Both sides see that it is over; where it is closed already, they have.
                    let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
                    return Err(error);
                }
            };
            self.start = self.start.saturating_add(LENGTH_BYTES).saturating_add(len);
            return Ok(len.saturating_add(HEADER_BYTES));
        }
    }

    fn send(&mut self, from: &[VolatileSlice<'_>]) -> io::Result<()> {
        let frame = || behind(from.iter().copied(), HEADER_BYTES);
        let len = frame().map(|slice| slice.len()).sum::<usize>();
        if !(MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut length = u32::try_from(len).unwrap_or(0).to_be_bytes();
        let length = VolatileSlice::from(length.as_mut_slice());
        let whole = || iter::once(length).chain(frame());
        let sent = vectors::send(&self.socket, whole())?;
        for slice in behind(whole(), sent) {
            let at = self.unsent.len();
            self.unsent.resize(at.saturating_add(slice.len()), 0);
            slice.copy_to(self.unsent.get_mut(at..).unwrap_or_default());
        }
        Ok(())
    }

    fn set_offloads(&mut self, _: Offloads) {
        // None is offered.
    }

    fn tells_again(&self) -> bool {
        // Frames that were read ahead are told of by nobody.
        matches!(self.next(), Ok(None))
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let sent = rustix::net::send(&self.socket, &self.unsent, flags)?;
            self.unsent.drain(..sent.min(self.unsent.len()));
        }
        Ok(())
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub mod model;
#[cfg(test)]
mod tests;
