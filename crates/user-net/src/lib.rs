//! A user-mode network for one guest. It needs no privilege: what the guest sends becomes calls on ordinary sockets of
//! the host, and what these say becomes frames.
//!
//! ```text
//!   guest's card <-- one frame, with virtio-net's header, per message (SOCK_SEQPACKET) --> Network <-- sockets --> host
//! ```
//!
//! - [`Network`]: the event loop. `network::frames`: who gets a frame.
//! - `link`: frames to and from the guest. `frame`: how they are made.
//! - `tcp`: each connection of the guest is one of smoltcp's sockets on its side and one of the host's on the other. The
//!   guest's SYN is answered when the host is connected, and with a reset if it is refused.
//! - `udp`, `ping`: a connected socket for each pair of ends. `forward`: ports of the host that lead into the guest.
//! - `dns`: queries to [`DNS_SERVER`] go to the host's servers, as far as the policy lets their names.
//! - `dhcp`: the guest's address is always [`GUEST`].
//! - [`policy`]: what a guest may reach.
//!
//! There is no IPv6: its frames are dropped, and the guest, which hears of no router, uses IPv4. Fragments of packets are
//! dropped as well: the card takes whole ones. Every table has a limit, and every buffer.
#![cfg(target_os = "linux")]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod dhcp;
mod dns;
pub mod forward;
mod frame;
mod host;
mod link;
mod log;
mod names;
mod network;
mod ping;
pub mod policy;
pub mod servers;
mod tcp;
mod udp;

#[cfg(test)]
mod tests;

pub use network::{Network, NetworkError, Settings};

use std::net::Ipv4Addr;

/// The guest's address, in a network of 24 bits.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The router: to the guest, the host itself. Connections to it go to 127.0.0.1, where the policy allows them.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The guest's DNS server. Its other ports are the host's, as the router's are.
pub const DNS_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// Mask of the guest's network.
pub const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
/// The router's Ethernet address, and that of everything behind it.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0x69, 0x6e, 0x73, 0x00, 0x02];

/// Longest IP packet of the link in bytes: what a card's 64 KiB hold beside the Ethernet header.
pub const MAX_MTU: u16 = 65_520;
/// Shortest: every host of IPv4 takes it (RFC 791), and DHCP's option has no less than 68 (RFC 2132 §5.1).
pub const MIN_MTU: u16 = 576;
