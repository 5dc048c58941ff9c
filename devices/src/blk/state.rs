//! The device as plain data, to stop it here and go on elsewhere.

use crate::virtio::SavedQueue;

/// Version of [`BlkState`]; a change of meaning raises it.
pub const STATE_VERSION: u32 = 2;

/// A saved device. Plain data and untrusted: only [`super::BlkDevice::restore`] makes a device of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkState {
    /// [`STATE_VERSION`].
    pub version: u32,
    /// Position in the rings. What was submitted and not completed is submitted again by a restored device: reads and
    /// writes have the same effect twice.
    pub queue: SavedQueue,
    /// The driver broke the rules; the device does nothing until it is reset.
    pub needs_reset: bool,
}
