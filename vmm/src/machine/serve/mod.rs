//! A disk for other programs' guests: the back end of vhost-user-blk.
//!
//! QEMU or another VMM, the *front end*, connects to a socket, shares its guest's memory, and says where the ring is. The
//! device is the one that machines have; only who places its queue and how its driver is told differ. One thread serves
//! socket and ring; what sleeps goes to I/O threads. The front end is not trusted with more than the disk.

mod front;
mod memory;

use super::disk::Disks;
use super::disk::store::Served;
use crate::VmError;
use crate::live::asking::HOLD;
use crate::memory::GuestSlot;
use crate::threads::{Begun, Confine, ThreadKind};
use front::Front;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vhost::vhost_user::{BackendReqHandler, Error};
use vm_memory::GuestMemoryMmap;

/// [`HOLD`], for a wait.
#[allow(clippy::cast_possible_wrap)] // milliseconds
const HELD: Timespec = Timespec {
    tv_sec: HOLD.as_secs() as i64,
    tv_nsec: HOLD.subsec_nanos() as i64,
};

/// A disk that is served at a socket.
#[derive(Debug)]
pub struct Server {
    front: Arc<Mutex<Front>>,
    disks: Disks,
    listener: UnixListener,
    stop: OwnedFd,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// The front end has gone.
    Gone,
    /// The server is to end.
    Stopped,
}

impl Server {
    /// Serves `disk` to whoever connects to `listener`, one after the other, until `stop` is readable.
    ///
    /// # Errors
    /// [`VmError::Start`]: no more descriptors. [`VmError::Source`]: it is no disk.
    pub fn new(disk: Served, listener: UnixListener, stop: OwnedFd) -> Result<Self, VmError> {
        let disks = Disks::new(1)?;
        let memory = GuestSlot::shared(GuestMemoryMmap::default());
        let made = disks.device(0, disk, &memory)?;
        Ok(Self {
            front: Arc::new(Mutex::new(Front::new(made))),
            disks,
            listener,
            stop,
        })
    }

    /// Starts the threads, confines them and the calling one, and serves until it is told to stop. What was written is
    /// then durable.
    ///
    /// # Errors
    /// The threads could not be started or confined, or nobody can connect any more. [`VmError::Source`]: who reads the
    /// disk's image has ended, or answers what cannot be.
    pub fn run(self, confine: &Confine) -> Result<(), VmError> {
        let begun = self.disks.begin(confine)?;
        begun.into_iter().try_for_each(Begun::wait)?;
        confine(ThreadKind::Device).map_err(failed)?;
        while let Some(stream) = self.next()? {
            let left = self.serve(stream);
            self.front().hang_up();
            if left? == Left::Stopped {
                break;
            }
        }
        let synced = self.front().sync();
        self.look_for_the_source()?;
        synced.map_err(failed)
    }

    /// Whether there still is who answers for the disk's map.
    fn look_for_the_source(&self) -> Result<(), VmError> {
        let gone = self.front().gone();
        gone.map_or(Ok(()), |gone| Err(VmError::Source(gone)))
    }

    /// The next connection; none if the server is to end.
    fn next(&self) -> Result<Option<UnixStream>, VmError> {
        let answers = self.front().answers();
        loop {
            let longest = self.longest_wait();
            let descriptors = [
                Some(self.stop.as_fd()),
                answers.as_deref().map(AsFd::as_fd),
                Some(self.listener.as_fd()),
            ];
            let [stopped, answered, connected] = wait(descriptors, longest).map_err(failed)?;
            if stopped {
                return Ok(None);
            }
            if answered || longest.is_some() {
                self.front().complete(answered);
                self.look_for_the_source()?;
            }
            if connected {
                match self.listener.accept() {
                    Ok((stream, _)) => return Ok(Some(stream)),
                    Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock) => {}
                    // Whoever wanted to connect has gone.
                    Err(e) if e.raw_os_error() == Some(libc::ECONNABORTED) => {}
                    Err(e) => return Err(failed(e)),
                }
            }
        }
    }

    /// Serves a connection until it or the server ends.
    fn serve(&self, stream: UnixStream) -> Result<Left, VmError> {
        let mut requests = BackendReqHandler::from_stream(stream, Arc::clone(&self.front));
        let finished = self.front().finished();
        let answers = self.front().answers();
        loop {
            let kick = self.front().kick_event();
            // SAFETY: the handler, which owns the descriptor, outlives the wait.
            let socket = unsafe { BorrowedFd::borrow_raw(requests.as_raw_fd()) };
            // SAFETY: the event lives as long as `finished`.
            let event = unsafe { BorrowedFd::borrow_raw(finished.event().as_raw_fd()) };
            let longest = self.longest_wait();
            let descriptors = [
                Some(self.stop.as_fd()),
                Some(event),
                answers.as_deref().map(AsFd::as_fd),
                kick.as_deref().map(AsFd::as_fd),
                Some(socket),
            ];
            let [stopped, done, answered, kicked, asked] =
                wait(descriptors, longest).map_err(failed)?;
            if stopped {
                return Ok(Left::Stopped);
            }
            if done {
                let _ = finished.event().read();
            }
            if done || answered || longest.is_some() {
                self.front().complete(answered);
                self.look_for_the_source()?;
            }
            if kicked {
                self.front().kicked();
            }
            if asked {
                match requests.handle_request() {
                    Ok(()) | Err(Error::SocketRetry(_)) => {}
                    // It has gone, or breaks the protocol, which ends the connection.
                    Err(_) => return Ok(Left::Gone),
                }
            }
        }
    }

    /// How long nothing may happen before the device is looked at again.
    fn longest_wait(&self) -> Option<Timespec> {
        self.front().holds().then_some(HELD)
    }

    fn front(&self) -> MutexGuard<'_, Front> {
        self.front.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failed(source: io::Error) -> VmError {
    VmError::Start {
        what: "the disk's server",
        source,
    }
}

/// Waits until one of the descriptors has something to say, or for so long; which of them have.
fn wait<const N: usize>(
    descriptors: [Option<BorrowedFd<'_>>; N],
    longest: Option<Timespec>,
) -> io::Result<[bool; N]> {
    let Some(any) = descriptors.iter().flatten().next().copied() else {
        return Ok([false; N]);
    };
    // In the place of those that are not there: nothing is asked of it.
    let mut polled = descriptors.map(|descriptor| match descriptor {
        Some(descriptor) => PollFd::from_borrowed_fd(descriptor, PollFlags::IN),
        None => PollFd::from_borrowed_fd(any, PollFlags::empty()),
    });
    match poll(&mut polled, longest.as_ref()) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok([false; N]),
        Err(e) => return Err(e.into()),
    }
    let mut ready = [false; N];
    for ((ready, descriptor), polled) in ready.iter_mut().zip(descriptors).zip(&polled) {
        *ready = descriptor.is_some() && !polled.revents().is_empty();
    }
    Ok(ready)
}

#[cfg(test)]
mod tests;
