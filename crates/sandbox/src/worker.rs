//! The worker: makes the microVM, gives up everything else, runs, prints.

mod again;
mod broker;
mod files;
mod host;

use self::files::typed_file;
use self::host::Host;
use crate::confine;
use crate::jail::Filter;
use crate::output::{JobError, Output};
use crate::rounds::Program;
use crate::signals;
use instar_shared::op::Outcome;
use instar_vmm::VmError;
use instar_vmm::operation::{
    Completed, Confine, Operation, OperationHost, OperationSpec, RESULT_BYTES, Resident, RunError,
    ThreadKind,
};
use nix::sys::signal::SigSet;
use rustix::process::Pid;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

/// Something that runs an operation; prepared with all permissions, run without.
pub trait Machine {
    /// Runs to the end.
    ///
    /// # Errors
    /// Everything but a result.
    fn run(self, host: &mut dyn OperationHost) -> Result<Completed, RunError>;

    /// Starts the threads that the operation asks for; each calls `confine` before it does anything.
    ///
    /// # Errors
    /// A thread could not be made, or not be confined.
    fn start_threads(&mut self, confine: &Confine) -> Result<(), VmError> {
        let _ = confine;
        Ok(())
    }
}

impl Machine for Operation {
    fn run(self, host: &mut dyn OperationHost) -> Result<Completed, RunError> {
        Self::run(self, host)
    }

    fn start_threads(&mut self, confine: &Confine) -> Result<(), VmError> {
        Self::start_threads(self, confine)
    }
}

/// What the worker starts with.
pub struct Start {
    /// What is run.
    pub program: Program,
    /// To the broker.
    pub socket: OwnedFd,
    /// The broker.
    pub parent: Pid,
    /// Signal mask to run with.
    pub mask: SigSet,
}

/// Runs the job in this process, the worker; its exit code.
pub fn run<M: Machine>(
    start: Start,
    mut output: Box<dyn Output>,
    prepare: impl FnOnce(OperationSpec) -> Result<M, VmError>,
) -> u8 {
    let mut program = start.program;
    let channel = program.channel.take();
    let asked_at = channel.as_ref().map(AsRawFd::as_raw_fd);
    let mut host = Host::new(&program, start.socket, &mut *output);
    host.asked_by = channel.and_then(asked_by);
    let spec = OperationSpec {
        elf: program.elf,
        config: program.config,
        files: program.inputs.into_iter().map(typed_file).collect(),
        secrets: program.secrets,
        limits: program.limits,
        resident: asked_at.is_some(),
        cancel: &signals::CANCEL,
    };
    let ended = confined_machine(
        spec,
        prepare,
        (start.parent, &start.mask),
        asked_at,
        &mut host,
    )
    .and_then(|machine| machine.run(&mut host).map_err(JobError::Run))
    .map(|completed| host.accept(completed));
    let ended = match host.in_use.take() {
        Some(failed) => Err(JobError::Open(failed)),
        None => ended.and_then(|completed| host.last(completed)),
    };
    let files = std::mem::take(&mut host.files);
    // The broker sees this, and lets go of what the next round would need.
    drop(host);
    let ended = match ended {
        Ok(Some(completed)) => Ok(completed),
        Ok(None) => {
            output.pause();
            return 0;
        }
        Err(error) => Err(error),
    };
    match ended {
        Ok(completed) => {
            output.ran(&completed.stats);
            let code = output.finish(&completed.result, &files);
            let cancelled = outcome(&completed.result) == Some(Outcome::Cancelled);
            signals::received()
                .filter(|_| cancelled)
                .map_or(code, signals::exit_code)
        }
        Err(error) => output.failed(&error, &files),
    }
}

/// Who asks a resident guest on a channel.
#[cfg(target_arch = "x86_64")]
fn asked_by(channel: OwnedFd) -> Option<Box<dyn Resident>> {
    Some(Box::new(instar_vmm::live::channel::Port::new(channel)))
}

/// Nobody: there are no machines here whose disks it could answer for.
#[cfg(not(target_arch = "x86_64"))]
fn asked_by(_channel: OwnedFd) -> Option<Box<dyn Resident>> {
    None
}

/// Prepares the machine, then leaves this process nothing but it.
fn confined_machine<M: Machine>(
    spec: OperationSpec,
    prepare: impl FnOnce(OperationSpec) -> Result<M, VmError>,
    (parent, mask): (Pid, &SigSet),
    channel: Option<i32>,
    host: &mut Host<'_>,
) -> Result<M, JobError> {
    confine::bind_to(parent)?;
    let socket = host.broker.number();
    let kept: Vec<i32> = spec
        .files
        .iter()
        .map(|file| file.file.as_raw_fd())
        .chain([socket])
        .chain(channel)
        .collect();
    confine::close_others(&kept)?;
    signals::set_mask(mask).map_err(|e| JobError::Start {
        step: "sigprocmask",
        source: e.into(),
    })?;
    let writes = spec.files.iter().any(|file| !file.read_only);
    let mut machine = prepare(spec).map_err(JobError::Vm)?;
    // The first use of the clock looks for the vDSO, with calls (and a file, on old kernels)
    // that are gone after this.
    let _ = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let confinement = confine::give_up_files()?;
    host.output.confined(&confinement);
    // They inherit what was given up so far.
    let threads = machine.start_threads(&thread_filter(writes));
    threads.map_err(JobError::Vm)?;
    let filter = Filter::Vcpu {
        socket,
        channel,
        writes,
    };
    filter.install()?;
    Ok(machine)
}

/// Installs the filter of a thread.
fn thread_filter(writes: bool) -> Confine {
    Arc::new(move |kind| {
        let filter = match kind {
            ThreadKind::Io => Filter::Io { writes },
            ThreadKind::Vcpu => Filter::FurtherVcpu,
            kind => Filter::Machine {
                kind,
                own_pid: std::process::id(),
            },
        };
        filter.install().map_err(std::io::Error::other)
    })
}

/// Every result starts with how the operation ended.
fn outcome(result: &[u8; RESULT_BYTES]) -> Option<Outcome> {
    let (head, _) = result.split_first_chunk::<4>()?;
    Outcome::try_from(u32::from_le_bytes(*head)).ok()
}
