//! A network card on a tap device.

use super::events::{self, BACKEND_EVENT, QueueEvents, Wired};
use super::parts::Net;
use super::tap::Tap;
use crate::VmError;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use instar_devices::net::NetDevice;
use instar_devices::virtio::{SharedDevice, VirtioDevice};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// Serves the device. The tap device is watched for edges: the device remembers whether there is a packet, and a guest
/// without buffers costs nothing.
#[derive(Debug)]
struct Service {
    device: Arc<Mutex<NetDevice<Tap>>>,
    queues: Arc<QueueEvents>,
    /// The device's tap device.
    tap: RawFd,
    again: EventFd,
}

/// The device, ready for its transport.
///
/// # Errors
/// [`VmError::Start`]: no more descriptors.
pub fn wire(parts: Net) -> Result<Wired, VmError> {
    let tap = Tap::from(parts.tap);
    let fd = tap.as_raw_fd();
    let device = Arc::new(Mutex::new(NetDevice::new(parts.mac, tap)));
    let shared: SharedDevice = Arc::<Mutex<NetDevice<Tap>>>::clone(&device);
    let queues = QueueEvents::of(&shared)?;
    let service = Service {
        device,
        queues: Arc::clone(&queues),
        tap: fd,
        again: events::event("a network device")?,
    };
    Ok(Wired {
        device: shared,
        queues,
        subscriber: Box::new(service),
    })
}

impl MutEventSubscriber for Service {
    fn init(&mut self, ops: &mut EventOps) {
        self.queues.watch(ops);
        let set = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        events::watch(ops, Events::with_data_raw(self.tap, BACKEND_EVENT, set));
        let again = Events::with_data(&self.again, BACKEND_EVENT.saturating_add(1), EventSet::IN);
        events::watch(ops, again);
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
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
    }
}

#[cfg(test)]
mod tests;
