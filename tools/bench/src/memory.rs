//! Peak memory of a program and its children together.
//!
//! `wait4` knows the largest single process only, and instar is two. So runs
//! of their own, which are not timed, read `VmHWM` of the process and its
//! children again and again; the sum of the highest values counts, with pages
//! that both share counted twice. It is never below what `wait4` said.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::measure::{Program, Sample, wait};

/// Runs per case that are watched.
pub const RUNS: usize = 5;
/// Time between two looks.
const PAUSE: Duration = Duration::from_micros(200);

/// Forgets how much this process had at most: until a program has started, its `ru_maxrss` is that of the process that
/// started it, and images and outputs were in memory here.
///
/// # Errors
/// `/proc` says no.
pub fn forget_own_peak() -> Result<()> {
    /// "Reset peak RSS", proc_pid_clear_refs(5).
    const PEAK: &str = "5";
    std::fs::write("/proc/self/clear_refs", PEAK).context("/proc/self/clear_refs")
}

/// The highest sum of `runs` watched runs, in bytes; at least the highest of `samples`.
pub fn peak(program: &Program, args: &[&str], samples: &[Sample], runs: usize) -> Result<u64> {
    let mut highest = samples
        .iter()
        .map(|sample| sample.max_rss_bytes)
        .max()
        .unwrap_or(0);
    for _ in 0..runs {
        highest = highest.max(watch(program, args)?);
    }
    Ok(highest)
}

fn watch(program: &Program, args: &[&str]) -> Result<u64> {
    let child = program.start(args)?;
    let mut peaks: BTreeMap<u32, u64> = BTreeMap::new();
    while wait(&child, libc::WNOHANG)?.is_none() {
        let mut left = vec![child.id()];
        while let Some(pid) = left.pop() {
            if let Some(bytes) = high_water(pid) {
                let peak = peaks.entry(pid).or_default();
                *peak = bytes.max(*peak);
            }
            left.extend(children(pid));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(peaks.values().sum())
}

/// `VmHWM` of a process that still runs, in bytes.
fn high_water(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}

fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let text = text.unwrap_or_default();
    text.split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_this_process_had_is_not_the_programs() {
        let program = Program::new("true".into(), "/".as_ref());
        drop(std::hint::black_box(vec![1_u8; 256 << 20]));
        forget_own_peak().unwrap();
        let sample = program.run(&[]).unwrap();
        assert!(sample.max_rss_bytes < 128 << 20, "{sample:?}");
    }

    #[test]
    fn peak_adds_a_child_to_its_parent() {
        let program = Program::new("sh".into(), "/".as_ref());
        let alone = peak(&program, &["-c", "exec sleep 0.05"], &[], RUNS).unwrap();
        let both = peak(&program, &["-c", "sleep 0.05; true"], &[], RUNS).unwrap();
        assert!(alone > 0);
        assert!(both > alone, "{both} {alone}");
    }
}
