//! virtio-vsock: sockets between programs of the guest and of the host. VirtIO 1.3 §5.10 "Socket Device".
//!
//! Streams only. What stands behind a port of the host is the backend's business ([`Backend`], [`Stream`]); the device
//! keeps the connections: who asked, who agreed, which direction has ended, and credit both ways, so that neither side
//! ever holds more than it has said it has room for.
//!
//! - Packets to the guest take turns between connections, one packet each.
//! - Replies that belong to no connection are few ([`MAX_REPLIES`]): a driver that gives no buffers to receive in has
//!   its packets left in the queue (VirtIO 1.3 §5.10.6.1).
//! - Saved devices hold no connections: after a restore the driver hears that they are gone (§5.10.6.7).
//!
//! Where a packet is framed by descriptors means nothing (§2.7.4.1): that is why headers are read here, and not by the
//! `virtio-vsock` crate, which wants a header alone in its descriptor or together with all data.

mod backend;
mod buffer;
mod connection;
mod device;
mod state;
mod table;
#[cfg(test)]
mod tests;

pub use backend::{Backend, ConnectionId, Readiness, Stream};
pub use device::VsockDevice;
pub use state::VsockState;

use crate::virtio::slices;

/// Index of the queue of packets to the guest. VirtIO 1.3 §5.10.2.
pub const RX_QUEUE: u16 = 0;
/// Index of the queue of packets from the guest.
pub const TX_QUEUE: u16 = 1;
/// Index of the queue of events.
pub const EVENT_QUEUE: u16 = 2;

/// Length of the queues.
const QUEUE_SIZES: [u16; 3] = [256, 256, 64];

/// Most connections at a time.
pub const MAX_CONNECTIONS: usize = 512;

/// Bytes of a connection that wait for a program of the host, at most: the room that the guest is told of.
pub const BUFFER_BYTES: u32 = 128 << 10;

/// Bytes that have left the buffer before the guest is told without having asked.
const CREDIT_STEP_BYTES: u32 = BUFFER_BYTES / 4;

/// Most bytes of data of a packet to the guest.
const MAX_DATA_BYTES: usize = 64 << 10;

/// Most replies that belong to no connection and wait for a buffer.
const MAX_REPLIES: usize = 256;

/// Packets of each direction that are served before other devices have their turn.
const TURN_PACKETS: u32 = 256;
