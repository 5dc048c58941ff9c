//! A backend in memory, for tests: it can hold requests and complete them in any order.

use super::backend::{BlockBackend, Completion, Errno, IoKind, IoRequest, Submission, Token};
use instar_shared::blk::{EXTENT_DATA, ID_BYTES, StatusExtent};
use instar_shared::zerocopy::IntoBytes;
use instar_shared::zerocopy::little_endian::U64;
use std::collections::BTreeMap;
use vm_memory::{Bytes, GuestMemory};

/// When requests complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompletionOrder {
    /// Inside `submit`.
    AtOnce,
    /// When released, first in first out.
    Held,
    /// When released, in an order that follows from the seed.
    Shuffled(u64),
}

/// Bytes in memory behind a block device.
#[derive(Debug)]
pub struct MemBackend<M> {
    mem: M,
    /// The store.
    pub bytes: Vec<u8>,
    /// What `poll` and `submit` do.
    pub order: CompletionOrder,
    /// Granularity of block status in bytes: a block of zeros is a hole.
    pub block_bytes: usize,
    /// Every request that was submitted, in order.
    pub log: Vec<IoKind>,
    /// If set, the next request fails with this error.
    pub fail_next: Option<Errno>,
    /// Longest that the store may become, in bytes; past it is EFBIG.
    pub max_bytes: u64,
    /// Files of other slots, for copies from them; this store itself is in none.
    pub others: BTreeMap<u16, Vec<u8>>,
    held: Vec<(Token, IoRequest)>,
    released: usize,
}

impl<M: GuestMemory> MemBackend<M> {
    /// A store that completes at once.
    pub fn new(mem: M, bytes: Vec<u8>) -> Self {
        Self {
            mem,
            bytes,
            order: CompletionOrder::AtOnce,
            block_bytes: 4096,
            log: Vec::new(),
            fail_next: None,
            max_bytes: 256 << 20,
            others: BTreeMap::new(),
            held: Vec::new(),
            released: 0,
        }
    }

    /// Requests that are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Lets the next `count` held requests finish: `poll` returns them.
    pub fn release(&mut self, count: usize) {
        self.released = self.released.saturating_add(count).min(self.held.len());
    }

    fn next_held(&mut self) -> usize {
        match &mut self.order {
            CompletionOrder::Shuffled(seed) => {
                *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let pick = seed.wrapping_shr(33).checked_rem(self.held.len() as u64);
                usize::try_from(pick.unwrap_or(0)).unwrap_or(0)
            }
            CompletionOrder::AtOnce | CompletionOrder::Held => 0,
        }
    }

    fn perform(&mut self, request: &IoRequest) -> Result<u32, Errno> {
        if let Some(errno) = self.fail_next.take() {
            return Err(errno);
        }
        match request.kind {
            IoKind::Read { offset } => {
                let len = usize::try_from(request.data_len()).map_err(|_| Errno::EIO)?;
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let stored = self.bytes.get(start..).unwrap_or_default();
                let mut bytes = stored.get(..len).unwrap_or(stored).to_vec();
                bytes.resize(len, 0);
                request.fill(&self.mem, &bytes)
            }
            IoKind::Write { offset } => self.write(offset, request),
            IoKind::Flush | IoKind::Discard { .. } => Ok(0),
            IoKind::WriteZeroes { offset, len, .. }
            | IoKind::Allocate {
                offset,
                len,
                zeros: true,
            } => {
                self.grow(offset, len)?.fill(0);
                Ok(0)
            }
            IoKind::Copy {
                from_slot,
                from_offset,
                offset,
                len,
            } => self.copy(from_slot, from_offset, offset, len),
            IoKind::Allocate { offset, len, .. } => self.grow(offset, len).map(|_| 0),
            IoKind::SetLength { len } => {
                let len = self.end(len, 0)?;
                self.bytes.resize(len, 0);
                Ok(0)
            }
            IoKind::BlockStatus { offset } => {
                let extents = self.extents(offset, request.data_len());
                request.fill(&self.mem, extents.as_bytes())
            }
        }
    }

