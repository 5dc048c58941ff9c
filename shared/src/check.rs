//! The `check` operation, and `repair`, which has the same config and result.

use zerocopy::little_endian::{U32, U64};

wire_enum! {
    /// What `repair` may change.
    pub enum RepairMode: u32 {
        /// Refcounts that are too high.
        Leaks = 1,
        /// Whatever the metadata determines.
        All = 2,
        /// As `All`, of an image that is marked dirty and about to be changed: not checked again, and nothing else is
        /// opened. An image that is not dirty stays as it is.
        Dirty = 3,
    }
}

wire_struct! {
    /// What `check` is to do.
    pub struct CheckConfig {
        /// A [`crate::op::ImageFormat`]: the format of the image in slot 0, or `Probe`.
        pub format: U32,
        /// A [`RepairMode`]; 0 in `check`.
        pub repair: U32,
        /// Zero.
        pub reserved: [u8; 56],
    }
}
wire_layout!(CheckConfig, size = 64, { format @ 0, repair @ 4, reserved @ 8 });

wire_struct! {
    /// What `check` found.
    pub struct CheckResult {
        /// An [`crate::op::Outcome`].
        pub outcome: U32,
        /// The [`crate::op::ImageFormat`] of the image.
        pub format: U32,
        /// Errors that endanger data.
        pub corruptions: U64,
        /// Clusters counted higher than they are used.
        pub leaks: U64,
        /// Errors that kept the check from looking.
        pub check_errors: U64,
        /// Offset just past the last cluster in use, bytes.
        pub image_end_offset: U64,
        /// Guest clusters in the image.
        pub total_clusters: U64,
        /// Guest clusters that are allocated.
        pub allocated_clusters: U64,
        /// Allocated clusters that do not follow their predecessor.
        pub fragmented_clusters: U64,
        /// Allocated clusters that are compressed.
        pub compressed_clusters: U64,
        /// `repair`: damages that are gone. The numbers above are of the check after it.
        pub corruptions_fixed: U64,
        /// `repair`: leaked clusters that are free now.
        pub leaks_fixed: U64,
        /// Zero.
        pub reserved: [u8; 40],
    }
}
wire_layout!(CheckResult, size = 128, {
    outcome @ 0, format @ 4, corruptions @ 8, leaks @ 16, check_errors @ 24, image_end_offset @ 32,
    total_clusters @ 40, allocated_clusters @ 48, fragmented_clusters @ 56, compressed_clusters @ 64, corruptions_fixed @ 72,
    leaks_fixed @ 80, reserved @ 88,
});
