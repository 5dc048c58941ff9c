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

mod place;
mod rule;

pub use place::{Place, place};
pub use rule::RuleError;

use crate::names::Learnt;
use rule::{Rule, Who};
use std::fmt;
use std::net::IpAddr;
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

/// What is decided of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may be.
    Allow,
    /// It may not be, and why.
    Deny(&'static str),
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
            policy.allow.push(Rule::parse(text)?);
        }
        for text in deny {
            if text == "all" {
                policy.closed = true;
                continue;
            }
            let rule = Rule::parse(text)?;
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

#[cfg(test)]
mod tests;
