//! Which answers are believed. A source is a microVM with a hostile image in it: what it says may move bytes only inside the
//! files that the user's image may use.

use super::source::{DiskInfo, Extent, ExtentKind, MAX_EXTENTS};
use instar_devices::blk::Errno;

/// Smallest and largest cluster, in bytes.
const CLUSTER_BYTES: std::ops::RangeInclusive<u32> = 512..=2 << 20;
/// Sectors, in which extents are counted.
const SECTOR: u64 = 512;
/// Largest place in a file.
const MAX_OFFSET: u64 = i64::MAX as u64;

/// What a file grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// It may be written.
    pub writable: bool,
    /// Longest that it may become, in bytes.
    pub max_len_bytes: u64,
}

/// What is wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// Facts of a disk that no disk has.
    #[error("a disk that cannot be")]
    Disk,
    /// Another kind of answer than the question's.
    #[error("an answer to another question")]
    Kind,
    /// No extent, or too many.
    #[error("{0} extents")]
    Count(usize),
    /// Extents that do not cover what was asked, overlap, or leave gaps.
    #[error("extents that do not fit the range")]
    Range,
    /// A file that the disk does not have.
    #[error("a file that the disk does not have")]
    File,
    /// Bytes outside of what the file grants.
    #[error("a place outside of its file")]
    Outside,
    /// New clusters in a place that may not be written.
    #[error("a place that may not be written")]
    NotWritable,
    /// Other bytes than were asked for.
    #[error("{0} bytes more or less than asked for")]
    Length(u64),
    /// What cannot be refused was refused.
    #[error("a refusal (error {}) of what cannot be refused", .0.0)]
    Refused(Errno),
    /// No answer at all.
    #[error("what is no answer")]
    Malformed,
}

/// A disk, and the files that it may use, by slot.
#[derive(Debug)]
pub struct Checked {
    /// The disk.
    pub info: DiskInfo,
    /// Its files.
    pub windows: Vec<Option<Window>>,
}

impl Checked {
    /// A disk with these files.
    ///
    /// # Errors
    /// [`Wrong::Disk`].
    pub fn new(info: DiskInfo, windows: Vec<Option<Window>>) -> Result<Self, Wrong> {
        let fits = CLUSTER_BYTES.contains(&info.cluster_bytes)
            && info.cluster_bytes.is_power_of_two()
            && info.len_bytes <= MAX_OFFSET;
        if fits {
            Ok(Self { info, windows })
        } else {
            Err(Wrong::Disk)
        }
    }

    /// The clusters that hold `start..end`, as far as the disk goes.
    pub fn clusters(&self, start: u64, end: u64) -> (u64, u64) {
        let cluster = u64::from(self.info.cluster_bytes);
        let end = end.checked_next_multiple_of(cluster).unwrap_or(MAX_OFFSET);
        (start - start % cluster, end.min(self.info.len_bytes))
    }

    /// Checks the answer to a lookup at `start`.
    ///
    /// # Errors
    /// [`Wrong`].
    pub fn lookup(&self, start: u64, extents: &[Extent]) -> Result<(), Wrong> {
        self.sound(extents)?;
        let first = extents.first().ok_or(Wrong::Count(0))?;
        if first.start > start || first.end() <= start {
            return Err(Wrong::Range);
        }
        Ok(())
    }

    /// Checks the answer to an allocation of `start..end`.
    ///
    /// # Errors
    /// [`Wrong`].
    pub fn allocated(&self, start: u64, end: u64, extents: &[Extent]) -> Result<(), Wrong> {
        self.sound(extents)?;
        let (first, last) = self.clusters(start, end);
        let from = extents.first().map_or(u64::MAX, |extent| extent.start);
        let to = extents.last().map_or(0, Extent::end);
        if from > start || to < end || from < first || to > last {
            return Err(Wrong::Range);
        }
        let in_place =
            |extent: &Extent| matches!(extent.kind, ExtentKind::Data { in_place: true, .. });
        if extents.iter().all(in_place) {
            Ok(())
        } else {
            Err(Wrong::NotWritable)
        }
    }

    /// Extents without gaps, on the disk and in its files.
    fn sound(&self, extents: &[Extent]) -> Result<(), Wrong> {
        if extents.is_empty() || extents.len() > MAX_EXTENTS {
            return Err(Wrong::Count(extents.len()));
        }
        let mut next = extents.first().map_or(0, |extent| extent.start);
        for extent in extents {
            let end = extent.start.checked_add(extent.len);
            let end = end.filter(|end| *end <= self.info.len_bytes);
            let end = end.ok_or(Wrong::Range)?;
            let whole = end.is_multiple_of(SECTOR) || end == self.info.len_bytes;
            if extent.start != next || extent.len == 0 || !whole {
                return Err(Wrong::Range);
            }
            if !extent.start.is_multiple_of(SECTOR) {
                return Err(Wrong::Range);
            }
            self.inside(extent)?;
            next = end;
        }
        Ok(())
    }

