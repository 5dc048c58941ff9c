//! What a disk boots, found by an operation in a process of its own: it has a broker and a confined worker like any other.
//!
//! The kernel, the initial RAM disk and the report come in unnamed files of the memory. The report is as untrusted as the
//! disk, and is validated here once more: between the operation and this process lies its own worker.

use super::aside::{self, path};
use super::child::failed;
use super::{MachineFailure, Scan};
use instar_shared::bootscan::{BootPlan as RawPlan, INITRD_ALIGN, MAX_BOOT_TEXT, MAX_INITRD};
use instar_shared::zerocopy::FromBytes;
use instar_vmm::boot_plan::BootPlan;
use instar_vmm::machine::parts::Boot;
use nix::sys::signal::SigSet;
use rustix::fs::MemfdFlags;
use rustix::process::{Resource, Rlimit};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Longest file that the search may write, in bytes: an initial RAM disk is larger than a kernel.
const MAX_FILE: u64 = MAX_INITRD + INITRD_ALIGN;

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
    let code = aside::run(
        mask,
        || prepare(&report),
        || scan.run(&path(&kernel), &path(&initrd)),
    )?;
    if code != 0 {
        return Ok(Err(code));
    }
    let (plan, cmdline) = read(&report)?;
    Ok(Ok(Boot::Found {
        plan: Box::new(plan),
        kernel,
        initrd,
        cmdline,
    }))
}

/// What the process that looks begins with.
fn prepare(report: &File) -> rustix::io::Result<()> {
    let most = Rlimit {
        current: Some(MAX_FILE),
        maximum: Some(MAX_FILE),
    };
    rustix::process::setrlimit(Resource::Fsize, most)?;
    rustix::stdio::dup2_stdout(report)
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
