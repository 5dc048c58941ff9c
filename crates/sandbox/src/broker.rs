//! The broker: forks the worker, opens files for it, passes signals on, reaps it, ends its outputs.
//!
//! It reads numbers and names from the worker, never an image. Everything the
//! worker says that no worker says, ends the worker.

mod child;
mod files;
mod outputs;
mod requests;
mod spare;

pub use self::files::{Files, Kept};

use self::child::{Child, Stop, wait};
use self::outputs::Outputs;
use self::requests::Breach;
use self::spare::Forked;
use crate::jail::Filter;
use crate::open::FileId;
use crate::output::{FileTable, JobError, Output};
use crate::rounds::{Resident, Rounds, Turn};
use crate::signals;
use crate::wire::{self, Next};
use crate::worker::{self, Machine};
use instar_vmm::VmError;
use instar_vmm::operation::OperationSpec;
use nix::sys::signal::SigSet;
use nix::unistd::{ForkResult, fork};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Exit code where nobody looks at it.
const UNSEEN: u8 = 1;

/// Runs a round of a job, and those that follow on it: the exit code of the job.
pub fn run<M: Machine>(
    mut rounds: Rounds,
    output: Box<dyn Output>,
    prepare: impl FnOnce(OperationSpec) -> Result<M, VmError>,
) -> u8 {
    let table = rounds.table();
    let failed =
        |step: &'static str| move |source: std::io::Error| JobError::Start { step, source };
    let mask = rounds.mask;
    let files = rounds.files();
    let outputs = match Outputs::new(&rounds.job.inputs, &mut rounds.inputs) {
        Ok(outputs) => outputs,
        Err(e) => return output.failed(&failed("dup")(e), &table),
    };
    let (own_end, worker_end) = match wire::pair() {
        Ok(pair) => pair,
        Err(e) => return output.failed(&failed("socketpair")(e.into()), &table),
    };
    let parent = rustix::process::getpid();
    let goes_on = rounds.may_go_on() && outputs.is_empty();
    let mut broker = Broker::new(&mut rounds, files, outputs);
    // SAFETY: `run_job` is documented to be called before any thread exists, so the child may do
    // whatever this process may.
    let child = match unsafe { fork() } {
        Err(e) => return output.failed(&failed("fork")(e.into()), &table),
        Ok(ForkResult::Child) => {
            drop(own_end);
            // Its outputs are the parent's to end; their descriptors are closed with all others.
            std::mem::forget(broker);
            let start = worker::Start {
                program: rounds.into_program(),
                socket: worker_end,
                parent,
                mask,
            };
            std::process::exit(worker::run(start, output, prepare).into())
        }
        Ok(ForkResult::Parent { child }) => Child::new(child.as_raw(), None),
    };
    drop(worker_end);
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return end(broker, Err(error), output, &table),
    };
    match goes_on.then(spare::fork).transpose() {
        Ok(Some(Forked::Spare(line))) => {
            drop(own_end);
            rounds.kept.append(&mut broker.files.take_kept());
            std::process::exit(spare::run_when_told(line, rounds, output, prepare).into())
        }
        Ok(Some(Forked::Parent(spare))) => broker.spare = Some(spare),
        Ok(None) => {}
        Err(e) => {
            child.kill();
            let _ = child.reap();
            return end(broker, Err(failed("fork")(e)), output, &table);
        }
    }
    let boss = rounds.boss.take();
    let has_boss = boss.is_some();
    drop(rounds);
    match broker.see_through(&mut child, own_end, boss, &mask) {
        // The boss says it.
        Err(JobError::Killed) if has_boss => UNSEEN,
        ended => end(broker, ended, output, &table),
    }
}

/// Ends the outputs, and says what went wrong; the exit code of the job.
fn end(
    mut broker: Broker,
    ended: Result<u8, JobError>,
    output: Box<dyn Output>,
    table: &FileTable,
) -> u8 {
    match broker.outputs.settle(ended) {
        Ok(code) => code,
        Err(JobError::Killed) => {
            // The sentence may be the output's own; the code is the signal's.
            let code = output.failed(&JobError::Killed, table);
            signals::received().map_or(code, signals::exit_code)
        }
        Err(error) => output.failed(&error, table),
    }
}

