//! A KVM vCPU on x86-64, entered at ring 3.

use super::KvmVm;
use super::cpuid::HostCpu;
use super::error::{call, emulation_remark};
use super::ticker;
use crate::VmError;
use crate::arch::TrapFrame;
use crate::arch::x86_64::{self, Segment};
use crate::hypervisor::{Exit, UserEntry, Vcpu};
use crate::memory::GuestSlot;
use instar_shared::doorbell::{KICK_PORT, TRAP_PORT_BASE, TRAP_VECTORS, WAIT_PORT};
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_MP_STATE_RUNNABLE, kvm_enable_cap, kvm_mp_state, kvm_regs,
    kvm_segment, kvm_sregs, kvm_xcrs,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};

// Control registers. Intel SDM vol. 3A, §2.5.
const CR0_PE_MP_ET_NE_WP_PG: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_OSFXSR_OSXMMEXCPT: u64 = 1 << 9 | 1 << 10;
const CR4_UMIP: u64 = 1 << 11;
const CR4_OSXSAVE: u64 = 1 << 18;
// EFER without SCE: SYSCALL is an invalid opcode.
const EFER_LME_LMA_NXE: u64 = 1 << 8 | 1 << 10 | 1 << 11;
// Bit 1 of RFLAGS is always set; IF and IOPL are clear.
const RFLAGS: u64 = 2;
// XCR0. Intel SDM vol. 1, §13.3.
const XCR0_X87_SSE: u64 = 3;
const XCR0_AVX: u64 = 1 << 2;

/// What a machine needs before its first vCPU.
///
/// The guest has no interrupts, but a vCPU without a local APIC in the kernel makes KVM patch its
/// own code on every core, twice: 0.3 ms of a run of 3 ms. A split irqchip gives it one.
pub(super) fn prepare_vm(vm: &VmFd) -> Result<(), VmError> {
    let split = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        ..Default::default()
    };
    // A kernel without it is slower, not worse.
    let _ = vm.enable_cap(&split);
    Ok(())
}

/// A vCPU in ring 3.
pub struct KvmVcpu {
    vcpu: VcpuFd,
    features: u64,
    tsc_hz: u64,
}

impl KvmVcpu {
    pub(super) fn new(
        _machine: &KvmVm,
        vcpu: VcpuFd,
        index: u8,
        entry: &UserEntry,
    ) -> Result<Self, VmError> {
        let host = HostCpu::read();
        vcpu.set_cpuid2(&host.cpuid()?)
            .map_err(call("KVM_SET_CPUID2"))?;
        let mut sregs = vcpu.get_sregs().map_err(call("KVM_GET_SREGS"))?;
        set_system_registers(&mut sregs, &host, index);
        vcpu.set_sregs(&sregs).map_err(call("KVM_SET_SREGS"))?;
        if host.xsave {
            let avx = if host.avx { XCR0_AVX } else { 0 };
            let mut xcrs = kvm_xcrs {
                nr_xcrs: 1,
                ..Default::default()
            };
            if let Some(xcr0) = xcrs.xcrs.first_mut() {
                xcr0.value = XCR0_X87_SSE | avx;
            }
            vcpu.set_xcrs(&xcrs).map_err(call("KVM_SET_XCRS"))?;
        }
        let regs = kvm_regs {
            rip: entry.entry_gva,
            rsp: entry.stack_gva,
            rdi: entry.argument,
            rflags: RFLAGS,
            ..Default::default()
        };
        vcpu.set_regs(&regs).map_err(call("KVM_SET_REGS"))?;
        if index != 0 {
            // The local APIC has it wait for a start-up message, which nobody sends.
            let runnable = kvm_mp_state {
                mp_state: KVM_MP_STATE_RUNNABLE,
            };
            vcpu.set_mp_state(runnable)
                .map_err(call("KVM_SET_MP_STATE"))?;
        }
        let tsc_hz = u64::from(vcpu.get_tsc_khz().unwrap_or(0)).saturating_mul(1000);
        Ok(Self {
            vcpu,
            features: host.features(),
            tsc_hz,
        })
    }
}

impl Vcpu for KvmVcpu {
    fn cpu_features(&self) -> u64 {
        self.features
    }

