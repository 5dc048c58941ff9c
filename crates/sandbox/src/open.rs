//! Opening a file and learning what the host may know about it.

use crate::input::{InputFile, Part};
use crate::locks::{self, Conflict, Wanted};
use crate::names::{self, Driver, Name, NameError};
use crate::output::{FailedOpen, FileFacts, OpenFailure};
use crate::target::{self, Target};
use rustix::fs::{
    AtFlags, CWD, FileType, MemfdFlags, Mode, OFlags, ResolveFlags, SeekFrom, Stat, StatxFlags,
};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Which file is at `path`, if one can be seen there.
pub fn identity(path: &[u8]) -> Option<FileId> {
    let name = names::parse(path).ok()?;
    let path = OsStr::from_bytes(&name.path);
    let resolve = ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let fd = rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve).ok()?;
    Some(FileId::of(&rustix::fs::fstat(fd).ok()?))
}

/// How an image is opened: never made, never cut; a FIFO cannot block, a terminal is not adopted.
pub const fn open_flags(writable: bool) -> OFlags {
    let access = if writable {
        OFlags::RDWR
    } else {
        OFlags::RDONLY
    };
    access
        .union(OFlags::NONBLOCK)
        .union(OFlags::CLOEXEC)
        .union(OFlags::NOCTTY)
}

/// What makes two names one file: device and inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// The identity in `stat`.
    pub const fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        }
    }
}

/// An open file, locked.
#[derive(Debug)]
pub struct Opened {
    /// The descriptor that the worker uses; the locks are its.
    pub file: File,
    /// What is known about it.
    pub facts: FileFacts,
    /// Which file it is.
    pub id: FileId,
    /// It was opened for writing.
    pub writable: bool,
    /// Counts unless the image is raw.
    pub format_conflict: Option<Conflict>,
    /// How it comes to its name, if it is made.
    pub target: Option<Target>,
}

/// Why a file was not opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which kind of failure.
    pub kind: OpenFailure,
    /// The sentence, any bytes.
    pub reason: Vec<u8>,
}

impl Refusal {
    /// A failure that has an errno.
    pub fn failed(errno: Errno, reason: Vec<u8>) -> Self {
        Self {
            kind: OpenFailure::Failed(errno.raw_os_error()),
            reason,
        }
    }

    /// The system's refusal to open `path`.
    pub fn could_not_open(path: &[u8], errno: Errno) -> Self {
        let text = os_text(errno);
        Self::failed(
            errno,
            [b"Could not open '", path, b"': ", text.as_bytes()].concat(),
        )
    }

    /// `name` has not the type that its driver demands.
    pub fn wrong_type(name: &Name) -> Self {
        let (driver, demand): (&[u8], &[u8]) = match name.driver {
            Driver::Any | Driver::File => (b"file", b"a regular file"),
            Driver::HostDevice => (b"host_device", b"either a character or block device"),
        };
        let reason = [
            b"'",
            driver,
            b"' driver requires '",
            &name.path,
            b"' to be ",
            demand,
        ]
        .concat();
        Self::failed(Errno::INVAL, reason)
    }

    /// Another process, or this job itself, holds the image shown as `path`.
    pub fn in_use(conflict: Conflict, path: &[u8]) -> Self {
        Self {
            kind: OpenFailure::InUse,
            reason: conflict.reason(path),
        }
    }

    /// The whole failure, of a name that the user typed for `slot`.
    pub fn of_typed(self, slot: u16, given: &[u8], output: bool) -> FailedOpen {
        FailedOpen {
            slot,
            parent_slot: None,
            role: None,
            output,
            kind: self.kind,
            given_name: os_string(given),
            reason: OsString::from_vec(self.reason),
        }
    }
}

/// Opens the files that the user typed: any path, a regular file or a device. By slot.
///
/// What is made is opened last, so that whatever is wrong with an input comes first.
/// Nothing is changed: see [`Target`].
///
/// # Errors
/// What qemu-img says about the first that fails, in its words; it hangs on a
/// FIFO, which here is refused as a folder is.
pub fn open_inputs(inputs: &[InputFile]) -> Result<Vec<Opened>, FailedOpen> {
    let mut all: BTreeMap<u16, Opened> = BTreeMap::new();
    let slots = || (0..).zip(inputs);
    let read = slots().filter(|(_, input)| !input.access.creates());
    let made = slots().filter(|(_, input)| input.access.creates());
    for (slot, input) in read.chain(made) {
        let creates = input.access.creates();
        let given = if creates {
            name_of_target(inputs)
        } else {
            given_name(input)
        };
        let opened = open_typed(input)
            .and_then(|opened| not_alone(opened, &all))
            .map_err(|refusal| {
                // QEMU has made the file by then, and opens it as any other.
                let making = creates && !refusal.reason.ends_with(NO_DIRECT);
                refusal.of_typed(slot, given, making)
            })?;
        all.insert(slot, opened);
    }
    Ok(all.into_values().collect())
}

