//! The parts that are looked at, in order.

use crate::Failed;
use crate::state::{Part, part_at};
use alloc::vec::Vec;
use instar_layers::{Chain, DataError};
use instar_storage::Storage;

/// Most bytes of a step, as of a read of `qemu-img compare`.
const STEP_BYTES: u64 = 2 << 20;
/// Most steps of a batch.
const BATCH_STEPS: usize = 4096;

/// Whose bytes are looked at. Of one alone: they must be zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sides {
    Both,
    One,
    Two,
}

impl Sides {
    pub const fn has(self, disk: usize) -> bool {
        matches!(
            (self, disk),
            (Self::Both, _) | (Self::One, 0) | (Self::Two, 1)
        )
    }

    const fn of(one: bool, two: bool) -> Option<Self> {
        match (one, two) {
            (true, true) => Some(Self::Both),
            (true, false) => Some(Self::One),
            (false, true) => Some(Self::Two),
            (false, false) => None,
        }
    }
}

/// A part whose bytes are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// First byte of the disks.
    pub offset: u64,
    /// Length in bytes.
    pub len: usize,
    pub sides: Sides,
    /// Where its bytes are in the buffers.
    pub place: usize,
    /// Where `qemu-img`'s step begins that it belongs to: a batch may end within one.
    pub begin: u64,
}

impl Step {
    /// Whether it goes on after `len` bytes that begin with `first`, on the disks and in the buffers.
    pub fn follows(&self, first: &Self, len: usize) -> bool {
        first.offset.checked_add(len as u64) == Some(self.offset)
            && first.place.checked_add(len) == Some(self.place)
    }
}

/// Why a batch has no more steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It is as large as it may be.
    Full,
    /// The disks end.
    Done,
    /// Strict: the states differ here.
    Differ(u64),
    /// A state cannot be read.
    Failed(Failed),
}

/// Goes through two disks.
pub(crate) struct Steps<'a, S> {
    disks: [&'a Chain<S>; 2],
    strict: bool,
    at: u64,
    /// What is left of a part that both disks agree on, to be cut into steps.
    open: Option<Open>,
}

/// What is left of a step.
#[derive(Clone, Copy)]
struct Open {
    begin: u64,
    left: u64,
    sides: Sides,
}

impl<'a, S: Storage> Steps<'a, S> {
    pub const fn new(disks: [&'a Chain<S>; 2], strict: bool) -> Self {
        Self {
            disks,
            strict,
            at: 0,
            open: None,
        }
    }

    /// Bytes that both disks have.
    pub fn common_bytes(&self) -> u64 {
        let [one, two] = self.disks;
        one.len_bytes().min(two.len_bytes())
    }

    /// First byte that no step was planned for.
    pub const fn next_offset(&self) -> u64 {
        self.at
    }

    /// Replaces `batch` by the next steps, of at most `bytes` in all.
    pub fn plan(&mut self, batch: &mut Vec<Step>, bytes: usize) -> Ended {
        batch.clear();
        let mut place = 0_usize;
        // Zeros on both sides cost nothing, but a batch of nothing else must end some time.
        for _ in 0..BATCH_STEPS {
            let mut open = match self.open.take() {
                Some(open) => open,
                None => match self.next_part() {
                    Ok(Some(part)) => part,
                    Ok(None) => continue,
                    Err(ended) => return ended,
                },
            };
            let room = bytes.saturating_sub(place);
            let len = usize::try_from(open.left).unwrap_or(usize::MAX).min(room);
            if len > 0 {
                batch.push(Step {
                    offset: self.at,
                    len,
                    sides: open.sides,
                    place,
                    begin: open.begin,
                });
            }
            place = place.saturating_add(len);
            self.at = self.at.saturating_add(len as u64);
            open.left = open.left.saturating_sub(len as u64);
            self.open = Some(open).filter(|open| open.left > 0);
            if place == bytes {
                break;
            }
        }
        Ended::Full
    }

    /// The next part, `None` if it is zeros on both sides.
    fn next_part(&mut self) -> Result<Option<Open>, Ended> {
        let [one, two] = self.disks;
        let (in_one, in_two) = (self.at < one.len_bytes(), self.at < two.len_bytes());
        let (len, sides) = match (in_one, in_two) {
            (true, true) => {
                let (one, two) = (self.part(0)?, self.part(1)?);
                if self.strict && one.state != two.state {
                    return Err(Ended::Differ(self.at));
                }
                let sides = Sides::of(one.state.has_data(), two.state.has_data());
                (one.len.min(two.len), sides)
            }
            (true, false) => {
                let part = self.part(0)?;
                (part.len, Sides::of(part.state.has_data(), false))
            }
            (false, true) => {
                let part = self.part(1)?;
                (part.len, Sides::of(false, part.state.has_data()))
            }
            (false, false) => return Err(Ended::Done),
        };
        match sides {
            None => {
                self.at = self.at.saturating_add(len);
                Ok(None)
            }
            Some(sides) => Ok(Some(Open {
                begin: self.at,
                left: len.min(STEP_BYTES),
                sides,
            })),
        }
    }

    fn part(&self, disk: usize) -> Result<Part, Ended> {
        let failed = |source| {
            Ended::Failed(Failed {
                disk,
                offset: self.at,
                source,
                longer: self.at >= self.common_bytes(),
            })
        };
        let chain = self.disks.get(disk).ok_or(DataError::OutOfMemory);
        let part = chain.and_then(|chain| part_at(chain, self.at));
        part.map_err(failed)
    }
}
