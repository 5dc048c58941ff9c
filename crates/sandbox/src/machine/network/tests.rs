//! The process as it is: forked, confined, and asked for everything by a guest of bare frames. A call that its filter does
//! not have would end it.

#![allow(clippy::cast_possible_truncation)] // small numbers

use super::*;
use instar_user_net::forward::Forward;
use instar_user_net::{DNS_SERVER, GATEWAY, GATEWAY_MAC, GUEST, MAX_MTU};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvFlags, SendFlags};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// virtio-net's header, Ethernet's and IPv4's.
const FRONT: usize = 12 + 14 + 20;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

struct Guest(OwnedFd);

impl Guest {
    fn send(&self, from: Ipv4Addr, protocol: u8, to: Ipv4Addr, payload: &[u8]) {
        let mut frame = vec![0; 12];
        frame.extend(GATEWAY_MAC);
        frame.extend(MAC);
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((20 + payload.len() as u16).to_be_bytes());
        // Checksums are the card's to make: they are not looked at.
        frame.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
        frame.extend(from.octets());
        frame.extend(to.octets());
        frame.extend(payload);
        rustix::net::send(&self.0, &frame, SendFlags::NOSIGNAL).unwrap();
    }

    fn send_udp(&self, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), data: &[u8]) {
        let len = 8 + data.len() as u16;
        let mut payload = [from.1, to.1, len, 0].map(u16::to_be_bytes).concat();
        payload.extend(data);
        self.send(from.0, UDP, to.0, &payload);
    }

    fn send_tcp(&self, ports: (u16, u16), numbers: (u32, u32), flags: u8, data: &[u8]) {
        let mut payload = [ports.0, ports.1].map(u16::to_be_bytes).concat();
        payload.extend([numbers.0, numbers.1].map(u32::to_be_bytes).concat());
        payload.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        payload.extend(data);
        self.send(GUEST, TCP, GATEWAY, &payload);
    }

    /// The payload of the next packet of this protocol that is wanted.
    fn wait(&self, protocol: u8, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut buffer = vec![0; 70_000];
        let limit = Timespec {
            tv_sec: 120,
            tv_nsec: 0,
        };
        loop {
            let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
            let ready = rustix::event::poll(&mut polled, Some(&limit)).unwrap();
            assert_ne!(ready, 0, "no answer");
            let (len, _) = rustix::net::recv(&self.0, &mut buffer, RecvFlags::empty()).unwrap();
            assert_ne!(len, 0, "the network's process has ended");
            if len > FRONT && buffer[35] == protocol && wanted(&buffer[FRONT..len]) {
                return buffer[FRONT..len].to_vec();
            }
        }
    }
}

fn number(segment: &[u8]) -> u32 {
    u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]])
}

/// A whole connection to a program of the host.
fn tcp(guest: &Guest) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut data = [0; 5];
        stream.read_exact(&mut data).unwrap();
        stream.write_all(b"world").unwrap();
        // The guest resets then.
        stream.read(&mut data).is_err()
    });
    let ports = (40_000, port);
    guest.send_tcp(ports, (100, 0), SYN, b"");
    let answer = guest.wait(TCP, |segment| segment[13] == SYN | ACK);
    let next = number(&answer) + 1;
    guest.send_tcp(ports, (101, next), ACK, b"hello");
    guest.wait(TCP, |segment| segment.ends_with(b"world"));
    guest.send_tcp(ports, (106, next + 5), RST, b"");
    assert!(server.join().unwrap());
    // Nobody listens at a port that is merely taken.
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let closed = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None);
    let closed = closed.unwrap();
    rustix::net::bind(&closed, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let at = SocketAddr::try_from(rustix::net::getsockname(&closed).unwrap()).unwrap();
    guest.send_tcp((40_001, at.port()), (100, 0), SYN, b"");
    guest.wait(TCP, |segment| segment[13] & RST != 0);
}

/// A connection from the host, which the guest closes.
fn forwarded(guest: &Guest, port: u16) {
    let client = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(b"hello").unwrap();
        let mut data = Vec::new();
        stream.read_to_end(&mut data).unwrap();
        data
    });
    let syn = guest.wait(TCP, |segment| segment[13] == SYN && segment[3] == 22);
    let (from, next) = (u16::from_be_bytes([syn[0], syn[1]]), number(&syn) + 1);
    guest.send_tcp((22, from), (500, next), SYN | ACK, b"");
    guest.wait(TCP, |segment| segment.ends_with(b"hello"));
    guest.send_tcp((22, from), (501, next + 5), ACK | FIN, b"world");
    assert_eq!(client.join().unwrap(), b"world");
    // The host's side is closed, too.
    guest.wait(TCP, |segment| segment[13] & FIN != 0);
    guest.send_tcp((22, from), (507, next + 6), ACK, b"");
}

