//! Sockets of the host.

use rustix::event::epoll;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, ipproto};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

/// What an event is about: a kind and a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// [`Kind`].
    pub kind: Kind,
    /// Which one of its kind.
    pub id: u64,
}

/// Whose a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The guest's card.
    Link,
    /// A connection.
    Tcp,
    /// A pair of ends that send datagrams.
    Udp,
    /// Echo requests.
    Ping,
    /// A question to a DNS server.
    Dns,
    /// A port that leads into the guest.
    Forward,
}

const KINDS: [Kind; 6] = [
    Kind::Link,
    Kind::Tcp,
    Kind::Udp,
    Kind::Ping,
    Kind::Dns,
    Kind::Forward,
];
/// Bits of a token's number.
const ID_BITS: u32 = 56;

impl Token {
    fn data(self) -> epoll::EventData {
        let kind = KINDS.iter().position(|kind| *kind == self.kind);
        let kind = kind.and_then(|kind| u64::try_from(kind).ok()).unwrap_or(0);
        epoll::EventData::new_u64(kind << ID_BITS | self.id)
    }

    /// What an event is about.
    #[must_use]
    pub fn of(data: epoll::EventData) -> Option<Self> {
        let kind = usize::try_from(data.u64() >> ID_BITS).ok()?;
        Some(Self {
            kind: *KINDS.get(kind)?,
            id: data.u64() & ((1 << ID_BITS) - 1),
        })
    }
}

/// Watches a socket, until it is closed. Edge-triggered ones are told of once, each time more can be done.
///
/// # Errors
/// The system's.
pub fn watch(
    epoll: &OwnedFd,
    socket: impl AsFd,
    token: Token,
    flags: epoll::EventFlags,
) -> Result<(), Errno> {
    epoll::add(epoll, socket, token.data(), flags)
}

/// Watches a socket that is watched already for something else. What is so now is told of.
///
/// # Errors
/// The system's.
pub fn watch_again(
    epoll: &OwnedFd,
    socket: impl AsFd,
    token: Token,
    flags: epoll::EventFlags,
) -> Result<(), Errno> {
    epoll::modify(epoll, socket, token.data(), flags)
}

const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

/// Where the host is reached for what the guest calls `address`.
#[must_use]
pub fn address(address: Ipv4Addr) -> Ipv4Addr {
    if address == crate::GATEWAY || address == crate::DNS_SERVER {
        return Ipv4Addr::LOCALHOST;
    }
    address
}

/// Whether the address is one of this host's, now: a socket can be bound to it. A kernel that binds to any address (sysctl
/// `ip_nonlocal_bind`) makes all of them the host's, which denies more, not less.
#[must_use]
pub fn is_own(address: Ipv4Addr) -> bool {
    let bound = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, FLAGS, None)
        .and_then(|socket| rustix::net::bind(&socket, &SocketAddrV4::new(address, 0)));
    !matches!(bound, Err(Errno::ADDRNOTAVAIL))
}

/// A socket that connects to `to`.
///
/// # Errors
/// The system's; that it takes a while is none.
pub fn connect(kind: SocketType, to: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = match to.ip() {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = rustix::net::socket_with(family, kind, FLAGS, None)?;
    started(rustix::net::connect(&socket, &to))?;
    if kind == SocketType::STREAM {
        // Bytes go on as the guest sends them.
        rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
    }
    Ok(socket)
}

/// A socket for echo requests to `to`, where the user may have one.
///
/// # Errors
/// The system's.
pub fn ping(to: Ipv4Addr) -> Result<OwnedFd, Errno> {
    let protocol: Option<Protocol> = Some(ipproto::ICMP);
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, FLAGS, protocol)?;
    started(rustix::net::connect(&socket, &SocketAddrV4::new(to, 0)))?;
    Ok(socket)
}

fn started(connected: Result<(), Errno>) -> Result<(), Errno> {
    match connected {
        Err(Errno::INPROGRESS | Errno::INTR) => Ok(()),
        other => other,
    }
}
