//! CPUID for a guest that has nothing but ring 3. Intel SDM vol. 2A, "CPUID".
//!
//! The guest gets a short table of its own: the leaves by which code finds SSE,
//! AVX, AES and SHA. KVM's full list costs fifty CPUID instructions to read,
//! each of which leaves the machine where this host is a guest itself.

use crate::VmError;
use core::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};
use instar_shared::bits;
use instar_shared::boot::cpu;
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

const BASIC: u32 = 0;
const FEATURES: u32 = 1;
const STRUCTURED: u32 = 7;
const XSAVE: u32 = 0xd;
const EXTENDED: u32 = 0x8000_0000;
const EXTENDED_FEATURES: u32 = 0x8000_0001;

// Leaf 1, ECX.
const AES: u32 = 25;
const XSAVE_BIT: u32 = 26;
const OSXSAVE: u32 = 27;
const AVX: u32 = 28;
const HYPERVISOR: u32 = 31;
// Leaf 7, EBX.
const AVX2: u32 = 5;
const SHA: u32 = 29;
// Leaf 7, ECX.
const UMIP: u32 = 2;
const HYPERVISOR_NAME: u32 = 0x4000_0000;
/// Name of QEMU's interpreter, 12 bytes.
const INTERPRETER: [u32; 3] = [
    u32::from_le_bytes(*b"TCGT"),
    u32::from_le_bytes(*b"CGTC"),
    u32::from_le_bytes(*b"GTCG"),
];

/// What this CPU offers that a guest may use.
pub struct HostCpu {
    basic: CpuidResult,
    features: CpuidResult,
    structured: CpuidResult,
    extended: CpuidResult,
    /// XSAVE and XCR0 are there.
    pub xsave: bool,
    /// AVX state.
    pub avx: bool,
    /// Descriptor tables can be hidden from ring 3.
    pub umip: bool,
    /// It is interpreted by QEMU, its virtualisation, too.
    pub interpreted: bool,
}

impl HostCpu {
    /// Asks the CPU this thread runs on.
    pub fn read() -> Self {
        let features = __cpuid(FEATURES);
        let basic = __cpuid(BASIC);
        let structured = if basic.eax >= STRUCTURED {
            __cpuid_count(STRUCTURED, 0)
        } else {
            zero()
        };
        let xsave = bit(features.ecx, XSAVE_BIT) && bit(features.ecx, OSXSAVE);
        Self {
            basic,
            features,
            structured,
            extended: __cpuid(EXTENDED_FEATURES),
            xsave,
            avx: xsave && bit(features.ecx, AVX),
            umip: bit(structured.ecx, UMIP),
            interpreted: bit(features.ecx, HYPERVISOR) && {
                let name = __cpuid(HYPERVISOR_NAME);
                [name.ebx, name.ecx, name.edx] == INTERPRETER
            },
        }
    }

    /// `instar_shared::boot::cpu` bits.
    pub fn features(&self) -> u64 {
        let or = |has: bool, bit: u64| if has { bit } else { 0 };
        or(self.avx && bit(self.structured.ebx, AVX2), cpu::AVX2)
            | or(bit(self.features.ecx, AES), cpu::AES)
            | or(bit(self.structured.ebx, SHA), cpu::SHA)
    }

    /// The guest's table: what ring 3 can use, without AVX-512, whose state is off.
    pub fn cpuid(&self) -> Result<CpuId, VmError> {
        let leaf = |function, index, regs: CpuidResult| kvm_cpuid_entry2 {
            function,
            index,
            flags: if function == STRUCTURED || function == XSAVE {
                KVM_CPUID_FLAG_SIGNIFCANT_INDEX
            } else {
                0
            },
            eax: regs.eax,
            ebx: regs.ebx,
            ecx: regs.ecx,
            edx: regs.edx,
            ..Default::default()
        };
        let mut features = self.features;
        features.ecx |= 1 << HYPERVISOR;
        let mut structured = self.structured;
        structured.eax = 0;
        structured.ebx &= low(bits(0, 15) | bits(18, 20) | bits(23, 25) | bits(29, 29));
        structured.ecx &= 1 << UMIP;
        structured.edx = 0;
        let avx = if self.avx { 4 } else { 0 };
        // XCR0 bits on offer, and the size of their state: 512 + 64, and 256 for the upper halves.
        let size = if self.avx { 832 } else { 576 };
        let state = CpuidResult {
            eax: 3 | avx,
            ebx: size,
            ecx: size,
            edx: 0,
        };
        let upper_halves = CpuidResult {
            eax: 256,
            ebx: 576,
            ecx: 0,
            edx: 0,
        };
        let basic = CpuidResult {
            eax: XSAVE,
            ..self.basic
        };
        let extended = CpuidResult {
            eax: EXTENDED_FEATURES,
            ..zero()
        };
        let entries = [
            leaf(BASIC, 0, basic),
            leaf(FEATURES, 0, features),
            leaf(STRUCTURED, 0, structured),
            leaf(XSAVE, 0, state),
            leaf(XSAVE, 2, upper_halves),
            leaf(EXTENDED, 0, extended),
            leaf(EXTENDED_FEATURES, 0, self.extended),
        ];
        CpuId::from_entries(&entries).map_err(|e| VmError::Image(format!("CPUID table: {e:?}")))
    }
}

const fn bit(word: u32, n: u32) -> bool {
    word >> n & 1 != 0
}

/// The low half of a mask.
#[allow(clippy::cast_possible_truncation)]
const fn low(mask: u64) -> u32 {
    mask as u32
}

const fn zero() -> CpuidResult {
    CpuidResult {
        eax: 0,
        ebx: 0,
        ecx: 0,
        edx: 0,
    }
}
