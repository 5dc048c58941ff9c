//! The console with one port. VirtIO 1.3 §5.3 "Console Device".
//!
//! What comes in is kept until the guest has buffers for it, and then no more is taken ([`VirtioConsole::wants_input`]).
//! What goes out is taken from the guest as fast as [`Output`] takes it; the guest's buffers wait meanwhile.

use crate::virtio::chain::{gather, scatter, split_at, total_len};
use crate::virtio::{
    Activation, DeviceFault, DeviceQueue, DeviceState, GuestBuffer, Interrupt, Memory, ROUNDS,
    RestoreError, SavedQueue, VirtioDevice, read_config,
};
use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::Arc;
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Version of [`ConsoleState`]; a change of meaning raises it.
pub const STATE_VERSION: u32 = 1;

/// The configuration has columns and rows. VirtIO 1.3 §5.3.3.
const VIRTIO_CONSOLE_F_SIZE: u32 = 0;
/// The queue with the guest's buffers for what comes in. VirtIO 1.3 §5.3.2.
pub const INPUT_QUEUE: u16 = 0;
/// The queue with what goes out.
pub const OUTPUT_QUEUE: u16 = 1;
/// Largest sizes of the two queues.
const QUEUE_SIZES: [u16; 2] = [64, 64];
/// Input that is kept at most, in bytes, before no more is wanted.
pub const INPUT_BYTES: usize = 4096;
/// Output that is handed on at once, in bytes.
const PIECE_BYTES: usize = 4096;
/// `struct virtio_console_config`. VirtIO 1.3 §5.3.4.
const CONFIG_BYTES: usize = 12;

const DEVICE: &str = "console";

/// Where a console's output goes.
pub trait Output: Debug + Send {
    /// Takes bytes from the front; how many, 0 if it has no room now. Never blocks. Bytes that nobody will ever get,
    /// because the other end is gone, are taken.
    fn write(&mut self, bytes: &[u8]) -> usize;
}

/// Size of the terminal in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Characters in a row.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// A console.
#[derive(Debug)]
pub struct VirtioConsole {
    output: Box<dyn Output>,
    size: Size,
    input: VecDeque<u8>,
    /// Bytes of the oldest chain of the output queue that are out.
    sent: u64,
    active: Option<Active>,
}

#[derive(Debug)]
struct Active {
    /// Either may be missing, as the driver likes.
    queues: [Option<DeviceQueue>; 2],
    memory: Memory,
    interrupt: Arc<dyn Interrupt>,
    faulted: bool,
    /// The output queue has more.
    more: bool,
}

/// A saved console. Plain data and untrusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleState {
    /// [`STATE_VERSION`].
    pub version: u32,
    /// Input that the guest has not got.
    pub input: Vec<u8>,
    /// Bytes of the oldest chain of the output queue that are out.
    pub sent: u64,
    /// If the driver was ready: position in its queues.
    pub queues: Option<[Option<SavedQueue>; 2]>,
    /// The driver broke the rules.
    pub needs_reset: bool,
}

impl VirtioConsole {
    /// A console of `size`.
    #[must_use]
    pub fn new(output: Box<dyn Output>, size: Size) -> Self {
        Self {
            output,
            size,
            input: VecDeque::new(),
            sent: 0,
            active: None,
        }
    }

    /// The terminal has another size now.
    pub fn resize(&mut self, size: Size) {
        if std::mem::replace(&mut self.size, size) == size {
            return;
        }
        if let Some(active) = &self.active {
            active.interrupt.config();
        }
    }

    /// Bytes that [`Self::input`] takes now; 0 until the guest has buffers for what is there.
    #[must_use]
    pub fn wants_input(&self) -> usize {
        INPUT_BYTES.saturating_sub(self.input.len())
    }

    /// Bytes for the guest. None are lost, however many there are.
    pub fn input(&mut self, bytes: &[u8]) {
        self.input.extend(bytes);
        self.serve(INPUT_QUEUE);
    }

