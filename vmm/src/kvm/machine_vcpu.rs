//! A vCPU of a full guest: entered at a kernel's first instruction, or waiting for the first one to start it.

use super::Kvm;
use super::error::{call, emulation_remark};
use super::machine::MachineVm;
use super::machine_cpuid;
use crate::VmError;
use crate::arch::x86_64::boot::{Entry, Mode};
use crate::machine::layout;
use kvm_bindings::{CpuId, Msrs, kvm_msr_entry, kvm_regs, kvm_sregs};
use kvm_ioctls::{Cap, VcpuExit, VcpuFd};

// Intel SDM vol. 4, table 2-2.
const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// Fast strings; no branch trace, no precise event based sampling.
const MISC_ENABLE: u64 = 1 | 1 << 11 | 1 << 12;
/// Memory types are on, and write-back where nothing says otherwise.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;
// Bit 1 of RFLAGS is always set.
const RFLAGS: u64 = 2;

/// Why the vCPU came out of the guest.
#[derive(Debug)]
pub enum MachineExit<'a> {
    /// The guest reads from a port: elements of `width` bytes.
    PortRead(u16, usize, &'a mut [u8]),
    /// The guest writes to a port: elements of `width` bytes.
    PortWrite(u16, usize, &'a [u8]),
    /// The guest reads where there is no memory, 8 bytes at most.
    MmioRead(u64, &'a mut [u8]),
    /// The guest writes where there is no memory, 8 bytes at most.
    MmioWrite(u64, &'a [u8]),
    /// A signal, or nothing.
    Interrupted,
    /// An exception in the handling of an exception in the handling of an exception.
    TripleFault,
}

/// What vCPUs of a machine are made from.
#[derive(Debug)]
pub struct Cpus {
    supported: CpuId,
    count: u8,
    deadline: bool,
    /// A remark where ring 0 is emulated: it cannot be looked for later.
    emulation: &'static str,
}

impl Cpus {
    /// For a machine of `count` vCPUs.
    ///
    /// # Errors
    /// [`VmError::Call`].
    pub fn new(kvm: &Kvm, vm: &MachineVm, count: u8) -> Result<Self, VmError> {
        Ok(Self {
            supported: machine_cpuid::supported(kvm)?,
            count,
            deadline: vm.has(Cap::TscDeadlineTimer),
            emulation: emulation_remark(),
        })
    }
}

/// A vCPU, on its thread.
#[derive(Debug)]
pub struct MachineVcpu {
    vcpu: VcpuFd,
    emulation: &'static str,
}

impl MachineVcpu {
    /// Makes vCPU `index`; the first one starts at `entry`, the others when it starts them.
    ///
    /// # Errors
    /// [`VmError::Call`].
    pub fn new(vm: &MachineVm, cpus: &Cpus, index: u8, entry: &Entry) -> Result<Self, VmError> {
        let vcpu = vm.create_vcpu(index)?;
        let cpuid = machine_cpuid::of_vcpu(&cpus.supported, index, cpus.count, cpus.deadline)?;
        vcpu.set_cpuid2(&cpuid).map_err(call("KVM_SET_CPUID2"))?;
        set_msrs(&vcpu)?;
        if index == 0 {
            enter_at(&vcpu, entry)?;
        }
        Ok(Self {
            vcpu,
            emulation: cpus.emulation,
        })
    }

    /// Where a signal's handler writes 1 to have [`Self::run`] return at once; valid as long as the vCPU.
    pub fn immediate_exit(&mut self) -> *mut u8 {
        &raw mut self.vcpu.get_kvm_run().immediate_exit
    }

    /// Where it is: the instruction pointer.
    pub fn position(&self) -> u64 {
        self.vcpu.get_regs().map_or(0, |regs| regs.rip)
    }

    /// Runs until the host has something to do.
    ///
    /// # Errors
    /// [`VmError::Run`] if KVM gave up.
    pub fn run(&mut self) -> Result<MachineExit<'_>, VmError> {
        let emulation = self.emulation;
        let failed = |reason: String| VmError::Run { reason, emulation };
        let (port, data, len, read) = match self.vcpu.run() {
            Ok(VcpuExit::IoIn(port, data)) => (port, data.as_mut_ptr(), data.len(), true),
            Ok(VcpuExit::IoOut(port, data)) => (port, data.as_ptr().cast_mut(), data.len(), false),
            Ok(VcpuExit::MmioRead(address, data)) => {
                let (data, len) = (data.as_mut_ptr(), data.len());
                // SAFETY: as below.
                let data = unsafe { std::slice::from_raw_parts_mut(data, len) };
                return Ok(MachineExit::MmioRead(address, data));
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                let (data, len) = (data.as_ptr(), data.len());
                // SAFETY: as below.
                let data = unsafe { std::slice::from_raw_parts(data, len) };
                return Ok(MachineExit::MmioWrite(address, data));
            }
            Ok(VcpuExit::Intr) => return Ok(MachineExit::Interrupted),
            Ok(VcpuExit::Shutdown) => return Ok(MachineExit::TripleFault),
            Ok(VcpuExit::InternalError) => {
                return Err(failed("an instruction could not be emulated".into()));
            }
            Ok(VcpuExit::FailEntry(reason, _)) => {
                return Err(failed(format!("entry failed, hardware reason {reason:#x}")));
            }
            Ok(other) => return Err(failed(format!("unexpected exit {other:?}"))),
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                return Ok(MachineExit::Interrupted);
            }
            Err(e) => return Err(call("KVM_RUN")(e)),
        };
        // SAFETY: the exit was one of a port, so this member of the union is the one that KVM has written.
        let width = unsafe { self.vcpu.get_kvm_run().__bindgen_anon_1.io.size };
        let width = usize::from(width).max(1);
        // SAFETY: the bytes lie in the pages that KVM shares with the vCPU's owner, which live as long as `self` and are
        // borrowed with it; kvm-ioctls has given them out for this exit, and KVM touches them only while it runs.
        let data = unsafe { std::slice::from_raw_parts_mut(data, len) };
        Ok(match read {
            true => MachineExit::PortRead(port, width, data),
            false => MachineExit::PortWrite(port, width, data),
        })
    }
}

fn set_msrs(vcpu: &VcpuFd) -> Result<(), VmError> {
    let msr = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let entries = [
        msr(IA32_MTRR_DEF_TYPE, MTRR_WRITE_BACK),
        msr(IA32_MISC_ENABLE, MISC_ENABLE),
    ];
    let failed = call("KVM_SET_MSRS");
    let msrs =
        Msrs::from_entries(&entries).map_err(|_| failed(kvm_ioctls::Error::new(libc::E2BIG)))?;
    // A processor without the second one is none that a kernel minds.
    vcpu.set_msrs(&msrs).map(drop).map_err(failed)
}

fn enter_at(vcpu: &VcpuFd, entry: &Entry) -> Result<(), VmError> {
    let mut sregs = vcpu.get_sregs().map_err(call("KVM_GET_SREGS"))?;
    set_system_registers(&mut sregs, entry.mode);
    vcpu.set_sregs(&sregs).map_err(call("KVM_SET_SREGS"))?;
    let (rbx, rsi) = match entry.mode {
        Mode::Protected => (entry.argument, 0),
        Mode::Long => (0, entry.argument),
    };
    let regs = kvm_regs {
        rip: entry.instruction,
        rbx,
        rsi,
        rflags: RFLAGS,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(call("KVM_SET_REGS"))
}

fn set_system_registers(sregs: &mut kvm_sregs, mode: Mode) {
    let registers = mode.registers(layout::BOOT_PAGE_TABLES);
    (sregs.cr0, sregs.cr3, sregs.cr4) = (registers.cr0, registers.cr3, registers.cr4);
    sregs.efer = registers.efer;
    sregs.cs = super::x86_64::segment(registers.code);
    let data = super::x86_64::segment(registers.data);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = super::x86_64::segment(registers.task);
    (sregs.gdt.base, sregs.gdt.limit) = (layout::BOOT_GDT, registers.gdt_limit);
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
}
