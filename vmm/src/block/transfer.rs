//! Moves bytes between a file and guest buffers.

use super::calls;
use super::host::HostFile;
use crate::memory::GuestSlot;
use instar_devices::blk::{Errno, GuestBuffer};
use std::fs::File;
use std::os::fd::AsRawFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// Most I/O vectors of one system call (`UIO_MAXIOV`).
const MAX_IOVECS: usize = 1024;

/// Most bytes that go through a buffer at once.
const PIECE_BYTES: u64 = 1 << 20;

/// A read or write on its way: buffers, and how far it got.
#[derive(Debug)]
pub struct Transfer {
    /// File offset of the first byte.
    pub offset: u64,
    /// Where the bytes go or come from, in order.
    pub buffers: Vec<GuestBuffer>,
    /// Bytes already moved.
    pub done: u64,
}

/// How a step of a transfer ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// All is done; of a read, the file may have ended before: then the rest is zeros.
    Finished,
    /// Going on would sleep or take long, or the sleep was interrupted.
    WouldBlock,
    /// The host's error.
    Failed(Errno),
}

impl Transfer {
    /// Bytes of all buffers.
    pub fn len(&self) -> u64 {
        self.buffers.iter().map(|b| u64::from(b.len)).sum()
    }

    /// Reads on. With `nowait` only what the page cache holds; past it, nothing.
    pub fn read(&mut self, file: &HostFile, slot: &GuestSlot, nowait: bool) -> Step {
        loop {
            let Some(iovecs) = self.iovecs(slot) else {
                return Step::Failed(Errno::EIO);
            };
            if iovecs.is_empty() {
                return Step::Finished;
            }
            let at = self.offset.saturating_add(self.done);
            let there = file.bytes_at(at, self.len().saturating_sub(self.done));
            if there == 0 {
                return self.zero_rest(slot);
            }
            if nowait && file.is_direct() {
                return Step::WouldBlock;
            }
            let is_whole = there >= self.len().saturating_sub(self.done);
            let outcome = if is_whole && file.takes(at, &iovecs) {
                read_once(file, &iovecs, file.place(at), nowait)
            } else {
                self.read_ragged(file, slot)
            };
            match outcome {
                Ok(0) => return self.zero_rest(slot),
                Ok(n) => self.done = self.done.saturating_add(n),
                // The tick: the caller looks at its limits before it goes on.
                Err(libc::EINTR) => return Step::WouldBlock,
                Err(libc::EAGAIN | libc::EOPNOTSUPP) if nowait => return Step::WouldBlock,
                Err(errno) => return Step::Failed(u32::try_from(errno).map_or(Errno::EIO, Errno)),
            }
        }
    }

    /// Writes on; a short write goes on where it ended.
    pub fn write(&mut self, file: &HostFile, slot: &GuestSlot) -> Step {
        loop {
            let Some(iovecs) = self.iovecs(slot) else {
                return Step::Failed(Errno::EIO);
            };
            if iovecs.is_empty() {
                return Step::Finished;
            }
            let at = self.offset.saturating_add(self.done);
            let outcome = if file.takes(at, &iovecs) {
                let _turn = file.turn();
                // SAFETY: every vector lies in guest memory, which the slot keeps mapped during the call;
                // the guest may change the bytes at any time, and then either ones are written.
                unsafe { calls::write(file, &iovecs, file.place(at)) }
            } else {
                self.write_ragged(file, slot)
            };
            match outcome {
                // No progress and no reason: it would never end.
                Ok(0) => return Step::Failed(Errno::EIO),
                Ok(n) => self.done = self.done.saturating_add(n),
                // The tick: the caller looks at its limits before it goes on.
                Err(libc::EINTR) => return Step::WouldBlock,
                Err(raw) => return Step::Failed(u32::try_from(raw).map_or(Errno::EIO, Errno)),
            }
        }
    }

    /// Reads a piece through a buffer; how many bytes there were.
    fn read_ragged(&self, file: &HostFile, slot: &GuestSlot) -> Result<u64, calls::Raw> {
        let mut piece = self.piece();
        let read = file.read_at(&mut piece, self.offset.saturating_add(self.done))?;
        let mut bytes = piece.get(..read).unwrap_or_default();
        for (addr, len) in self.rest() {
            let (now, later) = bytes.split_at(bytes.len().min(len as usize));
            let written = slot.dma().write_slice(now, addr);
            written.map_err(|_| libc::EIO)?;
            bytes = later;
            if bytes.is_empty() {
                break;
            }
        }
        Ok(read as u64)
    }

    /// Writes a piece through a buffer; how many bytes were written.
    fn write_ragged(&self, file: &HostFile, slot: &GuestSlot) -> Result<u64, calls::Raw> {
        let mut piece = self.piece();
        let mut bytes = piece.as_mut_slice();
        for (addr, len) in self.rest() {
            let (now, later) = bytes.split_at_mut(bytes.len().min(len as usize));
            slot.dma().read_slice(now, addr).map_err(|_| libc::EIO)?;
            bytes = later;
            if bytes.is_empty() {
                break;
            }
        }
        let written = file.write_at(&piece, self.offset.saturating_add(self.done))?;
        Ok(written as u64)
    }

    /// Room for what is left, or for a piece of it.
    fn piece(&self) -> Vec<u8> {
        let left = self.len().saturating_sub(self.done).min(PIECE_BYTES);
        vec![0; usize::try_from(left).unwrap_or(0)]
    }

