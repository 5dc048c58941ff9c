//! What a network is made of, and what all its parts use.

use crate::GUEST;
use crate::forward::Listener;
use crate::link::Link;
use crate::log::Log;
use crate::policy::{Place, Policy, Protocol, Target, Verdict, place};
use crate::{frame, host};
use rustix::fd::OwnedFd;
use smoltcp::wire::{Icmpv4DstUnreachable, Ipv4Packet};
use std::net::{SocketAddr, SocketAddrV4};
use std::time::Instant;

/// What a network is made of. Its sockets and files are opened by the caller; the network opens none but sockets.
#[derive(Debug)]
pub struct Settings {
    /// The network's end of a pair of SOCK_SEQPACKET sockets, each of whose messages is a frame behind virtio-net's header
    /// of 12 bytes.
    pub link: OwnedFd,
    /// Address of the guest's card.
    pub guest_mac: [u8; 6],
    /// Longest IP packet in bytes, [`crate::MIN_MTU`] to [`crate::MAX_MTU`].
    pub mtu: u16,
    /// What the guest may reach.
    pub policy: Policy,
    /// Forwarded ports.
    pub listeners: Vec<Listener>,
    /// DNS servers.
    pub servers: Vec<SocketAddr>,
    /// Gets a line for each flow that is denied.
    pub log: Option<OwnedFd>,
}

/// What all parts of a network use.
#[derive(Debug)]
pub struct Ground {
    /// To the guest.
    pub link: Link,
    /// What is waited for.
    pub epoll: OwnedFd,
    /// What the guest may reach.
    pub policy: Policy,
    /// DNS servers.
    pub servers: Vec<SocketAddr>,
    /// Denied flows.
    pub log: Log,
    /// The time of what is served now.
    pub now: Instant,
}

impl Ground {
    /// Whether a flow may be; one that may not is logged.
    pub fn allows(&mut self, protocol: Protocol, guest_port: u16, far: SocketAddrV4) -> bool {
        let address = *far.ip();
        let target = Target {
            protocol,
            address: address.into(),
            port: far.port(),
            own: place(address.into()) != Place::Nowhere && host::is_own(address),
        };
        match self.policy.decide(&target, self.now) {
            Verdict::Allow => true,
            Verdict::Deny(reason) => {
                let now = self.now;
                let what =
                    format_args!("denied {protocol} {GUEST}:{guest_port} -> {far}: {reason}");
                self.log.line(now, what);
                false
            }
        }
    }

    /// Tells the guest that a packet did not arrive.
    pub fn unreachable(&mut self, packet: &Ipv4Packet<&[u8]>, reason: Icmpv4DstUnreachable) {
        if let Some(news) = frame::unreachable(packet, reason) {
            self.link.send(&news);
        }
    }
}
