//! What a driver of Linux reads about a disk. VirtIO 1.3 §5.2.3, §5.2.4.

use super::{MAX_SEGMENT_SECTORS, MAX_SEGMENTS};
use instar_shared::blk::{MAX_REQUEST_BYTES, SECTOR_SIZE};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Longest segment of a request in bytes, so that [`SEG_MAX`] of them are no more than a request may have.
const SIZE_MAX: u32 = 256 << 10;
/// Most segments of a request: a chain has room for a header and a status besides.
const SEG_MAX: u32 = super::QUEUE_SIZE as u32 - 2;
/// Bytes of the configuration, up to `write_zeroes_may_unmap` and what pads it.
pub(super) const CONFIG_BYTES: usize = 60;
/// Largest physical block that is announced.
const MAX_BLOCK_BYTES: u32 = 64 << 10;

const _: () = assert!(SIZE_MAX as u64 * SEG_MAX as u64 <= MAX_REQUEST_BYTES);

/// What a disk is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskTraits {
    /// Length in bytes; a last partial sector cannot be reached.
    pub len_bytes: u64,
    /// Nothing may be changed.
    pub read_only: bool,
    /// What the store reads and writes at once, in bytes: a power of two, at least a sector.
    pub block_bytes: u32,
}

impl DiskTraits {
    /// Length in sectors.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.len_bytes.checked_div(SECTOR_SIZE).unwrap_or(0)
    }

    /// Feature bits on offer, those of rings included.
    pub(super) fn features(&self) -> u64 {
        let always = [
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_BLK_F_SIZE_MAX,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_FLUSH,
        ];
        let others: &[u32] = if self.read_only {
            &[VIRTIO_BLK_F_RO]
        } else {
            &[VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]
        };
        let all = always.iter().chain(others);
        all.fold(0, |bits, bit| bits | 1_u64.checked_shl(*bit).unwrap_or(0))
    }

    /// `struct virtio_blk_config`.
    pub(super) fn config_space(&self) -> [u8; CONFIG_BYTES] {
        let sector = u32::try_from(SECTOR_SIZE).unwrap_or(0);
        let block = self.block_bytes.clamp(sector, MAX_BLOCK_BYTES);
        let sectors_of_block = block.checked_div(sector).unwrap_or(1);
        let exponent = u8::try_from(sectors_of_block.checked_ilog2().unwrap_or(0)).unwrap_or(0);
        let minimum = u16::try_from(sectors_of_block).unwrap_or(1);
        let segments = u32::try_from(MAX_SEGMENTS).unwrap_or(1);
        let mut space = [0; CONFIG_BYTES];
        let mut put = |offset: usize, bytes: &[u8]| {
            let place = space.iter_mut().skip(offset);
            place.zip(bytes).for_each(|(to, from)| *to = *from);
        };
        put(0, &self.sectors().to_le_bytes());
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        // 16: geometry, which nobody is told.
        put(20, &sector.to_le_bytes());
        put(24, &[exponent, 0]);
        put(26, &minimum.to_le_bytes());
        // 28: optimal length of a request, none in particular. 32: writeback, which is not on offer.
        put(34, &1_u16.to_le_bytes());
        put(36, &MAX_SEGMENT_SECTORS.to_le_bytes());
        put(40, &segments.to_le_bytes());
        put(44, &sectors_of_block.to_le_bytes());
        put(48, &MAX_SEGMENT_SECTORS.to_le_bytes());
        put(52, &segments.to_le_bytes());
        put(56, &[1]);
        space
    }
}
