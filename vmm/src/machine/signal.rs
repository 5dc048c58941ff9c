//! The signal that takes a vCPU out of the guest.
//!
//! Its handler sets the byte that has `KVM_RUN` return at once, so that a signal between two looks and the guest is not
//! lost. Documentation/virt/kvm/api.rst, `immediate_exit`.

use crate::VmError;
use std::cell::Cell;
use std::io;

thread_local! {
    // Constant and without a destructor, so that the handler may use it.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

extern "C" fn on_signal(_: libc::c_int) {
    IMMEDIATE_EXIT.with(|byte| {
        let byte = byte.get();
        if !byte.is_null() {
            // SAFETY: set by the thread that runs the vCPU of this byte, and taken back before the vCPU goes. KVM may
            // read it at any time.
            unsafe { byte.write_volatile(1) };
        }
    });
}

/// Takes back that this thread's vCPU is to return at once, before it goes into the guest.
pub fn clear() {
    IMMEDIATE_EXIT.with(|byte| {
        let byte = byte.get();
        if !byte.is_null() {
            // SAFETY: as in the handler.
            unsafe { byte.write_volatile(0) };
        }
    });
}

/// This thread has no vCPU any more.
pub fn forget() {
    IMMEDIATE_EXIT.set(std::ptr::null_mut());
}

/// Installs the handler, for all threads of the process.
///
/// # Errors
/// [`VmError::Start`].
pub fn install() -> Result<(), VmError> {
    // SAFETY: an all-zero sigaction is valid; the handler is async-signal-safe (one store).
    let installed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as libc::sighandler_t;
        libc::sigaction(number(), &raw const action, std::ptr::null_mut())
    };
    match installed {
        0 => Ok(()),
        _ => Err(failed(io::Error::last_os_error())),
    }
}

/// A vCPU's thread, to be taken out of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kick {
    process: libc::pid_t,
    thread: libc::pid_t,
}

impl Kick {
    /// The calling thread, which lets the signal through from now on; `immediate_exit` is its vCPU's byte, and must be
    /// valid until [`forget`].
    ///
    /// # Errors
    /// [`VmError::Start`].
    pub fn of_this_thread(immediate_exit: *mut u8) -> Result<Self, VmError> {
        IMMEDIATE_EXIT.set(immediate_exit);
        // SAFETY: the set is filled before it is used; the other calls have no conditions.
        let (unblocked, process, thread) = unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, number());
            let unblocked =
                libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
            (unblocked, libc::getpid(), libc::gettid())
        };
        match unblocked {
            0 => Ok(Self { process, thread }),
            error => Err(failed(io::Error::from_raw_os_error(error))),
        }
    }

    /// Sends the signal. The thread must be there: its number may be another's later.
    pub fn send(&self) {
        // SAFETY: a system call that takes three numbers.
        unsafe { libc::syscall(libc::SYS_tgkill, self.process, self.thread, number()) };
    }
}

fn number() -> libc::c_int {
    libc::SIGRTMIN()
}

fn failed(source: io::Error) -> VmError {
    VmError::Start {
        what: "a vCPU",
        source,
    }
}
