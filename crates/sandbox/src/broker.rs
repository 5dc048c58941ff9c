//! The broker: forks the worker, opens files for it, passes signals on, reaps it, ends its outputs.
//!
//! It reads numbers and names from the worker, never an image. Everything the
//! worker says that no worker says, ends the worker.

mod files;
mod outputs;

use self::files::Files;
use self::outputs::Outputs;
use crate::jail::Filter;
use crate::open::Opened;
use crate::output::{FileTable, JobError, Output};
use crate::wire::{self, Message};
use crate::worker::{self, Machine};
use crate::{Job, signals};
use instar_vmm::VmError;
use instar_vmm::operation::OperationSpec;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::SigSet;
use nix::sys::time::TimeSpec;
use nix::unistd::{ForkResult, fork};
use rustix::net::{
    AddressFamily, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketFlags, SocketType,
};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long the worker has to end after a signal.
const GRACE: Duration = Duration::from_secs(5);
/// Requests of one job: more than slots, as opens may fail.
const MAX_REQUESTS: u32 = 4096;

/// Forks the worker and serves it; the exit code of the job.
pub fn run<M: Machine>(
    job: Job,
    mut inputs: Vec<Opened>,
    output: Box<dyn Output>,
    prepare: impl FnOnce(OperationSpec) -> Result<M, VmError>,
) -> u8 {
    let table = FileTable::with_inputs(inputs.iter().map(|input| input.facts.clone()));
    let failed =
        |step: &'static str| move |source: std::io::Error| JobError::Start { step, source };
    let files = Files::new(&job, &inputs);
    let outputs = match Outputs::new(&job.inputs, &mut inputs) {
        Ok(outputs) => outputs,
        Err(e) => return output.failed(&failed("dup")(e), &table),
    };
    let mask = match signals::install() {
        Ok(mask) => mask,
        Err(e) => return output.failed(&failed("sigaction")(e.into()), &table),
    };
    let (own_end, worker_end) = match socket_pair() {
        Ok(pair) => pair,
        Err(e) => return output.failed(&failed("socketpair")(e.into()), &table),
    };
    let parent = rustix::process::getpid();
    let mut broker = Broker {
        files,
        outputs,
        requests: 0,
    };
    // SAFETY: `run_job` is documented to be called before any thread exists, so the child may do
    // whatever this process may.
    match unsafe { fork() } {
        Err(e) => output.failed(&failed("fork")(e.into()), &table),
        Ok(ForkResult::Child) => {
            drop(own_end);
            // Its outputs are the parent's to end; their descriptors are closed with all others.
            std::mem::forget(broker);
            let start = worker::Start {
                elf: job.elf,
                config: job.config,
                secrets: job.secrets,
                limits: job.limits,
                inputs: job.inputs.into_iter().zip(inputs).collect(),
                socket: worker_end,
                parent,
                mask,
            };
            std::process::exit(worker::run(start, output, prepare).into())
        }
        Ok(ForkResult::Parent { child }) => {
            drop((worker_end, inputs, job.secrets));
            let ended =
                Child::new(child.as_raw()).and_then(|child| broker.serve(&child, own_end, &mask));
            match broker.outputs.settle(ended) {
                Ok(code) => code,
                Err(JobError::Killed) => {
                    // The sentence may be the output's own; the code is the signal's.
                    let code = output.failed(&JobError::Killed, &table);
                    signals::received().map_or(code, signals::exit_code)
                }
                Err(error) => output.failed(&error, &table),
            }
        }
    }
}

fn socket_pair() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
}

/// The worker process, seen from outside.
struct Child {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Child {
    fn new(pid: i32) -> Result<Self, JobError> {
        let failed = |errno: rustix::io::Errno| JobError::Start {
            step: "pidfd_open",
            source: errno.into(),
        };
        let pid = Pid::from_raw(pid)
            .ok_or(rustix::io::Errno::SRCH)
            .map_err(failed)?;
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { pid, pidfd }),
            Err(errno) => {
                // A worker that cannot be watched must not run; its death needs no descriptor.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
                let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
                Err(failed(errno))
            }
        }
    }

    fn signal(&self, signal: Signal) {
        // It may be gone already, which the wait finds out.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, signal);
    }

    /// Waits for the end: the exit code, or the signal as an error.
    fn reap(&self) -> Result<u8, JobError> {
        let failed = |errno: rustix::io::Errno| JobError::Start {
            step: "waitpid",
            source: errno.into(),
        };
        loop {
            match rustix::process::waitpid(Some(self.pid), WaitOptions::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(failed(errno)),
                Ok(None) => {}
                Ok(Some((_, status))) => {
                    if let Some(signal) = status.terminating_signal() {
                        return Err(JobError::WorkerDied { signal });
                    }
                    return Ok(status
                        .exit_status()
                        .and_then(|code| u8::try_from(code).ok())
                        .unwrap_or(1));
                }
            }
        }
    }
}

