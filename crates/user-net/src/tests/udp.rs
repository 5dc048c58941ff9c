//! Addresses, datagrams and echo requests.

use super::guest::{Bed, Guest, MAC, PATIENCE, closed, forwarded};
use crate::policy::Protocol;
use crate::{DNS_SERVER, GATEWAY, GATEWAY_MAC, GUEST, MAX_MTU, NETMASK, frame};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress,
    EthernetProtocol, Icmpv4Packet, Icmpv4Repr, Ipv4Packet,
};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

fn dhcp(message_type: DhcpMessageType, requested: Option<Ipv4Addr>) -> Vec<u8> {
    let repr = DhcpRepr {
        message_type,
        transaction_id: 0x1122_3344,
        secs: 0,
        client_hardware_address: EthernetAddress(MAC),
        client_ip: Ipv4Addr::UNSPECIFIED,
        your_ip: Ipv4Addr::UNSPECIFIED,
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: None,
        subnet_mask: None,
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: false,
        requested_ip: requested,
        client_identifier: None,
        server_identifier: None,
        parameter_request_list: Some(&[1, 3, 6, 26]),
        dns_servers: None,
        max_size: Some(1500),
        lease_duration: None,
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    let mut bytes = vec![0; repr.buffer_len()];
    repr.emit(&mut DhcpPacket::new_unchecked(&mut bytes))
        .unwrap();
    let from = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);
    frame::udp(from, SocketAddrV4::new(Ipv4Addr::BROADCAST, 67), &bytes).unwrap()
}

fn check_lease(guest: &mut Guest, message_type: DhcpMessageType) {
    let (from, port, payload) = guest.datagram();
    assert_eq!((from, port), (SocketAddrV4::new(GATEWAY, 67), 68));
    let packet = DhcpPacket::new_checked(payload.as_slice()).unwrap();
    let mtu = packet.options().find(|option| option.kind == 26).unwrap();
    assert_eq!(mtu.data, MAX_MTU.to_be_bytes());
    let reply = DhcpRepr::parse(&packet).unwrap();
    assert_eq!(reply.message_type, message_type);
    assert_eq!(reply.transaction_id, 0x1122_3344);
    assert_eq!(reply.your_ip, GUEST);
    assert_eq!(reply.router, Some(GATEWAY));
    assert_eq!(reply.subnet_mask, Some(NETMASK));
    assert_eq!(reply.dns_servers.unwrap().as_slice(), [DNS_SERVER]);
    assert_eq!(reply.lease_duration, Some(86_400));
}

#[test]
fn a_guest_gets_its_address() {
    let mut guest = Bed::default().start();
    guest.send_packet(&dhcp(DhcpMessageType::Discover, None));
    check_lease(&mut guest, DhcpMessageType::Offer);
    guest.send_packet(&dhcp(DhcpMessageType::Request, Some(GUEST)));
    check_lease(&mut guest, DhcpMessageType::Ack);
    let other = Ipv4Addr::new(192, 168, 1, 7);
    guest.send_packet(&dhcp(DhcpMessageType::Request, Some(other)));
    let (_, _, payload) = guest.datagram();
    let packet = DhcpPacket::new_checked(payload.as_slice()).unwrap();
    let reply = DhcpRepr::parse(&packet).unwrap();
    assert_eq!(reply.message_type, DhcpMessageType::Nak);
    assert_eq!(reply.your_ip, Ipv4Addr::UNSPECIFIED);
}

#[test]
fn the_router_and_the_dns_server_have_an_ethernet_address_and_nobody_else() {
    let mut guest = Bed::default().start();
    let ask = |guest: &Guest, target| {
        let request = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: EthernetAddress(MAC),
            source_protocol_addr: GUEST,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: target,
        };
        let mut bytes = vec![0; request.buffer_len()];
        request.emit(&mut ArpPacket::new_unchecked(&mut bytes));
        guest.send_other(EthernetProtocol::Arp, &bytes);
    };
    for nobody in [
        GUEST,
        Ipv4Addr::new(10, 0, 2, 9),
        Ipv4Addr::new(192, 168, 0, 1),
    ] {
        ask(&guest, nobody);
    }
    for target in [GATEWAY, DNS_SERVER] {
        ask(&guest, target);
        let (protocol, payload) = guest.other();
        assert_eq!(protocol, EthernetProtocol::Arp);
        let ArpRepr::EthernetIpv4 {
            source_hardware_addr,
            source_protocol_addr,
            ..
        } = ArpRepr::parse(&ArpPacket::new_checked(payload).unwrap()).unwrap()
        else {
            panic!("no reply");
        };
        assert_eq!(source_hardware_addr.0, GATEWAY_MAC);
        assert_eq!(source_protocol_addr, target);
    }
}

