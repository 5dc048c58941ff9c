//! What becomes of the bytes of a window.
//!
//! Data is looked through in aligned blocks; blocks of zeros are left out, but where they stand between data and are
//! together shorter than `-S`. What the source's tables call zeros is left out to the byte. The target's units then
//! are written as a whole wherever they hold data, or parts of more than one kind with a backing file below.
//! All as `qemu-img` was seen to do it.

use crate::window::{Part, PartKind};
use alloc::vec::Vec;
use core::ops::Range;
use instar_storage::bytes::is_zero;

/// What a stretch of a window is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// To be written.
    Data,
    /// Zeros, as the source's tables say.
    Zero,
    /// Zeros, as its bytes say.
    Blank,
    /// Left to the target's backing file.
    Below,
}

/// How bytes are judged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Bytes that have their place together in the target; 1: each has its own.
    pub unit: usize,
    /// Bytes that are looked at together, a power of two.
    pub block: usize,
    /// Zeros from this length on are left out, in bytes; 0: bytes are not looked at.
    pub sparse: usize,
    /// Zeros that the tables say are data too.
    pub fill: bool,
}

/// A stretch of blocks of one kind, in bytes of the window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub range: Range<usize>,
    pub kind: Block,
}

/// Ranges that are below, in blocks that are not below as a whole: they need the bytes of the backing file.
pub(crate) fn mixed_below(parts: &[Part], len: usize, block: usize) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    for part in parts.iter().filter(|part| part.kind == PartKind::Below) {
        let end = part.at.saturating_add(part.len);
        // What of it is whole blocks needs no bytes.
        let first = part.at.next_multiple_of(block);
        let last = if end >= len {
            len
        } else {
            end.checked_div(block).unwrap_or(0).saturating_mul(block)
        };
        if first >= last {
            ranges.push(part.at..end);
            continue;
        }
        ranges.extend([part.at..first, last..end]);
    }
    ranges.retain(|range| !range.is_empty());
    ranges
}

/// Judges a window whose bytes are all there. It begins at a multiple of the block and of the unit.
pub(crate) fn stretches(parts: &[Part], bytes: &[u8], rules: Rules) -> Vec<Stretch> {
    let mut found = Vec::new();
    for part in parts {
        let range = part.at..part.at.saturating_add(part.len).min(bytes.len());
        match part.kind {
            PartKind::Data if rules.sparse > 0 => look(range, bytes, rules, &mut found),
            PartKind::Zero if !rules.fill => push(&mut found, range, Block::Zero),
            PartKind::Data | PartKind::Zero => push(&mut found, range, Block::Data),
            PartKind::Below => push(&mut found, range, Block::Below),
        }
    }
    for stretch in &mut found {
        if stretch.kind == Block::Blank {
            stretch.kind = Block::Zero;
        }
    }
    if rules.unit > 1 {
        found = whole_units(&found, bytes, rules.unit);
    }
    joined(found)
}

fn push(found: &mut Vec<Stretch>, range: Range<usize>, kind: Block) {
    if !range.is_empty() {
        found.push(Stretch { range, kind });
    }
}

/// Looks through data, block by block.
fn look(range: Range<usize>, bytes: &[u8], rules: Rules, found: &mut Vec<Stretch>) {
    let mut own: Vec<Stretch> = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let next = at.saturating_add(1).next_multiple_of(rules.block);
        let end = next.min(range.end);
        let kind = if is_zero(bytes.get(at..end).unwrap_or_default()) {
            Block::Blank
        } else {
            Block::Data
        };
        match own.last_mut() {
            Some(last) if last.kind == kind => last.range.end = end,
            _ => push(&mut own, at..end, kind),
        }
        at = end;
    }
    fill_gaps(&mut own, rules.sparse);
    found.append(&mut own);
}

/// Judges whole units by the stretches in them. Where zeros meet what lies below, and that reads as zeros too, all
/// of the unit is zeros.
fn whole_units(found: &[Stretch], bytes: &[u8], unit: usize) -> Vec<Stretch> {
    let len = bytes.len();
    let mut units = Vec::new();
    let mut stretches = found.iter().peekable();
    let mut at = 0_usize;
    while at < len {
        let end = at.saturating_add(unit).min(len);
        let (mut zero, mut below, mut data) = (false, false, false);
        while let Some(stretch) = stretches.peek() {
            match stretch.kind {
                Block::Data => data = true,
                Block::Zero | Block::Blank => zero = true,
                Block::Below => below = true,
            }
            let stretch_end = stretch.range.end;
            if stretch_end <= end {
                stretches.next();
            }
            if stretch_end >= end {
                break;
            }
        }
        let blank = || is_zero(bytes.get(at..end).unwrap_or_default());
        let kind = match (data, zero, below) {
            (false, false, true) => Block::Below,
            (false, true, true) if !blank() => Block::Data,
            (false, ..) => Block::Zero,
            (true, ..) => Block::Data,
        };
        push(&mut units, at..end, kind);
        at = end;
    }
    units
}

