//! Starting, pausing and ending the vCPUs of a machine.
//!
//! A vCPU's thread looks here when it is told to: a signal takes it out of the guest (`signal`). Between two looks it
//! runs the guest and serves its accesses without a lock of this page.

use super::control::Outcome;
use super::events::event;
use super::signal::Kick;
use crate::VmError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vmm_sys_util::eventfd::EventFd;

/// How long vCPUs may take to come out of the guest: one whose access is slow comes late.
const PATIENCE: Duration = Duration::from_secs(2);

/// The state of a machine's vCPUs.
#[derive(Debug)]
pub struct Life {
    state: Mutex<State>,
    changed: Condvar,
    /// Something in `state` concerns running vCPUs.
    attention: AtomicBool,
    /// Signalled at the end.
    ended: EventFd,
}

#[derive(Debug, Default)]
struct State {
    /// vCPUs that are there, in the guest or out of it.
    vcpus: Vec<Kick>,
    /// They may not run now.
    paused: bool,
    /// How many of them wait.
    parked: usize,
    outcome: Option<Outcome>,
}

impl Life {
    /// Of a machine that has no vCPU yet; those that come wait for [`Self::resume`].
    ///
    /// # Errors
    /// [`VmError::Start`]: no more descriptors.
    pub fn new() -> Result<Self, VmError> {
        let state = State {
            paused: true,
            ..State::default()
        };
        Ok(Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            attention: AtomicBool::new(true),
            ended: event("the machine")?,
        })
    }

    /// Readable when the machine has ended.
    pub const fn ended(&self) -> &EventFd {
        &self.ended
    }

    /// The calling thread runs a vCPU from now on, and is reached by `kick`.
    pub fn enter(&self, kick: Kick) {
        self.lock().vcpus.push(kick);
    }

    /// The calling thread runs its vCPU no more.
    pub fn leave(&self, kick: &Kick) {
        self.lock().vcpus.retain(|other| other != kick);
        self.changed.notify_all();
    }

    /// Whether the calling vCPU's thread may go into the guest; waits while the machine is paused. False at the end.
    pub fn may_run(&self) -> bool {
        if !self.attention.load(Ordering::Acquire) {
            return true;
        }
        let mut state = self.lock();
        state.parked = state.parked.saturating_add(1);
        self.changed.notify_all();
        let waits = |state: &mut State| state.paused && state.outcome.is_none();
        let mut state = self
            .changed
            .wait_while(state, waits)
            .unwrap_or_else(PoisonError::into_inner);
        state.parked = state.parked.saturating_sub(1);
        state.outcome.is_none()
    }

    /// Has all vCPUs wait; false if one does not, or the machine has ended.
    pub fn pause(&self) -> bool {
        let mut state = self.lock();
        state.paused = true;
        self.call(&state);
        let runs = |state: &mut State| state.parked < state.vcpus.len() && state.outcome.is_none();
        let waited = self.changed.wait_timeout_while(state, PATIENCE, runs);
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        !timeout.timed_out() && state.outcome.is_none()
    }

    /// Lets the vCPUs run.
    pub fn resume(&self) {
        let mut state = self.lock();
        state.paused = false;
        self.attention
            .store(state.outcome.is_some(), Ordering::Release);
        drop(state);
        self.changed.notify_all();
    }

    /// The machine ends; the first outcome counts.
    pub fn end(&self, outcome: Outcome) {
        let mut state = self.lock();
        state.outcome.get_or_insert(outcome);
        self.call(&state);
        drop(state);
        self.changed.notify_all();
        let _ = self.ended.write(1);
    }

    /// How it ended, if it has, when no vCPU runs any more.
    pub fn outcome(&self) -> Option<Outcome> {
        let state = self.lock();
        let outcome = state.outcome.clone()?;
        let there = |state: &mut State| !state.vcpus.is_empty();
        drop(self.changed.wait_timeout_while(state, PATIENCE, there));
        Some(outcome)
    }

    /// Has all vCPUs look.
    fn call(&self, state: &State) {
        self.attention.store(true, Ordering::Release);
        for vcpu in &state.vcpus {
            vcpu.send();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::signal;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    /// A vCPU's thread that counts instead of running a guest.
    fn count(life: &Arc<Life>) -> (Arc<AtomicU64>, std::thread::JoinHandle<()>) {
        let turns = Arc::<AtomicU64>::default();
        let (life, counted) = (Arc::clone(life), Arc::clone(&turns));
        let thread = std::thread::spawn(move || {
            let mut immediate_exit = 0;
            let kick = Kick::of_this_thread(&raw mut immediate_exit).unwrap();
            life.enter(kick.clone());
            while life.may_run() {
                counted.fetch_add(1, Ordering::Relaxed);
                std::thread::yield_now();
            }
            signal::forget();
            life.leave(&kick);
        });
        (turns, thread)
    }

    #[test]
    fn a_paused_vcpu_does_not_run_and_an_ended_one_returns() {
        signal::install().unwrap();
        let life = Arc::new(Life::new().unwrap());
        let (turns, thread) = count(&life);
        let wait_for_turns = || {
            let before = turns.load(Ordering::Relaxed);
            while turns.load(Ordering::Relaxed) == before {
                std::thread::yield_now();
            }
        };
        assert_eq!(turns.load(Ordering::Relaxed), 0);
        for _ in 0..3 {
            life.resume();
            wait_for_turns();
            assert!(life.pause());
            let paused = turns.load(Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(5));
            assert_eq!(turns.load(Ordering::Relaxed), paused);
        }
        life.resume();
        assert_eq!(life.outcome(), None);
        life.end(Outcome::Reset);
        life.end(Outcome::PowerOff);
        thread.join().unwrap();
        assert_eq!(life.outcome(), Some(Outcome::Reset));
        assert_eq!(life.ended().read().unwrap(), 2);
    }
}
