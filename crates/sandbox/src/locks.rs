//! The byte-range locks that keep QEMU and this program off each other's images.
//!
//! QEMU gives each permission on an image a bit. Byte `100 + bit` is locked by
//! who uses the permission, byte `200 + bit` by who does not share it; both as
//! OFD read locks, so many can hold them, and a conflict is found by asking
//! whether a write lock would fit. Observed with qemu-img 10.0:
//!
//! | what is opened | locked | asked for |
//! |---|---|---|
//! | metadata is read (`info`) | 201 203 | 101 103 |
//! | contents are read (`check`) | 100 201 203 | 200 101 103 |
//! | external data file | 100 203 | 200 103 |
//! | any of them, shared (`-U`) | 100 if contents are read | 200 likewise |
//!
//! A raw image shares everything: bytes 201 and 203 are the format's. Whether an
//! image is raw is only known once the guest has looked, so a conflict on those
//! is kept as [`Taken::format_conflict`] until then.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use std::os::fd::BorrowedFd;

/// First byte of the permissions in use.
const USED: i64 = 100;
/// First byte of the permissions that are not shared.
const UNSHARED: i64 = 200;

/// A permission, by its bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Permission {
    ConsistentRead = 0,
    Write = 1,
    Resize = 3,
}

impl Permission {
    const fn name(self) -> &'static str {
        match self {
            Self::ConsistentRead => "consistent read",
            Self::Write => "write",
            Self::Resize => "resize",
        }
    }

    const fn byte(self, base: i64) -> i64 {
        base + self as i64
    }
}

/// What of an image is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// Headers and tables that do not change under the reader's feet (`info`).
    Metadata,
    /// Everything (`check`): nobody may be half way through a change.
    Contents,
}

/// Which locks a file needs.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// What is read.
    pub reads: Reads,
    /// It is an external data file.
    pub data_file: bool,
    /// Writers are welcome (`-U`).
    pub share: bool,
}

/// Why a file cannot be locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// Someone holds a write lock on a byte; QEMU never does.
    Byte(i64),
    /// Someone uses what this reader does not share.
    InUse(&'static str),
    /// Someone does not share what this reader uses.
    NotShared(&'static str),
}

impl Conflict {
    /// The reason in qemu-img's words; `path` as shown for the image.
    pub fn reason(self, path: &[u8]) -> Vec<u8> {
        let first = match self {
            Self::Byte(byte) => return format!("Failed to lock byte {byte}").into_bytes(),
            Self::InUse(name) => format!("Failed to get shared \"{name}\" lock"),
            Self::NotShared(name) => format!("Failed to get \"{name}\" lock"),
        };
        [
            first.as_bytes(),
            b"\nIs another process using the image [",
            path,
            b"]?",
        ]
        .concat()
    }
}

/// Locks that are held as long as the open file description lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// A conflict that counts unless the image is raw; its locks are released.
    pub format_conflict: Option<Conflict>,
}

/// Takes the locks of a reader on `fd`.
///
/// A file system without such locks has none to take, as with QEMU.
///
/// # Errors
/// The conflict that counts for every format.
pub fn take(fd: BorrowedFd<'_>, wanted: Wanted) -> Result<Taken, Conflict> {
    if wanted.reads == Reads::Contents {
        hold(fd, Permission::ConsistentRead.byte(USED))?;
    }
    let unshared = unshared(wanted);
    let mut conflict = unshared
        .iter()
        .find_map(|p| hold(fd, p.byte(UNSHARED)).err());
    if wanted.reads == Reads::Contents {
        let permission = Permission::ConsistentRead;
        ask(
            fd,
            permission.byte(UNSHARED),
            Conflict::NotShared(permission.name()),
        )?;
    }
    if conflict.is_none() {
        conflict = unshared
            .iter()
            .find_map(|p| ask(fd, p.byte(USED), Conflict::InUse(p.name())).err());
    }
    match conflict {
        Some(conflict) if wanted.data_file => Err(conflict),
        Some(conflict) => {
            for permission in unshared {
                release(fd, permission.byte(UNSHARED));
            }
            Ok(Taken {
                format_conflict: Some(conflict),
            })
        }
        None => Ok(Taken::default()),
    }
}

/// Permissions that others may not use meanwhile.
const fn unshared(wanted: Wanted) -> &'static [Permission] {
    match wanted {
        Wanted { share: true, .. } => &[],
        Wanted {
            data_file: true, ..
        } => &[Permission::Resize],
        Wanted {
            data_file: false, ..
        } => &[Permission::Write, Permission::Resize],
    }
}

/// One byte at `start`.
fn flock(kind: i32, start: i64) -> libc::flock {
    // SAFETY: `flock` is plain integers (and padding on some systems), for which zero is valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = i16::try_from(kind).unwrap_or_default();
    lock.l_whence = i16::try_from(libc::SEEK_SET).unwrap_or_default();
    lock.l_start = start;
    lock.l_len = 1;
    lock
}

/// Whether `errno` says that this file system knows no such locks.
const fn unsupported(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::ENOTTY
    )
}

fn hold(fd: BorrowedFd<'_>, byte: i64) -> Result<(), Conflict> {
    match fcntl(fd, FcntlArg::F_OFD_SETLK(&flock(libc::F_RDLCK, byte))) {
        Ok(_) => Ok(()),
        Err(errno) if unsupported(errno) => Ok(()),
        Err(_) => Err(Conflict::Byte(byte)),
    }
}

/// Whether a write lock on `byte` would fit; `conflict` if not.
fn ask(fd: BorrowedFd<'_>, byte: i64, conflict: Conflict) -> Result<(), Conflict> {
    let mut lock = flock(libc::F_WRLCK, byte);
    match fcntl(fd, FcntlArg::F_OFD_GETLK(&mut lock)) {
        Ok(_) if i32::from(lock.l_type) == libc::F_UNLCK => Ok(()),
        Err(errno) if unsupported(errno) => Ok(()),
        _ => Err(conflict),
    }
}

fn release(fd: BorrowedFd<'_>, byte: i64) {
    // An unlock can only fail where there are no locks.
    let _ = fcntl(fd, FcntlArg::F_OFD_SETLK(&flock(libc::F_UNLCK, byte)));
}

#[cfg(test)]
mod tests;
