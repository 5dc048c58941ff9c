//! The `rebase` operation: the image in slot 0, its new backing file in slot 1 if that is looked at.

use crate::edit::{MAX_BACKING_NAME_BYTES, MAX_FORMAT_NAME_BYTES};
use zerocopy::little_endian::{U32, U64};

/// [`RebaseConfig::flags`]: the names change, and nothing is compared.
pub const REBASE_UNSAFE: u32 = 1 << 0;
/// [`RebaseConfig::flags`]: the new backing file is in slot 1.
pub const REBASE_NEW: u32 = 1 << 1;
/// [`RebaseConfig::flags`]: what is copied is compressed.
pub const REBASE_COMPRESS: u32 = 1 << 2;
/// [`RebaseConfig::flags`]: the format that is to stand in the image is given.
pub const REBASE_FORMAT: u32 = 1 << 3;

/// [`RebaseConfig::flags`]: there is no format of that name; nothing is done but to open the image.
pub const REBASE_UNKNOWN_FORMAT: u32 = 1 << 4;

wire_struct! {
    /// What `rebase` is to do.
    pub struct RebaseConfig {
        /// A [`crate::op::ImageFormat`] of the image.
        pub format: U32,
        /// A [`crate::op::ImageFormat`] of the new backing file.
        pub new_format: U32,
        /// `REBASE_*`.
        pub flags: U32,
        /// Bytes of `name`.
        pub name_len: U32,
        /// Bytes of `format_name`.
        pub format_name_len: U32,
        /// Zero.
        pub reserved: [u8; 12],
        /// Backing file name; empty for none.
        pub name: [u8; MAX_BACKING_NAME_BYTES],
        /// Backing format name.
        pub format_name: [u8; MAX_FORMAT_NAME_BYTES],
    }
}
wire_layout!(RebaseConfig, size = 4384, {
    format @ 0, new_format @ 4, flags @ 8, name_len @ 12, format_name_len @ 16, reserved @ 20, name @ 32,
    format_name @ 4128,
});

wire_struct! {
    /// How `rebase` ended.
    pub struct RebaseResult {
        /// A [`crate::op::Outcome`].
        pub outcome: U32,
        /// The [`crate::op::ImageFormat`] of the image.
        pub format: U32,
        /// Virtual size in bytes.
        pub size: U64,
        /// Bytes of the disk that were looked at in both chains.
        pub compared: U64,
        /// Zero.
        pub reserved: [u8; 40],
    }
}
wire_layout!(RebaseResult, size = 64, { outcome @ 0, format @ 4, size @ 8, compared @ 16, reserved @ 24 });