/// Makes short blanks between data data.
fn fill_gaps(found: &mut [Stretch], sparse: usize) {
    let is_data = |stretch: Option<&Stretch>| stretch.is_some_and(|s| s.kind == Block::Data);
    for index in 1..found.len() {
        let before = is_data(index.checked_sub(1).and_then(|index| found.get(index)));
        let after = is_data(index.checked_add(1).and_then(|index| found.get(index)));
        if let Some(stretch) = found.get_mut(index)
            && stretch.kind == Block::Blank
            && stretch.range.len() < sparse
            && before
            && after
        {
            stretch.kind = Block::Data;
        }
    }
}

/// Joins neighbours of one kind.
fn joined(found: Vec<Stretch>) -> Vec<Stretch> {
    let mut joined: Vec<Stretch> = Vec::with_capacity(found.len());
    for stretch in found {
        match joined.last_mut() {
            Some(last) if last.kind == stretch.kind => last.range.end = stretch.range.end,
            _ => joined.push(stretch),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        unit: 4,
        block: 4,
        sparse: 4,
        fill: false,
    };

    fn part(at: usize, len: usize, kind: PartKind) -> Part {
        Part { at, len, kind }
    }

    fn kinds(parts: &[Part], bytes: &[u8], rules: Rules) -> Vec<(usize, Block)> {
        let found = stretches(parts, bytes, rules);
        found.into_iter().map(|s| (s.range.end, s.kind)).collect()
    }

    #[test]
    fn zeros_within_data_are_left_out_by_blocks() {
        let all = [part(0, 14, PartKind::Data)];
        let bytes = [1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0];
        let expected = [
            (4, Block::Data),
            (8, Block::Zero),
            (12, Block::Data),
            (14, Block::Zero),
        ];
        assert_eq!(kinds(&all, &bytes, RULES), expected);
        let none = Rules { sparse: 0, ..RULES };
        assert_eq!(kinds(&all, &bytes, none), [(14, Block::Data)]);
    }

    #[test]
    fn short_blanks_between_data_are_data_but_holes_are_not() {
        let bytes = [1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0];
        let eight = Rules { sparse: 8, ..RULES };
        let all = [part(0, 16, PartKind::Data)];
        assert_eq!(
            kinds(&all, &bytes, eight),
            [(12, Block::Data), (16, Block::Zero)]
        );
        let hole = [
            part(0, 4, PartKind::Data),
            part(4, 4, PartKind::Zero),
            part(8, 8, PartKind::Data),
        ];
        let expected = [
            (4, Block::Data),
            (8, Block::Zero),
            (12, Block::Data),
            (16, Block::Zero),
        ];
        assert_eq!(kinds(&hole, &bytes, eight), expected);
    }

    #[test]
    fn blocks_below_in_part_are_data() {
        let parts = [
            part(0, 6, PartKind::Below),
            part(6, 1, PartKind::Data),
            part(7, 2, PartKind::Zero),
            part(9, 9, PartKind::Below),
        ];
        let bytes = [7; 18];
        let expected = [(4, Block::Below), (12, Block::Data), (18, Block::Below)];
        assert_eq!(kinds(&parts, &bytes, RULES), expected);
        assert_eq!(mixed_below(&parts, 18, 4), [4..6, 9..12]);
    }

    #[test]
    fn zeros_of_the_tables_are_left_out_to_the_byte_where_bytes_have_their_own_places() {
        let parts = [
            part(0, 3, PartKind::Zero),
            part(3, 7, PartKind::Data),
            part(10, 6, PartKind::Zero),
        ];
        let bytes = [0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0];
        let bytewise = Rules { unit: 1, ..RULES };
        let expected = [
            (3, Block::Zero),
            (4, Block::Data),
            (8, Block::Zero),
            (10, Block::Data),
            (16, Block::Zero),
        ];
        assert_eq!(kinds(&parts, &bytes, bytewise), expected);
        let wide = Rules { unit: 8, ..RULES };
        assert_eq!(kinds(&parts, &bytes, wide), [(16, Block::Data)]);
    }

    #[test]
    fn filled_zeros_are_data() {
        let parts = [part(0, 8, PartKind::Zero)];
        let fill = Rules {
            fill: true,
            sparse: 0,
            ..RULES
        };
        assert_eq!(kinds(&parts, &[0; 8], fill), [(8, Block::Data)]);
        assert_eq!(kinds(&parts, &[0; 8], RULES), [(8, Block::Zero)]);
    }
}
