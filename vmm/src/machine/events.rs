//! Threads that serve devices: an event loop over descriptors.
//!
//! A device's wiring makes a [`Wired`]: the device, an event for each queue ([`QueueEvents`]), and a subscriber. Where
//! nothing but its driver wakes a device, [`DeviceEvents`] is that subscriber. A device with a backend that has
//! something to say of its own has a subscriber of its own, which uses [`QueueEvents::watch`] and
//! [`QueueEvents::notified`] for the queues, and watches its backend's descriptors with data from [`BACKEND_EVENT`] on.
//!
//! The queues' events are signalled by the guest's writes without an exit (ioeventfd) once the machine has registered
//! them where the transport has its notification registers, and by the transport ([`Notify`]) where it has not.

use crate::VmError;
use crate::threads::{self, Begun, Confine, ThreadKind};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use instar_devices::virtio::{Notify, SharedDevice};
use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Data of a backend's first event; queues' events have the queue's index.
pub const BACKEND_EVENT: u32 = 1 << 16;

/// How long a thread may take to come to its next event.
const PATIENCE: Duration = Duration::from_secs(2);

/// That an event was signalled since it was told of last: edge-triggered, so that nobody has to read it, which would be
/// one call more for each request.
pub const SIGNALLED: EventSet = EventSet::IN.union(EventSet::EDGE_TRIGGERED);

/// What a device's thread calls when a descriptor is ready.
pub type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// A device, ready for its transport.
pub struct Wired {
    /// The device.
    pub device: SharedDevice,
    /// Its queues' events.
    pub queues: Arc<QueueEvents>,
    /// What its thread calls.
    pub subscriber: Subscriber,
}

impl fmt::Debug for Wired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut wired = f.debug_struct("Wired");
        wired.field("queues", &self.queues).finish_non_exhaustive()
    }
}

impl Wired {
    /// A device that nothing but its driver wakes.
    ///
    /// # Errors
    /// [`VmError::Start`]: no more descriptors.
    pub fn new(device: SharedDevice) -> Result<Self, VmError> {
        let queues = QueueEvents::of(&device)?;
        let subscriber = DeviceEvents {
            device: Arc::clone(&device),
            queues: Arc::clone(&queues),
        };
        Ok(Self {
            device,
            queues,
            subscriber: Box::new(subscriber),
        })
    }
}

/// An event that never blocks.
///
/// # Errors
/// [`VmError::Start`]: no more descriptors.
pub fn event(what: &'static str) -> Result<EventFd, VmError> {
    EventFd::new(EFD_NONBLOCK).map_err(|source| VmError::Start { what, source })
}

/// An event for each queue of a device: the driver has notified it.
#[derive(Debug)]
pub struct QueueEvents {
    events: Vec<EventFd>,
}

impl QueueEvents {
    /// Events for the queues of `device`.
    ///
    /// # Errors
    /// [`VmError::Start`]: no more descriptors.
    pub fn of(device: &SharedDevice) -> Result<Arc<Self>, VmError> {
        let device = device.lock().unwrap_or_else(PoisonError::into_inner);
        let queues = device.queue_sizes().iter();
        let events: Result<Vec<_>, _> = queues.map(|_| event("a queue's event")).collect();
        Ok(Arc::new(Self { events: events? }))
    }

    /// By queue: what is signalled.
    pub fn events(&self) -> &[EventFd] {
        &self.events
    }

    /// Has the event loop watch all queues, as a subscriber's `init` does.
    pub fn watch(&self, ops: &mut EventOps) {
        for (index, event) in (0_u32..).zip(&self.events) {
            watch(ops, Events::with_data(event, index, SIGNALLED));
        }
    }

    /// The queue that `events` are of; `None` if they are a backend's.
    pub fn notified(&self, events: Events) -> Option<u16> {
        let index = u16::try_from(events.data()).ok()?;
        (usize::from(index) < self.events.len()).then_some(index)
    }

    /// Wakes the device for all its queues.
    pub fn wake(&self) {
        for event in &self.events {
            let _ = event.write(1);
        }
    }
}

impl Notify for QueueEvents {
    fn notify(&self, index: u16) {
        if let Some(event) = self.events.get(usize::from(index)) {
            // Full means signalled, which is enough.
            let _ = event.write(1);
        }
    }
}

/// Watches a descriptor. What could go wrong is that it is watched already, or that the kernel has no memory for it; the
/// device then does not answer, which its driver sees.
pub fn watch(ops: &mut EventOps, events: Events) {
    let added = ops.add(events);
    debug_assert!(added.is_ok(), "{added:?}");
}

