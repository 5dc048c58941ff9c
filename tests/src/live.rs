//! A run of the program under test that is in the middle of its work.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::crafted;
use crate::family;
use crate::run::{Outcome, Run};
use crate::scratch::Scratch;
use crate::tools;

/// Name of the image that [`Live::check`] checks.
pub const LONG_IMAGE: &str = "long.qcow2";
/// L1 entries of it: half a minute of work.
const LONG_TABLES: u64 = 1 << 20;
/// How long to wait for anything that takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a broker leaves its worker that is to end.
const GRACE: Duration = Duration::from_secs(5);
/// CPU time of a worker that certainly runs its guest, in clock ticks of 10 ms.
const BUSY_TICKS: u64 = 10;

/// A broker with a worker that runs its guest. Both are killed when it is dropped.
#[derive(Debug)]
pub struct Live {
    child: Child,
    worker: i32,
    since: Instant,
}

impl Live {
    /// Starts `instar check` with these options on an image that takes long,
    /// and waits until its guest runs.
    pub fn check(scratch: &Scratch, options: &[&str]) -> Result<Self> {
        let run = Run::new(&tools::instar()?, scratch.path())
            .args(["check"])
            .args(options)
            .args([LONG_IMAGE]);
        Self::start(scratch, &run)
    }

    /// Starts a run that becomes `instar check` of [`LONG_IMAGE`], which is made here.
    pub fn start(scratch: &Scratch, run: &Run) -> Result<Self> {
        crafted::create_long(scratch, LONG_IMAGE, LONG_TABLES)?;
        Self::watch(run)
    }

    /// Starts a run that takes long, and waits until its guest runs.
    pub fn watch(run: &Run) -> Result<Self> {
        let mut live = Self {
            child: run.start()?,
            worker: 0,
            since: Instant::now(),
        };
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if let Some(worker) = busy_worker(live.broker()?) {
                live.worker = worker;
                return Ok(live);
            }
            if live.child.try_wait()?.is_some() {
                let ended = live.end()?;
                bail!("the run ended at once:\n{}", ended.describe());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("no worker is busy after {PATIENCE:?}");
    }

    /// Process id of the broker, the process that was started.
    pub fn broker(&self) -> Result<i32> {
        i32::try_from(self.child.id()).context("process id")
    }

    /// Process id of the worker.
    pub fn worker(&self) -> i32 {
        self.worker
    }

    /// Sends a signal to one of the two; the time of [`Live::end`] counts from here.
    pub fn signal(&mut self, pid: i32, signal: rustix::process::Signal) -> Result<()> {
        self.since = Instant::now();
        let pid = rustix::process::Pid::from_raw(pid).context("process id 0")?;
        rustix::process::kill_process(pid, signal).context("sending a signal")
    }

    /// As [`Live::signal`], to the broker, and waits until its handler has run: of two of a kind that are on their way at
    /// once, one comes.
    pub fn tell(&mut self, signal: rustix::process::Signal) -> Result<()> {
        let broker = self.broker()?;
        self.signal(broker, signal)?;
        wait_until_taken(broker, signal)
    }

    /// Sends a signal to both at once, as a terminal does.
    pub fn signal_both(&mut self, signal: rustix::process::Signal) -> Result<()> {
        self.since = Instant::now();
        let group = rustix::process::Pid::from_raw(self.broker()?).context("process id 0")?;
        rustix::process::kill_process_group(group, signal).context("sending a signal")
    }

    /// Waits for the end of the worker alone.
    pub fn worker_ended(&self) -> Result<()> {
        let waiting = Instant::now();
        while family::is_there(self.worker.unsigned_abs()) {
            ensure!(waiting.elapsed() < PATIENCE, "the worker is left behind");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Waits for the end of both processes, and gives what the run said and did.
    pub fn end(mut self) -> Result<Outcome> {
        let waiting = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(waiting.elapsed() < PATIENCE, "the run does not end");
            std::thread::sleep(Duration::from_millis(2));
        };
        let elapsed = self.since.elapsed();
        self.worker_ended()?;
        Ok(Outcome {
            code: status.code(),
            signal: status.signal(),
            stdout: rest(self.child.stdout.take())?,
            stderr: rest(self.child.stderr.take())?,
            max_rss_kib: 0,
            elapsed,
            timed_out: false,
        })
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(worker) = rustix::process::Pid::from_raw(self.worker)
            && family::is_there(self.worker.unsigned_abs())
        {
            let _ = rustix::process::kill_process(worker, rustix::process::Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a run that is told to end does, [`Live::end`], if it does not end well, and sooner than its broker kills the worker:
/// a machine may be so busy that its work is over before, or that five seconds are too short, but not each time.
pub fn soon(run: impl Fn() -> Result<Outcome>) -> Result<Outcome> {
    for _ in 0..10 {
        let ended = run()?;
        if ended.elapsed < GRACE && ended.code != Some(0) {
            return Ok(ended);
        }
    }
    bail!("it does not end before its time is up");
}

/// Waits until a process has taken a signal that it was sent.
pub fn wait_until_taken(pid: i32, signal: rustix::process::Signal) -> Result<()> {
    let waiting = Instant::now();
    let bit = 1_u64 << (signal.as_raw() - 1);
    while u64::from_str_radix(&status(pid, "ShdPnd")?, 16)? & bit != 0 {
        ensure!(waiting.elapsed() < PATIENCE, "{signal:?} is not taken");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// The worker of a broker, if it has its filter and has used the CPU since.
fn busy_worker(broker: i32) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{broker}/task/{broker}/children"));
    let worker: i32 = children.ok()?.split_whitespace().next()?.parse().ok()?;
    let confined = status(worker, "Seccomp").is_ok_and(|mode| mode == "2");
    (confined && ticks(worker)? >= BUSY_TICKS).then_some(worker)
}

/// User and system time of a process, in clock ticks.
fn ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc_pid_stat(5): utime and stime are fields 14 and 15, the name in brackets is field 2.
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut times = after_name.split_whitespace().skip(11);
    let user: u64 = times.next()?.parse().ok()?;
    let system: u64 = times.next()?.parse().ok()?;
    user.checked_add(system)
}

/// A line of `/proc/PID/status`, or of a thread's with `pid` as `PID/task/TID`.
pub fn status(pid: impl std::fmt::Display, key: &str) -> Result<String> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .map(|value| value.trim().to_owned())
        .with_context(|| format!("{path} has no {key}"))
}

fn rest(pipe: Option<impl Read>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}
