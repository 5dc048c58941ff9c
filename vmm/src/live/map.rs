//! What is known of a disk's map: extents by place, as many as memory is granted for.
//!
//! Two generations: what is used comes into the young one, and when that is full it becomes the old one, whose extents go.

use super::source::{Extent, ExtentKind};
use std::collections::BTreeMap;

/// Most extents of a generation: both together stay below 1 MiB.
const GENERATION: usize = 10_000;

/// Extents that do not overlap.
#[derive(Debug, Default)]
struct Extents(BTreeMap<u64, (u64, ExtentKind)>);

/// A bounded part of a disk's map.
#[derive(Debug)]
pub struct ExtentMap {
    young: Extents,
    old: Extents,
    generation: usize,
}

impl Default for ExtentMap {
    fn default() -> Self {
        Self::with_generation(GENERATION)
    }
}

impl ExtentMap {
    /// With so many extents in each generation.
    pub fn with_generation(generation: usize) -> Self {
        Self {
            young: Extents::default(),
            old: Extents::default(),
            generation,
        }
    }

    /// The extent that holds byte `at`, if it is known.
    pub fn get(&mut self, at: u64) -> Option<Extent> {
        if let Some(extent) = self.young.get(at) {
            return Some(extent);
        }
        let extent = self.old.get(at)?;
        self.insert(extent);
        Some(extent)
    }

    /// `extent` is so from now on.
    pub fn insert(&mut self, extent: Extent) {
        self.remove(extent.start, extent.end());
        self.young.insert(extent);
        self.turn();
    }

    /// The young generation becomes the old one when it is full.
    fn turn(&mut self) {
        if self.young.0.len() >= self.generation {
            self.old = std::mem::take(&mut self.young);
        }
    }

    /// Nothing is known of `start..end` from now on.
    pub fn remove(&mut self, start: u64, end: u64) {
        self.young.remove(start, end);
        self.old.remove(start, end);
        // What is taken out of an extent's middle leaves two.
        if self.old.0.len() > self.generation {
            self.old.0.clear();
        }
        self.turn();
    }

    /// Nothing is known.
    pub fn clear(&mut self) {
        self.young.0.clear();
        self.old.0.clear();
    }
}

impl Extents {
    fn get(&self, at: u64) -> Option<Extent> {
        let (start, (len, kind)) = self.0.range(..=at).next_back()?;
        let extent = Extent {
            start: *start,
            len: *len,
            kind: *kind,
        };
        (at < extent.end()).then_some(extent)
    }

    /// Puts an extent where there is none, together with those that it continues.
    fn insert(&mut self, mut extent: Extent) {
        let before = extent.start.checked_sub(1).and_then(|at| self.get(at));
        if let Some(before) = before.filter(|before| continues(before, &extent)) {
            self.0.remove(&before.start);
            extent = join(before, extent);
        }
        let after = self.get(extent.end());
        if let Some(after) = after.filter(|after| continues(&extent, after)) {
            self.0.remove(&after.start);
            extent = join(extent, after);
        }
        self.0.insert(extent.start, (extent.len, extent.kind));
    }

    fn remove(&mut self, start: u64, end: u64) {
        while let Some(extent) = self.first_in(start, end) {
            self.0.remove(&extent.start);
            let rest = [part(extent, 0, start), part(extent, end, u64::MAX)];
            for part in rest.into_iter().flatten() {
                self.0.insert(part.start, (part.len, part.kind));
            }
        }
    }

    /// The first extent that has bytes in `start..end`.
    fn first_in(&self, start: u64, end: u64) -> Option<Extent> {
        if start >= end {
            return None;
        }
        self.get(start).or_else(|| {
            let (start, _) = self.0.range(start..end).next()?;
            self.get(*start)
        })
    }
}

/// The part of `extent` in `start..end`.
pub fn part(extent: Extent, start: u64, end: u64) -> Option<Extent> {
    let (from, to) = (extent.start.max(start), extent.end().min(end));
    let len = to.checked_sub(from).filter(|len| *len > 0)?;
    let skip = from.saturating_sub(extent.start);
    let kind = match extent.kind {
        ExtentKind::Data {
            file,
            offset,
            in_place,
        } => ExtentKind::Data {
            file,
            offset: offset.saturating_add(skip),
            in_place,
        },
        kind => kind,
    };
    Some(Extent {
        start: from,
        len,
        kind,
    })
}

