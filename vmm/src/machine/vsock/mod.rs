//! Sockets between the guest and the host's programs, as Unix sockets: the way of Firecracker and Cloud Hypervisor.
//!
//! - A program connects to the listening socket, writes `CONNECT <port>\n`, and reads `OK <its port>\n` when the guest has
//!   accepted. If nobody listens there in the guest, the socket is closed.
//! - A guest that connects to port `P` of the host reaches whoever listens at the socket that stands for `P`
//!   ([`super::control::Connector`]).
//!
//! All sockets are watched by one epoll of the device's own, which is one descriptor to the thread that serves it. A
//! connection is watched for edges: the device remembers what it may read and write, and no call is spent on what it
//! waits for.

mod clients;
mod stream;
#[cfg(test)]
mod tests;

use super::control::Connector;
use super::events::{self, BACKEND_EVENT, QueueEvents, Wired};
use super::parts::Vsock;
use crate::VmError;
use clients::Clients;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use instar_devices::virtio::SharedDevice;
use instar_devices::vsock::{Backend, ConnectionId, Readiness, Stream, VsockDevice};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use stream::SocketStream;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent};
use vmm_sys_util::eventfd::EventFd;

/// Sockets that have something to say, taken at once.
const BATCH: usize = 64;

/// What a watched descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watched {
    Listener,
    /// A program that has not yet said which port it wants.
    Client(u32),
    Connection(ConnectionId),
}

impl Watched {
    fn token(self) -> u64 {
        let (kind, n) = match self {
            Self::Listener => (0, 0),
            Self::Client(n) => (1, n),
            Self::Connection(ConnectionId(n)) => (2, n),
        };
        kind << 32 | u64::from(n)
    }

    fn of(token: u64) -> Option<Self> {
        let n = u32::try_from(token & u64::from(u32::MAX)).ok()?;
        match token >> 32 {
            0 => Some(Self::Listener),
            1 => Some(Self::Client(n)),
            2 => Some(Self::Connection(ConnectionId(n))),
            _ => None,
        }
    }
}

/// The device's epoll.
#[derive(Debug)]
struct Watch(Epoll);

impl Watch {
    /// Watches a descriptor for edges, for as long as it is open.
    fn add(&self, fd: RawFd, what: Watched) -> io::Result<()> {
        self.ctl(ControlOperation::Add, fd, what)
    }

    /// Watches it as something else; what it has to say by now is said (again).
    fn change(&self, fd: RawFd, what: Watched) -> io::Result<()> {
        self.ctl(ControlOperation::Modify, fd, what)
    }

    fn ctl(&self, operation: ControlOperation, fd: RawFd, what: Watched) -> io::Result<()> {
        let mut set = EventSet::IN | EventSet::EDGE_TRIGGERED;
        if what != Watched::Listener {
            set |= EventSet::READ_HANG_UP;
        }
        if matches!(what, Watched::Connection(_)) {
            set |= EventSet::OUT;
        }
        self.0
            .ctl(operation, fd, EpollEvent::new(set, what.token()))
    }
}

/// What the guest reaches at the host.
#[derive(Debug)]
struct Programs {
    connector: Box<dyn Connector>,
    watch: Arc<Watch>,
    /// Reached, and the device does not know it yet.
    dialed: Vec<(ConnectionId, Box<dyn Stream>)>,
    /// Wakes the device's thread.
    again: Arc<EventFd>,
}

impl Backend for Programs {
    fn dial(&mut self, id: ConnectionId, port: u32) -> io::Result<()> {
        let stream = self.connector.connect(port)?;
        self.watch
            .add(stream.as_raw_fd(), Watched::Connection(id))?;
        self.dialed.push((id, Box::new(SocketStream::from(stream))));
        // Full means signalled, which is enough.
        let _ = self.again.write(1);
        Ok(())
    }
}

/// Serves the device.
#[derive(Debug)]
struct Service {
    device: Arc<Mutex<VsockDevice<Programs>>>,
    queues: Arc<QueueEvents>,
    clients: Clients,
    watch: Arc<Watch>,
    again: Arc<EventFd>,
}