/// The name, as typed, of the first file that is made; errors of the others name it, too.
pub fn name_of_target(inputs: &[InputFile]) -> &[u8] {
    let first = inputs.iter().find(|input| input.access.creates());
    first.map_or(b"", given_name)
}

fn open_typed(input: &InputFile) -> Result<Opened, Refusal> {
    if input.share && input.access.writes() {
        let reason = b"force-share=on can only be used with read-only images".to_vec();
        return Err(Refusal::failed(Errno::INVAL, reason));
    }
    if input.access.writes() && input.described.as_ref().is_some_and(|d| d.read_only) {
        let reason = b"Block node is read-only".to_vec();
        return Err(Refusal::failed(Errno::ACCESS, reason));
    }
    let options = input.options(0);
    let wanted = Wanted {
        direct: options.is_direct(&options.file, input.direct),
        unlocked: options.file.unlocked,
        access: input.access,
        data_file: false,
        share: input.share,
    };
    let given = input.path.as_os_str().as_bytes();
    let mut opened = if input.access.creates() {
        target::open(given, wanted)?
    } else {
        open_trusted(given, wanted)?
    };
    judge_part(&opened.facts, options.file.part)?;
    if let Some(described) = &input.described {
        opened.facts.given_name.clone_from(&described.given);
    }
    Ok(opened)
}

/// Whether a file has this part.
///
/// # Errors
/// It has not.
pub fn judge_part(facts: &FileFacts, part: Part) -> Result<(), Refusal> {
    let judged = part.len_in(facts.len_bytes).map(drop);
    judged.map_err(|reason| Refusal::failed(Errno::INVAL, reason.into_bytes()))
}

/// The name that errors show.
fn given_name(input: &InputFile) -> &[u8] {
    let described = input.described.as_ref();
    let given = described.map_or(input.path.as_os_str(), |described| &described.given);
    given.as_bytes()
}

/// What holds for `opened` next to the images in `others`.
///
/// A file that is written is open only once: the locks see to that, and where a
/// file system has none, this does. And only the first image can still turn out
/// to be raw: nothing tells it of another one.
fn not_alone(opened: Opened, others: &BTreeMap<u16, Opened>) -> Result<Opened, Refusal> {
    let twin = |other: &&Opened| {
        let one_file = other.id == opened.id && (other.writable || opened.writable);
        one_file || target::become_one(other.target.as_ref(), opened.target.as_ref())
    };
    let conflict = match others.values().find(twin) {
        Some(twin) if twin.target.is_some() => Some(Conflict::RESIZED),
        Some(_) if opened.target.is_some() => Some(Conflict::OPEN),
        Some(_) => Some(Conflict::WRITTEN),
        None => opened.format_conflict.filter(|_| !others.is_empty()),
    };
    match conflict {
        Some(conflict) => Err(Refusal::in_use(conflict, opened.facts.name.as_bytes())),
        None => Ok(opened),
    }
}

fn open_trusted(given: &[u8], wanted: Wanted) -> Result<Opened, Refusal> {
    let name = parse(given)?;
    let path = OsStr::from_bytes(&name.path);
    let refused = |errno| Refusal::could_not_open(&name.path, errno);
    // Looked at first, as opening a FIFO would wake who waits to write to it.
    let before = rustix::fs::stat(path).map_err(refused)?;
    if file_type(&before) == FileType::Fifo {
        return Err(Refusal::wrong_type(&name));
    }
    let flags = open_flags(wanted.access.writes());
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(refused)?;
    let stat = rustix::fs::fstat(&fd).map_err(refused)?;
    let fd = match (file_type(&stat), name.driver) {
        (FileType::RegularFile, Driver::Any | Driver::File) => fd,
        (FileType::BlockDevice, Driver::Any | Driver::HostDevice) => fd,
        // Its length counts as 0, so nothing of it is ever read.
        (FileType::CharacterDevice, Driver::Any | Driver::HostDevice) => {
            empty_file().map_err(refused)?
        }
        _ => return Err(Refusal::wrong_type(&name)),
    };
    lock_and_describe(fd, &stat, &name, given, wanted)
}

/// `given` taken apart.
///
/// # Errors
/// The reason in qemu-img's words, where it has some.
pub fn parse(given: &[u8]) -> Result<Name, Refusal> {
    names::parse(given).map_err(|e| Refusal::failed(Errno::INVAL, name_reason(&e)))
}

/// The sentence of `error`, with a prefix of any bytes as it is, which `Display` cannot keep.
pub fn name_reason(error: &NameError) -> Vec<u8> {
    match error {
        NameError::UnknownProtocol(prefix) => {
            [b"Unknown protocol '", prefix.as_slice(), b"'"].concat()
        }
        _ => error.to_string().into_bytes(),
    }
}

