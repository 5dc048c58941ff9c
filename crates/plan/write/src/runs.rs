//! Where the bytes of the disk are.

use crate::WriteError;
use crate::image::WriteImage;
use crate::mapping::Mapping;
use instar_storage::StorageMut;

/// A stretch of the disk in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopRun {
    /// Length in bytes, never 0.
    pub len: u64,
    /// The state.
    pub kind: TopKind,
}

/// What an image itself says of a stretch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopKind {
    /// Bytes at a place.
    Data {
        /// The file is the data file.
        in_data_file: bool,
        /// First byte in the file.
        offset: u64,
        /// The caller may write there itself, whenever it likes.
        in_place: bool,
    },
    /// Reads as zeros.
    Zero,
    /// Compressed.
    Packed,
    /// What lies below, or zeros if nothing does.
    Below,
}

impl TopKind {
    /// Whether `next`, which starts `by` bytes further on, goes on with it.
    fn goes_on(self, by: u64, next: Self) -> bool {
        match self {
            Self::Data {
                in_data_file,
                offset,
                in_place,
            } => {
                next == Self::Data {
                    in_data_file,
                    offset: offset.saturating_add(by),
                    in_place,
                }
            }
            _ => self == next,
        }
    }
}

impl<S: StorageMut> WriteImage<'_, S> {
    /// The run from `guest` on, at most `most` bytes, which are not 0, and not past the end of the table that maps it. What
    /// follows may be in the same state.
    ///
    /// Where bitmaps record, a place may be written by the caller only once they know.
    ///
    /// # Errors
    /// Past the disk's end; what is wrong at `guest`.
    pub fn run_at(&mut self, guest: u64, most: u64) -> Result<TopRun, WriteError> {
        self.check_range(guest, 1)?;
        let bits = self.header.cluster_bits;
        let table_bytes = self.header.l2_entries().max(1) << bits.get();
        // A power of two.
        let end = (guest | table_bytes.saturating_sub(1)).saturating_add(1);
        let end = end.min(self.len_bytes());
        let limit = end.min(guest.saturating_add(most.max(1)));
        let mut cluster = guest >> bits.get();
        if !self.tables.is_there(cluster)? {
            return Ok(TopRun {
                len: limit.saturating_sub(guest),
                kind: TopKind::Below,
            });
        }
        let unit = self.division.unit();
        let mut mapping = self.mapping(cluster)?;
        let kind = self.kind_at(guest, &mapping);
        let mut at = guest;
        loop {
            at = (at & !unit.saturating_sub(1)).saturating_add(unit);
            if at >= limit {
                break;
            }
            if at >> bits.get() != cluster {
                cluster = at >> bits.get();
                match self.mapping(cluster) {
                    Ok(next) => mapping = next,
                    Err(_) => break,
                }
            }
            let next = self.kind_at(at, &mapping);
            if !kind.goes_on(at.saturating_sub(guest), next) {
                break;
            }
        }
        let len = at.min(limit).saturating_sub(guest);
        Ok(self.as_recorded(guest, TopRun { len, kind }))
    }

    /// What is at `guest`, whose cluster is mapped so.
    fn kind_at(&self, guest: u64, mapping: &Mapping) -> TopKind {
        let start = guest & self.header.cluster_bits.mask();
        let unit = self.units(start, 1);
        if mapping.compressed.is_some() {
            TopKind::Packed
        } else if mapping.data & unit != 0 {
            TopKind::Data {
                in_data_file: self.data.is_some(),
                offset: mapping.host.saturating_add(start),
                in_place: mapping.owned && self.check_place(mapping.host).is_ok(),
            }
        } else if mapping.zeros & unit != 0 {
            TopKind::Zero
        } else {
            TopKind::Below
        }
    }

    /// The front of a run of which bitmaps know all or nothing.
    fn as_recorded(&self, guest: u64, run: TopRun) -> TopRun {
        let TopKind::Data {
            in_data_file,
            offset,
            in_place: true,
        } = run.kind
        else {
            return run;
        };
        let (in_place, len) = self.recorder.knows(guest, run.len);
        TopRun {
            len,
            kind: TopKind::Data {
                in_data_file,
                offset,
                in_place,
            },
        }
    }
}
