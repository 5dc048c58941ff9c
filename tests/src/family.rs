//! A program and the processes that it has started. When the first is killed the kernel ends the others, each a moment later:
//! until then they have their memory, files and locks.

use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::live::status;

/// How long the kernel may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A process, and all that it has started.
#[must_use]
pub fn of(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids: Vec<u32> = processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    let is_child = |child: &u32| status(*child, "PPid").is_ok_and(|of| of == pid.to_string());
    for child in pids
        .into_iter()
        .filter(|child| *child != pid)
        .filter(is_child)
    {
        all.extend(of(child));
    }
    all
}

/// Whether a process is there, and one of its threads has not ended. Its first thread may end before the others (`Z`), and
/// all of them have its files until the last has ended (proc_pid_task(5)).
#[must_use]
pub fn is_there(pid: u32) -> bool {
    let ended = status(pid, "State").is_ok_and(|state| state.starts_with(['Z', 'X']));
    match std::fs::read_dir(format!("/proc/{pid}/task")) {
        Ok(threads) => !ended || threads.count() > 1,
        Err(_) => false,
    }
}

/// Kills a program, and waits until none of its processes is there.
///
/// # Errors
/// One of them stays.
pub fn kill(child: &mut Child) -> Result<()> {
    let all = of(child.id());
    // It may have ended.
    let _ = child.kill();
    child.wait()?;
    let started = Instant::now();
    while all.iter().any(|pid| is_there(*pid)) {
        ensure!(started.elapsed() < PATIENCE, "a process is left behind");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
