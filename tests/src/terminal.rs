//! Runs the program under test on a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::ptr::{null, null_mut};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::live::wait_until_taken;

/// Columns of the terminal.
pub const COLUMNS: u16 = 60;
/// A run that is shorter shows no bar.
pub const BAR_DELAY: Duration = Duration::from_secs(1);
/// How long to wait for anything that takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(120);

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
    /// Wall time, from before its start.
    pub took: Duration,
}

/// What `seen` gives of a run that is over before a bar is shown, which is after a second: where others work, too, that may
/// take several attempts.
pub fn shortly(seen: impl Fn() -> Result<Seen>) -> Result<Seen> {
    for _ in 0..50 {
        let seen = seen()?;
        if seen.took < BAR_DELAY {
            return Ok(seen);
        }
    }
    bail!("it takes longer than {BAR_DELAY:?}")
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

/// A terminal's settings: input, output, control and local modes, and the keys with a meaning.
fn settings(terminal: &OwnedFd) -> Result<String> {
    // SAFETY: termios is plain integers, for which all zeros is a value.
    let mut modes: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, the settings are writable.
    let got = unsafe { libc::tcgetattr(terminal.as_raw_fd(), &raw mut modes) };
    ensure!(got == 0, "tcgetattr: {}", std::io::Error::last_os_error());
    Ok(format!("{modes:?}"))
}

/// A program that has a terminal for all its streams, and someone who types.
#[derive(Debug)]
pub struct Session {
    screen: File,
    terminal: OwnedFd,
    before: String,
    child: Child,
    shown: String,
}

impl Session {
    /// Starts a program.
    pub fn start(program: &Path, args: &[&str], cwd: &Path) -> Result<Self> {
        let (screen, terminal) = open()?;
        let before = settings(&terminal)?;
        rustix::io::ioctl_fionbio(&screen, true)?;
        let mut command = Command::new(program);
        command.args(args).current_dir(cwd).env("LC_ALL", "C");
        command.stdin(terminal.try_clone()?);
        command.stdout(terminal.try_clone()?);
        command.stderr(terminal.try_clone()?);
        let child = command.spawn().context("starting a program")?;
        Ok(Self {
            screen,
            terminal,
            before,
            child,
            shown: String::new(),
        })
    }

    /// Whether the terminal has the settings that it had before the program was started.
    pub fn is_as_before(&self) -> Result<bool> {
        Ok(settings(&self.terminal)? == self.before)
    }

    /// Types.
    pub fn type_keys(&mut self, keys: &[u8]) -> Result<()> {
        Ok(self.screen.write_all(keys)?)
    }

    /// Sends the program a signal, and waits until its handler has run: of two of a kind that are on their way at once, one
    /// comes.
    pub fn tell(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        kill_process(Pid::from_raw(pid).context("a process id")?, signal)?;
        wait_until_taken(pid, signal)
    }

    /// Waits until the screen shows `text` after what was waited for before: what it has shown between the two.
    pub fn wait_for(&mut self, text: &str) -> Result<String> {
        let until = Instant::now() + PATIENCE;
        loop {
            self.look();
            if let Some(at) = self.shown.find(text) {
                let rest = self.shown.split_off(at + text.len());
                let mut shown = std::mem::replace(&mut self.shown, rest);
                shown.truncate(at);
                return Ok(shown);
            }
            ensure!(Instant::now() < until, "no {text:?} in {:?}", self.shown);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the program has ended: its exit code, and what the screen has shown since it was waited for.
    pub fn end(&mut self) -> Result<(Option<i32>, String)> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let status = self.child.try_wait()?;
            self.look();
            if let Some(status) = status {
                return Ok((status.code(), std::mem::take(&mut self.shown)));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("it does not end: {:?}", self.shown)
    }

    fn look(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = self.screen.read(&mut buffer) {
            self.shown += &String::from_utf8_lossy(&buffer[..count]);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
    let started = Instant::now();
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
        took: started.elapsed(),
    })
}
