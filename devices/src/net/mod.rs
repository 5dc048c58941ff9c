//! virtio-net: a network card. VirtIO 1.3 §5.1 "Network Device".
//!
//! One pair of queues and a control queue. Packets go between the guest's buffers and the backend in place, headers and
//! all: the backend (a tap device) speaks the same header, and checks what the guest put there. What the guest cannot
//! take now stays with the backend.
//!
//! - Offered: checksums and segmentation (TCP over IPv4 and IPv6, with ECN) left to the other side, both ways; packets
//!   over several buffers; and that the guest may change what it takes ([`Offloads`]) while it runs.
//! - Offered where the backend wants it: how long packets may be (`VIRTIO_NET_F_MTU`).
//! - Left out: UDP fragmentation and segmentation, several queue pairs, filters of addresses and VLANs (a tap device
//!   passes everything), and setting the address (the guest uses another one without asking).

mod control;
mod device;
mod receive;
mod state;
#[cfg(test)]
mod tests;

pub use device::NetDevice;
pub use state::NetState;

use std::fmt::Debug;
use std::io;
use vm_memory::VolatileSlice;

/// Index of the queue of packets to the guest. VirtIO 1.3 §5.1.2.
pub const RX_QUEUE: u16 = 0;
/// Index of the queue of packets from the guest.
pub const TX_QUEUE: u16 = 1;
/// Index of the queue of commands.
pub const CONTROL_QUEUE: u16 = 2;

/// Length of the queues.
const QUEUE_SIZES: [u16; 3] = [256, 256, 64];

/// Longest packet, its header included: 64 KiB and what stands before them.
pub const MAX_PACKET_BYTES: usize = (64 << 10) + 4096;

/// Packets of one direction that are moved before others have their turn.
const TURN_PACKETS: u32 = 128;
/// Packets after which the driver hears of them, within a turn.
const TOLD_PACKETS: u32 = 8;

/// After a packet has come alone, nobody asks for another one behind so many.
const ALONE_PACKETS: u32 = 16;

/// What the guest takes from the other side unfinished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Packets whose checksum is not filled in.
    pub checksum: bool,
    /// TCP over IPv4, longer than a frame.
    pub tso4: bool,
    /// TCP over IPv6, longer than a frame.
    pub tso6: bool,
    /// Of these, ones with congestion marks.
    pub ecn: bool,
}

/// Where packets go to and come from, each with the header of VirtIO 1.3 §5.1.6 before it. No call blocks; what would is
/// [`io::ErrorKind::WouldBlock`], and then the backend tells the device when it would not any more
/// ([`NetDevice::ready`]).
pub trait NetBackend: Debug + Send {
    /// Fills `into`, in order, with the next packet, and says how long that is; what does not fit is lost.
    ///
    /// # Errors
    /// The host's.
    fn receive(&mut self, into: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// Sends a packet, from memory that the guest may change meanwhile.
    ///
    /// # Errors
    /// The host's: the packet is lost.
    fn send(&mut self, from: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// From now on packets come as the guest takes them.
    fn set_offloads(&mut self, offloads: Offloads);

    /// Whether the backend tells the device of packets for as long as there are some, not only when the first one comes. Then
    /// the device does not ask for another one each time while they come alone.
    fn tells_again(&self) -> bool {
        false
    }

    /// Sends what is left of a packet that was taken as a whole. No other one is given to the backend before it is gone.
    ///
    /// # Errors
    /// The host's.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
