//! Opening a file that a job makes, and giving it its name.
//!
//! A new file is made without a name (`O_TMPFILE`), so that nothing is left of it
//! if this process dies. Where the file system has no such files it gets a
//! temporary name beside its own. It comes to its own name by [`NewFile::name_it`],
//! which never takes the place of a file that somebody else made meanwhile:
//! qemu-img would write over that one.

use crate::input::Access;
use crate::locks::Wanted;
use crate::names::{Driver, Name, NameError};
use crate::open::{self, FileId, Opened, Refusal, file_type, open_flags};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// What a new file may have of `rw-r--r--` is the user's umask.
const MODE: Mode = Mode::from_raw_mode(0o644);
/// Links followed to where a new file belongs; the kernel has the same limit.
const MAX_LINKS: usize = 40;
/// What qemu-img puts before the reason why it cannot write to a device.
const NO_NEW_DEVICES: &[u8] = b"Protocol driver 'host_device' does not support creating new images, so an \
    existing image must be selected as the target; however, opening the given target as an existing image \
    failed: ";

/// A file that is made: what happens to it at the end.
#[derive(Debug)]
pub enum Target {
    /// It was not there: it gets its name if the job ends well.
    New(NewFile),
    /// A regular file that was there.
    Existing,
    /// A block device: it is what it is.
    Device,
}

/// A file that has not got its name yet. Dropped, nothing of it is left.
#[derive(Debug)]
pub struct NewFile {
    folder: OwnedFd,
    folder_id: FileId,
    name: OsString,
    /// The name that it has until then, where there are no files without one.
    temporary: Option<OsString>,
}

/// Whether the two are to be one file: new ones of the same name.
pub fn become_one(one: Option<&Target>, other: Option<&Target>) -> bool {
    match (one, other) {
        (Some(Target::New(one)), Some(Target::New(other))) => {
            one.folder_id == other.folder_id && one.name == other.name
        }
        _ => false,
    }
}

/// Opens the file `given` for being written anew, or makes a new one without its name. Nothing that
/// is there is changed.
///
/// # Errors
/// What qemu-img says, in its words.
pub fn open(given: &[u8], wanted: Wanted) -> Result<Opened, Refusal> {
    let missing = |path| Err(could_not_create(path, Errno::NOENT));
    if given.is_empty() || given == b"file:" {
        return missing(b"");
    }
    // Options as JSON describe what is there, so QEMU makes nothing of that name.
    if given.starts_with(b"json:") {
        let error = NameError::UnknownProtocol(b"json".to_vec());
        return Err(Refusal::failed(Errno::INVAL, open::name_reason(&error)));
    }
    let name = open::parse(given)?;
    match rustix::fs::stat(OsStr::from_bytes(&name.path)) {
        Ok(stat) => open_existing(&name, &stat, given, wanted),
        Err(Errno::NOENT) if name.driver == Driver::HostDevice => {
            let refusal = Refusal::could_not_open(&name.path, Errno::NOENT);
            Err(no_new_device(refusal))
        }
        Err(Errno::NOENT) => make_new(&name, given, wanted),
        Err(errno) => Err(could_not_create(&name.path, errno)),
    }
}

fn could_not_create(path: &[u8], errno: Errno) -> Refusal {
    let text = open::os_text(errno);
    Refusal::failed(
        errno,
        [b"Could not create '", path, b"': ", text.as_bytes()].concat(),
    )
}

fn no_new_device(refusal: Refusal) -> Refusal {
    Refusal {
        reason: [NO_NEW_DEVICES, &refusal.reason].concat(),
        ..refusal
    }
}