    /// Asks the kernel to fetch what is left, without waiting for it.
    pub fn announce(&self, file: &HostFile) {
        #[cfg(target_os = "linux")]
        {
            let at = self.offset.saturating_add(self.done);
            let left = std::num::NonZeroU64::new(self.len().saturating_sub(self.done));
            // Only advice: a file system without it reads when the guest waits.
            let _ =
                rustix::fs::fadvise(&**file, file.place(at), left, rustix::fs::Advice::WillNeed);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = file;
    }

    /// What is left of the buffers: guest address and length.
    fn rest(&self) -> impl Iterator<Item = (GuestAddress, u32)> {
        let mut skip = self.done;
        self.buffers.iter().filter_map(move |buffer| {
            let passed = u32::try_from(skip).unwrap_or(u32::MAX).min(buffer.len);
            skip = skip.saturating_sub(u64::from(passed));
            let addr = GuestAddress(buffer.addr.0.saturating_add(u64::from(passed)));
            (passed < buffer.len).then(|| (addr, buffer.len.saturating_sub(passed)))
        })
    }

    /// Host vectors of what is left, or `None` if a buffer is not the guest's.
    fn iovecs(&self, slot: &GuestSlot) -> Option<Vec<libc::iovec>> {
        let host = |(addr, len): (GuestAddress, u32)| {
            let len = usize::try_from(len).ok()?;
            let slice = slot.dma().get_slice(addr, len).ok()?;
            Some(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: len,
            })
        };
        self.rest().take(MAX_IOVECS).map(host).collect()
    }

    /// What is left reads as zeros, e.g. because the file has ended.
    pub fn zero_rest(&mut self, slot: &GuestSlot) -> Step {
        const ZEROS: [u8; 4096] = [0; 4096];
        let left: Vec<_> = self.rest().collect();
        for (addr, len) in left {
            let mut at = 0;
            while at < len {
                let n = (len - at).min(4096);
                let to = GuestAddress(addr.0.saturating_add(u64::from(at)));
                let zeros = ZEROS.get(..n as usize).unwrap_or_default();
                if slot.dma().write_slice(zeros, to).is_err() {
                    return Step::Failed(Errno::EIO);
                }
                at += n;
            }
        }
        self.done = self.len();
        Step::Finished
    }
}

/// One system call; bytes read, or the errno.
fn read_once(file: &File, iovecs: &[libc::iovec], offset: u64, nowait: bool) -> Result<u64, i32> {
    let offset = i64::try_from(offset).map_err(|_| libc::EINVAL)?;
    let count = i32::try_from(iovecs.len()).map_err(|_| libc::EINVAL)?;
    let fd = file.as_raw_fd();
    // SAFETY: every vector lies in guest memory, which the slot keeps mapped during the call; the
    // guest may see or change the bytes at any time, which plain memory allows.
    let n = unsafe { positional_read(fd, iovecs.as_ptr(), count, offset, nowait) };
    u64::try_from(n).map_err(|_| {
        std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO)
    })
}

/// # Safety
/// As `preadv(2)`: the vectors must be valid for writes.
#[cfg(target_os = "linux")]
unsafe fn positional_read(
    fd: i32,
    iovecs: *const libc::iovec,
    count: i32,
    offset: i64,
    nowait: bool,
) -> isize {
    let flags = if nowait { libc::RWF_NOWAIT } else { 0 };
    // SAFETY: the caller's promise.
    unsafe { libc::preadv2(fd, iovecs, count, offset, flags) }
}

/// # Safety
/// As `preadv(2)`: the vectors must be valid for writes.
#[cfg(not(target_os = "linux"))]
unsafe fn positional_read(
    fd: i32,
    iovecs: *const libc::iovec,
    count: i32,
    offset: i64,
    _nowait: bool,
) -> isize {
    // SAFETY: the caller's promise.
    unsafe { libc::preadv(fd, iovecs, count, offset) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use instar_shared::layout::HEAP_START;
    use std::io::Write;

    fn buffer(at: u64, len: u32) -> GuestBuffer {
        GuestBuffer {
            addr: GuestAddress(HEAP_START + at),
            len,
        }
    }

    #[test]
    fn scattered_read_past_the_end_is_zero_filled() {
        let slot = GuestSlot::new(64 << 20).unwrap();
        slot.write(HEAP_START, &[0xff; 64]).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let buffers = vec![buffer(0, 3), buffer(16, 5), buffer(32, 4)];
        let mut transfer = Transfer {
            offset: 4,
            buffers,
            done: 0,
        };
        let file = HostFile::from(file);
        assert_eq!(transfer.read(&file, &slot, false), Step::Finished);
        let mut seen = [0; 37];
        slot.read(HEAP_START, &mut seen).unwrap();
        assert_eq!(&seen[..4], b"456\xff");
        assert_eq!(&seen[16..22], b"789\0\0\xff");
        assert_eq!(&seen[32..37], b"\0\0\0\0\xff");
    }

    #[test]
    fn offsets_beyond_i64_are_an_errno() {
        let slot = GuestSlot::new(64 << 20).unwrap();
        let file = HostFile::from(tempfile::tempfile().unwrap());
        let mut transfer = Transfer {
            offset: u64::MAX - 2,
            buffers: vec![buffer(0, 8)],
            done: 0,
        };
        assert_eq!(
            transfer.read(&file, &slot, true),
            Step::Failed(Errno::EINVAL)
        );
    }
}
