//! The vector page: the only EL1 code in existence.
//!
//! Each of the 16 vectors is one store and an endless loop. Its stack pointer,
//! SP_EL1, is the trap page, and the offset of the store is the vector's
//! number, so that no register of the guest is touched. The host sees the store,
//! reads what the CPU noted, and never resumes the guest.

use super::place;
use crate::VmError;
use crate::arch::TrapFrame;
use crate::memory::GuestSlot;
use instar_shared::layout::PAGE_SIZE;

/// Exception vectors. Arm ARM, section D1.3.1.5, table D1-5.
pub const VECTORS: u8 = 16;
/// SP_EL1: what the vectors store to.
pub const STACK_POINTER: u64 = place::TRAP_PAGE;

const VECTOR_BYTES: u64 = 0x80;
/// `str wzr, [sp, #0]`; the offset, in words, goes to bits 10 to 21.
const STORE_ZERO_AT_SP: u32 = 0xb900_03ff;
/// `b .`
const BRANCH_TO_SELF: u32 = 0x1400_0000;
/// [`TrapFrame::vector`] is an exception class below this, and this plus the vector where there
/// is no class (interrupts and system errors).
const NO_CLASS: u8 = 0x40;

/// Writes the vector page: the rest of it is endless loops.
pub fn install(slot: &GuestSlot) -> Result<(), VmError> {
    let fill: Vec<u8> = (0..PAGE_SIZE / 4)
        .flat_map(|_| BRANCH_TO_SELF.to_le_bytes())
        .collect();
    slot.write(place::VECTORS, &fill)?;
    for vector in 0..VECTORS {
        let at = place::VECTORS + u64::from(vector) * VECTOR_BYTES;
        let store = STORE_ZERO_AT_SP | u32::from(vector) << 10;
        slot.write(at, &store.to_le_bytes())?;
    }
    Ok(())
}

/// What the CPU noted of an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrapState {
    /// ESR_EL1.
    pub syndrome: u64,
    /// ELR_EL1.
    pub instruction: u64,
    /// SP_EL0.
    pub stack: u64,
    /// FAR_EL1.
    pub fault_address: u64,
}

/// Describes the exception that came through `vector`.
#[must_use]
pub fn decode(vector: u8, state: &TrapState) -> TrapFrame {
    let class = u8::try_from(state.syndrome >> 26 & 0x3f).unwrap_or(0);
    let iss = state.syndrome & 0x1ff_ffff;
    let frame = |number, error_code, name, detail| TrapFrame {
        vector: number,
        error_code,
        instruction: state.instruction,
        stack: state.stack,
        fault_address: has_address(class, iss).then_some(state.fault_address),
        name,
        detail,
    };
    match vector % 4 {
        0 => frame(class, iss, name(class), detail(class, iss)),
        kind => TrapFrame {
            fault_address: None,
            ..frame(NO_CLASS | vector, 0, asynchronous(kind), "")
        },
    }
}

const fn asynchronous(kind: u8) -> &'static str {
    match kind {
        1 => "interrupt",
        2 => "fast interrupt",
        _ => "system error",
    }
}

/// Whether FAR_EL1 holds an address. Arm ARM, FAR_EL1; bit 10 of an abort's syndrome (FnV) denies it.
const fn has_address(class: u8, iss: u64) -> bool {
    match class {
        0x20 | 0x21 | 0x24 | 0x25 => iss >> 10 & 1 == 0,
        0x22 | 0x34 | 0x35 => true,
        _ => false,
    }
}

/// What was tried, for the classes that have an address. Arm ARM, ESR_EL1, DFSC and IFSC.
const fn detail(class: u8, iss: u64) -> &'static str {
    let write = iss >> 6 & 1 != 0;
    match (class, iss & 0x3f) {
        (0x20 | 0x21, _) => "execute",
        (0x22, _) => "execute at unaligned",
        (0x34 | 0x35, _) => "access to watched",
        (0x24 | 0x25, 0x04..=0x07) if write => "write to unmapped",
        (0x24 | 0x25, 0x04..=0x07) => "read of unmapped",
        (0x24 | 0x25, 0x0c..=0x0f) if write => "write to protected",
        (0x24 | 0x25, 0x0c..=0x0f) => "read of protected",
        (0x24 | 0x25, 0x21) => "unaligned access to",
        (0x24 | 0x25, 0x34 | 0x35) => "unsupported atomic access to",
        (0x24 | 0x25, _) => "access to broken",
        _ => "",
    }
}

/// Arm ARM, ESR_EL1.EC.
const fn name(class: u8) -> &'static str {
    match class {
        0x00 => "undefined instruction",
        0x01 => "wait instruction",
        0x07 => "vector access where it is off",
        0x09 => "pointer authentication access",
        0x0a => "64-byte access",
        0x0d => "branch target exception",
        0x0e => "illegal execution state",
        0x15 => "system call",
        0x18 => "system register access",
        0x19 => "scalable vector access where it is off",
        0x1b => "transactional memory access",
        0x1c => "pointer authentication failure",
        0x1d => "scalable matrix access where it is off",
        0x20 | 0x21 => "instruction abort",
        0x22 => "unaligned program counter",
        0x24 | 0x25 => "data abort",
        0x26 => "unaligned stack pointer",
        0x27 => "memory copy exception",
        0x2c => "floating-point exception",
        0x2d => "guarded control stack exception",
        0x2f => "system error",
        0x30 | 0x31 => "breakpoint",
        0x32 | 0x33 => "single step",
        0x34 | 0x35 => "watchpoint",
        0x3c => "breakpoint instruction",
        _ => "unknown exception",
    }
}
