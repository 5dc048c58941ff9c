//! `convert` and `dd`: copying images into another one.

use crate::edit::{MAX_BACKING_NAME_BYTES, MAX_FORMAT_NAME_BYTES};
use crate::encrypt::NewEncryption;
use zerocopy::little_endian::{U32, U64};

/// Longest ID or name of a snapshot that is looked for, in bytes.
pub const MAX_SNAPSHOT_BYTES: usize = 1024;

/// [`ConvertConfig::flags`]: compress the target.
pub const CONVERT_COMPRESS: u32 = 1 << 0;
/// [`ConvertConfig::flags`]: the target exists and is written as it is.
pub const CONVERT_NO_CREATE: u32 = 1 << 1;
/// [`ConvertConfig::flags`]: the target reads as zeros.
pub const CONVERT_TARGET_IS_ZERO: u32 = 1 << 2;
/// [`ConvertConfig::flags`]: copy the persistent bitmaps.
pub const CONVERT_BITMAPS: u32 = 1 << 3;
/// [`ConvertConfig::flags`]: leave out inconsistent bitmaps.
pub const CONVERT_SKIP_BROKEN_BITMAPS: u32 = 1 << 4;
/// [`ConvertConfig::flags`]: what cannot be read becomes zeros.
pub const CONVERT_SALVAGE: u32 = 1 << 5;
/// [`ConvertConfig::flags`]: the host copies what need not be looked at.
pub const CONVERT_COPY_RANGE: u32 = 1 << 6;
/// [`ConvertConfig::flags`]: write in any order.
pub const CONVERT_ANY_ORDER: u32 = 1 << 7;
/// [`ConvertConfig::flags`]: zeros that the source's tables know are written, too.
pub const CONVERT_FILL: u32 = 1 << 8;
/// [`ConvertConfig::flags`]: only open the sources; there is no target.
pub const CONVERT_LOOK_ONLY: u32 = 1 << 9;
/// [`ConvertConfig::flags`]: what was written is durable before the target is complete.
pub const CONVERT_DURABLE: u32 = 1 << 11;
/// [`ConvertConfig::flags`]: it is `dd`: what stands at and after `skip_bytes` and before `max_bytes` is copied.
pub const CONVERT_DD: u32 = 1 << 12;
/// [`ConvertConfig::flags`]: what only the backing files of the source hold is not copied.
pub const CONVERT_ONTO: u32 = 1 << 13;
/// [`ConvertConfig::flags`]: no warnings.
pub const CONVERT_QUIET: u32 = 1 << 10;

wire_enum! {
    /// Which state of the source is read.
    pub enum SnapshotChoice: u32 {
        /// The active one.
        None = 0,
        /// That of the snapshot whose ID, or else whose name is `snapshot_name`.
        IdOrName = 1,
        /// That of the snapshot with the ID `snapshot_id`.
        Id = 2,
        /// That of the snapshot with the name `snapshot_name`.
        Name = 3,
        /// That of the snapshot with both.
        IdAndName = 4,
    }
}

/// [`TargetOptions::flags`]: L2 entries with subclusters.
pub const TARGET_EXTENDED_L2: u32 = 1 << 0;
/// [`TargetOptions::flags`]: refcount updates may be postponed.
pub const TARGET_LAZY_REFCOUNTS: u32 = 1 << 1;
/// [`TargetOptions::flags`]: the data file can be read as a raw image.
pub const TARGET_DATA_FILE_RAW: u32 = 1 << 2;
/// [`TargetOptions::flags`]: compressed clusters are zstd frames.
pub const TARGET_ZSTD: u32 = 1 << 3;