    fn write(&mut self, offset: u64, request: &IoRequest) -> Result<u32, Errno> {
        let mut bytes = vec![0; usize::try_from(request.data_len()).map_err(|_| Errno::EIO)?];
        let mut rest = bytes.as_mut_slice();
        for buffer in &request.buffers {
            let (now, later) = rest
                .split_at_mut_checked(buffer.len as usize)
                .ok_or(Errno::EIO)?;
            let read = self.mem.read_slice(now, buffer.addr);
            read.map_err(|_| Errno::EIO)?;
            rest = later;
        }
        self.grow(offset, bytes.len() as u64)?
            .copy_from_slice(&bytes);
        Ok(0)
    }

    fn copy(&mut self, slot: u16, from: u64, offset: u64, len: u64) -> Result<u32, Errno> {
        let source = self.others.get(&slot).ok_or(Errno::EINVAL)?;
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        let len_bytes = usize::try_from(len).map_err(|_| Errno::EFBIG)?;
        let stored = source.get(from..).unwrap_or_default();
        let mut bytes = stored.get(..len_bytes).unwrap_or(stored).to_vec();
        self.end(offset, len)?;
        bytes.resize(len_bytes, 0);
        self.grow(offset, len)?.copy_from_slice(&bytes);
        Ok(0)
    }

    /// Where a range ends, if the store may be that long.
    fn end(&self, offset: u64, len: u64) -> Result<usize, Errno> {
        let end = offset.checked_add(len);
        let end = end.filter(|end| *end <= self.max_bytes);
        end.and_then(|end| usize::try_from(end).ok())
            .ok_or(Errno::EFBIG)
    }

    /// The range, which the store holds after this.
    fn grow(&mut self, offset: u64, len: u64) -> Result<&mut [u8], Errno> {
        let end = self.end(offset, len)?;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        let start = usize::try_from(offset).map_err(|_| Errno::EFBIG)?;
        self.bytes.get_mut(start..end).ok_or(Errno::EIO)
    }

    /// Runs of blocks from `offset` on, as many as fit `room` bytes, and an end mark.
    fn extents(&self, offset: u64, room: u64) -> Vec<StatusExtent> {
        const EXTENT: u64 = size_of::<StatusExtent>() as u64;
        let room = usize::try_from(room.checked_div(EXTENT).unwrap_or(0)).unwrap_or(0);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let is_data = |at: usize| {
            let block = at.checked_div(self.block_bytes).unwrap_or(0);
            let first = block.saturating_mul(self.block_bytes);
            let blocks = self.bytes.iter().skip(first).take(self.block_bytes);
            blocks.into_iter().any(|byte| *byte != 0)
        };
        let mut runs: Vec<(u64, bool)> = Vec::new();
        let mut at = start;
        while at < self.bytes.len() {
            let block = at.checked_div(self.block_bytes).unwrap_or(0);
            let next = block.saturating_add(1).saturating_mul(self.block_bytes);
            let len = next.min(self.bytes.len()).saturating_sub(at) as u64;
            let data = is_data(at);
            match runs.last_mut() {
                Some((run, same)) if *same == data => *run = run.saturating_add(len),
                _ => runs.push((len, data)),
            }
            at = next;
        }
        runs.push((0, false));
        let extent = |(len, data): (u64, bool)| StatusExtent {
            len: U64::new(len),
            flags: U64::new(if data { EXTENT_DATA } else { 0 }),
        };
        runs.into_iter().take(room).map(extent).collect()
    }
}

impl<M: GuestMemory> BlockBackend for MemBackend<M> {
    fn submit(&mut self, token: Token, request: IoRequest) -> Submission {
        self.log.push(request.kind);
        if self.order == CompletionOrder::AtOnce {
            let result = self.perform(&request);
            return Submission::Done(Completion { result });
        }
        self.held.push((token, request));
        Submission::Pending
    }

    fn poll(&mut self) -> Option<(Token, Completion)> {
        if self.released == 0 {
            return None;
        }
        self.released = self.released.saturating_sub(1);
        let index = self.next_held();
        let (token, request) = self.held.remove(index);
        let result = self.perform(&request);
        Some((token, Completion { result }))
    }

    fn stop(&mut self) {
        self.held.clear();
        self.released = 0;
    }

    fn len_bytes(&mut self) -> Result<u64, Errno> {
        Ok(self.bytes.len() as u64)
    }

    fn id(&mut self) -> [u8; ID_BYTES] {
        *b"instar-memory-disk\0\0"
    }
}
