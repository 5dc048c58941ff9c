//! KVM. Documentation/virt/kvm/api.rst of the Linux kernel.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod cpuid;
mod error;
#[cfg(target_arch = "x86_64")]
pub mod machine;
#[cfg(target_arch = "x86_64")]
mod machine_cpuid;
#[cfg(target_arch = "x86_64")]
pub mod machine_vcpu;
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
#[cfg(target_arch = "x86_64")]
pub use error::emulates_ring_0;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

#[cfg(target_arch = "aarch64")]
use aarch64 as native;
#[cfg(target_arch = "x86_64")]
use x86_64 as native;

/// The interface version that has been stable since 2007.
const API_VERSION: i32 = 12;

/// The opened `/dev/kvm`.
pub struct Kvm {
    kvm: kvm_ioctls::Kvm,
}

/// A KVM machine; keeps its memory alive.
pub struct KvmVm {
    vm: VmFd,
    slot: Arc<GuestSlot>,
    regions: AtomicU32,
}

/// Makes a call again that a signal has ended. What the signal asks for is seen when the guest starts.
fn uninterrupted<T>(
    mut call: impl FnMut() -> Result<T, kvm_ioctls::Error>,
) -> Result<T, kvm_ioctls::Error> {
    loop {
        match call() {
            Err(error) if error.errno() == libc::EINTR => {}
            outcome => return outcome,
        }
    }
}

impl Hypervisor for Kvm {
    type Vm = KvmVm;

    fn open() -> Result<Self, VmError> {
        let kvm = kvm_ioctls::Kvm::new().map_err(error::open)?;
        match kvm.get_api_version() {
            API_VERSION => Ok(Self { kvm }),
            ..0 => Err(error::not_kvm()),
            found => Err(VmError::ApiVersion { found }),
        }
    }

    fn create_vm(&self, slot: Arc<GuestSlot>) -> Result<KvmVm, VmError> {
        let vm = uninterrupted(|| self.kvm.create_vm()).map_err(call("KVM_CREATE_VM"))?;
        #[cfg(target_arch = "x86_64")]
        native::prepare_vm(&vm)?;
        Ok(KvmVm {
            vm,
            slot,
            regions: AtomicU32::new(0),
        })
    }
}

impl Vm for KvmVm {
    type Vcpu = native::KvmVcpu;

    fn map_memory(&self, start: u64, size: u64) -> Result<(), VmError> {
        let inside = start
            .checked_add(size)
            .is_some_and(|end| end <= self.slot.size());
        let skip = usize::try_from(start).ok().filter(|_| inside);
        let skip = skip.ok_or(VmError::OutsideMemory { gpa: start, len: 0 })?;
        let region = kvm_userspace_memory_region {
            slot: self.regions.load(Ordering::Relaxed),
            flags: 0,
            guest_phys_addr: start,
            memory_size: size,
            userspace_addr: self.slot.host_address().wrapping_add(skip) as u64,
        };
        // SAFETY: the range lies in the slot's mapping, which lives as long as the machine holds it.
        unsafe { self.vm.set_user_memory_region(region) }
            .map_err(call("KVM_SET_USER_MEMORY_REGION"))?;
        self.regions.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn create_vcpu(&self, index: u8, entry: &UserEntry) -> Result<Self::Vcpu, VmError> {
        let vcpu = uninterrupted(|| self.vm.create_vcpu(u64::from(index)))
            .map_err(call("KVM_CREATE_VCPU"))?;
        let vcpu = native::KvmVcpu::new(self, vcpu, index, entry)?;
        if index == 0 {
            ticker::start()?;
        } else {
            ticker::start_on_thread()?;
        }
        Ok(vcpu)
    }
}
