//! Moves bytes between descriptors and guest memory, in place.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use vm_memory::VolatileSlice;

/// Most I/O vectors of one system call (`UIO_MAXIOV`).
const MAX_IOVECS: usize = 1024;

fn iovecs(slices: &[VolatileSlice<'_>]) -> Vec<libc::iovec> {
    let iovec = |slice: &VolatileSlice<'_>| libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    };
    slices.iter().take(MAX_IOVECS).map(iovec).collect()
}

fn outcome(n: isize) -> io::Result<usize> {
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Reads into guest memory, in order: one `readv`.
///
/// # Errors
/// What the system says.
pub fn read(fd: impl AsFd, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let iovecs = iovecs(into);
    let count = i32::try_from(iovecs.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: every vector lies in memory that the slices borrow during the call; the guest may see or change the
    // bytes at any time, which plain memory allows.
    outcome(unsafe { libc::readv(fd, iovecs.as_ptr(), count) })
}

/// Writes from guest memory, in order: one `writev`.
///
/// # Errors
/// What the system says.
pub fn write(fd: impl AsFd, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let iovecs = iovecs(from);
    let count = i32::try_from(iovecs.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: as in `read`; whichever bytes the guest puts there meanwhile are written.
    outcome(unsafe { libc::writev(fd, iovecs.as_ptr(), count) })
}

/// As [`write()`], to a socket whose peer may be gone: no signal.
///
/// # Errors
/// What the system says.
pub fn send(socket: impl AsFd, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let mut iovecs = iovecs(from);
    // SAFETY: all zeros are a valid `msghdr`: no name, no vectors, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_mut_ptr();
    // The type differs between C libraries.
    #[allow(clippy::useless_conversion, clippy::unnecessary_fallible_conversions)]
    {
        message.msg_iovlen = iovecs
            .len()
            .try_into()
            .map_err(|_| io::ErrorKind::InvalidInput)?;
    }
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: as in `read`, and the header and its vectors live during the call.
    outcome(unsafe { libc::sendmsg(fd, &raw const message, libc::MSG_NOSIGNAL) })
}