/// What the worker asks for, and how often it did.
#[derive(Debug)]
struct Broker {
    files: Files,
    outputs: Outputs,
    requests: u32,
}

/// What ended the serving early.
struct Breach(&'static str);

impl Broker {
    /// Serves the worker until it ends; its exit code.
    fn serve(&mut self, child: &Child, socket: OwnedFd, mask: &SigSet) -> Result<u8, JobError> {
        let filter = Filter::Broker {
            outputs: !self.outputs.is_empty(),
        };
        if let Err(e) = filter.install() {
            child.signal(Signal::KILL);
            let _ = child.reap();
            return Err(e.into());
        }
        let mut socket = Some(socket);
        let mut stop = Stop::default();
        loop {
            if stop.look(child) {
                let _ = child.reap();
                return Err(JobError::Killed);
            }
            let Some((request, exited)) = wait(child, socket.as_ref(), stop.left(), mask) else {
                continue;
            };
            if exited {
                return child.reap();
            }
            if let (true, Some(end)) = (request, &socket) {
                match self.answer(end.as_fd()) {
                    Ok(true) => {}
                    Ok(false) => socket = None,
                    Err(Breach(what)) => {
                        child.signal(Signal::KILL);
                        let _ = child.reap();
                        return Err(JobError::WorkerProtocol(what));
                    }
                }
            }
        }
    }

    /// Answers one request; false if the worker closed its end.
    fn answer(&mut self, socket: BorrowedFd<'_>) -> Result<bool, Breach> {
        let mut packet = [0; wire::MAX_REQUEST + 1];
        let mut no_control = rustix::net::RecvAncillaryBuffer::default();
        let mut buffers = [IoSliceMut::new(&mut packet)];
        let received = match rustix::net::recvmsg(
            socket,
            &mut buffers,
            &mut no_control,
            RecvFlags::DONTWAIT,
        ) {
            Ok(received) => received,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return Ok(true),
            Err(_) => return Ok(false),
        };
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(Breach("a request that is too long"));
        }
        if received.bytes == 0 {
            return Ok(false);
        }
        let message = packet.get(..received.bytes).and_then(wire::decode_message);
        let message = message.ok_or(Breach("a malformed request"))?;
        self.requests = self.requests.saturating_add(1);
        if self.requests > MAX_REQUESTS {
            return Err(Breach("too many requests"));
        }
        let (reply, file) = match message {
            Message::Open(request) => self.files.open(&request),
            Message::Begin(slot) => (self.outputs.begin(slot), None),
        };
        send(
            socket,
            &wire::encode_reply(&reply),
            file.as_ref().map(AsFd::as_fd),
        )?;
        Ok(true)
    }
}

/// Sends a reply without ever waiting for the worker.
fn send(socket: BorrowedFd<'_>, packet: &[u8], file: Option<BorrowedFd<'_>>) -> Result<(), Breach> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = file.into_iter().collect();
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    match rustix::net::sendmsg(socket, &[IoSlice::new(packet)], &mut control, flags) {
        // A worker that is gone is found by the wait.
        Ok(_) | Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Ok(()),
        Err(_) => Err(Breach("it does not take its answers")),
    }
}

/// Waits for a request or the worker's end: which of them came. `None`: a signal or `left` did.
fn wait(
    child: &Child,
    socket: Option<&OwnedFd>,
    left: Option<Duration>,
    mask: &SigSet,
) -> Option<(bool, bool)> {
    let mut fds = vec![PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN)];
    fds.extend(socket.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
    let ready = ppoll(&mut fds, left.map(TimeSpec::from_duration), Some(*mask)).ok()?;
    let is_ready = |fd: Option<&PollFd<'_>>| fd.and_then(PollFd::any).unwrap_or(false);
    (ready > 0).then(|| (is_ready(fds.get(1)), is_ready(fds.first())))
}

/// Signals on their way to the worker.
#[derive(Default)]
struct Stop {
    deadline: Option<Instant>,
}

impl Stop {
    /// Passes the first signal on; true if the worker was killed: a second one came, or time is up.
    fn look(&mut self, child: &Child) -> bool {
        let kill = match (signals::received(), self.deadline) {
            (None, _) => return false,
            (Some(first), None) => {
                self.deadline = Instant::now().checked_add(GRACE);
                // The same one, as the worker's exit code names it.
                child.signal(match first {
                    libc::SIGINT => Signal::INT,
                    libc::SIGHUP => Signal::HUP,
                    _ => Signal::TERM,
                });
                signals::count() > 1
            }
            (Some(_), Some(deadline)) => signals::count() > 1 || Instant::now() >= deadline,
        };
        if kill {
            child.signal(Signal::KILL);
        }
        kill
    }

    fn left(&self) -> Option<Duration> {
        self.deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }
}
