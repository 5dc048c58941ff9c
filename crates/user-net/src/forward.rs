//! Ports of the host that lead into the guest.

use crate::policy::Protocol;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Most of them.
pub const MAX_FORWARDS: usize = 64;
/// Connections that wait to be taken.
const BACKLOG: i32 = 128;

/// A port of the host that leads to one of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where the host listens.
    pub listen: SocketAddr,
    /// The guest's port.
    pub guest_port: u16,
}

/// Why there is no such port.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// It has no known form.
    #[error(
        "'{0}' is no forwarded port: write tcp:HOSTPORT:GUESTPORT, or tcp:ADDRESS:HOSTPORT:GUESTPORT, or the same with udp; \
         an IPv6 address stands in brackets"
    )]
    Form(String),
    /// Somebody listens there.
    #[error("cannot forward {0}: the port is in use; choose another one for the host's side")]
    Busy(Forward),
    /// Anything else.
    #[error("cannot forward {forward}: {errno}")]
    Other {
        /// Which.
        forward: Forward,
        /// What the system said.
        errno: Errno,
    },
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.protocol, self.listen, self.guest_port)
    }
}

/// A forwarded port whose host's side listens.
#[derive(Debug)]
pub struct Listener {
    /// Which.
    pub forward: Forward,
    /// The host's socket.
    pub socket: OwnedFd,
}

impl Forward {
    /// Reads `tcp:[ADDRESS:]HOSTPORT:GUESTPORT`. Without an address, only this host reaches the port.
    ///
    /// # Errors
    /// [`ForwardError::Form`].
    pub fn parse(text: &str) -> Result<Self, ForwardError> {
        Self::read(text).ok_or_else(|| ForwardError::Form(text.to_owned()))
    }

    fn read(text: &str) -> Option<Self> {
        let (protocol, rest) = match text.split_once(':')? {
            ("tcp", rest) => (Protocol::Tcp, rest),
            ("udp", rest) => (Protocol::Udp, rest),
            _ => return None,
        };
        let (rest, guest_port) = rest.rsplit_once(':')?;
        let (address, host_port) = match rest.rsplit_once(':') {
            Some((address, port)) => (self::address(address)?, port),
            None => (Ipv4Addr::LOCALHOST.into(), rest),
        };
        Some(Self {
            protocol,
            listen: SocketAddr::new(address, port(host_port)?),
            guest_port: port(guest_port)?,
        })
    }

    /// Listens.
    ///
    /// # Errors
    /// [`ForwardError::Busy`], [`ForwardError::Other`].
    pub fn bind(self) -> Result<Listener, ForwardError> {
        let failed = |errno| match errno {
            Errno::ADDRINUSE => ForwardError::Busy(self),
            errno => ForwardError::Other {
                forward: self,
                errno,
            },
        };
        let socket = self.socket().map_err(failed)?;
        Ok(Listener {
            forward: self,
            socket,
        })
    }

    fn socket(&self) -> Result<OwnedFd, Errno> {
        let family = match self.listen.ip() {
            IpAddr::V4(_) => AddressFamily::INET,
            IpAddr::V6(_) => AddressFamily::INET6,
        };
        let kind = match self.protocol {
            Protocol::Tcp => SocketType::STREAM,
            _ => SocketType::DGRAM,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, kind, flags, None)?;
        if kind == SocketType::STREAM {
            // Connections of a machine that has just ended do not keep the port busy; one that listens does.
            rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
        }
        rustix::net::bind(&socket, &self.listen)?;
        if kind == SocketType::STREAM {
            rustix::net::listen(&socket, BACKLOG)?;
        }
        Ok(socket)
    }
}

fn address(text: &str) -> Option<IpAddr> {
    let inner = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    match inner {
        Some(inner) => Some(IpAddr::V6(inner.parse().ok()?)),
        None => Some(IpAddr::V4(text.parse().ok()?)),
    }
}

fn port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_are_read_and_written() {
        let cases = [
            ("tcp:2222:22", "tcp:127.0.0.1:2222:22"),
            ("udp:0.0.0.0:53:5353", "udp:0.0.0.0:53:5353"),
            ("tcp:[::1]:80:8080", "tcp:[::1]:80:8080"),
        ];
        for (text, whole) in cases {
            assert_eq!(Forward::parse(text).unwrap().to_string(), whole);
        }
        for wrong in [
            "",
            "tcp",
            "tcp:22",
            "2222:22",
            "tcp:0:22",
            "tcp:1:0",
            "tcp:x:1:2",
            "tcp::1:2",
            "icmp:1:2",
            "tcp:::1:1:2",
            "tcp:+1:2",
            "tcp:70000:1",
            "tcp:localhost:1:2",
        ] {
            assert!(Forward::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_busy_port_is_an_error() {
        // A port that is free again may be another program's a moment later, but not each time.
        let freed = (0..100).any(|_| {
            let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = taken.local_addr().unwrap().port();
            let forward = Forward::parse(&format!("tcp:{port}:22")).unwrap();
            assert_eq!(forward.bind().unwrap_err(), ForwardError::Busy(forward));
            drop(taken);
            forward.bind().is_ok()
        });
        assert!(freed);
    }
}
