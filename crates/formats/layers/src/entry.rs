//! What an L2 entry says of a cluster or a subcluster.
//!
//! qcow2 "L2 table entry", "Standard Cluster Descriptor", "Extended L2 Entries". Reserved bits are ignored, as
//! QEMU ignores them.

use crate::error::{Corruption, DataError};
use crate::{FileOf, RunKind};
use instar_qcow2::entries::{L2Entry, SubclusterBitmap};
use instar_qcow2::{ClusterBits, Header};

/// Where an entry was found, for its errors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// First byte of the L2 table.
    pub l2_offset: u64,
    /// Index of the entry.
    pub l2_index: u64,
    /// The guest's offset of the cluster.
    pub guest_offset: u64,
}

/// The state of one unit, and where it would lie if it is not allocated although its cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub kind: RunKind,
    pub reserved: Option<u64>,
}

impl State {
    pub(crate) const fn of(kind: RunKind) -> Self {
        Self {
            kind,
            reserved: None,
        }
    }

    /// Whether it names a place in a file, which moves on with the disk.
    pub(crate) const fn has_place(&self) -> bool {
        let of_kind = match self.kind {
            RunKind::Unallocated => false,
            RunKind::Zero { host_offset } => host_offset.is_some(),
            RunKind::Data { .. } | RunKind::Compressed { .. } => true,
        };
        of_kind || self.reserved.is_some()
    }

    /// The state `by` bytes further on.
    pub(crate) const fn advanced(self, by: u64) -> Self {
        Self {
            kind: self.kind.advanced(by),
            reserved: match self.reserved {
                Some(at) => Some(at.saturating_add(by)),
                None => None,
            },
        }
    }
}

/// What the header says about entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub extended: bool,
    pub cluster_bits: ClusterBits,
    version: u32,
    data_file: bool,
}

impl Rules {
    pub(crate) const fn new(header: &Header) -> Self {
        Self {
            extended: header.incompatible.extended_l2(),
            cluster_bits: header.cluster_bits,
            version: header.version,
            data_file: header.incompatible.external_data_file(),
        }
    }

    /// Logarithm of the smallest unit that has a state of its own, 9 to 21.
    pub(crate) const fn unit_bits(&self) -> u32 {
        if self.extended {
            self.cluster_bits.get().saturating_sub(5)
        } else {
            self.cluster_bits.get()
        }
    }

    /// The state of unit `unit` of the cluster (0 where entries are not extended).
    ///
    /// # Errors
    /// The entry says what cannot be.
    pub(crate) fn state(
        &self,
        entry: L2Entry,
        bitmap: SubclusterBitmap,
        unit: u64,
        place: &Place,
    ) -> Result<State, DataError> {
        if entry.is_compressed() {
            return self.compressed(entry, unit, place);
        }
        let offset = entry.host_offset().get();
        let allocated = offset != 0 || (self.data_file && entry.is_copied());
        let at = offset.saturating_add(unit << self.unit_bits());
        let state = if self.extended {
            self.subcluster(allocated.then_some(at), bitmap, unit, place)?
        } else if entry.has_zero_flag() {
            if self.version < 3 {
                return Err(DataError::Corrupt(Corruption::ZeroClusterInVersion2 {
                    l2_offset: place.l2_offset,
                    l2_index: place.l2_index,
                }));
            }
            State::of(RunKind::Zero {
                host_offset: allocated.then_some(at),
            })
        } else if allocated {
            State::of(self.data(at))
        } else {
            State::of(RunKind::Unallocated)
        };
        if allocated {
            self.judge_offset(offset, place)?;
        }
        Ok(state)
    }

    const fn data(&self, host_offset: u64) -> RunKind {
        let file = if self.data_file {
            FileOf::DataFile
        } else {
            FileOf::Image
        };
        RunKind::Data { file, host_offset }
    }

    fn subcluster(
        &self,
        at: Option<u64>,
        bitmap: SubclusterBitmap,
        unit: u64,
        place: &Place,
    ) -> Result<State, DataError> {
        if bitmap.conflicting() != 0 || (at.is_none() && bitmap.allocated() != 0) {
            return Err(DataError::Corrupt(Corruption::InvalidEntry {
                l2_offset: place.l2_offset,
                l2_index: place.l2_index,
            }));
        }
        let bit = 1_u64 << (unit & 31);
        Ok(match at {
            Some(at) if bitmap.allocated() & bit != 0 => State::of(self.data(at)),
            at if bitmap.zeros() & bit != 0 => State::of(RunKind::Zero { host_offset: at }),
            at => State {
                kind: RunKind::Unallocated,
                reserved: at,
            },
        })
    }

    fn compressed(&self, entry: L2Entry, unit: u64, place: &Place) -> Result<State, DataError> {
        if self.data_file {
            return Err(DataError::Corrupt(Corruption::CompressedWithDataFile {
                l2_offset: place.l2_offset,
                l2_index: place.l2_index,
            }));
        }
        let cluster_len = self.cluster_bits.size_bytes();
        let kind = match entry.compressed(self.cluster_bits) {
            Some(descriptor) => RunKind::Compressed {
                host_offset: descriptor.offset.get(),
                max_bytes: u32::try_from(descriptor.size_bytes()).unwrap_or(u32::MAX),
                in_cluster: unit << self.unit_bits(),
                cluster_len: u32::try_from(cluster_len).unwrap_or(u32::MAX),
            },
            None => RunKind::Unallocated,
        };
        Ok(State::of(kind))
    }

    fn judge_offset(&self, offset: u64, place: &Place) -> Result<(), DataError> {
        if !self.cluster_bits.is_aligned(offset) {
            return Err(DataError::Corrupt(Corruption::ClusterUnaligned {
                offset,
                l2_offset: place.l2_offset,
                l2_index: place.l2_index,
            }));
        }
        if self.data_file && offset != place.guest_offset {
            return Err(DataError::Corrupt(Corruption::DataFileMoved {
                offset,
                guest_offset: place.guest_offset,
                l2_index: place.l2_index,
            }));
        }
        Ok(())
    }
}
