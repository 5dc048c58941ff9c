//! Threads that do long requests while the vCPU runs on.
//!
//! The device's thread (of an operation, the vCPU's) hands requests over and takes what is finished from where
//! [`Finish`] puts it; it alone touches virtqueues. A file system lets one write to a file at a time: while a thread is at one, the others
//! take what else there is, rather than sleep for their turn. A thread holds on to the file and the guest's memory until its request has
//! ended, so neither can go away under it.

use super::host::HostFile;
use super::work::Work;
use crate::VmError;
use crate::memory::GuestSlot;
use crate::threads::{self, Begun, Confine, ThreadKind};
use instar_devices::blk::{Completion, Token};
use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A request for the threads.
#[derive(Debug)]
pub struct Job {
    /// The device, to which the completion goes back.
    pub slot: u16,
    /// The request of that device.
    pub token: Token,
    /// What to do.
    pub work: Work,
    /// Whether it waits for its turn while another such request of the device is done.
    pub alone: bool,
    /// On what.
    pub file: Arc<HostFile>,
    /// With whose buffers.
    pub memory: Arc<GuestSlot>,
}

/// A request that has ended.
#[derive(Debug)]
pub struct Finished {
    /// The device.
    pub slot: u16,
    /// The request of that device.
    pub token: Token,
    /// How it ended.
    pub completion: Completion,
}

/// Takes what the threads have finished; called on them.
pub trait Finish: Debug + Send + Sync {
    /// A request is done.
    fn finish(&self, finished: Finished);

    /// What is done and not taken yet of `slot` is of no interest any more.
    fn forget(&self, slot: u16);
}

/// The threads; they end with the value, or when they are done with what they do then.
#[derive(Debug)]
pub struct IoPool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
    /// Told when a request of a device that waits for that has ended.
    ended: Condvar,
    finish: Arc<dyn Finish>,
    stop: AtomicBool,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Threads that sleep.
    idle: usize,
    /// Devices of which a request is done that is to be done alone.
    busy: Vec<u16>,
    /// The devices of all requests that are done now.
    running: Vec<u16>,
    /// Devices that wait until none of theirs is.
    stopping: Vec<u16>,
}

impl Queue {
    /// Takes the oldest request that can be done now.
    fn take(&mut self) -> Option<Job> {
        let busy = &self.busy;
        let mut jobs = self.jobs.iter();
        let ready = jobs.position(|job| !job.alone || !busy.contains(&job.slot))?;
        let job = self.jobs.remove(ready)?;
        if job.alone {
            self.busy.push(job.slot);
        }
        self.running.push(job.slot);
        Some(job)
    }
}

impl IoPool {
    /// A pool without threads that reports to `finish`.
    pub fn new(finish: Arc<dyn Finish>) -> Self {
        let shared = Shared {
            queue: Mutex::default(),
            more: Condvar::new(),
            ended: Condvar::new(),
            finish,
            stop: AtomicBool::new(false),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Starts `count` threads, each confined before it does anything, and returns when all are.
    ///
    /// # Errors
    /// [`VmError::Start`].
    pub fn start(&self, count: u8, confine: &Confine) -> Result<(), VmError> {
        let begun = self.begin(count, confine)?;
        begun.into_iter().try_for_each(Begun::wait)
    }

    /// As [`Self::start`], but returns at once.
    ///
    /// # Errors
    /// [`VmError::Start`].
    pub fn begin(&self, count: u8, confine: &Confine) -> Result<Vec<Begun>, VmError> {
        let begin = |_| {
            let shared = Arc::clone(&self.shared);
            threads::begin(ThreadKind::Io, confine, || Ok(()), move |()| shared.serve())
        };
        (0..count).map(begin).collect()
    }

    /// Hands a request over.
    pub fn submit(&self, job: Job) {
        let mut queue = self.shared.lock();
        queue.jobs.push_back(job);
        let wake = queue.idle > 0;
        drop(queue);
        if wake {
            self.shared.more.notify_one();
        }
    }

    /// Drops all requests of `slot`; on return none of them goes on, and none of them will be reported.
    pub fn stop(&self, slot: u16) {
        let mut queue = self.shared.lock();
        queue.jobs.retain(|job| job.slot != slot);
        if queue.running.contains(&slot) {
            queue.stopping.push(slot);
            queue = self
                .shared
                .ended
                .wait_while(queue, |queue| queue.running.contains(&slot))
                .unwrap_or_else(PoisonError::into_inner);
            queue.stopping.retain(|stopping| *stopping != slot);
        }
        drop(queue);
        self.shared.finish.forget(slot);
    }
}

impl Drop for IoPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.lock().jobs.clear();
        self.shared.more.notify_all();
    }
}

impl Shared {
    /// The life of a thread.
    fn serve(&self) {
        while let Some(mut job) = self.next() {
            let stopped =
                || self.stop.load(Ordering::Relaxed) || self.lock().stopping.contains(&job.slot);
            let result = job.work.finish(&job.file, &job.memory, stopped);
            if job.alone {
                self.release(job.slot);
            }
            let (slot, token) = (job.slot, job.token);
            // What it holds on to goes before anybody hears of its end.
            drop(job);
            self.finish.finish(Finished {
                slot,
                token,
                completion: Completion { result },
            });
            self.end(slot);
        }
    }

    /// A request of the device has ended and is reported.
    fn end(&self, slot: u16) {
        let mut queue = self.lock();
        let at = queue.running.iter().position(|running| *running == slot);
        if let Some(at) = at {
            queue.running.swap_remove(at);
        }
        let awaited = queue.stopping.contains(&slot);
        drop(queue);
        if awaited {
            self.ended.notify_all();
        }
    }

    /// The oldest request; sleeps until there is one. `None` at the end.
    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            if let Some(job) = queue.take() {
                return Some(job);
            }
            queue.idle = queue.idle.saturating_add(1);
            queue = self
                .more
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
            queue.idle = queue.idle.saturating_sub(1);
        }
    }

    /// A request of the device that was done alone has ended: another one can be done.
    fn release(&self, slot: u16) {
        let mut queue = self.lock();
        queue.busy.retain(|busy| *busy != slot);
        // This thread takes one request; a sleeping one may take another.
        let wake = queue.idle > 0 && queue.jobs.len() > 1;
        drop(queue);
        if wake {
            self.more.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
