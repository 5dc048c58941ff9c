//! Guests that send anything.

use super::guest::{Bed, MAC};
use crate::link::HEADER_BYTES;
use crate::{DNS_SERVER, GATEWAY, GATEWAY_MAC, GUEST, frame};
use rustix::net::{RecvFlags, SendFlags};
use smoltcp::wire::{EthernetProtocol, Ipv4Packet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, most: usize) -> usize {
        (self.next() % most as u64) as usize
    }
}

/// A frame that is right in part.
fn some_frame(random: &mut Random) -> Vec<u8> {
    let targets = [
        GATEWAY,
        DNS_SERVER,
        GUEST,
        Ipv4Addr::new(127, 0, 0, 1),
        Ipv4Addr::BROADCAST,
    ];
    let to = targets[random.below(targets.len())];
    let ports = [53, 67, 68, 22, 80, 0];
    let port = ports[random.below(ports.len())];
    let payload: Vec<u8> = (0..random.below(200))
        .map(|_| random.next() as u8)
        .collect();
    let from = SocketAddrV4::new(GUEST, 1 + random.below(4) as u16 * 67);
    let mut packet = frame::udp(from, SocketAddrV4::new(to, port), &payload).unwrap();
    let mut ip = Ipv4Packet::new_unchecked(&mut packet);
    let protocols = [1, 6, 17, 6];
    ip.set_next_header(protocols[random.below(protocols.len())].into());
    // As a TCP segment: a length of its header that may be right, and flags.
    if packet.len() > 34 {
        packet[32] = [0x50, 0x60, 0xf0, 0x00, random.next() as u8][random.below(5)];
        packet[33] = [2, 0x12, 0x10, 0x11, 0x14, random.next() as u8][random.below(6)];
    }
    for _ in 0..random.below(4) {
        let at = random.below(packet.len());
        packet[at] = random.next() as u8;
    }
    if random.below(8) == 0 {
        packet.truncate(random.below(packet.len()));
    }
    let mut message = vec![0; HEADER_BYTES + 14];
    let kinds = [
        EthernetProtocol::Ipv4,
        EthernetProtocol::Ipv4,
        EthernetProtocol::Arp,
        EthernetProtocol::Ipv6,
    ];
    let kind = kinds[random.below(kinds.len())];
    frame::ethernet(&mut message[HEADER_BYTES..], MAC, GATEWAY_MAC, kind);
    message.extend_from_slice(&packet);
    if random.below(50) == 0 {
        message.truncate(random.below(message.len()));
    }
    message
}

#[test]
fn no_frame_stops_the_network() {
    const FRAMES: usize = 100_000;
    let seed = 0x5eed_0000_0000_0001 + u64::from(std::process::id());
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    let bed = Bed {
        allow: vec!["host"],
        servers: vec!["127.0.0.1:9".parse().unwrap()],
        ..Bed::default()
    };
    let (mut network, guest) = bed.network();
    let mut buffer = vec![0; 70_000];
    for _ in 0..FRAMES / 32 {
        for _ in 0..32 {
            let frame = some_frame(&mut random);
            if !frame.is_empty() {
                rustix::net::send(&guest, &frame, SendFlags::NOSIGNAL).unwrap();
            }
        }
        assert!(network.turn(Duration::ZERO).unwrap());
        while rustix::net::recv(&guest, &mut buffer, RecvFlags::empty()).is_ok() {}
    }
    assert!(network.connections() <= crate::tcp::MAX_FLOWS);
    drop(guest);
    while network.turn(Duration::ZERO).unwrap() {}
}
