//! Requests on their way, and which of them wait for which.

use super::check::Checked;
use instar_devices::blk::{Errno, GuestBuffer, IoKind, IoRequest, Token};
use std::collections::BTreeMap;
use vm_memory::GuestAddress;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Do {
    /// Fills its buffers.
    Read,
    /// Writes its buffers.
    Write,
    /// Gives its range back.
    Discard,
    /// Makes its range zeros.
    WriteZeroes {
        /// And gives it back.
        unmap: bool,
    },
    /// Makes what was written durable.
    Flush,
}

/// A request that has not ended.
#[derive(Debug)]
pub struct Request {
    /// The device's name for it.
    pub token: Token,
    /// What it does.
    pub what: Do,
    /// First byte of its range, and the first after it.
    pub start: u64,
    /// First byte after its range.
    pub end: u64,
    /// The clusters that hold it.
    pub clusters: (u64, u64),
    buffers: Vec<GuestBuffer>,
    /// No other request of its clusters goes on beside it.
    pub exclusive: bool,
    /// It goes on; else it waits for others.
    pub active: bool,
    /// Up to here it is read, placed or asked for.
    pub cursor: u64,
    /// Parts that threads have.
    pub parts: usize,
    /// Questions without an answer.
    pub asked: usize,
    /// One of them is where its next bytes are.
    pub looking: bool,
    /// Of a flush: 1 when data is on its way to the disk, 2 when the source is asked.
    pub stage: u8,
    /// Of a flush: changes that it covers.
    pub flushes: u64,
    /// The first error.
    pub error: Option<Errno>,
    /// Allocations that are not linked.
    pub tickets: Vec<u32>,
    /// Where they are.
    pub placed: Vec<super::source::Extent>,
}

impl Request {
    /// What the guest asks for.
    ///
    /// # Errors
    /// The disk cannot do it.
    pub fn new(token: Token, request: IoRequest, disk: &Checked) -> Result<Self, Errno> {
        let (what, start, len) = match request.kind {
            IoKind::Read { offset } => (Do::Read, offset, request.data_len()),
            IoKind::Write { offset } => (Do::Write, offset, request.data_len()),
            IoKind::Discard { offset, len } => (Do::Discard, offset, len),
            IoKind::WriteZeroes { offset, len, unmap } => (Do::WriteZeroes { unmap }, offset, len),
            IoKind::Flush => (Do::Flush, 0, 0),
            IoKind::SetLength { .. }
            | IoKind::Allocate { .. }
            | IoKind::Copy { .. }
            | IoKind::BlockStatus { .. } => return Err(Errno::EOPNOTSUPP),
        };
        let end = start.checked_add(len);
        let end = end.filter(|end| *end <= disk.info.len_bytes);
        let end = end.ok_or(Errno::EINVAL)?;
        Ok(Self {
            token,
            what,
            start,
            end,
            clusters: if start < end {
                disk.clusters(start, end)
            } else {
                (0, 0)
            },
            buffers: request.buffers,
            exclusive: false,
            active: false,
            cursor: start,
            parts: 0,
            asked: 0,
            looking: false,
            stage: 0,
            flushes: 0,
            error: None,
            tickets: Vec::new(),
            placed: Vec::new(),
        })
    }

    /// Bytes from the cursor to the end.
    pub const fn rest(&self) -> u64 {
        self.end.saturating_sub(self.cursor)
    }

    /// Whether all of it is on its way, or it has failed.
    pub const fn is_placed(&self) -> bool {
        self.error.is_some() || self.cursor >= self.end
    }

    /// Whether something of it is not done yet.
    pub const fn has_parts(&self) -> bool {
        self.parts > 0 || self.asked > 0
    }

    /// It has failed; the first error counts.
    pub fn fail(&mut self, errno: Errno) {
        self.error.get_or_insert(errno);
    }

    /// A part is done.
    pub fn part_ended(&mut self, error: Option<Errno>) {
        self.parts = self.parts.saturating_sub(1);
        if let Some(errno) = error {
            self.fail(errno);
        }
    }

    /// The buffers of `len` bytes from byte `at` of the disk on.
    pub fn buffers_at(&self, at: u64, len: u64) -> Vec<GuestBuffer> {
        let (mut skip, mut left) = (at.saturating_sub(self.start), len);
        let mut parts = Vec::new();
        for buffer in &self.buffers {
            let passed = u32::try_from(skip).unwrap_or(u32::MAX).min(buffer.len);
            skip = skip.saturating_sub(u64::from(passed));
            let here = buffer.len.saturating_sub(passed);
            let here = u32::try_from(left).unwrap_or(u32::MAX).min(here);
            if here > 0 {
                parts.push(GuestBuffer {
                    addr: GuestAddress(buffer.addr.0.saturating_add(u64::from(passed))),
                    len: here,
                });
                left = left.saturating_sub(u64::from(here));
            }
        }
        parts
    }

    /// Whether the two cannot go on side by side.
    const fn conflicts(&self, other: &Self) -> bool {
        let (start, end) = self.clusters;
        let (other_start, other_end) = other.clusters;
        (self.exclusive || other.exclusive) && start < other_end && other_start < end
    }
}

/// All requests that have not ended, oldest first.
#[derive(Debug, Default)]
pub struct Requests {
    by_id: BTreeMap<u64, Request>,
    last_id: u64,
}

impl Requests {
    /// A number that no request has had.
    pub const fn next_id(&mut self) -> u64 {
        self.last_id = self.last_id.saturating_add(1);
        self.last_id
    }

    /// Keeps a request.
    pub fn insert(&mut self, id: u64, request: Request) {
        self.by_id.insert(id, request);
    }

    /// Takes one that goes on.
    pub fn remove(&mut self, id: u64) -> Option<Request> {
        self.by_id.remove(&id)
    }

    /// Takes all.
    pub fn take(&mut self) -> BTreeMap<u64, Request> {
        std::mem::take(&mut self.by_id)
    }

    /// All numbers, oldest first.
    pub fn ids(&self) -> Vec<u64> {
        self.by_id.keys().copied().collect()
    }

    /// Numbers of those that wait for others, oldest first.
    pub fn waiting(&self) -> Vec<u64> {
        let waiting = |(id, request): (&u64, &Request)| (!request.active).then_some(*id);
        self.by_id.iter().filter_map(waiting).collect()
    }

    /// Whether request `id` has to wait: for one that goes on, or for one before it that waits.
    pub fn conflict(&self, id: u64, request: &Request) -> bool {
        let before = |(other_id, other): (&u64, &Request)| {
            (other.active || *other_id < id) && request.conflicts(other)
        };
        self.by_id.iter().any(before)
    }
}
