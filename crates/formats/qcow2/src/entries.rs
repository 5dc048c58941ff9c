//! L1, L2 and refcount table entries: fields and reserved bits, no policy.
//!
//! Layouts: qcow2 "L1 table entry", "L2 table entry", "Standard Cluster
//! Descriptor", "Compressed Clusters Descriptor", "Extended L2 Entries" and
//! "Reference count tables".

use crate::bits;
use crate::units::{ClusterBits, HostOffset};

/// Bits 9-55 of an entry: a host offset.
pub const OFFSET_MASK: u64 = bits(9, 55);
/// Bit 63 of an L1 or standard L2 entry: the cluster's refcount is exactly one.
pub const COPIED: u64 = bits(63, 63);
/// Bit 62 of an L2 entry: the cluster is compressed.
pub const COMPRESSED: u64 = bits(62, 62);
/// Bit 0 of a standard L2 entry, version 3: the cluster reads as zeros.
pub const ALL_ZEROS: u64 = bits(0, 0);
/// Reserved bits of an L1 entry.
pub const L1_RESERVED: u64 = bits(0, 8) | bits(56, 62);
/// Reserved bits of a standard cluster descriptor without subclusters.
pub const L2_STD_RESERVED: u64 = bits(1, 8) | bits(56, 61);
/// Reserved bits of a refcount table entry.
pub const REFCOUNT_TABLE_RESERVED: u64 = bits(0, 8);
/// Bytes of a sector, the unit of a compressed cluster's length.
pub const COMPRESSED_SECTOR_BYTES: u64 = 512;
/// Subclusters of a cluster where L2 entries are extended.
pub const SUBCLUSTERS: u32 = 32;

/// An entry of an L1 table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct L1Entry(pub u64);

impl L1Entry {
    /// Takes the 8 bytes of the table.
    pub const fn from_be_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_be_bytes(bytes))
    }

    /// True if no L2 table is allocated: the offset is 0.
    pub const fn is_unallocated(self) -> bool {
        self.0 & OFFSET_MASK == 0
    }

    /// Where the L2 table is; may be 0 or unaligned.
    pub const fn l2_offset(self) -> HostOffset {
        HostOffset(self.0 & OFFSET_MASK)
    }

    /// Bit 63: the L2 table's refcount is exactly one.
    pub const fn is_copied(self) -> bool {
        self.0 & COPIED != 0
    }

    /// The reserved bits that are set.
    pub const fn reserved_bits(self) -> u64 {
        self.0 & L1_RESERVED
    }
}

/// The first 64 bits of an L2 entry, standard or extended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct L2Entry(pub u64);

impl L2Entry {
    /// Takes the 8 bytes of the table.
    pub const fn from_be_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_be_bytes(bytes))
    }

    /// Bit 62: the other bits are a compressed cluster descriptor.
    pub const fn is_compressed(self) -> bool {
        self.0 & COMPRESSED != 0
    }

    /// Bit 63: the refcount is exactly one. Never set for a compressed cluster.
    pub const fn is_copied(self) -> bool {
        self.0 & COPIED != 0
    }

    /// Bit 0 of a standard descriptor: reads as zeros. Version 3 without
    /// extended L2 entries; reserved otherwise.
    pub const fn has_zero_flag(self) -> bool {
        self.0 & ALL_ZEROS != 0
    }

    /// Bits 9-55 of a standard descriptor: where the data is; may be 0 or
    /// unaligned.
    pub const fn host_offset(self) -> HostOffset {
        HostOffset(self.0 & OFFSET_MASK)
    }

    /// The reserved bits of a standard descriptor that are set. Bit 0 counts as
    /// reserved where L2 entries are extended.
    pub const fn reserved_bits(self, extended: bool) -> u64 {
        let reserved = if extended {
            L2_STD_RESERVED | ALL_ZEROS
        } else {
            L2_STD_RESERVED
        };
        self.0 & reserved
    }

    /// The compressed cluster descriptor, `None` where bit 62 is clear.
    pub const fn compressed(self, cluster_bits: ClusterBits) -> Option<CompressedDescriptor> {
        if self.is_compressed() {
            Some(CompressedDescriptor::new(self.0, cluster_bits))
        } else {
            None
        }
    }
}

/// A compressed cluster descriptor.
///
/// With x = 62 - (cluster_bits - 8): bits 0 to x-1 are the host offset, bits x
/// to 61 the number of *additional* 512-byte sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressedDescriptor {
    /// Where the compressed data starts; any alignment.
    pub offset: HostOffset,
    /// Sectors after the one that holds `offset`; 0..2^(cluster_bits - 8).
    pub additional_sectors: u64,
}

impl CompressedDescriptor {
    const fn new(entry: u64, cluster_bits: ClusterBits) -> Self {
        // cluster_bits is 9..=21, so the offset is 49 to 61 bits wide.
        let offset_bits = 70_u32.saturating_sub(cluster_bits.get());
        Self {
            offset: HostOffset(entry & bits(0, offset_bits.saturating_sub(1))),
            additional_sectors: (entry & bits(offset_bits, 61)) >> offset_bits,
        }
    }

