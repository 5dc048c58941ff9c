//! Names in rules, and the addresses that were answered for them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Most addresses that are kept.
const MAX_LEARNT: usize = 4096;
/// An answer lasts at least so long: resolvers and programs keep one for a while, however short it is to last.
const LEAST: Duration = Duration::from_secs(60);
/// And at most so long.
const MOST: Duration = Duration::from_secs(86_400);

/// A name, or all names below one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Lower case, no dot at its end.
    name: String,
    /// Names below it are meant, and it is not.
    below: bool,
}

impl Pattern {
    /// Reads `example.com` or `*.example.com`; none if it is neither. A last part of digits is no name's.
    pub fn parse(text: &str) -> Option<Self> {
        let (below, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let label = |label: &str| {
            let inner = label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
            inner && (1..=63).contains(&label.len()) && !label.starts_with('-')
        };
        let last_is_number = name.rsplit('.').next()?.bytes().all(|b| b.is_ascii_digit());
        let good = name.len() <= 253 && name.split('.').all(label) && !last_is_number;
        good.then_some(Self { name, below })
    }

    /// Whether a name (lower case, no dot at its end) is meant.
    pub fn fits(&self, name: &str) -> bool {
        if self.below {
            let front = name.strip_suffix(&self.name);
            return front.is_some_and(|front| front.len() > 1 && front.ends_with('.'));
        }
        name == self.name
    }
}

/// Addresses by the rule whose name they were answered for.
#[derive(Debug, Default)]
pub struct Learnt(HashMap<(usize, IpAddr), Instant>);

impl Learnt {
    /// Keeps an address for a rule. Where there is no room, the one that ends first goes.
    pub fn insert(&mut self, rule: usize, address: IpAddr, seconds: u32, now: Instant) {
        let lasts = Duration::from_secs(seconds.into()).clamp(LEAST, MOST);
        let Some(end) = now.checked_add(lasts) else {
            return;
        };
        if self.0.len() >= MAX_LEARNT {
            self.0.retain(|_, end| *end > now);
        }
        if self.0.len() >= MAX_LEARNT
            && let Some(first) = self.0.iter().min_by_key(|(_, end)| **end)
        {
            let first = *first.0;
            self.0.remove(&first);
        }
        let kept = self.0.entry((rule, address)).or_insert(end);
        *kept = end.max(*kept);
    }

    /// Whether the address is one of the rule's now.
    pub fn has(&self, rule: usize, address: IpAddr, now: Instant) -> bool {
        self.0.get(&(rule, address)).is_some_and(|end| *end > now)
    }
}
