//! The process that waits to see through the next round, and how it is told to begin.

use super::{Child, UNSEEN, run};
use crate::output::Output;
use crate::rounds::{Rounds, Turn};
use crate::wire::{self, passing};
use crate::worker::Machine;
use instar_vmm::VmError;
use instar_vmm::operation::OperationSpec;
use nix::unistd::{ForkResult, fork as fork_process};
use std::os::fd::OwnedFd;

/// One of the two processes after [`fork`].
pub enum Forked {
    /// The one that goes on with this round; the other is its child.
    Parent(Child),
    /// The one that waits, on this line.
    Spare(OwnedFd),
}

/// Forks the process that waits.
///
/// # Errors
/// There is no process or descriptor left.
pub fn fork() -> std::io::Result<Forked> {
    let (own_end, spare_end) = wire::pair()?;
    // SAFETY: `run_job` is documented to be called before any thread exists, so the child may do
    // whatever this process may.
    match unsafe { fork_process() }? {
        ForkResult::Child => {
            drop(own_end);
            Ok(Forked::Spare(spare_end))
        }
        ForkResult::Parent { child } => {
            let spare = Child::new(child.as_raw(), Some(own_end));
            let spare = spare.map_err(std::io::Error::other)?;
            Ok(Forked::Parent(spare))
        }
    }
}

/// Waits for the word, then sees through the rounds that follow; the exit code.
pub fn run_when_told<M: Machine>(
    line: OwnedFd,
    rounds: Rounds,
    mut output: Box<dyn Output>,
    prepare: impl FnOnce(OperationSpec) -> Result<M, VmError>,
) -> u8 {
    let Ok((packet, files)) = passing::receive(&line) else {
        return UNSEEN;
    };
    let Some(next) = wire::decode_next(&packet) else {
        // The job has ended.
        return UNSEEN;
    };
    let table = rounds.table();
    match rounds.next(next, files) {
        Ok(mut rounds) => {
            rounds.boss = Some(line);
            if matches!(rounds.turn, Turn::Sequel) {
                output.go_on();
            }
            run(rounds, output, prepare)
        }
        Err(source) => {
            let step = "dup";
            output.failed(&crate::JobError::Start { step, source }, &table)
        }
    }
}
