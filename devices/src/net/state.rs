//! The device as plain data.

use crate::virtio::SavedQueue;

/// Version of [`NetState`]; a change of meaning raises it.
pub(super) const STATE_VERSION: u32 = 1;

/// A saved device. Packets that were on their way to the guest are lost, as packets may be. Plain data and untrusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetState {
    /// Version of this struct.
    pub version: u32,
    /// Feature bits of what the guest takes unfinished now: of those that it accepted, the ones not turned off since.
    pub offloads: u64,
    /// By index: how far the device has come; empty if the driver was not ready.
    pub queues: Vec<Option<SavedQueue>>,
    /// The driver broke the rules.
    pub needs_reset: bool,
}
