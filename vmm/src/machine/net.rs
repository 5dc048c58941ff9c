//! A network card on a tap device, or on a socket that takes frames.

mod stream;
#[cfg(feature = "fuzzing")]
pub use stream::model;

use super::events::{self, BACKEND_EVENT, QueueEvents, Wired};
use super::parts::{Net, Wire};
use super::tap::Tap;
use super::vectors;
use crate::VmError;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use instar_devices::net::{NetBackend, NetDevice, Offloads};
use instar_devices::virtio::{SharedDevice, VirtioDevice};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use stream::Stream;
use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::EventFd;

/// Where packets go to and come from.
#[derive(Debug)]
enum Card {
    Tap(Tap),
    /// A socket, each of whose messages is a packet.
    Frames(OwnedFd),
    Stream(Stream),
}

impl AsRawFd for Card {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Tap(tap) => tap.as_raw_fd(),
            Self::Frames(socket) => socket.as_raw_fd(),
            Self::Stream(stream) => stream.as_raw_fd(),
        }
    }
}

impl NetBackend for Card {
    fn receive(&mut self, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tap(tap) => tap.receive(into),
            Self::Frames(socket) => match vectors::read(socket, into) {
                // Nobody is at the other end any more.
                Ok(0) => Err(io::ErrorKind::BrokenPipe.into()),
                result => result,
            },
            Self::Stream(stream) => stream.receive(into),
        }
    }

    fn send(&mut self, from: &[VolatileSlice<'_>]) -> io::Result<()> {
        match self {
            Self::Tap(tap) => tap.send(from),
            Self::Frames(socket) => vectors::send(socket, from.iter().copied()).map(|_| ()),
            Self::Stream(stream) => stream.send(from),
        }
    }

    fn set_offloads(&mut self, offloads: Offloads) {
        match self {
            Self::Tap(tap) => tap.set_offloads(offloads),
            // What comes from there is never unfinished.
            Self::Frames(_) | Self::Stream(_) => {}
        }
    }

    fn tells_again(&self) -> bool {
        match self {
            Self::Tap(_) | Self::Frames(_) => true,
            Self::Stream(stream) => stream.tells_again(),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tap(_) | Self::Frames(_) => Ok(()),
            Self::Stream(stream) => stream.flush(),
        }
    }
}

/// Serves the device. What it is connected to is watched for packets for as long as there are some, so that a packet that
/// comes alone takes one call; but not while the device waits for buffers of the guest, which so costs nothing. It is watched
/// for room only while a packet waits for it: a socket has room each time that its other end takes a packet.
#[derive(Debug)]
struct Service {
    device: Arc<Mutex<NetDevice<Card>>>,
    queues: Arc<QueueEvents>,
    /// What the device's card is connected to.
    card: RawFd,
    /// What it is watched for.
    watched: EventSet,
    /// Its other end is gone.
    gone: bool,
    again: EventFd,
}

/// The device, ready for its transport.
///
/// # Errors
/// [`VmError::Start`]: no more descriptors.
pub fn wire(parts: Net) -> Result<Wired, VmError> {
    let (card, mtu) = match parts.wire {
        Wire::Tap(tap) => (Card::Tap(Tap::from(tap)), None),
        Wire::Frames { socket, mtu } => (Card::Frames(socket), Some(mtu)),
        Wire::Stream { socket, mtu } => (Card::Stream(Stream::new(socket)), Some(mtu)),
    };
    let fd = card.as_raw_fd();
    let whole = matches!(card, Card::Stream(_));
    let mut device = NetDevice::new(parts.mac, card).with_mtu(mtu);
    if whole {
        device = device.with_whole_packets();
    }
    let device = Arc::new(Mutex::new(device));
    let shared: SharedDevice = Arc::<Mutex<NetDevice<Card>>>::clone(&device);
    let queues = QueueEvents::of(&shared)?;
    let service = Service {
        device,
        queues: Arc::clone(&queues),
        card: fd,
        watched: EventSet::IN,
        gone: false,
        again: events::event("a network device")?,
    };
    Ok(Wired {
        device: shared,
        queues,
        subscriber: Box::new(service),
    })
}

impl Service {
    fn card_events(&self) -> Events {
        Events::with_data_raw(self.card, BACKEND_EVENT, self.watched)
    }
}

impl MutEventSubscriber for Service {
    fn init(&mut self, ops: &mut EventOps) {
        self.queues.watch(ops);
        events::watch(ops, self.card_events());
        let again = Events::with_data(&self.again, BACKEND_EVENT.saturating_add(1), EventSet::IN);
        events::watch(ops, again);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        match self.queues.notified(events) {
            Some(index) => device.kick(index),
            None if events.data() == BACKEND_EVENT => {
                let set = events.event_set();
                device.ready(set.contains(EventSet::IN), set.contains(EventSet::OUT));
            }
            None => {
                // It may have been taken back already, which changes nothing.
                let _ = self.again.read();
                device.go_on();
            }
        }
        if device.has_more() {
            // Full means signalled, which is enough.
            let _ = self.again.write(1);
        }
        let mut wanted = EventSet::empty();
        wanted.set(EventSet::IN, !device.waits_for_buffers());
        wanted.set(EventSet::OUT, device.waits_for_room());
        drop(device);
        let broken = EventSet::HANG_UP | EventSet::ERROR;
        if events.data() == BACKEND_EVENT && events.event_set().intersects(broken) {
            // Nobody is at the other end, nor will be; it would be told of without end.
            let _ = ops.remove(self.card_events());
            self.gone = true;
        }
        if wanted != self.watched && !self.gone {
            let before = std::mem::replace(&mut self.watched, wanted);
            // If it cannot be changed, the next event tries again.
            if ops.modify(self.card_events()).is_err() {
                self.watched = before;
            }
        }
    }
}

#[cfg(test)]
mod tests;
