//! The user's terminal in raw mode, and terminals that are made for a line.

use super::MachineFailure;
use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Termios};
use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

/// The terminal as it was, while it is in raw mode.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The user's terminal in raw mode; as it was when this ends, or the program panics.
#[derive(Debug)]
pub struct Raw(());

impl Raw {
    /// Puts the terminal at standard input into raw mode; `None` if there is none.
    ///
    /// # Errors
    /// The terminal takes no settings.
    pub fn enter() -> Result<Option<Self>, MachineFailure> {
        let input = std::io::stdin();
        if !input.is_terminal() {
            return Ok(None);
        }
        let failed = |errno: rustix::io::Errno| MachineFailure::Terminal {
            what: "put the terminal into raw mode",
            source: errno.into(),
        };
        let before = rustix::termios::tcgetattr(&input).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let restored = Self(());
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            told(info);
        }));
        rustix::termios::tcsetattr(&input, OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Some(restored))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // A terminal that is gone has nothing to restore.
        let _ = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Flush, &before);
    }
}

/// A terminal that was made for a line.
#[derive(Debug)]
pub struct Pty {
    /// The machine's end.
    pub machine: OwnedFd,
    /// Held open, or the machine's end would hang up whenever nobody has the terminal open.
    pub user: OwnedFd,
    /// Name of the user's end.
    pub path: String,
}

impl Pty {
    /// Makes one in raw mode.
    ///
    /// # Errors
    /// There are no more terminals.
    pub fn new() -> Result<Self, MachineFailure> {
        let failed = |errno: rustix::io::Errno| MachineFailure::Terminal {
            what: "make a terminal",
            source: errno.into(),
        };
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let machine = rustix::pty::openpt(flags).map_err(failed)?;
        rustix::pty::grantpt(&machine).map_err(failed)?;
        rustix::pty::unlockpt(&machine).map_err(failed)?;
        let path = rustix::pty::ptsname(&machine, Vec::new()).map_err(failed)?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let user = rustix::fs::open(&path, flags, Mode::empty()).map_err(failed)?;
        let mut raw = rustix::termios::tcgetattr(user.as_fd()).map_err(failed)?;
        raw.make_raw();
        rustix::termios::tcsetattr(user.as_fd(), OptionalActions::Now, &raw).map_err(failed)?;
        rustix::io::ioctl_fionbio(&machine, true).map_err(failed)?;
        Ok(Self {
            machine,
            user,
            path: path.to_string_lossy().into_owned(),
        })
    }
}
