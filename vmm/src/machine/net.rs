//! A network card on a tap device, or on a socket that takes frames.

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
use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::EventFd;

/// Where packets go to and come from.
#[derive(Debug)]
enum Card {
    Tap(Tap),
    /// A socket, each of whose messages is a packet.
    Frames(OwnedFd),
}

impl AsRawFd for Card {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Tap(tap) => tap.as_raw_fd(),
            Self::Frames(socket) => socket.as_raw_fd(),
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
        }
    }

    fn send(&mut self, from: &[VolatileSlice<'_>]) -> io::Result<()> {
        match self {
            Self::Tap(tap) => tap.send(from),
            Self::Frames(socket) => vectors::send(socket, from).map(|_| ()),
        }
    }

    fn set_offloads(&mut self, offloads: Offloads) {
        match self {
            Self::Tap(tap) => tap.set_offloads(offloads),
            // What comes from there is never unfinished.
            Self::Frames(_) => {}
        }
    }
}

/// Serves the device. What it is connected to is watched for edges: the device remembers whether there is a packet, and a
/// guest without buffers costs nothing. It is watched for room only while a packet waits for it: a socket has room each time
/// that its other end takes a packet.
#[derive(Debug)]
struct Service {
    device: Arc<Mutex<NetDevice<Card>>>,
    queues: Arc<QueueEvents>,
    /// What the device's card is connected to.
    card: RawFd,
    /// It is watched for room as well.
    watches_room: bool,
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
    };
    let fd = card.as_raw_fd();
    let device = NetDevice::new(parts.mac, card).with_mtu(mtu);
    let device = Arc::new(Mutex::new(device));
    let shared: SharedDevice = Arc::<Mutex<NetDevice<Card>>>::clone(&device);
    let queues = QueueEvents::of(&shared)?;
    let service = Service {
        device,
        queues: Arc::clone(&queues),
        card: fd,
        watches_room: false,
        again: events::event("a network device")?,
    };
    Ok(Wired {
        device: shared,
        queues,
        subscriber: Box::new(service),
    })
}

impl Service {
    fn card_events(&self, room: bool) -> Events {
        let room = if room {
            EventSet::OUT
        } else {
            EventSet::empty()
        };
        let set = EventSet::IN | EventSet::EDGE_TRIGGERED | room;
        Events::with_data_raw(self.card, BACKEND_EVENT, set)
    }
}

impl MutEventSubscriber for Service {
    fn init(&mut self, ops: &mut EventOps) {
        self.queues.watch(ops);
        events::watch(ops, self.card_events(false));
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
        let waits = device.waits_for_room();
        // If it cannot be changed, the next event of the card tries again.
        if waits != self.watches_room && ops.modify(self.card_events(waits)).is_ok() {
            self.watches_room = waits;
        }
    }
}

#[cfg(test)]
mod tests;
