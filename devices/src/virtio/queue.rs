//! A virtqueue as its device sees it. VirtIO 1.3 §2.7 "Split Virtqueues".
//!
//! A device works like this, so that no notification of the driver is lost (VirtIO 1.3 §2.7.7):
//!
//! ```text
//! loop {
//!     queue.disable_notification(mem)?;
//!     while let Some(chain) = queue.pop(mem)? { … queue.add_used(mem, chain.head, written)?; }
//!     if !queue.enable_notification(mem)? { break }
//! }
//! if queue.needs_notification(mem)? { interrupt.queue(index) }
//! ```
//!
//! A device that stops early, for want of something else than chains, leaves notifications off and looks again when it
//! has what it wants.

use super::chain::{Chain, read_chain};
use super::{DeviceFault, RestoreError};
use instar_shared::ring::{RING_ENTRIES_OFFSET, RING_IDX_OFFSET, UsedElem};
use instar_shared::zerocopy::IntoBytes;
use instar_shared::zerocopy::little_endian::U32;
use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_INDIRECT_DESC, VRING_AVAIL_F_NO_INTERRUPT};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// Offset of the entries in the available ring, and length of one. VirtIO 1.3 §2.7.6.
const AVAIL_ENTRIES: u64 = 4;
const AVAIL_ENTRY_BYTES: u64 = 2;
/// Length of an entry of the used ring. VirtIO 1.3 §2.7.8.
const USED_ENTRY_BYTES: u64 = size_of::<UsedElem>() as u64;

/// A queue whose driver is not trusted.
#[derive(Debug)]
pub struct DeviceQueue {
    queue: Queue,
    /// `VIRTIO_F_INDIRECT_DESC` was accepted.
    indirect: bool,
    /// The rings are known to lie in memory.
    checked: bool,
    /// The available index as it was read last.
    avail_index: u16,
    /// By head: when the device took the chain, counted from 1; 0 if it is the driver's.
    taken: Vec<u64>,
    /// Used index when the driver's wish to hear of it was asked last.
    told_used: u16,
    /// Chains taken so far.
    count: u64,
    /// Heads that the device has taken from the ring and is to look at again, first of all.
    again: VecDeque<u16>,
}

/// How far a device has come in a queue. Plain data and untrusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedQueue {
    /// Entries of the available ring that were looked at, modulo 2^16.
    pub next_avail: u16,
    /// Entries of the used ring that were written, modulo 2^16.
    pub next_used: u16,
    /// Heads of the chains that the device has taken and not given back, oldest first. [`DeviceQueue::pop`] returns
    /// them again.
    pub in_flight: Vec<u16>,
}

impl DeviceQueue {
    /// Takes over `queue`, which is sized, placed and ready, and has `VIRTIO_F_EVENT_IDX` if that was accepted;
    /// `features` are those that the driver has accepted.
    #[must_use]
    pub fn new(queue: Queue, features: u64) -> Self {
        Self {
            indirect: features & (1 << VIRTIO_RING_F_INDIRECT_DESC) != 0,
            checked: false,
            avail_index: queue.next_avail(),
            told_used: queue.next_used(),
            taken: vec![0; usize::from(queue.size())],
            count: 0,
            again: VecDeque::new(),
            queue,
        }
    }

    /// As [`Self::new`], going on where `saved` was; `device` stands in messages.
    ///
    /// # Errors
    /// Chains in flight that the queue cannot have.
    pub fn restore(
        device: &'static str,
        mut queue: Queue,
        features: u64,
        saved: &SavedQueue,
    ) -> Result<Self, RestoreError> {
        queue.set_next_avail(saved.next_avail);
        queue.set_next_used(saved.next_used);
        let mut restored = Self::new(queue, features);
        for head in &saved.in_flight {
            let free = restored.taken.get_mut(usize::from(*head));
            let free = free.filter(|taken| **taken == 0);
            let what = "a descriptor chain in flight";
            *free.ok_or(RestoreError::Impossible { device, what })? = 1;
            restored.again.push_back(*head);
        }
        restored.taken.fill(0);
        Ok(restored)
    }