/// The device, ready for its transport.
///
/// # Errors
/// [`VmError::Start`]: no more descriptors.
pub fn wire(parts: Vsock) -> Result<Wired, VmError> {
    let failed = |source| VmError::Start {
        what: "the vsock device",
        source,
    };
    let watch = Arc::new(Watch(Epoll::new().map_err(failed)?));
    let again = Arc::new(events::event("the vsock device")?);
    parts.listener.set_nonblocking(true).map_err(failed)?;
    watch
        .add(parts.listener.as_raw_fd(), Watched::Listener)
        .map_err(failed)?;
    let programs = Programs {
        connector: parts.connector,
        watch: Arc::clone(&watch),
        dialed: Vec::new(),
        again: Arc::clone(&again),
    };
    let device = Arc::new(Mutex::new(VsockDevice::new(parts.cid, programs)));
    let shared: SharedDevice = Arc::<Mutex<VsockDevice<Programs>>>::clone(&device);
    let queues = QueueEvents::of(&shared)?;
    let service = Service {
        device,
        queues: Arc::clone(&queues),
        clients: Clients::new(parts.listener, Arc::clone(&watch)),
        watch,
        again,
    };
    Ok(Wired {
        device: shared,
        queues,
        subscriber: Box::new(service),
    })
}

impl Service {
    fn hear_sockets(&mut self, device: &mut VsockDevice<Programs>) {
        let mut ready = [EpollEvent::default(); BATCH];
        let n = self.watch.0.wait(0, &mut ready).unwrap_or(0);
        for event in ready.iter().take(n) {
            match Watched::of(event.data()) {
                Some(Watched::Listener) => self.clients.accept(),
                Some(Watched::Client(client)) => {
                    let gone = EventSet::HANG_UP | EventSet::READ_HANG_UP | EventSet::ERROR;
                    let is_gone = event.event_set().intersects(gone);
                    if let Some((port, stream)) = self.clients.hear(client, is_gone) {
                        self.connect(device, port, stream);
                    }
                }
                Some(Watched::Connection(id)) => device.ready(id, readiness(event.event_set())),
                None => {}
            }
        }
    }

    /// A program wants to reach a port of the guest.
    fn connect(&self, device: &mut VsockDevice<Programs>, port: u32, stream: SocketStream) {
        let fd = stream.as_raw_fd();
        if let Some(id) = device.connect(port, Box::new(stream))
            && self.watch.change(fd, Watched::Connection(id)).is_err()
        {
            let gone = Readiness {
                hung_up: true,
                ..Readiness::default()
            };
            device.ready(id, gone);
        }
    }
}

fn readiness(set: EventSet) -> Readiness {
    let hung_up = set.intersects(EventSet::HANG_UP | EventSet::ERROR);
    Readiness {
        readable: set.intersects(EventSet::IN | EventSet::READ_HANG_UP),
        writable: set.contains(EventSet::OUT),
        hung_up,
    }
}

impl MutEventSubscriber for Service {
    fn init(&mut self, ops: &mut EventOps) {
        self.queues.watch(ops);
        let sockets = Events::with_data(&self.watch.0, BACKEND_EVENT, EventSet::IN);
        events::watch(ops, sockets);
        let again = Events::with_data(&*self.again, BACKEND_EVENT.saturating_add(1), EventSet::IN);
        events::watch(ops, again);
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        let shared = Arc::clone(&self.device);
        let mut device = lock(&shared);
        match self.queues.notified(events) {
            // All queues are served below.
            Some(_) => {}
            None if events.data() == BACKEND_EVENT => self.hear_sockets(&mut device),
            // It may have been taken back already, which changes nothing.
            None => _ = self.again.read(),
        }
        for (id, stream) in std::mem::take(&mut device.backend().dialed) {
            device.dialed(id, Some(stream));
        }
        device.serve();
        if device.has_more() {
            let _ = self.again.write(1);
        }
    }
}

fn lock<T: ?Sized>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}