/// What the worker asks for, and how often it did.
#[derive(Debug)]
struct Broker {
    files: Files,
    outputs: Outputs,
    requests: u32,
    /// Images that earlier rounds have repaired.
    tried: Vec<(FileId, Vec<u8>)>,
    /// The worker repairs an image.
    repairs: bool,
    /// Another operation follows the worker's.
    has_sequel: bool,
    /// The worker's operation has a fuller program.
    has_fuller: bool,
    /// Who sees through the next round, if there is one.
    spare: Option<Child>,
    /// What that is.
    next: Option<Next>,
    /// To the process that uses what a resident operation reads: it gets all files that are opened.
    user: Option<OwnedFd>,
}

impl Broker {
    fn new(rounds: &mut Rounds, files: Files, outputs: Outputs) -> Self {
        let user = rounds.resident.as_mut().and_then(Resident::take_files);
        Self {
            user,
            files,
            outputs,
            requests: 0,
            tried: rounds.tried(),
            repairs: matches!(rounds.turn, Turn::Repair { .. }),
            has_sequel: rounds.has_sequel(),
            has_fuller: rounds.has_fuller(),
            spare: None,
            next: None,
        }
    }

    /// Serves the worker until it ends, then waits for the rounds that follow; the exit code.
    fn see_through(
        &mut self,
        child: &mut Child,
        socket: OwnedFd,
        boss: Option<OwnedFd>,
        mask: &SigSet,
    ) -> Result<u8, JobError> {
        let filter = Filter::Broker {
            outputs: !self.outputs.is_empty(),
        };
        if let Err(e) = filter.install() {
            child.kill();
            let _ = child.reap();
            return Err(e.into());
        }
        let mut stop = Stop::new(boss);
        let code = self.serve(child, Some(socket), &mut stop, mask)?;
        let (Some(next), Some(mut spare), 0) = (self.next.take(), self.spare.take(), code) else {
            return Ok(code);
        };
        if let Err(errno) = self.hand_over(&next, &spare) {
            spare.kill();
            let _ = spare.reap();
            return Err(JobError::Start {
                step: "sendmsg",
                source: errno.into(),
            });
        }
        stop.begins();
        self.serve(&mut spare, None, &mut stop, mask)
    }

    /// Serves a process until it ends; its exit code.
    fn serve(
        &mut self,
        child: &mut Child,
        mut socket: Option<OwnedFd>,
        stop: &mut Stop,
        mask: &SigSet,
    ) -> Result<u8, JobError> {
        loop {
            if stop.look(child) {
                let _ = child.reap();
                return Err(JobError::Killed);
            }
            let Some((request, exited)) = wait(child, socket.as_ref(), stop, mask) else {
                continue;
            };
            if exited {
                return child.reap();
            }
            if let (true, Some(end)) = (request, &socket) {
                match self.answer(end.as_fd()) {
                    Ok(true) => {}
                    Ok(false) => {
                        socket = None;
                        if self.next.is_none() {
                            // It ends while the worker does.
                            self.dismiss();
                        }
                    }
                    Err(Breach(what)) => {
                        child.kill();
                        let _ = child.reap();
                        return Err(JobError::WorkerProtocol(what));
                    }
                }
            }
        }
    }

    /// No round follows.
    fn dismiss(&mut self) {
        if let Some(spare) = &mut self.spare {
            spare.line = None;
        }
    }

    /// Sends what is next, and the files that it needs besides those that the user typed.
    fn hand_over(&self, next: &Next, spare: &Child) -> rustix::io::Result<()> {
        let line = spare.line.as_ref().ok_or(rustix::io::Errno::PIPE)?;
        let image = match next {
            Next::Repair { dirty, .. } => self.files.written(dirty.slot),
            Next::Again(_) | Next::Sequel | Next::Fuller(_) => None,
        };
        let image = image.and_then(|image| image.file);
        let named = self.files.written_named().map(AsFd::as_fd);
        let files: Vec<BorrowedFd<'_>> = named.chain(image.map(|image| image.as_fd())).collect();
        wire::passing::send(line.as_fd(), &wire::encode_next(next), &files)
    }
}

impl Drop for Broker {
    /// A process that waits for a round holds locks: it ends first.
    fn drop(&mut self) {
        if let Some(mut spare) = self.spare.take() {
            spare.line = None;
            let _ = spare.reap();
        }
    }
}