    fn counter_hz(&self) -> u64 {
        self.tsc_hz
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
            Ok(VcpuExit::IoOut(port, data)) => Ok(io_out(port, data)),
            Ok(VcpuExit::Intr) => Ok(Exit::Interrupted),
            Ok(VcpuExit::Shutdown) => Ok(Exit::Stopped("triple fault".into())),
            Ok(VcpuExit::Hlt) => Ok(Exit::Stopped("halted without a trap".into())),
            Ok(VcpuExit::MmioRead(address, _) | VcpuExit::MmioWrite(address, _)) => Ok(
                Exit::Stopped(format!("access to {address:#x}, where there is no memory")),
            ),
            Ok(VcpuExit::IoIn(port, _)) => Ok(Exit::Stopped(format!("read of port {port:#x}"))),
            // Ring 3 gets here by itself: a vector access past the heap must be emulated, and is not.
            Ok(VcpuExit::InternalError) => Ok(Exit::Stopped(format!(
                "an instruction that KVM cannot emulate, or a wide access where there is no memory{}",
                emulation_remark()
            ))),
            Ok(VcpuExit::FailEntry(reason, _)) => {
                Err(failed(format!("entry failed, hardware reason {reason:#x}")))
            }
            Ok(other) => Err(failed(format!("unexpected exit {other:?}"))),
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => Ok(Exit::Interrupted),
            Err(e) => Err(call("KVM_RUN")(e)),
        }
    }

    fn trap_frame(&self, slot: &GuestSlot, vector: u8) -> Result<TrapFrame, VmError> {
        let regs = self.vcpu.get_regs().map_err(call("KVM_GET_REGS"))?;
        let cr2 = self.vcpu.get_sregs().map_err(call("KVM_GET_SREGS"))?.cr2;
        x86_64::decode(slot, vector, regs.rsp, cr2)
    }

    fn position(&self) -> Result<(u64, u64), VmError> {
        let regs = self.vcpu.get_regs().map_err(call("KVM_GET_REGS"))?;
        Ok((regs.rip, regs.rsp))
    }
}

/// What a port write means. Ring 3 reaches the doorbells only; trap ports are ring 0's.
fn io_out(port: u16, data: &[u8]) -> Exit {
    let value = data.try_into().ok().map(u32::from_le_bytes);
    let trap = port
        .checked_sub(u16::from(TRAP_PORT_BASE))
        .and_then(|v| u8::try_from(v).ok());
    match (port, value, trap) {
        (KICK_PORT, Some(value), _) => Exit::Kick(value),
        (WAIT_PORT, Some(value), _) => Exit::Wait(value),
        (_, _, Some(vector)) if vector < TRAP_VECTORS => Exit::Trap(vector),
        _ => Exit::Stopped(format!("write of {} bytes to port {port:#x}", data.len())),
    }
}

/// Type of a 64-bit TSS that is not busy. Intel SDM volume 3, table 3-2.
const TSS_AVAILABLE: u8 = 0x9;

fn set_system_registers(sregs: &mut kvm_sregs, host: &HostCpu, index: u8) {
    let umip = if host.umip { CR4_UMIP } else { 0 };
    let xsave = if host.xsave { CR4_OSXSAVE } else { 0 };
    sregs.cr0 = CR0_PE_MP_ET_NE_WP_PG;
    sregs.cr3 = x86_64::ROOT_GPA;
    sregs.cr4 = CR4_PAE | CR4_OSFXSR_OSXMMEXCPT | umip | xsave;
    sregs.efer = EFER_LME_LMA_NXE;
    sregs.cs = segment(x86_64::USER_CODE);
    let data = segment(x86_64::USER_DATA);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(x86_64::task(index));
    if host.interpreted {
        // QEMU 10.0's interpreted SVM looks at the permission bitmap only of a TSS that is not marked as busy: seen by
        // running it. The type of no other host's TSS is changed, as Intel's processors enter no guest with this one.
        sregs.tr.type_ = TSS_AVAILABLE;
    }
    sregs.ldt = kvm_segment {
        unusable: 1,
        ..Default::default()
    };
    (sregs.gdt.base, sregs.gdt.limit) = (x86_64::GDT.base, x86_64::GDT.limit);
    (sregs.idt.base, sregs.idt.limit) = (x86_64::IDT.base, x86_64::IDT.limit);
}

pub(super) fn segment(s: Segment) -> kvm_segment {
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: s.kind,
        present: 1,
        dpl: s.dpl,
        db: u8::from(s.code_or_data && !s.long),
        s: u8::from(s.code_or_data),
        l: u8::from(s.long),
        g: u8::from(s.limit > 0xf_ffff),
        ..Default::default()
    }
}
