//! The `map` operation.
//!
//! When the chain is open the guest sends a first `MapExtents` record, which may be empty; then as many as it
//! takes. They cover the part of the disk that was asked for without gaps, from its start on.

use zerocopy::little_endian::{U16, U32, U64};

/// [`MapConfig::flags`]: end after the first extent of data that lies at no place of a file.
pub const MAP_ONLY_PLACED: u32 = 1 << 0;

wire_struct! {
    /// What `map` is to do.
    pub struct MapConfig {
        /// A [`crate::op::ImageFormat`]: the format of the image in slot 0, or `Probe`.
        pub format: U32,
        /// `MAP_*`.
        pub flags: U32,
        /// First byte of the disk that is looked at.
        pub start: U64,
        /// First byte that is not, or anything past the end of the disk.
        pub end: U64,
        /// Zero.
        pub reserved: [u8; 40],
    }
}
wire_layout!(MapConfig, size = 64, { format @ 0, flags @ 4, start @ 8, end @ 16, reserved @ 24 });

wire_struct! {
    /// How `map` ended.
    pub struct MapResult {
        /// An [`crate::op::Outcome`].
        pub outcome: U32,
        /// Zero.
        pub reserved: [u8; 60],
    }
}
wire_layout!(MapResult, size = 64, { outcome @ 0, reserved @ 4 });

/// [`MapExtent::flags`]: the guest's data is what the file has, or a compressed form of it.
pub const EXTENT_DATA: u32 = 1 << 0;
/// [`MapExtent::flags`]: reads as zeros.
pub const EXTENT_ZERO: u32 = 1 << 1;
/// [`MapExtent::flags`]: an image of the chain says what it is.
pub const EXTENT_PRESENT: u32 = 1 << 2;
/// [`MapExtent::flags`]: compressed.
pub const EXTENT_COMPRESSED: u32 = 1 << 3;
/// [`MapExtent::flags`]: it has a place in a file.
pub const EXTENT_PLACED: u32 = 1 << 4;
/// All flags of [`MapExtent::flags`].
pub const EXTENT_FLAGS: u32 =
    EXTENT_DATA | EXTENT_ZERO | EXTENT_PRESENT | EXTENT_COMPRESSED | EXTENT_PLACED;

wire_struct! {
    /// One extent of a `MapExtents` record. It starts where the one before ended.
    pub struct MapExtent {
        /// Length in bytes, not 0.
        pub len: U64,
        /// Its place in the file, in bytes; 0 without [`EXTENT_PLACED`].
        pub offset: U64,
        /// `EXTENT_*`.
        pub flags: U32,
        /// Which image of the chain, 0 for the top.
        pub depth: U16,
        /// Slot of the file that the place is in.
        pub slot: U16,
    }
}
wire_layout!(MapExtent, size = 24, { len @ 0, offset @ 8, flags @ 16, depth @ 20, slot @ 22 });
