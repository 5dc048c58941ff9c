//! What a machine is made of. The caller has opened the files, as policy allows; names stand here for messages only.

use super::control::Connector;
use super::disk::store::Served;
use crate::block::HostFile;
use crate::boot_plan::BootPlan;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

/// A machine before it is built.
#[derive(Debug)]
pub struct Parts {
    /// vCPUs: 1 to [`super::layout::MAX_CPUS`].
    pub cpus: u8,
    /// Guest memory in bytes, a multiple of 2 MiB.
    pub memory_bytes: u64,
    /// How virtio devices are found.
    pub transport: Transport,
    /// What is started.
    pub boot: Boot,
    /// Where the serial line goes.
    pub serial: Line,
    /// Where virtio-console goes; none if there is none.
    pub console: Option<Line>,
    /// Block devices, in the order in which the guest finds them.
    pub disks: Vec<Served>,
    /// Network devices.
    pub nets: Vec<Net>,
    /// The vsock device.
    pub vsock: Option<Vsock>,
    /// Whether there is a source of random bytes.
    pub rng: bool,
}

/// How virtio devices are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// virtio-pci, with MSI-X.
    #[default]
    Pci,
    /// virtio-mmio, described by ACPI (`LNRO0005`).
    Mmio,
}

/// What is started.
#[derive(Debug)]
pub enum Boot {
    /// A kernel: ELF (PVH entry, or 64-bit) or bzImage.
    Kernel {
        /// The kernel.
        kernel: File,
        /// Initial RAM disk.
        initrd: Option<File>,
        /// Command line.
        cmdline: String,
    },
    /// A kernel that an operation has found on a disk, and says how to load: nothing of it is looked at.
    Found {
        /// Which ranges of the kernel's file go where.
        plan: Box<BootPlan>,
        /// The kernel.
        kernel: File,
        /// Initial RAM disk, if the plan has one.
        initrd: File,
        /// Command line.
        cmdline: String,
    },
    /// A PVH firmware, which finds the rest itself.
    Firmware(File),
}

/// Where a line's output goes and its input comes from.
#[derive(Debug)]
pub struct Line {
    /// What the guest sends; nothing if none.
    pub output: Option<OwnedFd>,
    /// What the guest gets; nothing if none.
    pub input: Option<OwnedFd>,
    /// The input is a terminal in raw mode: the escape key is looked for.
    pub terminal: bool,
}

/// A block device.
#[derive(Debug)]
pub struct Disk {
    /// Its bytes.
    pub file: HostFile,
    /// For messages.
    pub name: PathBuf,
    /// Length in bytes; a last partial sector cannot be reached.
    pub len_bytes: u64,
    /// Nothing may be changed.
    pub read_only: bool,
    /// The file is a block device.
    pub block_device: bool,
    /// What the guest reads as its identifier, at most 20 bytes.
    pub serial: String,
    /// How much it may do; none for no limit.
    pub rate: Option<RateLimit>,
}

/// How much a device may do, each 0 for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// Bytes in a second.
    pub bytes_per_second: u64,
    /// Requests in a second.
    pub requests_per_second: u64,
}

/// A network device.
#[derive(Debug)]
pub struct Net {
    /// What it is connected to.
    pub wire: Wire,
    /// For messages.
    pub name: String,
    /// The guest's address.
    pub mac: [u8; 6],
}

/// What a network device is connected to.
#[derive(Debug)]
pub enum Wire {
    /// A tap device's descriptor, with `IFF_VNET_HDR`, not blocking.
    Tap(OwnedFd),
    /// A socket, not blocking, each of whose messages is a frame with virtio-net's header before it; nothing is left to the
    /// other side unfinished that it does not take.
    Frames {
        /// SOCK_SEQPACKET.
        socket: OwnedFd,
        /// Longest IP packet in bytes, which the guest is told.
        mtu: u16,
    },
    /// A socket, not blocking, with whole frames, each behind its length, as QEMU's `-netdev stream` has them.
    Stream {
        /// SOCK_STREAM.
        socket: OwnedFd,
        /// Longest IP packet in bytes, which the guest is told.
        mtu: u16,
    },
}

/// The vsock device.
#[derive(Debug)]
pub struct Vsock {
    /// The guest's address, 3 or more.
    pub cid: u32,
    /// Where the host's programs connect to reach the guest.
    pub listener: UnixListener,
    /// Reaches `PATH_P` when the guest connects to port `P` of the host.
    pub connector: Box<dyn Connector>,
}
