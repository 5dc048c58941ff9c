//! SIGINT, SIGTERM and SIGHUP: a flag in both processes, set by one handler.
//!
//! A terminal sends SIGINT, and SIGHUP when it is closed, to broker and worker; the
//! broker passes on what it gets. In the worker any number of them means *cancel*; only the broker counts.

use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask,
};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

/// Set once a signal came: the operation is to end.
pub static CANCEL: AtomicBool = AtomicBool::new(false);
/// The first signal; 0 before.
static FIRST: AtomicI32 = AtomicI32::new(0);
/// How many came.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// The signals that cancel.
const CANCELLING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

extern "C" fn on_signal(signal: libc::c_int) {
    let _ = FIRST.compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed);
    COUNT.fetch_add(1, Ordering::Relaxed);
    CANCEL.store(true, Ordering::Relaxed);
}

/// The first cancelling signal that this process received.
pub fn received() -> Option<i32> {
    Some(FIRST.load(Ordering::Relaxed)).filter(|signal| *signal != 0)
}

/// How many cancelling signals this process received.
pub fn count() -> u32 {
    COUNT.load(Ordering::Relaxed)
}

/// Exit code of a process that `signal` ended: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP.
pub fn exit_code(signal: i32) -> u8 {
    u8::try_from(signal).unwrap_or(0).saturating_add(128)
}

/// Blocks the cancelling signals and installs the handler; the mask from before.
///
/// A signal that the parent process ignores (`nohup`, a background job) stays ignored.
/// A write past the limit on file sizes (`ulimit -f`) fails instead of ending the process.
///
/// # Errors
/// The system call's error.
pub fn install() -> nix::Result<SigSet> {
    let blocked = SigSet::from_iter(CANCELLING);
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&blocked), Some(&mut before))?;
    let action = SigAction::new(
        SigHandler::Handler(on_signal),
        SaFlags::empty(),
        SigSet::empty(),
    );
    for signal in CANCELLING {
        // SAFETY: the handler only touches atomics, so it may run at any point.
        let old = unsafe { sigaction(signal, &action) }?;
        if matches!(old.handler(), SigHandler::SigIgn) {
            // SAFETY: this puts back an action that was there before.
            unsafe { sigaction(signal, &old) }?;
        }
    }
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler is installed.
    unsafe { sigaction(Signal::SIGXFSZ, &ignore) }?;
    Ok(before)
}

/// Sets the signal mask of the calling thread.
///
/// # Errors
/// The system call's error.
pub fn set_mask(mask: &SigSet) -> nix::Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), None)
}
