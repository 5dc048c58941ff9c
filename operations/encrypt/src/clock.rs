//! The guest's clock.

use instar_guest_ops::Context;
use instar_luks::Clock;

const NS_PER_S: u128 = 1_000_000_000;

/// The time stamp counter as nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Ticks<'a>(pub &'a Context);

impl Clock for Ticks<'_> {
    fn now_ns(&self) -> u64 {
        let hz = match self.0.boot().tsc_hz.get() {
            // Unknown: a slow one, so that rather too few iterations than too many are done.
            0 => NS_PER_S,
            hz => u128::from(hz),
        };
        let ns = u128::from(self.0.ticks()).saturating_mul(NS_PER_S) / hz.max(1);
        u64::try_from(ns).unwrap_or(u64::MAX)
    }
}
