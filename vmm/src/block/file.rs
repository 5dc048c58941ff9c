//! A host file behind a block device.

use super::calls;
use super::copy::CopyChange;
use super::files::Files;
use super::host::HostFile;
use super::pool::{IoPool, Job};
use super::range::{Change, RangeChange};
use super::transfer::{Step, Transfer};
use super::work::Work;
use crate::memory::GuestSlot;
use instar_devices::blk::{BlockBackend, Completion, Errno, IoKind, IoRequest, Submission, Token};
use instar_shared::blk::{EXTENT_DATA, ID_BYTES, StatusExtent};
use instar_shared::zerocopy::IntoBytes;
use rustix::fs::SeekFrom;
use std::collections::VecDeque;
use std::sync::Arc;

/// No space left on device: a write past the end of one.
const ENOSPC: u32 = 28;

/// A file or block device that a guest reads and, if it may, writes.
#[derive(Debug)]
pub struct FileBackend {
    slot: u16,
    file: Arc<HostFile>,
    memory: Arc<GuestSlot>,
    limits: ChangeLimits,
    shared: Shared,
    /// Requests that the kernel or the next wait goes on with, oldest first.
    pending: VecDeque<(Token, Work)>,
    /// The next poll may sleep for the oldest of them.
    may_sleep: bool,
    /// Requests that a thread goes on with.
    on_threads: usize,
    /// Those of them that are done, to be polled.
    finished: VecDeque<(Token, Completion)>,
    id: [u8; ID_BYTES],
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

/// What a device's file has in common with those of the others.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The files, for copies.
    pub files: Files,
    /// Threads for long requests.
    pub pool: Option<Arc<IoPool>>,
    /// What is handed to them.
    pub handover: Handover,
}

/// Which requests go to threads, if there are any. There are full machines on x86-64 Linux only.
#[cfg_attr(
    not(all(target_os = "linux", target_arch = "x86_64")),
    allow(dead_code)
)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Handover {
    /// Of an operation, in whose kicks its vCPU waits: what takes longer than handing it over.
    #[default]
    Operation,
    /// Of a full machine, whose disks have a thread each: what may sleep, and of what the page cache takes or has, long
    /// pieces.
    Machine,
}

impl Handover {
    /// From so many bytes on a request is worth a thread: less is copied faster than handed over.
    pub const fn long_bytes(self) -> u64 {
        match self {
            Self::Operation => 32 << 10,
            Self::Machine => 128 << 10,
        }
    }

    /// Whether writes past the page cache are handed over, of whatever length, and several at a time: each sleeps until
    /// the device has it.
    const fn overlaps_direct_writes(self) -> bool {
        matches!(self, Self::Machine)
    }
}

impl FileBackend {
    /// Serves `file` as the device of `slot`.
    pub fn new(
        slot: u16,
        file: impl Into<HostFile>,
        memory: Arc<GuestSlot>,
        limits: ChangeLimits,
        shared: Shared,
    ) -> Self {
        let file = Arc::new(file.into());
        shared.files.insert(slot, &file);
        Self {
            slot,
            file,
            memory,
            limits,
            shared,
            pending: VecDeque::new(),
            may_sleep: false,
            on_threads: 0,
            finished: VecDeque::new(),
            id: [0; ID_BYTES],
        }
    }

