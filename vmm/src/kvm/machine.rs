//! A KVM machine with what a stock kernel expects: interrupt controllers in the kernel, memory on both sides of the
//! hole, events that need no exit. Documentation/virt/kvm/api.rst.

use super::error::call;
use super::{Kvm, uninterrupted};
use crate::VmError;
use crate::machine::layout;
use crate::memory::GuestSlot;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting,
    kvm_irq_routing_entry, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VcpuFd, VmFd};
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// A route from an interrupt's number to what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiRoute {
    /// The interrupt: [`layout::IO_APIC_PINS`] or more.
    pub gsi: u32,
    /// Address of the message.
    pub address: u64,
    /// Its data.
    pub data: u32,
}

/// A machine for a full guest; keeps its memory alive.
#[derive(Debug)]
pub struct MachineVm {
    vm: VmFd,
    memory: Arc<GuestSlot>,
}

impl MachineVm {
    /// Makes a machine with local APICs, an I/O APIC and all of `memory`, but no vCPU. There is no interval timer: a
    /// guest has the clock that KVM gives it, and the timers of its local APICs.
    ///
    /// # Errors
    /// [`VmError::Call`].
    pub fn new(kvm: &Kvm, memory: Arc<GuestSlot>) -> Result<Self, VmError> {
        let vm = uninterrupted(|| kvm.kvm.create_vm()).map_err(call("KVM_CREATE_VM"))?;
        let address = usize::try_from(layout::TSS_START).unwrap_or(usize::MAX);
        vm.set_identity_map_address(layout::IDENTITY_MAP_START)
            .map_err(call("KVM_SET_IDENTITY_MAP_ADDR"))?;
        vm.set_tss_address(address)
            .map_err(call("KVM_SET_TSS_ADDR"))?;
        vm.create_irq_chip().map_err(call("KVM_CREATE_IRQCHIP"))?;
        let machine = Self { vm, memory };
        machine.map_memory()?;
        Ok(machine)
    }

    fn map_memory(&self) -> Result<(), VmError> {
        for (index, region) in (0..).zip(self.memory.regions()) {
            let region = kvm_userspace_memory_region {
                slot: index,
                flags: 0,
                guest_phys_addr: region.gpa,
                memory_size: region.len,
                userspace_addr: region.host_address,
            };
            // SAFETY: the range is one of the mapping that `memory` owns, which lives as long as `self`.
            unsafe { self.vm.set_user_memory_region(region) }
                .map_err(call("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    /// The guest's memory.
    pub const fn memory(&self) -> &Arc<GuestSlot> {
        &self.memory
    }

    /// Makes the vCPU of `index`, which belongs to the calling thread.
    ///
    /// # Errors
    /// [`VmError::Call`].
    pub fn create_vcpu(&self, index: u8) -> Result<VcpuFd, VmError> {
        uninterrupted(|| self.vm.create_vcpu(u64::from(index))).map_err(call("KVM_CREATE_VCPU"))
    }

    /// Whether `capability` is there.
    pub fn has(&self, capability: kvm_ioctls::Cap) -> bool {
        self.vm.check_extension(capability)
    }

    /// Has each signal of `event` interrupt as `gsi` says.
    ///
    /// # Errors
    /// [`VmError::Call`].
    pub fn register_irqfd(&self, event: &EventFd, gsi: u32) -> Result<(), VmError> {
        self.vm
            .register_irqfd(event, gsi)
            .map_err(call("KVM_IRQFD"))
    }

    /// Has the guest's writes to `gpa` signal `event` without an exit: those of `value`, 32 bits wide, or all.
    ///
    /// # Errors
    /// [`VmError::Call`].
    pub fn register_ioevent(
        &self,
        event: &EventFd,
        gpa: u64,
        value: Option<u32>,
    ) -> Result<(), VmError> {
        let address = IoEventAddress::Mmio(gpa);
        match value {
            Some(value) => self.vm.register_ioevent(event, &address, value),
            None => self.vm.register_ioevent(event, &address, NoDatamatch),
        }
        .map_err(call("KVM_IOEVENTFD"))
    }

    /// Takes back what [`Self::register_ioevent`] has done with the same arguments.
    ///
    /// # Errors
    /// [`VmError::Call`].
    pub fn unregister_ioevent(
        &self,
        event: &EventFd,
        gpa: u64,
        value: Option<u32>,
    ) -> Result<(), VmError> {
        let address = IoEventAddress::Mmio(gpa);
        match value {
            Some(value) => self.vm.unregister_ioevent(event, &address, value),
            None => self.vm.unregister_ioevent(event, &address, NoDatamatch),
        }
        .map_err(call("KVM_IOEVENTFD"))
    }

    /// Replaces the routes: the pins of the I/O APIC, and `messages`.
    ///
    /// # Errors
    /// [`VmError::Call`].
    pub fn set_routes(&self, messages: &[MsiRoute]) -> Result<(), VmError> {
        let pins = (0..layout::IO_APIC_PINS).map(pin_route);
        let entries: Vec<_> = pins
            .chain(messages.iter().copied().map(message_route))
            .collect();
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| call("KVM_SET_GSI_ROUTING")(kvm_ioctls::Error::new(libc::E2BIG)))?;
        self.vm
            .set_gsi_routing(&table)
            .map_err(call("KVM_SET_GSI_ROUTING"))
    }
}

fn pin_route(pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi: pin,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..Default::default()
    };
    entry.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
    entry.u.irqchip.pin = pin;
    entry
}

fn message_route(route: MsiRoute) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi: route.gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    let [a, b, c, d, e, f, g, h] = route.address.to_le_bytes();
    entry.u.msi.address_lo = u32::from_le_bytes([a, b, c, d]);
    entry.u.msi.address_hi = u32::from_le_bytes([e, f, g, h]);
    entry.u.msi.data = route.data;
    entry
}
