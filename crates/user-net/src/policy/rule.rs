//! One rule: how it is written, and what it is about.

use super::place::{Place, begins_with};
use super::{MAX_RULES, Protocol, Target};
use crate::names::Pattern;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;

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
pub(super) enum Who {
    /// Addresses that begin with so many bits of this one.
    Network(IpAddr, u8),
    Host,
    Lan,
    Name(Pattern),
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub protocol: Option<Protocol>,
    pub who: Who,
    pub ports: Option<RangeInclusive<u16>>,
}

impl Rule {
    /// Reads a rule.
    ///
    /// # Errors
    /// [`RuleError::Form`].
    pub fn parse(text: &str) -> Result<Self, RuleError> {
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
        Ok(Self {
            protocol,
            who: self::who(who).ok_or_else(wrong)?,
            ports,
        })
    }

    /// Whether it is about the flow's protocol and port.
    pub fn fits_how(&self, target: &Target) -> bool {
        let port = self.ports.as_ref();
        self.protocol.is_none_or(|own| own == target.protocol)
            && port.is_none_or(|ports| {
                target.protocol != Protocol::Icmp && ports.contains(&target.port)
            })
    }

    /// Whether the user means the host by it, rather than a network that the host happens to be in.
    pub fn names_host(&self) -> bool {
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
    pub fn fits(&self, target: &Target, place: Place) -> bool {
        self.fits_how(target)
            && match &self.who {
                Who::Network(network, bits) => begins_with(target.address, *network, *bits),
                Who::Host => place == Place::Host,
                Who::Lan => place == Place::Lan,
                Who::Name(_) => false,
            }
    }
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
