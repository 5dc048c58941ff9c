//! Every kind of place by every protocol, under several policies. What left the network is what the kernel saw: a socket
//! that hears all packets of a network namespace of the test's own. Needs root.

use super::guest::{Bed, Guest, PATIENCE};
use super::names::{ask, server, stop};
use super::udp::ping;
use crate::{DNS_SERVER, host};
use domain::base::iana::Rcode;
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, eth};
use rustix::thread::UnshareFlags;
use smoltcp::wire::{EthernetProtocol, IpProtocol, Ipv4Packet};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

/// The host's own address beside the loopback ones.
const OWN: &str = "203.0.113.9";
/// Ports of the kernel's choice begin here: answers go there.
const EPHEMERAL: u16 = 32_768;

/// A protocol, an address and a port (0 for echo requests).
type Flow = (&'static str, Ipv4Addr, u16);

fn run(program: &str, arguments: &str) {
    let done = Command::new(program)
        .args(arguments.split(' '))
        .status()
        .unwrap();
    assert!(done.success(), "{program} {arguments}");
}

/// A network whose only way out is a cable, and what hears all of its packets.
fn own_network() -> OwnedFd {
    // SAFETY: nothing of this thread depends on which network it is in.
    let done = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
    done.expect("a network of its own, which needs root");
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let capture = rustix::net::socket_with(
        AddressFamily::PACKET,
        SocketType::DGRAM,
        flags,
        Some(eth::ALL),
    );
    for arguments in [
        "link set lo up",
        "link add cable type veth peer name far",
        "addr add 203.0.113.9/24 dev cable",
        "link set cable up",
        "link set far up",
        "neigh replace 203.0.113.1 lladdr 02:00:00:00:00:77 dev cable nud permanent",
        "route add default via 203.0.113.1",
    ] {
        run("ip", arguments);
    }
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
    let capture = capture.unwrap();
    // The kernel takes a moment to make the cable work.
    let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
    let end = Instant::now() + PATIENCE;
    while heard(&capture).is_empty() {
        assert!(Instant::now() < end, "the cable does not work");
        let _ = probe.send_to(b"x", "203.0.113.1:9");
        std::thread::sleep(Duration::from_millis(10));
    }
    capture
}

/// Where packets went since the last time; without answers.
fn heard(capture: &OwnedFd) -> BTreeSet<Flow> {
    let mut buffer = vec![0; 70_000];
    let mut flows = BTreeSet::new();
    while let Ok((len, _)) = rustix::net::recv(capture, &mut buffer, RecvFlags::empty()) {
        let Ok(packet) = Ipv4Packet::new_checked(&buffer[..len]) else {
            continue;
        };
        let payload = packet.payload();
        let port = || u16::from_be_bytes([payload[2], payload[3]]);
        let (name, port) = match packet.next_header() {
            _ if packet.version() != 4 => continue,
            IpProtocol::Tcp => ("tcp", port()),
            IpProtocol::Udp => ("udp", port()),
            IpProtocol::Icmp if payload[0] == 8 => ("icmp", 0),
            // News of closed ports.
            IpProtocol::Icmp => continue,
            other => panic!("a packet of {other}"),
        };
        if port < EPHEMERAL {
            flows.insert((name, packet.dst_addr(), port));
        }
    }
    flows
}

/// Waits until all that was sent before is served. Nothing else pings the DNS server.
fn fence(guest: &mut Guest) {
    ping(guest, DNS_SERVER);
    loop {
        let (protocol, packet) = guest.other();
        assert_eq!(protocol, EthernetProtocol::Ipv4);
        let packet = Ipv4Packet::new_checked(packet.as_slice()).unwrap();
        if packet.src_addr() == DNS_SERVER && packet.payload()[0] == 0 {
            return;
        }
    }
}

/// Tries each flow; those that should leave do, and nothing else.
fn check(guest: &mut Guest, capture: &OwnedFd, flows: &[(&'static str, &str, u16, bool)]) {
    let mut want = BTreeSet::new();
    for (protocol, address, port, leaves) in flows {
        let address: Ipv4Addr = address.parse().unwrap();
        match *protocol {
            "tcp" => {
                guest.connect_small((address, *port));
                guest.poll();
            }
            "udp" => guest.send_udp(6000, SocketAddrV4::new(address, *port), b"x"),
            _ => ping(guest, address),
        }
        if *leaves {
            want.insert((*protocol, host::address(address), *port));
        }
    }
    fence(guest);
    let got = heard(capture);
    assert_eq!(got, want);
}

/// What of these places is reached, by all protocols, where everything of the internet is.
fn places(host: bool, lan: bool, internet: bool) -> Vec<(&'static str, &'static str, u16, bool)> {
    let of = [
        ("10.0.2.2", host),
        ("127.0.0.1", host),
        ("127.3.2.1", host),
        (OWN, host),
        ("192.168.0.1", lan),
        ("10.9.9.9", lan),
        ("172.20.0.1", lan),
        ("169.254.169.254", lan),
        ("100.64.0.1", lan),
        ("168.63.129.16", lan),
        ("198.18.0.1", lan),
        ("1.1.1.1", internet),
        ("203.0.113.1", internet),
    ];
    // Multicast, broadcast, nobody, the guest's own network, and the guest itself.
    let nowhere = [
        "224.0.0.251",
        "239.1.2.3",
        "255.255.255.255",
        "0.0.0.0",
        "0.1.2.3",
        "10.0.2.77",
        "10.0.2.255",
        "240.0.0.1",
    ];
    let of = of
        .into_iter()
        .chain(nowhere.map(|address| (address, false)));
    let each = |(address, leaves): (&'static str, bool)| {
        // An echo request to the router never leaves.
        let echo = leaves && address != "10.0.2.2";
        [
            ("tcp", address, 80, leaves),
            ("udp", address, 53, leaves),
            ("icmp", address, 0, echo),
        ]
    };
    // smoltcp, as a guest, does not send to nobody.
    let sent = |flow: &(&'static str, &'static str, u16, bool)| {
        flow.0 != "tcp" || !flow.1.starts_with("0.0.0.0")
    };
    of.flat_map(each).filter(sent).collect()
}

#[test]
fn only_what_the_policy_allows_leaves_the_network() {
    let capture = own_network();
    let bed = |allow: &[&'static str], deny: &[&'static str]| Bed {
        allow: allow.to_vec(),
        deny: deny.to_vec(),
        ..Bed::default()
    };
    let cases = [
        (bed(&[], &[]), places(false, false, true)),
        (bed(&["host"], &[]), places(true, false, true)),
        (bed(&["lan"], &[]), places(false, true, true)),
        (bed(&["host", "lan"], &["all"]), places(true, true, false)),
        (bed(&[], &["all"]), places(false, false, false)),
        // A network has not the host in it unless the rule names that.
        (bed(&["0.0.0.0/0"], &["all"]), places(false, true, true)),
        (
            bed(&["host", "lan"], &["0.0.0.0/0"]),
            places(false, false, false),
        ),
    ];
    for (bed, flows) in cases {
        heard(&capture);
        let mut guest = bed.start();
        check(&mut guest, &capture, &flows);
    }
    // Ports and protocols.
    heard(&capture);
    let mut guest = bed(
        &["tcp:host:8080", "tcp:192.168.0.0/16:22-23", "udp:lan:123"],
        &["192.168.7.0/24", "udp:1.1.1.1", "icmp:8.8.8.8"],
    )
    .start();
    let flows = [
        ("tcp", "10.0.2.2", 8080, true),
        ("udp", "10.0.2.2", 8080, false),
        ("tcp", "10.0.2.2", 8081, false),
        ("tcp", "192.168.1.1", 22, true),
        ("tcp", "192.168.1.1", 24, false),
        ("tcp", "192.168.7.1", 22, false),
        ("udp", "10.1.1.1", 123, true),
        ("tcp", "10.1.1.1", 123, false),
        ("udp", "1.1.1.1", 53, false),
        ("tcp", "1.1.1.1", 53, true),
        ("icmp", "8.8.8.8", 0, false),
        ("udp", "8.8.8.8", 53, true),
    ];
    check(&mut guest, &capture, &flows);
}

#[test]
fn a_name_opens_its_addresses_and_no_denied_name_leaves_the_network() {
    let capture = own_network();
    let (at, _socket) = server(Ipv4Addr::new(93, 184, 216, 34));
    let bed = Bed {
        allow: vec!["www.example.com:443", "rebind.example.com"],
        deny: vec!["all"],
        servers: vec![at],
        ..Bed::default()
    };
    let mut guest = bed.start();
    let before = [
        ("tcp", "93.184.216.34", 443, false),
        ("tcp", "192.168.1.1", 443, false),
        // No DNS but the relay's.
        ("udp", "1.1.1.1", 53, false),
        ("tcp", "10.0.2.3", 53, false),
    ];
    check(&mut guest, &capture, &before);
    assert_eq!(
        ask(&mut guest, 4000, "www.example.com"),
        (Rcode::NOERROR, 1)
    );
    assert_eq!(
        ask(&mut guest, 4001, "rebind.example.com"),
        (Rcode::NOERROR, 1)
    );
    heard(&capture);
    let (code, _) = ask(&mut guest, 4002, "secret.example.net");
    assert_eq!(code, Rcode::REFUSED);
    // Not a packet, to whichever port: what is refused is not asked for. The kernel's own are of IPv6.
    let mut buffer = [0; 2048];
    while let Ok((len, _)) = rustix::net::recv(&capture, &mut buffer, RecvFlags::empty()) {
        assert_ne!(buffer[0] >> 4, 4, "{:?}", &buffer[..len]);
    }
    let after = [
        ("tcp", "93.184.216.34", 443, true),
        ("tcp", "93.184.216.34", 80, false),
        ("tcp", "93.184.216.35", 443, false),
        ("tcp", "192.168.1.1", 443, false),
    ];
    check(&mut guest, &capture, &after);
    stop(at);
}