wire_struct! {
    /// How a target is made; the operation checks it.
    pub struct TargetOptions {
        /// qcow2 version: 2 or 3.
        pub version: U32,
        /// A [`crate::edit::Preallocation`].
        pub preallocation: U32,
        /// Cluster size in bytes.
        pub cluster_bytes: U64,
        /// Width of a refcount in bits.
        pub refcount_bits: U64,
        /// `TARGET_*`.
        pub flags: U32,
        /// Bytes of `backing_file`; 0: none.
        pub backing_file_len: U32,
        /// Bytes of `backing_format`; 0: none.
        pub backing_format_len: U32,
        /// Bytes of `data_file`; 0: none.
        pub data_file_len: U32,
        /// Backing file name.
        pub backing_file: [u8; MAX_BACKING_NAME_BYTES],
        /// Backing format name.
        pub backing_format: [u8; MAX_FORMAT_NAME_BYTES],
        /// Data file name.
        pub data_file: [u8; MAX_BACKING_NAME_BYTES],
        /// How its data is encrypted.
        pub encryption: NewEncryption,
    }
}
wire_layout!(TargetOptions, size = 8584, {
    version @ 0, preallocation @ 4, cluster_bytes @ 8, refcount_bits @ 16, flags @ 24, backing_file_len @ 28,
    backing_format_len @ 32, data_file_len @ 36, backing_file @ 40, backing_format @ 4136, data_file @ 4392,
    encryption @ 8488,
});

wire_struct! {
    /// What `convert` is to do. Sources are in the slots from 0 on.
    pub struct ConvertConfig {
        /// Number of sources, at least 1.
        pub sources: U32,
        /// Slot of the target.
        pub target_slot: U32,
        /// Slot of the target's external data file; 0: it has none.
        pub data_slot: U32,
        /// Slot of the target's backing file; 0: it has none.
        pub backing_slot: U32,
        /// A [`crate::op::ImageFormat`] of the sources.
        pub source_format: U32,
        /// [`crate::op::ImageFormat::Raw`] or [`crate::op::ImageFormat::Qcow2`].
        pub target_format: U32,
        /// A [`crate::op::ImageFormat`] of the target's backing file.
        pub backing_format: U32,
        /// `CONVERT_*`.
        pub flags: U32,
        /// Zeros from this length on are left out, in bytes; 0: bytes are not looked at.
        pub sparse_bytes: U64,
        /// Bytes that are copied in a second at most; 0: as many as can be.
        pub rate: U64,
        /// First byte of the source that is copied (`dd`).
        pub skip_bytes: U64,
        /// First byte that is not copied, if the source does not end before (`dd`).
        pub max_bytes: U64,
        /// A [`SnapshotChoice`].
        pub snapshot: U32,
        /// Bytes of `snapshot_id`.
        pub snapshot_id_len: U32,
        /// Bytes of `snapshot_name`.
        pub snapshot_name_len: U32,
        /// Bytes of `target_name`.
        pub target_name_len: U32,
        /// ID of a snapshot.
        pub snapshot_id: [u8; MAX_SNAPSHOT_BYTES],
        /// Name of a snapshot.
        pub snapshot_name: [u8; MAX_SNAPSHOT_BYTES],
        /// The target's name as typed, for messages; it may be cut.
        pub target_name: [u8; 512],
        /// The first source's name as typed, for messages; it may be cut.
        pub source_name: [u8; 512],
        /// Bytes of `source_name`.
        pub source_name_len: U32,
        /// Zero.
        pub reserved: U32,
        /// How the target is made.
        pub options: TargetOptions,
    }
}
wire_layout!(ConvertConfig, size = 11744, {
    sources @ 0, target_slot @ 4, data_slot @ 8, backing_slot @ 12, source_format @ 16, target_format @ 20,
    backing_format @ 24, flags @ 28, sparse_bytes @ 32, rate @ 40, skip_bytes @ 48, max_bytes @ 56, snapshot @ 64,
    snapshot_id_len @ 68, snapshot_name_len @ 72, target_name_len @ 76, snapshot_id @ 80, snapshot_name @ 1104,
    target_name @ 2128, source_name @ 2640, source_name_len @ 3152, reserved @ 3156, options @ 3160,
});

wire_struct! {
    /// What `convert` has done.
    pub struct ConvertResult {
        /// A [`crate::op::Outcome`].
        pub outcome: U32,
        /// The [`crate::op::ImageFormat`] of the first source.
        pub source_format: U32,
        /// Virtual size of the target in bytes.
        pub size: U64,
        /// Zero.
        pub reserved: [u8; 48],
    }
}
wire_layout!(ConvertResult, size = 64, { outcome @ 0, source_format @ 4, size @ 8, reserved @ 16 });
