//! The broker: forks the worker, opens files for it, passes signals on, reaps it, ends its outputs.
//!
//! It reads numbers and names from the worker, never an image. Everything the
//! worker says that no worker says, ends the worker.

mod files;
mod outputs;
mod spare;

pub use self::files::{Files, Kept};

use self::outputs::Outputs;
use self::spare::Forked;
use crate::jail::Filter;
use crate::open::FileId;
use crate::output::{FileTable, JobError, Output};
use crate::rounds::{Resident, Rounds, Turn};
use crate::signals;
use crate::wire::{self, Dirty, Message, Next, Reply};
use crate::worker::{self, Machine};
use instar_vmm::VmError;
use instar_vmm::operation::OperationSpec;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::SigSet;
use nix::sys::time::TimeSpec;
use nix::unistd::{ForkResult, fork};
use rustix::net::{RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use std::cell::Cell;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long the worker has to end after a signal.
const GRACE: Duration = Duration::from_secs(5);
/// Requests of one job: more than slots, as opens may fail.
const MAX_REQUESTS: u32 = 4096;
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

/// A process that was forked, seen from outside: a worker, or one that sees through the rounds that follow.
#[derive(Debug)]
struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    /// What hangs up to end a process that is no worker.
    line: Option<OwnedFd>,
}

impl Child {
    fn new(pid: i32, line: Option<OwnedFd>) -> Result<Self, JobError> {
        let failed = |errno: rustix::io::Errno| JobError::Start {
            step: "pidfd_open",
            source: errno.into(),
        };
        let pid = Pid::from_raw(pid)
            .ok_or(rustix::io::Errno::SRCH)
            .map_err(failed)?;
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { pid, pidfd, line }),
            Err(errno) => {
                // A process that cannot be watched must not run; its death needs no descriptor.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
                let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
                Err(failed(errno))
            }
        }
    }

    /// Ends a worker as a power cut does; another process does so with its own.
    fn kill(&mut self) {
        if self.line.take().is_none() {
            self.signal(Signal::KILL);
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

/// What ended the serving early.
struct Breach(&'static str);

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

    /// Notes what the next round does.
    fn repair(&mut self, dirty: Dirty) -> Reply {
        let Some(written) = self.files.written(dirty.slot) else {
            return Reply::Invalid;
        };
        if let Some((_, complaint)) = self.tried.iter().find(|(id, _)| *id == written.id) {
            return Reply::Tried(complaint.clone());
        }
        let next = Next::Repair {
            dirty,
            root: written.root,
            facts: written.facts.clone(),
        };
        self.follow(next)
    }

    fn follow(&mut self, next: Next) -> Reply {
        let waits = self
            .spare
            .as_ref()
            .is_some_and(|spare| spare.line.is_some());
        if !waits || self.next.is_some() {
            return Reply::Invalid;
        }
        self.next = Some(next);
        Reply::Noted
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
            Message::Open(request) => {
                let (reply, file) = self.files.open(&request);
                if let (Some(user), Some(file)) = (&self.user, &file) {
                    let packet = wire::encode_shared(request.slot, &reply);
                    // One that has gone needs none, and the operation hears of that by its channel.
                    let _ = wire::passing::send(user.as_fd(), &packet, &[file.as_fd()]);
                }
                (reply, file)
            }
            Message::Begin(slot) => {
                if self.next.is_none() && !self.has_sequel {
                    // All that is changed has been found sound, so no round follows. Who waits need not keep passwords any
                    // longer.
                    self.dismiss();
                }
                (self.outputs.begin(slot), None)
            }
            Message::Repair(dirty) => (self.repair(dirty), None),
            Message::Repaired(complaint) if self.repairs => {
                (self.follow(Next::Again(complaint)), None)
            }
            Message::Done if self.has_sequel => (self.follow(Next::Sequel), None),
            Message::Fuller(shown) if self.has_fuller => (self.follow(Next::Fuller(shown)), None),
            Message::Repaired(_) | Message::Done | Message::Fuller(_) => (Reply::Invalid, None),
        };
        send(
            socket,
            &wire::encode_reply(&reply),
            file.as_ref().map(|file| file.as_fd()),
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

impl Drop for Broker {
    /// A process that waits for a round holds locks: it ends first.
    fn drop(&mut self) {
        if let Some(mut spare) = self.spare.take() {
            spare.line = None;
            let _ = spare.reap();
        }
    }
}

/// Waits for a request or the child's end: which of them came. `None`: a signal, the boss or time did.
fn wait(
    child: &Child,
    socket: Option<&OwnedFd>,
    stop: &Stop,
    mask: &SigSet,
) -> Option<(bool, bool)> {
    let mut fds = vec![PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN)];
    fds.extend(socket.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
    let at_boss = fds.len();
    fds.extend(
        stop.boss
            .as_ref()
            .map(|boss| PollFd::new(boss.as_fd(), PollFlags::POLLIN)),
    );
    let left = stop.left().map(TimeSpec::from_duration);
    let ready = ppoll(&mut fds, left, Some(*mask)).ok()?;
    let is_ready = |fd: Option<&PollFd<'_>>| fd.and_then(PollFd::any).unwrap_or(false);
    if is_ready(fds.get(at_boss)) {
        stop.hung_up.set(true);
        return None;
    }
    (ready > 0).then(|| {
        let request = socket.is_some() && is_ready(fds.get(1));
        (request, is_ready(fds.first()))
    })
}

/// Signals on their way to the child.
#[derive(Default)]
struct Stop {
    deadline: Option<Instant>,
    passed_on: bool,
    /// Who counts signals and the time for this process.
    boss: Option<OwnedFd>,
    hung_up: Cell<bool>,
}

impl Stop {
    fn new(boss: Option<OwnedFd>) -> Self {
        Self {
            boss,
            ..Self::default()
        }
    }

    /// Another child begins: it has had no signal, and all the time.
    fn begins(&mut self) {
        self.deadline = None;
        self.passed_on = false;
    }

    /// Passes the first signal on; true if the child was killed: a second one came, time is up, or the boss hung up.
    fn look(&mut self, child: &mut Child) -> bool {
        if let Some(first) = signals::received()
            && !std::mem::replace(&mut self.passed_on, true)
        {
            self.deadline = Instant::now().checked_add(GRACE);
            // The same one, as the worker's exit code names it.
            child.signal(match first {
                libc::SIGINT => Signal::INT,
                libc::SIGHUP => Signal::HUP,
                _ => Signal::TERM,
            });
        }
        let late = |deadline| Instant::now() >= deadline;
        let kill = match &self.boss {
            Some(_) => self.hung_up.get(),
            None => self.passed_on && (signals::count() > 1 || self.deadline.is_some_and(late)),
        };
        if kill {
            child.kill();
        }
        kill
    }

    fn left(&self) -> Option<Duration> {
        let deadline = self.deadline.filter(|_| self.boss.is_none());
        deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }
}
