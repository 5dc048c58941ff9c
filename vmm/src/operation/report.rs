//! How a run can end badly, in sentences.

use crate::VmError;
use crate::arch::TrapFrame;
use crate::loader;
use instar_shared::layout;
use std::fmt;
use std::time::Duration;

/// Why a run did not end with a result.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The guest faulted.
    #[error("{0}")]
    Crashed(CrashReport),
    /// The guest stopped in a way that no trap explains.
    #[error("operation crashed: {reason} at {position}")]
    Stopped {
        /// What the hypervisor saw.
        reason: String,
        /// Where.
        position: String,
    },
    /// The guest's own panic.
    #[error("operation panicked: {0}")]
    Panicked(String),
    /// The guest makes no progress.
    #[error(
        "operation made no progress for {} s of CPU time (in {position}) and was stopped; the image may be \
         crafted to cause this",
        .limit.as_secs()
    )]
    Stalled {
        /// The limit.
        limit: Duration,
        /// Where it was.
        position: String,
    },
    /// The wall-clock limit.
    #[error("operation was stopped after {} s, as --timeout says", .limit.as_secs_f64())]
    TimedOut {
        /// The limit.
        limit: Duration,
    },
    /// The guest broke the contract.
    #[error("operation broke its contract with the host: {0}; it was stopped")]
    Protocol(String),
    /// The host's side failed.
    #[error(transparent)]
    Vm(#[from] VmError),
}

/// An exception in the guest.
#[derive(Debug)]
pub struct CrashReport {
    frame: TrapFrame,
    location: String,
}

impl CrashReport {
    /// Describes `frame` with the symbols of `elf`.
    #[must_use]
    pub fn new(frame: TrapFrame, elf: &[u8]) -> Self {
        Self {
            location: describe(elf, frame.instruction),
            frame,
        }
    }

    /// The exception as the trap page reported it.
    #[must_use]
    pub const fn frame(&self) -> &TrapFrame {
        &self.frame
    }
}

impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frame = &self.frame;
        write!(f, "operation crashed: {}", frame.name)?;
        match frame.fault_address {
            Some(address) => write!(f, " ({} {address:#x}, {})", frame.detail, region(address))?,
            None if frame.error_code != 0 => write!(f, " (error code {:#x})", frame.error_code)?,
            None => {}
        }
        write!(f, " at {}", self.location)
    }
}

/// `address` with the function that holds it.
pub fn describe(elf: &[u8], address: u64) -> String {
    match loader::symbolize(elf, address) {
        Some((name, offset)) => format!("{address:#x} in {name}+{offset:#x}"),
        None => format!("{address:#x}, {}", region(address)),
    }
}

/// The region of guest memory that `address` lies in or next to.
fn region(address: u64) -> String {
    if address < layout::SYSTEM.start {
        return "in the null page".into();
    }
    if address >= layout::HEAP_START {
        return "in the heap or past it".into();
    }
    if (layout::STACK.start.saturating_sub(layout::REGION_ALIGN)..layout::STACK.start)
        .contains(&address)
    {
        return "in the guard page below the stack: stack overflow".into();
    }
    let inside = layout::REGIONS
        .iter()
        .find(|(_, r)| (r.start..r.end()).contains(&address));
    match inside {
        Some((name, _)) => format!("in the {name} region"),
        None => "between regions".into(),
    }
}
