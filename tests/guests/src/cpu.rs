//! Instructions that ring 3 must not get away with.

use instar_test_guests::Case;

#[cfg(target_arch = "x86_64")]
pub(crate) fn run(case: Case) {
    // SAFETY: none of this is sound; that is its purpose. The machine must stop it.
    unsafe { x86_64::fault(case) };
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn run(case: Case) {
    // SAFETY: none of this is sound; that is its purpose. The machine must stop it.
    unsafe { aarch64::fault(case) };
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use core::arch::asm;
    use instar_shared::doorbell::{KICK_PORT, TRAP_PORT_BASE, WAIT_PORT};
    use instar_shared::layout::SYSTEM;
    use instar_test_guests::Case;

    /// `ret`.
    const RETURN: u8 = 0xc3;

    pub(super) unsafe fn fault(case: Case) {
        // SAFETY: see `run`.
        unsafe {
            match case.raw() {
                10..=22 => exception(case),
                23..=37 => address(case),
                _ => privileged(case),
            }
        }
    }

    unsafe fn exception(case: Case) {
        // SAFETY: see `run`.
        unsafe {
            match case {
                Case::Syscall => asm!("syscall", out("rcx") _, out("r11") _),
                Case::Sysenter => asm!("sysenter"),
                Case::Int3 => asm!("int3"),
                Case::Int80 => asm!("int 0x80", inout("rax") 20 => _),
                Case::IntPageFault => asm!("int 14"),
                Case::Int255 => asm!("int 255"),
                Case::Int1 => asm!(".byte 0xf1"),
                Case::PopfIopl => {
                    asm!("push 0x3002", "popfq");
                    out(0x70, 0);
                }
                Case::PopfTrapFlag => asm!("push 0x102", "popfq", "nop", "nop"),
                Case::PopfNestedTask => {
                    asm!(
                        "push 0x4002",
                        "popfq",
                        "mov rcx, rsp",
                        "push 0x23",
                        "push rcx",
                        "push 2",
                        "push 0x2b",
                        "lea rcx, [rip]",
                        "push rcx",
                        "iretq"
                    );
                }
                Case::IretToRing0 => {
                    asm!(
                        "mov rcx, rsp",
                        "push 0x10",
                        "push rcx",
                        "push 2",
                        "push 0x8",
                        "lea rcx, [rip]",
                        "push rcx",
                        "iretq"
                    );
                }
                Case::Undefined => asm!("ud2"),
                Case::Divide => {
                    asm!("xor ecx, ecx", "div ecx", out("eax") _, out("edx") _, out("ecx") _)
                }
                _ => {}
            }
        }
    }

    unsafe fn address(case: Case) {
        // SAFETY: see `run`.
        unsafe {
            match case {
                Case::WriteText => poke(fault as *const () as usize as u64),
                Case::WriteConstants => poke(super::CONSTANTS.as_ptr() as usize as u64),
                Case::ExecuteHeap => {
                    let mut code = alloc::vec![RETURN; 64];
                    call(code.as_mut_ptr() as usize as u64);
                }
                Case::ExecuteStack => {
                    let mut code = [RETURN; 64];
                    call(core::hint::black_box(code.as_mut_ptr()) as usize as u64);
                }
                Case::ReadNull => peek(0),
                Case::JumpNull => call(0),
                Case::StackOverflow => {
                    core::hint::black_box(overflow(1));
                }
                Case::StackNull => {
                    asm!("mov rcx, rsp", "mov rsp, 0x1000", "push rax", "mov rsp, rcx", out("rcx") _)
                }
                Case::ForbiddenOut => out(WAIT_PORT + 4, 0),
                Case::ForbiddenIn => asm!("in eax, dx", in("dx") WAIT_PORT + 2, out("eax") _),
                Case::TrapPort => {
                    asm!("out dx, al", in("dx") u16::from(TRAP_PORT_BASE), in("al") 13_u8)
                }
                Case::JumpSystem => call(SYSTEM.start),
                Case::ReadSystem => {
                    for page in (SYSTEM.start..SYSTEM.end()).step_by(4096) {
                        peek(page);
                    }
                }
                Case::JumpSystemEnd => call(SYSTEM.end() - 4096),
                Case::NonCanonical => peek(0x8000_0000_0000_0000),
                _ => {}
            }
        }
    }

    unsafe fn privileged(case: Case) {
        // SAFETY: see `run`.
        unsafe {
            match case {
                Case::Halt => asm!("hlt"),
                Case::ClearInterrupts => asm!("cli"),
                Case::ReadCr3 => asm!("mov rax, cr3", out("rax") _),
                Case::WriteCr0 => asm!("mov cr0, rax", in("rax") 0_u64),
                Case::ReadMsr => {
                    asm!("rdmsr", in("ecx") 0xc000_0080_u32, out("eax") _, out("edx") _)
                }
                Case::WriteMsr => {
                    asm!("wrmsr", in("ecx") 0xc000_0080_u32, in("eax") 1_u32, in("edx") 0_u32)
                }
                Case::LoadGdt => asm!("lgdt [{}]", in(reg) &[0_u8; 16]),
                Case::LoadIdt => asm!("lidt [{}]", in(reg) &[0_u8; 16]),
                Case::LoadTaskRegister => asm!("ltr cx", in("cx") 0x28_u16),
                Case::LoadSegment => asm!("mov ds, ecx", in("ecx") 0x10_u32),
                Case::WriteBack => asm!("wbinvd"),
                Case::FarReturn => asm!("push 0x8", "lea rcx, [rip]", "push rcx", "retfq"),
                Case::Hypercall => asm!("vmcall", inout("rax") 0x1234_u64 => _),
                Case::StackNonCanonical => {
                    asm!("mov rcx, rsp", "mov rsp, {}", "push rax", "mov rsp, rcx", in(reg) 0x8000_0000_0000_0000_u64, out("rcx") _);
                }
                Case::DoorbellRead => asm!("in eax, dx", in("dx") KICK_PORT, out("eax") _),
                Case::DoorbellByte => asm!("out dx, al", in("dx") KICK_PORT, in("al") 0_u8),
                Case::DoorbellStraddle => out(KICK_PORT + 2, 0),
                Case::DoorbellString => {
                    let values = [0xffff_0001_u32; 64];
                    asm!("rep outsd", in("dx") KICK_PORT, inout("rcx") 64_u64 => _, inout("rsi") values.as_ptr() => _);
                }
                Case::DoorbellStringRead => {
                    let mut values = [0_u32; 64];
                    asm!("rep insd", in("dx") KICK_PORT, inout("rcx") 64_u64 => _, inout("rdi") values.as_mut_ptr() => _);
                }
                Case::WriteDebug => asm!("mov dr7, rax", in("rax") 0x400_u64),
                _ => {}
            }
        }
    }

    unsafe fn out(port: u16, value: u32) {
        // SAFETY: see `run`.
        unsafe { asm!("out dx, eax", in("dx") port, in("eax") value) };
    }

    unsafe fn peek(addr: u64) {
        // SAFETY: see `run`.
        unsafe { asm!("mov al, [{}]", in(reg) addr, out("al") _) };
    }

    unsafe fn poke(addr: u64) {
        // SAFETY: see `run`.
        unsafe { asm!("mov byte ptr [{}], 0", in(reg) addr) };
    }

    unsafe fn call(addr: u64) {
        // SAFETY: see `run`.
        unsafe { asm!("call {}", in(reg) addr, clobber_abi("C")) };
    }

    #[allow(unconditional_recursion)]
    #[inline(never)]
    fn overflow(depth: u64) -> u64 {
        let frame = core::hint::black_box([depth; 32]);
        overflow(depth.wrapping_add(1)).wrapping_add(frame[0])
    }
}

/// Something in the read-only segment.
#[cfg(target_arch = "x86_64")]
static CONSTANTS: [u8; 16] = *b"read-only bytes\0";

#[cfg(not(target_arch = "x86_64"))]
mod aarch64 {
    use core::arch::asm;
    use instar_shared::layout::SYSTEM;
    use instar_test_guests::Case;

    pub(super) unsafe fn fault(case: Case) {
        // SAFETY: see `run`.
        unsafe {
            match case {
                Case::Syscall => asm!("svc #0"),
                Case::Int3 => asm!("brk #0"),
                Case::Halt => asm!("msr daifset, #2"),
                Case::ReadCr3 => asm!("mrs {}, ttbr0_el1", out(reg) _),
                Case::Hypercall => asm!("hvc #0"),
                Case::ReadNull => asm!("ldrb {0:w}, [{0}]", inout(reg) 0_u64 => _),
                Case::ReadSystem => asm!("ldrb {0:w}, [{0}]", inout(reg) SYSTEM.start => _),
                Case::JumpNull => asm!("br {}", in(reg) 0_u64),
                Case::JumpSystem => asm!("br {}", in(reg) SYSTEM.start),
                _ => asm!("udf #0"),
            }
        }
    }
}
