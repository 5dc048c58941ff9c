//! Copies between files that pass through no guest.

use super::calls;
use super::host::HostFile;
use super::transfer::Step;
use instar_devices::blk::Errno;
use std::sync::Arc;

/// Longest piece of one call: limits and cancellation are looked at between them.
const CALL_BYTES: u64 = 64 << 20;
/// Bytes read and written at once where the host cannot copy, or does it more slowly.
const BUFFER_BYTES: u64 = 1 << 20;
/// Pieces of that done before limits are looked at.
const BUFFERS_PER_STEP: u32 = 16;

/// A copy on its way: what is left of it.
#[derive(Debug)]
pub struct CopyChange {
    source: Arc<HostFile>,
    from: u64,
    at: u64,
    end: u64,
    /// The host does not copy these files itself; `None` until it is known.
    by_hand: Option<bool>,
    buffer: Vec<u8>,
}

impl CopyChange {
    /// The copy of `source` from byte `from` on to `offset..end`.
    pub const fn new(source: Arc<HostFile>, from: u64, offset: u64, end: u64) -> Self {
        Self {
            source,
            from,
            at: offset,
            end,
            by_hand: None,
            buffer: Vec::new(),
        }
    }

    /// Goes on for a while; [`Step::WouldBlock`] if there is more to do.
    pub fn go_on(&mut self, file: &HostFile) -> Step {
        let by_hand = *self
            .by_hand
            .get_or_insert_with(|| calls::copies_page_by_page(file));
        let outcome = if by_hand {
            self.by_hand(file)
        } else {
            self.by_host(file)
        };
        match outcome {
            Ok(()) if self.at >= self.end => Step::Finished,
            Ok(()) | Err(libc::EINTR) => Step::WouldBlock,
            Err(raw) => Step::Failed(u32::try_from(raw).map_or(Errno::EIO, Errno)),
        }
    }

    /// One call of the host's own copy.
    fn by_host(&mut self, file: &HostFile) -> Result<(), calls::Raw> {
        let len = self.end.saturating_sub(self.at).min(CALL_BYTES);
        if len == 0 {
            return Ok(());
        }
        let there = self.source.bytes_at(self.from, len);
        let (from, to) = (self.source.place(self.from), file.place(self.at));
        let turn = file.turn();
        let outcome = calls::copy(&self.source, from, file, to, there);
        drop(turn);
        match outcome {
            // The source ended, or its file system says nothing and means it cannot: a read tells.
            Ok(0) => self.by_hand = Some(true),
            Ok(copied) => self.advance(copied),
            // Other file systems, a block device, an old kernel.
            Err(
                libc::EXDEV
                | libc::EINVAL
                | libc::EOPNOTSUPP
                | libc::ENOSYS
                | libc::EBADF
                | libc::ETXTBSY,
            ) => self.by_hand = Some(true),
            Err(raw) => return Err(raw),
        }
        Ok(())
    }

    /// Reads and writes; past the source's end, zeros.
    fn by_hand(&mut self, file: &HostFile) -> Result<(), calls::Raw> {
        for _ in 0..BUFFERS_PER_STEP {
            let len = self.end.saturating_sub(self.at).min(BUFFER_BYTES);
            if len == 0 {
                return Ok(());
            }
            let len = usize::try_from(len).map_err(|_| libc::EINVAL)?;
            if self.buffer.len() < len {
                self.buffer.resize(len, 0);
            }
            let buffer = self.buffer.get_mut(..len).ok_or(libc::EINVAL)?;
            let read = match self.source.read_at(buffer, self.from)? {
                0 => {
                    buffer.fill(0);
                    len
                }
                read => read,
            };
            let bytes = self.buffer.get(..read).ok_or(libc::EINVAL)?;
            let written = file.write_at(bytes, self.at)?;
            if written == 0 {
                return Err(libc::EIO);
            }
            self.advance(written as u64);
        }
        Ok(())
    }

    const fn advance(&mut self, bytes: u64) {
        self.at = self.at.saturating_add(bytes);
        self.from = self.from.saturating_add(bytes);
    }
}