    /// How far the device has come.
    #[must_use]
    pub fn save(&self) -> SavedQueue {
        let mut owned: Vec<(u64, u16)> = (0_u16..)
            .zip(&self.taken)
            .filter_map(|(head, taken)| (*taken != 0).then_some((*taken, head)))
            .collect();
        owned.sort_unstable();
        let owned = owned.into_iter().map(|(_, head)| head);
        SavedQueue {
            next_avail: self.queue.next_avail(),
            next_used: self.queue.next_used(),
            in_flight: owned.chain(self.again.iter().copied()).collect(),
        }
    }

    /// Number of descriptors.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Chains that the device has taken and not given back.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.taken.iter().filter(|taken| **taken != 0).count()
    }

    /// Chains that [`Self::pop`] would return now, at most the queue's size; the index is read once.
    ///
    /// # Errors
    /// What the driver did wrong.
    pub fn available<M: GuestMemory>(&mut self, mem: &M) -> Result<u16, DeviceFault> {
        if !self.checked && !self.queue.is_valid(mem) {
            return Err(DeviceFault::QueueOutside);
        }
        self.checked = true;
        let seen = self.queue.next_avail();
        let index = self.queue.avail_idx(mem, Ordering::Acquire);
        let index = index.map_err(|_| DeviceFault::QueueOutside)?.0;
        let fresh = index.wrapping_sub(seen);
        if fresh > self.queue.size() {
            return Err(DeviceFault::AvailIndex { index, seen });
        }
        self.avail_index = index;
        let again = u16::try_from(self.again.len()).unwrap_or(u16::MAX);
        Ok(fresh.saturating_add(again).min(self.queue.size()))
    }

    /// Takes the next chain that the driver has made available; `None` if there is none now.
    ///
    /// # Errors
    /// What the driver did wrong.
    pub fn pop<M: GuestMemory>(&mut self, mem: &M) -> Result<Option<Chain>, DeviceFault> {
        let Some(head) = self.next_head(mem)? else {
            return Ok(None);
        };
        let size = self.queue.size();
        let outside = DeviceFault::DescriptorIndex { index: head, size };
        let taken = self.taken.get_mut(usize::from(head)).ok_or(outside)?;
        if *taken != 0 {
            return Err(DeviceFault::HeadInUse { head });
        }
        let chain = read_chain(mem, &self.queue, head, self.indirect)?;
        self.count = self.count.saturating_add(1);
        *taken = self.count;
        Ok(Some(chain))
    }

    fn next_head<M: GuestMemory>(&mut self, mem: &M) -> Result<Option<u16>, DeviceFault> {
        if let Some(head) = self.again.pop_front() {
            return Ok(Some(head));
        }
        let position = self.queue.next_avail();
        if position == self.avail_index && self.available(mem)? == 0 {
            return Ok(None);
        }
        let entry = position.checked_rem(self.queue.size()).unwrap_or(0);
        let offset = u64::from(entry)
            .saturating_mul(AVAIL_ENTRY_BYTES)
            .saturating_add(AVAIL_ENTRIES);
        let addr = self.queue.avail_ring().checked_add(offset);
        let addr = addr.ok_or(DeviceFault::QueueOutside)?;
        let head: u16 = mem
            .read_obj(GuestAddress(addr))
            .map_err(|_| DeviceFault::QueueOutside)?;
        self.queue.set_next_avail(position.wrapping_add(1));
        Ok(Some(u16::from_le(head)))
    }

    /// Lets go of a chain that was taken and not used: [`Self::pop`] returns it first. Of several, the last one taken
    /// is put back first.
    pub fn put_back(&mut self, head: u16) {
        if let Some(taken) = self.taken.get_mut(usize::from(head))
            && *taken != 0
        {
            *taken = 0;
            self.again.push_front(head);
        }
    }

    /// Whether chains that were put back wait for [`Self::pop`].
    #[must_use]
    pub fn has_put_back(&self) -> bool {
        !self.again.is_empty()
    }

    /// Gives a chain that was taken back to the driver; `written` bytes of it are filled. VirtIO 1.3 §2.7.8.
    ///
    /// # Errors
    /// The used ring is not in memory, or the chain was not taken.
    pub fn add_used<M: GuestMemory>(
        &mut self,
        mem: &M,
        head: u16,
        written: u32,
    ) -> Result<(), DeviceFault> {
        self.add_used_all(mem, &[(head, written)])
    }

    /// As [`Self::add_used`], for several chains that the driver sees all at once.
    ///
    /// # Errors
    /// As [`Self::add_used`].
    pub fn add_used_all<M: GuestMemory>(
        &mut self,
        mem: &M,
        chains: &[(u16, u32)],
    ) -> Result<(), DeviceFault> {
        let ring = self.queue.used_ring();
        let mut next = self.queue.next_used();
        for (head, written) in chains {
            let taken = self.taken.get_mut(usize::from(*head));
            let taken = taken.filter(|taken| **taken != 0);
            *taken.ok_or(DeviceFault::UnknownToken)? = 0;
            let element = UsedElem {
                id: U32::new(u32::from(*head)),
                len: U32::new(*written),
            };
            let entry = next.checked_rem(self.queue.size()).unwrap_or(0);
            let offset = u64::from(entry)
                .saturating_mul(USED_ENTRY_BYTES)
                .saturating_add(RING_ENTRIES_OFFSET);
            let addr = ring.checked_add(offset).ok_or(DeviceFault::QueueOutside)?;
            mem.write_slice(element.as_bytes(), GuestAddress(addr))
                .map_err(|_| DeviceFault::QueueOutside)?;
            next = next.wrapping_add(1);
        }
        self.queue.set_next_used(next);
        let index = ring.checked_add(RING_IDX_OFFSET);
        let index = index.ok_or(DeviceFault::QueueOutside)?;
        mem.store(next.to_le(), GuestAddress(index), Ordering::Release)
            .map_err(|_| DeviceFault::QueueOutside)
    }

    /// Whether the driver wants to hear of what was added since this was last asked; no if that is nothing. VirtIO 1.3
    /// §2.7.7.2.
    ///
    /// # Errors
    /// The available ring is not in memory.
    pub fn needs_notification<M: GuestMemory>(&mut self, mem: &M) -> Result<bool, DeviceFault> {
        let new = self.queue.next_used();
        let old = std::mem::replace(&mut self.told_used, new);
        if new == old {
            return Ok(false);
        }
        // What was added must be visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        let avail = self.queue.avail_ring();
        let load = |offset: u64| -> Result<u16, DeviceFault> {
            let addr = avail.checked_add(offset);
            let addr = GuestAddress(addr.ok_or(DeviceFault::QueueOutside)?);
            let value: Result<u16, _> = mem.load(addr, Ordering::Relaxed);
            Ok(u16::from_le(value.map_err(|_| DeviceFault::QueueOutside)?))
        };
        if self.queue.event_idx_enabled() {
            let entries = u64::from(self.queue.size()).saturating_mul(AVAIL_ENTRY_BYTES);
            let event = load(entries.saturating_add(AVAIL_ENTRIES))?;
            return Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old));
        }
        Ok(u32::from(load(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Asks the driver not to notify; it may all the same.
    ///
    /// # Errors
    /// The used ring is not in memory.
    pub fn disable_notification<M: GuestMemory>(&mut self, mem: &M) -> Result<(), DeviceFault> {
        let disabled = self.queue.disable_notification(mem);
        disabled.map_err(|_| DeviceFault::QueueOutside)
    }

    /// Asks the driver to notify; true if chains came meanwhile, of which it may not: look again.
    ///
    /// # Errors
    /// The used ring is not in memory.
    pub fn enable_notification<M: GuestMemory>(&mut self, mem: &M) -> Result<bool, DeviceFault> {
        let more = self.queue.enable_notification(mem);
        more.map_err(|_| DeviceFault::QueueOutside)
    }
}

#[cfg(test)]
mod tests;
