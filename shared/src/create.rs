//! `create`: a new image; `measure`: how long the file of one becomes.

use crate::convert::{MAX_SNAPSHOT_BYTES, TargetOptions};
use zerocopy::little_endian::{U32, U64};

/// [`CreateConfig::flags`]: `size` holds; else it is the backing file's.
pub const CREATE_SIZE_GIVEN: u32 = 1 << 0;
/// [`CreateConfig::flags`]: slot 0 is the backing file, which has to open.
pub const CREATE_HAS_BACKING: u32 = 1 << 1;
/// [`CreateConfig::flags`]: the backing file's format was stated.
pub const CREATE_BACKING_STATED: u32 = 1 << 2;
/// [`CreateConfig::flags`]: nothing is made; it only matters whether the backing file opens.
pub const CREATE_LOOK_ONLY: u32 = 1 << 3;

wire_struct! {
    /// What `create` is to do. As soon as the size is known the guest sends it as a `Line` record of digits.
    pub struct CreateConfig {
        /// [`crate::op::ImageFormat::Raw`] or [`crate::op::ImageFormat::Qcow2`].
        pub target_format: U32,
        /// Slot of the target.
        pub target_slot: U32,
        /// Slot of the target's external data file; 0: it has none.
        pub data_slot: U32,
        /// A [`crate::op::ImageFormat`] of the backing file.
        pub backing_format: U32,
        /// Virtual size in bytes.
        pub size: U64,
        /// `CREATE_*`.
        pub flags: U32,
        /// Zero.
        pub reserved: U32,
        /// How the target is made.
        pub options: TargetOptions,
    }
}
wire_layout!(CreateConfig, size = 8616, {
    target_format @ 0, target_slot @ 4, data_slot @ 8, backing_format @ 12, size @ 16, flags @ 24, reserved @ 28,
    options @ 32,
});

wire_struct! {
    /// What `create` has made.
    pub struct CreateResult {
        /// A [`crate::op::Outcome`].
        pub outcome: U32,
        /// Zero.
        pub reserved: U32,
        /// Virtual size in bytes.
        pub size: U64,
        /// Zero.
        pub reserved2: [u8; 48],
    }
}
wire_layout!(CreateResult, size = 64, { outcome @ 0, reserved @ 4, size @ 8, reserved2 @ 16 });

/// [`MeasureConfig::flags`]: slot 0 is an image whose content counts; else `size` holds.
pub const MEASURE_IMAGE: u32 = 1 << 0;

wire_struct! {
    /// What `measure` is to do.
    pub struct MeasureConfig {
        /// [`crate::op::ImageFormat::Raw`] or [`crate::op::ImageFormat::Qcow2`].
        pub target_format: U32,
        /// A [`crate::op::ImageFormat`] of the image.
        pub source_format: U32,
        /// Virtual size in bytes.
        pub size: U64,
        /// `MEASURE_*`.
        pub flags: U32,
        /// A [`crate::convert::SnapshotChoice`].
        pub snapshot: U32,
        /// Bytes of `snapshot_id`.
        pub snapshot_id_len: U32,
        /// Bytes of `snapshot_name`.
        pub snapshot_name_len: U32,
        /// ID of a snapshot.
        pub snapshot_id: [u8; MAX_SNAPSHOT_BYTES],
        /// Name of a snapshot.
        pub snapshot_name: [u8; MAX_SNAPSHOT_BYTES],
        /// How the file would be made.
        pub options: TargetOptions,
    }
}
wire_layout!(MeasureConfig, size = 10664, {
    target_format @ 0, source_format @ 4, size @ 8, flags @ 16, snapshot @ 20, snapshot_id_len @ 24,
    snapshot_name_len @ 28, snapshot_id @ 32, snapshot_name @ 1056, options @ 2080,
});

/// [`MeasureResult::flags`]: `bitmaps` holds.
pub const MEASURED_BITMAPS: u32 = 1 << 0;

wire_struct! {
    /// What `measure` found.
    pub struct MeasureResult {
        /// A [`crate::op::Outcome`].
        pub outcome: U32,
        /// `MEASURED_*`.
        pub flags: U32,
        /// Bytes of the file with the content that there is.
        pub required: U64,
        /// Bytes of the file with content everywhere.
        pub fully_allocated: U64,
        /// Bytes that bitmaps take besides.
        pub bitmaps: U64,
        /// Zero.
        pub reserved: [u8; 32],
    }
}
wire_layout!(MeasureResult, size = 64, {
    outcome @ 0, flags @ 4, required @ 8, fully_allocated @ 16, bitmaps @ 24, reserved @ 32,
});
