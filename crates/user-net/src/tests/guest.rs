//! The other end of the link: a guest.

use crate::forward::{Forward, Listener};
use crate::frame;
use crate::link::{HEADER_BYTES, MAX_MESSAGE_BYTES};
use crate::policy::{Policy, Protocol};
use crate::{GATEWAY, GATEWAY_MAC, GUEST, MAX_MTU, Network, Settings};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{
    EthernetProtocol, HardwareAddress, IpAddress, IpCidr, IpProtocol, Ipv4Packet, UdpPacket,
};
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// How long anything may take where others work, too.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// A network for a test: rules, ports, DNS servers.
#[derive(Default)]
pub struct Bed {
    pub allow: Vec<&'static str>,
    pub deny: Vec<&'static str>,
    pub servers: Vec<SocketAddr>,
    pub log: Option<OwnedFd>,
    pub listeners: Vec<Listener>,
}

impl Bed {
    pub fn allowing(rule: &'static str) -> Self {
        Self {
            allow: vec![rule],
            ..Self::default()
        }
    }

    /// The network of this bed, and the guest's end.
    pub fn network(self) -> (Network, OwnedFd) {
        let (link, guest) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        let owned = |rules: Vec<&str>| rules.into_iter().map(str::to_owned).collect::<Vec<_>>();
        let settings = Settings {
            link,
            guest_mac: MAC,
            mtu: MAX_MTU,
            policy: Policy::new(&owned(self.allow), &owned(self.deny)).unwrap(),
            listeners: self.listeners,
            servers: self.servers,
            log: self.log,
        };
        (Network::new(settings).unwrap(), guest)
    }

    /// Runs it until the guest is dropped.
    pub fn start(self) -> Guest {
        let (mut network, guest) = self.network();
        let thread = std::thread::spawn(move || network.run().unwrap());
        Guest::new(guest, Some(thread))
    }
}

/// A port of the host that leads to `guest_port`, and which one that is: the kernel chooses one that is nobody else's.
pub fn forwarded(protocol: Protocol, guest_port: u16) -> (u16, Listener) {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let forward = Forward {
        protocol,
        listen,
        guest_port,
    };
    let listener = forward.bind().unwrap();
    let at = rustix::net::getsockname(&listener.socket).unwrap();
    (SocketAddr::try_from(at).unwrap().port(), listener)
}

/// A port that nobody listens at as long as the socket is there, which takes it.
pub fn closed(protocol: Protocol) -> (u16, OwnedFd) {
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        _ => SocketType::DGRAM,
    };
    let socket = rustix::net::socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None);
    let socket = socket.unwrap();
    let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    rustix::net::bind(&socket, &here).unwrap();
    if kind == SocketType::DGRAM {
        // It hears nobody but itself then.
        let own = rustix::net::getsockname(&socket).unwrap();
        rustix::net::connect(&socket, &own).unwrap();
    }
    let at = rustix::net::getsockname(&socket).unwrap();
    (SocketAddr::try_from(at).unwrap().port(), socket)
}

/// The guest's card.
pub struct Card {
    pub socket: Option<OwnedFd>,
    /// What is not TCP.
    pub others: VecDeque<(EthernetProtocol, Vec<u8>)>,
    /// Nothing is taken.
    pub deaf: bool,
}

pub struct Guest {
    pub card: Card,
    pub iface: Interface,
    pub sockets: SocketSet<'static>,
    began: Instant,
    next_port: u16,
    thread: Option<JoinHandle<()>>,
}

pub struct Packet(Vec<u8>);
pub struct Room<'a>(&'a OwnedFd);

impl RxToken for Packet {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        send_frame(self.0, EthernetProtocol::Ipv4, &packet);
        result
    }
}

fn send_frame(socket: &OwnedFd, protocol: EthernetProtocol, payload: &[u8]) {
    let mut message = vec![0; HEADER_BYTES + 14];
    frame::ethernet(&mut message[HEADER_BYTES..], MAC, GATEWAY_MAC, protocol);
    message.extend_from_slice(payload);
    while rustix::net::send(socket, &message, SendFlags::NOSIGNAL).is_err() {
        let mut polled = [PollFd::new(socket, PollFlags::OUT)];
        rustix::event::poll(&mut polled, None).unwrap();
    }
}

impl Device for Card {
    type RxToken<'a> = Packet;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Packet, Room<'_>)> {
        if self.deaf {
            return None;
        }
        let socket = self.socket.as_ref().unwrap();
        loop {
            let mut message = vec![0; MAX_MESSAGE_BYTES];
            let (len, _) = rustix::net::recv(socket, &mut message, RecvFlags::empty()).ok()?;
            assert!(len > HEADER_BYTES + 14, "the network is gone");
            assert_eq!(message[..HEADER_BYTES], [0; HEADER_BYTES]);
            message.truncate(len);
            let frame = message.split_off(HEADER_BYTES);
            let protocol = EthernetProtocol::from(u16::from_be_bytes([frame[12], frame[13]]));
            let packet = frame[14..].to_vec();
            let is_tcp = protocol == EthernetProtocol::Ipv4
                && Ipv4Packet::new_checked(&packet).unwrap().next_header() == IpProtocol::Tcp;
            if is_tcp {
                return Some((Packet(packet), Room(socket)));
            }
            self.others.push_back((protocol, packet));
        }
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Room<'_>> {
        Some(Room(self.socket.as_ref().unwrap()))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MAX_MTU.into();
        capabilities
    }
}