    /// Whether the bytes of an extent are where the file grants them.
    fn inside(&self, extent: &Extent) -> Result<(), Wrong> {
        let ExtentKind::Data {
            file,
            offset,
            in_place,
        } = extent.kind
        else {
            return Ok(());
        };
        let window = self.windows.get(usize::from(file)).copied().flatten();
        let window = window.ok_or(Wrong::File)?;
        let end = offset.checked_add(extent.len).ok_or(Wrong::Outside)?;
        if in_place && (!window.writable || self.info.read_only) {
            return Err(Wrong::NotWritable);
        }
        // A file may end inside its last cluster: what is past the end reads as zeros.
        let most = if in_place {
            window.max_len_bytes
        } else {
            MAX_OFFSET
        };
        if end > most {
            return Err(Wrong::Outside);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: u64 = 1 << 20;

    fn checked() -> Checked {
        let info = DiskInfo {
            len_bytes: DISK,
            cluster_bytes: 65_536,
            read_only: false,
        };
        let own = Window {
            writable: true,
            max_len_bytes: 2 << 20,
        };
        let backing = Window {
            writable: false,
            max_len_bytes: 1 << 20,
        };
        Checked::new(info, vec![Some(own), Some(backing), None]).unwrap()
    }

    fn data(start: u64, len: u64, file: u16, offset: u64, in_place: bool) -> Extent {
        let kind = ExtentKind::Data {
            file,
            offset,
            in_place,
        };
        Extent { start, len, kind }
    }

    #[test]
    fn what_a_disk_can_be() {
        for (len_bytes, cluster_bytes) in
            [(DISK, 0), (DISK, 3 << 9), (DISK, 4 << 20), (u64::MAX, 512)]
        {
            let info = DiskInfo {
                len_bytes,
                cluster_bytes,
                read_only: false,
            };
            assert_eq!(Checked::new(info, Vec::new()).err(), Some(Wrong::Disk));
        }
    }

    #[test]
    fn lookups_outside_of_disk_or_files_are_refused() {
        let disk = checked();
        let zero = |start, len| Extent {
            start,
            len,
            kind: ExtentKind::Zero,
        };
        let good = [
            zero(0, 65_536),
            data(65_536, 512, 1, 4096, false),
            data(66_048, 512, 0, 0, true),
        ];
        assert_eq!(disk.lookup(600, &good), Ok(()));
        for (extents, wrong) in [
            (vec![], Wrong::Count(0)),
            (vec![zero(0, 512); MAX_EXTENTS + 1], Wrong::Count(257)),
            (vec![zero(1024, 512)], Wrong::Range),
            (vec![zero(0, 512)], Wrong::Range),
            (vec![zero(0, 0)], Wrong::Range),
            (vec![zero(512, 512), zero(512, 512)], Wrong::Range),
            (vec![zero(512, 512), zero(2048, 512)], Wrong::Range),
            (vec![zero(512, 700)], Wrong::Range),
            (vec![zero(0, DISK + 512)], Wrong::Range),
            (vec![zero(512, u64::MAX)], Wrong::Range),
            (vec![data(512, 512, 2, 0, false)], Wrong::File),
            (vec![data(512, 512, 9, 0, false)], Wrong::File),
            (vec![data(512, 512, 1, 0, true)], Wrong::NotWritable),
            (vec![data(512, 512, 0, 2 << 20, true)], Wrong::Outside),
            (vec![data(512, 512, 0, u64::MAX - 5, true)], Wrong::Outside),
            (vec![data(512, 512, 1, MAX_OFFSET, false)], Wrong::Outside),
        ] {
            assert_eq!(disk.lookup(600, &extents), Err(wrong), "{extents:?}");
        }
    }

    #[test]
    fn allocations_are_the_clusters_of_the_range() {
        let disk = checked();
        let all = |extents: &[Extent]| disk.allocated(70_000, 70_100, extents);
        assert_eq!(all(&[data(65_536, 65_536, 0, 0, true)]), Ok(()));
        assert_eq!(all(&[data(69_632, 512, 0, 0, true)]), Ok(()));
        for (extents, wrong) in [
            (vec![data(0, 131_072, 0, 0, true)], Wrong::Range),
            (vec![data(65_536, 131_072, 0, 0, true)], Wrong::Range),
            (vec![data(65_536, 512, 0, 0, true)], Wrong::Range),
            (vec![data(65_536, 65_536, 0, 0, false)], Wrong::NotWritable),
            (
                vec![Extent {
                    start: 65_536,
                    len: 65_536,
                    kind: ExtentKind::Zero,
                }],
                Wrong::NotWritable,
            ),
        ] {
            assert_eq!(all(&extents), Err(wrong), "{extents:?}");
        }
    }
}
