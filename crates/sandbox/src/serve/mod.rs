//! A disk for other programs' guests: who opens image and socket, and what is left to the process that serves.
//!
//! [`serve`] is the *parent*: it opens the image that the user named with its locks, makes the socket, and forks. The
//! child, the *worker*, gives up everything but these two and serves ([`instar_vmm::machine::serve`]). The parent passes on
//! signals and removes the socket at the end. It parses nothing, and reads nothing that the front end sends. An image that is
//! not raw has a reader besides ([`crate::LiveImage`]), which ends when the worker has.

mod socket;

use crate::confine;
use crate::jail::Filter;
use crate::live::{self, EXIT_READER_ENDED, GRACE, Unopened};
use crate::machine::{Child, DiskImage, EXIT_FAILED, MachineFailure, failed, forked, open_disk};
use crate::signals;
use instar_vmm::machine::disk::store::Served;
use instar_vmm::machine::parts::Disk;
use instar_vmm::machine::serve::Server;
use instar_vmm::operation::Confine;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::SigSet;
use nix::sys::time::TimeSpec;
use rustix::event::EventfdFlags;
use rustix::process::Pid;
use socket::Socket;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A disk to be served; nothing is open yet.
#[derive(Clone, Debug)]
pub struct ServeJob {
    /// The image.
    pub image: DiskImage,
    /// Where front ends connect.
    pub socket: PathBuf,
    /// It is served no longer.
    pub timeout: Option<Duration>,
}

/// Who tells the user what happens.
pub trait ServeOutput {
    /// Front ends can connect.
    fn listening(&mut self, socket: &Path);
    /// Something went wrong; called once, in one of the processes.
    fn failed(&mut self, error: &MachineFailure);
}

/// Serves a disk until a signal ends it; the exit code: 0 if all that was written is durable then, 1 if something went
/// wrong, and 128 and the signal's number if a second signal stopped it before.
///
/// Must be called before any thread is started.
#[must_use]
pub fn serve(job: &ServeJob, output: &mut dyn ServeOutput) -> u8 {
    match parent(job, output) {
        Ok(code) => code,
        Err(error) => {
            output.failed(&error);
            EXIT_FAILED
        }
    }
}

fn parent(job: &ServeJob, output: &mut dyn ServeOutput) -> Result<u8, MachineFailure> {
    let started = Instant::now();
    let mask = signals::install().map_err(|errno| MachineFailure::Start {
        step: "sigaction",
        source: errno.into(),
    })?;
    let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    let stop = stop.map_err(failed("eventfd"))?;
    let (source, socket, readers);
    match &job.image {
        DiskImage::Raw(disk) => {
            let disk = open_disk(disk)?;
            socket = Socket::listen(&job.socket)?;
            (source, readers) = (Source::Raw(disk), Vec::new());
        }
        DiskImage::Live(image) => {
            let opened = image.open()?;
            socket = Socket::listen(&job.socket)?;
            let (child, unopened) = image.start(&opened)?;
            (source, readers) = (Source::Live(Box::new(unopened)), vec![child]);
        }
    }
    let parent = rustix::process::getpid();
    let Some(child) = forked()? else {
        let code = match worker(source, socket, stop, parent, (&job.socket, output)) {
            Ok(()) => 0,
            Err(error) if error.is_readers_end() => EXIT_READER_ENDED,
            Err(error) => {
                output.failed(&error);
                EXIT_FAILED
            }
        };
        std::process::exit(code.into())
    };
    // The reader ends when nobody has its channel any more.
    drop(source);
    let limit = job.timeout.and_then(|timeout| started.checked_add(timeout));
    let ended = watch(&child, &stop, mask, limit);
    socket.remove();
    let ended = match ended {
        Ok(Ended::Code(code)) => live::end(code, &readers).map(Ended::Code),
        Ok(Ended::Timeout) => live::end(0, &readers).map(|code| match code {
            0 => Ended::Timeout,
            code => Ended::Code(code),
        }),
        Err(error) => live::end(EXIT_FAILED, &readers).and(Err(error)),
    };
    match (ended, job.timeout) {
        (Ok(Ended::Timeout), Some(timeout)) => Err(MachineFailure::ServedLongEnough(timeout)),
        (Ok(Ended::Timeout), None) => Ok(0),
        (Ok(Ended::Code(code)), _) => Ok(code),
        (Err(error), _) => Err(error),
    }
}

/// The image, as the worker gets it.
enum Source {
    Raw(Disk),
    Live(Box<Unopened>),
}

impl Source {
    fn descriptors(&self) -> Vec<RawFd> {
        match self {
            Self::Raw(disk) => vec![disk.file.as_raw_fd()],
            Self::Live(unopened) => unopened.descriptors().to_vec(),
        }
    }

    fn open(self) -> Result<Served, MachineFailure> {
        Ok(match self {
            Self::Raw(disk) => Served::Raw(disk),
            Self::Live(unopened) => Served::Live(Box::new(unopened.open()?)),
        })
    }
}

/// The process that serves.
fn worker(
    source: Source,
    socket: Socket,
    stop: OwnedFd,
    parent: Pid,
    (path, output): (&Path, &mut dyn ServeOutput),
) -> Result<(), MachineFailure> {
    confine::bind_to(parent)?;
    let listener = socket.into_listener();
    let mut kept = source.descriptors();
    kept.extend([listener.as_raw_fd(), stop.as_raw_fd()]);
    confine::close_others(&kept)?;
    let disk = source.open()?;
    let server = Server::new(disk, listener, stop).map_err(MachineFailure::Vm)?;
    confine::give_up_files()?;
    output.listening(path);
    let own_pid = std::process::id();
    let filters: Confine = Arc::new(move |kind| {
        let filter = Filter::Machine { kind, own_pid };
        filter.install().map_err(std::io::Error::other)
    });
    server.run(&filters).map_err(MachineFailure::Vm)
}

/// How it came to an end.
enum Ended {
    /// Of the worker's own, or by a second signal.
    Code(u8),
    /// The time was over, and what was written is durable.
    Timeout,
}

/// Waits until the worker has ended. A first signal, and the end of the time, have it end; a second one stops it.
fn watch(
    child: &Child,
    stop: &OwnedFd,
    mask: SigSet,
    limit: Option<Instant>,
) -> Result<Ended, MachineFailure> {
    let mut told = None;
    let mut timed_out = false;
    loop {
        let now = Instant::now();
        let over = limit.is_some_and(|limit| now >= limit);
        if told.is_none() && (over || signals::count() > 0) {
            timed_out = signals::count() == 0;
            told = now.checked_add(GRACE);
            // It is read at once, or has ended.
            let _ = rustix::io::write(stop, &1_u64.to_ne_bytes());
        }
        let first = if timed_out { 0 } else { 1 };
        if signals::count() > first || told.is_some_and(|deadline| now >= deadline) {
            child.kill();
            let code = signals::received().map_or(EXIT_FAILED, signals::exit_code);
            return Ok(Ended::Code(code));
        }
        let until = told.or(limit);
        let left = until.map(|until| until.saturating_duration_since(now));
        let left = left.map(|left| TimeSpec::from_duration(left.max(Duration::from_millis(1))));
        let mut polled = [PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN)];
        // Signals and the time are looked at above.
        let _ = ppoll(&mut polled, left, Some(mask));
        let [polled] = polled;
        if polled.revents().is_some_and(|events| !events.is_empty()) {
            let code = child.reap()?;
            return Ok(if timed_out && code == 0 {
                Ended::Timeout
            } else {
                Ended::Code(code)
            });
        }
    }
}
