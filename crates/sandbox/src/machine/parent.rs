//! The parent: opens files, forks a worker for each boot, connects for it, passes signals on as presses of the power
//! button, reaps it.

use super::connect::{self, Asked};
use super::files::MachineFiles;
use super::terminal::Raw;
use super::{MachineFailure, MachineJob, MachineOutput, Stream, worker};
use crate::signals;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::SigSet;
use nix::sys::time::TimeSpec;
use nix::unistd::{ForkResult, fork};
use rustix::event::EventfdFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// Exit code of everything that went wrong.
pub const EXIT_FAILED: u8 = 1;

/// Runs the machine, boot after boot; the exit code.
pub fn run(job: &MachineJob, output: &mut dyn MachineOutput) -> Result<u8, MachineFailure> {
    let started = Instant::now();
    let mask = signals::install().map_err(|errno| MachineFailure::Start {
        step: "sigaction",
        source: errno.into(),
    })?;
    let button = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    let button = button.map_err(failed("eventfd"))?;
    let mut files = MachineFiles::open(job, output)?;
    let at_terminal = [&job.serial, &job.console].contains(&&Stream::Stdio);
    let raw = if at_terminal { Raw::enter()? } else { None };
    let mut watch = Watch {
        job,
        mask,
        button,
        timeout: job.timeout.and_then(|limit| started.checked_add(limit)),
        pressed: 0,
        deadline: None,
    };
    let mut began = started;
    let ended = loop {
        let (child, line);
        (files, child, line) = start(job, files, &watch, began, output)?;
        let ended = watch.see_through(&child, &line, files.vsock_path());
        match ended {
            Ok(worker::EXIT_RESET) if job.reboot && watch.pressed == 0 => began = Instant::now(),
            Ok(worker::EXIT_RESET | worker::EXIT_QUIT) => break Ok(0),
            ended => break ended,
        }
    };
    drop(raw);
    files.remove();
    ended
}

fn failed(step: &'static str) -> impl Fn(rustix::io::Errno) -> MachineFailure {
    move |errno| MachineFailure::Start {
        step,
        source: errno.into(),
    }
}

/// Forks a worker. It has all files, too.
fn start(
    job: &MachineJob,
    files: MachineFiles,
    watch: &Watch<'_>,
    began: Instant,
    output: &mut dyn MachineOutput,
) -> Result<(MachineFiles, Child, OwnedFd), MachineFailure> {
    let (own_line, line) = connect::pair().map_err(failed("socketpair"))?;
    let button = watch
        .button
        .try_clone()
        .map_err(|source| MachineFailure::Start {
            step: "dup",
            source,
        })?;
    let parent = rustix::process::getpid();
    // SAFETY: `run_machine` is documented to be called before any thread exists, so the child may do whatever this
    // process may.
    match unsafe { fork() } {
        Err(errno) => Err(MachineFailure::Start {
            step: "fork",
            source: errno.into(),
        }),
        Ok(ForkResult::Child) => {
            drop(own_line);
            let start = worker::Start {
                job,
                files,
                line,
                button,
                parent,
                began,
            };
            std::process::exit(worker::run(start, output).into())
        }
        Ok(ForkResult::Parent { child }) => Ok((files, Child::new(child.as_raw())?, own_line)),
    }
}

/// A worker.
struct Child {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Child {
    fn new(pid: i32) -> Result<Self, MachineFailure> {
        let pid = Pid::from_raw(pid).ok_or(rustix::io::Errno::SRCH);
        let pid = pid.map_err(failed("fork"))?;
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { pid, pidfd }),
            Err(errno) => {
                // One that cannot be watched must not run.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
                let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
                Err(failed("pidfd_open")(errno))
            }
        }
    }

    /// Ends it as a power cut does, and waits until it is gone.
    fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = self.reap();
    }

    fn reap(&self) -> Result<u8, MachineFailure> {
        let status = rustix::io::retry_on_intr(|| {
            rustix::process::waitpid(Some(self.pid), WaitOptions::empty())
        });
        let status = status.map_err(failed("waitpid"))?.map(|(_, status)| status);
        match status.and_then(|status| status.terminating_signal()) {
            Some(signal) => Err(MachineFailure::Died(signal)),
            None => Ok(status
                .and_then(|status| status.exit_status())
                .and_then(|code| u8::try_from(code).ok())
                .unwrap_or(EXIT_FAILED)),
        }
    }
}

/// What ends a machine from outside.
struct Watch<'a> {
    job: &'a MachineJob,
    /// Signal mask while it waits.
    mask: SigSet,
    button: OwnedFd,
    timeout: Option<Instant>,
    /// Signals that were passed on.
    pressed: u32,
    /// When the guest must be off.
    deadline: Option<Instant>,
}

impl Watch<'_> {
    /// Waits until a worker has ended, and serves it meanwhile; its exit code.
    fn see_through(
        &mut self,
        child: &Child,
        line: &OwnedFd,
        vsock: Option<&Path>,
    ) -> Result<u8, MachineFailure> {
        let mut line = Some(line);
        loop {
            if let Some(ended) = self.stop(child) {
                return ended;
            }
            let (asked, gone) = self.wait(child, line);
            if let (true, Some(end)) = (asked, line) {
                match connect::answer(end.as_fd(), vsock) {
                    Asked::Answered | Asked::Nothing => {}
                    Asked::Closed => line = None,
                    Asked::Wrong(what) => {
                        child.kill();
                        return Err(MachineFailure::Protocol(what));
                    }
                }
            }
            if gone {
                return child.reap();
            }
        }
    }

    /// Presses the power button for a first signal; stops the machine for a second one, and when its time is over.
    fn stop(&mut self, child: &Child) -> Option<Result<u8, MachineFailure>> {
        let now = Instant::now();
        let count = signals::count();
        let signal = signals::received().map_or(EXIT_FAILED, signals::exit_code);
        if count > 1 {
            child.kill();
            return Some(Ok(signal));
        }
        if count > self.pressed {
            self.pressed = count;
            self.deadline = now.checked_add(self.job.shutdown);
            let _ = rustix::io::write(&self.button, &1_u64.to_ne_bytes());
        }
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            child.kill();
            return Some(Err(MachineFailure::Deadline(self.job.shutdown)));
        }
        if let (Some(timeout), Some(limit)) = (self.timeout, self.job.timeout)
            && now >= timeout
        {
            child.kill();
            return Some(Err(MachineFailure::Timeout(limit)));
        }
        None
    }

    /// Waits for the worker, a signal or a deadline: whether it asks for something, and whether it is gone.
    fn wait(&self, child: &Child, line: Option<&OwnedFd>) -> (bool, bool) {
        let until = [self.deadline, self.timeout].into_iter().flatten().min();
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.map(|left| TimeSpec::from_duration(left.max(Duration::from_millis(1))));
        let mut polled = vec![PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN)];
        polled.extend(line.map(|line| PollFd::new(line.as_fd(), PollFlags::POLLIN)));
        // Signals and the time are looked at by the caller.
        let _ = ppoll(&mut polled, left, Some(self.mask));
        let ready = |index: usize| {
            let events = polled.get(index).and_then(PollFd::revents);
            events.is_some_and(|events| !events.is_empty())
        };
        (ready(1), ready(0))
    }
}
