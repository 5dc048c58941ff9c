//! The guest's address. RFC 2131 "Dynamic Host Configuration Protocol", as a server with one address and one client.

use crate::{DNS_SERVER, GATEWAY, GUEST, NETMASK, frame};
use smoltcp::wire::{
    DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr,
};
use std::net::{Ipv4Addr, SocketAddrV4};

/// How long the address lasts, in seconds. It is never given to another.
const LEASE_SECONDS: u32 = 86_400;
/// RFC 2132 §5.1 "Interface MTU Option".
const OPTION_MTU: u8 = 26;

/// The answer to what the guest's client says, as an IP packet; none if it is not to be answered.
#[must_use]
pub fn answer(payload: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let packet = DhcpPacket::new_checked(payload).ok()?;
    let asked = DhcpRepr::parse(&packet).ok()?;
    let ours = asked.server_identifier.is_none_or(|id| id == GATEWAY);
    let message_type = match asked.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request if ours => {
            let unspecified = asked.client_ip.is_unspecified();
            let wanted = asked.requested_ip.unwrap_or(asked.client_ip);
            // §4.3.2: a client that knows an address of another network is to begin anew.
            if wanted == GUEST || (asked.requested_ip.is_none() && unspecified) {
                DhcpMessageType::Ack
            } else {
                DhcpMessageType::Nak
            }
        }
        DhcpMessageType::Inform => DhcpMessageType::Ack,
        _ => return None,
    };
    let mtu = mtu.to_be_bytes();
    let options = [DhcpOption {
        kind: OPTION_MTU,
        data: &mtu,
    }];
    let refused = message_type == DhcpMessageType::Nak;
    let informed = asked.message_type == DhcpMessageType::Inform;
    let given = (!refused && !informed).then_some(GUEST);
    let reply = DhcpRepr {
        message_type,
        secs: 0,
        client_ip: Ipv4Addr::UNSPECIFIED,
        your_ip: given.unwrap_or(Ipv4Addr::UNSPECIFIED),
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: (!refused).then_some(GATEWAY),
        subnet_mask: (!refused).then_some(NETMASK),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(GATEWAY),
        parameter_request_list: None,
        dns_servers: (!refused).then(|| [DNS_SERVER].into_iter().collect()),
        max_size: None,
        lease_duration: given.map(|_| LEASE_SECONDS),
        renew_duration: None,
        rebind_duration: None,
        additional_options: if refused { &[] } else { &options },
        ..asked
    };
    let mut bytes = vec![0; reply.buffer_len()];
    let mut packet = DhcpPacket::new_unchecked(&mut bytes);
    reply.emit(&mut packet).ok()?;
    // One that has an address is answered there (§4.1).
    let to = if asked.client_ip == GUEST {
        GUEST
    } else {
        Ipv4Addr::BROADCAST
    };
    frame::udp(
        SocketAddrV4::new(GATEWAY, DHCP_SERVER_PORT),
        SocketAddrV4::new(to, DHCP_CLIENT_PORT),
        &bytes,
    )
}
