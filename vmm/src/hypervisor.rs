//! What a hypervisor must do. One module per hypervisor implements these traits;
//! nothing above them names one.

use crate::VmError;
use crate::arch::TrapFrame;
use crate::memory::GuestSlot;
use std::sync::Arc;

#[cfg(all(target_os = "macos", target_arch = "aarch64"))]
pub use crate::hvf::Hvf as Native;
#[cfg(target_os = "linux")]
pub use crate::kvm::Kvm as Native;

/// Why the vCPU stopped.
#[derive(Debug, PartialEq, Eq)]
pub enum Exit {
    /// The kick doorbell rang with this value.
    Kick(u32),
    /// The wait doorbell rang with this value.
    Wait(u32),
    /// The trap page reported this exception vector.
    Trap(u8),
    /// The tick; nothing happened in the guest.
    Interrupted,
    /// The guest cannot go on: a triple fault, a halt, an access nothing backs.
    Stopped(String),
}

/// A hypervisor of this host.
pub trait Hypervisor: Sized {
    /// Its virtual machines.
    type Vm: Vm;

    /// Opens the hypervisor.
    ///
    /// # Errors
    /// One of [`VmError`]'s sentences on what is missing.
    fn open() -> Result<Self, VmError>;

    /// Creates a machine over `slot`, of which the guest sees nothing yet.
    ///
    /// # Errors
    /// [`VmError::Call`].
    fn create_vm(&self, slot: Arc<GuestSlot>) -> Result<Self::Vm, VmError>;
}

/// A virtual machine.
pub trait Vm: Send + Sync + 'static {
    /// Its vCPUs.
    type Vcpu: Vcpu;

    /// Gives the guest `size` bytes of the slot from `start`, both multiples of 2 MiB, at the same
    /// guest-physical address. Done again as memory is granted, each time for a range of its own.
    ///
    /// # Errors
    /// [`VmError::Call`].
    fn map_memory(&self, start: u64, size: u64) -> Result<(), VmError>;

    /// Creates the vCPU of `index`, ready to enter user mode (ring 3, EL0) at `entry`.
    /// It belongs to the calling thread, which gets its ticks; that of vCPU 0 is the process's first.
    ///
    /// # Errors
    /// [`VmError::Call`].
    fn create_vcpu(&self, index: u8, entry: &UserEntry) -> Result<Self::Vcpu, VmError>;
}

/// Where user mode begins.
#[derive(Clone, Copy, Debug)]
pub struct UserEntry {
    /// First instruction.
    pub entry_gva: u64,
    /// Stack pointer at that instruction.
    pub stack_gva: u64,
    /// First argument of the function there.
    pub argument: u64,
}

/// A virtual CPU.
pub trait Vcpu {
    /// `instar_shared::boot::cpu` bits of what the guest may use.
    fn cpu_features(&self) -> u64;

    /// Frequency of the counter the guest reads, in Hz; 0 if unknown.
    fn counter_hz(&self) -> u64;

    /// Runs until something needs the host; [`Exit::Interrupted`] comes about ten times a
    /// second at least, so that limits and cancellation are seen.
    ///
    /// # Errors
    /// [`VmError::Run`] if the hypervisor gave up.
    fn run(&mut self) -> Result<Exit, VmError>;

    /// The exception that [`Exit::Trap`] reported.
    ///
    /// # Errors
    /// [`VmError::Call`], [`VmError::OutsideMemory`].
    fn trap_frame(&self, slot: &GuestSlot, vector: u8) -> Result<TrapFrame, VmError>;

    /// The instruction and stack pointers now, for reports.
    ///
    /// # Errors
    /// [`VmError::Call`].
    fn position(&self) -> Result<(u64, u64), VmError>;
}
