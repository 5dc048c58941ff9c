//! What the worker gives up: descriptors, limits, privileges, the file system.

use crate::jail::JailError;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr,
    RulesetError, RulesetStatus, Scope,
};
use rustix::process::{DumpableBehavior, Pid, Resource, Rlimit, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::io;

/// Descriptors that the worker may have: one per device and a few of its own.
const MAX_DESCRIPTORS: u64 = instar_shared::device::MAX_DEVICES as u64 + 64;

/// Descriptors that a user network may have: its flows of each kind, and a few of its own.
#[cfg(target_arch = "x86_64")]
const MAX_NETWORK_DESCRIPTORS: u64 = 6144;

/// How far the kernel's Landlock holds the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landlock {
    /// No file, no TCP port, no process outside.
    Full,
    /// What this kernel's version can hold of that.
    Partial,
    /// This kernel has none; the seccomp filter alone keeps files shut.
    Missing,
}

/// What holds the worker besides its seccomp filters, which always do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// Landlock's part.
    pub landlock: Landlock,
}

/// Ties the worker to the broker `parent` and bounds it. Before the hypervisor is opened.
///
/// # Errors
/// [`JailError`].
pub fn bind_to(parent: Pid) -> Result<(), JailError> {
    bind_with(parent, MAX_DESCRIPTORS)
}

/// As [`bind_to`], for the process of a user network.
///
/// # Errors
/// [`JailError`].
#[cfg(target_arch = "x86_64")]
pub fn bind_network_to(parent: Pid) -> Result<(), JailError> {
    bind_with(parent, MAX_NETWORK_DESCRIPTORS)
}

fn bind_with(parent: Pid, descriptors: u64) -> Result<(), JailError> {
    let failed = |step| {
        move |errno: rustix::io::Errno| JailError::System {
            step,
            source: errno.into(),
        }
    };
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(failed("prctl PDEATHSIG"))?;
    if rustix::process::getppid() != Some(parent) {
        return Err(JailError::Orphaned);
    }
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(failed("prctl DUMPABLE"))?;
    limit(Resource::Core, 0).map_err(failed("setrlimit CORE"))?;
    limit(Resource::Nofile, descriptors).map_err(failed("setrlimit NOFILE"))
}

/// No process that this one becomes or starts leaves its memory in a core file: it holds passwords.
///
/// # Errors
/// Of `setrlimit`.
pub fn dump_no_core() -> rustix::io::Result<()> {
    limit(Resource::Core, 0)
}

/// Lowers both limits to `most`, or raises the soft one up to it as far as the hard one lets.
fn limit(resource: Resource, most: u64) -> rustix::io::Result<()> {
    let old = rustix::process::getrlimit(resource);
    let most = old.maximum.map_or(most, |hard| hard.min(most));
    rustix::process::setrlimit(
        resource,
        Rlimit {
            current: Some(most),
            maximum: Some(most),
        },
    )
}

/// Closes all descriptors but standard output and error and those in `kept`; standard input becomes empty.
///
/// # Errors
/// [`JailError::System`].
pub fn close_others(kept: &[i32]) -> Result<(), JailError> {
    let mut kept: Vec<u32> = kept
        .iter()
        .copied()
        .filter_map(|fd| u32::try_from(fd).ok())
        .collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept {
        if fd > first {
            close_range(first, fd.saturating_sub(1))?;
        }
        first = first.max(fd.saturating_add(1));
    }
    close_range(first, u32::MAX)?;
    empty_input()
}

fn close_range(first: u32, last: u32) -> Result<(), JailError> {
    // SAFETY: no Rust object owns a descriptor in the range: the caller keeps those that are owned.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 {
        return Ok(());
    }
    Err(JailError::System {
        step: "close_range",
        source: io::Error::last_os_error(),
    })
}

/// Puts an always empty file in the place of standard input.
fn empty_input() -> Result<(), JailError> {
    let failed = |source| JailError::System {
        step: "empty standard input",
        source,
    };
    let empty = rustix::fs::memfd_create("stdin", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|e| failed(e.into()))?;
    rustix::stdio::dup2_stdin(&empty).map_err(|e| failed(e.into()))
}

/// Gives up all capabilities, and the file system, TCP and signals to others, as far as the kernel
/// knows how; for the calling thread and all that it starts later. Sets `no_new_privs`.
///
/// # Errors
/// [`JailError`]: the kernel has Landlock and refused.
pub fn give_up_files() -> Result<Confinement, JailError> {
    give_up(AccessNet::from_all(ABI::V6))
}

/// As [`give_up_files`], but TCP is kept: for a user network.
///
/// # Errors
/// [`JailError`]: the kernel has Landlock and refused.
#[cfg(target_arch = "x86_64")]
pub fn give_up_all_but_sockets() -> Result<Confinement, JailError> {
    give_up(BitFlags::EMPTY)
}

fn give_up(ports: BitFlags<AccessNet>) -> Result<Confinement, JailError> {
    rustix::thread::set_no_new_privs(true).map_err(|e| JailError::System {
        step: "prctl NO_NEW_PRIVS",
        source: e.into(),
    })?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).map_err(|e| JailError::System {
        step: "capset",
        source: e.into(),
    })?;
    let status = restrict(ports).map_err(|e| JailError::Landlock(e.to_string()))?;
    let landlock = match status {
        RulesetStatus::FullyEnforced => Landlock::Full,
        RulesetStatus::PartiallyEnforced => Landlock::Partial,
        RulesetStatus::NotEnforced => Landlock::Missing,
    };
    Ok(Confinement { landlock })
}

fn restrict(ports: BitFlags<AccessNet>) -> Result<RulesetStatus, RulesetError> {
    let abi = ABI::V6;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .scope(Scope::from_all(abi))?;
    if !ports.is_empty() {
        ruleset = ruleset.handle_access(ports)?;
    }
    Ok(ruleset.create()?.restrict_self()?.ruleset)
}
