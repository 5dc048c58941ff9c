//! The process of one boot: it builds the machine, gives up everything else, and runs it.

use super::files::MachineFiles;
use super::{MachineFailure, MachineJob, MachineOutput};
use crate::confine;
use crate::jail::Filter;
use crate::live::{EXIT_READER_ENDED, Unopened};
use instar_vmm::machine::Machine;
use instar_vmm::machine::control::{Control, Ended, Outcome};
use instar_vmm::operation::Confine;
use rustix::process::Pid;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Exit code: the guest asked for a reset.
pub const EXIT_RESET: u8 = 64;
/// Exit code: the user typed the escape key.
pub const EXIT_QUIT: u8 = 65;

/// What the worker starts with.
pub struct Start<'a> {
    /// The machine.
    pub job: &'a MachineJob,
    /// Its files.
    pub files: MachineFiles,
    /// To the user networks.
    pub cards: Vec<OwnedFd>,
    /// Disks whose readers have begun.
    pub unopened: Vec<Unopened>,
    /// To the parent.
    pub line: OwnedFd,
    /// The power button.
    pub button: OwnedFd,
    /// The parent.
    pub parent: Pid,
    /// When this boot began.
    pub began: Instant,
    /// From then until it was known what to start, if that had to be looked for.
    pub scanned: Option<Duration>,
}

/// Runs one boot; the exit code.
pub fn run(start: Start<'_>, output: &mut dyn MachineOutput) -> u8 {
    let ended = match machine(start) {
        Ok(ended) => ended,
        Err(error) if error.is_readers_end() => return EXIT_READER_ENDED,
        Err(error) => {
            output.failed(&error);
            return super::child::EXIT_FAILED;
        }
    };
    output.ended(&ended.report, &ended.outcome);
    match ended.outcome {
        Outcome::PowerOff => 0,
        Outcome::Reset => EXIT_RESET,
        Outcome::Quit => EXIT_QUIT,
        Outcome::Failed(sentence) => {
            output.failed(&MachineFailure::Failed(sentence));
            super::child::EXIT_FAILED
        }
    }
}

fn machine(start: Start<'_>) -> Result<Ended, MachineFailure> {
    let job = start.job;
    confine::bind_to(start.parent)?;
    let (parts, mut kept) = start
        .files
        .into_parts(job, start.line, start.cards, start.unopened)?;
    kept.push(start.button.as_raw_fd());
    confine::close_others(&kept)?;
    let control = Control {
        power_button: start.button,
        recycle: job.recycle,
        began: start.began,
        scanned: start.scanned,
    };
    let machine = Machine::build(parts, control)?;
    confine::give_up_files()?;
    Ok(machine.run(&filters())?)
}

/// Installs the filter of a thread of this process.
fn filters() -> Confine {
    let own_pid = std::process::id();
    Arc::new(move |kind| {
        let filter = Filter::Machine { kind, own_pid };
        filter.install().map_err(std::io::Error::other)
    })
}
