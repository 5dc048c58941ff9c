//! What an L2 entry says of a cluster, and the entry that says it.

use crate::WriteError;
use instar_qcow2::entries::{ALL_ZEROS, COPIED, CompressedDescriptor, L2Entry, SubclusterBitmap};
use instar_qcow2::{ClusterBits, Header};

/// How clusters are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Division {
    pub bits: ClusterBits,
    /// L2 entries are extended.
    pub extended: bool,
    /// There is a zero flag.
    pub version_3: bool,
}

impl Division {
    pub const fn of(header: &Header) -> Self {
        Self {
            bits: header.cluster_bits,
            extended: header.incompatible.extended_l2(),
            version_3: header.version >= 3,
        }
    }

    /// Bytes that are allocated together: a subcluster, or a cluster.
    pub const fn unit(&self) -> u64 {
        if self.extended {
            self.bits.size_bytes() >> 5
        } else {
            self.bits.size_bytes()
        }
    }

    /// One bit for each unit of a cluster.
    pub const fn all(&self) -> u32 {
        if self.extended { u32::MAX } else { 1 }
    }
}

/// A cluster's state. Bit n of a mask is the unit n.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Where the cluster lies; 0 if nowhere. In a data file, 0 may be a place.
    pub host: u64,
    /// `host` is a place.
    pub placed: bool,
    /// No snapshot refers to it.
    pub owned: bool,
    /// Units with data at `host`.
    pub data: u32,
    /// Units that read as zeros.
    pub zeros: u32,
    /// The cluster is compressed.
    pub compressed: Option<CompressedDescriptor>,
}

impl Mapping {
    /// Reads an entry. `in_data_file`: guest data lies in a data file, so that offset 0 is a place.
    ///
    /// # Errors
    /// The entry makes no sense.
    pub fn decode(
        words: (u64, u64),
        division: Division,
        in_data_file: bool,
    ) -> Result<Self, WriteError> {
        let entry = L2Entry(words.0);
        let mut mapping = Self {
            host: 0,
            placed: false,
            owned: false,
            data: 0,
            zeros: 0,
            compressed: entry.compressed(division.bits),
        };
        if mapping.compressed.is_some() {
            if in_data_file {
                let what = "compressed cluster in an image with a data file";
                return Err(WriteError::Corrupt { what });
            }
            return Ok(mapping);
        }
        mapping.host = entry.host_offset().get();
        mapping.owned = entry.is_copied();
        // QEMU: in a data file, offset 0 with the flag is the first cluster.
        mapping.placed = mapping.host != 0 || (in_data_file && mapping.owned);
        if !division.bits.is_aligned(mapping.host) {
            let what = "data cluster is not cluster aligned";
            return Err(WriteError::Corrupt { what });
        }
        if division.extended {
            let bitmap = SubclusterBitmap(words.1);
            if bitmap.conflicting() != 0 || (bitmap.allocated() != 0 && !mapping.placed) {
                let what = "subcluster bitmap";
                return Err(WriteError::Corrupt { what });
            }
            mapping.data = low_half(bitmap.allocated());
            mapping.zeros = low_half(bitmap.zeros());
        } else if division.version_3 && entry.has_zero_flag() {
            mapping.zeros = 1;
        } else {
            mapping.data = u32::from(mapping.placed);
        }
        Ok(mapping)
    }

    /// The entry that says so; never compressed.
    pub const fn encode(&self, division: Division) -> (u64, u64) {
        let place = if self.placed {
            self.host | if self.owned { COPIED } else { 0 }
        } else {
            0
        };
        if division.extended {
            (place, ((self.zeros as u64) << 32) | self.data as u64)
        } else if self.zeros != 0 {
            (place | ALL_ZEROS, 0)
        } else {
            (place, 0)
        }
    }
}

fn low_half(word: u64) -> u32 {
    u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0)
}

/// The bits `first..=last`, both below 32.
#[allow(clippy::cast_possible_truncation)] // below 32
pub const fn mask(first: u64, last: u64) -> u32 {
    let from = u32::MAX.wrapping_shl((first & 31) as u32);
    let to = u32::MAX.wrapping_shr((31_u64.saturating_sub(last & 31)) as u32);
    from & to
}
