//! The source of random bytes. VirtIO 1.3 §5.4 "Entropy Device".

use crate::virtio::{
    Activation, DeviceFault, DeviceQueue, DeviceState, Interrupt, Memory, ROUNDS, RestoreError,
    SavedQueue, VirtioDevice,
};
use std::fmt::Debug;
use std::sync::Arc;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::Bytes;

/// Version of [`RngState`]; a change of meaning raises it.
pub const STATE_VERSION: u32 = 1;

/// Largest size of the queue.
const QUEUE_SIZE: u16 = 64;
/// Most bytes that one request gets: a driver that wants more asks again.
pub const MAX_BYTES: u32 = 64 << 10;
/// Bytes that are fetched at once.
const PIECE_BYTES: usize = 256;

/// Where random bytes come from.
pub trait Entropy: Debug + Send {
    /// Fills `bytes`; false if there are none.
    fn fill(&mut self, bytes: &mut [u8]) -> bool;
}

/// A source of random bytes.
#[derive(Debug)]
pub struct VirtioRng {
    entropy: Box<dyn Entropy>,
    active: Option<Active>,
}

#[derive(Debug)]
struct Active {
    queue: DeviceQueue,
    memory: Memory,
    interrupt: Arc<dyn Interrupt>,
    faulted: bool,
    more: bool,
}

/// A saved source, of which the driver was ready. Plain data and untrusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RngState {
    /// [`STATE_VERSION`].
    pub version: u32,
    /// Position in the rings.
    pub queue: SavedQueue,
    /// The driver broke the rules.
    pub needs_reset: bool,
}

impl VirtioRng {
    /// A source whose bytes are those of `entropy`.
    #[must_use]
    pub fn new(entropy: Box<dyn Entropy>) -> Self {
        Self {
            entropy,
            active: None,
        }
    }
}

impl Active {
    fn new(activation: Activation) -> Option<Self> {
        let queue = activation.queues.into_iter().next().flatten()?;
        Some(Self {
            queue: DeviceQueue::new(queue, activation.features),
            memory: activation.memory,
            interrupt: activation.interrupt,
            faulted: false,
            more: false,
        })
    }

    fn serve(&mut self, entropy: &mut dyn Entropy) -> Result<(), DeviceFault> {
        let (queue, mem) = (&mut self.queue, &self.memory);
        self.more = false;
        for _ in 0..ROUNDS {
            queue.disable_notification(mem)?;
            let mut used = false;
            for _ in 0..queue.available(mem)? {
                let Some(chain) = queue.pop(mem)? else {
                    break;
                };
                // VirtIO 1.3 §5.4.6.1: the driver has nothing to say.
                if !chain.readable.is_empty() {
                    return Err(DeviceFault::DataDirection { head: chain.head });
                }
                let mut written = 0_u32;
                for buffer in &chain.writable {
                    let len = buffer.len.min(MAX_BYTES.saturating_sub(written));
                    let filled = fill(mem, entropy, buffer.addr, len)?;
                    written = written.saturating_add(filled);
                    if filled < buffer.len {
                        break;
                    }
                }
                queue.add_used(mem, chain.head, written)?;
                used = true;
            }
            if used && queue.needs_notification(mem)? {
                self.interrupt.queue(0);
            }
            if !queue.enable_notification(mem)? {
                return Ok(());
            }
        }
        self.more = true;
        Ok(())
    }
}

/// Fills `len` bytes at `addr`; how many there were.
fn fill(
    mem: &Memory,
    entropy: &mut dyn Entropy,
    addr: vm_memory::GuestAddress,
    len: u32,
) -> Result<u32, DeviceFault> {
    let mut piece = [0; PIECE_BYTES];
    let mut done = 0_u32;
    while done < len {
        let left = usize::try_from(len.saturating_sub(done)).unwrap_or(PIECE_BYTES);
        let Some(bytes) = piece.get_mut(..left.min(PIECE_BYTES)) else {
            break;
        };
        if !entropy.fill(bytes) {
            break;
        }
        let at = addr.0.checked_add(u64::from(done));
        let at = vm_memory::GuestAddress(at.ok_or(DeviceFault::Memory)?);
        let written = mem.write_slice(bytes, at);
        written.map_err(|_| DeviceFault::Memory)?;
        done = done.saturating_add(u32::try_from(bytes.len()).unwrap_or(0));
    }
    Ok(done)
}

impl VirtioDevice for VirtioRng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_RING_F_EVENT_IDX) | (1 << VIRTIO_RING_F_INDIRECT_DESC)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u32, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) {
        self.active = Active::new(activation);
    }

    fn kick(&mut self, index: u16) {
        let Some(active) = self.active.as_mut().filter(|active| !active.faulted) else {
            return;
        };
        if index == 0 && active.serve(&mut *self.entropy).is_err() {
            active.faulted = true;
            active.interrupt.needs_reset();
        }
    }

    fn has_more(&self, _index: u16) -> bool {
        self.active.as_ref().is_some_and(|active| active.more)
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn save(&self) -> DeviceState {
        DeviceState::Rng(self.active.as_ref().map(|active| RngState {
            version: STATE_VERSION,
            queue: active.queue.save(),
            needs_reset: active.faulted,
        }))
    }

    fn restore(
        &mut self,
        state: &DeviceState,
        activation: Option<Activation>,
    ) -> Result<(), RestoreError> {
        const DEVICE: &str = "random source";
        let DeviceState::Rng(state) = state else {
            return Err(RestoreError::Kind);
        };
        self.active = None;
        let (Some(state), Some(mut activation)) = (state, activation) else {
            return Ok(());
        };
        RestoreError::unless_version(DEVICE, state.version, STATE_VERSION)?;
        let queue = activation.queues.pop().flatten();
        let queue = queue.ok_or(RestoreError::Impossible {
            device: DEVICE,
            what: "no queue",
        })?;
        self.active = Some(Active {
            queue: DeviceQueue::restore(DEVICE, queue, activation.features, &state.queue)?,
            memory: activation.memory,
            interrupt: activation.interrupt,
            faulted: state.needs_reset,
            more: false,
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
