//! The `check` operation.

use zerocopy::little_endian::{U32, U64};

wire_struct! {
    /// What `check` is to do.
    pub struct CheckConfig {
        /// A [`crate::op::ImageFormat`]: the format of the image in slot 0, or `Probe`.
        pub format: U32,
        /// Zero.
        pub flags: U32,
        /// Zero.
        pub reserved: [u8; 56],
    }
}
wire_layout!(CheckConfig, size = 64, { format @ 0, flags @ 4, reserved @ 8 });

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
        /// Zero.
        pub reserved: [u8; 56],
    }
}
wire_layout!(CheckResult, size = 128, {
    outcome @ 0, format @ 4, corruptions @ 8, leaks @ 16, check_errors @ 24, image_end_offset @ 32,
    total_clusters @ 40, allocated_clusters @ 48, fragmented_clusters @ 56, compressed_clusters @ 64, reserved @ 72,
});
