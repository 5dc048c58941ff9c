//! The driver of a split virtqueue. VirtIO 1.3 §2.7 "Split Virtqueues".
//!
//! The driver keeps its own shadow of the free descriptors and of the indices;
//! of what the device writes it reads only the used ring, and believes a used
//! element only if that chain is in flight.

use crate::Platform;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, Ordering, fence};
use instar_shared::device::DeviceEntry;
use instar_shared::doorbell::Kick;
use instar_shared::ring::{
    DESC_F_NEXT, DESC_F_WRITE, Descriptor, RING_ENTRIES_OFFSET, RING_IDX_OFFSET, UsedElem,
};
use instar_shared::zerocopy::little_endian::{U16, U32, U64};

/// Where a ring's index and entries lie in it.
#[allow(clippy::cast_possible_truncation)] // 2 and 4
const RING_OFFSETS: (usize, usize) = (RING_IDX_OFFSET as usize, RING_ENTRIES_OFFSET as usize);

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest address.
    pub addr: u64,
    /// Length in bytes, never 0.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

/// The device or its entry breaks the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// The entry's queue size is no power of two, or its rings are not aligned.
    Placement,
    /// The used index ran ahead of what is in flight.
    UsedIndex,
    /// A used element names a chain that is not in flight.
    UsedElement,
}

/// The driver's side of one virtqueue.
#[derive(Debug)]
pub struct Queue<P: Platform> {
    platform: P,
    kick: u32,
    size: u16,
    desc_table: NonNull<u8>,
    avail_ring: NonNull<u8>,
    used_ring: NonNull<u8>,
    /// Free descriptors, used as a stack.
    free: Vec<u16>,
    /// By head: the descriptors of a chain in flight, empty if there is none.
    chains: Vec<Vec<u16>>,
    in_flight: u16,
    next_avail: u16,
    published: u16,
    next_used: u16,
}

impl<P: Platform> Queue<P> {
    /// The queue that the device table announces for `slot`.
    ///
    /// # Errors
    /// [`QueueError::Placement`] if the entry describes no queue.
    pub fn new(platform: P, slot: u16, entry: &DeviceEntry) -> Result<Self, QueueError> {
        let size = entry.queue_size.get();
        let (desc, avail, used) = (
            entry.desc_table.get(),
            entry.avail_ring.get(),
            entry.used_ring.get(),
        );
        if !size.is_power_of_two() || desc % 16 != 0 || avail % 2 != 0 || used % 4 != 0 {
            return Err(QueueError::Placement);
        }
        let entries = usize::from(size);
        let bytes = |each: usize| each.saturating_mul(entries).saturating_add(6);
        let mut chains = Vec::new();
        chains.resize_with(entries, Vec::new);
        Ok(Self {
            desc_table: platform.pointer(desc, bytes(size_of::<Descriptor>())),
            avail_ring: platform.pointer(avail, bytes(size_of::<u16>())),
            used_ring: platform.pointer(used, bytes(size_of::<UsedElem>())),
            kick: Kick::Queue { slot, queue: 0 }.encode(),
            platform,
            size,
            free: (0..size).rev().collect(),
            chains,
            in_flight: 0,
            next_avail: 0,
            published: 0,
            next_used: 0,
        })
    }

    /// Descriptors that are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Chains that the device has not given back.
    #[must_use]
    pub const fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Writes a chain and puts it into the available ring; [`Self::kick`] shows it to the device.
    ///
    /// Returns the head, or `None` if the queue has no room for it or the chain is empty.
    ///
    /// # Safety
    /// The device may access the segments until [`Self::pop_used`] returns this head: they are memory
    /// that nobody else uses until then.
    pub unsafe fn add(&mut self, segments: &[Segment]) -> Option<u16> {
        if segments.is_empty() || segments.len() > self.free.len() {
            return None;
        }
        let keep = self.free.len().checked_sub(segments.len())?;
        let descriptors: Vec<u16> = self.free.drain(keep..).rev().collect();
        let nexts = descriptors.iter().skip(1).copied().map(Some).chain([None]);
        for ((index, segment), next) in descriptors.iter().zip(segments).zip(nexts) {
            self.write_descriptor(*index, segment, next);
        }
        let head = descriptors.first().copied()?;
        *self.chains.get_mut(usize::from(head))? = descriptors;
        self.write_avail(head);
        self.in_flight = self.in_flight.wrapping_add(1);
        Some(head)
    }