    /// Whether output waits for room; [`Self::send`] goes on when there is some.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        let queue = self.active.as_ref().filter(|active| !active.faulted);
        let queue = queue.and_then(|active| active.queue(OUTPUT_QUEUE));
        queue.is_some_and(DeviceQueue::has_put_back)
    }

    /// There is room for output again.
    pub fn send(&mut self) {
        self.serve(OUTPUT_QUEUE);
    }

    fn serve(&mut self, index: u16) {
        let Some(active) = self.active.as_mut().filter(|active| !active.faulted) else {
            return;
        };
        let served = if index == INPUT_QUEUE {
            active.receive(&mut self.input)
        } else {
            active.send(&mut *self.output, &mut self.sent)
        };
        if served.is_err() {
            active.faulted = true;
            active.interrupt.needs_reset();
        }
    }
}

impl Active {
    fn queue(&self, index: u16) -> Option<&DeviceQueue> {
        self.queues.get(usize::from(index))?.as_ref()
    }

    /// Fills the guest's buffers with what is there for it.
    fn receive(&mut self, input: &mut VecDeque<u8>) -> Result<(), DeviceFault> {
        let [Some(queue), _] = &mut self.queues else {
            return Ok(());
        };
        let mem = &self.memory;
        loop {
            queue.disable_notification(mem)?;
            let mut used = false;
            while !input.is_empty() {
                let Some(chain) = queue.pop(mem)? else {
                    break;
                };
                if !chain.readable.is_empty() {
                    return Err(DeviceFault::DataDirection { head: chain.head });
                }
                let written = scatter(mem, &chain.writable, input.make_contiguous())?;
                input.drain(..usize::try_from(written).unwrap_or(0).min(input.len()));
                queue.add_used(mem, chain.head, written)?;
                used = true;
            }
            if used && queue.needs_notification(mem)? {
                self.interrupt.queue(INPUT_QUEUE);
            }
            // With nothing for the guest it need not say that it has buffers.
            if input.is_empty() || !queue.enable_notification(mem)? {
                return Ok(());
            }
        }
    }

    /// Hands on what the guest sends, of whose first chain `sent` bytes are out.
    fn send(&mut self, output: &mut dyn Output, sent: &mut u64) -> Result<(), DeviceFault> {
        let [_, Some(queue)] = &mut self.queues else {
            return Ok(());
        };
        let mem = &self.memory;
        self.more = false;
        for _ in 0..ROUNDS {
            queue.disable_notification(mem)?;
            let (mut used, mut full) = (false, false);
            for _ in 0..queue.available(mem)? {
                let Some(chain) = queue.pop(mem)? else {
                    break;
                };
                if !chain.writable.is_empty() {
                    return Err(DeviceFault::DataDirection { head: chain.head });
                }
                if !send_chain(mem, &chain.readable, output, sent)? {
                    queue.put_back(chain.head);
                    full = true;
                    break;
                }
                *sent = 0;
                queue.add_used(mem, chain.head, 0)?;
                used = true;
            }
            if used && queue.needs_notification(mem)? {
                self.interrupt.queue(OUTPUT_QUEUE);
            }
            if full || !queue.enable_notification(mem)? {
                return Ok(());
            }
        }
        self.more = true;
        Ok(())
    }
}

