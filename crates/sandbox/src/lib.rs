//! Broker and confined worker: who may open what, and what is left to a process that runs a guest.
//!
//! [`run_job`] opens the images that the user typed, then forks. The parent is the
//! *broker*: it parses nothing, maps no guest memory, and opens the files that an
//! image names if the [`Policy`] lets it. The child is the *worker*: it makes the
//! microVM, gives up everything else ([`Confinement`]), runs the guest, and prints.
//!
//! ```text
//!            names, slots (SOCK_SEQPACKET)
//!   worker ------------------------------> broker --- openat2, OFD locks ---> files
//!   (KVM)  <------------------------------   |
//!            descriptor (SCM_RIGHTS), facts  '--- signals, 5 s, SIGKILL ---> worker
//! ```
#![cfg(target_os = "linux")]

mod broker;
mod confine;
mod input;
mod jail;
mod layout;
#[cfg(target_arch = "x86_64")]
mod live;
mod locks;
#[cfg(target_arch = "x86_64")]
pub mod machine;
mod names;
mod open;
mod output;
mod policy;
mod rounds;
#[cfg(target_arch = "x86_64")]
pub mod serve;
mod signals;
mod target;
mod walk;
mod window;
mod wire;
mod worker;

pub use confine::{Confinement, Landlock};
pub use input::{
    Access, Described, Encryption, FileOptions, Growth, ImageOptions, InputFile, Part,
};
pub use jail::{Filter, JailError};
pub use layout::Layout;
#[cfg(target_arch = "x86_64")]
pub use live::LiveImage;
pub use locks::Reads;
pub use names::path_of_backing;
pub use output::{FailedOpen, FileFacts, FileTable, JobError, OpenFailure, Output};
pub use policy::{Base, Policy};
pub use rounds::Repair;
pub use worker::Machine;

use instar_vmm::VmError;
use instar_vmm::operation::{Limits, Operation, OperationSpec, Secret};
use rounds::Rounds;
use std::time::Instant;

/// An operation to run, and on what.
#[derive(Clone, Debug)]
pub struct Job {
    /// The operation binary.
    pub elf: &'static [u8],
    /// Bytes of the operation's config struct.
    pub config: Vec<u8>,
    /// The files that the user names, by device slot: at least one. The first decides what a lock
    /// conflict means for the whole job; the first that is made is its target.
    pub inputs: Vec<InputFile>,
    /// Passwords for the images, by slot of [`Self::inputs`].
    pub secrets: Vec<Secret>,
    /// What the guest may use.
    pub limits: Limits,
    /// Which files images may name.
    pub policy: Policy,
    /// What repairs images that are marked dirty, where the operation changes one; it then runs again.
    pub repair: Option<Repair>,
    /// The operation binary that runs in place of [`Self::elf`], with the same config on the same files, once that has
    /// found that it lacks a part which few runs need; of a job that makes no file.
    pub fuller: Option<&'static [u8]>,
    /// The operation binary of what is done once the operation has ended well, with its config on its files, and that
    /// ends the job in its place; of a job that makes no file.
    pub sequel: Option<&'static [u8]>,
}

/// Runs `job` in a microVM of its own and returns the exit code of the process.
///
/// Must be called before any thread is started. The code is what `output`
/// returned, or 130 and 143 where SIGINT and SIGTERM ended the job.
#[must_use]
pub fn run_job(job: Job, output: Box<dyn Output>) -> u8 {
    run_job_on(job, output, Operation::prepare)
}

/// As [`run_job`], on another kind of [`Machine`].
#[must_use]
pub fn run_job_on<M: Machine>(
    job: Job,
    output: Box<dyn Output>,
    prepare: impl FnOnce(OperationSpec) -> Result<M, VmError>,
) -> u8 {
    let started = Instant::now();
    if let (false, Err(e)) = (job.secrets.is_empty(), confine::dump_no_core()) {
        let (step, source) = ("setrlimit CORE", e.into());
        return output.failed(&JobError::Start { step, source }, &FileTable::default());
    }
    let inputs = match open::open_inputs(&job.inputs) {
        Ok(inputs) => inputs,
        Err(failed) => {
            let files = FileTable::with_failure(failed.clone());
            return output.failed(&JobError::Open(failed), &files);
        }
    };
    let mask = match signals::install() {
        Ok(mask) => mask,
        Err(e) => {
            let (step, source) = ("sigaction", e.into());
            return output.failed(&JobError::Start { step, source }, &FileTable::default());
        }
    };
    let rounds = Rounds::new(job, inputs, mask, started);
    broker::run(rounds, output, prepare)
}
