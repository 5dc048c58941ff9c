//! Disks: files and block devices of the host, and images whose format a microVM knows ([`store`]); each is served by a
//! thread of its own, with threads for what sleeps.

pub mod store;

use super::events::{BACKEND_EVENT, QueueEvents, SIGNALLED, Wired, event, watch};
use super::parts::{Disk, RateLimit};
use crate::VmError;
use crate::block::{
    ChangeLimits, FileBackend, Files, Finish, Finished, Handover, HostFile, IoPool, Shared,
};
use crate::live::asking::{Asking, HOLD};
use crate::live::backend::{LiveBackend, LiveParts};
use crate::memory::GuestSlot;
use crate::threads::{Begun, Confine};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use instar_devices::blk::{Clock, DiskTraits, VirtioBlk};
use instar_devices::rate::RateLimiter;
use instar_devices::virtio::{SharedDevice, VirtioDevice};
use instar_shared::blk::ID_BYTES;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use store::{LiveDisk, Served, Store};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

/// Threads for what sleeps, of the first disk and of each further one.
const THREADS: usize = 4;
const MORE_THREADS: usize = 2;
const MOST_THREADS: usize = 16;
/// Smallest and largest block that is announced, in bytes.
const BLOCK_BYTES: std::ops::RangeInclusive<u32> = 512..=4096;
/// Event of the timer that ends a wait for the limit.
const LIMIT_EVENT: u32 = BACKEND_EVENT + 1;
/// Event of the channel to a microVM.
const ANSWERS_EVENT: u32 = BACKEND_EVENT + 2;
/// Event of the timer that ends a wait of links for company.
const HOLD_EVENT: u32 = BACKEND_EVENT + 3;

/// A disk's device.
#[derive(Debug)]
pub(super) struct Made {
    /// The device.
    pub device: VirtioBlk<Store>,
    /// Where its requests are when threads have finished them.
    pub finished: Arc<SlotFinished>,
    /// Readable when a microVM has answered, if the disk asks one.
    pub answers: Option<Arc<OwnedFd>>,
}

/// What the disks of a machine have in common.
#[derive(Debug)]
pub struct Disks {
    finished: Arc<FinishedRequests>,
    shared: Shared,
    pool: Arc<IoPool>,
    threads: u8,
}

impl Disks {
    /// Room for `count` disks.
    ///
    /// # Errors
    /// [`VmError::Start`]: no more descriptors.
    pub fn new(count: usize) -> Result<Self, VmError> {
        let finished = Arc::new(FinishedRequests::new(count)?);
        let pool = Arc::new(IoPool::new(Arc::clone(&finished) as Arc<dyn Finish>));
        let threads = match count {
            0 => 0,
            _ => (THREADS + (count - 1).saturating_mul(MORE_THREADS)).min(MOST_THREADS),
        };
        Ok(Self {
            finished,
            shared: Shared {
                files: Files::default(),
                pool: Some(Arc::clone(&pool)),
                handover: Handover::Machine,
            },
            pool,
            threads: u8::try_from(threads).unwrap_or(u8::MAX),
        })
    }

    /// Starts the threads for what sleeps, without waiting until they run.
    ///
    /// # Errors
    /// [`VmError::Start`].
    pub fn begin(&self, confine: &Confine) -> Result<Vec<Begun>, VmError> {
        self.pool.begin(self.threads, confine)
    }

    /// Makes `disk` the device with number `index`, counted from 0.
    ///
    /// # Errors
    /// [`VmError::Start`]: there is no such number. [`VmError::Source`]: it is no disk.
    pub(super) fn device(
        &self,
        index: u16,
        disk: Served,
        memory: &Arc<GuestSlot>,
    ) -> Result<Made, VmError> {
        let no_number = || VmError::Start {
            what: "a disk",
            source: std::io::ErrorKind::InvalidInput.into(),
        };
        let finished = self.finished.slot(index).ok_or_else(no_number)?;
        let (device, answers) = match disk {
            Served::Raw(disk) => (self.file(index, disk, memory), None),
            Served::Live(disk) => {
                let (device, answers) = self.live(index, *disk, memory)?;
                (device, Some(answers))
            }
        };
        Ok(Made {
            device,
            finished,
            answers,
        })
    }

