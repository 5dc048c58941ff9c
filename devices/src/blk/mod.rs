//! The block device. VirtIO 1.3 §5.2 "Block Device", plus the vendor requests of
//! [`instar_shared::blk`].
//!
//! [`chain`] turns descriptors into validated buffers, [`request`] turns those into
//! a typed request, [`device`] performs it over a [`BlockBackend`] and publishes
//! completions. Indirect descriptors, event indices and packed queues are not
//! offered.

use instar_shared::blk::MAX_REQUEST_BYTES;
use instar_shared::zerocopy::little_endian::U64;

mod backend;
mod chain;
mod device;
#[cfg(any(test, feature = "test-utils"))]
mod mem_backend;
mod request;
mod state;
#[cfg(test)]
mod tests;

pub use backend::{
    BlockBackend, Completion, Errno, GuestBuffer, IoKind, IoRequest, Submission, Token,
};
pub use device::{BlkConfig, BlkDevice};
#[cfg(any(test, feature = "test-utils"))]
pub use mem_backend::{CompletionOrder, MemBackend};
pub use state::{BlkState, RestoreError, STATE_VERSION};

/// Most [`instar_shared::blk::StatusExtent`]s that one block status request may ask for.
pub const MAX_STATUS_EXTENTS: usize = 4096;
/// `virtio_blk_discard_write_zeroes`: sector, number of sectors, flags. VirtIO 1.3 §5.2.6.
const DISCARD_SEGMENT_BYTES: usize = 16;
/// Bit of the flags of that struct: the range may be deallocated. VirtIO 1.3 §5.2.6.
const WRITE_ZEROES_UNMAP: u32 = 1 << 0;
/// Largest byte offset that a request may reach: `off_t` of the host.
const MAX_OFFSET: u64 = i64::MAX as u64;

const _: () = assert!(MAX_REQUEST_BYTES <= u32::MAX as u64 / 2);
const _: () = assert!(size_of::<U64>() == 8);

/// What the driver did that no device can go on after. VirtIO 1.3 §2.1.2: the device needs a reset.
///
/// Once a device has faulted it touches neither the queue nor guest memory again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceFault {
    /// A part of the queue lies outside the device's memory.
    #[error("the virtqueue does not lie in the device's memory")]
    QueueOutside,
    /// VirtIO 1.3 §2.7.13.3: at most the queue size can be available.
    #[error("the available index {index} is more than a queue ahead of {seen}")]
    AvailIndex {
        /// What the driver wrote.
        index: u16,
        /// Up to where the device has looked.
        seen: u16,
    },
    /// A descriptor index past the queue size.
    #[error("descriptor {index} is past the queue's {size} entries")]
    DescriptorIndex {
        /// The index, from the available ring or a `next` field.
        index: u16,
        /// Entries of the queue.
        size: u16,
    },
    /// The chain that starts at `head` is longer than the queue: it loops.
    #[error("the descriptor chain at {head} loops")]
    ChainLoop {
        /// First descriptor of the chain.
        head: u16,
    },
    /// The head is owned by the device already.
    #[error("the descriptor chain at {head} was made available twice")]
    HeadInUse {
        /// First descriptor of the chain.
        head: u16,
    },
    /// Flags that were not negotiated, such as an indirect table.
    #[error("descriptor {index} has flags {flags:#x} that the device does not offer")]
    DescriptorFlags {
        /// The descriptor.
        index: u16,
        /// Its flags.
        flags: u16,
    },
    /// A buffer of no bytes.
    #[error("descriptor {index} has no bytes")]
    EmptyBuffer {
        /// The descriptor.
        index: u16,
    },
    /// A buffer that is not wholly in the device's memory.
    #[error("descriptor {index} names {len} bytes at {addr:#x}, outside the device's memory")]
    BufferOutside {
        /// The descriptor.
        index: u16,
        /// Its guest address.
        addr: u64,
        /// Its length in bytes.
        len: u32,
    },
    /// VirtIO 1.3 §2.7.4.2: device-readable buffers come first.
    #[error("descriptor {index} is device-readable but follows a device-writable one")]
    BufferOrder {
        /// The descriptor.
        index: u16,
    },
    /// Fewer readable bytes than a request header has.
    #[error("the request at {head} has no complete header")]
    HeaderShort {
        /// First descriptor of the chain.
        head: u16,
    },
    /// Fewer writable bytes than the request's footer has.
    #[error("the request at {head} has no room for its status")]
    FooterShort {
        /// First descriptor of the chain.
        head: u16,
    },
    /// Data buffers in the wrong direction for the request's type.
    #[error("the request at {head} has data buffers in the wrong direction")]
    DataDirection {
        /// First descriptor of the chain.
        head: u16,
    },
    /// Guest memory that was checked could not be accessed.
    #[error("guest memory of the request could not be accessed")]
    Memory,
    /// The backend completed something that was not in flight: a bug of the host.
    #[error("the block backend completed a request that is not in flight")]
    UnknownToken,
    /// The device was saved after a fault.
    #[error("the device faulted before it was saved and needs a reset")]
    NeedsReset,
}
