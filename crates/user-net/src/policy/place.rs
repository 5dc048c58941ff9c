//! What kinds of addresses there are.

use crate::{DNS_SERVER, GATEWAY, GUEST, NETMASK};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What kind of place an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nobody's, or everybody's.
    Nowhere,
    /// The host itself.
    Host,
    /// Private, link-local, shared by a carrier's customers, or for tests.
    Lan,
    /// The rest.
    Public,
}

/// What kind of place an address is. RFC 6890 and its registries.
#[must_use]
pub fn place(address: IpAddr) -> Place {
    match address.to_canonical() {
        IpAddr::V4(v4) => place_v4(v4),
        IpAddr::V6(v6) => place_v6(v6),
    }
}

fn place_v4(v4: Ipv4Addr) -> Place {
    const LANS: [(Ipv4Addr, u8); 9] = [
        (Ipv4Addr::new(10, 0, 0, 0), 8),
        (Ipv4Addr::new(172, 16, 0, 0), 12),
        (Ipv4Addr::new(192, 168, 0, 0), 16),
        (Ipv4Addr::new(169, 254, 0, 0), 16),
        (Ipv4Addr::new(100, 64, 0, 0), 10),
        (Ipv4Addr::new(198, 18, 0, 0), 15),
        (Ipv4Addr::new(192, 0, 0, 0), 24),
        (Ipv4Addr::new(192, 88, 99, 0), 24),
        // Metadata services of some clouds stand in a public range.
        (Ipv4Addr::new(168, 63, 129, 16), 32),
    ];
    let here = (v4.to_bits() & NETMASK.to_bits()) == (GUEST.to_bits() & NETMASK.to_bits());
    let [first, ..] = v4.octets();
    if v4 == GATEWAY || v4 == DNS_SERVER || first == 127 {
        Place::Host
    } else if here || first == 0 || first >= 224 {
        Place::Nowhere
    } else if LANS
        .iter()
        .any(|(lan, bits)| begins_with(v4.into(), (*lan).into(), *bits))
    {
        Place::Lan
    } else {
        Place::Public
    }
}

fn place_v6(v6: Ipv6Addr) -> Place {
    let [first, second, third, ..] = v6.segments();
    let [.., a, b, c, d] = v6.octets();
    let embedded = || place_v4(Ipv4Addr::new(a, b, c, d));
    match (first, second, third) {
        _ if v6.is_loopback() => Place::Host,
        _ if v6.is_unspecified() || v6.is_multicast() => Place::Nowhere,
        // NAT64 (RFC 6052, RFC 8215), and addresses with IPv4 ones inside.
        (0x64, 0xff9b, _) | (0, 0, _) => embedded(),
        (0x2002, high, low) => {
            let [[a, b], [c, d]] = [high.to_be_bytes(), low.to_be_bytes()];
            place_v4(Ipv4Addr::new(a, b, c, d))
        }
        // Only 2000::/3 is given out (IANA); Teredo and ORCHID are in it.
        (0x2001, 0..=0x1ff, _) => Place::Lan,
        (0x2000..=0x3fff, _, _) => Place::Public,
        _ => Place::Lan,
    }
}

/// Whether the first `bits` bits of both are the same.
pub(super) fn begins_with(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let same = |a: u128, b: u128, width: u8| {
        let rest = u32::from(width.saturating_sub(bits));
        a.checked_shr(rest) == b.checked_shr(rest)
    };
    match (address.to_canonical(), network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(a.to_bits().into(), b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => bits == 0 || same(a.to_bits(), b.to_bits(), 128),
        _ => false,
    }
}
