//! The network: its event loop, and who gets a frame.

use crate::dns::Dns;
use crate::forward::Listener;
use crate::frame::ETHERNET_BYTES;
use crate::host::{self, Kind, Token};
use crate::link::{Link, MAX_MESSAGE_BYTES};
use crate::log::Log;
use crate::ping::Ping;
use crate::policy::{Place, Policy, Protocol, Target, Verdict, place};
use crate::servers::DNS_PORT;
use crate::tcp::{Ends, Tcp};
use crate::udp::Udp;
use crate::{DNS_SERVER, GATEWAY, GATEWAY_MAC, GUEST, dhcp, frame};
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, DHCP_CLIENT_PORT, DHCP_SERVER_PORT, EthernetAddress,
    EthernetFrame, EthernetProtocol, Icmpv4DstUnreachable, IpProtocol, Ipv4Packet, TcpPacket,
    UdpPacket,
};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

/// After a frame has come alone, nobody asks for another one behind so many.
const ALONE_FRAMES: u32 = 16;
/// Frames of the guest before its connections have their turn.
const TURN_FRAMES: usize = 64;
/// Connections to forwarded ports that are taken at a time.
const TURN_ACCEPTED: usize = 16;
/// Events that are looked at together.
const EVENTS: usize = 128;
/// How often what nobody uses is looked for.
const SWEEP: Duration = Duration::from_secs(5);

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

/// Why a network cannot be, or not any more.
#[derive(Debug, thiserror::Error)]
#[error("the user network: {step}: {errno}")]
pub struct NetworkError {
    step: &'static str,
    errno: Errno,
}

