//! The block device. VirtIO 1.3 §5.2 "Block Device", plus the vendor requests of
//! [`instar_shared::blk`].
//!
//! [`BlkDevice`] serves operations and Linux guests: [`crate::virtio::DeviceQueue`] turns descriptors into validated buffers, [`request`] turns
//! those into a typed request, [`device`] performs it over a [`BlockBackend`] and publishes
//! completions. [`VirtioBlk`] puts it behind a transport, with the configuration that a
//! driver of Linux reads.

use instar_shared::blk::MAX_REQUEST_BYTES;
use instar_shared::zerocopy::little_endian::U64;

mod backend;
mod config_space;
mod device;
mod linux;
#[cfg(any(test, feature = "test-utils"))]
mod mem_backend;
mod request;
mod state;
#[cfg(test)]
mod tests;

pub use crate::virtio::{DeviceFault, GuestBuffer};
pub use backend::{BlockBackend, Completion, Errno, IoKind, IoRequest, Submission, Token};
pub use config_space::DiskTraits;
pub use device::{BlkConfig, BlkDevice};
pub use linux::{Clock, QUEUE_SIZE, VirtioBlk};
#[cfg(any(test, feature = "test-utils"))]
pub use mem_backend::{CompletionOrder, MemBackend};
pub use state::{BlkState, STATE_VERSION};

/// Most [`instar_shared::blk::StatusExtent`]s that one block status request may ask for.
pub const MAX_STATUS_EXTENTS: usize = 4096;
/// Most segments of a discard or write-zeroes request.
const MAX_SEGMENTS: usize = 32;
/// Most sectors of one of them: 2 GiB.
const MAX_SEGMENT_SECTORS: u32 = 1 << 22;
/// `virtio_blk_discard_write_zeroes`: sector, number of sectors, flags. VirtIO 1.3 §5.2.6.
const DISCARD_SEGMENT_BYTES: usize = 16;
/// Bytes of the most of them that a request may have.
const SEGMENTS_BYTES: usize = DISCARD_SEGMENT_BYTES * MAX_SEGMENTS;
/// Bit of the flags of that struct: the range may be deallocated. VirtIO 1.3 §5.2.6.
const WRITE_ZEROES_UNMAP: u32 = 1 << 0;
/// Largest byte offset that a request may reach: `off_t` of the host.
const MAX_OFFSET: u64 = i64::MAX as u64;

const _: () = assert!(MAX_REQUEST_BYTES <= u32::MAX as u64 / 2);
const _: () = assert!(size_of::<U64>() == 8);
