//! A vCPU of Hypervisor.framework, entered at EL0.

use super::error::call;
use super::ticker::Ticker;
use crate::VmError;
use crate::arch::TrapFrame;
use crate::arch::native::{self, Register, Store, TrapState};
use crate::hypervisor::{Exit, UserEntry, Vcpu};
use crate::memory::GuestSlot;
use applevisor::vcpu::{ExitReason, Reg, SysReg, VcpuExitException};
use applevisor::vm::{GicDisabled, VirtualMachineInstance};

/// Length of every instruction.
const INSTRUCTION_BYTES: u64 = 4;

/// X0 to X30 by number.
const GENERAL: [Reg; 31] = [
    Reg::X0,
    Reg::X1,
    Reg::X2,
    Reg::X3,
    Reg::X4,
    Reg::X5,
    Reg::X6,
    Reg::X7,
    Reg::X8,
    Reg::X9,
    Reg::X10,
    Reg::X11,
    Reg::X12,
    Reg::X13,
    Reg::X14,
    Reg::X15,
    Reg::X16,
    Reg::X17,
    Reg::X18,
    Reg::X19,
    Reg::X20,
    Reg::X21,
    Reg::X22,
    Reg::X23,
    Reg::X24,
    Reg::X25,
    Reg::X26,
    Reg::X27,
    Reg::X28,
    Reg::X29,
    Reg::X30,
];

/// A vCPU at EL0.
pub struct HvfVcpu {
    // Dropped before the vCPU it interrupts.
    _ticker: Ticker,
    vcpu: applevisor::vcpu::Vcpu,
    slot_size: u64,
    features: u64,
}

impl HvfVcpu {
    pub(super) fn new(
        vm: &VirtualMachineInstance<GicDisabled>,
        slot_size: u64,
        entry: &UserEntry,
    ) -> Result<Self, VmError> {
        let vcpu = vm.vcpu_create().map_err(call("hv_vcpu_create"))?;
        let refused = call("hv_vcpu_set_sys_reg");
        for (register, value) in native::system_registers(slot_size) {
            vcpu.set_sys_reg(name(register), value).map_err(&refused)?;
        }
        vcpu.set_sys_reg(SysReg::SP_EL1, native::TRAP_STACK_POINTER)
            .map_err(&refused)?;
        vcpu.set_sys_reg(SysReg::SP_EL0, entry.stack_gva)
            .map_err(&refused)?;
        let refused = call("hv_vcpu_set_reg");
        vcpu.set_reg(Reg::CPSR, native::EL0_PSTATE)
            .map_err(&refused)?;
        vcpu.set_reg(Reg::X0, entry.argument).map_err(&refused)?;
        vcpu.set_reg(Reg::PC, entry.entry_gva).map_err(&refused)?;
        let isar0 = vcpu
            .get_sys_reg(name(Register::Isar0))
            .map_err(call("hv_vcpu_get_sys_reg"))?;
        let ticker = Ticker::start(vm.clone(), vcpu.get_handle())?;
        Ok(Self {
            _ticker: ticker,
            vcpu,
            slot_size,
            features: native::cpu_features(isar0),
        })
    }

    fn system(&self, register: SysReg) -> Result<u64, VmError> {
        self.vcpu
            .get_sys_reg(register)
            .map_err(call("hv_vcpu_get_sys_reg"))
    }

    fn general(&self, register: Reg) -> Result<u64, VmError> {
        self.vcpu.get_reg(register).map_err(call("hv_vcpu_get_reg"))
    }

