//! What user mode stands on: address space, descriptor tables and traps, by architecture.

#[cfg(any(target_arch = "aarch64", test))]
pub mod aarch64;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64 as native;
#[cfg(target_arch = "x86_64")]
pub use x86_64 as native;

/// What user mode may do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    Read,
    /// Read and write.
    ReadWrite,
    /// Read and execute.
    ReadExecute,
}

/// A run of guest memory that user mode may reach, at the same virtual and physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address, a multiple of the page size.
    pub start: u64,
    /// Length in bytes, a multiple of the page size.
    pub size: u64,
    /// What is allowed there.
    pub access: Access,
}

/// An exception as the trap page reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrapFrame {
    /// The exception's number (x86 vector, arm64 exception class).
    pub vector: u8,
    /// Its error code, 0 if it has none.
    pub error_code: u64,
    /// Instruction that faulted.
    pub instruction: u64,
    /// Stack pointer at that instruction.
    pub stack: u64,
    /// The address of a memory fault.
    pub fault_address: Option<u64>,
    /// The exception's name, e.g. `page fault`.
    pub name: &'static str,
    /// What was tried, e.g. `write to`; empty if it says nothing.
    pub detail: &'static str,
}
