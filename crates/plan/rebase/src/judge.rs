//! Which units of a window differ.

use crate::window::{Part, PartKind, Window};
use alloc::vec::Vec;
use core::ops::Range;
use instar_storage::bytes::{are_equal, is_zero};

/// Stretches of whole units, cut at the window's end, in which the chains differ; `unit` is a power of two.
pub fn differences(window: &Window, unit: usize) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    let end = window.len();
    for part in &window.parts {
        let PartKind::Look { .. } = part.kind else {
            continue;
        };
        let mut at = part.range.start;
        while at < part.range.end {
            let first = at & !unit.saturating_sub(1);
            let next = first.saturating_add(unit);
            let here = at..next.min(part.range.end);
            at = next;
            if found.last().is_some_and(|last| last.end > first) || !differs(window, part, &here) {
                continue;
            }
            match found.last_mut() {
                Some(last) if last.end == first => last.end = next.min(end),
                _ => found.push(first..next.min(end)),
            }
        }
    }
    found
}

/// Whether the chains differ in a range of a part.
fn differs(window: &Window, part: &Part, range: &Range<usize>) -> bool {
    let [old, new] = &window.sides;
    match part.kind {
        PartKind::Look {
            old: true,
            new: true,
        } => match (old.bytes(range), new.bytes(range)) {
            (Some(old), Some(new)) => !are_equal(old, new),
            _ => true,
        },
        PartKind::Look { old: true, .. } => !old.bytes(range).is_some_and(is_zero),
        PartKind::Look { new: true, .. } => !new.bytes(range).is_some_and(is_zero),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::window::Side;
    use alloc::vec;

    fn window(old: Vec<u8>, new: Vec<u8>, parts: &[(Range<usize>, PartKind)]) -> Window {
        let ready = |buf| Side::Ready { buf, base: 0 };
        let part = |(range, kind): &(Range<usize>, PartKind)| Part {
            range: range.clone(),
            kind: *kind,
        };
        Window {
            start: 0,
            parts: parts.iter().map(part).collect(),
            sides: [ready(old), ready(new)],
        }
    }

    const BOTH: PartKind = PartKind::Look {
        old: true,
        new: true,
    };
    const NEW: PartKind = PartKind::Look {
        old: false,
        new: true,
    };

    #[test]
    fn units_are_whole_and_adjoining_ones_are_one_stretch() {
        let old = vec![1; 10_000];
        let mut new = old.clone();
        (new[4095], new[4096], new[9_999]) = (2, 2, 2);
        let window = window(old, new, &[(0..10_000, BOTH)]);
        assert_eq!(differences(&window, 512), [3584..4608, 9728..10_000]);
        let whole = differences(&window, 4096);
        assert_eq!((whole.len(), whole[0].clone()), (1, 0..10_000));
    }

    #[test]
    fn a_unit_of_several_parts_counts_once_and_zeros_do_not_differ() {
        let mut new = vec![0; 8192];
        (new[600], new[5000]) = (1, 1);
        let parts = [
            (0..512, PartKind::Zeros),
            (512..1024, NEW),
            (1024..4096, NEW),
            (4096..4608, PartKind::Kept),
            (4608..8192, NEW),
        ];
        let window = window(vec![9; 8192], new, &parts);
        assert_eq!(differences(&window, 2048), [0..2048, 4096..6144]);
        assert_eq!(differences(&window, 512), [512..1024, 4608..5120]);
    }
}
