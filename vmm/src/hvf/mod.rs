//! Hypervisor.framework on Apple silicon.
//!
//! A process has at most one machine at a time. Memory is mapped with the plain
//! call: applevisor's own memory type owns what it maps, and maps read-write
//! memory as execute-only.

mod error;
mod ticker;
mod vcpu;

use crate::VmError;
use crate::arch::native::end_gpa;
use crate::hypervisor::{Hypervisor, UserEntry, Vm};
use crate::memory::GuestSlot;
use applevisor::error::HypervisorError;
use applevisor::vm::{GicDisabled, VirtualMachine, VirtualMachineConfig, VirtualMachineInstance};
use applevisor_sys::{HV_MEMORY_EXEC, HV_MEMORY_READ, HV_MEMORY_WRITE, hv_error_t, hv_vm_map};
use error::call;
use std::sync::Arc;

/// The framework, which needs no opening.
pub struct Hvf;

/// The machine of this process; keeps its memory alive.
pub struct HvfVm {
    // Dropped before the memory.
    vm: VirtualMachineInstance<GicDisabled>,
    slot: Arc<GuestSlot>,
}

impl Hypervisor for Hvf {
    type Vm = HvfVm;

    fn open() -> Result<Self, VmError> {
        Ok(Self)
    }

    fn create_vm(&self, slot: Arc<GuestSlot>) -> Result<HvfVm, VmError> {
        let config = config(slot.size())?;
        let vm = VirtualMachine::with_config(config).map_err(call("hv_vm_create"))?;
        Ok(HvfVm { vm, slot })
    }
}

impl Vm for HvfVm {
    type Vcpu = vcpu::HvfVcpu;

    fn map_memory(&self, start: u64, size: u64) -> Result<(), VmError> {
        let inside = start
            .checked_add(size)
            .is_some_and(|end| end <= self.slot.size());
        let range = (
            usize::try_from(start).ok().filter(|_| inside),
            usize::try_from(size).ok(),
        );
        let (Some(skip), Some(len)) = range else {
            return Err(VmError::OutsideMemory { gpa: start, len: 0 });
        };
        let host = self.slot.host_address().wrapping_add(skip);
        let rights = HV_MEMORY_READ | HV_MEMORY_WRITE | HV_MEMORY_EXEC;
        // SAFETY: the slot's mapping covers the range and outlives the machine, which holds it;
        // its start and size are multiples of 2 MiB.
        let mapped = unsafe { hv_vm_map(host.cast(), start, len, rights) };
        if mapped != hv_error_t::HV_SUCCESS as i32 {
            return Err(call("hv_vm_map")(HypervisorError::from(mapped)));
        }
        Ok(())
    }

    fn create_vcpu(&self, _index: u8, entry: &UserEntry) -> Result<Self::Vcpu, VmError> {
        vcpu::HvfVcpu::new(&self.vm, self.slot.size(), entry)
    }
}

/// Enough guest-physical address bits for the slot and the doorbells behind it.
fn config(slot_size: u64) -> Result<VirtualMachineConfig, VmError> {
    let needed = u64::BITS - (end_gpa(slot_size) - 1).leading_zeros();
    let usual = VirtualMachineConfig::get_default_ipa_size()
        .map_err(call("hv_vm_config_get_default_ipa_size"))?;
    let most =
        VirtualMachineConfig::get_max_ipa_size().map_err(call("hv_vm_config_get_max_ipa_size"))?;
    if needed > most {
        let most = format!("this Mac gives a guest {most} address bits, and it needs {needed}");
        return Err(VmError::Memory {
            bytes: slot_size,
            source: std::io::Error::other(most),
        });
    }
    let mut config = VirtualMachineConfig::new();
    if needed > usual {
        config
            .set_ipa_size(needed)
            .map_err(call("hv_vm_config_set_ipa_size"))?;
    }
    Ok(config)
}
