//! Threads beside the first vCPU's: confined before they do anything, and deaf to signals.

use crate::VmError;
use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

/// Stack of a thread: it does little more than one system call at a time.
const STACK_BYTES: usize = 256 << 10;

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// Moves bytes between files and guest memory.
    Io,
    /// Runs a vCPU of an operation.
    Vcpu,
    /// Runs a vCPU of a full machine and serves the accesses of its guest to registers.
    MachineVcpu,
    /// Serves devices of a full machine.
    Device,
    /// The first thread of a full machine's process.
    Machine,
}

impl ThreadKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Io => "an I/O thread",
            Self::Vcpu => "a further vCPU",
            Self::MachineVcpu => "a vCPU",
            Self::Device => "a device's thread",
            Self::Machine => "the machine",
        }
    }
}

/// Gives up, on the calling thread, what a thread of this kind does not need.
pub type Confine = Arc<dyn Fn(ThreadKind) -> io::Result<()> + Send + Sync>;

/// Starts a thread, and returns when it has made its value by `prepare` and is confined. All signals are
/// blocked in it.
///
/// # Errors
/// [`VmError::Start`], or what `prepare` says.
pub fn spawn<T: 'static>(
    kind: ThreadKind,
    confine: &Confine,
    prepare: impl FnOnce() -> Result<T, VmError> + Send + 'static,
    body: impl FnOnce(T) + Send + 'static,
) -> Result<(), VmError> {
    begin(kind, confine, prepare, body)?.wait()
}

/// A thread that is about to make its value and to be confined.
#[derive(Debug)]
#[must_use = "whether it came about is not known before the wait"]
pub struct Begun {
    kind: ThreadKind,
    told: Receiver<Result<(), VmError>>,
}

impl Begun {
    /// Returns when the thread has made its value and is confined.
    ///
    /// # Errors
    /// [`VmError::Start`], or what `prepare` says.
    pub fn wait(self) -> Result<(), VmError> {
        let ended = || VmError::Start {
            what: self.kind.name(),
            source: io::ErrorKind::BrokenPipe.into(),
        };
        self.told.recv().map_err(|_| ended())?
    }
}

/// As [`spawn`], but returns at once.
///
/// # Errors
/// [`VmError::Start`].
pub fn begin<T: 'static>(
    kind: ThreadKind,
    confine: &Confine,
    prepare: impl FnOnce() -> Result<T, VmError> + Send + 'static,
    body: impl FnOnce(T) + Send + 'static,
) -> Result<Begun, VmError> {
    let failed = move |source| VmError::Start {
        what: kind.name(),
        source,
    };
    let (tell, told) = sync_channel(1);
    let confine = Arc::clone(confine);
    let thread = move || {
        let prepared = prepare().and_then(|value| {
            confine(kind).map_err(failed)?;
            Ok(value)
        });
        match prepared {
            Ok(value) => {
                let _ = tell.send(Ok(()));
                drop(tell);
                body(value);
            }
            Err(error) => {
                let _ = tell.send(Err(error));
            }
        }
    };
    let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
    without_signals(|| builder.spawn(thread)).map_err(failed)?;
    Ok(Begun { kind, told })
}

/// Calls `work` with all signals blocked, which a thread started in it inherits.
fn without_signals<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let mut old = MaybeUninit::uninit();
    // SAFETY: `all` is filled before it is used, and `old` is written if the call succeeds.
    let blocked = unsafe {
        let mut all = MaybeUninit::uninit();
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), old.as_mut_ptr())
    };
    if blocked != 0 {
        return Err(io::Error::from_raw_os_error(blocked));
    }
    let result = work();
    // SAFETY: the call above wrote `old`.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, old.as_ptr(), std::ptr::null_mut()) };
    result
}
