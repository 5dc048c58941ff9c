//! The device table: which block devices there are and where their queues lie.
//!
//! The host writes an entry before the guest may use the slot; the table is
//! read-only to the guest. There is no register dance: features are those of
//! the entry, and the queue is live from the start.

use crate::layout;
use crate::layout::Region;
use zerocopy::little_endian::{U16, U32, U64};

/// Slots in the table: a chain of 200 files with data files fits five times over.
pub const MAX_DEVICES: u16 = 1024;
/// Entries of each virtqueue.
pub const QUEUE_SIZE: u16 = 256;
/// Bytes of the queue region that belong to one slot.
pub const QUEUE_STRIDE: u64 = 8 << 10;
/// Offset of the available ring in a slot's queue memory; the descriptor table is at 0.
pub const AVAIL_OFFSET: u64 = 4 << 10;
/// Offset of the used ring in a slot's queue memory.
pub const USED_OFFSET: u64 = 5 << 10;

/// The entry is in use.
pub const FLAG_PRESENT: u32 = 1 << 0;
/// Writes, discards and length changes are refused.
pub const FLAG_READ_ONLY: u32 = 1 << 1;
/// A block device rather than a regular file.
pub const FLAG_BLOCK_DEVICE: u32 = 1 << 2;

/// There is no image below this one, whatever it says.
pub const BELOW_NONE: u16 = 1 << 0;
/// The user says something of the image below this one: there must be one.
pub const BELOW_TOLD: u16 = 1 << 1;
/// The image below this one is a file that the user names; asked for, it is opened instead of any other.
pub const BELOW_TYPED: u16 = 1 << 2;
/// The user says something of the data file: there must be one.
pub const DATA_FILE_TOLD: u16 = 1 << 3;
/// The image below is raw, whatever this one says.
pub const BELOW_RAW: u16 = 1 << 4;
/// The image below is qcow2, whatever this one says.
pub const BELOW_QCOW2: u16 = 1 << 5;

/// Vendor feature: byte-granular reads and writes, the exact length, and an errno in the footer.
pub const FEATURE_BYTE_IO: u64 = 1 << 0;
/// Vendor feature: block status.
pub const FEATURE_BLOCK_STATUS: u64 = 1 << 1;
/// Vendor feature, of devices that are not read-only: byte-granular writes, zeroes and discards, a new
/// length, reserving space, and a flush that says why it failed.
pub const FEATURE_BYTE_WRITE: u64 = 1 << 2;
/// Vendor feature, of devices that are not read-only: copying from the file of any slot.
pub const FEATURE_COPY: u64 = 1 << 3;
/// Vendor feature, of devices that are not read-only: requests are done in the order in which they became
/// available, so a flush also covers the writes before it that have not completed.
pub const FEATURE_ORDERED: u64 = 1 << 4;

wire_struct! {
    /// One slot of the device table.
    pub struct DeviceEntry {
        /// `FLAG_*`; 0 for an empty slot.
        pub flags: U32,
        /// Entries of the queue, [`QUEUE_SIZE`].
        pub queue_size: U16,
        /// Zero.
        pub reserved0: U16,
        /// `FEATURE_*` bits on offer.
        pub features: U64,
        /// Exact length in bytes when the file was opened.
        pub len_bytes: U64,
        /// Guest address of the descriptor table.
        pub desc_table: U64,
        /// Guest address of the available ring.
        pub avail_ring: U64,
        /// Guest address of the used ring.
        pub used_ring: U64,
        /// Bytes that the file system had allocated for the file when it was opened; 0 of a block device.
        pub allocated_bytes: U64,
        /// What the user says of the image below this one, and of its data file: `BELOW_*`.
        pub below: U16,
        /// How the user says that this image is encrypted, as qcow2 numbers it; 0: as it says.
        pub encryption: U16,
        /// Zero.
        pub reserved1: [u8; 4],
    }
}
wire_layout!(DeviceEntry, size = 64, {
    flags @ 0, queue_size @ 4, reserved0 @ 6, features @ 8, len_bytes @ 16, desc_table @ 24,
    avail_ring @ 32, used_ring @ 40, allocated_bytes @ 48, below @ 56, encryption @ 58,
    reserved1 @ 60,
});

/// Queue memory of device `slot`, or `None` if there is no such slot.
#[must_use]
pub fn queue_region(slot: u16) -> Option<Region> {
    if slot >= MAX_DEVICES {
        return None;
    }
    let start = layout::QUEUES
        .start
        .checked_add(u64::from(slot).checked_mul(QUEUE_STRIDE)?)?;
    Some(Region {
        start,
        size: QUEUE_STRIDE,
    })
}

/// Guest address of the table entry of `slot`, or `None` if there is no such slot.
#[must_use]
pub fn entry_address(slot: u16) -> Option<u64> {
    if slot >= MAX_DEVICES {
        return None;
    }
    layout::DEVICE_TABLE
        .start
        .checked_add(u64::from(slot).checked_mul(size_of::<DeviceEntry>() as u64)?)
}
