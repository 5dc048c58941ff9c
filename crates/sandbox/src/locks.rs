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
//! | contents are read (`check`, `snapshot -l`, a backing file, the source of a merge) | 100 201 203 | 200 101 103 |
//! | its external data file | 203, 100 | 103, 200 103 |
//! | any of them, shared (`-U`) | 100 if contents are read | 200 likewise |
//! | an image is changed (all of `snapshot -c -a -d`, `resize`, `amend`, `bitmap`, `check -r`) | 100 101 103 201 203 | 200 201 203 101 103 |
//! | its external data file | 203, 100 101 103 | 103, 200 201 203 103 |
//! | a raw image is changed (`resize -f raw`) | 100 101 103 | 200 201 203 |
//! | a raw image is read (`map`, `measure`, `compare`, `dd`) | 100 | 200 |
//! | any image is the source of `convert` | 100 201 203 | 200 101 103 |
//! | an image is made (`create`, the target of `convert`) | 101 103 203, then 100 201 | 201 203 103, then 101 |
//! | a raw image, or an external data file, is made | 101 103 203 | 201 203 103 |
//!
//! The order is that of the table; what stands before a comma is locked and asked
//! for first. Block devices are locked as files are. The backing chain of an image
//! that is changed is only read, but for the base of `commit`, which is read first and
//! then opened again and locked as an image that is changed. With an external data file
//! the image itself is still locked as a whole. An image that is changed cannot be
//! shared (`-U`).
//!
//! A raw image shares everything: bytes 201 and 203 are the format's. Whether an
//! image that is read is raw is only known once the guest has looked, so a conflict
//! on those is kept as [`Taken::format_conflict`] until then. An image that is
//! changed counts as raw only if the user said so: the guest may not write before
//! that is settled.

use crate::input::Access;
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
    /// Everything, and nobody may change it even if it is raw (the source of `convert`).
    Source,
}

/// Which locks a file needs.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// What is done with it.
    pub access: Access,
    /// It is an external data file.
    pub data_file: bool,
    /// Writers are welcome (`-U`).
    pub share: bool,
    /// It is reached past the page cache.
    pub direct: bool,
    /// Nothing is locked, and no locks of others matter.
    pub unlocked: bool,
}

impl Wanted {
    /// Permissions that are used.
    const fn used(self) -> &'static [Permission] {
        match self.access {
            Access::Read(Reads::Metadata) => &[],
            Access::Read(Reads::Contents | Reads::Source) | Access::ReadRaw => {
                &[Permission::ConsistentRead]
            }
            Access::Create { raw: true, .. } => &[Permission::Write, Permission::Resize],
            Access::Change | Access::ChangeRaw | Access::Create { raw: false, .. } => &[
                Permission::ConsistentRead,
                Permission::Write,
                Permission::Resize,
            ],
        }
    }

    /// Permissions that others may not use meanwhile.
    const fn unshared(self) -> &'static [Permission] {
        match self {
            Self { share: true, .. }
            | Self {
                access: Access::ChangeRaw | Access::ReadRaw,
                ..
            } => &[],
            Self {
                data_file: true, ..
            }
            | Self {
                access: Access::Create { raw: true, .. },
                ..
            } => &[Permission::Resize],
            Self {
                data_file: false, ..
            } => &[Permission::Write, Permission::Resize],
        }
    }

    /// Whether a conflict on what is not shared counts only if the image is not raw.
    const fn may_be_raw(self) -> bool {
        matches!(self.access, Access::Read(Reads::Metadata | Reads::Contents)) && !self.data_file
    }
}

/// Why a file cannot be locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// Someone holds a write lock on a byte; QEMU never does.
    Byte(i64),
    /// Someone uses what is not shared here.
    InUse(&'static str),
    /// Someone does not share what is used here.
    NotShared(&'static str),
}

impl Conflict {
    /// A file is written that others may not write to.
    pub const WRITTEN: Self = Self::InUse(Permission::Write.name());
    /// A file is open in a way that its length may change, and others may not change it.
    pub const RESIZED: Self = Self::InUse(Permission::Resize.name());
    /// A file is made that someone has open who does not let it be written.
    pub const OPEN: Self = Self::NotShared(Permission::Write.name());

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

/// Takes the locks that `wanted` needs on `fd`.
///
/// A file system without such locks has none to take, as with QEMU.
///
/// # Errors
/// The conflict that counts for every format; locks already taken end with the descriptor.
pub fn take(fd: BorrowedFd<'_>, wanted: Wanted) -> Result<Taken, Conflict> {
    if wanted.unlocked {
        return Ok(Taken::default());
    }
    if let Access::Create {
        raw: false,
        durable,
        layout,
    } = wanted.access
    {
        // The file is made first, whatever it becomes; the rest is the format's.
        let raw = true;
        let access = Access::Create {
            raw,
            durable,
            layout,
        };
        take(fd, Wanted { access, ..wanted })?;
    }
    let (used, unshared) = (wanted.used(), wanted.unshared());
    if wanted.data_file {
        hold_all(fd, unshared, UNSHARED)?;
        ask_unused(fd, unshared)?;
    }
    hold_all(fd, used, USED)?;
    let held = hold_all(fd, unshared, UNSHARED);
    if !wanted.may_be_raw() {
        held?;
    }
    used.iter().try_for_each(|p| {
        let conflict = Conflict::NotShared(p.name());
        ask(fd, p.byte(UNSHARED), conflict)
    })?;
    match held.and_then(|()| ask_unused(fd, unshared)) {
        Ok(()) => Ok(Taken::default()),
        Err(conflict) if wanted.may_be_raw() => {
            for permission in unshared {
                release(fd, permission.byte(UNSHARED));
            }
            Ok(Taken {
                format_conflict: Some(conflict),
            })
        }
        Err(conflict) => Err(conflict),
    }
}

fn hold_all(fd: BorrowedFd<'_>, permissions: &[Permission], base: i64) -> Result<(), Conflict> {
    permissions.iter().try_for_each(|p| hold(fd, p.byte(base)))
}

/// Whether nobody else uses `permissions`.
fn ask_unused(fd: BorrowedFd<'_>, permissions: &[Permission]) -> Result<(), Conflict> {
    permissions
        .iter()
        .try_for_each(|p| ask(fd, p.byte(USED), Conflict::InUse(p.name())))
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