/// Hands on `buffers` from byte `sent` on; false if there was no room for all.
fn send_chain(
    mem: &Memory,
    buffers: &[GuestBuffer],
    output: &mut dyn Output,
    sent: &mut u64,
) -> Result<bool, DeviceFault> {
    let mut piece = [0; PIECE_BYTES];
    let total = total_len(buffers);
    // The driver may have made the chain shorter meanwhile.
    let Some((_, mut rest)) = split_at(buffers, (*sent).min(total)) else {
        return Err(DeviceFault::Memory);
    };
    while !rest.is_empty() {
        let len = total_len(&rest).min(PIECE_BYTES as u64);
        let bytes = usize::try_from(len)
            .ok()
            .and_then(|len| piece.get_mut(..len));
        let bytes = bytes.ok_or(DeviceFault::Memory)?;
        if !gather(mem, &rest, bytes) {
            return Err(DeviceFault::Memory);
        }
        let taken = output.write(bytes).min(bytes.len()) as u64;
        if taken == 0 {
            return Ok(false);
        }
        *sent = sent.saturating_add(taken);
        let split = split_at(&rest, taken);
        (_, rest) = split.ok_or(DeviceFault::Memory)?;
    }
    Ok(true)
}

impl VirtioDevice for VirtioConsole {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_RING_F_EVENT_IDX)
            | (1 << VIRTIO_RING_F_INDIRECT_DESC)
            | (1 << VIRTIO_CONSOLE_F_SIZE)
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let [c0, c1] = self.size.columns.to_le_bytes();
        let [r0, r1] = self.size.rows.to_le_bytes();
        // One port, although nobody asks; no emergency writes.
        let space: [u8; CONFIG_BYTES] = [c0, c1, r0, r1, 1, 0, 0, 0, 0, 0, 0, 0];
        read_config(&space, offset, data);
    }

    fn activate(&mut self, activation: Activation) {
        let features = activation.features;
        let mut queues = activation.queues.into_iter();
        let mut next = || {
            let queue = queues.next().flatten()?;
            Some(DeviceQueue::new(queue, features))
        };
        self.sent = 0;
        self.active = Some(Active {
            queues: [next(), next()],
            memory: activation.memory,
            interrupt: activation.interrupt,
            faulted: false,
            more: false,
        });
    }

    fn kick(&mut self, index: u16) {
        self.serve(index);
    }

    fn has_more(&self, index: u16) -> bool {
        let active = self.active.as_ref();
        index == OUTPUT_QUEUE && active.is_some_and(|active| active.more)
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn save(&self) -> DeviceState {
        let active = self.active.as_ref();
        DeviceState::Console(ConsoleState {
            version: STATE_VERSION,
            input: self.input.iter().copied().collect(),
            sent: self.sent,
            queues: active.map(|active| {
                let [input, output] = &active.queues;
                [input, output].map(|queue| queue.as_ref().map(DeviceQueue::save))
            }),
            needs_reset: active.is_some_and(|active| active.faulted),
        })
    }

    fn restore(
        &mut self,
        state: &DeviceState,
        activation: Option<Activation>,
    ) -> Result<(), RestoreError> {
        let DeviceState::Console(state) = state else {
            return Err(RestoreError::Kind);
        };
        RestoreError::unless_version(DEVICE, state.version, STATE_VERSION)?;
        let active = match (&state.queues, activation) {
            (Some(saved), Some(activation)) => Some(restored(saved, activation, state)?),
            _ => None,
        };
        self.input = state.input.iter().copied().collect();
        self.sent = state.sent;
        self.active = active;
        Ok(())
    }
}

/// The part of a console that its driver has made ready.
fn restored(
    saved: &[Option<SavedQueue>; 2],
    activation: Activation,
    state: &ConsoleState,
) -> Result<Active, RestoreError> {
    let mut given = activation.queues.into_iter();
    let mut queue = |saved: &Option<SavedQueue>| match (saved, given.next().flatten()) {
        (Some(saved), Some(queue)) => {
            DeviceQueue::restore(DEVICE, queue, activation.features, saved).map(Some)
        }
        (None, None) => Ok(None),
        _ => Err(RestoreError::Impossible {
            device: DEVICE,
            what: "a queue, or none,",
        }),
    };
    let [input, output] = saved;
    Ok(Active {
        queues: [queue(input)?, queue(output)?],
        memory: activation.memory,
        interrupt: activation.interrupt,
        faulted: state.needs_reset,
        more: false,
    })
}

#[cfg(test)]
mod tests;
