//! A host file behind a block device.

use super::calls;
use super::range::{Change, RangeChange};
use super::transfer::{Step, Transfer};
use crate::memory::GuestSlot;
use instar_devices::blk::{BlockBackend, Completion, Errno, IoKind, IoRequest, Submission, Token};
use instar_shared::blk::{EXTENT_DATA, StatusExtent};
use instar_shared::zerocopy::IntoBytes;
use rustix::fs::SeekFrom;
use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;

/// No space left on device: a write past the end of one.
const ENOSPC: u32 = 28;

/// A file or block device that a guest reads and, if it may, writes.
#[derive(Debug)]
pub struct FileBackend {
    file: File,
    memory: Arc<GuestSlot>,
    limits: ChangeLimits,
    /// Requests that the kernel or the next wait goes on with, oldest first.
    pending: VecDeque<(Token, Work)>,
    /// The next poll may sleep for the oldest of them.
    may_sleep: bool,
}

/// What a guest may change of a file.
#[derive(Clone, Copy, Debug)]
pub struct ChangeLimits {
    /// Nothing.
    pub read_only: bool,
    /// A block device: its length is what it is.
    pub block_device: bool,
    /// Longest that it may become, in bytes: past it is EFBIG.
    pub max_len_bytes: u64,
}

/// A request that is not done yet.
#[derive(Debug)]
enum Work {
    Read(Transfer),
    Write(Transfer),
    Range(RangeChange),
}

impl Work {
    /// Goes on; a read with `nowait` only as far as the page cache has it.
    fn go_on(&mut self, file: &File, memory: &GuestSlot, nowait: bool) -> Step {
        match self {
            Self::Read(transfer) => transfer.read(file, memory, nowait),
            Self::Write(transfer) => transfer.write(file, memory),
            Self::Range(change) => change.go_on(file),
        }
    }

    /// Bytes that it has written to the guest when it is done.
    fn filled(&self) -> u32 {
        match self {
            Self::Read(transfer) => u32::try_from(transfer.len()).unwrap_or(u32::MAX),
            Self::Write(_) | Self::Range(_) => 0,
        }
    }
}

impl FileBackend {
    /// Serves `file`.
    pub const fn new(file: File, memory: Arc<GuestSlot>, limits: ChangeLimits) -> Self {
        Self {
            file,
            memory,
            limits,
            pending: VecDeque::new(),
            may_sleep: false,
        }
    }

    /// Lets the next poll sleep until its oldest request is done; false if there is none.
    pub fn allow_sleep(&mut self) -> bool {
        self.may_sleep = !self.pending.is_empty();
        self.may_sleep
    }

    /// Does what is cheap now.
    fn start(&mut self, token: Token, mut work: Work) -> Submission {
        match work.go_on(&self.file, &self.memory, true) {
            Step::Finished => done(work.filled()),
            Step::Failed(errno) => failed(errno),
            Step::WouldBlock => {
                if let Work::Read(transfer) = &work {
                    transfer.announce(&self.file);
                }
                self.pending.push_back((token, work));
                Submission::Pending
            }
        }
    }

    /// Goes on with the oldest request; `None` if it is not done and would sleep but may not.
    fn finish_oldest(&mut self) -> Option<(Token, Completion)> {
        let may_sleep = std::mem::take(&mut self.may_sleep);
        let (token, mut work) = self.pending.pop_front()?;
        let step = if may_sleep || matches!(work, Work::Read(_)) {
            work.go_on(&self.file, &self.memory, !may_sleep)
        } else {
            Step::WouldBlock
        };
        let result = match step {
            Step::Finished => Ok(work.filled()),
            Step::Failed(errno) => Err(errno),
            Step::WouldBlock => {
                self.pending.push_front((token, work));
                return None;
            }
        };
        Some((token, Completion { result }))
    }

    fn write(&mut self, token: Token, offset: u64, request: IoRequest) -> Submission {
        if let Err(errno) = self.end_of_change(offset, request.data_len()) {
            return failed(errno);
        }
        let work = Work::Write(Transfer {
            offset,
            buffers: request.buffers,
            done: 0,
        });
        self.start(token, work)
    }

    fn change(&mut self, token: Token, (offset, len): (u64, u64), change: Change) -> Submission {
        match self.prepare(offset, len, change) {
            Ok(work) => self.start(token, Work::Range(work)),
            Err(errno) => failed(errno),
        }
    }

    /// Checks a range and, if zeros pass the file's end, makes it long enough: what is new is zeros.
    fn prepare(&self, offset: u64, len: u64, change: Change) -> Result<RangeChange, Errno> {
        let ChangeLimits { block_device, .. } = self.limits;
        let mut end = if change == Change::Discarded {
            offset.saturating_add(len)
        } else {
            self.end_of_change(offset, len)?
        };
        match change {
            Change::Reserved if block_device => return Err(Errno::EOPNOTSUPP),
            Change::Reserved | Change::Written => {}
            Change::Zeros { .. } | Change::Discarded => {
                let now = self.len()?;
                if end > now && block_device && change != Change::Discarded {
                    return Err(Errno(ENOSPC));
                }
                if end > now && change != Change::Discarded {
                    calls::set_len(&self.file, end).map_err(raw_errno)?;
                }
                end = end.min(now);
            }
        }
        Ok(RangeChange::new(offset, end, change, block_device))
    }

    fn set_len(&self, len: u64) -> Submission {
        let result = self.end_of_change(len, 0).and_then(|len| {
            if !self.limits.block_device {
                return calls::set_len(&self.file, len).map_err(raw_errno);
            }
            if len == self.len()? {
                Ok(())
            } else {
                Err(Errno::EINVAL)
            }
        });
        result.map_or_else(failed, |()| done(0))
    }

    /// Where a change ends, if the file may be changed up to there.
    fn end_of_change(&self, offset: u64, len: u64) -> Result<u64, Errno> {
        let end = offset.checked_add(len);
        end.filter(|end| *end <= self.limits.max_len_bytes)
            .ok_or(Errno::EFBIG)
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
            IoKind::Read { offset } => {
                let buffers = request.buffers;
                let done = 0;
                self.start(
                    token,
                    Work::Read(Transfer {
                        offset,
                        buffers,
                        done,
                    }),
                )
            }
            IoKind::BlockStatus { offset } => self.block_status(offset, &request),
            IoKind::Flush if self.limits.read_only => done(0),
            IoKind::Flush => {
                calls::sync(&self.file).map_or_else(|raw| failed(raw_errno(raw)), |()| done(0))
            }
            // The device refuses these before they come here.
            _ if self.limits.read_only => failed(Errno::EROFS),
            IoKind::Write { offset } => self.write(token, offset, request),
            IoKind::Discard { offset, len } => self.change(token, (offset, len), Change::Discarded),
            IoKind::WriteZeroes { offset, len, unmap } => {
                self.change(token, (offset, len), Change::Zeros { unmap })
            }
            IoKind::SetLength { len } => self.set_len(len),
            IoKind::Allocate { offset, len, zeros } => {
                let change = if zeros {
                    Change::Written
                } else {
                    Change::Reserved
                };
                self.change(token, (offset, len), change)
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

fn raw_errno(raw: calls::Raw) -> Errno {
    u32::try_from(raw).map_or(Errno::EIO, Errno)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
