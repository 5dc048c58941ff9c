//! A guest that sends any frames to the user network, and a world outside that answers anything: programs of the host, and
//! the DNS server. What the guest gets is sound, whatever was sent.
//!
//! It needs root, for a network of its own: nothing that an input opens leads out of it.
#![no_main]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Once;
use std::time::Duration;

use instar_user_net::policy::Policy;
use instar_user_net::{DNS_SERVER, GATEWAY, GATEWAY_MAC, GUEST, MAX_MTU, Network, Settings};
use libfuzzer_sys::fuzz_target;
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::thread::UnshareFlags;

/// Bytes of virtio-net's header before each frame.
const CARD_BYTES: usize = 12;
const ETHERNET_BYTES: usize = 14;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// Most things that one input has happen.
const MAX_STEPS: usize = 48;
/// A question for www.example.com's address, as RFC 1035 has it, behind the identifier.
const QUESTION: &[u8] = b"\x01\0\0\x01\0\0\0\0\0\0\x03www\x07example\x03com\0\0\x01\0\x01";

/// A network, and all that is around it.
struct World {
    network: Network,
    guest: OwnedFd,
    dns: UdpSocket,
    server: TcpListener,
    datagrams: UdpSocket,
    connections: Vec<TcpStream>,
}

fuzz_target!(|bytes: &[u8]| {
    static ALONE: Once = Once::new();
    ALONE.call_once(|| {
        // SAFETY: the process has one thread, and nothing in it depends on the network it is in.
        let alone = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
        alone.expect("a network of its own, which needs root");
        let up = ["link", "set", "lo", "up"];
        assert!(
            std::process::Command::new("ip")
                .args(up)
                .status()
                .expect("ip")
                .success()
        );
    });
    let Some((rules, mut rest)) = bytes.split_first() else {
        return;
    };
    let mut world = World::new(*rules);
    for _ in 0..MAX_STEPS {
        let Some(([kind, detail, len], more)) = rest.split_first_chunk::<3>() else {
            break;
        };
        let (step, later) = more.split_at(usize::from(*len).min(more.len()));
        world.step(*kind, *detail, step);
        world.turn();
        rest = later;
    }
    assert!(world.network.connections() <= 4096);
});

impl World {
    fn new(rules: u8) -> Self {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (link, guest) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .expect("a pair");
        let dns = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let server = TcpListener::bind("127.0.0.1:80").expect("a port");
        let datagrams = UdpSocket::bind("127.0.0.1:80").expect("a port");
        dns.set_nonblocking(true).expect("a socket");
        server.set_nonblocking(true).expect("a socket");
        datagrams.set_nonblocking(true).expect("a socket");
        let (allow, deny): (&[&str], &[&str]) = match rules & 3 {
            0 => (&[], &[]),
            1 => (&["host"], &[]),
            2 => (&["host:80", "*.example.com"], &["all"]),
            _ => (&["127.0.0.1", "10.0.2.2"], &["udp:lan", "evil.example.com"]),
        };
        let texts = |rules: &[&str]| {
            rules
                .iter()
                .map(|rule| (*rule).to_owned())
                .collect::<Vec<_>>()
        };
        let settings = Settings {
            link,
            guest_mac: MAC,
            mtu: if rules & 4 == 0 { MAX_MTU } else { 1500 },
            policy: Policy::new(&texts(allow), &texts(deny)).expect("rules"),
            listeners: Vec::new(),
            servers: vec![dns.local_addr().expect("an address")],
            log: None,
        };
        let network = Network::new(settings).expect("a network");
        Self {
            network,
            guest,
            dns,
            server,
            datagrams,
            connections: Vec::new(),
        }
    }

    /// One thing happens, in the guest or outside.
    fn step(&mut self, kind: u8, detail: u8, bytes: &[u8]) {
        match kind % 8 {
            0 => self.send(bytes),
            1 => self.send(&ethernet(0x0806, bytes)),
            2 => self.send(&ethernet(0x0800, bytes)),
            3 | 4 => self.send(&ethernet(0x0800, &packet(detail, bytes))),
            5 => self.ask_name(detail, bytes),
            6 => self.answer_name(detail, bytes),
            _ => self.outside(detail, bytes),
        }
    }

    fn send(&self, frame: &[u8]) {
        let message = [&[0; CARD_BYTES], frame].concat();
        // A full socket loses it.
        let _ = rustix::net::send(&self.guest, &message, SendFlags::NOSIGNAL);
    }

