//! The calls themselves. Each does its work by the system call, so that nothing is found twice.

use crate::recording;
use libc::{c_int, c_uint, iovec, off_t, ssize_t};
use std::sync::atomic::{AtomicU64, Ordering};

/// What is to happen at a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Pass,
    Fail(c_int),
    Kill,
    Tear,
}

/// No call.
const NEVER: u64 = u64::MAX;
/// Fates that are no errno.
const KILL: u64 = 1 << 32;
const TEAR: u64 = 1 << 33;
/// All calls from the one on.
const LASTING: u64 = 1 << 34;

static NTH: AtomicU64 = AtomicU64::new(NEVER);
static FATE: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicU64 = AtomicU64::new(0);

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

/// Reads the variables when the library is loaded.
extern "C" fn start() {
    if let Ok(path) = std::env::var("INSTAR_TEST_RECORD") {
        recording::start(&path).expect("the recording cannot be made");
    }
    let Ok(fault) = std::env::var("INSTAR_TEST_FAULT") else {
        return;
    };
    let (nth, fate) = fault.split_once(':').expect("INSTAR_TEST_FAULT is N:WHAT");
    let (nth, lasting) = match nth.strip_suffix('+') {
        Some(nth) => (nth, LASTING),
        None => (nth, 0),
    };
    let fate = match fate {
        "kill" => KILL,
        "tear" => TEAR,
        errno => errno.parse().expect("INSTAR_TEST_FAULT has no errno"),
    };
    FATE.store(fate | lasting, Ordering::Relaxed);
    NTH.store(
        nth.parse().expect("INSTAR_TEST_FAULT has no number"),
        Ordering::Relaxed,
    );
}

fn fate() -> Fate {
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let (nth, fate) = (NTH.load(Ordering::Relaxed), FATE.load(Ordering::Relaxed));
    if count != nth && (count < nth || fate & LASTING == 0) {
        return Fate::Pass;
    }
    match fate & !LASTING {
        KILL => Fate::Kill,
        TEAR => Fate::Tear,
        errno => Fate::Fail(c_int::try_from(errno).unwrap_or(libc::EIO)),
    }
}

/// Ends the process without a system call, which its filter would not allow.
fn die() -> ! {
    loop {
        // SAFETY: the process is to end here, by the fault that this is.
        unsafe { std::ptr::null_mut::<u8>().write_volatile(0) };
    }
}

fn fail(errno: c_int) -> i64 {
    // SAFETY: the address of this thread's errno is always valid.
    unsafe { *libc::__errno_location() = errno };
    -1
}

/// Does `call` unless it is to fail.
fn guarded(call: impl FnOnce() -> i64) -> i64 {
    match fate() {
        Fate::Pass => call(),
        Fate::Fail(errno) => fail(errno),
        Fate::Kill | Fate::Tear => die(),
    }
}

/// # Safety
/// As `pwritev(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwritev(
    fd: c_int,
    iov: *const iovec,
    count: c_int,
    offset: off_t,
) -> ssize_t {
    let vectors = usize::try_from(count).unwrap_or(0);
    // SAFETY: the caller promises `count` vectors that are valid for reads.
    let vectors = unsafe { std::slice::from_raw_parts(iov, vectors) };
    let parts: Vec<&[u8]> = vectors
        .iter()
        // SAFETY: as above.
        .map(|v| unsafe { std::slice::from_raw_parts(v.iov_base.cast(), v.iov_len) })
        .collect();
    let start = u64::try_from(offset).unwrap_or(0);
    match fate() {
        Fate::Pass => {}
        Fate::Fail(errno) => return ssize_t::try_from(fail(errno)).unwrap_or(-1),
        Fate::Kill => die(),
        Fate::Tear => {
            if let Some(first) = parts.first() {
                let half = (first.len() / 2).next_multiple_of(512).min(first.len());
                // SAFETY: the first vector is valid for `half` bytes.
                unsafe {
                    libc::syscall(
                        libc::SYS_pwritev,
                        fd,
                        &half_of(&vectors[0], half),
                        1,
                        offset,
                        0,
                    )
                };
            }
            die();
        }
    }
    recording::write(fd, start, &parts);
    // SAFETY: the caller's promise.
    let n = unsafe { libc::syscall(libc::SYS_pwritev, fd, iov, count, offset, 0) };
    ssize_t::try_from(n).unwrap_or(-1)
}

fn half_of(vector: &iovec, half: usize) -> iovec {
    iovec {
        iov_base: vector.iov_base,
        iov_len: half,
    }
}

/// # Safety
/// As `pwritev(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwritev64(
    fd: c_int,
    iov: *const iovec,
    count: c_int,
    offset: off_t,
) -> ssize_t {
    // SAFETY: the caller's promise.
    unsafe { pwritev(fd, iov, count, offset) }
}

/// As `fdatasync(2)`.
#[unsafe(no_mangle)]
pub extern "C" fn fdatasync(fd: c_int) -> c_int {
    let result = guarded(|| {
        // SAFETY: takes a number only.
        unsafe { libc::syscall(libc::SYS_fdatasync, fd) }
    });
    if result == 0 {
        recording::flush(fd);
    }
    c_int::try_from(result).unwrap_or(-1)
}

/// As `ftruncate(2)`.
#[unsafe(no_mangle)]
pub extern "C" fn ftruncate(fd: c_int, len: off_t) -> c_int {
    let result = guarded(|| {
        // SAFETY: takes numbers only.
        unsafe { libc::syscall(libc::SYS_ftruncate, fd, len) }
    });
    if result == 0 {
        recording::set_len(fd, u64::try_from(len).unwrap_or(0));
    }
    c_int::try_from(result).unwrap_or(-1)
}

/// As `ftruncate(2)`.
#[unsafe(no_mangle)]
pub extern "C" fn ftruncate64(fd: c_int, len: off_t) -> c_int {
    ftruncate(fd, len)
}

/// As `fallocate(2)`.
#[unsafe(no_mangle)]
pub extern "C" fn fallocate(fd: c_int, mode: c_int, offset: off_t, len: off_t) -> c_int {
    let result = guarded(|| {
        // SAFETY: takes numbers only.
        unsafe { libc::syscall(libc::SYS_fallocate, fd, mode, offset, len) }
    });
    if result == 0 {
        let [mode, offset, len] =
            [i64::from(mode), offset, len].map(|n| u64::try_from(n).unwrap_or(0));
        recording::reserve(fd, mode, offset, len);
    }
    c_int::try_from(result).unwrap_or(-1)
}

/// As `fallocate(2)`.
#[unsafe(no_mangle)]
pub extern "C" fn fallocate64(fd: c_int, mode: c_int, offset: off_t, len: off_t) -> c_int {
    fallocate(fd, mode, offset, len)
}

/// As `copy_file_range(2)`; not recorded.
///
/// # Safety
/// As `copy_file_range(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn copy_file_range(
    from: c_int,
    from_at: *mut off_t,
    to: c_int,
    to_at: *mut off_t,
    len: usize,
    flags: c_uint,
) -> ssize_t {
    let result = guarded(|| {
        // SAFETY: the caller's promise.
        unsafe {
            libc::syscall(
                libc::SYS_copy_file_range,
                from,
                from_at,
                to,
                to_at,
                len,
                flags,
            )
        }
    });
    ssize_t::try_from(result).unwrap_or(-1)
}
