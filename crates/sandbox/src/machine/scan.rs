//! What a disk boots, found by an operation in a process of its own: it has a broker and a confined worker like any other.
//!
//! The kernel, the initial RAM disk and the report come in unnamed files of the memory. The report is as untrusted as the
//! disk, and is validated here once more: between the operation and this process lies its own worker.

use super::child::{Child, failed, forked};
use super::{MachineFailure, Scan};
use crate::signals;
use instar_shared::bootscan::{BootPlan as RawPlan, INITRD_ALIGN, MAX_BOOT_TEXT, MAX_INITRD};
use instar_shared::zerocopy::FromBytes;
use instar_vmm::boot_plan::BootPlan;
use instar_vmm::machine::parts::Boot;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::SigSet;
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, Resource, Rlimit, Signal};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Longest file that the search may write, in bytes: an initial RAM disk is larger than a kernel.
const MAX_FILE: u64 = MAX_INITRD + INITRD_ALIGN;
/// Exit code where the search could not even begin.
const EXIT_NOT_STARTED: u8 = 1;

/// Looks for what a disk boots: that, or the exit code of a search that has told the user why not. `mask` are the
/// signals that were blocked before this process began to wait for them.
///
/// # Errors
/// The process could not be started, died, or says what cannot be.
pub fn find(scan: &dyn Scan, mask: &SigSet) -> Result<Result<Boot, u8>, MachineFailure> {
    let file = |name| {
        let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC);
        file.map(File::from).map_err(failed("memfd_create"))
    };
    let (kernel, initrd, report) = (file("kernel")?, file("initrd")?, file("boot-plan")?);
    let parent = rustix::process::getpid();
    let Some(child) = forked()? else {
        let code = match prepare(parent, &report, mask) {
            Ok(()) => scan.run(&path(&kernel), &path(&initrd)),
            Err(_) => EXIT_NOT_STARTED,
        };
        std::process::exit(code.into())
    };
    match wait(&child, mask)? {
        0 => {}
        code => return Ok(Err(code)),
    }
    if let Some(signal) = signals::received() {
        return Ok(Err(signals::exit_code(signal)));
    }
    let (plan, cmdline) = read(&report)?;
    Ok(Ok(Boot::Found {
        plan: Box::new(plan),
        kernel,
        initrd,
        cmdline,
    }))
}

/// What makes a fork the process that looks.
fn prepare(parent: Pid, report: &File, mask: &SigSet) -> rustix::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    if rustix::process::getppid() != Some(parent) {
        return Err(rustix::io::Errno::SRCH);
    }
    let most = Rlimit {
        current: Some(MAX_FILE),
        maximum: Some(MAX_FILE),
    };
    rustix::process::setrlimit(Resource::Fsize, most)?;
    rustix::stdio::dup2_stdout(report)?;
    signals::set_mask(mask).map_err(|errno| rustix::io::Errno::from_raw_os_error(errno as i32))
}

/// Name of an open file of this process, and of one that it forks.
fn path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Waits until the search has ended, and passes signals on; its exit code.
fn wait(child: &Child, mask: &SigSet) -> Result<u8, MachineFailure> {
    let mut passed = 0;
    loop {
        let count = signals::count();
        if count > passed {
            passed = count;
            // What it does with a second one is to stop at once.
            let _ = rustix::process::pidfd_send_signal(&child.pidfd, Signal::TERM);
        }
        let mut polled = [PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN)];
        // An interruption is a signal.
        let _ = ppoll(&mut polled, None, Some(*mask));
        let [ended] =
            polled.map(|polled| polled.revents().is_some_and(|events| !events.is_empty()));
        if ended {
            return child.reap();
        }
    }
}

/// The plan and the command line.
fn read(report: &File) -> Result<(BootPlan, String), MachineFailure> {
    let wrong = |what: &str| MachineFailure::Scan(what.to_owned());
    let longest = size_of::<RawPlan>().saturating_add(MAX_BOOT_TEXT);
    let mut bytes = vec![0; longest.saturating_add(1)];
    let len = report.read_at(&mut bytes, 0);
    let len = len.map_err(|error| wrong(&error.to_string()))?;
    bytes.truncate(len);
    if len > longest {
        return Err(wrong("its command line is too long"));
    }
    let (plan, cmdline) =
        RawPlan::read_from_prefix(&bytes).map_err(|_| wrong("there is no plan"))?;
    let plan = BootPlan::read(&plan).map_err(|error| wrong(&error.to_string()))?;
    let cmdline = String::from_utf8_lossy(cmdline).into_owned();
    Ok((plan, cmdline))
}
