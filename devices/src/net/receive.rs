//! Packets to the guest. VirtIO 1.3 §5.1.6.3 "Setting Up Receive Buffers", §5.1.6.4 "Processing of Incoming Packets".
//!
//! Buffers are taken off the queue ahead, about as many bytes as packets have been long of late, and the backend reads
//! into them; what is longer ends in a buffer of the host's (the *spill*) and is copied from there once more of the
//! guest's buffers are taken. So no packet is cut, short packets do not pay for long ones, and long ones come in place.

use super::{MAX_PACKET_BYTES, NetBackend};
use crate::virtio::{Chain, DeviceFault, DeviceQueue, GuestBuffer, Memory, chain, slices};
use instar_shared::net::Header;
use instar_shared::zerocopy::IntoBytes;
use instar_shared::zerocopy::little_endian::U16;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::mem::offset_of;

/// Bytes that are taken ahead at least: a frame of the usual length.
const MIN_AHEAD_BYTES: u64 = 2048;
/// Length of the header in bytes.
const HEADER_BYTES: usize = size_of::<Header>();

/// Why no more packets are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The backend has none.
    NoPacket,
    /// The driver has given no more buffers.
    NoBuffer,
}

/// A packet that does not fit into what was taken.
#[derive(Clone, Copy, Debug)]
struct Spilled {
    /// Length of the packet.
    len: u64,
    /// Of it, bytes that are in the guest's buffers already.
    placed: u64,
}

/// The device's half of the receive queue.
#[derive(Debug)]
pub(super) struct Receiver {
    /// `VIRTIO_NET_F_MRG_RXBUF` was accepted: a packet may take several chains.
    mergeable: bool,
    /// Chains that were taken, in order.
    taken: VecDeque<Chain>,
    /// Bytes of them.
    room: u64,
    /// Bytes that are taken ahead.
    ahead: u64,
    spill: Vec<u8>,
    spilled: Option<Spilled>,
}

impl Receiver {
    pub fn new(mergeable: bool) -> Self {
        Self {
            mergeable,
            taken: VecDeque::new(),
            room: 0,
            ahead: MIN_AHEAD_BYTES,
            spill: vec![0; MAX_PACKET_BYTES],
            spilled: None,
        }
    }

    /// Moves the next packet, if there is one and room for it.
    pub fn receive(
        &mut self,
        memory: &Memory,
        queue: &mut DeviceQueue,
        backend: &mut dyn NetBackend,
    ) -> Result<Option<Stop>, DeviceFault> {
        if let Some(spilled) = self.spilled {
            return self.place(memory, queue, spilled);
        }
        self.take(memory, queue, self.ahead)?;
        if self.taken.is_empty() {
            return Ok(Some(Stop::NoBuffer));
        }
        let room = self.usable();
        let mut into = slices::of(memory, &self.buffers(room))?;
        into.push(self.spill.as_mut_slice().into());
        let len = loop {
            match backend.receive(&into) {
                Ok(len) => break len,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // Another error is of the host's device, which may come back: then it is ready again.
                Err(_) => return Ok(Some(Stop::NoPacket)),
            }
        };
        let len_bytes = u64::try_from(len).unwrap_or(u64::MAX);
        self.ahead = len_bytes
            .max(self.ahead.checked_div(2).unwrap_or(0))
            .clamp(MIN_AHEAD_BYTES, MAX_PACKET_BYTES as u64);
        if len < HEADER_BYTES || len >= slices::len(&into) {
            // No packet, or the beginning of one.
            return Ok(None);
        }
        if len_bytes <= room {
            self.deliver(memory, queue, len_bytes)?;
            return Ok(None);
        }
        let spilled = Spilled {
            len: len_bytes,
            placed: room,
        };
        self.place(memory, queue, spilled)
    }

    /// Puts the rest of a packet where it belongs.
    fn place(
        &mut self,
        memory: &Memory,
        queue: &mut DeviceQueue,
        spilled: Spilled,
    ) -> Result<Option<Stop>, DeviceFault> {
        self.spilled = None;
        if self.mergeable {
            self.take(memory, queue, spilled.len)?;
        }
        if self.usable() < spilled.len {
            let chains = self.taken.iter();
            let descriptors: usize = chains.map(|chain| chain.writable.len()).sum();
            if self.mergeable && descriptors < usize::from(queue.size()) {
                self.spilled = Some(spilled);
                return Ok(Some(Stop::NoBuffer));
            }
            // The driver has no more to give: the packet never fits.
            return Ok(None);
        }
        let buffers = self.buffers(spilled.len);
        let (_, rest) = chain::split_at(&buffers, spilled.placed).ok_or(DeviceFault::Memory)?;
        let left = usize::try_from(spilled.len.saturating_sub(spilled.placed));
        let bytes = left.ok().and_then(|left| self.spill.get(..left));
        chain::scatter(memory, &rest, bytes.ok_or(DeviceFault::Memory)?)?;
        self.deliver(memory, queue, spilled.len)?;
        Ok(None)
    }

    /// Gives the driver the first `len` bytes of the chains that were taken: a packet.
    fn deliver(
        &mut self,
        memory: &Memory,
        queue: &mut DeviceQueue,
        len: u64,
    ) -> Result<(), DeviceFault> {
        let mut used = Vec::new();
        let first = self.taken.front().map(|chain| chain.writable.clone());
        let mut left = len;
        while left > 0 {
            let chain = self.taken.pop_front().ok_or(DeviceFault::Memory)?;
            let size = chain::total_len(&chain.writable);
            self.room = self.room.saturating_sub(size);
            let here = left.min(size);
            left = left.saturating_sub(here);
            used.push((chain.head, u32::try_from(here).unwrap_or(u32::MAX)));
        }
        let count = U16::new(u16::try_from(used.len()).unwrap_or(u16::MAX));
        let at = offset_of!(Header, num_buffers) as u64;
        let (_, field) =
            chain::split_at(&first.unwrap_or_default(), at).ok_or(DeviceFault::Memory)?;
        chain::scatter(memory, &field, count.as_bytes())?;
        queue.add_used_all(memory, &used)
    }

    /// Takes chains until they have `wanted` bytes, or there are no more.
    fn take(
        &mut self,
        memory: &Memory,
        queue: &mut DeviceQueue,
        wanted: u64,
    ) -> Result<(), DeviceFault> {
        while self.taken.is_empty() || (self.mergeable && self.room < wanted) {
            let Some(chain) = queue.pop(memory)? else {
                return Ok(());
            };
            let size = chain::total_len(&chain.writable);
            // VirtIO 1.3 §5.1.6.3.1: at least the header fits.
            if size < HEADER_BYTES as u64 {
                return Err(DeviceFault::RoomShort { head: chain.head });
            }
            self.room = self.room.saturating_add(size);
            self.taken.push_back(chain);
        }
        Ok(())
    }

    /// Bytes that the next packet may have.
    fn usable(&self) -> u64 {
        if self.mergeable {
            return self.room;
        }
        let first = self.taken.front();
        first.map_or(0, |chain| chain::total_len(&chain.writable))
    }

    /// The first `len` bytes of what was taken.
    fn buffers(&self, len: u64) -> Vec<GuestBuffer> {
        let mut left = len;
        let all = self.taken.iter().flat_map(|chain| &chain.writable);
        let cut = |buffer: &GuestBuffer| {
            let here = left.min(u64::from(buffer.len));
            left = left.saturating_sub(here);
            let len = u32::try_from(here).ok().filter(|len| *len > 0)?;
            Some(GuestBuffer {
                addr: buffer.addr,
                len,
            })
        };
        all.map_while(cut).collect()
    }
}
