//! The parent: opens files, forks a worker for each boot, connects for it, passes signals on as presses of the power
//! button, reaps it.

use super::child::{Child, EXIT_FAILED, failed, forked};
use super::connect::{self, Asked};
use super::files::MachineFiles;
use super::terminal::Raw;
use super::{
    BootFiles, MachineFailure, MachineJob, MachineOutput, NetName, NetTo, Stream, aside, nets,
    network, scan, worker,
};
use crate::live;
use crate::signals;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::SigSet;
use nix::sys::time::TimeSpec;
use rustix::event::EventfdFlags;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// Runs the machine, boot after boot; the exit code.
pub fn run(job: &MachineJob, output: &mut dyn MachineOutput) -> Result<u8, MachineFailure> {
    let started = Instant::now();
    let mask = signals::install().map_err(|errno| MachineFailure::Start {
        step: "sigaction",
        source: errno.into(),
    })?;
    let button = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    let button = button.map_err(failed("eventfd"))?;
    if let Some(before) = &job.before {
        let code = aside::run(&mask, || Ok(()), || before.run())?;
        if code != 0 {
            return Ok(code);
        }
    }
    let mut files = MachineFiles::open(job, output)?;
    let at_terminal = [&job.serial, &job.console].contains(&&Stream::Stdio);
    let raw = if at_terminal { Raw::enter()? } else { None };
    let mut watch = Watch {
        job,
        mask,
        button,
        timeout: job.timeout.and_then(|limit| started.checked_add(limit)),
        pressed: 0,
        deadline: None,
    };
    let mut began = started;
    let ended = loop {
        let mut scanned = None;
        if let BootFiles::Scan(scan) = &job.boot {
            match scan::find(&**scan, &watch.mask)? {
                Ok(boot) => files.set_boot(Some(boot)),
                Err(code) => break Ok(code),
            }
            scanned = Some(began.elapsed());
        }
        let (child, line, mut networks, readers);
        (files, child, line, networks, readers) =
            start(job, files, &watch, (began, scanned), output)?;
        if scanned.is_some() {
            files.set_boot(None);
        }
        let ended = watch.see_through(&child, &line, files.vsock_path(), &mut networks, output);
        for network in &networks {
            // However it has ended.
            let _ = network.end(network::PATIENCE);
        }
        // The next search reads what they leave.
        let ended = match ended {
            Ok(worker::EXIT_RESET | worker::EXIT_QUIT) if readers.is_empty() => ended,
            Ok(code @ (worker::EXIT_RESET | worker::EXIT_QUIT)) => match live::end(0, &readers) {
                Ok(0) => Ok(code),
                ended => ended,
            },
            Ok(code) => live::end(code, &readers),
            Err(error) => live::end(EXIT_FAILED, &readers).and(Err(error)),
        };
        match ended {
            Ok(worker::EXIT_RESET) if job.reboot && watch.pressed == 0 => began = Instant::now(),
            Ok(worker::EXIT_RESET | worker::EXIT_QUIT) => break Ok(0),
            ended => break ended,
        }
    };
    drop(raw);
    files.remove();
    ended
}

/// The files, the worker, the line to it, its user networks and the readers of its disks.
type Started = (MachineFiles, Child, OwnedFd, Vec<Child>, Vec<Child>);

/// Forks a worker. It has all files, too.
fn start(
    job: &MachineJob,
    files: MachineFiles,
    watch: &Watch<'_>,
    (began, scanned): (Instant, Option<Duration>),
    output: &mut dyn MachineOutput,
) -> Result<Started, MachineFailure> {
    let started = files.networks().map(nets::Network::start);
    let started: Vec<(Child, OwnedFd)> = started.collect::<Result<_, _>>()?;
    let (networks, cards): (Vec<Child>, Vec<OwnedFd>) = started.into_iter().unzip();
    let (readers, unopened) = files.start_readers()?;
    let (own_line, line) = crate::wire::pair().map_err(failed("socketpair"))?;
    let button = watch
        .button
        .try_clone()
        .map_err(|source| MachineFailure::Start {
            step: "dup",
            source,
        })?;
    let parent = rustix::process::getpid();
    if let Some(child) = forked()? {
        return Ok((files, child, own_line, networks, readers));
    }
    drop(own_line);
    // Their descriptors are closed with all others.
    std::mem::forget((networks, readers));
    let start = worker::Start {
        job,
        files,
        cards,
        unopened,
        line,
        button,
        parent,
        began,
        scanned,
    };
    std::process::exit(worker::run(start, output).into())
}