fn failed(step: &'static str) -> impl Fn(Errno) -> NetworkError {
    move |errno| NetworkError { step, errno }
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

/// A user-mode network.
#[derive(Debug)]
pub struct Network {
    ground: Ground,
    tcp: Tcp,
    udp: Udp,
    ping: Ping,
    dns: Dns,
    listeners: Vec<Listener>,
    buffer: Vec<u8>,
    /// The guest may have sent more.
    readable: bool,
    /// Frames that are taken to come alone.
    alone: u32,
    /// The link is watched for room as well.
    watches_room: bool,
    swept: Instant,
}

impl Network {
    /// Builds a network; nothing is moved yet.
    ///
    /// # Errors
    /// The system has no more descriptors.
    pub fn new(settings: Settings) -> Result<Self, NetworkError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed("epoll_create"))?;
        let link = Link::new(settings.link, settings.guest_mac, settings.mtu);
        let token = |kind, id| Token { kind, id };
        host::watch(
            &epoll,
            link.socket(),
            token(Kind::Link, 0),
            link_flags(false),
        )
        .map_err(failed("epoll_ctl"))?;
        for (index, listener) in (0..).zip(&settings.listeners) {
            let token = token(Kind::Forward, index);
            host::watch(&epoll, &listener.socket, token, EventFlags::IN)
                .map_err(failed("epoll_ctl"))?;
        }
        let mut seed = [0; 8];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
            .map_err(failed("getrandom"))?;
        let now = Instant::now();
        let mut ground = Ground {
            link,
            epoll,
            policy: settings.policy,
            servers: settings.servers,
            log: Log::new(settings.log, now),
            now,
        };
        let tcp = Tcp::new(&mut ground, u64::from_ne_bytes(seed));
        Ok(Self {
            ground,
            tcp,
            udp: Udp::default(),
            ping: Ping::default(),
            dns: Dns::default(),
            listeners: settings.listeners,
            buffer: vec![0; MAX_MESSAGE_BYTES],
            readable: true,
            alone: 0,
            watches_room: false,
            swept: now,
        })
    }

    /// How many TCP connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.tcp.len()
    }

    /// Serves the guest until its side of the link is closed.
    ///
    /// # Errors
    /// The system's, of waiting.
    pub fn run(&mut self) -> Result<(), NetworkError> {
        let longest = Duration::from_secs(3600);
        while self.turn(longest)? {}
        Ok(())
    }

    /// Waits for at most so long until something happens, and serves it; false once the guest's side is closed.
    ///
    /// # Errors
    /// The system's, of waiting.
    pub fn turn(&mut self, longest: Duration) -> Result<bool, NetworkError> {
        self.ground.now = Instant::now();
        let until = self.serve_timers();
        let wait = until
            .saturating_duration_since(self.ground.now)
            .min(longest);
        let wait = if self.readable { Duration::ZERO } else { wait };
        let mut events = [const { MaybeUninit::<epoll::Event>::uninit() }; EVENTS];
        let (events, _) = match epoll::wait(&self.ground.epoll, &mut events, Some(&timespec(wait)))
        {
            Ok(events) => events,
            Err(Errno::INTR) => return Ok(true),
            Err(errno) => return Err(failed("epoll_wait")(errno)),
        };
        self.ground.now = Instant::now();
        for event in events.iter() {
            if let Some(token) = Token::of(event.data) {
                self.event(token, event.flags);
            }
        }
        self.serve_link();
        self.watch_room()?;
        Ok(!self.ground.link.is_closed())
    }

    /// Has the link watched for room while something waits for it, and only then: it has room each time that the guest's side
    /// takes a frame.
    fn watch_room(&mut self) -> Result<(), NetworkError> {
        let blocked = self.ground.link.is_blocked();
        if blocked != self.watches_room {
            let token = Token {
                kind: Kind::Link,
                id: 0,
            };
            let flags = link_flags(blocked);
            host::watch_again(&self.ground.epoll, self.ground.link.socket(), token, flags)
                .map_err(failed("epoll_ctl"))?;
            self.watches_room = blocked;
        }
        Ok(())
    }

    /// Serves what is due; when to look again.
    fn serve_timers(&mut self) -> Instant {
        let now = self.ground.now;
        if now.saturating_duration_since(self.swept) >= SWEEP {
            self.swept = now;
            self.udp.sweep(now);
            self.ping.sweep(now);
        }
        let sweep = self.swept.checked_add(SWEEP);
        let tcp = self.tcp.serve_timers(&mut self.ground);
        let dns = self.dns.serve_timers(&mut self.ground);
        [tcp, dns, sweep].into_iter().flatten().min().unwrap_or(now)
    }

    fn event(&mut self, token: Token, flags: EventFlags) {
        let (ground, buffer) = (&mut self.ground, self.buffer.as_mut_slice());
        match token.kind {
            Kind::Link => {
                self.readable |= flags.intersects(EventFlags::IN | EventFlags::HUP);
                if flags.contains(EventFlags::OUT) && ground.link.is_blocked() {
                    ground.link.flush();
                }
            }
            Kind::Tcp => self.tcp.event(ground, token.id, flags),
            Kind::Udp => self.udp.event(ground, token.id, buffer),
            Kind::Ping => self.ping.event(ground, token.id, buffer),
            Kind::Dns => self.dns.event(ground, token.id, buffer),
            Kind::Forward => self.forward(token.id),
        }
    }

    /// Takes a turn's frames from the guest, then serves the connections that they are of.
    fn serve_link(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        for count in 0..TURN_FRAMES {
            if !self.readable {
                break;
            }
            match self.ground.link.receive(&mut buffer) {
                Some(frame) => {
                    // The link is watched by level: what has come meanwhile is told of.
                    self.readable = self.alone == 0;
                    self.alone = self.alone.saturating_sub(1);
                    self.frame(frame);
                }
                None => {
                    self.readable = false;
                    match count {
                        0 => {}
                        1 => self.alone = ALONE_FRAMES,
                        _ => self.alone = 0,
                    }
                }
            }
        }
        self.buffer = buffer;
        self.tcp.serve_touched(&mut self.ground);
        if !self.ground.link.is_blocked() {
            self.tcp.serve_held_up(&mut self.ground);
        }
    }

    /// A frame of the guest.
    fn frame(&mut self, frame: &[u8]) {
        let Some((header, payload)) = frame.split_at_checked(ETHERNET_BYTES) else {
            return;
        };
        let Ok(header) = EthernetFrame::new_checked(header) else {
            return;
        };
        let to = header.dst_addr();
        if to.0 != GATEWAY_MAC && to.is_unicast() {
            return;
        }
        match header.ethertype() {
            EthernetProtocol::Arp => self.arp(header.src_addr(), payload),
            EthernetProtocol::Ipv4 => self.packet(header.src_addr(), payload),
            _ => {}
        }
    }

    /// Answers who has the router's address, or the DNS server's. RFC 826.
    fn arp(&mut self, from: EthernetAddress, payload: &[u8]) {
        let Ok(packet) = ArpPacket::new_checked(payload) else {
            return;
        };
        let Ok(ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        }) = ArpRepr::parse(&packet)
        else {
            return;
        };
        if ![GATEWAY, DNS_SERVER].contains(&target_protocol_addr) || !from.is_unicast() {
            return;
        }
        self.ground.link.guest_mac = from.0;
        let reply = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: EthernetAddress(GATEWAY_MAC),
            source_protocol_addr: target_protocol_addr,
            target_hardware_addr: source_hardware_addr,
            target_protocol_addr: source_protocol_addr,
        };
        let mut bytes = vec![0; reply.buffer_len()];
        reply.emit(&mut ArpPacket::new_unchecked(&mut bytes));
        self.ground.link.send_other(EthernetProtocol::Arp, &bytes);
    }

    /// An IPv4 packet of the guest.
    fn packet(&mut self, from: EthernetAddress, bytes: &[u8]) {
        let Ok(packet) = Ipv4Packet::new_checked(bytes) else {
            return;
        };
        // Frames may have more behind the packet (padding), and packets may not be in parts.
        let bytes = bytes.get(..packet.total_len().into()).unwrap_or_default();
        let fragment = packet.more_frags() || packet.frag_offset() != 0;
        if packet.version() != 4 || fragment {
            return;
        }
        let protocol = packet.next_header();
        if packet.src_addr() != GUEST {
            // Before it has its address, it can only ask for it.
            if protocol == IpProtocol::Udp {
                self.dhcp(from, packet.payload());
            }
            return;
        }
        let packet = Ipv4Packet::new_unchecked(bytes);
        match protocol {
            IpProtocol::Tcp => self.tcp(&packet, bytes),
            IpProtocol::Udp => self.udp(from, &packet),
            IpProtocol::Icmp => {
                let to = packet.dst_addr();
                self.ping.packet(&mut self.ground, to, &packet);
            }
            _ => self
                .ground
                .unreachable(&packet, Icmpv4DstUnreachable::ProtoUnreachable),
        }
    }

    fn tcp(&mut self, packet: &Ipv4Packet<&[u8]>, bytes: &[u8]) {
        let Ok(segment) = TcpPacket::new_checked(packet.payload()) else {
            return;
        };
        let ends = Ends {
            guest_port: segment.src_port(),
            far: SocketAddrV4::new(packet.dst_addr(), segment.dst_port()),
        };
        if ends.guest_port == 0
            || ends.far.port() == 0
            || place(packet.dst_addr().into()) == Place::Nowhere
        {
            return;
        }
        let syn = segment.syn() && !segment.ack() && !segment.rst();
        let ground = &mut self.ground;
        self.tcp.packet(ground, ends, bytes, syn, segment.rst());
    }

    fn dhcp(&mut self, from: EthernetAddress, payload: &[u8]) -> bool {
        let Ok(datagram) = UdpPacket::new_checked(payload) else {
            return false;
        };
        let ports = (datagram.src_port(), datagram.dst_port());
        if ports != (DHCP_CLIENT_PORT, DHCP_SERVER_PORT) {
            return false;
        }
        if from.is_unicast() {
            self.ground.link.guest_mac = from.0;
        }
        if let Some(answer) = dhcp::answer(datagram.payload(), self.ground.link.mtu) {
            self.ground.link.send(&answer);
        }
        true
    }

    fn udp(&mut self, from: EthernetAddress, packet: &Ipv4Packet<&[u8]>) {
        if self.dhcp(from, packet.payload()) {
            return;
        }
        let Ok(datagram) = UdpPacket::new_checked(packet.payload()) else {
            return;
        };
        let (guest_port, to) = (datagram.src_port(), packet.dst_addr());
        let port = datagram.dst_port();
        let ground = &mut self.ground;
        if to == DNS_SERVER && port == DNS_PORT {
            return self.dns.packet(ground, guest_port, datagram.payload());
        }
        // To everybody, in vain: no news is sent of it (RFC 1122 §3.2.2).
        if place(to.into()) == Place::Nowhere || port == 0 {
            return;
        }
        let ends = Ends {
            guest_port,
            far: SocketAddrV4::new(to, port),
        };
        let payload = datagram.payload();
        self.udp
            .packet(ground, &self.listeners, ends, payload, packet);
    }

    /// A program of the host uses a forwarded port.
    fn forward(&mut self, index: u64) {
        let Ok(index) = usize::try_from(index) else {
            return;
        };
        let Some(listener) = self.listeners.get(index) else {
            return;
        };
        let (ground, guest_port) = (&mut self.ground, listener.forward.guest_port);
        if listener.forward.protocol == Protocol::Udp {
            let (socket, buffer) = (&listener.socket, self.buffer.as_mut_slice());
            return self.udp.forward(ground, index, socket, guest_port, buffer);
        }
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        for _ in 0..TURN_ACCEPTED {
            match rustix::net::accept_with(&listener.socket, flags) {
                Ok(socket) => {
                    // It matters for speed only.
                    let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
                    self.tcp.forward(ground, socket, guest_port);
                }
                Err(_) => return,
            }
        }
    }
}

/// What the link is watched for, for as long as it is so.
const fn link_flags(room: bool) -> EventFlags {
    if room {
        EventFlags::IN.union(EventFlags::OUT)
    } else {
        EventFlags::IN
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}
