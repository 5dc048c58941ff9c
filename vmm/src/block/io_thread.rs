//! The thread that sleeps in reads so that the guest need not.

use super::transfer::{Step, Transfer};
use crate::VmError;
use crate::memory::GuestSlot;
use instar_devices::blk::{Completion, Errno, Token};
use std::collections::VecDeque;
use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

/// Runs first in the I/O thread, to confine it.
pub type OnStart = Box<dyn FnOnce() -> Result<(), String> + Send>;

/// Small: the thread does no more than system calls.
const STACK_BYTES: usize = 64 << 10;

/// A read that would sleep.
#[derive(Debug)]
pub struct Job {
    /// Device slot it belongs to.
    pub slot: u16,
    /// The request.
    pub token: Token,
    /// The file.
    pub file: Arc<File>,
    /// What is left to do.
    pub transfer: Transfer,
}

/// Jobs to the I/O thread and completions back.
#[derive(Debug, Default)]
pub struct IoQueue {
    state: Mutex<State>,
    job_added: Condvar,
    completed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    completions: VecDeque<(u16, Token, Completion)>,
    closed: bool,
}

impl IoQueue {
    /// Starts the thread, which lives until [`Self::close`].
    ///
    /// # Errors
    /// [`VmError::Start`], or what `on_start` said.
    pub fn start(
        self: &Arc<Self>,
        memory: Arc<GuestSlot>,
        on_start: OnStart,
    ) -> Result<(), VmError> {
        let queue = Arc::clone(self);
        let (ready, started) = mpsc::sync_channel(1);
        let body = move || {
            block_signals();
            let confined = on_start();
            let go = confined.is_ok();
            let _ = ready.send(confined);
            if go {
                queue.serve(&memory);
            }
        };
        std::thread::Builder::new()
            .name("io".into())
            .stack_size(STACK_BYTES)
            .spawn(body)
            .map_err(|source| VmError::Start {
                what: "the I/O thread",
                source,
            })?;
        started
            .recv()
            .map_err(|e| VmError::IoThread(e.to_string()))?
            .map_err(VmError::IoThread)
    }

    /// Hands a job to the thread.
    pub fn submit(&self, job: Job) {
        self.lock().jobs.push_back(job);
        self.job_added.notify_one();
    }

    /// The next completion of device `slot`.
    pub fn take(&self, slot: u16) -> Option<(Token, Completion)> {
        let mut state = self.lock();
        let index = state
            .completions
            .iter()
            .position(|(of, _, _)| *of == slot)?;
        state
            .completions
            .remove(index)
            .map(|(_, token, completion)| (token, completion))
    }

    /// Waits for a completion, at most `timeout`; the slot of the first one there is.
    pub fn wait(&self, timeout: Duration) -> Option<u16> {
        let state = self.lock();
        let (state, _) = self
            .completed
            .wait_timeout_while(state, timeout, |state| state.completions.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        state.completions.front().map(|(slot, _, _)| *slot)
    }

    /// Ends the thread once its present job is done.
    pub fn close(&self) {
        self.lock().closed = true;
        self.job_added.notify_all();
    }

    fn serve(&self, memory: &GuestSlot) {
        while let Some(mut job) = self.next_job() {
            let result = match job.transfer.read(&job.file, memory, false) {
                Step::Finished => Ok(u32::try_from(job.transfer.len()).unwrap_or(u32::MAX)),
                Step::WouldBlock => Err(Errno::EIO),
                Step::Failed(errno) => Err(errno),
            };
            self.lock()
                .completions
                .push_back((job.slot, job.token, Completion { result }));
            self.completed.notify_one();
        }
    }

    fn next_job(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            state = self
                .job_added
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Signals are the vCPU thread's to take.
fn block_signals() {
    // SAFETY: a full signal set is a valid mask for this thread; the old one is not wanted.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
    }
}
