//! CPUID of a full guest: what KVM supports, less nested virtualisation, with the topology of this machine.
//! Intel SDM vol. 2A, "CPUID"; AMD APM vol. 3, appendix E.
//!
//! The machine has one package; each of its cores has one thread, and the number of its local APIC is its index.

use super::Kvm;
use super::error::call;
use crate::VmError;
use core::arch::x86_64::__cpuid;
use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use std::ops::RangeInclusive;

const FEATURES: u32 = 1;
const CACHES: u32 = 4;
const PERFORMANCE: u32 = 0xa;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_2: u32 = 0x1f;
const AMD_FEATURES: u32 = 0x8000_0001;
/// The name of the processor, in 48 bytes.
const NAME: RangeInclusive<u32> = 0x8000_0002..=0x8000_0004;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_NESTED: u32 = 0x8000_000a;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;

// Leaf 1, ECX and EDX.
const VMX: u32 = 1 << 5;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
const HTT: u32 = 1 << 28;
// Leaf 0x8000_0001, ECX.
const CMP_LEGACY: u32 = 1 << 1;
const SVM: u32 = 1 << 2;
// Levels of leaf 0xb, ECX bits 15 to 8.
const LEVEL_THREAD: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

/// What all vCPUs have in common.
pub fn supported(kvm: &Kvm) -> Result<CpuId, VmError> {
    let mut supported = kvm
        .kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(call("KVM_GET_SUPPORTED_CPUID"))?;
    // KVM does not tell the processor's name.
    for entry in supported.as_mut_slice() {
        if NAME.contains(&entry.function) {
            let host = __cpuid(entry.function);
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (host.eax, host.ebx, host.ecx, host.edx);
        }
    }
    Ok(supported)
}

/// The table of vCPU `index` of `cpus`, from what is `supported`; `deadline` says whether the local APIC's timer takes
/// deadlines.
pub fn of_vcpu(supported: &CpuId, index: u8, cpus: u8, deadline: bool) -> Result<CpuId, VmError> {
    let entries = supported.as_slice().iter();
    let kept = entries.filter(|entry| ![TOPOLOGY, TOPOLOGY_2].contains(&entry.function));
    let mut table: Vec<_> = kept.copied().collect();
    let place = Place { index, cpus };
    for entry in &mut table {
        place.patch(entry, deadline);
    }
    if supported
        .as_slice()
        .iter()
        .any(|entry| entry.function == TOPOLOGY)
    {
        table.extend(place.levels());
    }
    CpuId::from_entries(&table)
        .map_err(|_| call("KVM_SET_CPUID2")(kvm_ioctls::Error::new(libc::E2BIG)))
}

/// A vCPU among its peers.
#[derive(Clone, Copy)]
struct Place {
    index: u8,
    cpus: u8,
}

impl Place {
    fn patch(self, entry: &mut kvm_cpuid_entry2, deadline: bool) {
        let (index, cpus) = (u32::from(self.index), u32::from(self.cpus));
        let more = cpus.saturating_sub(1);
        match entry.function {
            FEATURES => {
                entry.ebx = entry.ebx & 0xffff | cpus << 16 | index << 24;
                entry.ecx = entry.ecx & !VMX & !TSC_DEADLINE | HYPERVISOR;
                entry.ecx |= if deadline { TSC_DEADLINE } else { 0 };
                entry.edx = entry.edx & !HTT | if cpus > 1 { HTT } else { 0 };
            }
            CACHES | AMD_CACHES if entry.eax & 0x1f != 0 => self.share_cache(entry),
            // No performance counters: nothing keeps a guest's apart from those of its neighbours.
            PERFORMANCE => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            AMD_FEATURES => {
                entry.ecx &= !SVM & !CMP_LEGACY;
                entry.ecx |= if cpus > 1 { CMP_LEGACY } else { 0 };
            }
            AMD_SIZES => entry.ecx = entry.ecx & !0xf0ff | self.bits() << 12 | more,
            AMD_NESTED => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            AMD_TOPOLOGY => (entry.eax, entry.ebx, entry.ecx) = (index, index, 0),
            _ => {}
        }
    }

    /// The last level is the package's, the others are the core's.
    fn share_cache(self, entry: &mut kvm_cpuid_entry2) {
        let level = entry.eax >> 5 & 7;
        let last = (1_u32 << self.bits()).saturating_sub(1);
        let sharing = if level >= 3 { last } else { 0 };
        let cores = if entry.function == CACHES {
            last << 26
        } else {
            0
        };
        let kept = if entry.function == CACHES {
            0x3fff
        } else {
            0xfc00_3fff
        };
        entry.eax = entry.eax & kept | sharing << 14 | cores;
    }

    /// Bits of an APIC's number that tell cores apart.
    fn bits(self) -> u32 {
        u32::from(self.cpus).next_power_of_two().trailing_zeros()
    }

    /// Leaf 0xb: a thread in a core, a core in the package, no more.
    fn levels(self) -> [kvm_cpuid_entry2; 3] {
        let level = |index: u32, shift: u32, count: u8, kind: u32| kvm_cpuid_entry2 {
            function: TOPOLOGY,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: count.into(),
            ecx: index | kind,
            edx: self.index.into(),
            ..Default::default()
        };
        [
            level(0, 0, 1, LEVEL_THREAD),
            level(1, self.bits(), self.cpus, LEVEL_CORE),
            level(2, 0, 0, 0),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::Hypervisor;

    #[test]
    fn each_vcpu_finds_its_place_and_no_nested_virtualisation() {
        let supported = supported(&Kvm::open().unwrap()).unwrap();
        for (index, cpus, bits) in [(0, 1, 0), (3, 4, 2), (4, 5, 3), (31, 32, 5)] {
            let table = of_vcpu(&supported, index, cpus, true).unwrap();
            let find = |function, sub| {
                let mut entries = table.as_slice().iter();
                let found = entries.find(|entry| (entry.function, entry.index) == (function, sub));
                found.copied()
            };
            let features = find(FEATURES, 0).unwrap();
            assert_eq!(features.ebx >> 24, u32::from(index));
            assert_eq!(features.ebx >> 16 & 0xff, u32::from(cpus));
            assert_eq!(features.ecx & (VMX | HYPERVISOR), HYPERVISOR);
            assert_ne!(features.ecx & TSC_DEADLINE, 0);
            assert_eq!(features.edx & HTT != 0, cpus > 1);
            if let Some(amd) = find(AMD_FEATURES, 0) {
                assert_eq!(amd.ecx & SVM, 0);
            }
            if let Some(core) = find(TOPOLOGY, 1) {
                assert_eq!(
                    (core.eax, core.ebx, core.edx),
                    (bits, cpus.into(), index.into())
                );
            }
        }
    }
}
