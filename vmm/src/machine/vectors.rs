//! Moves bytes between descriptors and guest memory, in place.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use vm_memory::VolatileSlice;

/// Most I/O vectors of one system call (`UIO_MAXIOV`).
const MAX_IOVECS: usize = 1024;

/// Place for the vectors of one system call, on the stack: a packet takes no memory from the heap.
type Iovecs = [MaybeUninit<libc::iovec>; MAX_IOVECS];

const fn room() -> Iovecs {
    [const { MaybeUninit::uninit() }; MAX_IOVECS]
}

/// Writes the vectors of as many slices as one call takes, from the first place on; how many there are.
fn gather<'a>(room: &mut Iovecs, slices: impl IntoIterator<Item = VolatileSlice<'a>>) -> usize {
    let mut count = 0_usize;
    for (place, slice) in room.iter_mut().zip(slices) {
        place.write(libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        });
        count = count.saturating_add(1);
    }
    count
}

fn outcome(n: isize) -> io::Result<usize> {
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Reads into guest memory, in order: one `readv`.
///
/// # Errors
/// What the system says.
pub fn read(fd: impl AsFd, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let mut iovecs = room();
    let count = gather(&mut iovecs, into.iter().copied());
    let count = i32::try_from(count).map_err(|_| io::ErrorKind::InvalidInput)?;
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: the first `count` vectors were written, and each lies in memory that the slices borrow during the call; the
    // guest may see or change the bytes at any time, which plain memory allows.
    outcome(unsafe { libc::readv(fd, iovecs.as_ptr().cast(), count) })
}

/// Writes from guest memory, in order: one `writev`.
///
/// # Errors
/// What the system says.
pub fn write(fd: impl AsFd, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let mut iovecs = room();
    let count = gather(&mut iovecs, from.iter().copied());
    let count = i32::try_from(count).map_err(|_| io::ErrorKind::InvalidInput)?;
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: as in `read`; whichever bytes the guest puts there meanwhile are written.
    outcome(unsafe { libc::writev(fd, iovecs.as_ptr().cast(), count) })
}

/// As [`write()`], to a socket whose peer may be gone: no signal.
///
/// # Errors
/// What the system says.
pub fn send<'a>(
    socket: impl AsFd,
    from: impl IntoIterator<Item = VolatileSlice<'a>>,
) -> io::Result<usize> {
    let mut iovecs = room();
    let count = gather(&mut iovecs, from);
    // SAFETY: all zeros are a valid `msghdr`: no name, no vectors, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_mut_ptr().cast();
    // The type differs between C libraries.
    #[allow(clippy::useless_conversion, clippy::unnecessary_fallible_conversions)]
    {
        message.msg_iovlen = count.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
    }
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: as in `read`, and the header and its vectors live during the call.
    outcome(unsafe { libc::sendmsg(fd, &raw const message, libc::MSG_NOSIGNAL) })
}
