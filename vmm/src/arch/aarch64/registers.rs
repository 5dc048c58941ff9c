//! System registers as EL0 code finds them. Arm ARM (DDI 0487), section D24.2.

use super::{end_gpa, paging, place};
use instar_shared::boot::cpu;

/// PSTATE at the first instruction: EL0t, all of D, A, I and F masked. EL0 cannot unmask them,
/// as SCTLR_EL1.UMA is clear. Arm ARM, section C5.2.
pub const EL0_PSTATE: u64 = 0xf << 6;

/// Attribute 0: normal memory, write-back, read- and write-allocate.
pub const ATTRIBUTE_NORMAL: u64 = 0;
/// Attribute 1: device memory, nGnRnE: each store happens once, alone and in order.
pub const ATTRIBUTE_DEVICE: u64 = 1;
const MAIR: u64 = 0xff << (8 * ATTRIBUTE_NORMAL);

/// Bits of a virtual address.
pub const ADDRESS_BITS: u64 = 39;

// TCR_EL1.
const TCR_T0SZ: u64 = 64 - ADDRESS_BITS;
/// Table walks are inner-shareable, write-back, as the host's writes are.
const TCR_WALKS: u64 = 1 << 8 | 1 << 10 | 3 << 12;
const TCR_TG0_4K: u64 = 0;
/// No walks of TTBR1_EL1: the upper half of the address space faults.
const TCR_EPD1: u64 = 1 << 23;
const TCR_T1SZ: u64 = TCR_T0SZ << 16;
const TCR_TG1_4K: u64 = 2 << 30;
const TCR_IPS_SHIFT: u32 = 32;

/// SCTLR_EL1, bits that are set:
const SCTLR: u64 = {
    let mmu_and_caches = 1 | 1 << 2 | 1 << 12;
    let stack_alignment = 1 << 3 | 1 << 4;
    // Writable pages are never executable, whatever a table says.
    let wxn = 1 << 19;
    // EL0 may use DC ZVA, read the cache type, and maintain caches by address.
    let dze_uct_uci = 1 << 14 | 1 << 15 | 1 << 26;
    // Taking an exception synchronises and leaves PAN alone.
    let eos_eis_span = 1 << 11 | 1 << 22 | 1 << 23;
    // One where the feature that gives them meaning is absent: ITD, SED, TSCXT, nTLSMD, LSMAOE.
    let reserved_ones = 1 << 7 | 1 << 8 | 1 << 20 | 1 << 28 | 1 << 29;
    // Clear on purpose: A (unaligned access works), UMA, nTWI and nTWE (WFI and WFE trap), E0E, EE.
    mmu_and_caches | stack_alignment | wxn | dze_uct_uci | eos_eis_span | reserved_ones
};

/// CPACR_EL1.FPEN: floating point and SIMD at EL0. SVE and SME trap.
const CPACR: u64 = 3 << 20;
/// CNTKCTL_EL1.EL0VCTEN: EL0 reads the virtual counter; the timers trap.
const CNTKCTL: u64 = 1 << 1;

/// A system register that the host sets or reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// MAIR_EL1.
    Mair,
    /// TCR_EL1.
    Tcr,
    /// TTBR0_EL1.
    Ttbr0,
    /// VBAR_EL1.
    Vbar,
    /// CPACR_EL1.
    Cpacr,
    /// CNTKCTL_EL1.
    Cntkctl,
    /// SCTLR_EL1.
    Sctlr,
    /// ESR_EL1: what the last exception was.
    Esr,
    /// FAR_EL1: the address it was about.
    Far,
    /// ID_AA64ISAR0_EL1: instructions of this CPU.
    Isar0,
}

impl Register {
    /// The 16-bit name: op0, op1, CRn, CRm, op2. Arm ARM, section C5.1.2.
    #[must_use]
    pub const fn encoding(self) -> u16 {
        let (crn, crm, op2): (u16, u16, u16) = match self {
            Self::Mair => (10, 2, 0),
            Self::Tcr => (2, 0, 2),
            Self::Ttbr0 => (2, 0, 0),
            Self::Vbar => (12, 0, 0),
            Self::Cpacr => (1, 0, 2),
            Self::Cntkctl => (14, 1, 0),
            Self::Sctlr => (1, 0, 0),
            Self::Esr => (5, 2, 0),
            Self::Far => (6, 0, 0),
            Self::Isar0 => (0, 6, 0),
        };
        3 << 14 | crn << 7 | crm << 3 | op2
    }
}

/// What to set, in this order: translation is switched on last.
#[must_use]
pub fn system_registers(slot_size: u64) -> [(Register, u64); 7] {
    [
        (Register::Mair, MAIR),
        (Register::Tcr, tcr(slot_size)),
        (Register::Ttbr0, paging::ROOT_GPA),
        (Register::Vbar, place::VECTORS),
        (Register::Cpacr, CPACR),
        (Register::Cntkctl, CNTKCTL),
        (Register::Sctlr, SCTLR),
    ]
}

fn tcr(slot_size: u64) -> u64 {
    let fixed = TCR_T0SZ | TCR_WALKS | TCR_TG0_4K | TCR_EPD1 | TCR_T1SZ | TCR_TG1_4K;
    fixed | physical_size(end_gpa(slot_size)) << TCR_IPS_SHIFT
}

/// TCR_EL1.IPS: the smallest physical address size that reaches up to `end`.
fn physical_size(end: u64) -> u64 {
    const SIZES: [u64; 6] = [32, 36, 40, 42, 44, 48];
    let too_small = SIZES.iter().filter(|bits| end > 1 << **bits).count();
    u64::try_from(too_small.min(SIZES.len() - 1)).unwrap_or(0)
}

/// `instar_shared::boot::cpu` bits of an ID_AA64ISAR0_EL1 value. Arm ARM, section D24.2.
#[must_use]
pub const fn cpu_features(isar0: u64) -> u64 {
    let (aes, sha1, sha2) = (isar0 >> 4 & 0xf, isar0 >> 8 & 0xf, isar0 >> 12 & 0xf);
    let aes = if aes != 0 { cpu::AES } else { 0 };
    let sha = if sha1 != 0 && sha2 != 0 { cpu::SHA } else { 0 };
    aes | sha
}
