//! The `commit` operation: the image in slot 0, whose base the host knows.

use zerocopy::little_endian::{U32, U64};

/// [`CommitConfig::flags`]: the image keeps what it holds.
pub const COMMIT_KEEP: u32 = 1 << 0;
/// [`CommitConfig::flags`]: the host waits where too much was copied, and shows progress itself.
pub const COMMIT_PACED: u32 = 1 << 1;
/// [`CommitConfig::flags`]: the user named the base.
pub const COMMIT_NAMED: u32 = 1 << 2;

wire_struct! {
    /// What `commit` is to do.
    pub struct CommitConfig {
        /// A [`crate::op::ImageFormat`] of the image in slot 0.
        pub format: U32,
        /// `COMMIT_*`.
        pub flags: U32,
        /// Zero.
        pub reserved: [u8; 56],
    }
}
wire_layout!(CommitConfig, size = 64, { format @ 0, flags @ 4, reserved @ 8 });

wire_struct! {
    /// How `commit` ended.
    pub struct CommitResult {
        /// An [`crate::op::Outcome`].
        pub outcome: U32,
        /// The image's format, an [`crate::op::ImageFormat`].
        pub format: U32,
        /// Slot of the base; 0 if it was not found.
        pub base_slot: U32,
        /// 1 if the base that the user named is not in the chain.
        pub not_found: U32,
        /// Virtual size of the base at the end, in bytes.
        pub base_size: U64,
        /// Zero.
        pub reserved: [u8; 40],
    }
}
wire_layout!(CommitResult, size = 64, {
    outcome @ 0, format @ 4, base_slot @ 8, not_found @ 12, base_size @ 16, reserved @ 24,
});