    /// What the guest did that the framework cannot go on from.
    fn exception(&self, exception: &VcpuExitException) -> Result<Exit, VmError> {
        let (syndrome, gpa) = (exception.syndrome, exception.physical_address);
        let Some(store) = Store::decode(syndrome) else {
            let at = exception.virtual_address;
            return Ok(Exit::Stopped(format!(
                "access the host cannot serve (syndrome {syndrome:#x}, address {at:#x})"
            )));
        };
        let value = match store
            .register
            .and_then(|number| GENERAL.get(usize::from(number)))
        {
            Some(register) => self.general(*register)?,
            None => 0,
        };
        let low = u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0);
        let exit = native::exit_of_store(self.slot_size, gpa, store.bytes.into(), low);
        if matches!(exit, Exit::Kick(_) | Exit::Wait(_)) {
            let next = self.general(Reg::PC)?.wrapping_add(INSTRUCTION_BYTES);
            self.vcpu
                .set_reg(Reg::PC, next)
                .map_err(call("hv_vcpu_set_reg"))?;
        }
        Ok(exit)
    }
}

impl Vcpu for HvfVcpu {
    fn cpu_features(&self) -> u64 {
        self.features
    }

    fn counter_hz(&self) -> u64 {
        native::counter_hz()
    }

    fn run(&mut self) -> Result<Exit, VmError> {
        self.vcpu.run().map_err(call("hv_vcpu_run"))?;
        let exit = self.vcpu.get_exit_info();
        match exit.reason {
            ExitReason::CANCELED => Ok(Exit::Interrupted),
            ExitReason::EXCEPTION => self.exception(&exit.exception),
            ExitReason::VTIMER_ACTIVATED => Ok(Exit::Stopped("a timer that it cannot set".into())),
            ExitReason::UNKNOWN => Ok(Exit::Stopped(
                "an exit that the hypervisor does not explain".into(),
            )),
        }
    }

    fn trap_frame(&self, _slot: &GuestSlot, vector: u8) -> Result<TrapFrame, VmError> {
        let state = TrapState {
            syndrome: self.system(name(Register::Esr))?,
            instruction: self.system(SysReg::ELR_EL1)?,
            stack: self.system(SysReg::SP_EL0)?,
            fault_address: self.system(name(Register::Far))?,
        };
        Ok(native::decode(vector, &state))
    }

    fn position(&self) -> Result<(u64, u64), VmError> {
        Ok((self.general(Reg::PC)?, self.system(SysReg::SP_EL0)?))
    }
}

/// The framework's name of `register`.
const fn name(register: Register) -> SysReg {
    match register {
        Register::Mair => SysReg::MAIR_EL1,
        Register::Tcr => SysReg::TCR_EL1,
        Register::Ttbr0 => SysReg::TTBR0_EL1,
        Register::Vbar => SysReg::VBAR_EL1,
        Register::Cpacr => SysReg::CPACR_EL1,
        Register::Cntkctl => SysReg::CNTKCTL_EL1,
        Register::Sctlr => SysReg::SCTLR_EL1,
        Register::Esr => SysReg::ESR_EL1,
        Register::Far => SysReg::FAR_EL1,
        Register::Isar0 => SysReg::ID_AA64ISAR0_EL1,
    }
}

// Both sides name a register by the same 16 bits.
const _: () = assert!(name(Register::Mair) as u16 == Register::Mair.encoding());
const _: () = assert!(name(Register::Sctlr) as u16 == Register::Sctlr.encoding());
const _: () = assert!(name(Register::Tcr) as u16 == Register::Tcr.encoding());
const _: () = assert!(name(Register::Ttbr0) as u16 == Register::Ttbr0.encoding());
const _: () = assert!(name(Register::Vbar) as u16 == Register::Vbar.encoding());
const _: () = assert!(name(Register::Cpacr) as u16 == Register::Cpacr.encoding());
const _: () = assert!(name(Register::Cntkctl) as u16 == Register::Cntkctl.encoding());
const _: () = assert!(name(Register::Esr) as u16 == Register::Esr.encoding());
const _: () = assert!(name(Register::Far) as u16 == Register::Far.encoding());
const _: () = assert!(name(Register::Isar0) as u16 == Register::Isar0.encoding());