/// Locks `fd` and collects what is known about it.
///
/// # Errors
/// A lock that another process holds, or a file without a length.
pub fn lock_and_describe(
    fd: OwnedFd,
    stat: &Stat,
    name: &Name,
    given: &[u8],
    wanted: Wanted,
) -> Result<Opened, Refusal> {
    if wanted.access.writes() && file_type(stat) == FileType::BlockDevice {
        device_is_writable(&fd)?;
    }
    let mut opened = describe(fd, stat, name, given)?;
    opened.writable = wanted.access.writes();
    if !opened.facts.character_device {
        let taken = locks::take(opened.file.as_fd(), wanted);
        let taken = taken.map_err(|c| Refusal::in_use(c, &name.path))?;
        opened.format_conflict = taken.format_conflict;
        if wanted.direct {
            opened.facts.direct_align = pass_by_page_cache(&opened.file, name)?;
        }
    }
    Ok(opened)
}

/// Collects what is known about `fd`, which has all the locks that it needs and is not written.
///
/// # Errors
/// A file without a length.
pub fn describe(fd: OwnedFd, stat: &Stat, name: &Name, given: &[u8]) -> Result<Opened, Refusal> {
    let kind = file_type(stat);
    let no_length = |errno| {
        let reason = format!("Could not refresh total sector count: {}", os_text(errno));
        Refusal::failed(errno, reason.into_bytes())
    };
    let len_bytes = rustix::fs::seek(&fd, SeekFrom::End(0)).map_err(no_length)?;
    let facts = FileFacts {
        name: os_string(&name.path),
        given_name: os_string(given),
        len_bytes,
        disk_bytes: u64::try_from(stat.st_blocks)
            .unwrap_or(0)
            .saturating_mul(512),
        block_device: kind == FileType::BlockDevice,
        character_device: kind == FileType::CharacterDevice,
        direct_align: 0,
        start_bytes: 0,
        parent_slot: None,
    };
    Ok(Opened {
        file: File::from(fd),
        facts,
        id: FileId::of(stat),
        writable: false,
        format_conflict: None,
        target: None,
    })
}

/// How the refusal of a file system that has no direct I/O ends.
const NO_DIRECT: &[u8] = b"': filesystem does not support O_DIRECT";

/// Sets `O_DIRECT`; says what offsets, lengths and addresses are multiples of from now on, in bytes.
///
/// # Errors
/// The file system has no direct I/O.
pub fn pass_by_page_cache(fd: impl AsFd + Copy, name: &Name) -> Result<u32, Refusal> {
    /// What every file system and device takes that does not say what it takes.
    const COMMON: u32 = 4096;
    let refused = |errno| {
        let path = name.path.as_slice();
        Refusal::failed(errno, [b"Could not open '", path, NO_DIRECT].concat())
    };
    let flags = rustix::fs::fcntl_getfl(fd).map_err(refused)?;
    rustix::fs::fcntl_setfl(fd, flags | OFlags::DIRECT).map_err(refused)?;
    let said = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    let align = said.map_or(0, |known| {
        known.stx_dio_mem_align.max(known.stx_dio_offset_align)
    });
    Ok(if align.is_power_of_two() {
        align
    } else {
        COMMON
    })
}

/// `BLKROGET` of linux/fs.h: whether a block device only takes reads.
pub const READ_ONLY_REQUEST: u32 = 0x125e;

/// A block device that only takes reads can still be opened for writing.
fn device_is_writable(fd: &OwnedFd) -> Result<(), Refusal> {
    // SAFETY: the request stores one `int`.
    let getter = unsafe { rustix::ioctl::Getter::<READ_ONLY_REQUEST, libc::c_int>::new() };
    // SAFETY: as above; the getter owns the place for it.
    match unsafe { rustix::ioctl::ioctl(fd, getter) } {
        Ok(read_only) if read_only != 0 => {
            let reason = format!("The device is not writable: {}", os_text(Errno::ACCESS));
            Err(Refusal::failed(Errno::ACCESS, reason.into_bytes()))
        }
        // What cannot be asked is found out by the first write.
        _ => Ok(()),
    }
}

/// The type in `stat`.
pub fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// `bytes` as a name.
pub fn os_string(bytes: &[u8]) -> OsString {
    OsStr::from_bytes(bytes).to_os_string()
}

fn empty_file() -> Result<OwnedFd, Errno> {
    rustix::fs::memfd_create("empty", MemfdFlags::CLOEXEC)
}

/// The system's text for `errno`, as glibc has it.
pub fn os_text(errno: Errno) -> String {
    match errno {
        // musl words these differently.
        Errno::LOOP => return "Too many levels of symbolic links".into(),
        Errno::NAMETOOLONG => return "File name too long".into(),
        _ => {}
    }
    let mut buffer = [0; 128];
    // SAFETY: the buffer is valid for its length; the text in it is NUL-terminated on success.
    let failed =
        unsafe { libc::strerror_r(errno.raw_os_error(), buffer.as_mut_ptr(), buffer.len()) };
    // SAFETY: `c_char` and `u8` have the same size, alignment and valid values.
    let bytes: &[u8] = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast(), buffer.len()) };
    match CStr::from_bytes_until_nul(bytes) {
        Ok(text) if failed == 0 => text.to_string_lossy().into_owned(),
        _ => format!("Unknown error {}", errno.raw_os_error()),
    }
}

#[cfg(test)]
mod tests;