    fn file(&self, index: u16, disk: Disk, memory: &Arc<GuestSlot>) -> VirtioBlk<Store> {
        let traits = DiskTraits {
            len_bytes: disk.len_bytes,
            read_only: disk.read_only,
            block_bytes: block_bytes(&disk.file),
        };
        let limits = ChangeLimits {
            read_only: disk.read_only,
            block_device: disk.block_device,
            max_len_bytes: disk.len_bytes,
        };
        let backend = FileBackend::new(
            index,
            disk.file,
            Arc::clone(memory),
            limits,
            self.shared.clone(),
        );
        let backend = backend.with_id(disk.serial.as_bytes());
        VirtioBlk::new(traits, Store::File(backend))
    }

    /// And what is readable when there are answers.
    fn live(
        &self,
        index: u16,
        disk: LiveDisk,
        memory: &Arc<GuestSlot>,
    ) -> Result<(VirtioBlk<Store>, Arc<OwnedFd>), VmError> {
        let image = disk.files.first().and_then(Option::as_ref);
        let traits = DiskTraits {
            len_bytes: disk.info.len_bytes,
            read_only: disk.info.read_only,
            block_bytes: image.map_or(*BLOCK_BYTES.start(), |image| block_bytes(&image.file)),
        };
        let asking = Asking::new(disk.asker);
        let answers = asking.socket();
        let parts = LiveParts {
            slot: index,
            info: disk.info,
            files: disk.files,
            memory: Arc::clone(memory),
            pool: Arc::clone(&self.pool),
            id: identifier(disk.serial.as_bytes()),
        };
        let backend = LiveBackend::new(parts, asking).map_err(VmError::Source)?;
        let device = VirtioBlk::new(traits, Store::Live(Box::new(backend)));
        Ok((device, answers))
    }

    /// Makes `disk` the device with number `index`, counted from 0. Its subscriber is to have a thread of its own.
    ///
    /// # Errors
    /// [`VmError::Start`]: no more descriptors, or there is no such number.
    pub fn wire(
        &self,
        index: u16,
        disk: Served,
        memory: &Arc<GuestSlot>,
    ) -> Result<Wired, VmError> {
        let rate = disk.rate();
        let Made {
            mut device,
            finished,
            answers,
        } = self.device(index, disk, memory)?;
        let mut timer = None;
        if let Some(limiter) = rate.and_then(limiter) {
            device = device.with_limit(limiter, Box::new(Monotonic(Instant::now())));
            timer = Some(Timer::new()?);
        }
        let hold = answers.as_ref().map(|_| Timer::new()).transpose()?;
        let device = Arc::new(Mutex::new(device));
        let shared: SharedDevice = device.clone();
        let queues = QueueEvents::of(&shared)?;
        let subscriber = DiskEvents {
            device,
            queues: Arc::clone(&queues),
            finished,
            answers,
            timer,
            hold,
        };
        Ok(Wired {
            device: shared,
            queues,
            subscriber: Box::new(subscriber),
        })
    }
}

fn limiter(rate: RateLimit) -> Option<RateLimiter> {
    RateLimiter::new(rate.bytes_per_second, rate.requests_per_second)
}

/// What the host's file system reads and writes at once.
#[allow(clippy::useless_conversion)] // the width of `st_blksize` differs between hosts
fn block_bytes(file: &HostFile) -> u32 {
    let size = rustix::fs::fstat(&**file).ok();
    let size = size.and_then(|stat| u32::try_from(stat.st_blksize).ok());
    let size = size.unwrap_or(*BLOCK_BYTES.start());
    let size = size.clamp(*BLOCK_BYTES.start(), *BLOCK_BYTES.end());
    1 << size.ilog2()
}

/// What the guest reads, of the text.
fn identifier(text: &[u8]) -> [u8; ID_BYTES] {
    let mut id = [0; ID_BYTES];
    for (to, from) in id.iter_mut().zip(text) {
        *to = *from;
    }
    id
}

/// Time since the machine was made.
#[derive(Debug)]
struct Monotonic(Instant);

impl Clock for Monotonic {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// What threads have done for each disk, until its own thread takes it.
#[derive(Debug)]
struct FinishedRequests {
    slots: Vec<Arc<SlotFinished>>,
}

/// What threads have done for one disk.
#[derive(Debug)]
pub(super) struct SlotFinished {
    list: Mutex<Vec<Finished>>,
    event: EventFd,
}

impl FinishedRequests {
    fn new(count: usize) -> Result<Self, VmError> {
        let slot = |_| {
            Ok(Arc::new(SlotFinished {
                list: Mutex::default(),
                event: event("a disk's event")?,
            }))
        };
        let slots: Result<Vec<_>, VmError> = (0..count).map(slot).collect();
        Ok(Self { slots: slots? })
    }

