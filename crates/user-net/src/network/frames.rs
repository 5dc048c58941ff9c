//! Who gets a frame of the guest.

use super::Network;
use crate::frame::ETHERNET_BYTES;
use crate::policy::{Place, place};
use crate::servers::DNS_PORT;
use crate::tcp::Ends;
use crate::{DNS_SERVER, GATEWAY, GATEWAY_MAC, GUEST, dhcp};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, DHCP_CLIENT_PORT, DHCP_SERVER_PORT, EthernetAddress,
    EthernetFrame, EthernetProtocol, Icmpv4DstUnreachable, IpProtocol, Ipv4Packet, TcpPacket,
    UdpPacket,
};
use std::net::SocketAddrV4;

impl Network {
    /// A frame of the guest.
    pub(super) fn frame(&mut self, frame: &[u8]) {
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
}
