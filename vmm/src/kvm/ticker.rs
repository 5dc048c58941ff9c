//! A timer signal that takes the vCPU out of the guest ten times a second.
//!
//! Limits and cancellation are looked at when it ticks. The handler only sets a
//! flag: a tick that comes between two runs is seen before the next one, and a
//! tick lost to the remaining race is made good by the one after it.

use crate::VmError;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

const PERIOD_US: i64 = 100_000;

static TICKED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_tick(_: libc::c_int) {
    TICKED.store(true, Ordering::Relaxed);
}

/// Whether it ticked since the last call.
pub fn take() -> bool {
    TICKED.load(Ordering::Relaxed) && TICKED.swap(false, Ordering::Relaxed)
}

/// Starts the timer of this process.
pub fn start() -> Result<(), VmError> {
    let fail = || VmError::Start {
        what: "the vCPU timer",
        source: io::Error::last_os_error(),
    };
    // SAFETY: an all-zero sigaction is valid; the handler is async-signal-safe (one atomic store).
    let installed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_tick as *const () as libc::sighandler_t;
        libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut())
    };
    let period = libc::timeval {
        tv_sec: 0,
        tv_usec: PERIOD_US,
    };
    let timer = libc::itimerval {
        it_interval: period,
        it_value: period,
    };
    // SAFETY: a valid timer value and no old one wanted.
    let armed =
        unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
    if installed == 0 && armed == 0 {
        Ok(())
    } else {
        Err(fail())
    }
}