fn echo(socket: &UdpSocket) {
    let mut data = [0; 100];
    let (len, peer) = socket.recv_from(&mut data).unwrap();
    socket.send_to(&data[..len], peer).unwrap();
}

/// A network into which a port of the host leads, and which port. One that was free may be another program's a moment
/// later, but not each time.
fn with_a_port(net: impl Fn(u16) -> UserNet) -> (u16, UserNetwork) {
    let opened = (0..100).find_map(|_| {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        match UserNetwork::open(&net(port), MAC) {
            Err(MachineFailure::Forward(_)) => None,
            network => Some((port, network.unwrap())),
        }
    });
    opened.expect("a port that is free")
}

#[test]
fn the_confined_process_serves_a_guest() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let dns = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (port, network) = with_a_port(|port| UserNet {
        mtu: MAX_MTU,
        dns: vec![dns.local_addr().unwrap()],
        forwards: vec![
            Forward::parse(&format!("tcp:{port}:22")).unwrap(),
            Forward::parse(&format!("udp:{port}:22")).unwrap(),
        ],
        allow: vec!["host".to_owned()],
        deny: vec!["bad.example.com".to_owned()],
        log: Some(log.clone()),
    });
    let (child, card) = network.start().unwrap();
    let guest = Guest(card);
    // The router.
    guest.send(GUEST, ICMP, GATEWAY, &[8, 0, 0, 0, 0, 1, 0, 1, 7]);
    guest.wait(ICMP, |message| message[0] == 0);
    // Denied, and logged.
    let lan = Ipv4Addr::new(192, 168, 1, 1);
    guest.send_udp((GUEST, 5000), (lan, 9), b"x");
    guest.wait(ICMP, |message| message[..2] == [3, 13]);
    assert!(
        std::fs::read_to_string(&log)
            .unwrap()
            .contains("192.168.1.1")
    );
    // Whether pings are possible is the system's to say; the process lives.
    let internet = Ipv4Addr::LOCALHOST;
    guest.send(GUEST, ICMP, internet, &[8, 0, 0, 0, 0, 1, 0, 1, 7]);
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = server.local_addr().unwrap().port();
    guest.send_udp((GUEST, 5000), (GATEWAY, at), b"datagram");
    echo(&server);
    guest.wait(UDP, |datagram| datagram.ends_with(b"datagram"));
    // A query, which comes back as an answer.
    let query = b"\0\x09\x01\0\0\x01\0\0\0\0\0\0\x04good\x07example\x03com\0\0\x01\0\x01";
    guest.send_udp((GUEST, 5001), (DNS_SERVER, 53), query);
    let mut data = [0; 100];
    let (len, peer) = dns.recv_from(&mut data).unwrap();
    data[2] |= 0x80;
    dns.send_to(&data[..len], peer).unwrap();
    guest.wait(UDP, |datagram| datagram[8..12] == [0, 9, 0x81, 0]);
    // A datagram from the host.
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.send_to(b"knock", ("127.0.0.1", port)).unwrap();
    guest.wait(UDP, |datagram| datagram.ends_with(b"knock"));
    tcp(&guest);
    forwarded(&guest, port);
    // It ends with its guest.
    drop(guest);
    assert_eq!(child.reap().unwrap(), 0);
}

#[test]
fn a_busy_port_and_a_wrong_rule_start_nothing() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let net = |forward: &str, allow: &str| UserNet {
        mtu: MAX_MTU,
        dns: Vec::new(),
        forwards: vec![Forward::parse(forward).unwrap()],
        allow: vec![allow.to_owned()],
        deny: Vec::new(),
        log: None,
    };
    let busy = UserNetwork::open(&net(&format!("tcp:{port}:22"), "host"), MAC);
    assert!(matches!(busy, Err(MachineFailure::Forward(_))));
    let wrong = UserNetwork::open(&net("tcp:2222:22", "ho st"), MAC);
    assert!(matches!(wrong, Err(MachineFailure::Rule(_))));
}
