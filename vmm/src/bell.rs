//! What other threads have for the first vCPU: finished requests, kicks, and failures.
//!
//! One lock and two conditions. The first vCPU sleeps here when its guest waits; the further vCPUs
//! sleep here until they are kicked.

use crate::block::{Finish, Finished};
use crate::operation::RunError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The meeting place of a machine's threads.
#[derive(Debug)]
pub struct Bell {
    state: Mutex<State>,
    /// Rung for the first vCPU.
    first: Condvar,
    /// Rung for the further ones.
    further: Condvar,
    failed: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    finished: Vec<Finished>,
    /// The first vCPU was kicked since its last wait.
    kicked: bool,
    /// It sleeps.
    waits: bool,
    further: Vec<Further>,
    failure: Option<RunError>,
    stop: bool,
}

/// A vCPU from 1 on.
#[derive(Debug)]
struct Further {
    kicked: bool,
    parked: bool,
}

/// What a wait of the first vCPU ended with.
#[derive(Debug, Default)]
pub struct Wake {
    /// Requests that are done.
    pub finished: Vec<Finished>,
    /// It was kicked.
    pub kicked: bool,
    /// A further vCPU runs: it may kick yet.
    pub running: bool,
}

impl Bell {
    /// A bell for `further` vCPUs besides the first, all of them parked.
    pub fn new(further: u8) -> Self {
        let parked = || Further {
            kicked: false,
            parked: true,
        };
        let state = State {
            further: (0..further).map(|_| parked()).collect(),
            ..State::default()
        };
        Self {
            state: Mutex::new(state),
            first: Condvar::new(),
            further: Condvar::new(),
            failed: AtomicBool::new(false),
        }
    }

    /// The first vCPU is to look.
    pub fn kick_first(&self) {
        self.for_first(|state| state.kicked = true);
    }

    /// A thread cannot go on: the run ends.
    pub fn fail(&self, error: RunError) {
        self.for_first(|state| {
            state.failure.get_or_insert(error);
            // Under the lock: the first vCPU, once woken, must find it.
            self.failed.store(true, Ordering::Release);
        });
    }

    /// The first failure, once.
    pub fn take_failure(&self) -> Option<RunError> {
        if !self.failed.load(Ordering::Acquire) {
            return None;
        }
        self.lock().failure.take()
    }

    /// What is finished now.
    pub fn take_finished(&self) -> Vec<Finished> {
        std::mem::take(&mut self.lock().finished)
    }

    /// Sleeps at most for `longest` until there is something for the first vCPU; not at all unless
    /// something can come, as it can if requests are `in_flight`.
    pub fn wait(&self, longest: Duration, in_flight: bool) -> Wake {
        let mut state = self.lock();
        let nothing = |state: &mut State| {
            let can_come = in_flight || state.further.iter().any(Further::runs);
            state.finished.is_empty() && !state.kicked && state.failure.is_none() && can_come
        };
        if nothing(&mut state) {
            state.waits = true;
            let waited = self.first.wait_timeout_while(state, longest, nothing);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.waits = false;
        }
        Wake {
            finished: std::mem::take(&mut state.finished),
            kicked: std::mem::take(&mut state.kicked),
            running: state.further.iter().any(Further::runs),
        }
    }

    /// Lets vCPU `index`, not the first, run; false if there is none.
    pub fn kick_further(&self, index: u8) -> bool {
        let mut state = self.lock();
        let Some(vcpu) = state.get(index) else {
            return false;
        };
        vcpu.kicked = true;
        drop(state);
        self.further.notify_all();
        true
    }

    /// vCPU `index` sleeps until it is kicked; false if it is to end instead.
    pub fn park(&self, index: u8) -> bool {
        let mut state = self.lock();
        if let Some(vcpu) = state.get(index) {
            vcpu.parked = true;
        }
        // The first vCPU may wait for nobody now, which is an error that it must see.
        self.first.notify_one();
        let asleep = |state: &mut State| {
            let stop = state.stop;
            state.get(index).is_some_and(|vcpu| !vcpu.kicked) && !stop
        };
        let waited = self.further.wait_while(state, asleep);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        if state.stop {
            return false;
        }
        let vcpu = state.get(index);
        vcpu.map(|vcpu| (vcpu.kicked, vcpu.parked) = (false, false))
            .is_some()
    }

    /// The run is over: further vCPUs end.
    pub fn stop(&self) {
        self.lock().stop = true;
        self.further.notify_all();
    }

    /// Whether the run is over.
    pub fn is_stopped(&self) -> bool {
        self.lock().stop
    }

    fn for_first(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let waits = state.waits;
        drop(state);
        if waits {
            self.first.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Finish for Bell {
    fn finish(&self, finished: Finished) {
        self.for_first(|state| state.finished.push(finished));
    }

    fn forget(&self, slot: u16) {
        self.lock()
            .finished
            .retain(|finished| finished.slot != slot);
    }
}

impl Further {
    const fn runs(&self) -> bool {
        self.kicked || !self.parked
    }
}

impl State {
    fn get(&mut self, index: u8) -> Option<&mut Further> {
        self.further.get_mut(usize::from(index.checked_sub(1)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_wait_for_nobody_returns_at_once() {
        let wake = Bell::new(1).wait(LONG, false);
        assert!(wake.finished.is_empty() && !wake.kicked && !wake.running);
    }

    #[test]
    fn a_kick_before_the_wait_is_not_lost() {
        let bell = Bell::new(0);
        bell.kick_first();
        assert!(bell.wait(LONG, true).kicked);
        assert!(!bell.wait(Duration::ZERO, true).kicked);
    }

    #[test]
    fn a_further_vcpu_runs_from_its_kick_to_its_park() {
        let bell = Arc::new(Bell::new(1));
        let other = Arc::clone(&bell);
        let thread = std::thread::spawn(move || {
            assert!(other.park(1), "the kick");
            other.kick_first();
            other.park(1)
        });
        assert!(bell.kick_further(1));
        assert!(!bell.kick_further(2));
        assert!(bell.wait(LONG, false).kicked);
        // It parks without a word, which ends the wait as well.
        while bell.wait(LONG, false).running {}
        bell.stop();
        assert!(!thread.join().unwrap());
    }

    #[test]
    fn the_first_failure_counts() {
        let bell = Bell::new(0);
        assert!(bell.take_failure().is_none());
        bell.fail(RunError::Protocol("one".into()));
        bell.fail(RunError::Protocol("two".into()));
        bell.wait(LONG, true);
        assert!(matches!(bell.take_failure(), Some(RunError::Protocol(text)) if text == "one"));
    }
}