    /// Bytes from `offset` to the end of the last sector: the most that the
    /// compressed data takes.
    pub const fn size_bytes(self) -> u64 {
        let sectors = self.additional_sectors.saturating_add(1);
        let in_sector = self.offset.0 % COMPRESSED_SECTOR_BYTES;
        sectors
            .saturating_mul(COMPRESSED_SECTOR_BYTES)
            .saturating_sub(in_sector)
    }

    /// The first byte of the first sector.
    pub const fn first_sector_offset(self) -> HostOffset {
        HostOffset(self.offset.0 & !COMPRESSED_SECTOR_BYTES.saturating_sub(1))
    }

    /// The first byte after the last sector.
    pub const fn end_offset(self) -> HostOffset {
        HostOffset(self.offset.0.saturating_add(self.size_bytes()))
    }
}

/// The second 64 bits of an extended L2 entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct SubclusterBitmap(pub u64);

impl SubclusterBitmap {
    /// Takes the 8 bytes of the table.
    pub const fn from_be_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_be_bytes(bytes))
    }

    /// Bits 0-31: which subclusters are allocated, subcluster 0 in bit 0.
    pub const fn allocated(self) -> u64 {
        self.0 & bits(0, 31)
    }

    /// Bits 32-63, moved down: which subclusters read as zeros.
    pub const fn zeros(self) -> u64 {
        self.0 >> 32
    }

    /// Subclusters marked both allocated and zero, which is invalid.
    pub const fn conflicting(self) -> u64 {
        self.allocated() & self.zeros()
    }
}

/// An entry of the refcount table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct RefcountTableEntry(pub u64);

impl RefcountTableEntry {
    /// Takes the 8 bytes of the table.
    pub const fn from_be_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_be_bytes(bytes))
    }

    /// Bits 9-63: where the refcount block is; 0 if there is none.
    pub const fn block_offset(self) -> HostOffset {
        HostOffset(self.0 & bits(9, 63))
    }

    /// The reserved bits that are set.
    pub const fn reserved_bits(self) -> u64 {
        self.0 & REFCOUNT_TABLE_RESERVED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn l1_entry_fields_are_where_the_spec_puts_them() {
        let entry = L1Entry(0x8000_0000_0004_0000);
        assert!(entry.is_copied() && !entry.is_unallocated());
        assert_eq!(entry.l2_offset(), HostOffset(0x4_0000));
        assert_eq!(entry.reserved_bits(), 0);
        assert_eq!(L1Entry(u64::MAX).reserved_bits(), 0x7f00_0000_0000_01ff);
        assert!(L1Entry(0x8000_0000_0000_01ff).is_unallocated());
    }

    #[test]
    fn l2_entry_zero_flag_is_reserved_where_extended() {
        let entry = L2Entry(0x8000_0000_0005_0001);
        assert!(entry.has_zero_flag() && entry.is_copied() && !entry.is_compressed());
        assert_eq!(entry.reserved_bits(false), 0);
        assert_eq!(entry.reserved_bits(true), 1);
        assert_eq!(entry.host_offset(), HostOffset(0x5_0000));
        assert_eq!(
            L2Entry(u64::MAX).reserved_bits(false),
            0x3f00_0000_0000_01fe
        );
    }

    #[test]
    fn compressed_descriptor_splits_at_every_cluster_size() {
        for bits in ClusterBits::MIN..=ClusterBits::MAX {
            let cluster_bits = ClusterBits::new(bits).unwrap();
            let x = 62 - (bits - 8);
            let most = (1_u64 << (bits - 8)) - 1;
            let entry = L2Entry(COMPRESSED | (most << x) | 0x1234);
            let got = entry.compressed(cluster_bits).unwrap();
            assert_eq!(got.offset, HostOffset(0x1234), "cluster_bits {bits}");
            assert_eq!(got.additional_sectors, most, "cluster_bits {bits}");
            assert_eq!(got.end_offset().get() % 512, 0);
            assert_eq!(got.first_sector_offset(), HostOffset(0x1200));
            assert_eq!(got.size_bytes(), (most + 1) * 512 - 0x34);
            let all = L2Entry(u64::MAX).compressed(cluster_bits).unwrap();
            assert_eq!(all.offset.get(), (1 << x) - 1);
        }
        assert_eq!(L2Entry(0).compressed(ClusterBits::new(16).unwrap()), None);
    }

    #[test]
    fn subcluster_bitmap_splits_into_halves() {
        let map = SubclusterBitmap(0x0000_0003_8000_0001);
        assert_eq!(map.allocated(), 0x8000_0001);
        assert_eq!(map.zeros(), 3);
        assert_eq!(map.conflicting(), 1);
    }

    #[test]
    fn refcount_table_entry_keeps_high_offsets() {
        let entry = RefcountTableEntry(u64::MAX);
        assert_eq!(entry.block_offset(), HostOffset(!0x1ff));
        assert_eq!(entry.reserved_bits(), 0x1ff);
    }
}
