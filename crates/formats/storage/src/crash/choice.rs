//! Which steps of an interval reached the store.

use super::step::Step;
use super::{Interval, MAX_EXHAUSTIVE, MAX_SMALL_SECTORS};
use crate::MemStorage;
use core::fmt;

/// Random tears of each kind of a step with many sectors.
const TEARS: u64 = 4;
/// Random torn subsets per step of an interval all of whose whole subsets are tried.
const TORN_SAMPLES_PER_STEP: usize = 32;

/// Which power cut a state is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Flushes that had returned.
    pub flushes: usize,
    /// Steps before the last of them: what must not be lost.
    pub durable: usize,
    /// What of the steps since is there.
    pub shape: Shape,
    /// Discards, of all intervals, did nothing.
    pub discards_ignored: bool,
}

/// What of an interval's steps is there. Steps count from the interval's first, 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The first so many.
    Prefix(usize),
    /// Those whose bit is set.
    Subset(u32),
    /// All but one.
    Dropped(usize),
    /// Only one.
    Applied(usize),
    /// All before `step`, and that one torn.
    Torn {
        /// The step.
        step: usize,
        /// What of it is there.
        tear: Tear,
    },
    /// A random subset, some of it torn, with its own seed.
    Random(u64),
}

/// What of a step of more than one sector is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tear {
    /// The first so many sectors.
    First(u64),
    /// The last so many sectors.
    Last(u64),
    /// Random sectors, with their own seed; of a range without data, one random run.
    Random(u64),
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            flushes, durable, ..
        } = self;
        write!(
            f,
            "after {flushes} flushes ({durable} steps): {:?}",
            self.shape
        )?;
        if self.discards_ignored {
            f.write_str(", discards ignored")?;
        }
        Ok(())
    }
}

impl Tear {
    /// Whether sector `index` of `sectors` is there.
    pub(super) const fn keeps(self, index: u64, sectors: u64) -> bool {
        match self {
            Self::First(n) => index < n,
            Self::Last(n) => index >= sectors.saturating_sub(n),
            Self::Random(seed) => mix(seed, index) & 1 == 0,
        }
    }

    /// The first sector that is there, and the one after the last, of a range without data.
    pub(super) fn run(self, sectors: u64) -> (u64, u64) {
        match self {
            Self::First(n) => (0, n.min(sectors)),
            Self::Last(n) => (sectors.saturating_sub(n), sectors),
            Self::Random(seed) => {
                let (a, b) = (below(mix(seed, 0), sectors), below(mix(seed, 1), sectors));
                (a.min(b), a.max(b))
            }
        }
    }
}

impl Shape {
    /// Does to `image` what of `steps` is there.
    pub(super) fn apply(self, steps: &[Step], image: &MemStorage, discard: bool) {
        for (index, step) in steps.iter().enumerate() {
            match self.fate(index) {
                Fate::Lost => {}
                // What was recorded fits.
                Fate::There => drop(step.apply(image, discard)),
                Fate::Torn(tear) => step.apply_torn(image, tear, discard),
            }
        }
    }

    fn fate(self, index: usize) -> Fate {
        let there = match self {
            Self::Prefix(n) => index < n,
            Self::Subset(mask) => u32::try_from(index)
                .ok()
                .and_then(|index| mask.checked_shr(index))
                .is_some_and(|mask| mask & 1 == 1),
            Self::Dropped(n) => index != n,
            Self::Applied(n) => index == n,
            Self::Torn { step, tear } if index == step => return Fate::Torn(tear),
            Self::Torn { step, .. } => index < step,
            Self::Random(seed) => {
                let luck = mix(seed, index as u64);
                match luck % 8 {
                    0..3 => false,
                    3 => return Fate::Torn(Tear::Random(luck)),
                    _ => true,
                }
            }
        };
        if there { Fate::There } else { Fate::Lost }
    }
}

enum Fate {
    Lost,
    There,
    Torn(Tear),
}

/// The shapes to try of an interval, each with whether discards are done.
pub(super) fn choices(
    interval: Interval<'_>,
    seed: u64,
    samples: usize,
) -> impl Iterator<Item = (Shape, bool)> + '_ {
    let steps = interval.steps.len();
    let seed = mix(seed, interval.flushes as u64);
    // The whole interval is the next one's empty prefix.
    let prefixes = 0..steps.saturating_add(usize::from(interval.last));
    let both = if interval.discards { 2 } else { 1 };
    let prefixes = prefixes.flat_map(move |n| {
        let ways = [(Shape::Prefix(n), true), (Shape::Prefix(n), false)];
        ways.into_iter().take(both)
    });
    let others = subsets(steps)
        .chain(tears(interval.steps, seed))
        .chain(random(interval.steps, seed, samples));
    let others = others.enumerate().map(move |(index, shape)| {
        let discard = !interval.discards || mix(!seed, index as u64) & 1 == 0;
        (shape, discard)
    });
    prefixes.chain(others)
}

/// Whole steps: all subsets, or each one alone and all but each one.
fn subsets(steps: usize) -> impl Iterator<Item = Shape> {
    let exhaustive = steps <= MAX_EXHAUSTIVE;
    let masks = if exhaustive && steps > 1 {
        1_u32.wrapping_shl(u32::try_from(steps).unwrap_or(0))
    } else {
        0
    };
    // The prefixes come apart: masks of the form 2^n - 1.
    let masks = (0..masks).filter(|mask| mask & mask.wrapping_add(1) != 0);
    let singles = 0..if exhaustive { 0 } else { steps };
    let singles = singles.flat_map(|n| [Shape::Dropped(n), Shape::Applied(n)]);
    masks.map(Shape::Subset).chain(singles)
}

/// Each step torn after the ones before it.
fn tears(steps: &[Step], seed: u64) -> impl Iterator<Item = Shape> + '_ {
    let torn = steps.iter().enumerate();
    let torn = torn.filter(|(_, step)| step.sectors() > 1);
    torn.flat_map(move |(index, step)| {
        let sectors = step.sectors();
        let small = sectors <= MAX_SMALL_SECTORS;
        let seed = mix(seed, index as u64);
        let cuts = if small {
            sectors.saturating_sub(1)
        } else {
            TEARS
        };
        let ends = (0..cuts).flat_map(move |n| {
            // Of a long step one cut in each stretch.
            let stretch = if small { 1 } else { sectors / TEARS };
            let at = n
                .saturating_mul(stretch)
                .saturating_add(below(mix(seed, n), stretch))
                .saturating_add(1);
            [Tear::First(at), Tear::Last(at)]
        });
        let random = (0..TEARS).map(move |n| Tear::Random(mix(!seed, n)));
        ends.chain(random)
            .map(move |tear| Shape::Torn { step: index, tear })
    })
}

/// Random subsets, some of their steps torn.
fn random(steps: &[Step], seed: u64, samples: usize) -> impl Iterator<Item = Shape> {
    let samples = if steps.len() > MAX_EXHAUSTIVE {
        samples
    } else if steps.iter().any(|step| step.sectors() > 1) {
        samples.min(steps.len().saturating_mul(TORN_SAMPLES_PER_STEP))
    } else {
        0
    };
    (0..samples as u64).map(move |n| Shape::Random(mix(seed, n)))
}

/// A number below `limit`, or 0.
const fn below(random: u64, limit: u64) -> u64 {
    match random.checked_rem(limit) {
        Some(rest) => rest,
        None => 0,
    }
}

/// Number `index` of the sequence that `seed` starts (SplitMix64).
const fn mix(seed: u64, index: u64) -> u64 {
    let step = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = seed.wrapping_add(step);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
