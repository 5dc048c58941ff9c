//! Offsets and indices that must not be mixed up.

use core::fmt;

macro_rules! unit {
    ($(#[$m:meta])* $name:ident) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The plain number.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The sum, `None` past 2^64.
            pub const fn checked_add(self, n: u64) -> Option<Self> {
                match self.0.checked_add(n) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

unit! {
    /// A byte offset in the virtual disk, as the guest of the image sees it.
    GuestOffset
}
unit! {
    /// A byte offset in the image file (or in the data file, where one is in use).
    HostOffset
}
unit! {
    /// The number of a host cluster: its host offset divided by the cluster size.
    ClusterIndex
}

/// The logarithm of the cluster size, validated to 9..=21 (512 B to 2 MiB).
///
/// qcow2 "Header" asks for at least 9; QEMU refuses more than 21.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterBits(u32);

impl ClusterBits {
    /// The smallest `cluster_bits`.
    pub const MIN: u32 = 9;
    /// The largest `cluster_bits`.
    pub const MAX: u32 = 21;

    /// Takes a number in 9..=21.
    pub const fn new(bits: u32) -> Option<Self> {
        if bits >= Self::MIN && bits <= Self::MAX {
            Some(Self(bits))
        } else {
            None
        }
    }

    /// The logarithm, 9..=21.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The cluster size in bytes, 512..=2 MiB.
    pub const fn size_bytes(self) -> u64 {
        1 << self.0
    }

    /// `size_bytes() - 1`.
    pub const fn mask(self) -> u64 {
        (1_u64 << self.0).wrapping_sub(1)
    }

    /// True if the offset is a multiple of the cluster size.
    pub const fn is_aligned(self, offset: u64) -> bool {
        offset & self.mask() == 0
    }

    /// The cluster that holds a byte of the file.
    pub const fn cluster_of(self, offset: HostOffset) -> ClusterIndex {
        ClusterIndex(offset.0 >> self.0)
    }

    /// Where a cluster starts; `None` past 2^64.
    pub const fn start_of(self, cluster: ClusterIndex) -> Option<HostOffset> {
        match cluster.0.checked_mul(self.size_bytes()) {
            Some(offset) => Some(HostOffset(offset)),
            None => None,
        }
    }

    /// How many clusters hold `bytes` bytes, rounded up.
    pub const fn clusters_for(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.size_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_bits_out_of_range_are_refused() {
        assert_eq!(ClusterBits::new(8), None);
        assert_eq!(ClusterBits::new(22), None);
        assert_eq!(ClusterBits::new(u32::MAX), None);
    }

    #[test]
    fn clusters_and_offsets_convert() {
        let bits = ClusterBits::new(16).unwrap();
        assert_eq!(bits.cluster_of(HostOffset(0x1_ffff)), ClusterIndex(1));
        assert_eq!(bits.start_of(ClusterIndex(2)), Some(HostOffset(0x2_0000)));
        assert_eq!(bits.start_of(ClusterIndex(u64::MAX)), None);
        assert_eq!(bits.clusters_for(0x1_0001), 2);
        assert!(bits.is_aligned(0x3_0000) && !bits.is_aligned(0x3_0200));
    }
}
