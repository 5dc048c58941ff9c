//! A machine at work: its threads, and the one that waits for its end.

use super::control::{Control, Ended, Outcome, Report};
use super::disk::Disks;
use super::error::MachineError;
use super::events::{EventThread, Subscriber};
use super::power::PowerButton;
use super::serial::Rest;
use super::transport::Transports;
use super::vcpu::{self, Shared};
use crate::VmError;
use crate::threads::{Begun, Confine, ThreadKind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A machine that is built.
pub struct Machine {
    pub(super) shared: Arc<Shared>,
    pub(super) vcpus: u8,
    pub(super) control: Control,
    /// By thread: what serves devices.
    pub(super) groups: Vec<Vec<Subscriber>>,
    pub(super) disks: Disks,
    pub(super) transports: Transports,
    pub(super) button: Arc<PowerButton>,
    pub(super) serial: Rest,
    pub(super) report: Report,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut machine = f.debug_struct("Machine");
        machine.field("vcpus", &self.vcpus).finish_non_exhaustive()
    }
}

impl Machine {
    /// Starts the threads, confines each of them and then the calling one, and runs the guest to its end.
    ///
    /// # Errors
    /// [`MachineError`]: a thread could not be started or confined. What happens later is an [`Outcome`].
    pub fn run(mut self, confine: &Confine) -> Result<Ended, MachineError> {
        let vcpus: Result<Vec<Begun>, VmError> = (0..self.vcpus)
            .map(|index| vcpu::start(&self.shared, index, confine))
            .collect();
        let vcpus = vcpus?;
        let disks = self.disks.begin(confine)?;
        let groups = std::mem::take(&mut self.groups).into_iter();
        let groups = groups.filter(|group| !group.is_empty());
        let threads: Result<Vec<EventThread>, VmError> = groups
            .map(|group| EventThread::start(group, confine))
            .collect();
        let mut threads = threads?;
        vcpus.into_iter().chain(disks).try_for_each(Begun::wait)?;
        threads.iter_mut().try_for_each(EventThread::wait)?;
        confine(ThreadKind::Machine).map_err(|source| VmError::Start {
            what: "the machine",
            source,
        })?;
        self.phase("threads");
        self.shared.life.resume();
        self.phase("first instruction");
        let outcome = self.wait(&threads);
        // Whoever ends a machine by keys may do so because nobody reads what it says.
        if outcome != Outcome::Quit {
            self.serial.finish();
        }
        self.report.exits = self.shared.counts.exits();
        self.report.marks = self.shared.counts.marks();
        Ok(Ended {
            outcome,
            report: self.report,
        })
    }

    fn phase(&mut self, name: &'static str) {
        let at = self.control.began.elapsed();
        self.report.phases.push((name, at));
    }

    /// Waits for the end; presses the button and recycles devices meanwhile.
    fn wait(&mut self, threads: &[EventThread]) -> Outcome {
        loop {
            if let Some(outcome) = self.shared.life.outcome() {
                return outcome;
            }
            if self.sleep() {
                self.button.press();
            }
            if self.control.recycle.is_some() {
                self.recycle(threads);
            }
        }
    }

    /// Sleeps until something happens or devices are to be recycled; whether the power button is to be pressed.
    fn sleep(&self) -> bool {
        let button = &self.control.power_button;
        let mut ready = [
            PollFd::new(button, PollFlags::IN),
            PollFd::from_borrowed_fd(as_fd(self.shared.life.ended()), PollFlags::IN),
        ];
        let longest = self.control.recycle.map(timespec);
        // A signal is as good a reason to look as any.
        let _ = poll(&mut ready, longest.as_ref());
        let [pressed, _] = ready;
        let pressed = pressed.revents().contains(PollFlags::IN);
        let mut count = [0; 8];
        pressed && rustix::io::read(button, &mut count).is_ok()
    }

    /// Saves, resets and restores all devices while nothing runs.
    fn recycle(&mut self, threads: &[EventThread]) {
        let life = &self.shared.life;
        // What serves a slow access, or waits for whoever reads its output, comes later: the next time may do.
        if life.pause() && threads.iter().all(EventThread::pause) {
            let saved = self.transports.save();
            self.transports.reset();
            let restored = self.transports.restore(&saved);
            self.transports.wake();
            match restored {
                Ok(()) => self.report.recycled = self.report.recycled.saturating_add(1),
                Err(error) => life.end(Outcome::Failed(format!(
                    "internal error: a device could not be restored: {error}; please report this"
                ))),
            }
        }
        threads.iter().for_each(EventThread::resume);
        life.resume();
    }
}

fn as_fd(event: &vmm_sys_util::eventfd::EventFd) -> std::os::fd::BorrowedFd<'_> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open as long as the event is borrowed.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}
