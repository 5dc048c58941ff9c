//! What is memory and what is not, as kernels are told. ACPI 6.5 §15.

use crate::machine::layout;
use crate::memory::Region;

/// What a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Memory.
    Usable = 1,
    /// Something else that nobody may use.
    Reserved = 2,
}

/// A range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it is.
    pub kind: Kind,
}

/// The map of a machine with memory in `regions`.
pub fn memory_map(regions: &[Region]) -> Vec<Range> {
    let range = |start: u64, end: u64, kind| Range {
        start,
        len: end.saturating_sub(start),
        kind,
    };
    let low = range(0, layout::LOW_MEMORY_END, Kind::Usable);
    let firmware = range(layout::LOW_MEMORY_END, layout::KERNEL_START, Kind::Reserved);
    let mut map = vec![low, firmware];
    for region in regions {
        let end = region.gpa.saturating_add(region.len);
        map.push(range(
            region.gpa.max(layout::KERNEL_START),
            end,
            Kind::Usable,
        ));
    }
    let ecam_end = layout::ECAM_START.saturating_add(layout::ECAM_SIZE);
    let ecam = range(layout::ECAM_START, ecam_end, Kind::Reserved);
    let above = map.iter().position(|range| range.start > ecam.start);
    map.insert(above.unwrap_or(map.len()), ecam);
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_in_order_and_have_all_memory() {
        let region = |gpa, len| Region {
            gpa,
            len,
            host_address: 0,
        };
        let high = layout::HIGH_MEMORY_START;
        for regions in [
            vec![region(0, 64 << 20)],
            vec![region(0, layout::HOLE_START), region(high, 5 << 30)],
        ] {
            let map = memory_map(&regions);
            for pair in map.windows(2) {
                assert!(pair[0].start + pair[0].len <= pair[1].start, "{map:x?}");
            }
            let usable = map.iter().filter(|range| range.kind == Kind::Usable);
            let usable: u64 = usable.map(|range| range.len).sum();
            let all: u64 = regions.iter().map(|region| region.len).sum();
            assert_eq!(
                usable,
                all - (layout::KERNEL_START - layout::LOW_MEMORY_END)
            );
            for range in map.iter().filter(|range| range.kind == Kind::Usable) {
                let end = range.start + range.len;
                let inside =
                    |region: &Region| region.gpa <= range.start && end <= region.gpa + region.len;
                assert!(regions.iter().any(inside), "{range:x?}");
            }
        }
    }
}
