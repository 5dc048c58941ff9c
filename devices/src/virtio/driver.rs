//! The driver's side of a virtqueue, for tests: it plays by the rules, and sleeps when it may.

#![allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation
)]

use super::Memory;
use std::collections::BTreeMap;
use std::sync::atomic::{Ordering, fence};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// Bytes of guest memory that the rings and the indirect tables of one driver take.
pub const DRIVER_BYTES: u64 = 0x4_0000;
/// Where the available ring is, from the driver's base.
const AVAIL: u64 = 0x8000;
/// Where the used ring is.
const USED: u64 = 0x1_0000;
/// Where indirect tables are, [`TABLE_BYTES`] for each descriptor.
const TABLES: u64 = 0x2_0000;
/// Length of an indirect table: 16 descriptors.
const TABLE_BYTES: u64 = 256;

/// A buffer of a chain: guest address, length in bytes, whether the device writes it.
pub type Buf = (u64, u32, bool);

/// A driver with one queue of up to 512 descriptors.
#[derive(Debug)]
pub struct Driver {
    mem: Memory,
    base: u64,
    size: u16,
    event_idx: bool,
    indirect: bool,
    free: Vec<u16>,
    /// By head: the descriptors of a chain.
    chains: BTreeMap<u16, Vec<u16>>,
    avail: u16,
    used: u16,
    /// Available index when [`Self::must_kick`] was asked last.
    told: u16,
}

impl Driver {
    /// A queue of `size` descriptors in [`DRIVER_BYTES`] of memory from `base` on, with the ring features of
    /// `features`.
    #[must_use]
    pub fn new(mem: &Memory, base: u64, size: u16, features: u64) -> Self {
        let driver = Self {
            mem: mem.clone(),
            base,
            size,
            event_idx: features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0,
            indirect: features & (1 << VIRTIO_RING_F_INDIRECT_DESC) != 0,
            free: (0..size).rev().collect(),
            chains: BTreeMap::new(),
            avail: 0,
            used: 0,
            told: 0,
        };
        let zeros = vec![0; DRIVER_BYTES as usize];
        mem.write_slice(&zeros, GuestAddress(base)).unwrap();
        driver
    }

    /// The queue as a transport hands it to the device.
    #[must_use]
    pub fn queue(&self) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        let at = |offset| GuestAddress(self.base + offset);
        queue.try_set_desc_table_address(at(0)).unwrap();
        queue.try_set_avail_ring_address(at(AVAIL)).unwrap();
        queue.try_set_used_ring_address(at(USED)).unwrap();
        queue.set_event_idx(self.event_idx);
        queue.set_ready(true);
        queue
    }

    /// Chains that the device has.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.chains.len()
    }

    /// Makes a chain available, in an indirect table if that was agreed on and `table` says so. `None`: there are too
    /// few free descriptors.
    pub fn add(&mut self, buffers: &[Buf], table: bool) -> Option<u16> {
        let table = table && self.indirect;
        let wanted = if table { 1 } else { buffers.len() };
        let rest = self.free.len().checked_sub(wanted)?;
        let descriptors: Vec<u16> = self.free.split_off(rest);
        let head = descriptors[0];
        if table {
            let at = self.base + TABLES + u64::from(head) * TABLE_BYTES;
            let places: Vec<u16> = (0..buffers.len() as u16).collect();
            self.write_chain(at, &places, buffers);
            let bytes = buffers.len() as u32 * 16;
            self.write_descriptor(self.base, head, (at, bytes), (4, 0));
        } else {
            self.write_chain(self.base, &descriptors, buffers);
        }
        self.chains.insert(head, descriptors);
        self.offer(head);
        Some(head)
    }

    /// Puts `head` into the available ring, whatever it is.
    pub fn offer(&mut self, head: u16) {
        let entry = self.base + AVAIL + 4 + u64::from(self.avail % self.size) * 2;
        self.mem.write_obj(head, GuestAddress(entry)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.store(AVAIL + 2, self.avail);
    }

    fn write_chain(&self, table: u64, places: &[u16], buffers: &[Buf]) {
        for (n, (addr, len, write)) in buffers.iter().enumerate() {
            let next = places.get(n + 1);
            let flags = u16::from(next.is_some()) | if *write { 2 } else { 0 };
            let link = (flags, next.copied().unwrap_or(0));
            self.write_descriptor(table, places[n], (*addr, *len), link);
        }
    }

    /// Writes descriptor `index` of the table at `table`: address and length, flags and next.
    pub fn write_descriptor(
        &self,
        table: u64,
        index: u16,
        (addr, len): (u64, u32),
        (flags, next): (u16, u16),
    ) {
        let at = table + u64::from(index) * 16;
        self.mem.write_obj(addr, GuestAddress(at)).unwrap();
        self.mem.write_obj(len, GuestAddress(at + 8)).unwrap();
        self.mem.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.mem.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Whether the device asks to hear of what was made available since this was asked last. VirtIO 1.3 §2.7.10.
    pub fn must_kick(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let (old, new) = (std::mem::replace(&mut self.told, self.avail), self.avail);
        if !self.event_idx {
            return new != old && self.load(USED) & 1 == 0;
        }
        let event = self.load(USED + 4 + u64::from(self.size) * 8);
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    /// The next chain that the device gave back: its head, and the bytes that it wrote.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.load(USED + 2) == self.used {
            return None;
        }
        let entry = self.base + USED + 4 + u64::from(self.used % self.size) * 8;
        let [id, len]: [u32; 2] = self.mem.read_obj(GuestAddress(entry)).unwrap();
        self.used = self.used.wrapping_add(1);
        let head = id as u16;
        let descriptors = self.chains.remove(&head).expect("a head that was offered");
        self.free.extend(descriptors);
        Some((head, len))
    }

    /// Asks for an interrupt with the next chain that is given back, and says whether the driver may sleep for it: no
    /// if one is there already.
    pub fn sleep(&mut self) -> bool {
        if self.event_idx {
            self.store(AVAIL + 4 + u64::from(self.size) * 2, self.used);
        } else {
            self.store(AVAIL, 0);
        }
        fence(Ordering::SeqCst);
        self.load(USED + 2) == self.used
    }

    /// Wants no interrupts until [`Self::sleep`].
    pub fn no_interrupts(&mut self) {
        if self.event_idx {
            let far = self.used.wrapping_sub(1);
            self.store(AVAIL + 4 + u64::from(self.size) * 2, far);
        } else {
            self.store(AVAIL, 1);
        }
    }

    fn load(&self, offset: u64) -> u16 {
        let at = GuestAddress(self.base + offset);
        self.mem.load(at, Ordering::Acquire).unwrap()
    }

    fn store(&self, offset: u64, value: u16) {
        let at = GuestAddress(self.base + offset);
        self.mem.store(value, at, Ordering::Release).unwrap();
    }
}