/// Opens what is there, if it is a regular file or a block device.
fn open_existing(
    name: &Name,
    seen: &Stat,
    given: &[u8],
    wanted: Wanted,
) -> Result<Opened, Refusal> {
    let refused = |errno| could_not_create(&name.path, errno);
    match (file_type(seen), name.driver) {
        (FileType::Directory, _) => return Err(refused(Errno::ISDIR)),
        (FileType::BlockDevice, _) => {
            return open_device(name, given, wanted).map_err(no_new_device);
        }
        (FileType::CharacterDevice, _) => {
            // It counts as empty and stays so.
            let reason: &[u8] = if matches!(wanted.access, Access::Create { raw: true, .. }) {
                b"Cannot grow device files"
            } else {
                b"Image is not in qcow2 format"
            };
            return Err(Refusal::failed(Errno::INVAL, reason.to_vec()));
        }
        (_, Driver::HostDevice) => return Err(no_new_device(Refusal::wrong_type(name))),
        (FileType::Fifo, _) => {
            let reason = b"Could not resize file: Invalid argument".to_vec();
            return Err(Refusal::failed(Errno::INVAL, reason));
        }
        _ => {}
    }
    let (fd, stat) = open_seen(name, FileType::RegularFile).map_err(refused)?;
    let mut opened = open::lock_and_describe(fd, &stat, name, given, wanted)?;
    opened.target = Some(Target::Existing);
    Ok(opened)
}

fn open_device(name: &Name, given: &[u8], wanted: Wanted) -> Result<Opened, Refusal> {
    let (fd, stat) = open_seen(name, FileType::BlockDevice)
        .map_err(|errno| Refusal::could_not_open(&name.path, errno))?;
    let mut opened = open::lock_and_describe(fd, &stat, name, given, wanted)?;
    opened.target = Some(Target::Device);
    Ok(opened)
}

/// Opens a file that was of the type `seen` when it was looked at, and still must be.
fn open_seen(name: &Name, seen: FileType) -> Result<(OwnedFd, Stat), Errno> {
    let path = OsStr::from_bytes(&name.path);
    let fd = rustix::fs::open(path, open_flags(true), Mode::empty())?;
    let stat = rustix::fs::fstat(&fd)?;
    if file_type(&stat) == seen {
        Ok((fd, stat))
    } else {
        Err(Errno::STALE)
    }
}

fn make_new(name: &Name, given: &[u8], wanted: Wanted) -> Result<Opened, Refusal> {
    let refused = |errno| could_not_create(&name.path, errno);
    let (folder, last) = destination(&name.path).map_err(refused)?;
    let (new, fd) = NewFile::make(folder, last).map_err(refused)?;
    let stat = rustix::fs::fstat(&fd).map_err(refused)?;
    let mut opened = open::lock_and_describe(fd, &stat, name, given, wanted)?;
    opened.target = Some(Target::New(new));
    Ok(opened)
}

/// The folder and the last component of where a file of this name would be made: links are followed,
/// as the kernel follows them.
fn destination(path: &[u8]) -> Result<(OwnedFd, OsString), Errno> {
    let mut path = path.to_vec();
    for _ in 0..=MAX_LINKS {
        match rustix::fs::readlinkat(CWD, OsStr::from_bytes(&path), Vec::new()) {
            Ok(target) => {
                let target = target.into_bytes();
                path = if target.first() == Some(&b'/') {
                    target
                } else {
                    [crate::names::folder(&path), &target].concat()
                };
            }
            // It is not there, or is there now and no link: the end finds that out.
            Err(Errno::NOENT | Errno::INVAL) => return split(&path),
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::LOOP)
}

fn split(path: &[u8]) -> Result<(OwnedFd, OsString), Errno> {
    let end = path.iter().rposition(|byte| *byte != b'/');
    let trimmed = path
        .get(..end.map_or(0, |end| end.saturating_add(1)))
        .unwrap_or_default();
    let folder = crate::names::folder(trimmed);
    let last = trimmed.get(folder.len()..).unwrap_or_default();
    let folder: &[u8] = if folder.is_empty() { b"." } else { folder };
    let folder = open_folder(OsStr::from_bytes(folder))?;
    if trimmed.len() < path.len() || [&b""[..], b".", b".."].contains(&last) {
        return Err(Errno::ISDIR);
    }
    Ok((folder, OsString::from_vec(last.to_vec())))
}

/// A folder that may not be read can still be written to.
fn open_folder(path: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags | OFlags::RDONLY, Mode::empty()) {
        Err(Errno::ACCESS) => rustix::fs::open(path, flags | OFlags::PATH, Mode::empty()),
        outcome => outcome,
    }
}