/// A device that nothing but its driver wakes.
#[derive(Debug)]
pub struct DeviceEvents {
    device: SharedDevice,
    queues: Arc<QueueEvents>,
}

impl MutEventSubscriber for DeviceEvents {
    fn init(&mut self, ops: &mut EventOps) {
        self.queues.watch(ops);
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        if let Some(index) = self.queues.notified(events) {
            let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
            device.kick(index);
            if device.has_more(index) {
                self.queues.notify(index);
            }
        }
    }
}

/// A thread that serves devices; it ends with the value.
#[derive(Debug)]
pub struct EventThread {
    hold: Arc<Hold>,
    begun: Option<Begun>,
}

/// How a thread is held. It looks here each time after it has served something.
#[derive(Debug)]
struct Hold {
    /// Has it look.
    event: EventFd,
    state: Mutex<HoldState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct HoldState {
    stopped: bool,
    paused: bool,
    parked: bool,
    ended: bool,
}

impl Hold {
    /// Waits while the thread is paused; false at the end.
    fn goes_on(&self) -> bool {
        let mut state = self.lock();
        if !state.paused {
            // Nobody waits to hear of it, and to say it anyway would be a system call for each event.
            return !state.stopped;
        }
        state.parked = true;
        self.changed.notify_all();
        let waits = |state: &mut HoldState| state.paused && !state.stopped;
        let waited = self.changed.wait_while(state, waits);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.parked = false;
        !state.stopped
    }

    fn set(&self, change: impl FnOnce(&mut HoldState)) {
        change(&mut self.lock());
        self.changed.notify_all();
        let _ = self.event.write(1);
    }

    fn lock(&self) -> MutexGuard<'_, HoldState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread's end.
struct Ending(Arc<Hold>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}

/// The event of [`Hold`], as the loop watches it.
struct Held(Arc<Hold>);

impl MutEventSubscriber for Held {
    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, Events::new(&self.0.event, EventSet::IN));
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        let _ = self.0.event.read();
    }
}

impl EventThread {
    /// Starts a thread that calls `subscribers` when their descriptors are ready, without waiting until it runs.
    ///
    /// # Errors
    /// [`VmError::Start`].
    pub fn start(subscribers: Vec<Subscriber>, confine: &Confine) -> Result<Self, VmError> {
        let hold = Arc::new(Hold {
            event: event("a device's thread")?,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let ending = Ending(Arc::clone(&hold));
        let prepare = || {
            let mut events = EventManager::<Subscriber>::new().map_err(failed)?;
            events.add_subscriber(Box::new(Held(Arc::clone(&ending.0))));
            for subscriber in subscribers {
                events.add_subscriber(subscriber);
            }
            Ok((events, ending))
        };
        let serve = |(mut events, ending): (EventManager<Subscriber>, Ending)| {
            while ending.0.goes_on() {
                // Interrupted by a signal: all of them are blocked but those that end the process.
                let _ = events.run();
            }
            // Subscribers do what is left to do at the end.
            drop(events);
            drop(ending);
        };
        let begun = threads::begin(ThreadKind::Device, confine, prepare, serve)?;
        Ok(Self {
            hold,
            begun: Some(begun),
        })
    }

    /// Has the thread wait, and returns when it does: no device of it is served. False if it does not come to it.
    pub fn pause(&self) -> bool {
        self.hold.set(|state| state.paused = true);
        let state = self.hold.lock();
        let runs = |state: &mut HoldState| !state.parked;
        let waited = self.hold.changed.wait_timeout_while(state, PATIENCE, runs);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.parked
    }

    /// Lets the thread go on.
    pub fn resume(&self) {
        self.hold.set(|state| state.paused = false);
    }

    /// Returns when the thread runs and is confined.
    ///
    /// # Errors
    /// [`VmError::Start`].
    pub fn wait(&mut self) -> Result<(), VmError> {
        self.begun.take().map_or(Ok(()), Begun::wait)
    }
}

impl Drop for EventThread {
    fn drop(&mut self) {
        self.hold.set(|state| state.stopped = true);
        // For a while: a thread may wait for whoever reads its output.
        let runs = |state: &mut HoldState| !state.ended;
        let state = self.hold.lock();
        let _ = self.hold.changed.wait_timeout_while(state, PATIENCE, runs);
    }
}

fn failed(error: event_manager::Error) -> VmError {
    VmError::Start {
        what: "a device's thread",
        source: io::Error::other(error),
    }
}