#[test]
fn datagrams_go_and_come_back() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = server.local_addr().unwrap().port();
    let mut guest = Bed::allowing("udp:host").start();
    let to = SocketAddrV4::new(GATEWAY, port);
    for len in [0, 1, 1400, 9000, 65_000] {
        let data = vec![len as u8; len];
        guest.send_udp(5000, to, &data);
        let mut buffer = vec![0; 70_000];
        let (got, peer) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(buffer[..got], data);
        server.send_to(&buffer[..got], peer).unwrap();
        assert_eq!(guest.datagram(), (to, 5000, data));
        // One from elsewhere does not reach the guest.
        let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
        stranger.send_to(b"x", peer).unwrap();
    }
}

#[test]
fn the_guest_hears_what_did_not_arrive() {
    let mut guest = Bed::allowing("udp:host").start();
    let lan = Ipv4Addr::new(192, 168, 3, 4);
    guest.send_udp(5000, SocketAddrV4::new(lan, 9), b"x");
    assert_eq!(guest.icmp(), (lan, 3, 13));
    // The second one hears of the first.
    let (port, _closed) = closed(Protocol::Udp);
    let to = SocketAddrV4::new(GATEWAY, port);
    guest.send_udp(5000, to, b"x");
    std::thread::sleep(Duration::from_millis(200));
    guest.send_udp(5000, to, b"x");
    std::thread::sleep(Duration::from_millis(200));
    // What is for everybody is for nobody, in silence.
    guest.send_udp(5000, SocketAddrV4::new(Ipv4Addr::BROADCAST, 9), b"x");
    guest.send_udp(
        5000,
        SocketAddrV4::new(Ipv4Addr::new(224, 0, 0, 251), 5353),
        b"x",
    );
    ping(&guest, GATEWAY);
    let (mut from, mut kind, code) = guest.icmp();
    if kind == 3 {
        assert_eq!((from, code), (GATEWAY, 3));
        (from, kind, _) = guest.icmp();
    }
    assert_eq!((from, kind), (GATEWAY, 0));
}

pub fn ping(guest: &Guest, to: Ipv4Addr) {
    let repr = Icmpv4Repr::EchoRequest {
        ident: 0x77,
        seq_no: 3,
        data: b"echo",
    };
    let mut packet = frame::echo_reply(GUEST, to, 0x77, 3, b"echo");
    let mut ip = Ipv4Packet::new_unchecked(&mut packet);
    let mut message = Icmpv4Packet::new_unchecked(ip.payload_mut());
    repr.emit(&mut message, &frame::checksums());
    guest.send_packet(&packet);
}

#[test]
fn the_router_answers_echo_requests() {
    let mut guest = Bed::default().start();
    for to in [GATEWAY, DNS_SERVER] {
        ping(&guest, to);
        let (_, packet) = guest.other();
        let packet = Ipv4Packet::new_checked(packet.as_slice()).unwrap();
        assert_eq!(packet.src_addr(), to);
        let message = Icmpv4Packet::new_checked(packet.payload()).unwrap();
        let want = Icmpv4Repr::EchoReply {
            ident: 0x77,
            seq_no: 3,
            data: b"echo",
        };
        assert_eq!(
            Icmpv4Repr::parse(&message, &smoltcp::phy::ChecksumCapabilities::default()),
            Ok(want)
        );
    }
    let lan = Ipv4Addr::new(10, 9, 8, 7);
    ping(&guest, lan);
    assert_eq!(guest.icmp(), (lan, 3, 13));
}

#[test]
fn a_forwarded_port_takes_datagrams() {
    let (port, listener) = forwarded(Protocol::Udp, 7000);
    let bed = Bed {
        listeners: vec![listener],
        ..Bed::default()
    };
    let mut guest = bed.start();
    let clients = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    let mut froms = Vec::new();
    for (index, client) in clients.iter().enumerate() {
        client.send_to(&[index as u8], ("127.0.0.1", port)).unwrap();
        let (from, to, payload) = guest.datagram();
        assert_eq!(
            (*from.ip(), to, payload),
            (GATEWAY, 7000, vec![index as u8])
        );
        froms.push(from);
    }
    assert_ne!(froms[0], froms[1]);
    for (index, client) in clients.iter().enumerate() {
        guest.send_udp(7000, froms[index], &[index as u8, 9]);
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = [0; 10];
        let (len, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!(from.port(), port);
        assert_eq!(buffer[..len], [index as u8, 9]);
    }
}
