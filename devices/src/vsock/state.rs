//! The device as plain data.

use crate::virtio::SavedQueue;

/// Version of [`VsockState`]; a change of meaning raises it.
pub(super) const STATE_VERSION: u32 = 1;

/// A saved device: no connections, which the driver hears are gone. Plain data and untrusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockState {
    /// Version of this struct.
    pub version: u32,
    /// The guest's address.
    pub guest_cid: u32,
    /// By index: how far the device has come; empty if the driver was not ready.
    pub queues: Vec<Option<SavedQueue>>,
    /// The driver broke the rules.
    pub needs_reset: bool,
}
