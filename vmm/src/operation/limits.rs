//! The two clocks of a run: CPU time since the last progress, and wall time.

use super::{Limits, RunError};
use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

/// Watches one run on the calling thread. Made before the process is confined: the first look at
/// a clock may need system calls that a confined process has not.
#[derive(Clone, Debug)]
pub struct Watch {
    limits: Limits,
    started: Instant,
    cpu_at_progress: Duration,
    progressed: bool,
}

impl Watch {
    /// Starts both clocks.
    pub fn start(limits: Limits) -> Self {
        Self {
            limits,
            started: Instant::now(),
            cpu_at_progress: thread_cpu_time(),
            progressed: false,
        }
    }

    /// A request was completed or a progress step reported.
    pub const fn progressed(&mut self) {
        self.progressed = true;
    }

    /// Whether a limit is passed, where other threads have spent `beside` so far; `position` says where
    /// the guest is, if asked.
    ///
    /// # Errors
    /// [`RunError::Stalled`] or [`RunError::TimedOut`].
    pub fn check(
        &mut self,
        beside: Duration,
        position: impl FnOnce() -> String,
    ) -> Result<(), RunError> {
        if let Some(limit) = self.limits.timeout
            && self.started.elapsed().saturating_add(self.limits.spent) >= limit
        {
            return Err(RunError::TimedOut { limit });
        }
        let cpu = thread_cpu_time().saturating_add(beside);
        if std::mem::take(&mut self.progressed) {
            self.cpu_at_progress = cpu;
        } else if cpu.saturating_sub(self.cpu_at_progress) >= self.limits.stall {
            return Err(RunError::Stalled {
                limit: self.limits.stall,
                position: position(),
            });
        }
        Ok(())
    }
}

/// CPU time of this thread; the guest's time counts, as the vCPU runs on it.
fn thread_cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(stall_ms: u64, timeout_ms: Option<u64>) -> Limits {
        Limits {
            memory_bytes: 0,
            stall: Duration::from_millis(stall_ms),
            timeout: timeout_ms.map(Duration::from_millis),
            spent: Duration::ZERO,
            threads: crate::operation::Threads::default(),
        }
    }

    #[test]
    fn no_progress_for_the_limit_is_a_stall() {
        let mut watch = Watch::start(limits(0, None));
        watch.progressed();
        assert!(watch.check(Duration::ZERO, String::new).is_ok());
        assert!(
            matches!(watch.check(Duration::ZERO, || "here".into()), Err(RunError::Stalled { position, .. }) if position == "here")
        );
    }

    #[test]
    fn progress_does_not_stop_the_wall_clock() {
        let mut watch = Watch::start(limits(1000, Some(0)));
        watch.progressed();
        assert!(matches!(
            watch.check(Duration::ZERO, String::new),
            Err(RunError::TimedOut { .. })
        ));
    }

    #[test]
    fn earlier_runs_count_against_the_wall_clock() {
        let hour = Duration::from_secs(3600);
        let spent = Limits {
            spent: hour,
            ..limits(1000, Some(3_600_000))
        };
        let ended = Watch::start(spent).check(Duration::ZERO, String::new);
        assert!(matches!(ended, Err(RunError::TimedOut { limit }) if limit == hour));
    }
}
