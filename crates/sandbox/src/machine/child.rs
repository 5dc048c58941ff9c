//! Processes that a parent forks, seen from outside.

use super::MachineFailure;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use nix::unistd::{ForkResult, fork};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// Exit code of everything that went wrong.
pub(crate) const EXIT_FAILED: u8 = 1;

/// What a call that starts a process failed with.
pub(crate) fn failed(step: &'static str) -> impl Fn(rustix::io::Errno) -> MachineFailure {
    move |errno| MachineFailure::Start {
        step,
        source: errno.into(),
    }
}

/// Forks: the child's process, or none in the child itself, which ends by [`std::process::exit`].
///
/// # Errors
/// There is no process to be had, or it cannot be watched; it is gone then.
pub(crate) fn forked() -> Result<Option<Child>, MachineFailure> {
    // SAFETY: `run_machine` and `serve` are documented to be called before any thread exists, so the child may do
    // whatever this process may.
    match unsafe { fork() } {
        Err(errno) => Err(MachineFailure::Start {
            step: "fork",
            source: errno.into(),
        }),
        Ok(ForkResult::Child) => Ok(None),
        Ok(ForkResult::Parent { child }) => Child::new(child.as_raw()).map(Some),
    }
}

/// Has this process take its memory in small pages. For those that live as long as their guest and touch a little here and
/// there: where the system gives large pages unasked, each such place took 2 MiB.
pub(crate) fn use_small_pages() {
    // Kernels without large pages do not know the call.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// A worker, or another process.
#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    /// Readable once it has ended.
    pub(crate) pidfd: OwnedFd,
}

impl Child {
    /// Of a process of this number, just forked.
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
    pub(crate) fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = self.reap();
    }

    /// Waits until it ends by itself, for as long as `patience`, and then ends it; its exit code.
    ///
    /// # Errors
    /// A signal has ended it, this one or another.
    pub(crate) fn end(&self, patience: Duration) -> Result<u8, MachineFailure> {
        let left = TimeSpec::from_duration(patience);
        let mut polled = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        // Interrupted or not: what has not ended is ended.
        let _ = ppoll(&mut polled, Some(left), None);
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        self.reap()
    }

    /// Waits until it has ended; its exit code.
    ///
    /// # Errors
    /// A signal has ended it.
    pub(crate) fn reap(&self) -> Result<u8, MachineFailure> {
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