/// What ends a machine from outside.
struct Watch<'a> {
    job: &'a MachineJob,
    /// Signal mask while it waits.
    mask: SigSet,
    button: OwnedFd,
    timeout: Option<Instant>,
    /// Signals that were passed on.
    pressed: u32,
    /// When the guest must be off.
    deadline: Option<Instant>,
}

impl Watch<'_> {
    /// Waits until a worker has ended, and serves it meanwhile; its exit code.
    fn see_through(
        &mut self,
        child: &Child,
        line: &OwnedFd,
        vsock: Option<&Path>,
        networks: &mut Vec<Child>,
        output: &mut dyn MachineOutput,
    ) -> Result<u8, MachineFailure> {
        let mut line = Some(line);
        loop {
            if let Some(ended) = self.stop(child) {
                return ended;
            }
            let (asked, gone, lost) = self.wait(child, line, networks);
            if let (Some(index), false) = (lost, gone) {
                // One that ends well saw the worker's end before this process did. Without the others the guest sees a
                // network that is silent, and goes on.
                if !matches!(networks.swap_remove(index).reap(), Ok(0)) {
                    let passt = |net: &NetName| matches!(net.to, NetTo::Passt(_));
                    output.network_lost(self.job.nets.iter().any(passt));
                }
            }
            if let (true, Some(end)) = (asked, line) {
                match connect::answer(end.as_fd(), vsock) {
                    Asked::Answered | Asked::Nothing => {}
                    Asked::Closed => line = None,
                    Asked::Wrong(what) => {
                        child.kill();
                        return Err(MachineFailure::Protocol(what));
                    }
                }
            }
            if gone {
                return child.reap();
            }
        }
    }

    /// Presses the power button for a first signal; stops the machine for a second one, and when its time is over.
    fn stop(&mut self, child: &Child) -> Option<Result<u8, MachineFailure>> {
        let now = Instant::now();
        let count = signals::count();
        let signal = signals::received().map_or(EXIT_FAILED, signals::exit_code);
        if count > 1 {
            child.kill();
            return Some(Ok(signal));
        }
        if count > self.pressed {
            self.pressed = count;
            self.deadline = now.checked_add(self.job.shutdown);
            let _ = rustix::io::write(&self.button, &1_u64.to_ne_bytes());
        }
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            child.kill();
            return Some(Err(MachineFailure::Deadline(self.job.shutdown)));
        }
        if let (Some(timeout), Some(limit)) = (self.timeout, self.job.timeout)
            && now >= timeout
        {
            child.kill();
            return Some(Err(MachineFailure::Timeout(limit)));
        }
        None
    }

    /// Waits for the worker, a signal or a deadline: whether it asks for something, whether it is gone, and which network is.
    fn wait(
        &self,
        child: &Child,
        line: Option<&OwnedFd>,
        networks: &[Child],
    ) -> (bool, bool, Option<usize>) {
        let until = [self.deadline, self.timeout].into_iter().flatten().min();
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.map(|left| TimeSpec::from_duration(left.max(Duration::from_millis(1))));
        let mut polled = vec![PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN)];
        let processes = networks.iter().map(|network| &network.pidfd);
        let watched = processes
            .chain(line)
            .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN));
        polled.extend(watched);
        // Signals and the time are looked at by the caller.
        let _ = ppoll(&mut polled, left, Some(self.mask));
        let ready = |index: usize| {
            let events = polled.get(index).and_then(PollFd::revents);
            events.is_some_and(|events| !events.is_empty())
        };
        let first_after = networks.len().saturating_add(1);
        let lost = (1..first_after).find(|index| ready(*index));
        let lost = lost.map(|index| index.saturating_sub(1));
        (ready(first_after), ready(0), lost)
    }
}
