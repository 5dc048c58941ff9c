//! The device as plain data, to stop it here and go on elsewhere.

use super::device::BlkConfig;
use virtio_queue::QueueState;

/// Version of [`BlkState`]; a change of meaning raises it.
pub const STATE_VERSION: u32 = 1;

/// A saved device. Plain data and untrusted: only [`super::BlkDevice::restore`] makes a device of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkState {
    /// [`STATE_VERSION`].
    pub version: u32,
    /// What the device was made with.
    pub config: BlkConfig,
    /// Position in the rings.
    pub queue: QueueState,
    /// Heads of the chains that were submitted and not completed, oldest first. A restored device
    /// submits them again: reads and writes have the same effect twice.
    pub in_flight: Vec<u16>,
    /// The driver broke the rules; the device does nothing until it is reset.
    pub needs_reset: bool,
}

/// Why a saved state is no device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Written by another version.
    #[error("block device state has version {0}, this program reads version {STATE_VERSION}")]
    Version(u32),
    /// Queue size or addresses that no queue can have.
    #[error("block device state has a queue that cannot be")]
    Queue,
    /// A head past the queue, or twice.
    #[error("block device state has descriptor {0} in flight, which cannot be")]
    InFlight(u16),
}
