//! Which files an image may name.
//!
//! A file passes if it lies, when it is opened, beneath an allowed folder: the
//! folder of the image that the user typed, or one that the user allowed. How the
//! name leads there does not matter, except through the magic links of `/proc`.
//! The kernel keeps the promise (`RESOLVE_BENEATH`); the walk in [`crate::walk`]
//! only finds out beneath which folder, and what to say if beneath none.

use crate::names::{self, Driver, MAX_PATH_BYTES, Name};
use crate::open::{FileId, Refusal, file_type, open_flags};
use crate::output::OpenFailure;
use crate::walk::{self, Place};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// What the user allows beyond the image's own folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Folders with all that is beneath them, or single files; block devices are allowed only here.
    pub allowed: Vec<PathBuf>,
    /// The one backing file of the first image that may be written, too, and its data file with it; the first image
    /// must be one that is changed.
    pub base: Option<Base>,
}

/// Which image of a backing chain the ones above it are committed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// The backing file of the first image.
    Nearest,
    /// The one that the user typed: as it stands in the image above it, or relative to that image's folder.
    Named(OsString),
}

impl Policy {
    /// The flag.
    pub const FLAG: &'static str = "--allow-path";
    /// The environment variable: paths with colons between them.
    pub const VARIABLE: &'static str = "INSTAR_ALLOW_PATH";

    /// Joins what the flags and the variable allow; empty entries count for nothing.
    #[must_use]
    pub fn new(flags: Vec<PathBuf>, variable: Option<&OsStr>) -> Self {
        let listed = variable.into_iter().flat_map(std::env::split_paths);
        let allowed = flags
            .into_iter()
            .chain(listed)
            .filter(|path| !path.as_os_str().is_empty());
        Self {
            allowed: allowed.collect(),
            base: None,
        }
    }
}

/// The policy of one job, with its folders opened when they are first needed.
#[derive(Debug)]
pub struct Rules {
    pending: Vec<Entry>,
    roots: Vec<Root>,
}

#[derive(Debug)]
struct Entry {
    path: Vec<u8>,
    /// By the user, so it may be a file, and block devices pass.
    listed: bool,
}

/// An allowed folder.
#[derive(Debug)]
struct Root {
    folder: OwnedFd,
    /// As given, with a slash at the end; empty for the current folder. `None` if only one file is allowed.
    prefix: Option<Vec<u8>>,
    /// Without links; empty for the root folder.
    real: Vec<u8>,
    /// The one file in the folder that is allowed, without links; `None`: all.
    only: Option<Vec<u8>>,
    listed: bool,
}

/// A file that passed.
#[derive(Debug)]
pub struct Passed {
    /// Open as asked for.
    pub fd: OwnedFd,
    /// What it is: a regular file, or a listed block device.
    pub stat: Stat,
}

impl Rules {
    /// For a job on the image at `first`.
    pub fn new(first: &[u8], policy: &Policy) -> Self {
        let own = Entry {
            path: names::folder(first).to_vec(),
            listed: false,
        };
        let listed = policy.allowed.iter().map(|path| Entry {
            path: path.as_os_str().as_bytes().to_vec(),
            listed: true,
        });
        // Listed ones first, as they allow more.
        Self {
            pending: listed.chain([own]).collect(),
            roots: Vec::new(),
        }
    }

    /// These files may be named too, block devices among them, and what is in their folders: the user has typed them.
    #[must_use]
    pub fn and(mut self, typed: &[PathBuf]) -> Self {
        for path in typed {
            let Ok(name) = names::parse(path.as_os_str().as_bytes()) else {
                continue;
            };
            let folder = names::folder(&name.path).to_vec();
            self.pending.insert(
                0,
                Entry {
                    path: folder,
                    listed: false,
                },
            );
            self.pending.insert(
                0,
                Entry {
                    path: name.path,
                    listed: true,
                },
            );
        }
        self
    }

