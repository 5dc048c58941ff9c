//! The operations that change an image in place: `snapshot`, `resize`, `amend`, `bitmap`.

use crate::encrypt::KeyChange;
use zerocopy::little_endian::{U32, U64};

/// Longest snapshot name or id that a config holds, in bytes.
pub const MAX_SNAPSHOT_NAME_BYTES: usize = 1024;
/// Longest bitmap name in a config, in bytes: qcow2 "Bitmap directory".
pub const MAX_BITMAP_NAME_BYTES: usize = 1023;
/// Longest backing file name in a config, in bytes: one more than qcow2 allows, so that the operation refuses it.
pub const MAX_BACKING_NAME_BYTES: usize = 4096;
/// Longest format name in a config, in bytes.
pub const MAX_FORMAT_NAME_BYTES: usize = 256;
/// Bytes of [`BitmapConfig::actions`].
pub const MAX_ACTION_BYTES: usize = 12 << 10;

wire_enum! {
    /// What `snapshot` is to do.
    pub enum SnapshotAction: u32 {
        /// List; as records of the kind `Snapshot`.
        List = 1,
        /// Create.
        Create = 2,
        /// Apply: the disk becomes what the snapshot was.
        Apply = 3,
        /// Delete.
        Delete = 4,
    }
}

wire_struct! {
    /// What `snapshot` is to do.
    pub struct SnapshotConfig {
        /// A [`crate::op::ImageFormat`] of the image in slot 0.
        pub format: U32,
        /// A [`SnapshotAction`].
        pub action: U32,
        /// Bytes of `name`.
        pub name_len: U32,
        /// Zero.
        pub reserved: U32,
        /// Name, or id where one is looked for.
        pub name: [u8; MAX_SNAPSHOT_NAME_BYTES],
    }
}
wire_layout!(SnapshotConfig, size = 1040, { format @ 0, action @ 4, name_len @ 8, reserved @ 12, name @ 16 });

wire_enum! {
    /// How [`ResizeConfig::size`] is meant.
    pub enum SizeForm: u32 {
        /// The new size.
        Absolute = 1,
        /// Added to the size.
        Grow = 2,
        /// Taken from the size.
        Shrink = 3,
    }
}

wire_enum! {
    /// What is reserved of the part that is new.
    pub enum Preallocation: u32 {
        /// Nothing.
        Off = 0,
        /// qcow2: tables, but no data.
        Metadata = 1,
        /// Space by `fallocate`.
        Falloc = 2,
        /// Space by writing zeros.
        Full = 3,
    }
}

/// [`ResizeConfig::flags`]: making it smaller is meant.
pub const RESIZE_SHRINK: u32 = 1 << 0;

wire_struct! {
    /// What `resize` is to do.
    pub struct ResizeConfig {
        /// A [`crate::op::ImageFormat`] of the image in slot 0.
        pub format: U32,
        /// A [`SizeForm`].
        pub form: U32,
        /// Bytes.
        pub size: U64,
        /// A [`Preallocation`].
        pub preallocation: U32,
        /// `RESIZE_*`.
        pub flags: U32,
        /// Zero.
        pub reserved: [u8; 40],
    }
}
wire_layout!(ResizeConfig, size = 64, {
    format @ 0, form @ 4, size @ 8, preallocation @ 16, flags @ 20, reserved @ 24,
});

/// [`AmendConfig::given`]: `size`.
pub const AMEND_SIZE: u32 = 1 << 0;
/// [`AmendConfig::given`]: `compat`.
pub const AMEND_COMPAT: u32 = 1 << 1;
/// [`AmendConfig::given`]: `backing_file`.
pub const AMEND_BACKING_FILE: u32 = 1 << 2;
/// [`AmendConfig::given`]: `backing_fmt`.
pub const AMEND_BACKING_FORMAT: u32 = 1 << 3;
/// [`AmendConfig::given`]: `data_file`.
pub const AMEND_DATA_FILE: u32 = 1 << 4;
/// [`AmendConfig::given`]: `data_file_raw`.
pub const AMEND_DATA_FILE_RAW: u32 = 1 << 5;
/// [`AmendConfig::given`]: `lazy_refcounts`.
pub const AMEND_LAZY_REFCOUNTS: u32 = 1 << 6;
/// [`AmendConfig::given`]: `refcount_bits`.
pub const AMEND_REFCOUNT_BITS: u32 = 1 << 7;
/// [`AmendConfig::given`]: an option that begins with `encrypt.`.
pub const AMEND_ENCRYPT: u32 = 1 << 8;

