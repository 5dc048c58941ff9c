//! Frames to and from the guest's card: one in each message of a SOCK_SEQPACKET socket, behind virtio-net's header.
//!
//! Nothing is left to the guest unfinished, so the header to it is zeros. What comes from it may be a segment longer than a
//! frame, or lack its checksum: both are as good as what a network would have made of it.

use crate::frame::{self, ETHERNET_BYTES};
use crate::{GATEWAY_MAC, MAX_MTU};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::EthernetProtocol;
use std::collections::VecDeque;

/// Length of virtio-net's header in bytes. VirtIO 1.3 §5.1.6.
pub const HEADER_BYTES: usize = 12;
/// Bytes before an IP packet.
const FRONT_BYTES: usize = HEADER_BYTES + ETHERNET_BYTES;
/// Longest message in bytes.
pub const MAX_MESSAGE_BYTES: usize = FRONT_BYTES + 65_535;
/// Frames that wait for room at most; further ones are lost, as frames may be.
const MAX_WAITING: usize = 64;
/// What the socket may hold, if the system lets it, so that several long frames are on their way.
const SOCKET_BYTES: usize = 1 << 20;

/// The guest's end of the network.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
    /// Address of the guest's card: as it was made, or as the guest says.
    pub guest_mac: [u8; 6],
    /// Longest IP packet in bytes.
    pub mtu: u16,
    buffer: Vec<u8>,
    waiting: VecDeque<Vec<u8>>,
    /// The socket takes nothing now.
    blocked: bool,
    /// The guest's side is gone.
    closed: bool,
}

impl Link {
    /// The network's end of a pair of sockets.
    pub fn new(socket: OwnedFd, guest_mac: [u8; 6], mtu: u16) -> Self {
        // Less is slower, not wrong.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BYTES);
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BYTES);
        Self {
            socket,
            guest_mac,
            mtu: mtu.min(MAX_MTU),
            buffer: vec![0; MAX_MESSAGE_BYTES],
            waiting: VecDeque::new(),
            blocked: false,
            closed: false,
        }
    }

    /// For waiting.
    pub const fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Whether nothing can be sent now.
    pub const fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Whether the guest's side is gone.
    pub const fn is_closed(&self) -> bool {
        self.closed
    }

    /// The next frame, without virtio-net's header: where it lies in `into`; none if there is none.
    pub fn receive<'a>(&mut self, into: &'a mut [u8]) -> Option<&'a [u8]> {
        loop {
            match rustix::net::recv(&self.socket, &mut *into, RecvFlags::DONTWAIT) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                Ok((0, _)) | Err(_) => {
                    self.closed = true;
                    return None;
                }
                // One that is too short or too long is no frame, and empty.
                Ok((len, whole)) if len == whole => {
                    return Some(into.get(HEADER_BYTES..len).unwrap_or_default());
                }
                Ok(_) => return Some(&[]),
            }
        }
    }

    /// Room has come: sends what waits.
    pub fn flush(&mut self) {
        self.blocked = false;
        while let Some(message) = self.waiting.pop_front() {
            if !self.pass(&message) {
                self.waiting.push_front(message);
                return;
            }
        }
    }

    /// Sends an IP packet of `len` bytes that `fill` writes.
    fn send_with<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut buffer = std::mem::take(&mut self.buffer);
        let end = FRONT_BYTES.saturating_add(len);
        if buffer.len() < end {
            buffer.resize(end, 0);
        }
        let (front, rest) = buffer.split_at_mut(FRONT_BYTES);
        let (header, ethernet) = front.split_at_mut(HEADER_BYTES);
        header.fill(0);
        frame::ethernet(
            ethernet,
            GATEWAY_MAC,
            self.guest_mac,
            EthernetProtocol::Ipv4,
        );
        let packet = rest.get_mut(..len).unwrap_or_default();
        let result = fill(packet);
        self.message(buffer.get(..end).unwrap_or_default());
        self.buffer = buffer;
        result
    }

    /// Sends an IP packet.
    pub fn send(&mut self, packet: &[u8]) {
        self.send_with(packet.len(), |to| to.copy_from_slice(packet));
    }

    /// Sends a frame of another protocol.
    pub fn send_other(&mut self, protocol: EthernetProtocol, payload: &[u8]) {
        let mut message = vec![0; FRONT_BYTES];
        let ethernet = message.get_mut(HEADER_BYTES..).unwrap_or_default();
        frame::ethernet(ethernet, GATEWAY_MAC, self.guest_mac, protocol);
        message.extend_from_slice(payload);
        self.message(&message);
    }

    fn message(&mut self, message: &[u8]) {
        let sent = !self.blocked && self.pass(message);
        if !sent && self.waiting.len() < MAX_WAITING {
            self.waiting.push_back(message.to_vec());
        }
    }

    /// Sends; false if there is no room.
    fn pass(&mut self, message: &[u8]) -> bool {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match rustix::net::send(&self.socket, message, flags) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.blocked = true;
                    return false;
                }
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => {
                    self.closed = true;
                    return true;
                }
                // Without memory it is lost.
                _ => return true,
            }
        }
    }

    /// The link as smoltcp sees it, with a packet that has come.
    pub const fn port<'a>(&'a mut self, packet: Option<&'a [u8]>) -> Port<'a> {
        Port { link: self, packet }
    }
}

/// The link as smoltcp sees it.
#[derive(Debug)]
pub struct Port<'a> {
    link: &'a mut Link,
    packet: Option<&'a [u8]>,
}

/// A packet of the guest.
#[derive(Debug)]
pub struct Received<'a>(&'a [u8]);

/// Room for a packet to it.
#[derive(Debug)]
pub struct Room<'a>(&'a mut Link);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.0.send_with(len, f)
    }
}

impl Device for Port<'_> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Room<'a>
    where
        Self: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, Room<'_>)> {
        let packet = self.packet.take()?;
        Some((Received(packet), Room(self.link)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Room<'_>> {
        (!self.link.blocked).then_some(Room(self.link))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.link.mtu.into();
        capabilities.checksum = frame::checksums();
        capabilities
    }
}
