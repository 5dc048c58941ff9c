//! A timer signal that takes the vCPU out of the guest ten times a second; of further vCPUs, one for each.
//!
//! Limits and cancellation are looked at when it ticks. The handler only sets a
//! flag: a tick that comes between two runs is seen before the next one, and a
//! tick lost to the remaining race is made good by the one after it.

use crate::VmError;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

const PERIOD_US: i64 = 100_000;

thread_local! {
    // Constant and without a destructor, so that the handler may use it.
    static TICKED: AtomicBool = const { AtomicBool::new(false) };
}

extern "C" fn on_tick(_: libc::c_int) {
    TICKED.with(|ticked| ticked.store(true, Ordering::Relaxed));
}

/// Whether it ticked on this thread since the last call.
pub fn take() -> bool {
    TICKED.with(|ticked| ticked.load(Ordering::Relaxed) && ticked.swap(false, Ordering::Relaxed))
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

/// Starts a timer whose signals go to the calling thread, which runs a vCPU from 1 on. The signal is
/// let through, and handled as [`start`] has set up.
pub fn start_on_thread() -> Result<(), VmError> {
    let fail = |source| VmError::Start {
        what: "the timer of a further vCPU",
        source,
    };
    let every = libc::timespec {
        tv_sec: 0,
        tv_nsec: PERIOD_US * 1000,
    };
    let period = libc::itimerspec {
        it_interval: every,
        it_value: every,
    };
    // SAFETY: an all-zero sigevent is valid, and then names this thread; the timer is a local that the
    // first call fills and the second one uses. The set is filled before it is used.
    let outcomes = unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGALRM;
        event.sigev_notify_thread_id = libc::gettid();
        let mut timer = std::mem::zeroed();
        let made = libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer);
        if made != 0 {
            return Err(fail(io::Error::last_os_error()));
        }
        let armed = libc::timer_settime(timer, 0, &raw const period, std::ptr::null_mut());
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGALRM);
        let unblocked =
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
        (armed, unblocked)
    };
    match outcomes {
        (0, 0) => Ok(()),
        (0, error) => Err(fail(io::Error::from_raw_os_error(error))),
        _ => Err(fail(io::Error::last_os_error())),
    }
}