    /// The guest asks for a name; the input changes the question from its end on.
    fn ask_name(&self, detail: u8, bytes: &[u8]) {
        let kept = QUESTION.len().saturating_sub(usize::from(detail >> 2));
        let query = [&[7, detail], &QUESTION[..kept], bytes].concat();
        let len = (query.len() + 8) as u16;
        let [high, low] = len.to_be_bytes();
        let datagram = [&[0x10, detail & 3, 0, 53, high, low, 0, 0][..], &query].concat();
        self.send(&ethernet(
            0x0800,
            &addressed(17, DNS_SERVER.octets(), &datagram),
        ));
    }

    /// The DNS server answers what it was asked: the question, so many records, and the input in their place.
    fn answer_name(&self, detail: u8, bytes: &[u8]) {
        let mut query = [0; 4200];
        let Ok((len, from)) = self.dns.recv_from(&mut query) else {
            return;
        };
        let mut answer = query[..len].to_vec();
        if let Some(head) = answer.get_mut(2..8) {
            head[0] |= 0x80;
            head[1] = detail >> 4;
            head[4..6].copy_from_slice(&[0, detail & 15]);
        }
        answer.extend_from_slice(bytes);
        let _ = self.dns.send_to(&answer, from);
    }

    /// Programs of the host take connections and datagrams, send the input, and end it or not.
    fn outside(&mut self, detail: u8, bytes: &[u8]) {
        if let Ok((stream, _)) = self.server.accept() {
            let _ = stream.set_nonblocking(true);
            self.connections.push(stream);
        }
        let mut buffer = [0; 4096];
        if let Ok((_, from)) = self.datagrams.recv_from(&mut buffer) {
            let _ = self.datagrams.send_to(bytes, from);
        }
        for stream in &mut self.connections {
            let _ = stream.read(&mut buffer[..usize::from(detail)]);
            let _ = stream.write(bytes);
        }
        if detail & 1 == 1 {
            self.connections.pop();
        }
    }

    /// The network does what it can, and the guest takes what comes of it.
    fn turn(&mut self) {
        for _ in 0..2 {
            assert!(self.network.turn(Duration::ZERO).expect("a turn"));
        }
        let mut buffer = vec![0; 70_000];
        while let Ok((len, _)) = rustix::net::recv(&self.guest, &mut buffer, RecvFlags::empty()) {
            judge(&buffer[CARD_BYTES..len]);
        }
    }
}

/// A frame of the guest to the router.
fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    [&GATEWAY_MAC[..], &MAC, &kind.to_be_bytes(), payload].concat()
}

/// An IPv4 packet of the guest, with a header that is right but for its checksum.
fn addressed(protocol: u8, to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let [high, low] = ((payload.len() + 20) as u16).to_be_bytes();
    let head = [0x45, 0, high, low, 0, 0, 0, 0, 64, protocol, 0, 0];
    [&head[..], &GUEST.octets(), &to, payload].concat()
}

/// A packet of a transport to one of the places that matter; ports are made such that connections come about.
fn packet(detail: u8, bytes: &[u8]) -> Vec<u8> {
    let to = match detail & 7 {
        0..=3 => GATEWAY.octets(),
        4 => DNS_SERVER.octets(),
        5 => [127, 0, 0, 1],
        6 => [192, 168, 0, 1],
        _ => [93, 184, 216, 34],
    };
    let protocol = [6, 6, 6, 17, 1, 6, 17, 58][usize::from(detail >> 3 & 7)];
    let mut payload = bytes.to_vec();
    if let (true, Some(ports)) = (detail & 0xc0 != 0xc0 && protocol != 1, payload.get_mut(..4)) {
        ports.copy_from_slice(&[0x20, ports[1] & 1, 0, 80]);
    }
    if let (6, Some(head)) = (protocol, payload.get_mut(12)) {
        *head = 0x50 | *head & 0x10;
    }
    addressed(protocol, to, &payload)
}

/// What the guest gets is an answer to a question for an address, or a packet to it that is whole.
fn judge(frame: &[u8]) {
    let (head, payload) = frame.split_at(ETHERNET_BYTES);
    assert_eq!(head[6..12], GATEWAY_MAC);
    match head[12..14] {
        [0x08, 0x06] => assert_eq!(payload.len(), 28),
        [0x08, 0x00] => {
            assert_eq!(payload[0], 0x45);
            let total = usize::from(u16::from_be_bytes([payload[2], payload[3]]));
            assert_eq!(total, payload.len());
            assert!(total <= usize::from(MAX_MTU) || payload[9] == 17);
            let to = &payload[16..20];
            assert!(to == GUEST.octets() || to == [255; 4], "{to:?}");
            let sum: u32 = payload[..20]
                .chunks_exact(2)
                .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
                .sum();
            assert_eq!(sum % 0xffff, 0, "the header's checksum");
        }
        _ => panic!("a frame of another kind"),
    }
}
