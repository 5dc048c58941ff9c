//! A KVM vCPU on arm64, entered at EL0. Documentation/virt/kvm/api.rst, KVM_SET_ONE_REG.

use super::KvmVm;
use super::error::{call, emulation_remark};
use super::ticker;
use crate::VmError;
use crate::arch::TrapFrame;
use crate::arch::native::{self, Register, TrapState};
use crate::hypervisor::{Exit, UserEntry, Vcpu};
use crate::memory::GuestSlot;
use kvm_bindings::{
    KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_ARM64_SYSREG, KVM_REG_SIZE_U64, kvm_regs,
    kvm_vcpu_init, user_pt_regs,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::mem::offset_of;

/// Registers that KVM keeps in its core set.
#[derive(Clone, Copy)]
enum Core {
    FirstArgument,
    StackEl0,
    Pc,
    Pstate,
    StackEl1,
    ElrEl1,
}

impl Core {
    /// Core registers are numbered by the 32-bit words before them in `kvm_regs`.
    const fn id(self) -> u64 {
        let user = offset_of!(kvm_regs, regs);
        let offset = match self {
            Self::FirstArgument => user + offset_of!(user_pt_regs, regs),
            Self::StackEl0 => user + offset_of!(user_pt_regs, sp),
            Self::Pc => user + offset_of!(user_pt_regs, pc),
            Self::Pstate => user + offset_of!(user_pt_regs, pstate),
            Self::StackEl1 => offset_of!(kvm_regs, sp_el1),
            Self::ElrEl1 => offset_of!(kvm_regs, elr_el1),
        };
        let word = (offset / size_of::<u32>()) as u64;
        KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | word
    }
}

// Values of PC and SCTLR_EL1 as Documentation/virt/kvm/api.rst lays them out.
const _: () = assert!(Core::Pc.id() == 0x6030_0000_0010_0040);
const _: () = assert!(system_id(Register::Sctlr) == 0x6030_0000_0013_c080);

const fn system_id(register: Register) -> u64 {
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG as u64 | register.encoding() as u64
}

/// A vCPU at EL0.
pub struct KvmVcpu {
    vcpu: VcpuFd,
    slot_size: u64,
    features: u64,
}

impl KvmVcpu {
    pub(super) fn new(
        machine: &KvmVm,
        vcpu: VcpuFd,
        _index: u8,
        entry: &UserEntry,
    ) -> Result<Self, VmError> {
        let (vm, slot_size) = (&machine.vm, machine.slot.size());
        let mut target = kvm_vcpu_init::default();
        vm.get_preferred_target(&mut target)
            .map_err(call("KVM_ARM_PREFERRED_TARGET"))?;
        vcpu.vcpu_init(&target).map_err(call("KVM_ARM_VCPU_INIT"))?;
        let system = native::system_registers(slot_size)
            .map(|(register, value)| (system_id(register), value));
        let core = [
            (Core::StackEl1.id(), native::TRAP_STACK_POINTER),
            (Core::FirstArgument.id(), entry.argument),
            (Core::StackEl0.id(), entry.stack_gva),
            (Core::Pstate.id(), native::EL0_PSTATE),
            (Core::Pc.id(), entry.entry_gva),
        ];
        for (id, value) in system.into_iter().chain(core) {
            vcpu.set_one_reg(id, &value.to_le_bytes())
                .map_err(call("KVM_SET_ONE_REG"))?;
        }
        let features = native::cpu_features(get(&vcpu, system_id(Register::Isar0))?);
        Ok(Self {
            vcpu,
            slot_size,
            features,
        })
    }
}

impl Vcpu for KvmVcpu {
    fn cpu_features(&self) -> u64 {
        self.features
    }

    fn counter_hz(&self) -> u64 {
        native::counter_hz()
    }

    fn run(&mut self) -> Result<Exit, VmError> {
        if ticker::take() {
            return Ok(Exit::Interrupted);
        }
        let failed = |reason: String| VmError::Run {
            reason,
            emulation: emulation_remark(),
        };
        match self.vcpu.run() {
            // KVM steps over the store when the vCPU runs again.
            Ok(VcpuExit::MmioWrite(gpa, data)) => {
                let value = data.try_into().map_or(0, u32::from_le_bytes);
                Ok(native::exit_of_store(
                    self.slot_size,
                    gpa,
                    data.len(),
                    value,
                ))
            }
            Ok(VcpuExit::MmioRead(gpa, _)) => Ok(Exit::Stopped(format!(
                "read of {gpa:#x}, where there is no memory"
            ))),
            Ok(VcpuExit::Intr) => Ok(Exit::Interrupted),
            Ok(VcpuExit::SystemEvent(kind, _)) => Ok(Exit::Stopped(format!("system event {kind}"))),
            Ok(VcpuExit::InternalError) => {
                Err(failed("an instruction could not be emulated".into()))
            }
            Ok(VcpuExit::FailEntry(reason, _)) => {
                Err(failed(format!("entry failed, hardware reason {reason:#x}")))
            }
            Ok(other) => Err(failed(format!("unexpected exit {other:?}"))),
            Err(e) => match e.errno() {
                libc::EINTR | libc::EAGAIN => Ok(Exit::Interrupted),
                // The CPU describes only plain loads and stores of one register.
                libc::ENOSYS => Ok(Exit::Stopped(
                    "an access to no memory that the CPU does not describe".into(),
                )),
                _ => Err(call("KVM_RUN")(e)),
            },
        }
    }

    fn trap_frame(&self, _slot: &GuestSlot, vector: u8) -> Result<TrapFrame, VmError> {
        let state = TrapState {
            syndrome: get(&self.vcpu, system_id(Register::Esr))?,
            instruction: get(&self.vcpu, Core::ElrEl1.id())?,
            stack: get(&self.vcpu, Core::StackEl0.id())?,
            fault_address: get(&self.vcpu, system_id(Register::Far))?,
        };
        Ok(native::decode(vector, &state))
    }

    fn position(&self) -> Result<(u64, u64), VmError> {
        Ok((
            get(&self.vcpu, Core::Pc.id())?,
            get(&self.vcpu, Core::StackEl0.id())?,
        ))
    }
}

/// Reads the register of `id`.
fn get(vcpu: &VcpuFd, id: u64) -> Result<u64, VmError> {
    let mut value = [0; 8];
    vcpu.get_one_reg(id, &mut value)
        .map_err(call("KVM_GET_ONE_REG"))?;
    Ok(u64::from_le_bytes(value))
}
