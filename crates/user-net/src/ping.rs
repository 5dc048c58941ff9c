//! Echo requests, by sockets that need no privilege (icmp(7), sysctl `ping_group_range`).

use crate::host::{self, Kind, Token};
use crate::network::Ground;
use crate::policy::Protocol;
use crate::{DNS_SERVER, GATEWAY, GUEST, frame};
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, Ipv4Packet};
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

/// Most that are pinged at a time.
const MAX_PINGED: usize = 64;
/// They are forgotten after this.
const IDLE: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Pinged {
    ident: u16,
    address: Ipv4Addr,
    socket: OwnedFd,
    last: Instant,
}

/// Who is pinged.
#[derive(Debug, Default)]
pub struct Ping {
    pinged: HashMap<u64, Pinged>,
    next_id: u64,
    /// That the user may not was said.
    told: bool,
}

impl Ping {
    /// An ICMP message of the guest to `to`.
    pub fn packet(&mut self, ground: &mut Ground, to: Ipv4Addr, packet: &Ipv4Packet<&[u8]>) {
        let Ok(message) = Icmpv4Packet::new_checked(packet.payload()) else {
            return;
        };
        let ignored = ChecksumCapabilities::ignored();
        let Ok(Icmpv4Repr::EchoRequest {
            ident,
            seq_no,
            data,
        }) = Icmpv4Repr::parse(&message, &ignored)
        else {
            return;
        };
        if to == GATEWAY || to == DNS_SERVER {
            let reply = frame::echo_reply(to, GUEST, ident, seq_no, data);
            return ground.link.send(&reply);
        }
        let socket = match self.find(ground, ident, to) {
            Ok(Some(socket)) => socket,
            Ok(None) => {
                return ground.unreachable(packet, Icmpv4DstUnreachable::CommProhibited);
            }
            Err(errno) => {
                if !std::mem::replace(&mut self.told, true) {
                    let now = ground.now;
                    let what = format_args!(
                        "ping does not work: {errno}; sysctl net.ipv4.ping_group_range has no group of this user"
                    );
                    ground.log.line(now, what);
                }
                return;
            }
        };
        // The kernel fills in identifier and checksum, which are of the socket.
        let mut bytes = packet.payload().to_vec();
        let mut request = Icmpv4Packet::new_unchecked(&mut bytes);
        request.set_checksum(0);
        // One that is lost is lost.
        let _ = rustix::net::send(socket, &bytes, SendFlags::NOSIGNAL);
    }

    /// The socket for an identifier of the guest and an address; none if it is denied.
    fn find(
        &mut self,
        ground: &mut Ground,
        ident: u16,
        address: Ipv4Addr,
    ) -> Result<Option<&OwnedFd>, Errno> {
        let same =
            |(_, pinged): &(&u64, &Pinged)| pinged.ident == ident && pinged.address == address;
        let id = match self.pinged.iter().find(same) {
            Some((id, _)) => *id,
            None => {
                if !ground.allows(Protocol::Icmp, ident, SocketAddrV4::new(address, 0)) {
                    return Ok(None);
                }
                let id = self.next_id;
                let socket = host::ping(address)?;
                let token = Token {
                    kind: Kind::Ping,
                    id,
                };
                host::watch(&ground.epoll, &socket, token, EventFlags::IN)?;
                self.next_id = id.wrapping_add(1);
                self.make_room();
                let pinged = Pinged {
                    ident,
                    address,
                    socket,
                    last: ground.now,
                };
                self.pinged.insert(id, pinged);
                id
            }
        };
        let found = self.pinged.get_mut(&id);
        Ok(found.map(|pinged| {
            pinged.last = ground.now;
            &pinged.socket
        }))
    }

    fn make_room(&mut self) {
        if self.pinged.len() >= MAX_PINGED
            && let Some((id, _)) = self.pinged.iter().min_by_key(|(_, pinged)| pinged.last)
        {
            let id = *id;
            self.pinged.remove(&id);
        }
    }

    /// A socket has an answer.
    pub fn event(&mut self, ground: &mut Ground, id: u64, buffer: &mut [u8]) {
        let Some(pinged) = self.pinged.get(&id) else {
            return;
        };
        let Ok((len, _)) = rustix::net::recv(&pinged.socket, &mut *buffer, RecvFlags::empty())
        else {
            return;
        };
        let Ok(message) = Icmpv4Packet::new_checked(buffer.get(..len).unwrap_or_default()) else {
            return;
        };
        let ignored = ChecksumCapabilities::ignored();
        if let Ok(Icmpv4Repr::EchoReply { seq_no, data, .. }) =
            Icmpv4Repr::parse(&message, &ignored)
        {
            let reply = frame::echo_reply(pinged.address, GUEST, pinged.ident, seq_no, data);
            ground.link.send(&reply);
        }
    }

    /// Forgets who is not pinged any more.
    pub fn sweep(&mut self, now: Instant) {
        self.pinged
            .retain(|_, pinged| now.saturating_duration_since(pinged.last) < IDLE);
    }
}
