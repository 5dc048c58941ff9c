//! A rate: the guest goes on when it may.

use instar_shared::record::Progress;
use instar_shared::zerocopy::FromBytes;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// Longest time that is slept at once.
const LONGEST_SLEEP: Duration = Duration::from_millis(500);

/// How fast bytes may be copied, from its making on.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    start: Instant,
    /// Bytes in a second; 0: as many as can be.
    rate: u64,
}

impl Pace {
    /// At most `rate` bytes in a second; 0: as many as can be.
    #[must_use]
    pub fn new(rate: u64) -> Self {
        Self {
            start: Instant::now(),
            rate,
        }
    }

    /// Waits, if more has been copied than the rate allows by now: the guest does not go on meanwhile. `payload` is
    /// a record of progress in bytes.
    pub fn keep(&self, payload: &[u8]) {
        let Ok(progress) = Progress::read_from_bytes(payload) else {
            return;
        };
        if self.rate == 0 {
            return;
        }
        let micros = u128::from(progress.done.get()) * 1_000_000 / u128::from(self.rate);
        let due = Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
        let never = Mutex::new(());
        while let Some(left) = due
            .checked_sub(self.start.elapsed())
            .filter(|d| !d.is_zero())
        {
            // A confined process has no other way to sleep.
            let Ok(guard) = never.lock() else { return };
            let _ = Condvar::new().wait_timeout(guard, left.min(LONGEST_SLEEP));
        }
    }
}
