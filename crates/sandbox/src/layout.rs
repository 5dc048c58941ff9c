//! How a file that is made lies in its file system: `ioctl` requests of linux/fs.h.

use rustix::fs::IFlags;
use rustix::io::Errno;
use rustix::ioctl::{Getter, Setter};
use std::os::fd::BorrowedFd;

/// What is asked of the file system for a file that is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Blocks are written in place (btrfs). Where that cannot be had nothing is said, as with QEMU.
    pub no_cow: bool,
    /// Bytes that space is taken in (xfs); 0: the file system decides.
    pub extent_bytes: u32,
    /// The user has asked for that number, and wants to know if it cannot be had.
    pub asked: bool,
}

impl Layout {
    /// What QEMU asks for unless the user does.
    pub const USUAL: Self = Self {
        no_cow: false,
        extent_bytes: 1 << 20,
        asked: false,
    };
}

/// `FS_IOC_GETFLAGS`, as the kernel counts on 64 bits.
const GET_FLAGS: u32 = 0x8008_6601;
/// `FS_IOC_SETFLAGS`.
const SET_FLAGS: u32 = 0x4008_6602;
/// `FS_IOC_FSGETXATTR`.
const GET_ATTRIBUTES: u32 = 0x801c_581f;
/// `FS_IOC_FSSETXATTR`.
const SET_ATTRIBUTES: u32 = 0x401c_5820;

/// All requests that [`Layout::apply`] makes.
pub const REQUESTS: [u64; 4] = [
    GET_FLAGS as u64,
    SET_FLAGS as u64,
    GET_ATTRIBUTES as u64,
    SET_ATTRIBUTES as u64,
];

/// `FS_XFLAG_EXTSIZE`: the extent size counts.
const HAS_EXTENT_SIZE: u32 = 0x800;

/// `struct fsxattr`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Attributes {
    flags: u32,
    extent_bytes: u32,
    extents: u32,
    project: u32,
    cow_extent_bytes: u32,
    reserved: [u8; 8],
}

const _: () = assert!(size_of::<Attributes>() == 28);

impl Layout {
    /// Asks for it, on an empty file. Gives why the extent size that the user asked for cannot be had.
    #[must_use]
    pub fn apply(self, file: BorrowedFd<'_>) -> Option<Errno> {
        if self.no_cow
            && let Ok(flags) = rustix::fs::ioctl_getflags(file)
        {
            let _ = rustix::fs::ioctl_setflags(file, flags | IFlags::NOCOW);
        }
        let set = get_attributes(file).and_then(|old| {
            let new = Attributes {
                flags: old.flags | HAS_EXTENT_SIZE,
                extent_bytes: self.extent_bytes,
                ..old
            };
            set_attributes(file, new)
        });
        set.err().filter(|_| self.asked)
    }
}

fn get_attributes(file: BorrowedFd<'_>) -> Result<Attributes, Errno> {
    // SAFETY: the request stores one such struct, of integers.
    let getter = unsafe { Getter::<GET_ATTRIBUTES, Attributes>::new() };
    // SAFETY: as above; the getter owns the place for it.
    unsafe { rustix::ioctl::ioctl(file, getter) }
}

fn set_attributes(file: BorrowedFd<'_>, new: Attributes) -> Result<(), Errno> {
    // SAFETY: the request reads one such struct.
    let setter = unsafe { Setter::<SET_ATTRIBUTES, Attributes>::new(new) };
    // SAFETY: as above; the setter owns it.
    unsafe { rustix::ioctl::ioctl(file, setter) }
}
