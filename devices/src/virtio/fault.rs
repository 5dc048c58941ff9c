//! What a driver can do wrong.

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
    /// Flags that were not negotiated, or that do not go together.
    #[error("descriptor {index} has flags {flags:#x} that it may not have")]
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
    /// A table of descriptors that is empty, ragged, longer than a chain may be, or named by another such table.
    /// VirtIO 1.3 §2.7.5.3.
    #[error("descriptor {index} names an indirect table of {len} bytes, which cannot be")]
    IndirectTable {
        /// The descriptor.
        index: u16,
        /// Length of the table in bytes.
        len: u32,
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
    /// Fewer writable bytes than a packet needs.
    #[error("the buffers at {head} have no room for a packet")]
    RoomShort {
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
