//! The `bench` operation: the image in slot 0.

use zerocopy::little_endian::{U32, U64};

/// [`BenchConfig::flags`]: requests write; else they read.
pub const BENCH_WRITE: u32 = 1 << 0;
/// [`BenchConfig::flags`]: a flush waits for what was sent before, and what follows waits for it.
pub const BENCH_DRAIN: u32 = 1 << 1;

wire_struct! {
    /// What `bench` is to send.
    pub struct BenchConfig {
        /// A [`crate::op::ImageFormat`].
        pub format: U32,
        /// `BENCH_*`.
        pub flags: U32,
        /// Requests in all.
        pub count: U32,
        /// Requests in flight at most.
        pub depth: U32,
        /// Bytes of each.
        pub len: U32,
        /// Bytes from the start of one to the start of the next.
        pub step: U32,
        /// Where the first starts, in bytes.
        pub start: U64,
        /// The byte that is written, 0 to 255.
        pub pattern: U32,
        /// Requests after which there is a flush; 0 for none.
        pub flush_interval: U32,
        /// Zero.
        pub reserved: [u8; 24],
    }
}
wire_layout!(BenchConfig, size = 64, {
    format @ 0, flags @ 4, count @ 8, depth @ 12, len @ 16, step @ 20, start @ 24, pattern @ 32,
    flush_interval @ 36, reserved @ 40,
});

wire_struct! {
    /// How `bench` ended.
    pub struct BenchResult {
        /// An [`crate::op::Outcome`].
        pub outcome: U32,
        /// The image's format, an [`crate::op::ImageFormat`].
        pub format: U32,
        /// What the requests took, in ns.
        pub elapsed_ns: U64,
        /// Zero.
        pub reserved: [u8; 48],
    }
}
wire_layout!(BenchResult, size = 64, {
    outcome @ 0, format @ 4, elapsed_ns @ 8, reserved @ 16,
});
