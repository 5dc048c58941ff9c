//! A host file behind a block device.

use super::transfer::{Step, Transfer};
use crate::memory::GuestSlot;
use instar_devices::blk::{BlockBackend, Completion, Errno, IoKind, IoRequest, Submission, Token};
use instar_shared::blk::{EXTENT_DATA, StatusExtent};
use instar_shared::zerocopy::IntoBytes;
use rustix::fs::SeekFrom;
use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;

/// Reads of a file; everything that would change it is refused.
#[derive(Debug)]
pub struct FileBackend {
    file: File,
    memory: Arc<GuestSlot>,
    /// Reads that the kernel is fetching, oldest first.
    pending: VecDeque<(Token, Transfer)>,
    /// The next poll may sleep for the oldest of them.
    may_sleep: bool,
}

impl FileBackend {
    /// Serves `file`.
    pub const fn new(file: File, memory: Arc<GuestSlot>) -> Self {
        Self {
            file,
            memory,
            pending: VecDeque::new(),
            may_sleep: false,
        }
    }

    /// Lets the next poll sleep until its oldest read is done; false if there is none.
    pub fn allow_sleep(&mut self) -> bool {
        self.may_sleep = !self.pending.is_empty();
        self.may_sleep
    }

    fn read(&mut self, token: Token, offset: u64, request: IoRequest) -> Submission {
        let mut transfer = Transfer {
            offset,
            buffers: request.buffers,
            done: 0,
        };
        match transfer.read(&self.file, &self.memory, true) {
            Step::Finished => done(u32::try_from(transfer.len()).unwrap_or(u32::MAX)),
            Step::Failed(errno) => failed(errno),
            Step::WouldBlock => {
                transfer.announce(&self.file);
                self.pending.push_back((token, transfer));
                Submission::Pending
            }
        }
    }

    /// Goes on with the oldest read; `None` if it would sleep and may not.
    fn finish_oldest(&mut self) -> Option<(Token, Completion)> {
        let (token, mut transfer) = self.pending.pop_front()?;
        let nowait = !std::mem::take(&mut self.may_sleep);
        let result = match transfer.read(&self.file, &self.memory, nowait) {
            Step::Finished => Ok(u32::try_from(transfer.len()).unwrap_or(u32::MAX)),
            Step::Failed(errno) => Err(errno),
            Step::WouldBlock => {
                self.pending.push_front((token, transfer));
                return None;
            }
        };
        Some((token, Completion { result }))
    }

    fn block_status(&self, offset: u64, request: &IoRequest) -> Submission {
        let room = usize::try_from(request.data_len()).unwrap_or(0) / size_of::<StatusExtent>();
        match self.extents(offset, room) {
            Ok(extents) => match request.fill(self.memory.dma(), extents.as_bytes()) {
                Ok(written) => done(written),
                Err(errno) => failed(errno),
            },
            Err(errno) => failed(errno),
        }
    }

    /// At most `room` runs from `offset` on, the last one of length 0 if the file ends there.
    fn extents(&self, offset: u64, room: usize) -> Result<Vec<StatusExtent>, Errno> {
        let end = self.len()?;
        let mut extents = Vec::new();
        let mut at = offset;
        while extents.len() < room && at < end {
            let (len, data) = self.extent_at(at, end)?;
            let flags = if data { EXTENT_DATA } else { 0 };
            extents.push(StatusExtent {
                len: len.into(),
                flags: flags.into(),
            });
            at = at.saturating_add(len);
        }
        if extents.len() < room {
            extents.push(StatusExtent::zeroed());
        }
        Ok(extents)
    }

    /// Length of the run at `at`, below `end`, and whether it is data.
    fn extent_at(&self, at: u64, end: u64) -> Result<(u64, bool), Errno> {
        let whole = (end.saturating_sub(at), true);
        let data = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
            Ok(data) => data,
            // No data from here on.
            Err(rustix::io::Errno::NXIO) => return Ok((whole.0, false)),
            // No knowledge of holes: a block device, or a file system without.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => return Ok(whole),
            Err(e) => return Err(errno(e)),
        };
        if data > at {
            return Ok((data.min(end).saturating_sub(at), false));
        }
        match rustix::fs::seek(&self.file, SeekFrom::Hole(at)) {
            Ok(hole) if hole > at => Ok((hole.min(end).saturating_sub(at), true)),
            // The file changed under us: data, to be safe.
            Ok(_) | Err(rustix::io::Errno::NXIO) => Ok(whole),
            Err(e) => Err(errno(e)),
        }
    }

    fn len(&self) -> Result<u64, Errno> {
        rustix::fs::seek(&self.file, SeekFrom::End(0)).map_err(errno)
    }
}

impl BlockBackend for FileBackend {
    fn submit(&mut self, token: Token, request: IoRequest) -> Submission {
        match request.kind {
            IoKind::Read { offset } => self.read(token, offset, request),
            IoKind::BlockStatus { offset } => self.block_status(offset, &request),
            IoKind::Flush => done(0),
            IoKind::Write { .. } | IoKind::Discard { .. } | IoKind::WriteZeroes { .. } => {
                failed(Errno::EROFS)
            }
        }
    }

    fn poll(&mut self) -> Option<(Token, Completion)> {
        self.finish_oldest()
    }

    fn len_bytes(&mut self) -> Result<u64, Errno> {
        self.len()
    }
}

const fn done(bytes: u32) -> Submission {
    Submission::Done(Completion { result: Ok(bytes) })
}

const fn failed(errno: Errno) -> Submission {
    Submission::Done(Completion { result: Err(errno) })
}

fn errno(error: rustix::io::Errno) -> Errno {
    u32::try_from(error.raw_os_error()).map_or(Errno::EIO, Errno)
}
