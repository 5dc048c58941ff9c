//! The system calls that change a file, each once, as the C library has them.
//!
//! Linux has all of them. Elsewhere (macOS) a call that is not there says EOPNOTSUPP,
//! and zeros are written instead.

use std::fs::File;
use std::io::Error;
use std::os::fd::AsRawFd;

/// An errno of the host.
pub type Raw = i32;

fn last_errno() -> Raw {
    Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn check(result: libc::c_int) -> Result<(), Raw> {
    if result == 0 {
        Ok(())
    } else {
        Err(last_errno())
    }
}

fn signed(bytes: u64) -> Result<i64, Raw> {
    i64::try_from(bytes).map_err(|_| libc::EFBIG)
}

/// Writes the vectors at `offset`; says how many bytes were written.
///
/// # Safety
/// The vectors must be valid for reads; what they hold may change during the call.
pub unsafe fn write(file: &File, iovecs: &[libc::iovec], offset: u64) -> Result<u64, Raw> {
    let offset = signed(offset)?;
    let count = libc::c_int::try_from(iovecs.len()).map_err(|_| libc::EINVAL)?;
    // SAFETY: the caller's promise, for as many vectors as there are.
    let n = unsafe { libc::pwritev(file.as_raw_fd(), iovecs.as_ptr(), count, offset) };
    u64::try_from(n).map_err(|_| last_errno())
}

/// Reads into the vectors from `offset` on; says how many bytes there were, 0 at the end.
///
/// # Safety
/// The vectors must be valid for writes; what they hold may change during the call.
pub unsafe fn read(file: &File, iovecs: &[libc::iovec], offset: u64) -> Result<u64, Raw> {
    let offset = signed(offset)?;
    let count = libc::c_int::try_from(iovecs.len()).map_err(|_| libc::EINVAL)?;
    // SAFETY: the caller's promise, for as many vectors as there are.
    let n = unsafe { libc::preadv(file.as_raw_fd(), iovecs.as_ptr(), count, offset) };
    u64::try_from(n).map_err(|_| last_errno())
}

/// How long the file or block device is, in bytes.
pub fn len(file: &File) -> Result<u64, Raw> {
    let end = rustix::fs::seek(file, rustix::fs::SeekFrom::End(0));
    end.map_err(rustix::io::Errno::raw_os_error)
}

/// Makes the file exactly `len` bytes long.
pub fn set_len(file: &File, len: u64) -> Result<(), Raw> {
    let len = signed(len)?;
    // SAFETY: no memory is involved; the descriptor is open.
    check(unsafe { libc::ftruncate(file.as_raw_fd(), len) })
}

/// Makes what was written durable.
#[cfg(target_os = "linux")]
pub fn sync(file: &File) -> Result<(), Raw> {
    // SAFETY: no memory is involved; the descriptor is open.
    check(unsafe { libc::fdatasync(file.as_raw_fd()) })
}

/// Makes what was written durable.
#[cfg(not(target_os = "linux"))]
pub fn sync(file: &File) -> Result<(), Raw> {
    file.sync_data()
        .map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))
}

/// Copies up to `len` bytes between files, sharing blocks where the file system can; says how many.
#[cfg(target_os = "linux")]
pub fn copy(source: &File, from: u64, target: &File, to: u64, len: u64) -> Result<u64, Raw> {
    let (mut from, mut to) = (signed(from)?, signed(to)?);
    let len = usize::try_from(len).map_err(|_| libc::EINVAL)?;
    let (source, target) = (source.as_raw_fd(), target.as_raw_fd());
    // SAFETY: the offsets are locals that the call may change; both descriptors are open.
    let n = unsafe { libc::copy_file_range(source, &raw mut from, target, &raw mut to, len, 0) };
    u64::try_from(n).map_err(|_| last_errno())
}

/// Copies up to `len` bytes between files, sharing blocks where the file system can; says how many.
#[cfg(not(target_os = "linux"))]
pub fn copy(_: &File, _: u64, _: &File, _: u64, _: u64) -> Result<u64, Raw> {
    Err(libc::EOPNOTSUPP)
}

/// Whether a file's file system neither shares blocks nor has anybody else to copy them: the kernel's own copy goes by
/// single pages then, slower than reads and writes.
#[cfg(target_os = "linux")]
pub fn copies_page_by_page(file: &File) -> bool {
    /// ext2 to ext4 have one magic number.
    const EXT: u32 = 0xef53;
    const TMPFS: u32 = 0x0102_1994;
    let mut found = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the buffer is a live local of the size that the call fills; the descriptor is open.
    if unsafe { libc::fstatfs(file.as_raw_fd(), found.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: the call has succeeded, so it has filled the buffer.
    let kind = unsafe { found.assume_init() }.f_type;
    matches!(u32::try_from(kind), Ok(EXT | TMPFS))
}

/// The kernel's own copy is not used.
#[cfg(not(target_os = "linux"))]
pub fn copies_page_by_page(_: &File) -> bool {
    true
}

/// How [`range`] changes a range of a file or block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeCall {
    /// Reserves blocks; the file grows.
    Reserve,
    /// Gives blocks back: they read as zeros. The length stays.
    Punch,
    /// Zeros that keep their blocks. The length stays.
    ZeroBlocks,
    /// Tells a block device that sectors are no longer needed.
    DeviceDiscard,
    /// Lets a block device write zeros.
    DeviceZeros,
}

/// Changes `len` bytes from `offset` on.
#[cfg(target_os = "linux")]
pub fn range(file: &File, call: RangeCall, offset: u64, len: u64) -> Result<(), Raw> {
    /// `_IO(0x12, 119)`, `linux/fs.h`.
    const BLKDISCARD: libc::Ioctl = 0x1277;
    /// `_IO(0x12, 127)`, `linux/fs.h`.
    const BLKZEROOUT: libc::Ioctl = 0x127f;
    match call {
        RangeCall::Reserve => fallocate(file, 0, offset, len),
        RangeCall::Punch => {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            fallocate(file, mode, offset, len)
        }
        RangeCall::ZeroBlocks => {
            let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
            fallocate(file, mode, offset, len)
        }
        RangeCall::DeviceDiscard => device(file, BLKDISCARD, offset, len),
        RangeCall::DeviceZeros => device(file, BLKZEROOUT, offset, len),
    }
}

/// Changes `len` bytes from `offset` on.
#[cfg(not(target_os = "linux"))]
pub fn range(_: &File, _: RangeCall, _: u64, _: u64) -> Result<(), Raw> {
    Err(libc::EOPNOTSUPP)
}

#[cfg(target_os = "linux")]
fn fallocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> Result<(), Raw> {
    let (offset, len) = (signed(offset)?, signed(len)?);
    // SAFETY: no memory is involved; the descriptor is open.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) })
}

#[cfg(target_os = "linux")]
fn device(file: &File, request: libc::Ioctl, offset: u64, len: u64) -> Result<(), Raw> {
    let arg = [offset, len];
    // SAFETY: both requests read two 64-bit numbers, offset and length, from the pointer.
    check(unsafe { libc::ioctl(file.as_raw_fd(), request, arg.as_ptr()) })
}
