//! The boot page: what an operation knows of its machine. Read-only to the guest.

use zerocopy::little_endian::{U32, U64};

/// First word of the boot page.
pub const BOOT_MAGIC: u32 = 0x5241_5453;

/// CPU feature bits in [`BootPage::cpu_features`].
pub mod cpu {
    /// AVX2 instructions may be used (x86-64).
    pub const AVX2: u64 = 1 << 0;
    /// AES instructions may be used.
    pub const AES: u64 = 1 << 1;
    /// SHA instructions may be used.
    pub const SHA: u64 = 1 << 2;
}

/// Value of [`BootPage::cancel`] once the operation should end at its next boundary.
pub const CANCEL_REQUESTED: u32 = 1;

wire_struct! {
    /// The boot page, at [`crate::layout::BOOT`].
    pub struct BootPage {
        /// [`BOOT_MAGIC`].
        pub magic: U32,
        /// [`crate::abi::ABI_VERSION`].
        pub abi_version: U32,
        /// Host-written while the guest runs: 0, or [`CANCEL_REQUESTED`].
        pub cancel: U32,
        /// vCPUs of the machine, this one included: 1 to [`crate::layout::MAX_VCPUS`].
        pub vcpus: U32,
        /// First address of the heap.
        pub heap_start: U64,
        /// First address past the heap at start; see [`crate::control::MemoryGrant::heap_end`].
        pub heap_end: U64,
        /// Bits of [`cpu`].
        pub cpu_features: U64,
        /// Frequency of the time stamp counter in Hz, 0 if unknown.
        pub tsc_hz: U64,
        /// Wall clock at entry, nanoseconds since 1970-01-01 UTC.
        pub wall_clock_ns: U64,
        /// Fresh random bytes from the host.
        pub entropy: [u8; 64],
        /// Secrets in [`crate::layout::SECRETS`]; if 0, the region is not mapped.
        pub secrets: U32,
        /// Zero.
        pub reserved: U32,
    }
}
wire_layout!(BootPage, size = 128, {
    magic @ 0, abi_version @ 4, cancel @ 8, vcpus @ 12, heap_start @ 16, heap_end @ 24,
    cpu_features @ 32, tsc_hz @ 40, wall_clock_ns @ 48, entropy @ 56, secrets @ 120,
    reserved @ 124,
});
