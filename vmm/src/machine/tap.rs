//! Tap devices: network interfaces of the host whose other end is a descriptor. Linux `Documentation/networking/tuntap`.

use super::vectors;
use instar_devices::net::{NetBackend, Offloads};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Setter, Updater, ioctl, opcode};
use std::io;
use std::os::fd::OwnedFd;
use std::os::fd::{AsRawFd, RawFd};
use vm_memory::VolatileSlice;

/// Attaches a descriptor to an interface.
const TUNSETIFF: u32 = opcode::write::<libc::c_int>(b'T', 202);
/// Says what packets may be handed out unfinished.
const TUNSETOFFLOAD: u32 = opcode::write::<libc::c_uint>(b'T', 208);
/// Sets the length of the header before packets.
const TUNSETVNETHDRSZ: u32 = opcode::write::<libc::c_int>(b'T', 216);

/// Length of virtio-net's header in bytes. VirtIO 1.3 §5.1.6.
const HEADER_BYTES: libc::c_int = 12;

/// An interface and its flags, as the kernel's `struct ifreq` has them.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// Why a tap device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No interface can have this name.
    #[error("{name:?} is no name of a network interface; it has 1 to 15 bytes, no space, / or %")]
    Name {
        /// The name.
        name: String,
    },
    /// The kernel has no tap devices.
    #[error(
        "there are no tap devices: /dev/net/tun does not exist; load the module (modprobe tun)"
    )]
    NoTun,
    /// The user may not.
    #[error(
        "no permission to use tap device {name}; have it made for this user: \
         ip tuntap add dev {name} mode tap user $USER"
    )]
    Permission {
        /// The device.
        name: String,
    },
    /// Another program has it.
    #[error("tap device {name} is in use by another program; give each machine one of its own")]
    Busy {
        /// The device.
        name: String,
    },
    /// The interface is of another kind.
    #[error(
        "{name} is not a tap device with one queue; make one: ip tuntap add dev {name} mode tap"
    )]
    NotTap {
        /// The interface.
        name: String,
    },
    /// Anything else.
    #[error("cannot use tap device {name}: {source}")]
    Other {
        /// The device.
        name: String,
        /// What the system said.
        source: io::Error,
    },
}

impl TapError {
    fn of(name: &str, errno: Errno) -> Self {
        let name = name.to_owned();
        match errno {
            Errno::PERM | Errno::ACCESS => Self::Permission { name },
            Errno::BUSY => Self::Busy { name },
            Errno::INVAL => Self::NotTap { name },
            errno => Self::Other {
                name,
                source: errno.into(),
            },
        }
    }
}

/// Opens the tap device `name` for [`super::parts::Net`]: one that is there, or, where the user may make interfaces, a
/// new one that goes with the descriptor. It is up only if it was made so.
///
/// # Errors
/// [`TapError`].
pub fn open_tap(name: &str) -> Result<OwnedFd, TapError> {
    let mut request = request(name)?;
    let failed = |errno| TapError::of(name, errno);
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let tap =
        rustix::fs::open("/dev/net/tun", flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT | Errno::NXIO | Errno::NODEV => TapError::NoTun,
            errno => failed(errno),
        })?;
    // SAFETY: the kernel reads and writes a `struct ifreq`, which the request is.
    let attach = unsafe { Updater::<{ TUNSETIFF }, InterfaceRequest>::new(&mut request) };
    // SAFETY: as above.
    unsafe { ioctl(&tap, attach) }.map_err(failed)?;
    // SAFETY: the kernel reads an int.
    let header = unsafe { Setter::<{ TUNSETVNETHDRSZ }, libc::c_int>::new(HEADER_BYTES) };
    // SAFETY: as above.
    unsafe { ioctl(&tap, header) }.map_err(failed)?;
    Ok(tap)
}

fn request(name: &str) -> Result<InterfaceRequest, TapError> {
    let refused = || TapError::Name {
        name: name.to_owned(),
    };
    let bad = |byte: u8| byte.is_ascii_whitespace() || byte.is_ascii_control();
    if matches!(name, "" | "." | "..") || name.bytes().any(|b| bad(b) || b"/%:".contains(&b)) {
        return Err(refused());
    }
    let mut request = InterfaceRequest {
        name: [0; libc::IFNAMSIZ],
        flags: 0,
        rest: [0; 22],
    };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.flags = libc::c_short::try_from(flags).map_err(|_| refused())?;
    // A zero ends it.
    let room = request.name.get_mut(..name.len());
    let room = room.filter(|_| name.len() < libc::IFNAMSIZ);
    room.ok_or_else(refused)?.copy_from_slice(name.as_bytes());
    Ok(request)
}

/// A tap device behind a network card.
#[derive(Debug)]
pub(super) struct Tap(OwnedFd);

impl From<OwnedFd> for Tap {
    fn from(tap: OwnedFd) -> Self {
        Self(tap)
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl NetBackend for Tap {
    fn receive(&mut self, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        vectors::read(&self.0, into)
    }

    fn send(&mut self, from: &[VolatileSlice<'_>]) -> io::Result<()> {
        vectors::write(&self.0, from).map(|_| ())
    }

    fn set_offloads(&mut self, offloads: Offloads) {
        let flag = |set: bool, bit: usize| if set { bit } else { 0 };
        // TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN
        let flags = flag(offloads.checksum, 1)
            | flag(offloads.tso4, 2)
            | flag(offloads.tso6, 4)
            | flag(offloads.ecn, 8);
        // SAFETY: the kernel takes the number itself.
        let set = unsafe { IntegerSetter::<{ TUNSETOFFLOAD }>::new_usize(flags) };
        // SAFETY: as above. Every kernel that has the header's length takes these flags.
        let done = unsafe { ioctl(&self.0, set) };
        debug_assert!(done.is_ok(), "{done:?}");
    }
}
