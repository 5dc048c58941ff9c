//! Runs the program under test on a terminal.

use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::ptr::{null, null_mut};

use anyhow::{Context, Result, ensure};

/// Columns of the terminal.
pub const COLUMNS: u16 = 60;

/// Which streams of a run the terminal gets; the others are pipes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnTerminal {
    /// Standard output and standard error.
    Both,
    /// Standard error alone.
    Stderr,
}

/// What a run on a terminal wrote.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// What the terminal got, as text, with line ends as the program wrote them.
    pub terminal: String,
    /// What the pipe of standard output got.
    pub piped: String,
}

/// Both ends of a new pseudo-terminal: the screen's and the program's.
fn open() -> Result<(File, OwnedFd)> {
    let (mut screen, mut program) = (-1, -1);
    let size = libc::winsize {
        ws_row: 24,
        ws_col: COLUMNS,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: both numbers are writable, the size is readable, and a name and modes are not asked for.
    let result = unsafe {
        libc::openpty(
            &raw mut screen,
            &raw mut program,
            null_mut(),
            null(),
            &raw const size,
        )
    };
    ensure!(result == 0, "openpty: {}", std::io::Error::last_os_error());
    // SAFETY: the call gave two new descriptors, which nothing else owns.
    let (screen, program) = unsafe { (File::from_raw_fd(screen), OwnedFd::from_raw_fd(program)) };
    // Programs that other tests start would keep the screen open.
    rustix::io::fcntl_setfd(&screen, rustix::io::FdFlags::CLOEXEC)?;
    rustix::io::fcntl_setfd(&program, rustix::io::FdFlags::CLOEXEC)?;
    Ok((screen, program))
}

/// Runs a program to its end.
pub fn run(program: &Path, args: &[&str], cwd: &Path, streams: OnTerminal) -> Result<Seen> {
    let (mut screen, terminal) = open()?;
    let mut command = Command::new(program);
    command
        .args(args)
        .current_dir(cwd)
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .env("TERM", "xterm")
        .env_remove("INSTAR_ALLOW_PATH")
        .stdin(Stdio::null());
    if streams == OnTerminal::Both {
        command.stdout(terminal.try_clone()?);
    } else {
        command.stdout(Stdio::piped());
    }
    command.stderr(terminal);
    let mut child = command.spawn().context("starting a program")?;
    // The program's ends that this process has would keep the screen open.
    drop(command);
    let mut shown = Vec::new();
    let mut buffer = [0; 4096];
    // The screen's end fails when the last program's end is closed.
    while let Ok(count @ 1..) = screen.read(&mut buffer) {
        shown.extend_from_slice(&buffer[..count]);
    }
    let mut piped = Vec::new();
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_end(&mut piped)?;
    }
    let status = child.wait()?;
    Ok(Seen {
        code: status.code(),
        terminal: String::from_utf8_lossy(&shown).replace("\r\n", "\n"),
        piped: String::from_utf8_lossy(&piped).into_owned(),
    })
}