    /// Opens the file that an image names, for reading or also for writing.
    ///
    /// # Errors
    /// What the system, the type of the file or the policy has against it.
    pub fn open(&mut self, name: &Name, writable: bool) -> Result<Passed, Refusal> {
        self.open_roots();
        if name.path.len() > MAX_PATH_BYTES {
            return Err(Refusal::could_not_open(&name.path, Errno::NAMETOOLONG));
        }
        for root in &self.roots {
            let Some(rest) = root.rest_of(&name.path) else {
                continue;
            };
            match open_beneath(root, rest, name, writable) {
                // It leaves the folder on its way: the walk shows whether it comes back.
                Err(refusal) if is_escape(&refusal) => {}
                outcome => return outcome,
            }
        }
        self.open_by_place(name, writable)
    }

    fn open_roots(&mut self) {
        for entry in std::mem::take(&mut self.pending) {
            // An entry that is not there allows nothing.
            if let Ok(root) = Root::open(entry) {
                self.roots.push(root);
            }
        }
    }

    fn open_by_place(&self, name: &Name, writable: bool) -> Result<Passed, Refusal> {
        let place = walk::place(&name.path);
        let Some(root) = self.roots.iter().find(|root| root.holds(&place.real)) else {
            return Err(outside(&place));
        };
        let refused = |errno| Refusal::could_not_open(&name.path, errno);
        // The kernel's own view of the path: it knows more errors, and refuses magic links.
        let looked = openat2(CWD, &name.path, OFlags::PATH, ResolveFlags::NO_MAGICLINKS);
        let stat = looked.and_then(rustix::fs::fstat).map_err(refused)?;
        if let Some(errno) = place.stopped {
            return Err(refused(errno));
        }
        let rest = place.real.get(root.real.len()..).unwrap_or_default();
        let rest = without_leading_slashes(rest);
        if rest.is_empty() || file_type(&stat) == FileType::Directory {
            return Err(wrong_type(&stat, name, writable));
        }
        open_beneath(root, rest, name, writable)
    }
}

impl Root {
    fn open(entry: Entry) -> Result<Self, Errno> {
        let path: &[u8] = if entry.path.is_empty() {
            b"."
        } else {
            &entry.path
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match openat2(CWD, path, flags, ResolveFlags::empty()) {
            Ok(folder) => {
                let real = real_folder(path)?;
                let slash: &[u8] = if entry.path.is_empty() || entry.path.ends_with(b"/") {
                    b""
                } else {
                    b"/"
                };
                let prefix = Some([&entry.path, slash].concat());
                Ok(Self {
                    folder,
                    prefix,
                    real,
                    only: None,
                    listed: entry.listed,
                })
            }
            Err(Errno::NOTDIR) if entry.listed => {
                let place = walk::place(path);
                let real = names::folder(&place.real)
                    .strip_suffix(b"/")
                    .unwrap_or_default()
                    .to_vec();
                let folder_path: &[u8] = if real.is_empty() { b"/" } else { &real };
                let folder = openat2(CWD, folder_path, flags, ResolveFlags::NO_MAGICLINKS)?;
                Ok(Self {
                    folder,
                    prefix: None,
                    real,
                    only: Some(place.real),
                    listed: true,
                })
            }
            Err(errno) => Err(errno),
        }
    }

    /// What `path` adds to this folder, if it starts with its name as given.
    fn rest_of<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        let prefix = self.prefix.as_deref()?;
        if prefix.is_empty() && path.first() == Some(&b'/') {
            return None;
        }
        let rest = without_leading_slashes(path.strip_prefix(prefix)?);
        (!rest.is_empty()).then_some(rest)
    }

    /// Whether `real`, a path without links, is allowed.
    fn holds(&self, real: &[u8]) -> bool {
        match &self.only {
            Some(only) => real == only,
            None => walk::is_inside(real, &self.real),
        }
    }
}

fn without_leading_slashes(path: &[u8]) -> &[u8] {
    let start = path.iter().position(|b| *b != b'/').unwrap_or(path.len());
    path.get(start..).unwrap_or_default()
}

/// The folder at `path` without links; empty for the root folder.
fn real_folder(path: &[u8]) -> Result<Vec<u8>, Errno> {
    let place = walk::place(path);
    place.stopped.map_or(Ok(place.real), Err)
}

