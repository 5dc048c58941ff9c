//! How much a device may do in a second. Time comes from the caller.

use std::time::Duration;

/// A second, in the units of [`Bucket::level`].
const SECOND: i128 = 1_000_000_000;
/// What may be saved up: the share of a second that this divides it into.
const BURSTS_PER_SECOND: u64 = 10;

/// Limits on bytes and on requests.
///
/// A request is let through if there is anything left, and then paid for in full, if need be from what is to come: so
/// requests of any size pass, and over time the limits hold.
#[derive(Clone, Debug)]
pub struct RateLimiter {
    bytes: Option<Bucket>,
    requests: Option<Bucket>,
    /// When it was refilled last.
    at: Option<Duration>,
}

/// What is left of one kind.
#[derive(Clone, Debug)]
struct Bucket {
    per_second: i128,
    /// In billionths of a byte or request; below 0 it is owed.
    level: i128,
    most: i128,
}

impl RateLimiter {
    /// Lets so many bytes and requests through in a second, 0 for no limit; `None` if neither is limited.
    #[must_use]
    pub fn new(bytes_per_second: u64, requests_per_second: u64) -> Option<Self> {
        let limiter = Self {
            bytes: Bucket::new(bytes_per_second),
            requests: Bucket::new(requests_per_second),
            at: None,
        };
        (limiter.bytes.is_some() || limiter.requests.is_some()).then_some(limiter)
    }

    /// It is `now`, counted from any moment: what has come since is there.
    pub fn refill(&mut self, now: Duration) {
        let since = self.at.map_or(Duration::ZERO, |at| now.saturating_sub(at));
        self.at = Some(self.at.map_or(now, |at| at.max(now)));
        for bucket in self.buckets_mut() {
            bucket.refill(since);
        }
    }

    /// Whether a request may go now.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.buckets().all(|bucket| bucket.level > 0)
    }

    /// A request of `bytes` goes.
    pub fn charge(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bytes {
            bucket.charge(bytes);
        }
        if let Some(bucket) = &mut self.requests {
            bucket.charge(1);
        }
    }

    /// How long it is closed yet, as of the last refill.
    #[must_use]
    pub fn closed_for(&self) -> Duration {
        self.buckets()
            .map(Bucket::closed_for)
            .max()
            .unwrap_or_default()
    }

    fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        self.bytes.iter().chain(&self.requests)
    }

    fn buckets_mut(&mut self) -> impl Iterator<Item = &mut Bucket> {
        self.bytes.iter_mut().chain(&mut self.requests)
    }
}

impl Bucket {
    fn new(per_second: u64) -> Option<Self> {
        let burst = per_second.div_ceil(BURSTS_PER_SECOND);
        let most = i128::from(burst).saturating_mul(SECOND);
        (per_second > 0).then_some(Self {
            per_second: i128::from(per_second),
            level: most,
            most,
        })
    }

    fn refill(&mut self, since: Duration) {
        let nanoseconds = i128::try_from(since.as_nanos()).unwrap_or(i128::MAX);
        let more = nanoseconds.saturating_mul(self.per_second);
        self.level = self.level.saturating_add(more).min(self.most);
    }

    fn charge(&mut self, amount: u64) {
        let amount = i128::from(amount).saturating_mul(SECOND);
        self.level = self.level.saturating_sub(amount);
    }

    fn closed_for(&self) -> Duration {
        if self.level > 0 {
            return Duration::ZERO;
        }
        let missing = self.level.saturating_neg().saturating_add(1);
        let nanoseconds = missing
            .saturating_add(self.per_second.saturating_sub(1))
            .checked_div(self.per_second);
        let nanoseconds = nanoseconds.and_then(|n| u64::try_from(n).ok());
        Duration::from_nanos(nanoseconds.unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests of `bytes` each, as fast as they are let through for `seconds`; how many that were.
    fn run(limiter: &mut RateLimiter, bytes: u64, seconds: u64) -> u64 {
        let (mut now, mut count) = (Duration::from_secs(77), 0);
        let end = now + Duration::from_secs(seconds);
        while now < end {
            limiter.refill(now);
            while limiter.is_open() {
                limiter.charge(bytes);
                count += 1;
            }
            let wait = limiter.closed_for();
            assert!(wait > Duration::ZERO);
            now += wait;
            limiter.refill(now);
            assert!(limiter.is_open(), "after the wait it is open");
        }
        count
    }

    #[test]
    fn limits_hold_over_time_for_requests_of_any_size() {
        for (bytes, rate) in [
            (1, 1000),
            (512, 10 << 20),
            (1 << 20, 10 << 20),
            (64 << 20, 10 << 20),
        ] {
            let mut limiter = RateLimiter::new(rate, 0).unwrap();
            let moved = run(&mut limiter, bytes, 10) * bytes;
            let most = rate * 10 + rate / 10 + bytes * 2;
            assert!(
                moved <= most && moved + bytes * 2 >= rate * 10,
                "{bytes}: {moved}"
            );
        }
        let mut limiter = RateLimiter::new(0, 100).unwrap();
        let count = run(&mut limiter, 1 << 30, 10);
        assert!((1000..=1012).contains(&count), "{count}");
        // Both: the one that is reached first counts.
        let mut limiter = RateLimiter::new(1 << 30, 100).unwrap();
        assert!((1000..=1012).contains(&run(&mut limiter, 512, 10)));
    }

    #[test]
    fn nothing_is_saved_up_for_long_and_time_does_not_go_back() {
        let mut limiter = RateLimiter::new(1000, 0).unwrap();
        limiter.refill(Duration::from_secs(10));
        limiter.refill(Duration::from_secs(1_000_000));
        limiter.charge(100);
        assert!(!limiter.is_open(), "a tenth of a second is saved up");
        limiter.refill(Duration::from_secs(5));
        limiter.refill(Duration::from_secs(1_000_000));
        assert!(!limiter.is_open(), "no time has passed");
        limiter.charge(u64::MAX);
        limiter.refill(Duration::MAX);
        assert!(RateLimiter::new(0, 0).is_none());
    }
}
