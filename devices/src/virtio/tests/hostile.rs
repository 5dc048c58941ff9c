//! A driver that does anything to any register.

use super::fixture::Lab;
use super::{VERSION_1, start};
use proptest::prelude::*;

/// An access: offset, length, whether it writes, what.
type Access = (u64, usize, bool, u64);

fn access() -> impl Strategy<Value = Access> {
    let near = prop_oneof![0..0x200_u64, 0x8000..0x8100_u64, 0..0x20_0000_u64];
    let len = prop::sample::select(vec![1_usize, 2, 4, 8]);
    let value = prop_oneof![0..16_u64, any::<u64>()];
    (near, len, any::<bool>(), value)
}

proptest! {
    #[test]
    fn any_access_has_a_defined_result(
        pci in any::<bool>(),
        started in any::<bool>(),
        accesses in prop::collection::vec(access(), 1..200),
    ) {
        let mut lab = if pci { Lab::pci() } else { Lab::mmio() };
        if started {
            let mut driver = start(&mut lab, VERSION_1);
            driver.add(&[(0, 64, true)], false).unwrap();
        }
        for (offset, len, write, value) in accesses {
            let mut data = value.to_le_bytes()[..len].to_vec();
            lab.registers.access(offset, &mut data, write);
            if !write {
                // A second read of what only drivers change gives the same, whatever was there before.
                let mut again = vec![0x5a; len];
                lab.registers.access(offset, &mut again, false);
                let reads_clear = pci && offset % 0x1_0000 < 0x2000;
                prop_assert!(data == again || reads_clear, "{offset:#x}");
            }
        }
        let saved = lab.save_all();
        let mut other = lab.fresh();
        prop_assert_eq!(other.restore_all(&saved), Ok(()));
        prop_assert_eq!(other.save_all(), saved);
    }
}