    /// Shows what was added to the device and rings its doorbell once; nothing new, no exit.
    pub fn kick(&mut self) {
        if self.published == self.next_avail {
            return;
        }
        self.published = self.next_avail;
        // VirtIO 1.3 §2.7.13.3: the index after the entries.
        self.index(self.avail_ring)
            .store(self.next_avail.to_le(), Ordering::Release);
        fence(Ordering::SeqCst);
        self.platform.kick(self.kick);
    }

    /// Blocks until something completed, or the cancel word is set.
    pub fn wait(&self) {
        self.platform.wait(0);
    }

    /// The next chain that the device gave back: its head and the bytes the device wrote.
    ///
    /// # Errors
    /// What the device did wrong.
    pub fn pop_used(&mut self) -> Result<Option<(u16, u32)>, QueueError> {
        let index = u16::from_le(self.index(self.used_ring).load(Ordering::Acquire));
        let ready = index.wrapping_sub(self.next_used);
        if ready == 0 {
            return Ok(None);
        }
        if ready > self.in_flight {
            return Err(QueueError::UsedIndex);
        }
        let element = self.read_used(self.next_used);
        let head = u16::try_from(element.id.get()).map_err(|_| QueueError::UsedElement)?;
        let chain = self.chains.get_mut(usize::from(head));
        let chain = core::mem::take(chain.ok_or(QueueError::UsedElement)?);
        if chain.is_empty() {
            return Err(QueueError::UsedElement);
        }
        self.free.extend(chain.into_iter().rev());
        self.next_used = self.next_used.wrapping_add(1);
        self.in_flight = self.in_flight.wrapping_sub(1);
        Ok(Some((head, element.len.get())))
    }

    /// The `idx` field of a ring.
    fn index(&self, ring: NonNull<u8>) -> &AtomicU16 {
        // SAFETY: the platform gave a pointer to the whole ring, and `new` checked that rings lie at even
        // addresses; the index is only ever accessed as an atomic by both sides.
        unsafe { ring.add(RING_OFFSETS.0).cast::<AtomicU16>().as_ref() }
    }

    fn write_descriptor(&mut self, index: u16, segment: &Segment, next: Option<u16>) {
        let write = if segment.writable { DESC_F_WRITE } else { 0 };
        let more = if next.is_some() { DESC_F_NEXT } else { 0 };
        let descriptor = Descriptor {
            addr: U64::new(segment.addr),
            len: U32::new(segment.len),
            flags: U16::new(write | more),
            next: U16::new(next.unwrap_or(0)),
        };
        let offset = usize::from(index).saturating_mul(size_of::<Descriptor>());
        // SAFETY: `index` is below the queue's size, for which the platform gave the pointer; the
        // descriptor is free, so the device does not look at it.
        unsafe {
            self.desc_table
                .add(offset)
                .cast::<Descriptor>()
                .write_volatile(descriptor);
        }
    }

    fn write_avail(&mut self, head: u16) {
        let entry = self.entry(self.next_avail, size_of::<U16>());
        // SAFETY: `entry` is inside the ring; the device does not read it before the index passes it.
        unsafe {
            self.avail_ring
                .add(entry)
                .cast::<U16>()
                .write_volatile(U16::new(head));
        }
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    fn read_used(&self, position: u16) -> UsedElem {
        let entry = self.entry(position, size_of::<UsedElem>());
        // SAFETY: `entry` is inside the ring; the device wrote it before it moved the index.
        unsafe { self.used_ring.add(entry).cast::<UsedElem>().read_volatile() }
    }

    /// Byte offset of the ring entry at `position`, which counts on past the queue's size.
    fn entry(&self, position: u16, each: usize) -> usize {
        let index = position & self.size.wrapping_sub(1); // the size is a power of two
        usize::from(index)
            .saturating_mul(each)
            .saturating_add(RING_OFFSETS.1)
    }
}
