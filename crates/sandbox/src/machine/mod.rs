//! A machine with a Linux guest: who opens what for it, and what is left to the process that runs it.
//!
//! [`run_machine`] is the *parent*: it opens what the user named, takes the disks' locks, puts the terminal into raw mode,
//! and forks a worker for each boot. It parses nothing and reads nothing that the guest wrote but the number of a port.
//! The *worker* builds the machine, gives up everything else, and runs it until the guest switches it off or resets it.
//!
//! ```text
//!            power button (eventfd), SIGKILL
//!   parent --------------------------------> worker (KVM, devices) <-- frames --> user network (sockets)
//!     ^  '--- connect(PATH_PORT), SCM_RIGHTS --->  |
//!     '------- exit code, port numbers ------------'
//! ```
//!
//! What a disk boots is found before each boot by an operation in a process of its own (`scan`), so that a kernel which
//! the guest has installed counts from its next boot on.

mod aside;
mod child;
mod connect;
mod files;
mod nets;
mod network;
mod parent;
mod passt;
mod scan;
mod terminal;
mod worker;

pub use aside::path as path_of_open;
pub(crate) use child::{Child, EXIT_FAILED, failed, forked, use_small_pages};
pub(crate) use files::open_disk;

use crate::jail::JailError;
use crate::live::LiveImage;
use crate::output::FailedOpen;
use instar_user_net::forward::{Forward, ForwardError};
use instar_user_net::policy::RuleError;
use instar_vmm::VmError;
use instar_vmm::live::source::SourceGone;
use instar_vmm::machine::MachineError;
use instar_vmm::machine::control::{Outcome, Report};
use instar_vmm::machine::parts::{RateLimit, Transport};
use instar_vmm::machine::tap::TapError;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

/// A machine as the user names it; nothing is open yet.
#[derive(Clone, Debug)]
pub struct MachineJob {
    /// vCPUs.
    pub cpus: u8,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// How virtio devices are found.
    pub transport: Transport,
    /// What is started.
    pub boot: BootFiles,
    /// The serial line.
    pub serial: Stream,
    /// The virtio console.
    pub console: Stream,
    /// Is done before anything is opened.
    pub before: Option<Rc<dyn Before>>,
    /// Disks.
    pub disks: Vec<DiskImage>,
    /// The bytes of one more disk, which is read only: what the guest's cloud-init is told.
    pub seed: Option<Vec<u8>>,
    /// Network devices.
    pub nets: Vec<NetName>,
    /// vsock.
    pub vsock: Option<VsockName>,
    /// A source of random bytes.
    pub rng: bool,
    /// A guest that reboots starts again.
    pub reboot: bool,
    /// From the power button to the end.
    pub shutdown: Duration,
    /// The machine is stopped after this.
    pub timeout: Option<Duration>,
    /// Devices are saved, reset and restored after each of these times: a test.
    pub recycle: Option<Duration>,
}

/// Finds what a disk boots.
pub trait Scan: std::fmt::Debug {
    /// Runs in a process of its own. Copies the kernel and the initial RAM disk into the files of these names, which are
    /// empty, and writes to standard output how it is loaded, a [`instar_shared::bootscan::BootPlan`], and behind it the
    /// kernel's command line. Returns the exit code: 0, or another if it has told the user why there is nothing to boot.
    fn run(&self, kernel: &Path, initrd: &Path) -> u8;
}

/// Makes a file that a machine needs.
pub trait Before: std::fmt::Debug {
    /// Runs in a process of its own. Returns the exit code: 0, or another if it has told the user what went wrong.
    fn run(&self) -> u8;
}

/// What is started.
#[derive(Clone, Debug)]
pub enum BootFiles {
    /// What a disk boots; it is looked for before each boot.
    Scan(Rc<dyn Scan>),
    /// A kernel.
    Kernel {
        /// Its file.
        kernel: PathBuf,
        /// Initial RAM disk.
        initrd: Option<PathBuf>,
        /// Command line.
        cmdline: String,
    },
    /// A firmware.
    Firmware(PathBuf),
}

/// Where a line goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Nowhere.
    None,
    /// Standard input and output.
    Stdio,
    /// A terminal that is made for it.
    Pty,
    /// A file gets the output.
    File(PathBuf),
}

/// The image of a disk.
#[derive(Clone, Debug)]
pub enum DiskImage {
    /// Its bytes are the disk's.
    Raw(DiskFile),
    /// An operation reads it.
    Live(Box<LiveImage>),
}

/// A raw disk.
#[derive(Clone, Debug)]
pub struct DiskFile {
    /// Raw image or block device.
    pub path: PathBuf,
    /// Nothing is written.
    pub read_only: bool,
    /// The page cache is passed by.
    pub direct: bool,
    /// What the guest reads as its identifier.
    pub serial: String,
    /// How much it may do.
    pub rate: Option<RateLimit>,
}

/// A network device.
#[derive(Clone, Debug)]
pub struct NetName {
    /// What it is connected to.
    pub to: NetTo,
    /// The guest's address.
    pub mac: [u8; 6],
}

/// What a network device is connected to.
#[derive(Clone, Debug)]
pub enum NetTo {
    /// The tap device of this name.
    Tap(String),
    /// A user network.
    User(UserNet),
    /// passt's network; there is at most one of these two.
    Passt(PasstNet),
}

