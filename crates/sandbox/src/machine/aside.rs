//! Work of an operation for a machine, in a process of its own: it has a broker and a confined worker like any other.

use super::MachineFailure;
use super::child::{Child, EXIT_FAILED, forked};
use crate::signals;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::SigSet;
use rustix::process::{Pid, Signal};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

/// Does `work` in a fork that begins with `prepare`, and waits for its end; its exit code, or that of a signal that came
/// meanwhile. `mask` are the signals that were blocked before this process began to wait for them.
///
/// # Errors
/// The process could not be started, or died.
pub fn run(
    mask: &SigSet,
    prepare: impl FnOnce() -> rustix::io::Result<()>,
    work: impl FnOnce() -> u8,
) -> Result<u8, MachineFailure> {
    let parent = rustix::process::getpid();
    let Some(child) = forked()? else {
        let code = match begin(parent, mask).and_then(|()| prepare()) {
            Ok(()) => work(),
            Err(_) => EXIT_FAILED,
        };
        std::process::exit(code.into())
    };
    let code = wait(&child, mask)?;
    let signal = signals::received().filter(|_| code == 0);
    Ok(signal.map_or(code, signals::exit_code))
}

/// What makes a fork a process of its own.
fn begin(parent: Pid, mask: &SigSet) -> rustix::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    if rustix::process::getppid() != Some(parent) {
        return Err(rustix::io::Errno::SRCH);
    }
    signals::set_mask(mask).map_err(|errno| rustix::io::Errno::from_raw_os_error(errno as i32))
}

/// Waits until it has ended, and passes signals on; its exit code.
fn wait(child: &Child, mask: &SigSet) -> Result<u8, MachineFailure> {
    let mut passed = 0;
    loop {
        let count = signals::count();
        if count > passed {
            passed = count;
            // What it does with a second one is to stop at once.
            let _ = rustix::process::pidfd_send_signal(&child.pidfd, Signal::TERM);
        }
        let mut polled = [PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN)];
        // An interruption is a signal.
        let _ = ppoll(&mut polled, None, Some(*mask));
        let [ended] =
            polled.map(|polled| polled.revents().is_some_and(|events| !events.is_empty()));
        if ended {
            return child.reap();
        }
    }
}

/// Name of an open file of this process, and of one that it forks.
#[must_use]
pub fn path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}
