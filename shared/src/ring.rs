//! The split virtqueue, as the guest's driver writes it. VirtIO 1.3 §2.7 "Split Virtqueues".
//!
//! The host side uses the `virtio-queue` crate; these are the same structs for
//! the `no_std` side.

use zerocopy::little_endian::{U16, U32, U64};

/// The chain goes on at `next`. VirtIO 1.3 §2.7.5.
pub const DESC_F_NEXT: u16 = 1;
/// The device writes this buffer. VirtIO 1.3 §2.7.5.
pub const DESC_F_WRITE: u16 = 2;

/// Offset of `idx` in the available and the used ring. VirtIO 1.3 §2.7.6, §2.7.8.
pub const RING_IDX_OFFSET: u64 = 2;
/// Offset of `ring` in the available and the used ring.
pub const RING_ENTRIES_OFFSET: u64 = 4;

wire_struct! {
    /// A descriptor. VirtIO 1.3 §2.7.5 "The Virtqueue Descriptor Table".
    pub struct Descriptor {
        /// Guest address of the buffer.
        pub addr: U64,
        /// Length of the buffer in bytes.
        pub len: U32,
        /// `DESC_F_*`.
        pub flags: U16,
        /// Next descriptor if `DESC_F_NEXT`.
        pub next: U16,
    }
}
wire_layout!(Descriptor, size = 16, { addr @ 0, len @ 8, flags @ 12, next @ 14 });

wire_struct! {
    /// An element of the used ring. VirtIO 1.3 §2.7.8 "The Virtqueue Used Ring".
    pub struct UsedElem {
        /// Head descriptor of the chain.
        pub id: U32,
        /// Bytes the device wrote.
        pub len: U32,
    }
}
wire_layout!(UsedElem, size = 8, { id @ 0, len @ 4 });
