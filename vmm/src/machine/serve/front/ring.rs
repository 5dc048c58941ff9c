//! The ring: where it is, how its driver is told, and when the device has it.

use super::{Front, PROTOCOL_FEATURES, await_news};
use instar_devices::blk::QUEUE_SIZE;
use instar_devices::virtio::{Activation, DeviceState, Interrupt, VirtioDevice};
use std::fs::File;
use std::io::Write;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use vhost::vhost_user::{Error, Result};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};

/// The one ring.
#[derive(Debug, Default)]
pub(super) struct Ring {
    pub(super) size: u16,
    /// Descriptors, available and used ring, as the front end's addresses.
    pub(super) places: Option<[u64; 3]>,
    pub(super) base: u16,
    pub(super) kick: Option<Arc<File>>,
    pub(super) call: Arc<Call>,
    pub(super) enabled: bool,
    /// The device has it.
    pub(super) active: bool,
}

/// How the driver is told.
#[derive(Debug, Default)]
pub(super) struct Call {
    pub(super) used: Mutex<Option<File>>,
    pub(super) broken: Mutex<Option<File>>,
}

impl Call {
    fn signal(event: &Mutex<Option<File>>) {
        let event = event.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut event) = event.as_ref() {
            // Full means signalled, which is enough.
            let _ = event.write(&1_u64.to_ne_bytes());
        }
    }

    pub(super) fn set(event: &Mutex<Option<File>>, to: Option<File>) {
        *event.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }
}

impl Interrupt for Call {
    fn queue(&self, _index: u16) {
        Self::signal(&self.used);
    }

    fn config(&self) {}

    fn needs_reset(&self) {
        Self::signal(&self.broken);
    }
}

impl Front {
    /// Lets what is on its way end, and takes the ring from the device; where the device was in it.
    pub(super) fn stop_ring(&mut self) -> u16 {
        if !std::mem::take(&mut self.ring.active) {
            return self.ring.base;
        }
        let (finished, answers) = (Arc::clone(&self.finished), self.answers());
        let mut answered = false;
        while self
            .device
            .settle(|store| store.take_news(&finished, answered))
            > 0
        {
            match await_news(&finished, answers.as_deref()) {
                Ok(news) => answered = news,
                Err(_) => break,
            }
        }
        if let DeviceState::Blk(Some(state)) = self.device.save() {
            self.ring.base = state.queue.next_avail;
        }
        self.device.reset();
        self.ring.base
    }

    /// Gives the ring to the device, if all is said that it needs.
    pub(super) fn start_ring(&mut self) -> Result<()> {
        let ring = &mut self.ring;
        let (Some(places), Some(memory), true) = (ring.places, &self.memory, ring.enabled) else {
            return Ok(());
        };
        if ring.active || ring.kick.is_none() {
            return Ok(());
        }
        let [descriptors, available, used] = places.map(|user| memory.guest_address(user));
        let mut queue = Queue::new(QUEUE_SIZE).map_err(|_| Error::BackendInternalError)?;
        queue.set_size(ring.size);
        queue.set_event_idx(self.accepted & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
        let places = (descriptors, available, used);
        let (Some(descriptors), Some(available), Some(used)) = places else {
            return Err(Error::InvalidParam);
        };
        queue
            .try_set_desc_table_address(vm_memory::GuestAddress(descriptors))
            .and_then(|()| queue.try_set_avail_ring_address(vm_memory::GuestAddress(available)))
            .and_then(|()| queue.try_set_used_ring_address(vm_memory::GuestAddress(used)))
            .map_err(|_| Error::InvalidParam)?;
        queue.set_ready(true);
        let dma = memory.slot.dma();
        let next_used = queue.used_idx(dma, Ordering::Acquire);
        queue.set_next_used(next_used.map_err(|_| Error::InvalidParam)?.0);
        queue.set_next_avail(ring.base);
        self.device.backend().set_memory(Arc::clone(&memory.slot));
        self.device.activate(Activation {
            features: self.accepted & !PROTOCOL_FEATURES,
            memory: dma.clone(),
            queues: vec![Some(queue)],
            interrupt: Arc::clone(&ring.call) as Arc<dyn Interrupt>,
        });
        ring.active = true;
        // What the driver has put there before.
        self.device.kick(0);
        Ok(())
    }
}
