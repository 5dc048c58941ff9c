//! Why a machine could not be built or run.

use crate::VmError;
use instar_devices::bus::RangeTaken;
use std::io;

/// Why there is no machine. Each text says what, why, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The hypervisor.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// A file cannot be read.
    #[error("cannot read the {what}: {source}")]
    Read {
        /// Kernel, initial RAM disk, firmware.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel is of no known kind.
    #[error("the kernel is neither an ELF file for x86-64 nor a bzImage; give vmlinux or vmlinuz")]
    UnknownKernel,
    /// The kernel cannot be loaded.
    #[error("the {what} cannot be loaded: {reason}; is it whole, and is --memory large enough?")]
    Load {
        /// Kernel or firmware.
        what: &'static str,
        /// What the loader says.
        reason: String,
    },
    /// The bzImage has no 64-bit entry.
    #[error("the kernel has no 64-bit entry (boot protocol 2.12); use a kernel for x86-64")]
    Not64Bit,
    /// The firmware has no PVH entry.
    #[error("the firmware has no PVH entry; use one that is built for PVH, such as CLOUDHV")]
    NotPvh,
    /// The initial RAM disk is too large.
    #[error(
        "the initial RAM disk of {bytes} bytes does not fit into memory beside the kernel; raise --memory"
    )]
    InitrdTooLarge {
        /// Its size.
        bytes: u64,
    },
    /// The command line is too long or has a zero.
    #[error(
        "the kernel takes a command line of at most {most} bytes without zeros; it has {bytes}"
    )]
    CommandLine {
        /// Its length.
        bytes: usize,
        /// Most that the kernel takes.
        most: u64,
    },
    /// The number of processors.
    #[error("a machine has 1 to {most} CPUs, not {cpus}")]
    Cpus {
        /// What was asked for.
        cpus: u8,
        /// Most.
        most: u8,
    },
    /// Too many devices.
    #[error("at most {most} devices with --transport {transport}; leave some out{hint}")]
    TooManyDevices {
        /// The transport.
        transport: &'static str,
        /// Most of them.
        most: usize,
        /// What else can be done.
        hint: &'static str,
    },
    /// A device.
    #[error("the {device} cannot be made: {reason}")]
    Device {
        /// Which.
        device: String,
        /// Why.
        reason: String,
    },
    /// Two parts at one place.
    #[error("internal error: {0}; please report this")]
    Range(#[from] RangeTaken),
}
