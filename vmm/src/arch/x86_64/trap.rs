//! The trap page: the only ring-0 code in existence.
//!
//! Each exception vector has a stub of three bytes: `out` to its own trap port,
//! then `hlt`. The host sees the port, reads the frame that the CPU pushed on
//! the trap stack, and never resumes the guest.

use super::place;
use crate::VmError;
use crate::arch::TrapFrame;
use crate::memory::GuestSlot;
use instar_shared::doorbell::{TRAP_PORT_BASE, TRAP_VECTORS};
use instar_shared::layout::PAGE_SIZE;

/// Initial stack pointer of a trap of vCPU `index`.
pub const fn stack_top(index: u8) -> u64 {
    place::trap_stack(index) + PAGE_SIZE
}

const STUB_BYTES: u64 = 8;
const PAGE_FAULT: u8 = 14;

/// Address of the stub of `vector`.
pub fn stub_address(vector: u8) -> u64 {
    place::TRAP_CODE + u64::from(vector) * STUB_BYTES
}

/// Writes the trap page: the rest of it is `hlt`.
pub fn install(slot: &GuestSlot) -> Result<(), VmError> {
    const OUT_IMM8_AL: u8 = 0xe6;
    const HLT: u8 = 0xf4;
    slot.write(place::TRAP_CODE, &[HLT; 4096])?;
    for vector in 0..TRAP_VECTORS {
        slot.write(
            stub_address(vector),
            &[OUT_IMM8_AL, TRAP_PORT_BASE + vector],
        )?;
    }
    Ok(())
}

/// Reads the frame of `vector` at the trap stack pointer `rsp`; `cr2` is the fault address.
///
/// # Errors
/// [`VmError::OutsideMemory`] if `rsp` is wild.
pub fn decode(slot: &GuestSlot, vector: u8, rsp: u64, cr2: u64) -> Result<TrapFrame, VmError> {
    let has_code = matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30);
    let word = |index: u64| -> Result<u64, VmError> {
        let mut bytes = [0; 8];
        slot.read(rsp.wrapping_add(8 * index), &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    };
    // Error code (if any), RIP, CS, RFLAGS, RSP, SS. SDM vol. 3A, §7.14.2.
    let skip = u64::from(has_code);
    let error_code = if has_code { word(0)? } else { 0 };
    let is_page_fault = vector == PAGE_FAULT;
    Ok(TrapFrame {
        vector,
        error_code,
        instruction: word(skip)?,
        stack: word(skip + 3)?,
        fault_address: is_page_fault.then_some(cr2),
        name: name(vector),
        detail: if is_page_fault {
            page_fault_detail(error_code)
        } else {
            ""
        },
    })
}

/// SDM vol. 3A, §5.7 "Page-Fault Exceptions".
const fn page_fault_detail(error_code: u64) -> &'static str {
    match (
        error_code & 1 != 0,
        error_code & 2 != 0,
        error_code & 16 != 0,
    ) {
        (_, _, true) => "execute",
        (false, true, _) => "write to unmapped",
        (false, false, _) => "read of unmapped",
        (true, true, _) => "write to protected",
        (true, false, _) => "read of protected",
    }
}

/// SDM vol. 3A, table 7-1 "Protected-Mode Exceptions and Interrupts".
const fn name(vector: u8) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug exception",
        2 => "non-maskable interrupt",
        3 => "breakpoint",
        4 => "overflow",
        5 => "bound range exceeded",
        6 => "invalid opcode",
        7 => "device not available",
        8 => "double fault",
        10 => "invalid task state segment",
        11 => "segment not present",
        12 => "stack-segment fault",
        13 => "general protection fault",
        14 => "page fault",
        16 => "floating-point error",
        17 => "alignment check",
        18 => "machine check",
        19 => "SIMD floating-point exception",
        20 => "virtualisation exception",
        21 => "control protection exception",
        _ => "reserved exception",
    }
}