wire_struct! {
    /// What `amend` is to do: the options that `given` names. If there are none, the image is only
    /// opened for a change, and the format judged.
    pub struct AmendConfig {
        /// A [`crate::op::ImageFormat`] of the image in slot 0.
        pub format: U32,
        /// `AMEND_*`.
        pub given: U32,
        /// Virtual size in bytes.
        pub size: U64,
        /// qcow2 version: 2 or 3.
        pub version: U32,
        /// Width of a refcount in bits.
        pub refcount_bits: U32,
        /// 0 or 1.
        pub lazy_refcounts: U32,
        /// 0 or 1.
        pub data_file_raw: U32,
        /// Bytes of `backing_file`.
        pub backing_file_len: U32,
        /// Bytes of `backing_format`.
        pub backing_format_len: U32,
        /// Bytes of `data_file`.
        pub data_file_len: U32,
        /// Zero.
        pub reserved: U32,
        /// Backing file name; empty for none.
        pub backing_file: [u8; MAX_BACKING_NAME_BYTES],
        /// Backing format name.
        pub backing_format: [u8; MAX_FORMAT_NAME_BYTES],
        /// Data file name.
        pub data_file: [u8; MAX_BACKING_NAME_BYTES],
        /// What becomes of key slots, if `given` says so.
        pub keys: KeyChange,
    }
}
wire_layout!(AmendConfig, size = 8520, {
    format @ 0, given @ 4, size @ 8, version @ 16, refcount_bits @ 20, lazy_refcounts @ 24, data_file_raw @ 28,
    backing_file_len @ 32, backing_format_len @ 36, data_file_len @ 40, reserved @ 44, backing_file @ 48,
    backing_format @ 4144, data_file @ 4400, keys @ 8496,
});

wire_enum! {
    /// One action on a bitmap.
    pub enum BitmapAction: u32 {
        /// Make it.
        Add = 1,
        /// Remove it.
        Remove = 2,
        /// Clear all its bits.
        Clear = 3,
        /// Record writes from now on.
        Enable = 4,
        /// Record no writes from now on.
        Disable = 5,
        /// Add the bits of the source bitmap that the action names.
        Merge = 6,
    }
}

wire_struct! {
    /// What `bitmap` is to do.
    pub struct BitmapConfig {
        /// A [`crate::op::ImageFormat`] of the image in slot 0.
        pub format: U32,
        /// A [`crate::op::ImageFormat`] of the image in slot 1, the source of merges, if there is one.
        pub source_format: U32,
        /// 1 if slot 1 is the source of merges, 0 if the image itself is.
        pub has_source: U32,
        /// Bytes of `name`.
        pub name_len: U32,
        /// Granularity in bytes for `Add`; 0: the default.
        pub granularity: U64,
        /// Bytes of `actions` in use.
        pub actions_len: U32,
        /// Zero.
        pub reserved: U32,
        /// The bitmap's name.
        pub name: [u8; 1024],
        /// The actions in order: [`BitmapActionHeader`] and name, padded to 8 bytes.
        pub actions: [u8; MAX_ACTION_BYTES],
    }
}
wire_layout!(BitmapConfig, size = 13344, {
    format @ 0, source_format @ 4, has_source @ 8, name_len @ 12, granularity @ 16, actions_len @ 24, reserved @ 28,
    name @ 32, actions @ 1056,
});

wire_struct! {
    /// Head of one action of [`BitmapConfig::actions`].
    pub struct BitmapActionHeader {
        /// A [`BitmapAction`].
        pub action: U32,
        /// Bytes of the source bitmap's name, for `Merge`; else 0.
        pub name_len: U32,
    }
}
wire_layout!(BitmapActionHeader, size = 8, { action @ 0, name_len @ 4 });

wire_struct! {
    /// What an operation that changes an image in place has done.
    pub struct EditResult {
        /// A [`crate::op::Outcome`].
        pub outcome: U32,
        /// The [`crate::op::ImageFormat`] of the image.
        pub format: U32,
        /// Virtual size before, in bytes.
        pub old_size: U64,
        /// Virtual size now, in bytes.
        pub size: U64,
        /// Zero.
        pub reserved: [u8; 40],
    }
}
wire_layout!(EditResult, size = 64, { outcome @ 0, format @ 4, old_size @ 8, size @ 16, reserved @ 24 });
