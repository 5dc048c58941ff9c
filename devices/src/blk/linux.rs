//! The block device behind a transport, for a driver of Linux.

use super::DeviceFault;
use super::backend::BlockBackend;
use super::config_space::{CONFIG_BYTES, DiskTraits};
use super::device::{BlkConfig, BlkDevice};
use crate::rate::RateLimiter;
use crate::virtio::{
    Activation, DeviceState, Interrupt, Memory, RestoreError, VirtioDevice, read_config,
};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

/// Largest size of a disk's queue.
pub const QUEUE_SIZE: u16 = 256;

/// A block device of a Linux guest, with one queue.
#[derive(Debug)]
pub struct VirtioBlk<B> {
    traits: DiskTraits,
    space: [u8; CONFIG_BYTES],
    backend: B,
    throttle: Option<Throttle>,
    active: Option<Active>,
}

/// A limit, and what says the time.
#[derive(Debug)]
struct Throttle {
    limiter: RateLimiter,
    clock: Box<dyn Clock>,
}

/// Says the time.
pub trait Clock: Debug + Send {
    /// Time since some moment; never goes back.
    fn now(&self) -> Duration;
}

/// A device whose driver is ready.
#[derive(Debug)]
struct Active {
    device: BlkDevice,
    memory: Memory,
    interrupt: Arc<dyn Interrupt>,
    /// The driver was told that it has broken the rules.
    told: bool,
}

impl<B: BlockBackend + Debug + Send> VirtioBlk<B> {
    /// A disk that `backend` stores.
    pub fn new(traits: DiskTraits, backend: B) -> Self {
        Self {
            space: traits.config_space(),
            traits,
            backend,
            throttle: None,
            active: None,
        }
    }

    /// Lets no more through than `limiter` does.
    #[must_use]
    pub fn with_limit(mut self, limiter: RateLimiter, clock: Box<dyn Clock>) -> Self {
        self.throttle = Some(Throttle { limiter, clock });
        self
    }

    /// The backend has finished requests: `take` hands them to it, and the driver gets them.
    pub fn complete(&mut self, take: impl FnOnce(&mut B)) {
        take(&mut self.backend);
        self.serve();
    }

    /// The store.
    pub const fn backend(&mut self) -> &mut B {
        &mut self.backend
    }

    /// As [`Self::complete`], but takes nothing new; how many requests are still on their way.
    pub fn settle(&mut self, take: impl FnOnce(&mut B)) -> usize {
        take(&mut self.backend);
        let Some(active) = &mut self.active else {
            return 0;
        };
        match active.device.complete(&active.memory, &mut self.backend) {
            Ok(_) => {
                // Whether or not it has asked to be told: it waits for nothing else.
                active.interrupt.queue(0);
                active.device.in_flight()
            }
            Err(_) => 0,
        }
    }

    /// Goes on with the queue: after a wait for the limit, or because the driver has notified it.
    pub fn serve(&mut self) {
        let Some(active) = &mut self.active else {
            return;
        };
        let served = active.serve(&mut self.backend, self.throttle.as_mut());
        if served.is_err() && !std::mem::replace(&mut active.told, true) {
            active.interrupt.needs_reset();
        }
    }

    /// How long the limit keeps requests waiting yet; `None` if it does not.
    pub fn closed_for(&self) -> Option<Duration> {
        let throttle = self.throttle.as_ref().filter(|_| self.active.is_some())?;
        let closed_for = throttle.limiter.closed_for();
        (!closed_for.is_zero()).then_some(closed_for)
    }

    fn config(&self, features: u64) -> BlkConfig {
        BlkConfig {
            virtio_features: features & self.traits.features(),
            vendor_features: 0,
            read_only: self.traits.read_only,
            // A last partial sector cannot be reached.
            len_bytes: self.traits.sectors().saturating_mul(512),
            write_through: features & (1 << VIRTIO_BLK_F_FLUSH) == 0,
        }
    }
}

impl Active {
    /// Takes what is available and publishes what is done, until nothing more comes.
    fn serve(
        &mut self,
        backend: &mut dyn BlockBackend,
        mut throttle: Option<&mut Throttle>,
    ) -> Result<(), DeviceFault> {
        let (device, mem) = (&mut self.device, &self.memory);
        loop {
            device.guarded(|device| device.queue().disable_notification(mem))?;
            let limiter = throttle.as_mut().map(|throttle| {
                throttle.limiter.refill(throttle.clock.now());
                &mut throttle.limiter
            });
            let at_once = device.kick_limited(mem, backend, limiter)?;
            let later = device.complete(mem, backend)?;
            let news = at_once > 0 || later > 0;
            if news && device.guarded(|device| device.queue().needs_notification(mem))? {
                self.interrupt.queue(0);
            }
            if throttle
                .as_ref()
                .is_some_and(|throttle| !throttle.limiter.is_open())
            {
                // What is available has to wait, and the driver need not say that there is more.
                return Ok(());
            }
            if !device.guarded(|device| device.queue().enable_notification(mem))? {
                return Ok(());
            }
        }
    }
}

impl<B: BlockBackend + Debug + Send> VirtioDevice for VirtioBlk<B> {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        self.traits.features()
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        read_config(&self.space, offset, data);
    }

    fn activate(&mut self, activation: Activation) {
        let config = self.config(activation.features);
        let queue = activation.queues.into_iter().next().flatten();
        // Without its queue a disk can do nothing.
        self.active = queue.map(|queue| Active {
            device: BlkDevice::new(config, queue),
            memory: activation.memory,
            interrupt: activation.interrupt,
            told: false,
        });
    }

    fn kick(&mut self, index: u16) {
        if index == 0 {
            self.serve();
        }
    }

    fn reset(&mut self) {
        self.backend.stop();
        self.active = None;
    }

    fn save(&self) -> DeviceState {
        DeviceState::Blk(self.active.as_ref().map(|active| active.device.save()))
    }

    fn restore(
        &mut self,
        state: &DeviceState,
        activation: Option<Activation>,
    ) -> Result<(), RestoreError> {
        let DeviceState::Blk(state) = state else {
            return Err(RestoreError::Kind);
        };
        let Some(Activation {
            features,
            memory,
            queues,
            interrupt,
        }) = activation
        else {
            self.active = None;
            return Ok(());
        };
        let queue = queues.into_iter().next().flatten();
        let device = match (state, queue) {
            (Some(state), Some(queue)) => BlkDevice::restore(self.config(features), queue, state)?,
            (None, None) => {
                self.active = None;
                return Ok(());
            }
            _ => {
                return Err(RestoreError::Impossible {
                    device: "block device",
                    what: "a queue, or none,",
                });
            }
        };
        self.active = Some(Active {
            device,
            memory,
            interrupt,
            told: false,
        });
        Ok(())
    }
}