    /// With an identifier, of which the first [`ID_BYTES`] bytes count.
    #[cfg_attr(
        not(all(target_os = "linux", target_arch = "x86_64")),
        allow(dead_code)
    )]
    #[must_use]
    pub fn with_id(mut self, id: &[u8]) -> Self {
        self.id = [0; ID_BYTES];
        for (to, from) in self.id.iter_mut().zip(id) {
            *to = *from;
        }
        self
    }

    /// With another guest's memory from now on; no request may be on its way.
    #[cfg_attr(
        not(all(target_os = "linux", target_arch = "x86_64")),
        allow(dead_code)
    )]
    pub fn set_memory(&mut self, memory: Arc<GuestSlot>) {
        self.memory = memory;
    }

    /// Requests that a thread goes on with.
    pub const fn on_threads(&self) -> usize {
        self.on_threads
    }

    /// Takes a request that a thread has finished, for the next poll.
    pub fn take_finished(&mut self, token: Token, completion: Completion) {
        self.on_threads = self.on_threads.saturating_sub(1);
        self.finished.push_back((token, completion));
    }

    /// Hands a request to the threads, if there are any.
    fn hand_over(&mut self, token: Token, work: Work) -> Result<Submission, Work> {
        let Some(pool) = &self.shared.pool else {
            return Err(work);
        };
        let overlaps = self.limits.block_device || self.overlaps_direct_writes();
        let alone = matches!(work, Work::Write(_)) && !overlaps;
        pool.submit(Job {
            slot: self.slot,
            token,
            alone,
            work,
            file: Arc::clone(&self.file),
            memory: Arc::clone(&self.memory),
        });
        self.on_threads = self.on_threads.saturating_add(1);
        Ok(Submission::Pending)
    }

    /// Lets the file be changed up to `max_len_bytes` from now on.
    pub const fn set_max_len(&mut self, max_len_bytes: u64) {
        self.limits.max_len_bytes = max_len_bytes;
    }

    /// Lets the next poll sleep until its oldest request is done; false if there is none.
    pub fn allow_sleep(&mut self) -> bool {
        self.may_sleep = !self.pending.is_empty();
        self.may_sleep
    }

    fn overlaps_direct_writes(&self) -> bool {
        self.file.is_direct() && self.shared.handover.overlaps_direct_writes()
    }

    /// Does what is cheap now.
    fn start(&mut self, token: Token, work: Work) -> Submission {
        let sleeps = matches!(work, Work::Write(_)) && self.overlaps_direct_writes();
        let mut work = if sleeps || work.is_long(self.shared.handover.long_bytes()) {
            match self.hand_over(token, work) {
                Ok(submission) => return submission,
                Err(work) => work,
            }
        } else {
            work
        };
        // Past the page cache every read sleeps: without threads nothing is gained by putting it off.
        let nowait = self.shared.pool.is_some() || !self.file.is_direct();
        match work.go_on(&self.file, &self.memory, nowait) {
            Step::Finished => done(work.filled()),
            Step::Failed(errno) => failed(errno),
            Step::WouldBlock => self.hand_over(token, work).unwrap_or_else(|work| {
                if let Work::Read(transfer) = &work {
                    transfer.announce(&self.file);
                }
                self.pending.push_back((token, work));
                Submission::Pending
            }),
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
            Change::Reserved | Change::Rewritten | Change::Written => {}
            Change::Zeros { .. } | Change::Discarded => {
                let now = self.len()?;
                if end > now && block_device && change != Change::Discarded {
                    return Err(Errno(ENOSPC));
                }
                if end > now && change != Change::Discarded {
                    self.lengthen(end)?;
                }
                end = end.min(now);
            }
        }
        Ok(RangeChange::new(offset, end, change, block_device))
    }

    /// Makes the file at least `len` bytes long, and never shorter.
    fn lengthen(&self, len: u64) -> Result<(), Errno> {
        if self.on_threads == 0 {
            let _turn = self.file.turn();
            return self.file.set_len(len).map_err(raw_errno);
        }
        // A thread may have made the file longer meanwhile, and a new length would cut that off. The last
        // byte is this request's own.
        let last = len.saturating_sub(1);
        let written = self.file.write_at(&[0], last).map_err(raw_errno)?;
        if written == 0 {
            Err(Errno::EIO)
        } else {
            Ok(())
        }
    }

    /// Checks a copy and starts it.
    fn copy(
        &mut self,
        token: Token,
        (from_slot, from_offset): (u16, u64),
        (offset, len): (u64, u64),
    ) -> Submission {
        let checked = self.end_of_change(offset, len).and_then(|end| {
            let to = (self.slot, offset);
            let source = self
                .shared
                .files
                .source((from_slot, from_offset), to, len)?;
            Ok(CopyChange::new(source, from_offset, offset, end))
        });
        match checked {
            Ok(copy) => self.start(token, Work::Copy(copy)),
            Err(errno) => failed(errno),
        }
    }

    fn set_len(&self, len: u64) -> Submission {
        let result = self.end_of_change(len, 0).and_then(|len| {
            if !self.limits.block_device && !self.file.has_end() {
                let _turn = self.file.turn();
                return self.file.set_len(len).map_err(raw_errno);
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
        let data = match rustix::fs::seek(&**self.file, SeekFrom::Data(self.file.place(at))) {
            Ok(data) => self.file.offset_of(data),
            // No data from here on.
            Err(rustix::io::Errno::NXIO) => return Ok((whole.0, false)),
            // No knowledge of holes: a block device, or a file system without.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => return Ok(whole),
            Err(e) => return Err(errno(e)),
        };
        if data > at {
            return Ok((data.min(end).saturating_sub(at), false));
        }
        match rustix::fs::seek(&**self.file, SeekFrom::Hole(self.file.place(at))) {
            Ok(hole) if self.file.offset_of(hole) > at => {
                let hole = self.file.offset_of(hole).min(end);
                Ok((hole.saturating_sub(at), true))
            }
            // The file changed under us: data, to be safe.
            Ok(_) | Err(rustix::io::Errno::NXIO) => Ok(whole),
            Err(e) => Err(errno(e)),
        }
    }

    fn len(&self) -> Result<u64, Errno> {
        let _turn = self.file.turn();
        self.file.len_bytes().map_err(raw_errno)
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
            // It covers the writes before it, also one that was interrupted.
            IoKind::Flush if !self.pending.is_empty() => {
                self.pending.push_back((token, Work::Sync));
                Submission::Pending
            }
            IoKind::Flush => self.start(token, Work::Sync),
            // The device refuses these before they come here.
            _ if self.limits.read_only => failed(Errno::EROFS),
            IoKind::Write { offset } => self.write(token, offset, request),
            IoKind::Discard { offset, len } => self.change(token, (offset, len), Change::Discarded),
            IoKind::WriteZeroes { offset, len, unmap } => {
                self.change(token, (offset, len), Change::Zeros { unmap })
            }
            IoKind::Copy {
                from_slot,
                from_offset,
                offset,
                len,
            } => self.copy(token, (from_slot, from_offset), (offset, len)),
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
        self.finished.pop_front().or_else(|| self.finish_oldest())
    }

    fn stop(&mut self) {
        if let Some(pool) = &self.shared.pool {
            pool.stop(self.slot);
        }
        self.pending.clear();
        self.finished.clear();
        self.on_threads = 0;
    }

    fn len_bytes(&mut self) -> Result<u64, Errno> {
        self.len()
    }

    fn id(&mut self) -> [u8; ID_BYTES] {
        self.id
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
