//! The `compare` operation: images in slots 0 and 1.

use zerocopy::little_endian::{U32, U64};

/// [`CompareConfig::flags`]: what is allocated and what is not differ although both read as zeros.
pub const COMPARE_STRICT: u32 = 1 << 0;

wire_struct! {
    /// What `compare` is to do.
    pub struct CompareConfig {
        /// A [`crate::op::ImageFormat`] for each image.
        pub formats: [U32; 2],
        /// `COMPARE_*`.
        pub flags: U32,
        /// Zero.
        pub reserved: [u8; 52],
    }
}
wire_layout!(CompareConfig, size = 64, { formats @ 0, flags @ 8, reserved @ 12 });

wire_enum! {
    /// What a comparison came to.
    pub enum Verdict: u32 {
        /// It came to nothing; a failure record says why.
        None = 0,
        /// The guest reads the same from both.
        Identical = 1,
        /// They differ at [`CompareResult::offset`].
        Content = 2,
        /// Strict: one has what the other has not at [`CompareResult::offset`].
        Allocation = 3,
        /// Strict: they differ in size.
        Size = 4,
        /// Which parts the image in slot [`CompareResult::slot`] has cannot be read.
        MapFailed = 5,
        /// Data of the image in slot [`CompareResult::slot`] cannot be read.
        ReadFailed = 6,
    }
}

wire_struct! {
    /// How `compare` ended.
    pub struct CompareResult {
        /// An [`crate::op::Outcome`].
        pub outcome: U32,
        /// A [`Verdict`].
        pub verdict: U32,
        /// Where, in bytes of the disk.
        pub offset: U64,
        /// Which image.
        pub slot: U32,
        /// The errno of a read that failed.
        pub errno: U32,
        /// 1 if the common part was equal and one image is longer.
        pub longer: U32,
        /// Zero.
        pub reserved: [u8; 36],
    }
}
wire_layout!(CompareResult, size = 64, {
    outcome @ 0, verdict @ 4, offset @ 8, slot @ 16, errno @ 20, longer @ 24, reserved @ 28,
});