/// What passt is told.
#[derive(Clone, Debug)]
pub struct PasstNet {
    /// Longest packet in bytes.
    pub mtu: u16,
    /// DNS servers; those of the host if there are none here.
    pub dns: Vec<IpAddr>,
    /// Ports of the host that lead into the guest.
    pub forwards: Vec<Forward>,
}

/// A user network.
#[derive(Clone, Debug)]
pub struct UserNet {
    /// Longest packet in bytes.
    pub mtu: u16,
    /// DNS servers; those of the host if there are none here.
    pub dns: Vec<SocketAddr>,
    /// Ports of the host that lead into the guest.
    pub forwards: Vec<Forward>,
    /// What the guest may reach, as [`instar_user_net::policy`] reads it.
    pub allow: Vec<String>,
    /// What it may not.
    pub deny: Vec<String>,
    /// Gets a line for each flow that is denied.
    pub log: Option<PathBuf>,
}

/// vsock.
#[derive(Clone, Debug)]
pub struct VsockName {
    /// The guest's address.
    pub cid: u32,
    /// The host's socket.
    pub path: PathBuf,
}

/// Why a machine did not run, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum MachineFailure {
    /// A disk could not be opened, or is in use.
    #[error("{}", .0.reason.to_string_lossy())]
    Disk(FailedOpen),
    /// A disk is neither a file nor a block device.
    #[error("'{}' is a character device; a disk is a file or a block device", .0.display())]
    NoDisk(PathBuf),
    /// A file could not be opened.
    #[error("cannot open the {what} '{}': {}", .path.display(), said(.source))]
    File {
        /// What it is to the machine.
        what: &'static str,
        /// Its name.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A socket, for vsock or a disk's front ends, could not be made.
    #[error("cannot listen at '{}': {reason}", .path.display())]
    Socket {
        /// The path.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A terminal could not be made or set.
    #[error("cannot {what}: {}", said(.source))]
    Terminal {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Standard input cannot be waited for.
    #[error(
        "standard input is a file, which nobody can wait for; give the guest's input through a pipe or a terminal"
    )]
    InputIsFile,
    /// A system call that starts the worker failed.
    #[error("cannot start the machine's process: {step}: {}", said(.source))]
    Start {
        /// The call.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The worker could not be confined, so nothing was run.
    #[error("the machine could not be confined: {0}")]
    Jail(#[from] JailError),
    /// passt is not installed.
    #[error(
        "there is no program passt in PATH; install it (package passt in Debian, Ubuntu and Fedora), or use --net user"
    )]
    NoPasst,
    /// A port cannot be forwarded.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// A rule of the network is none.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// A tap device could not be opened.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The machine could not be made or started.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A disk's image cannot be used, as who reads it says.
    #[error(transparent)]
    Source(#[from] SourceGone),
    /// An image whose format was looked for is raw.
    #[error(
        "'{}' has no format that is known, so that it may be raw: give -f raw, and the guest sees the bytes of the file, \
         or --read-only", .0.display()
    )]
    Guessed(PathBuf),
    /// A disk's server could not be made or started, or cannot go on.
    #[error(transparent)]
    Vm(VmError),
    /// The time limit of a disk's server is over.
    #[error("the disk was served for {} s, as --timeout says; what was written is durable", .0.as_secs_f64())]
    ServedLongEnough(Duration),
    /// The machine ended by itself.
    #[error("{0}")]
    Failed(String),
    /// What the process that looked for the kernel has said cannot be.
    #[error("internal error: the search for a kernel reported that {0}; please report this")]
    Scan(String),
    /// A signal ended the worker.
    #[error("{}", crate::output::death(*.0))]
    Died(i32),
    /// The worker said what no worker says.
    #[error("internal error: the machine's process sent {0}; please report this")]
    Protocol(&'static str),
    /// The guest did not shut down in time.
    #[error("the guest did not power off within {} s of the power button and was stopped", .0.as_secs())]
    Deadline(Duration),
    /// The time limit is over.
    #[error("the machine was stopped after {} s; raise the limit with --timeout", .0.as_secs_f64())]
    Timeout(Duration),
}

/// What the system said, in its own words.
pub(crate) fn said(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => crate::open::os_text(rustix::io::Errno::from_raw_os_error(errno)),
        None => error.to_string(),
    }
}

/// Who tells the user what happens.
pub trait MachineOutput {
    /// A terminal was made for `what`.
    fn terminal_made(&mut self, what: &'static str, path: &str);
    /// The guest has lost its network: the process that serves it, which may be passt, has ended.
    fn network_lost(&mut self, passt: bool);
    /// A boot has ended.
    fn ended(&mut self, report: &Report, outcome: &Outcome);
    /// Something went wrong; called once, in one of the processes.
    fn failed(&mut self, error: &MachineFailure);
}

/// Runs a machine until it ends; the exit code: 0 if the guest switched it off (or was told to end by the escape key),
/// 1 if something went wrong, and 128 and the signal's number if a signal stopped it before it had shut down.
///
/// Must be called before any thread is started.
#[must_use]
pub fn run_machine(job: &MachineJob, output: &mut dyn MachineOutput) -> u8 {
    match parent::run(job, output) {
        Ok(code) => code,
        Err(error) => {
            output.failed(&error);
            EXIT_FAILED
        }
    }
}