/// `EXDEV` says that the path left the folder, `ELOOP` also that it used a magic link.
fn is_escape(refusal: &Refusal) -> bool {
    [Errno::XDEV, Errno::LOOP]
        .map(|e| OpenFailure::Failed(e.raw_os_error()))
        .contains(&refusal.kind)
}

/// Opens `rest` beneath `root`: looks first, so that opening has no effect on what is no image.
fn open_beneath(root: &Root, rest: &[u8], name: &Name, writable: bool) -> Result<Passed, Refusal> {
    let refused = |errno| Refusal::could_not_open(&name.path, errno);
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let folder = root.folder.as_fd();
    let seen = openat2(folder, rest, OFlags::PATH, resolve)
        .and_then(rustix::fs::fstat)
        .map_err(refused)?;
    judge(&seen, root.listed, name, writable)?;
    let fd = openat2(folder, rest, open_flags(writable), resolve).map_err(refused)?;
    // The descriptor that is used is the one that is judged.
    let stat = rustix::fs::fstat(&fd).map_err(refused)?;
    if FileId::of(&stat) != FileId::of(&seen) {
        return Err(refused(Errno::STALE));
    }
    judge(&stat, root.listed, name, writable)?;
    Ok(Passed { fd, stat })
}

/// Whether a file of this type may be opened for an image.
fn judge(stat: &Stat, listed: bool, name: &Name, writable: bool) -> Result<(), Refusal> {
    match (file_type(stat), name.driver) {
        (FileType::RegularFile, Driver::Any | Driver::File) => Ok(()),
        (FileType::BlockDevice, Driver::Any | Driver::HostDevice) if listed => Ok(()),
        (FileType::BlockDevice, Driver::Any | Driver::HostDevice) => Err(device_refused(name)),
        (FileType::Socket, Driver::Any | Driver::File) => {
            Err(Refusal::could_not_open(&name.path, Errno::NXIO))
        }
        (FileType::CharacterDevice, Driver::Any | Driver::HostDevice) => {
            let text: &[u8] = b"' is a character device, which an image may not name";
            Err(Refusal {
                kind: OpenFailure::Refused,
                reason: [b"'", name.path.as_slice(), text].concat(),
            })
        }
        _ => Err(wrong_type(stat, name, writable)),
    }
}

/// A folder can be opened for reading, so only then it is the driver that refuses it.
fn wrong_type(stat: &Stat, name: &Name, writable: bool) -> Refusal {
    if writable && file_type(stat) == FileType::Directory {
        Refusal::could_not_open(&name.path, Errno::ISDIR)
    } else {
        Refusal::wrong_type(name)
    }
}

/// The refusal of a place that no folder allows.
fn outside(place: &Place) -> Refusal {
    let folder = names::folder(&place.real);
    let folder = match folder.strip_suffix(b"/") {
        Some(stripped) if !stripped.is_empty() => stripped,
        _ => b"/",
    };
    let what = [
        b"'",
        place.real.as_slice(),
        b"' is outside the folders that the image may name",
    ]
    .concat();
    hint(&what, folder)
}

fn device_refused(name: &Name) -> Refusal {
    hint(
        &[
            b"'",
            name.path.as_slice(),
            b"' is a block device that is not allowed by name",
        ]
        .concat(),
        &name.path,
    )
}

/// A refusal that says what to add.
fn hint(what: &[u8], path: &[u8]) -> Refusal {
    let flag = format!("; add {} ", Policy::FLAG);
    let variable = format!(" (or set {}=", Policy::VARIABLE);
    let reason = [
        what,
        flag.as_bytes(),
        path,
        variable.as_bytes(),
        path,
        b") to allow it",
    ]
    .concat();
    Refusal {
        kind: OpenFailure::Refused,
        reason,
    }
}

/// `openat2`, tried again where a rename kept the kernel from deciding.
fn openat2(
    folder: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    const TRIES: usize = 8;
    let path = OsString::from(OsStr::from_bytes(path));
    let flags = flags | OFlags::CLOEXEC;
    for _ in 1..TRIES {
        match rustix::fs::openat2(folder, &path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            outcome => return outcome,
        }
    }
    rustix::fs::openat2(folder, &path, flags, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests;
