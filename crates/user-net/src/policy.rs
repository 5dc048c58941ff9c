//! What a guest may reach.
//!
//! In this order, and the first that fits decides:
//!
//! 1. What leads nowhere is denied: multicast and broadcast, reserved addresses, and addresses of the guest's own network
//!    other than the router.
//! 2. A `deny` rule that fits denies.
//! 3. An `allow` rule that fits allows. A rule with a name allows the addresses that were answered for the name, while the
//!    answer lasts, but none of the host or of a LAN: a name's owner has no say there (DNS rebinding). A rule with a
//!    network allows none of the host, whose addresses may lie in it without the user's knowledge: the host is named by
//!    `host`, by one address, or by a network of loopback addresses.
//! 4. The host itself and the LAN are denied.
//! 5. With `deny all`, everything is denied. Otherwise it is allowed.
//!
//! Names are also asked for by the policy: a denied one is not resolved, and with `deny all` only allowed ones are.

use crate::names::{Learnt, Pattern};
use crate::{DNS_SERVER, GATEWAY, GUEST, NETMASK};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::Instant;

/// Most rules of a policy.
pub const MAX_RULES: usize = 1024;

/// A transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP echo.
    Icmp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        })
    }
}

/// Where a flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// How.
    pub protocol: Protocol,
    /// To which address, as the guest names it.
    pub address: IpAddr,
    /// To which port; 0 for ICMP.
    pub port: u16,
    /// The address is one of the host's own.
    pub own: bool,
}

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

/// What is decided of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may be.
    Allow,
    /// It may not be, and why.
    Deny(&'static str),
}

/// Why a rule is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// It has no known form.
    #[error(
        "'{0}' is no rule: write [tcp:|udp:|icmp:]WHO[:PORT[-PORT]], where WHO is an address, a network such as \
         192.168.0.0/16, a name, *.NAME, host or lan; an IPv6 address with a port stands in brackets"
    )]
    Form(String),
    /// `all` is for denying.
    #[error("'all' can only be denied: what no rule denies is allowed, except host and lan")]
    AllowAll,
    /// What cannot be kept.
    #[error(
        "'{0}' cannot be denied with a port or protocol: a name is denied by not resolving it; leave them out, or give addresses"
    )]
    DeniedName(String),
    /// Too many.
    #[error("there are more than {MAX_RULES} rules")]
    TooMany,
}

/// Whom a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Who {
    /// Addresses that begin with so many bits of this one.
    Network(IpAddr, u8),
    Host,
    Lan,
    Name(Pattern),
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    protocol: Option<Protocol>,
    who: Who,
    ports: Option<RangeInclusive<u16>>,
}

/// All rules, and what was learnt of their names.
#[derive(Debug, Default)]
pub struct Policy {
    allow: Vec<Rule>,
    deny: Vec<Rule>,
    closed: bool,
    learnt: Learnt,
}

impl Policy {
    /// Reads the rules.
    ///
    /// # Errors
    /// The first that is none: then nothing may run.
    pub fn new(allow: &[String], deny: &[String]) -> Result<Self, RuleError> {
        if allow.len().saturating_add(deny.len()) > MAX_RULES {
            return Err(RuleError::TooMany);
        }
        let mut policy = Self::default();
        for text in allow {
            if text == "all" {
                return Err(RuleError::AllowAll);
            }
            policy.allow.push(rule(text)?);
        }
        for text in deny {
            if text == "all" {
                policy.closed = true;
                continue;
            }
            let rule = rule(text)?;
            let narrowed = rule.ports.is_some() || rule.protocol.is_some();
            if narrowed && matches!(rule.who, Who::Name(_)) {
                return Err(RuleError::DeniedName(text.clone()));
            }
            policy.deny.push(rule);
        }
        Ok(policy)
    }

    /// Decides of a flow.
    #[must_use]
    pub fn decide(&self, target: &Target, now: Instant) -> Verdict {
        let place = if target.own {
            Place::Host
        } else {
            place(target.address)
        };
        if place == Place::Nowhere {
            return Verdict::Deny("no host has this address");
        }
        if self.deny.iter().any(|rule| rule.fits(target, place)) {
            return Verdict::Deny("a rule denies it");
        }
        let by_name = |(index, rule): (usize, &Rule)| {
            place == Place::Public
                && matches!(rule.who, Who::Name(_))
                && rule.fits_how(target)
                && self.learnt.has(index, target.address, now)
        };
        let named = self.allow.iter().enumerate().any(by_name);
        let opens =
            |rule: &Rule| rule.fits(target, place) && (place != Place::Host || rule.names_host());
        if named || self.allow.iter().any(opens) {
            return Verdict::Allow;
        }
        match place {
            Place::Host => Verdict::Deny("it is the host, and no rule allows it"),
            Place::Lan => Verdict::Deny("it is in a LAN, and no rule allows it"),
            _ if self.closed => Verdict::Deny("no rule allows it"),
            _ => Verdict::Allow,
        }
    }

