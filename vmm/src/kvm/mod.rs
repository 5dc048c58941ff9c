//! KVM. Documentation/virt/kvm/api.rst of the Linux kernel.

mod error;
#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests;
mod ticker;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use crate::VmError;
use crate::hypervisor::{Hypervisor, UserEntry, Vm};
use crate::memory::GuestSlot;
use error::call;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use std::sync::Arc;

/// The interface version that has been stable since 2007.
const API_VERSION: i32 = 12;

/// The opened `/dev/kvm`.
pub struct Kvm {
    kvm: kvm_ioctls::Kvm,
}

/// A KVM machine; keeps its memory alive.
pub struct KvmVm {
    vm: VmFd,
    #[cfg(target_arch = "x86_64")]
    cpuid: kvm_bindings::CpuId,
    _slot: Arc<GuestSlot>,
}

impl Hypervisor for Kvm {
    type Vm = KvmVm;

    fn open() -> Result<Self, VmError> {
        let kvm = kvm_ioctls::Kvm::new().map_err(error::open)?;
        match kvm.get_api_version() {
            API_VERSION => Ok(Self { kvm }),
            found => Err(VmError::ApiVersion { found }),
        }
    }

    fn create_vm(&self, slot: Arc<GuestSlot>) -> Result<KvmVm, VmError> {
        let vm = self.kvm.create_vm().map_err(call("KVM_CREATE_VM"))?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: slot.size(),
            userspace_addr: slot.host_address() as u64,
        };
        // SAFETY: the slot's mapping covers the region and lives as long as the machine,
        // which holds it.
        unsafe { vm.set_user_memory_region(region) }.map_err(call("KVM_SET_USER_MEMORY_REGION"))?;
        Ok(KvmVm {
            #[cfg(target_arch = "x86_64")]
            cpuid: self
                .kvm
                .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
                .map_err(call("KVM_GET_SUPPORTED_CPUID"))?,
            vm,
            _slot: slot,
        })
    }
}

#[cfg(target_arch = "x86_64")]
impl Vm for KvmVm {
    type Vcpu = x86_64::KvmVcpu;

    fn create_vcpu(&self, index: u8, entry: &UserEntry) -> Result<Self::Vcpu, VmError> {
        let vcpu = self
            .vm
            .create_vcpu(u64::from(index))
            .map_err(call("KVM_CREATE_VCPU"))?;
        x86_64::KvmVcpu::new(vcpu, &self.cpuid, entry)
    }
}