impl NewFile {
    /// Makes a file that is to be `name` in `folder`.
    fn make(folder: OwnedFd, name: OsString) -> Result<(Self, OwnedFd), Errno> {
        let folder_id = FileId::of(&rustix::fs::fstat(&folder)?);
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let (temporary, fd) = match rustix::fs::openat(&folder, c".", flags, MODE) {
            Ok(fd) => (None, fd),
            // The file system has none of these, or the kernel does not know them.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                let (temporary, fd) = make_named(folder.as_fd())?;
                (Some(temporary), fd)
            }
            Err(errno) => return Err(errno),
        };
        let new = Self {
            folder,
            folder_id,
            name,
            temporary,
        };
        Ok((new, fd))
    }

    /// Gives the file, open as `fd`, its name.
    ///
    /// # Errors
    /// There is a file of that name by now, or what else the system has against it.
    pub fn name_it(&mut self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        match &self.temporary {
            None => link(fd, self.folder.as_fd(), &self.name),
            Some(temporary) => {
                rename(self.folder.as_fd(), temporary, &self.name)?;
                self.temporary = None;
                Ok(())
            }
        }
    }

    /// Makes the name durable, as far as the folder can be read.
    ///
    /// # Errors
    /// The system's.
    pub fn sync_name(&self) -> Result<(), Errno> {
        match rustix::fs::fsync(&self.folder) {
            Err(Errno::BADF | Errno::INVAL) => Ok(()),
            outcome => outcome,
        }
    }

    /// Takes the name back that [`Self::name_it`] gave.
    pub fn unname(&self) {
        let _ = rustix::fs::unlinkat(&self.folder, &self.name, AtFlags::empty());
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = rustix::fs::unlinkat(&self.folder, temporary, AtFlags::empty());
        }
    }
}

/// Makes a file with a name of its own in `folder`.
fn make_named(folder: BorrowedFd<'_>) -> Result<(OsString, OwnedFd), Errno> {
    const TRIES: usize = 8;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    for _ in 0..TRIES {
        let random = RandomState::new().build_hasher().finish();
        let name = OsString::from(format!(".instar-{random:016x}"));
        match rustix::fs::openat(folder, &name, flags, MODE) {
            Err(Errno::EXIST) => {}
            outcome => return Ok((name, outcome?)),
        }
    }
    Err(Errno::EXIST)
}

/// Links a file without a name; through `/proc` where the kernel wants a privilege for the direct way.
fn link(fd: BorrowedFd<'_>, folder: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    match rustix::fs::linkat(fd, c"", folder, name, AtFlags::EMPTY_PATH) {
        Err(Errno::NOENT | Errno::PERM) => {
            let own = format!("/proc/self/fd/{}", fd.as_raw_fd());
            rustix::fs::linkat(CWD, own, folder, name, AtFlags::SYMLINK_FOLLOW)
        }
        outcome => outcome,
    }
}

/// Renames without taking another file's place.
fn rename(folder: BorrowedFd<'_>, from: &OsStr, to: &OsStr) -> Result<(), Errno> {
    match rustix::fs::renameat_with(folder, from, folder, to, RenameFlags::NOREPLACE) {
        // The file system cannot do that; a link does not replace anything either.
        Err(Errno::INVAL | Errno::NOSYS) => {
            rustix::fs::linkat(folder, from, folder, to, AtFlags::empty())?;
            rustix::fs::unlinkat(folder, from, AtFlags::empty())
        }
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests;