impl Guest {
    pub fn new(socket: OwnedFd, thread: Option<JoinHandle<()>>) -> Self {
        let mut card = Card {
            socket: Some(socket),
            others: VecDeque::new(),
            deaf: false,
        };
        let config = Config::new(HardwareAddress::Ip);
        let now = smoltcp::time::Instant::ZERO;
        let mut iface = Interface::new(config, &mut card, now);
        iface.update_ip_addrs(|list| {
            list.push(IpCidr::new(IpAddress::Ipv4(GUEST), 24)).unwrap();
        });
        iface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        Self {
            card,
            iface,
            sockets: SocketSet::new(Vec::new()),
            began: Instant::now(),
            next_port: 40_000,
            thread,
        }
    }

    pub fn socket(&self) -> &OwnedFd {
        self.card.socket.as_ref().unwrap()
    }

    /// Lets the guest's own stack work, and waits a moment if there is nothing.
    pub fn poll(&mut self) {
        let now = smoltcp::time::Instant::from_micros(self.began.elapsed().as_micros() as i64);
        let changed = self.iface.poll(now, &mut self.card, &mut self.sockets);
        if changed == smoltcp::iface::PollResult::None {
            let wait = Timespec {
                tv_sec: 0,
                tv_nsec: 1_000_000,
            };
            let mut polled = [PollFd::new(self.socket(), PollFlags::IN)];
            rustix::event::poll(&mut polled, Some(&wait)).unwrap();
        }
    }

    /// Works until `done` says something.
    pub fn until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = done(self) {
                return found;
            }
            assert!(Instant::now() < end, "{what}: it did not happen");
            self.poll();
        }
    }

    /// Begins a connection.
    pub fn connect(&mut self, to: (Ipv4Addr, u16)) -> SocketHandle {
        self.connect_with(to, 256 << 10)
    }

    /// Begins a connection with little room for data.
    pub fn connect_small(&mut self, to: (Ipv4Addr, u16)) -> SocketHandle {
        self.connect_with(to, 2 << 10)
    }

    fn connect_with(&mut self, to: (Ipv4Addr, u16), bytes: usize) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; bytes]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        let port = self.next_port;
        self.next_port += 1;
        socket.connect(self.iface.context(), to, port).unwrap();
        self.sockets.add(socket)
    }

    /// Listens.
    pub fn listen(&mut self, port: u16) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 64 << 10]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.listen(port).unwrap();
        self.sockets.add(socket)
    }

    pub fn tcp(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Whether a connection comes about.
    pub fn connects(&mut self, to: (Ipv4Addr, u16)) -> bool {
        let handle = self.connect(to);
        let connected = self.until("an answer to a SYN", |guest| {
            match guest.tcp(handle).state() {
                State::SynSent => None,
                State::Closed => Some(false),
                _ => Some(true),
            }
        });
        self.sockets.remove(handle);
        connected
    }

    /// Sends and closes; all that comes until the other side closes.
    pub fn exchange(&mut self, handle: SocketHandle, data: &[u8]) -> Vec<u8> {
        let mut sent = 0;
        let mut got = Vec::new();
        self.until("an exchange", |guest| {
            let socket = guest.tcp(handle);
            if sent < data.len() && socket.can_send() {
                sent += socket.send_slice(&data[sent..]).unwrap();
                if sent == data.len() {
                    socket.close();
                }
            } else if data.is_empty() && socket.may_send() {
                socket.close();
            }
            while socket.can_recv() {
                let more = |bytes: &mut [u8]| {
                    got.extend_from_slice(bytes);
                    (bytes.len(), ())
                };
                socket.recv(more).unwrap();
            }
            let over = matches!(socket.state(), State::Closed | State::TimeWait);
            over.then_some(())
        });
        self.sockets.remove(handle);
        got
    }

    pub fn send_packet(&self, packet: &[u8]) {
        send_frame(self.socket(), EthernetProtocol::Ipv4, packet);
    }

    pub fn send_other(&self, protocol: EthernetProtocol, payload: &[u8]) {
        send_frame(self.socket(), protocol, payload);
    }

    pub fn send_udp(&self, port: u16, to: SocketAddrV4, payload: &[u8]) {
        self.send_packet(&frame::udp(SocketAddrV4::new(GUEST, port), to, payload).unwrap());
    }

    /// The next frame that is not TCP.
    pub fn other(&mut self) -> (EthernetProtocol, Vec<u8>) {
        self.until("a frame", |guest| guest.card.others.pop_front())
    }

    /// The next datagram: from where, to which port, and what.
    pub fn datagram(&mut self) -> (SocketAddrV4, u16, Vec<u8>) {
        let (_, packet) = self.other();
        let packet = Ipv4Packet::new_checked(packet.as_slice()).unwrap();
        assert!(packet.verify_checksum());
        assert_eq!(packet.next_header(), IpProtocol::Udp, "{packet:?}");
        let datagram = UdpPacket::new_checked(packet.payload()).unwrap();
        let (src, dst) = (packet.src_addr().into(), packet.dst_addr().into());
        assert!(datagram.verify_checksum(&src, &dst));
        (
            SocketAddrV4::new(packet.src_addr(), datagram.src_port()),
            datagram.dst_port(),
            datagram.payload().to_vec(),
        )
    }

    /// The next ICMP message: who sends it, its type and its code.
    pub fn icmp(&mut self) -> (Ipv4Addr, u8, u8) {
        let (_, packet) = self.other();
        let packet = Ipv4Packet::new_checked(packet.as_slice()).unwrap();
        assert_eq!(packet.next_header(), IpProtocol::Icmp, "{packet:?}");
        let payload = packet.payload();
        (packet.src_addr(), payload[0], payload[1])
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.card.socket = None;
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.unwrap();
            }
        }
    }
}
