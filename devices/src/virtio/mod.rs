//! What every virtio device of a Linux guest has in common. VirtIO 1.3 §2, §3.
//!
//! A device ([`VirtioDevice`]) knows its queues, its configuration and its backend; a *transport* (virtio-pci,
//! virtio-mmio) holds the registers through which a driver finds and configures it. The transport keeps the queues until
//! the driver is ready, then hands them over by [`VirtioDevice::activate`]; a reset takes all of it back.
//!
//! Nothing here has a thread. Register accesses come on a vCPU's thread; [`VirtioDevice::kick`], and what a backend has to
//! say, on a thread that the caller keeps for the device. Both hold the device's lock ([`SharedDevice`]).

pub mod chain;
mod common;
#[cfg(any(test, feature = "test-utils"))]
pub mod driver;
mod fault;
mod mmio;
mod pci;
mod queue;
pub mod slices;
mod state;
#[cfg(any(test, feature = "test-utils"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod transport_state;

pub use chain::{Chain, GuestBuffer};
pub use common::STATE_VERSION as TRANSPORT_STATE_VERSION;
pub use fault::DeviceFault;
pub use mmio::{NOTIFY_OFFSET as MMIO_NOTIFY_OFFSET, VirtioMmio};
pub use pci::{BAR_BYTES as PCI_BAR_BYTES, REGISTERS_BAR as PCI_REGISTERS_BAR, VirtioPci};
pub use queue::{DeviceQueue, SavedQueue};
pub use state::{DeviceState, RestoreError};
pub use transport_state::{CommonState, QueueRegisters, VirtioMmioState, VirtioPciState};

use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

/// Guest memory as devices reach it; cheap to clone.
pub type Memory = GuestMemoryMmap;

/// How often a device looks at a queue in which there is always more, before the other devices of its thread have their
/// turn.
pub const ROUNDS: u32 = 8;

/// A device, for its transport and for the thread that serves it.
pub type SharedDevice = Arc<Mutex<dyn VirtioDevice>>;

/// How a device tells its driver; made by the transport, callable from any thread, never blocks.
pub trait Interrupt: Debug + Send + Sync {
    /// Queue `index` has used buffers that the driver wants to hear of.
    fn queue(&self, index: u16);

    /// The configuration has changed. VirtIO 1.3 §2.3. The device calls this with its lock held, so that no driver reads
    /// a part of the new configuration under the old generation.
    fn config(&self);

    /// The driver has broken the rules: sets `DEVICE_NEEDS_RESET` and tells it. VirtIO 1.3 §2.1.2.
    fn needs_reset(&self);
}

/// How the driver's notifications reach the device's thread where no ioeventfd carries them; made by whoever keeps
/// that thread. Called on a vCPU's thread; never blocks.
pub trait Notify: Debug + Send + Sync {
    /// The driver has notified queue `index`, which exists.
    fn notify(&self, index: u16);
}

/// What a device gets when its driver is ready.
#[derive(Debug)]
pub struct Activation {
    /// The feature bits that the driver has accepted: a subset of those offered, with `VIRTIO_F_VERSION_1`.
    pub features: u64,
    /// All of the guest's memory.
    pub memory: Memory,
    /// By index: the queues, sized and placed; `None` for one that the driver has not enabled. Not yet checked to lie
    /// in memory. `VIRTIO_F_EVENT_IDX` is set in them if it was accepted.
    pub queues: Vec<Option<Queue>>,
    /// To tell the driver.
    pub interrupt: Arc<dyn Interrupt>,
}

/// A virtio device of a Linux guest.
pub trait VirtioDevice: Debug + Send {
    /// `VIRTIO_ID_*`. VirtIO 1.3 §5.
    fn device_type(&self) -> u32;

    /// Feature bits offered, those of rings included; transports add `VIRTIO_F_VERSION_1`.
    fn features(&self) -> u64;

    /// By index: largest size of each queue, powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// The driver reads its configuration at `offset`; bytes past its end are zeros.
    fn read_config(&self, offset: u32, data: &mut [u8]);

    /// The driver writes its configuration; ignored where there is nothing to write.
    fn write_config(&mut self, _offset: u32, _data: &[u8]) {}

    /// The driver is ready (`DRIVER_OK`): the device may use the queues from now on.
    fn activate(&mut self, activation: Activation);

    /// The driver has notified queue `index`. On the device's own thread. Before activation: nothing happens.
    fn kick(&mut self, index: u16);

    /// Whether the last kick of queue `index` left chains alone that the driver need not tell of again, so that the
    /// thread's other devices have their turn: it is to be kicked again after them.
    fn has_more(&self, _index: u16) -> bool {
        false
    }

    /// Lets go of queues and memory, and of all that is in flight: on return nothing of the device touches guest memory.
    fn reset(&mut self);

    /// The device as plain data; what is in flight is done again after a restore.
    fn save(&self) -> DeviceState;

    /// Takes `state` over, as a device just made; `activation` has the queues as they were placed, if the driver was
    /// ready: how far the device was in them is in `state`. Nothing is done yet: whoever restores kicks every queue
    /// when all devices are there.
    ///
    /// # Errors
    /// Says what no device of this kind can have.
    fn restore(
        &mut self,
        state: &DeviceState,
        activation: Option<Activation>,
    ) -> Result<(), RestoreError>;
}

/// Bytes of a device's configuration from `offset` on; past its end are zeros.
pub fn read_config(space: &[u8], offset: u32, data: &mut [u8]) {
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    let rest = space.get(offset..).unwrap_or_default().iter().copied();
    for (to, from) in data.iter_mut().zip(rest.chain(std::iter::repeat(0))) {
        *to = from;
    }
}
