//! Order statistics of timed runs.

use std::time::Duration;

use crate::measure::Sample;

/// What the table says of the runs of one program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Shortest wall time.
    pub min: Duration,
    /// Median wall time; the upper of the two middle ones.
    pub median: Duration,
    /// The wall time that nine in ten runs do not exceed.
    pub p90: Duration,
    /// Median CPU time, likewise.
    pub cpu: Duration,
}

impl Summary {
    /// Of at least one run; all zero otherwise.
    pub fn of(samples: &[Sample]) -> Self {
        let mut walls: Vec<Duration> = samples.iter().map(|sample| sample.wall).collect();
        walls.sort_unstable();
        let mut cpus: Vec<Duration> = samples.iter().map(|sample| sample.cpu).collect();
        cpus.sort_unstable();
        let at = |index: usize| walls.get(index).copied().unwrap_or_default();
        Self {
            min: at(0),
            median: at(walls.len() / 2),
            p90: at((walls.len() * 9).div_ceil(10).saturating_sub(1)),
            cpu: cpus.get(cpus.len() / 2).copied().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_picks_by_rank() {
        let samples: Vec<Sample> = (1..=20)
            .rev()
            .map(|ms| Sample {
                wall: Duration::from_millis(ms),
                max_rss_bytes: 0,
                cpu: Duration::from_millis(ms * 2),
            })
            .collect();
        let summary = Summary::of(&samples);
        assert_eq!(summary.min, Duration::from_millis(1));
        assert_eq!(summary.median, Duration::from_millis(11));
        assert_eq!(summary.p90, Duration::from_millis(18));
        assert_eq!(summary.cpu, Duration::from_millis(22));
    }
}