    fn slot(&self, index: u16) -> Option<Arc<SlotFinished>> {
        self.slots.get(usize::from(index)).cloned()
    }
}

impl SlotFinished {
    /// Signalled when there is something.
    pub(super) const fn event(&self) -> &EventFd {
        &self.event
    }

    /// Takes what there is, under the device's lock: a reset must find all that it has to forget.
    pub(super) fn take(&self) -> Vec<Finished> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Finished>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Finish for FinishedRequests {
    fn finish(&self, finished: Finished) {
        let Some(slot) = self.slots.get(usize::from(finished.slot)) else {
            return;
        };
        let mut list = slot.lock();
        let first = list.is_empty();
        list.push(finished);
        drop(list);
        // Whoever takes the first takes all.
        if first {
            let _ = slot.event.write(1);
        }
    }

    fn forget(&self, slot: u16) {
        if let Some(slot) = self.slots.get(usize::from(slot)) {
            slot.lock().clear();
        }
    }
}

/// What wakes a disk's thread.
#[derive(Debug)]
struct DiskEvents {
    device: Arc<Mutex<VirtioBlk<Store>>>,
    queues: Arc<QueueEvents>,
    finished: Arc<SlotFinished>,
    /// Readable when a microVM has answered.
    answers: Option<Arc<OwnedFd>>,
    /// To go on when the limit lets it.
    timer: Option<Timer>,
    /// To send links that no question came for.
    hold: Option<Timer>,
}

/// A timer that goes off once each time it is armed.
#[derive(Debug)]
struct Timer {
    timer: TimerFd,
    /// It runs.
    armed: bool,
}

impl Timer {
    fn new() -> Result<Self, VmError> {
        let timer = TimerFd::new().map_err(|e| VmError::Start {
            what: "a disk's timer",
            source: std::io::Error::from_raw_os_error(e.errno()),
        })?;
        let armed = false;
        Ok(Self { timer, armed })
    }

    /// Has it go off after `wait`, unless it runs.
    fn arm(&mut self, wait: Duration) {
        if !self.armed {
            self.armed = self.timer.reset(wait, None).is_ok();
        }
    }

    /// It has gone off.
    fn take(&mut self) {
        let _ = self.timer.wait();
        self.armed = false;
    }
}

impl Drop for DiskEvents {
    fn drop(&mut self) {
        let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        device.backend().leave();
    }
}

impl MutEventSubscriber for DiskEvents {
    fn init(&mut self, ops: &mut EventOps) {
        self.queues.watch(ops);
        let finished = &self.finished.event;
        watch(ops, Events::with_data(finished, BACKEND_EVENT, SIGNALLED));
        if let Some(answers) = &self.answers {
            watch(ops, Events::with_data(answers, ANSWERS_EVENT, EventSet::IN));
        }
        if let Some(timer) = &self.timer {
            let events = Events::with_data(&timer.timer, LIMIT_EVENT, EventSet::IN);
            watch(ops, events);
        }
        if let Some(hold) = &self.hold {
            let events = Events::with_data(&hold.timer, HOLD_EVENT, EventSet::IN);
            watch(ops, events);
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let finished = Arc::clone(&self.finished);
        let device = Arc::clone(&self.device);
        let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = self.queues.notified(events) {
            device.kick(index);
        } else if [BACKEND_EVENT, ANSWERS_EVENT].contains(&events.data()) {
            let answered = events.data() == ANSWERS_EVENT;
            device.complete(|store| store.take_news(&finished, answered));
            if device.backend().gone().is_some()
                && let Some(answers) = self.answers.take()
            {
                // It would be readable for ever.
                let _ = ops.remove(Events::empty(&answers));
            }
        } else if events.data() == HOLD_EVENT {
            self.hold.iter_mut().for_each(Timer::take);
            device.complete(|_| ());
        } else if let Some(timer) = &mut self.timer {
            timer.take();
            device.serve();
        }
        let (closed_for, holds) = (device.closed_for(), device.backend().holds());
        drop(device);
        if let (Some(timer), Some(wait)) = (&mut self.timer, closed_for) {
            timer.arm(wait);
        }
        if let (Some(hold), true) = (&mut self.hold, holds) {
            hold.arm(HOLD);
        }
    }
}

#[cfg(test)]
mod tests;
