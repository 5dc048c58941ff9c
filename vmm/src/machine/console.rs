//! virtio-console on a line of the user's.

use super::events::{BACKEND_EVENT, QueueEvents, Wired, watch};
use super::output::HostOutput;
use super::parts::Line;
use super::terminal::Keys;
use crate::VmError;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use instar_devices::console::{Output, Size, VirtioConsole};
use instar_devices::virtio::{Notify, SharedDevice, VirtioDevice};
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::{Arc, Mutex, PoisonError};

const INPUT: u32 = BACKEND_EVENT;
const ROOM: u32 = BACKEND_EVENT + 1;
const RESIZED: u32 = BACKEND_EVENT + 2;
/// Input that is read at once, in bytes.
const INPUT_BYTES: usize = 512;

/// Makes a console of `line`; `keys` say what the guest gets of what was typed.
///
/// If the line is a terminal, the signal that its size has changed (`SIGWINCH`) is blocked from here on, in this thread
/// and those that it starts, and taken by the console.
///
/// # Errors
/// [`VmError::Start`]: no more descriptors.
pub fn wire(line: Line, keys: Keys) -> Result<Wired, VmError> {
    let output = line.output.map(HostOutput::new);
    let input = line.input.map(File::from);
    let mut resized = None;
    if line.terminal {
        resized = Some(resizes().map_err(|source| VmError::Start {
            what: "a console",
            source,
        })?);
    }
    let size = line_size(output.as_ref(), input.as_ref());
    let to: Box<dyn Output> = match &output {
        Some(output) => Box::new(output.clone()),
        None => Box::new(Nowhere),
    };
    let device = Arc::new(Mutex::new(VirtioConsole::new(to, size)));
    let shared: SharedDevice = device.clone();
    let queues = QueueEvents::of(&shared)?;
    let subscriber = ConsoleEvents {
        device,
        queues: Arc::clone(&queues),
        output,
        awaits_room: false,
        input,
        ended: false,
        watched: Watched::Off,
        keys,
        resized,
    };
    Ok(Wired {
        device: shared,
        queues,
        subscriber: Box::new(subscriber),
    })
}

/// Output that nobody wants.
#[derive(Debug)]
struct Nowhere;

impl Output for Nowhere {
    fn write(&mut self, bytes: &[u8]) -> usize {
        bytes.len()
    }
}

/// Whether input wakes the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watched {
    /// No: the guest wants none now.
    Off,
    /// Yes.
    On,
    /// It cannot: it is a file, which always has more, up to its end.
    Never,
}

/// What wakes a console.
struct ConsoleEvents {
    device: Arc<Mutex<VirtioConsole>>,
    queues: Arc<QueueEvents>,
    output: Option<HostOutput>,
    awaits_room: bool,
    input: Option<File>,
    /// Nothing comes any more.
    ended: bool,
    watched: Watched,
    keys: Keys,
    /// Readable when the terminal has another size.
    resized: Option<File>,
}

impl fmt::Debug for ConsoleEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut events = f.debug_struct("ConsoleEvents");
        events.field("device", &self.device).finish_non_exhaustive()
    }
}

impl ConsoleEvents {
    /// Reads what the guest wants, once; false if it wants nothing or there was nothing.
    fn read(&mut self, device: &mut VirtioConsole) -> bool {
        let Some(input) = self.input.as_mut().filter(|_| !self.ended) else {
            return false;
        };
        let mut typed = [0; INPUT_BYTES];
        let wanted = device.wants_input().min(INPUT_BYTES);
        let room = typed.get_mut(..wanted).unwrap_or_default();
        if room.is_empty() {
            return false;
        }
        match input.read(room) {
            Ok(len @ 1..) => {
                let typed = typed.get(..len).unwrap_or_default();
                device.input(&self.keys.filter(typed));
                true
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => false,
            // Its other end is closed.
            Ok(_) | Err(_) => {
                self.ended = true;
                false
            }
        }
    }

    /// Watches what there is to wait for, and only that.
    fn settle(&mut self, device: &mut VirtioConsole, ops: &mut EventOps) {
        while self.watched == Watched::Never && self.read(device) {}
        let wanted = device.wants_input() > 0 && !self.ended;
        if let Some(input) = &self.input {
            let events = Events::with_data(input, INPUT, EventSet::IN);
            match (self.watched, wanted) {
                (Watched::Off, true) => {
                    let added = ops.add(events).is_ok();
                    self.watched = if added { Watched::On } else { Watched::Never };
                    if !added {
                        while self.read(device) {}
                    }
                }
                (Watched::On, false) => {
                    let _ = ops.remove(events);
                    self.watched = Watched::Off;
                }
                _ => {}
            }
        }
        let waits = device.is_waiting();
        if let Some(output) = &self.output
            && waits != self.awaits_room
        {
            let events = Events::with_data(output, ROOM, EventSet::OUT);
            let changed = if waits {
                ops.add(events)
            } else {
                ops.remove(events)
            };
            self.awaits_room = if changed.is_ok() { waits } else { false };
        }
    }
}

impl MutEventSubscriber for ConsoleEvents {
    fn init(&mut self, ops: &mut EventOps) {
        self.queues.watch(ops);
        if let Some(resized) = &self.resized {
            watch(ops, Events::with_data(resized, RESIZED, EventSet::IN));
        }
        let device = Arc::clone(&self.device);
        let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
        self.settle(&mut device, ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let device = Arc::clone(&self.device);
        let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = self.queues.notified(events) {
            device.kick(index);
            if device.has_more(index) {
                self.queues.notify(index);
            }
        }
        match events.data() {
            INPUT => {
                self.read(&mut device);
            }
            ROOM => device.send(),
            RESIZED => {
                let mut signal = [0; SIGNAL_BYTES];
                let _ = self.resized.as_mut().map(|file| file.read(&mut signal));
                device.resize(line_size(self.output.as_ref(), self.input.as_ref()));
            }
            _ => {}
        }
        self.settle(&mut device, ops);
    }
}

/// Length of `struct signalfd_siginfo`.
const SIGNAL_BYTES: usize = size_of::<libc::signalfd_siginfo>();

/// A descriptor that is readable when the terminal has another size.
fn resizes() -> io::Result<File> {
    let mut set = std::mem::MaybeUninit::uninit();
    let flags = libc::SFD_NONBLOCK | libc::SFD_CLOEXEC;
    // SAFETY: the set is emptied before it is used; the signal that is blocked is ignored otherwise.
    let fd = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGWINCH);
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
        libc::signalfd(-1, set.as_ptr(), flags)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Size of the terminal that the line is; zeros if it is none.
fn line_size(output: Option<&HostOutput>, input: Option<&File>) -> Size {
    let output = output.map(AsRawFd::as_raw_fd);
    let either = output.into_iter().chain(input.map(AsRawFd::as_raw_fd));
    either.filter_map(terminal_size).next().unwrap_or_default()
}

fn terminal_size(fd: std::os::fd::RawFd) -> Option<Size> {
    let mut size = std::mem::MaybeUninit::<libc::winsize>::zeroed();
    // SAFETY: the call writes one `winsize`, or nothing; zeros are one too.
    let (result, size) = unsafe {
        let result = libc::ioctl(fd, libc::TIOCGWINSZ, size.as_mut_ptr());
        (result, size.assume_init())
    };
    (result == 0).then_some(Size {
        columns: size.ws_col,
        rows: size.ws_row,
    })
}

#[cfg(test)]
mod tests;
