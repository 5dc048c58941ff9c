//! A process that was forked, and how it is ended.

use crate::output::JobError;
use crate::signals;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::SigSet;
use nix::sys::time::TimeSpec;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long the worker has to end after a signal.
const GRACE: Duration = Duration::from_secs(5);

/// A process that was forked, seen from outside: a worker, or one that sees through the rounds that follow.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    /// What hangs up to end a process that is no worker.
    pub line: Option<OwnedFd>,
}

impl Child {
    pub fn new(pid: i32, line: Option<OwnedFd>) -> Result<Self, JobError> {
        let failed = |errno: rustix::io::Errno| JobError::Start {
            step: "pidfd_open",
            source: errno.into(),
        };
        let pid = Pid::from_raw(pid)
            .ok_or(rustix::io::Errno::SRCH)
            .map_err(failed)?;
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { pid, pidfd, line }),
            Err(errno) => {
                // A process that cannot be watched must not run; its death needs no descriptor.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
                let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
                Err(failed(errno))
            }
        }
    }

    /// Ends a worker as a power cut does; another process does so with its own.
    pub fn kill(&mut self) {
        if self.line.take().is_none() {
            self.signal(Signal::KILL);
        }
    }

    fn signal(&self, signal: Signal) {
        // It may be gone already, which the wait finds out.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, signal);
    }

    /// Waits for the end: the exit code, or the signal as an error.
    pub fn reap(&self) -> Result<u8, JobError> {
        let failed = |errno: rustix::io::Errno| JobError::Start {
            step: "waitpid",
            source: errno.into(),
        };
        loop {
            match rustix::process::waitpid(Some(self.pid), WaitOptions::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(failed(errno)),
                Ok(None) => {}
                Ok(Some((_, status))) => {
                    if let Some(signal) = status.terminating_signal() {
                        return Err(JobError::WorkerDied { signal });
                    }
                    return Ok(status
                        .exit_status()
                        .and_then(|code| u8::try_from(code).ok())
                        .unwrap_or(1));
                }
            }
        }
    }
}

/// Waits for a request or the child's end: which of them came. `None`: a signal, the boss or time did.
pub fn wait(
    child: &Child,
    socket: Option<&OwnedFd>,
    stop: &Stop,
    mask: &SigSet,
) -> Option<(bool, bool)> {
    let mut fds = vec![PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN)];
    fds.extend(socket.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
    let at_boss = fds.len();
    fds.extend(
        stop.boss
            .as_ref()
            .map(|boss| PollFd::new(boss.as_fd(), PollFlags::POLLIN)),
    );
    let left = stop.left().map(TimeSpec::from_duration);
    let ready = ppoll(&mut fds, left, Some(*mask)).ok()?;
    let is_ready = |fd: Option<&PollFd<'_>>| fd.and_then(PollFd::any).unwrap_or(false);
    if is_ready(fds.get(at_boss)) {
        stop.hung_up.set(true);
        return None;
    }
    (ready > 0).then(|| {
        let request = socket.is_some() && is_ready(fds.get(1));
        (request, is_ready(fds.first()))
    })
}

/// Signals on their way to the child.
#[derive(Default)]
pub struct Stop {
    deadline: Option<Instant>,
    passed_on: bool,
    /// Who counts signals and the time for this process.
    boss: Option<OwnedFd>,
    hung_up: Cell<bool>,
}

impl Stop {
    pub fn new(boss: Option<OwnedFd>) -> Self {
        Self {
            boss,
            ..Self::default()
        }
    }

    /// Another child begins: it has had no signal, and all the time.
    pub fn begins(&mut self) {
        self.deadline = None;
        self.passed_on = false;
    }

    /// Passes the first signal on; true if the child was killed: a second one came, time is up, or the boss hung up.
    pub fn look(&mut self, child: &mut Child) -> bool {
        if let Some(first) = signals::received()
            && !std::mem::replace(&mut self.passed_on, true)
        {
            self.deadline = Instant::now().checked_add(GRACE);
            // The same one, as the worker's exit code names it.
            child.signal(match first {
                libc::SIGINT => Signal::INT,
                libc::SIGHUP => Signal::HUP,
                _ => Signal::TERM,
            });
        }
        let late = |deadline| Instant::now() >= deadline;
        let kill = match &self.boss {
            Some(_) => self.hung_up.get(),
            None => self.passed_on && (signals::count() > 1 || self.deadline.is_some_and(late)),
        };
        if kill {
            child.kill();
        }
        kill
    }

    fn left(&self) -> Option<Duration> {
        let deadline = self.deadline.filter(|_| self.boss.is_none());
        deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }
}
