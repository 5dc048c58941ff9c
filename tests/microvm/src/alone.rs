//! Runs a test in a process of its own.

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Longest that one test may take.
const DEADLINE: Duration = Duration::from_secs(300);

/// Runs `body` in a child process and hands its error back.
///
/// # Errors
/// The error of `body`; or the child was killed by a signal, as a panic of the
/// host does (`panic = "abort"`); or it was not done after 300 s.
pub fn alone(body: impl FnOnce() -> Result<()>) -> Result<(), Failed> {
    in_child(body).map_err(|e| Failed(format!("{e:#}")))
}

/// Why a test failed, printed as it is: a backtrace would end in this file.
pub struct Failed(String);

impl fmt::Debug for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn in_child(body: impl FnOnce() -> Result<()>) -> Result<()> {
    let (ours, theirs) = rustix::pipe::pipe()?;
    // SAFETY: the child runs only `body` and ends by `_exit`; the C library makes its allocator usable
    // after a fork, and nothing else here is shared with threads of the parent.
    let child = unsafe { libc::fork() };
    match child {
        -1 => Err(std::io::Error::last_os_error()).context("fork"),
        0 => {
            drop(ours);
            run_child(body, theirs)
        }
        child => {
            drop(theirs);
            let text = read_until_end(ours);
            if text.is_err() {
                // SAFETY: our own child, which has not been waited for.
                unsafe { libc::kill(child, libc::SIGKILL) };
            }
            let status = wait(child)?;
            judge(text?.trim(), status)
        }
    }
}

fn judge(text: &str, status: libc::c_int) -> Result<()> {
    if libc::WIFSIGNALED(status) {
        bail!(
            "the host was killed by signal {}: {text}",
            libc::WTERMSIG(status)
        );
    }
    if libc::WEXITSTATUS(status) != 0 || !text.is_empty() {
        bail!("{text}");
    }
    Ok(())
}

fn run_child(body: impl FnOnce() -> Result<()>, to: OwnedFd) -> ! {
    let mut to = File::from(to);
    // The parent's output capture does not reach this process: a panic goes through the pipe.
    if let Ok(copy) = to.try_clone() {
        std::panic::set_hook(Box::new(move |info| {
            let _ = (&copy).write_all(format!("{info}").as_bytes());
        }));
    }
    let code = match body() {
        Ok(()) => 0,
        Err(error) => {
            let _ = to.write_all(format!("{error:#}").as_bytes());
            1
        }
    };
    // SAFETY: ends the process without running the parent's exit handlers.
    unsafe { libc::_exit(code) }
}

/// What the child wrote, once it has closed its end.
fn read_until_end(from: OwnedFd) -> Result<String> {
    let mut from = File::from(from);
    let end = Instant::now() + DEADLINE;
    let mut text = Vec::new();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left)?;
        let mut ready = [PollFd::new(&from, PollFlags::IN)];
        match poll(&mut ready, Some(&timeout)) {
            Ok(0) => bail!(
                "the host hangs: it was not done after {} s",
                DEADLINE.as_secs()
            ),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        }
        let mut buf = [0; 4096];
        match from.read(&mut buf)? {
            0 => return Ok(String::from_utf8_lossy(&text).into_owned()),
            n => text.extend(buf.iter().take(n)),
        }
    }
}

fn wait(child: libc::pid_t) -> Result<libc::c_int> {
    let mut status = 0;
    loop {
        // SAFETY: our own child; the status is a local.
        if unsafe { libc::waitpid(child, &raw mut status, 0) } == child {
            return Ok(status);
        }
        let error = std::io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINTR) {
            return Err(error).context("waitpid");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_fails_dies_or_panics_is_seen() {
        assert!(alone(|| Ok(())).is_ok());
        let text = |r: Result<(), Failed>| format!("{:?}", r.unwrap_err());
        assert_eq!(text(alone(|| bail!("told"))), "told");
        let died = text(alone(|| {
            // SAFETY: kills only the child.
            unsafe { libc::abort() }
        }));
        assert!(died.contains("signal 6"), "{died}");
    }
}
