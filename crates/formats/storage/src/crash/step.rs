//! One recorded change.

use super::SECTOR;
use super::choice::Tear;
use crate::{MemStorage, Reserve, StorageError, StorageMut};
use core::fmt;
use std::vec::Vec;

/// A change other than a flush.
#[derive(Clone)]
pub(super) enum Step {
    Write { offset: u64, bytes: Vec<u8> },
    Zero { offset: u64, len: u64 },
    Discard { offset: u64, len: u64 },
    Reserve { offset: u64, len: u64 },
    SetLen(u64),
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { offset, bytes } => write!(f, "write {}@{offset:#x}", bytes.len()),
            Self::Zero { offset, len } => write!(f, "zero {len}@{offset:#x}"),
            Self::Discard { offset, len } => write!(f, "discard {len}@{offset:#x}"),
            Self::Reserve { offset, len } => write!(f, "reserve {len}@{offset:#x}"),
            Self::SetLen(len) => write!(f, "set length {len:#x}"),
        }
    }
}

impl Step {
    pub(super) const fn is_discard(&self) -> bool {
        matches!(self, Self::Discard { .. })
    }

    /// Whether it is about no bytes.
    pub(super) const fn is_empty(&self) -> bool {
        match self {
            Self::Write { bytes, .. } => bytes.is_empty(),
            Self::Zero { len, .. } | Self::Discard { len, .. } | Self::Reserve { len, .. } => {
                *len == 0
            }
            Self::SetLen(_) => false,
        }
    }

    /// Does it; a discard only if `discard`.
    pub(super) fn apply(&self, image: &MemStorage, discard: bool) -> Result<(), StorageError> {
        match self {
            Self::Write { offset, bytes } => image.write_at(*offset, bytes),
            Self::Zero { offset, len } => image.write_zeroes(*offset, *len),
            Self::Discard { offset, len } if discard => image.discard(*offset, *len),
            Self::Discard { .. } => Ok(()),
            Self::Reserve { offset, len } => image.allocate(*offset, *len, Reserve::Blocks),
            Self::SetLen(len) => image.set_len(*len),
        }
    }

    /// Does the sectors that `tear` leaves.
    pub(super) fn apply_torn(&self, image: &MemStorage, tear: Tear, discard: bool) {
        let sectors = self.sectors();
        // What was recorded whole fits in part.
        let _ = match self {
            Self::Write { offset, bytes } => tear_write(image, *offset, bytes, tear, sectors),
            Self::Zero { offset, len } => {
                let (from, to) = tear_range(*offset, *len, tear, sectors);
                image.write_zeroes(from, to.saturating_sub(from))
            }
            Self::Discard { offset, len } if discard => {
                let (from, to) = tear_range(*offset, *len, tear, sectors);
                image.discard(from, to.saturating_sub(from))
            }
            whole => whole.apply(image, discard),
        };
    }

    /// How many sectors it touches: a step of one or none cannot tear.
    pub(super) const fn sectors(&self) -> u64 {
        let (offset, len) = match self {
            Self::Write { offset, bytes } => (*offset, bytes.len() as u64),
            Self::Zero { offset, len } | Self::Discard { offset, len } => (*offset, *len),
            Self::Reserve { .. } | Self::SetLen(_) => return 0,
        };
        let end = offset.saturating_add(len).div_ceil(SECTOR);
        end.saturating_sub(offset / SECTOR)
    }
}

/// Where the `index`th sector of a step at `offset` starts.
fn sector_start(offset: u64, index: u64) -> u64 {
    let first = offset / SECTOR;
    let start = first.saturating_add(index).saturating_mul(SECTOR);
    start.max(offset)
}

fn tear_write(
    image: &MemStorage,
    offset: u64,
    bytes: &[u8],
    tear: Tear,
    sectors: u64,
) -> Result<(), StorageError> {
    let end = offset.saturating_add(bytes.len() as u64);
    for index in (0..sectors).filter(|index| tear.keeps(*index, sectors)) {
        let from = sector_start(offset, index);
        let to = sector_start(offset, index.saturating_add(1)).min(end);
        let within = |at: u64| usize::try_from(at.saturating_sub(offset)).unwrap_or(usize::MAX);
        let part = bytes.get(within(from)..within(to)).unwrap_or_default();
        image.write_at(from, part)?;
    }
    Ok(())
}

/// The one run of bytes that a torn range keeps.
fn tear_range(offset: u64, len: u64, tear: Tear, sectors: u64) -> (u64, u64) {
    let end = offset.saturating_add(len);
    let (from, to) = tear.run(sectors);
    let at = |index| sector_start(offset, index).min(end);
    (at(from), at(to))
}
