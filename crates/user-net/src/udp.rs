//! Datagrams: a connected socket of the host for each pair of ends, which goes when nothing has come or gone for a while.
//! What comes from elsewhere than where the guest has sent to does not reach it.

use crate::forward::Listener;
use crate::frame;
use crate::host::{self, Kind, Token};
use crate::network::Ground;
use crate::policy::Protocol;
use crate::tcp::Ends;
use crate::{GATEWAY, GUEST};
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketType};
use smoltcp::wire::{Icmpv4DstUnreachable, Ipv4Packet};
use std::collections::HashMap;
use std::net::{SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

/// Most pairs of ends.
pub const MAX_PAIRS: usize = 1024;
/// A pair that nobody has answered yet goes after this.
const UNANSWERED: Duration = Duration::from_secs(30);
/// Another pair goes after this.
const IDLE: Duration = Duration::from_secs(180);
/// Datagrams of one socket before others have their turn.
const TURN: usize = 32;
/// Ports of the router from which forwarded datagrams come.
const FORWARD_PORTS: std::ops::Range<u16> = 32_768..61_000;

/// What stands on the host's side of a pair.
#[derive(Debug)]
enum Side {
    /// A socket that is connected to the far end.
    Socket(OwnedFd),
    /// A program that has sent to a forwarded port: which, and from where.
    Forwarded { listener: usize, peer: SocketAddr },
}

#[derive(Debug)]
struct Pair {
    ends: Ends,
    side: Side,
    last: Instant,
    answered: bool,
}

/// All pairs.
#[derive(Debug, Default)]
pub struct Udp {
    pairs: HashMap<u64, Pair>,
    by_ends: HashMap<Ends, u64>,
    by_peer: HashMap<(usize, SocketAddr), u64>,
    next_id: u64,
    next_port: u16,
}

impl Udp {
    /// A datagram of the guest; `packet` is the one that it is in. `listeners` are forwarded ports.
    pub fn packet(
        &mut self,
        ground: &mut Ground,
        listeners: &[Listener],
        ends: Ends,
        payload: &[u8],
        packet: &Ipv4Packet<&[u8]>,
    ) {
        let id = match self.by_ends.get(&ends) {
            Some(id) => *id,
            None => match self.begin(ground, ends) {
                Ok(id) => id,
                Err(reason) => return ground.unreachable(packet, reason),
            },
        };
        let Some(pair) = self.pairs.get_mut(&id) else {
            return;
        };
        pair.last = ground.now;
        let sent = match &pair.side {
            Side::Socket(socket) => rustix::net::send(socket, payload, SendFlags::NOSIGNAL),
            Side::Forwarded { listener, peer } => match listeners.get(*listener) {
                Some(Listener { socket, .. }) => {
                    rustix::net::sendto(socket, payload, SendFlags::NOSIGNAL, peer)
                }
                None => return,
            },
        };
        match sent {
            Err(Errno::CONNREFUSED) => {
                ground.unreachable(packet, Icmpv4DstUnreachable::PortUnreachable);
            }
            Err(Errno::HOSTUNREACH | Errno::NETUNREACH) => {
                ground.unreachable(packet, Icmpv4DstUnreachable::HostUnreachable);
            }
            // Others are lost, as datagrams may be.
            _ => {}
        }
    }

    fn begin(&mut self, ground: &mut Ground, ends: Ends) -> Result<u64, Icmpv4DstUnreachable> {
        if !ground.allows(Protocol::Udp, ends.guest_port, ends.far) {
            return Err(Icmpv4DstUnreachable::CommProhibited);
        }
        let to = SocketAddr::from((host::address(*ends.far.ip()), ends.far.port()));
        let unreachable = |_| Icmpv4DstUnreachable::HostUnreachable;
        let socket = host::connect(SocketType::DGRAM, to).map_err(unreachable)?;
        self.make_room();
        let id = self.next_id;
        let token = Token {
            kind: Kind::Udp,
            id,
        };
        host::watch(&ground.epoll, &socket, token, EventFlags::IN).map_err(unreachable)?;
        Ok(self.add(ends, Side::Socket(socket), ground.now))
    }

    fn add(&mut self, ends: Ends, side: Side, now: Instant) -> u64 {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        if let Side::Forwarded { listener, peer } = &side {
            self.by_peer.insert((*listener, *peer), id);
        }
        self.by_ends.insert(ends, id);
        let pair = Pair {
            ends,
            side,
            last: now,
            answered: false,
        };
        self.pairs.insert(id, pair);
        id
    }

    /// The pair that was used least lately goes if there are too many.
    fn make_room(&mut self) {
        if self.pairs.len() >= MAX_PAIRS
            && let Some(id) = self.pairs.iter().min_by_key(|(_, pair)| pair.last)
        {
            let id = *id.0;
            self.remove(id);
        }
    }

    fn remove(&mut self, id: u64) {
        if let Some(pair) = self.pairs.remove(&id) {
            self.by_ends.remove(&pair.ends);
            if let Side::Forwarded { listener, peer } = pair.side {
                self.by_peer.remove(&(listener, peer));
            }
        }
    }

    /// A socket has datagrams for the guest.
    pub fn event(&mut self, ground: &mut Ground, id: u64, buffer: &mut [u8]) {
        let Some(pair) = self.pairs.get_mut(&id) else {
            return;
        };
        let Side::Socket(socket) = &pair.side else {
            return;
        };
        let to = SocketAddrV4::new(GUEST, pair.ends.guest_port);
        for _ in 0..TURN {
            match rustix::net::recv(socket, &mut *buffer, RecvFlags::empty()) {
                Ok((len, _)) => {
                    pair.last = ground.now;
                    pair.answered = true;
                    let payload = buffer.get(..len).unwrap_or_default();
                    if let Some(packet) = frame::udp(pair.ends.far, to, payload) {
                        ground.link.send(&packet);
                    }
                }
                Err(Errno::AGAIN) => return,
                // Nobody was there for the last datagram: the guest has lost it.
                Err(_) => {}
            }
        }
    }

    /// A forwarded port has datagrams for the guest's `guest_port`.
    pub fn forward(
        &mut self,
        ground: &mut Ground,
        listener: usize,
        socket: &OwnedFd,
        guest_port: u16,
        buffer: &mut [u8],
    ) {
        for _ in 0..TURN {
            let got = rustix::net::recvfrom(socket, &mut *buffer, RecvFlags::empty());
            let (len, peer) = match got {
                Ok((len, _, Some(peer))) => (len, SocketAddr::try_from(peer)),
                Err(Errno::AGAIN) => return,
                _ => continue,
            };
            let Ok(peer) = peer else { continue };
            let id = match self.by_peer.get(&(listener, peer)) {
                Some(id) => *id,
                None => {
                    self.make_room();
                    let Some(ends) = self.free_ends(guest_port) else {
                        continue;
                    };
                    self.add(ends, Side::Forwarded { listener, peer }, ground.now)
                }
            };
            let Some(pair) = self.pairs.get_mut(&id) else {
                continue;
            };
            pair.last = ground.now;
            pair.answered = true;
            let to = SocketAddrV4::new(GUEST, guest_port);
            let payload = buffer.get(..len).unwrap_or_default();
            if let Some(packet) = frame::udp(pair.ends.far, to, payload) {
                ground.link.send(&packet);
            }
        }
    }

    fn free_ends(&mut self, guest_port: u16) -> Option<Ends> {
        for _ in FORWARD_PORTS {
            let next = self.next_port.saturating_add(1);
            self.next_port = if FORWARD_PORTS.contains(&next) {
                next
            } else {
                FORWARD_PORTS.start
            };
            let ends = Ends {
                guest_port,
                far: SocketAddrV4::new(GATEWAY, self.next_port),
            };
            if !self.by_ends.contains_key(&ends) {
                return Some(ends);
            }
        }
        None
    }

    /// Drops the pairs that nobody uses.
    pub fn sweep(&mut self, now: Instant) {
        let over = |pair: &Pair| {
            let limit = if pair.answered { IDLE } else { UNANSWERED };
            now.saturating_duration_since(pair.last) >= limit
        };
        let over: Vec<u64> = self
            .pairs
            .iter()
            .filter(|(_, pair)| over(pair))
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            self.remove(id);
        }
    }
}