    /// Whether a name (lower case, no dot at its end) may be asked for.
    #[must_use]
    pub fn resolves(&self, name: &str) -> bool {
        !self.denies_name(name) && (!self.closed || has_name(&self.allow, name))
    }

    /// Whether a rule denies a name.
    #[must_use]
    pub fn denies_name(&self, name: &str) -> bool {
        has_name(&self.deny, name)
    }

    /// Whether names matter: then every query must be read.
    #[must_use]
    pub fn reads_names(&self) -> bool {
        let mut rules = self.allow.iter().chain(&self.deny);
        self.closed || rules.any(|rule| matches!(rule.who, Who::Name(_)))
    }

    /// These addresses were answered for `name`, for so many seconds each.
    pub fn learn(&mut self, name: &str, addresses: &[(IpAddr, u32)], now: Instant) {
        for (index, rule) in self.allow.iter().enumerate() {
            if matches!(&rule.who, Who::Name(pattern) if pattern.fits(name)) {
                for (address, seconds) in addresses {
                    self.learnt.insert(index, *address, *seconds, now);
                }
            }
        }
    }
}

fn has_name(rules: &[Rule], name: &str) -> bool {
    let fits = |rule: &Rule| matches!(&rule.who, Who::Name(pattern) if pattern.fits(name));
    rules.iter().any(fits)
}

impl Rule {
    fn fits_how(&self, target: &Target) -> bool {
        let port = self.ports.as_ref();
        self.protocol.is_none_or(|own| own == target.protocol)
            && port.is_none_or(|ports| {
                target.protocol != Protocol::Icmp && ports.contains(&target.port)
            })
    }

    /// Whether the user means the host by it, rather than a network that the host happens to be in.
    fn names_host(&self) -> bool {
        match self.who {
            Who::Host => true,
            Who::Network(IpAddr::V4(first), bits) => {
                bits == 32 || (bits >= 8 && first.is_loopback())
            }
            Who::Network(IpAddr::V6(_), bits) => bits == 128,
            Who::Lan | Who::Name(_) => false,
        }
    }

    /// Whether it is about this flow, names apart.
    fn fits(&self, target: &Target, place: Place) -> bool {
        self.fits_how(target)
            && match &self.who {
                Who::Network(network, bits) => begins_with(target.address, *network, *bits),
                Who::Host => place == Place::Host,
                Who::Lan => place == Place::Lan,
                Who::Name(_) => false,
            }
    }
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
fn begins_with(address: IpAddr, network: IpAddr, bits: u8) -> bool {
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

fn rule(text: &str) -> Result<Rule, RuleError> {
    let wrong = || RuleError::Form(text.to_owned());
    let (protocol, rest) = match text.split_once(':') {
        Some(("tcp", rest)) => (Some(Protocol::Tcp), rest),
        Some(("udp", rest)) => (Some(Protocol::Udp), rest),
        Some(("icmp", rest)) => (Some(Protocol::Icmp), rest),
        _ => (None, text),
    };
    let (who, port) = split_port(rest).ok_or_else(wrong)?;
    let ports = port.map(|port| ports(port).ok_or_else(wrong)).transpose()?;
    if protocol == Some(Protocol::Icmp) && ports.is_some() {
        return Err(wrong());
    }
    Ok(Rule {
        protocol,
        who: self::who(who).ok_or_else(wrong)?,
        ports,
    })
}

/// Who, and the port's text.
fn split_port(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(inner) = text.strip_prefix('[') {
        let (who, rest) = inner.split_once(']')?;
        let _ = who.split('/').next()?.parse::<Ipv6Addr>().ok()?;
        return match rest {
            "" => Some((who, None)),
            rest => Some((who, Some(rest.strip_prefix(':')?))),
        };
    }
    if text.matches(':').count() > 1 {
        return Some((text, None));
    }
    match text.split_once(':') {
        Some((who, port)) => Some((who, Some(port))),
        None => Some((text, None)),
    }
}

fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    let port = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|port| digits && *port > 0)
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    (first <= last).then_some(first..=last)
}

fn who(text: &str) -> Option<Who> {
    match text {
        "host" => return Some(Who::Host),
        "lan" => return Some(Who::Lan),
        "all" => return None,
        _ => {}
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        let address = address.to_canonical();
        let bits = if address.is_ipv4() { 32 } else { 128 };
        return Some(Who::Network(address, bits));
    }
    if let Some((address, bits)) = text.split_once('/') {
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits: u8 = bits.parse().ok()?;
        // An address with bits beyond its network is a mistake.
        let rest = match address {
            IpAddr::V4(v4) => v4.to_bits().checked_shl(bits.into()).unwrap_or(0) != 0,
            IpAddr::V6(v6) => v6.to_bits().checked_shl(bits.into()).unwrap_or(0) != 0,
        };
        return (bits <= most && !rest).then_some(Who::Network(address, bits));
    }
    Pattern::parse(text).map(Who::Name)
}

#[cfg(test)]
mod tests;
