//! System errors in the words of the GNU C library, where the static program's library has others.

use rustix::io::Errno;

/// The words for an error number, if they are not the same in both libraries.
pub fn text(number: i32) -> Option<&'static str> {
    Some(match Errno::from_raw_os_error(number) {
        Errno::IO => "Input/output error",
        Errno::NXIO => "No such device or address",
        Errno::BADF => "Bad file descriptor",
        Errno::NOMEM => "Cannot allocate memory",
        Errno::BUSY => "Device or resource busy",
        Errno::XDEV => "Invalid cross-device link",
        Errno::NFILE => "Too many open files in system",
        Errno::MFILE => "Too many open files",
        Errno::NOTTY => "Inappropriate ioctl for device",
        Errno::SPIPE => "Illegal seek",
        Errno::RANGE => "Numerical result out of range",
        Errno::NAMETOOLONG => "File name too long",
        Errno::LOOP => "Too many levels of symbolic links",
        Errno::OVERFLOW => "Value too large for defined data type",
        Errno::OPNOTSUPP => "Operation not supported",
        Errno::TIMEDOUT => "Connection timed out",
        Errno::STALE => "Stale file handle",
        Errno::DQUOT => "Disk quota exceeded",
        Errno::NOMEDIUM => "No medium found",
        _ => return None,
    })
}