/// Whether `after`, which begins where `before` ends, goes on with it.
fn continues(before: &Extent, after: &Extent) -> bool {
    let in_file = |extent: &Extent| match extent.kind {
        ExtentKind::Data {
            file,
            offset,
            in_place,
        } => Some((file, offset, in_place)),
        _ => None,
    };
    match (in_file(before), in_file(after)) {
        (Some((file, offset, in_place)), Some(other)) => {
            (file, offset.saturating_add(before.len), in_place) == other
        }
        _ => before.kind == after.kind,
    }
}

const fn join(before: Extent, after: Extent) -> Extent {
    Extent {
        start: before.start,
        len: before.len.saturating_add(after.len),
        kind: before.kind,
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // small numbers
mod tests {
    use super::*;

    fn data(start: u64, len: u64, offset: u64) -> Extent {
        Extent {
            start,
            len,
            kind: ExtentKind::Data {
                file: 0,
                offset,
                in_place: true,
            },
        }
    }

    fn zero(start: u64, len: u64) -> Extent {
        Extent {
            start,
            len,
            kind: ExtentKind::Zero,
        }
    }

    #[test]
    fn what_goes_on_is_one_extent() {
        let mut map = ExtentMap::default();
        map.insert(data(0, 10, 100));
        map.insert(data(20, 10, 120));
        map.insert(data(10, 10, 110));
        assert_eq!(map.get(29), Some(data(0, 30, 100)));
        map.insert(data(30, 10, 131));
        assert_eq!(map.get(30), Some(data(30, 10, 131)));
        map.insert(zero(5, 5));
        assert_eq!(map.get(4), Some(data(0, 5, 100)));
        assert_eq!(map.get(5), Some(zero(5, 5)));
        assert_eq!(map.get(10), Some(data(10, 20, 110)));
        map.remove(2, 12);
        assert_eq!(map.get(2), None);
        assert_eq!(map.get(11), None);
        assert_eq!(map.get(12), Some(data(12, 18, 112)));
    }

    #[test]
    fn random_changes_are_as_in_a_list_of_bytes() {
        let mut seed = 7_u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        let mut map = ExtentMap::default();
        let mut model: Vec<Option<u64>> = vec![None; 300];
        for _ in 0..20_000 {
            let (start, len) = (next(280), 1 + next(20));
            let range = start as usize..(start + len) as usize;
            if next(3) == 0 {
                map.remove(start, start + len);
                model[range].fill(None);
            } else {
                let offset = next(4) * 1000 + start;
                map.insert(data(start, len, offset));
                for (at, place) in (0..).zip(&mut model[range]) {
                    *place = Some(offset + at);
                }
            }
            for (at, place) in (0..).zip(&model) {
                let seen = map.get(at).map(|extent| match extent.kind {
                    ExtentKind::Data { offset, .. } => offset + at - extent.start,
                    _ => unreachable!(),
                });
                assert_eq!(seen, *place, "byte {at}");
            }
        }
    }

    #[test]
    fn it_is_bounded_and_keeps_what_is_used() {
        let mut map = ExtentMap::with_generation(100);
        map.insert(data(0, 1, 5));
        for at in 1..10_000 {
            map.insert(data(at * 2, 1, at * 5));
            assert!(map.get(0).is_some());
            assert!(map.young.0.len() <= 100 && map.old.0.len() <= 100);
        }
        assert_eq!(map.get(2), None);
    }

    #[test]
    fn holes_in_one_extent_do_not_make_it_grow() {
        let mut map = ExtentMap::with_generation(100);
        map.insert(data(0, 1 << 40, 0));
        for at in 1..10_000 {
            map.remove(at * 2, at * 2 + 1);
            assert!(map.young.0.len() <= 100 && map.old.0.len() <= 100);
        }
    }
}
