//! Packets of IPv4, made for the guest.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IPV4_HEADER_LEN, Icmpv4DstUnreachable,
    Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Packet, Ipv4Repr, UDP_HEADER_LEN, UdpPacket, UdpRepr,
};
use std::net::{Ipv4Addr, SocketAddrV4};

/// Length of an Ethernet header in bytes.
pub const ETHERNET_BYTES: usize = 14;
/// Hops of what is made here.
const HOPS: u8 = 64;

/// Checksums are made, and not looked at: the guest's card leaves them to us, and nothing lies between that could change
/// a bit.
#[must_use]
pub fn checksums() -> ChecksumCapabilities {
    use smoltcp::phy::Checksum;
    let mut checksums = ChecksumCapabilities::ignored();
    checksums.ipv4 = Checksum::Tx;
    checksums.udp = Checksum::Tx;
    checksums.tcp = Checksum::Tx;
    checksums.icmpv4 = Checksum::Tx;
    checksums
}

/// Writes an Ethernet header; `frame` has room for it.
pub fn ethernet(frame: &mut [u8], from: [u8; 6], to: [u8; 6], protocol: EthernetProtocol) {
    if let Ok(mut frame) = EthernetFrame::new_checked(frame) {
        frame.set_src_addr(EthernetAddress(from));
        frame.set_dst_addr(EthernetAddress(to));
        frame.set_ethertype(protocol);
    }
}

/// An IPv4 packet: `fill` writes its payload of `len` bytes.
fn ipv4(
    from: Ipv4Addr,
    to: Ipv4Addr,
    next_header: IpProtocol,
    len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let mut bytes = vec![0; IPV4_HEADER_LEN.saturating_add(len)];
    let repr = Ipv4Repr {
        src_addr: from,
        dst_addr: to,
        next_header,
        payload_len: len,
        hop_limit: HOPS,
    };
    let mut packet = Ipv4Packet::new_unchecked(bytes.as_mut_slice());
    repr.emit(&mut packet, &checksums());
    fill(packet.payload_mut());
    bytes
}

/// A packet with a datagram; none if it is too long for one.
#[must_use]
pub fn udp(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Option<Vec<u8>> {
    let len = UDP_HEADER_LEN.checked_add(payload.len())?;
    if len > usize::from(u16::MAX).checked_sub(IPV4_HEADER_LEN)? {
        return None;
    }
    let repr = UdpRepr {
        src_port: from.port(),
        dst_port: to.port(),
    };
    let (source, target) = ((*from.ip()).into(), (*to.ip()).into());
    Some(ipv4(*from.ip(), *to.ip(), IpProtocol::Udp, len, |bytes| {
        let mut packet = UdpPacket::new_unchecked(bytes);
        let fill = |to: &mut [u8]| copy(to, payload);
        repr.emit(
            &mut packet,
            &source,
            &target,
            payload.len(),
            fill,
            &checksums(),
        );
    }))
}

fn copy(to: &mut [u8], from: &[u8]) {
    for (to, byte) in to.iter_mut().zip(from) {
        *to = *byte;
    }
}

/// The answer to an echo request.
#[must_use]
pub fn echo_reply(from: Ipv4Addr, to: Ipv4Addr, ident: u16, seq_no: u16, data: &[u8]) -> Vec<u8> {
    icmp(
        from,
        to,
        &Icmpv4Repr::EchoReply {
            ident,
            seq_no,
            data,
        },
    )
}

/// Bytes of a packet that come back with the news that it did not arrive: its header and the ports. RFC 792.
const RETURNED_BYTES: usize = 8;

/// Tells the guest that `packet`, which it has sent, did not arrive.
#[must_use]
pub fn unreachable(packet: &Ipv4Packet<&[u8]>, reason: Icmpv4DstUnreachable) -> Option<Vec<u8>> {
    let header = Ipv4Repr::parse(packet, &ChecksumCapabilities::ignored()).ok()?;
    let payload = packet.payload();
    let data = payload.get(..RETURNED_BYTES.min(payload.len()))?;
    let repr = Icmpv4Repr::DstUnreachable {
        reason,
        header,
        data,
    };
    Some(icmp(header.dst_addr, header.src_addr, &repr))
}

fn icmp(from: Ipv4Addr, to: Ipv4Addr, repr: &Icmpv4Repr<'_>) -> Vec<u8> {
    ipv4(from, to, IpProtocol::Icmp, repr.buffer_len(), |bytes| {
        let mut packet = Icmpv4Packet::new_unchecked(bytes);
        repr.emit(&mut packet, &checksums());
    })
}
