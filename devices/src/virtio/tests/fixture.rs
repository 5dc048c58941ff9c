//! A device that echoes, and a machine that writes down what it is asked.

use crate::msi::{IrqLine, MsiMessage, MsiVectors};
use crate::pci::BarListener;
use crate::virtio::{
    Activation, Chain, CommonState, DeviceFault, DeviceQueue, DeviceState, Interrupt, Memory,
    Notify, RestoreError, SavedQueue, SharedDevice, VirtioDevice, VirtioMmioState, VirtioPciState,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// A feature bit that the device offers.
pub const FEATURE: u64 = 1 << 3;
const KIND: u32 = 30;
const SIZES: [u16; 2] = [16, 4];

/// Fills buffers with "echo", at once or later.
#[derive(Debug)]
pub struct Echo {
    config: [u8; 4],
    pub activations: u32,
    pub fault: Option<DeviceFault>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    features: u64,
    memory: Memory,
    interrupt: Arc<dyn Interrupt>,
    queues: Vec<Option<DeviceQueue>>,
    event_idx: bool,
    held: Vec<Chain>,
}

impl Echo {
    fn new() -> Self {
        Self {
            config: *b"ECHO",
            activations: 0,
            fault: None,
            running: None,
        }
    }

    pub fn active_features(&self) -> Option<u64> {
        self.running.as_ref().map(|running| running.features)
    }

    pub fn queue_sizes_seen(&self) -> Vec<Option<u16>> {
        let queues = &self.running.as_ref().unwrap().queues;
        let size = |queue: &Option<DeviceQueue>| queue.as_ref().map(DeviceQueue::size);
        queues.iter().map(size).collect()
    }

    pub fn event_idx(&self) -> bool {
        self.running.as_ref().unwrap().event_idx
    }

    pub fn held(&self) -> usize {
        self.running
            .as_ref()
            .map_or(0, |running| running.held.len())
    }

    /// Changes the configuration.
    pub fn change_config(&mut self) {
        self.config[0] += 1;
        self.running.as_ref().unwrap().interrupt.config();
    }

    /// Takes what is available on queue 0 and keeps it.
    pub fn hold(&mut self) {
        let Some(running) = &mut self.running else {
            return;
        };
        let queue = running.queues[0].as_mut().unwrap();
        loop {
            match queue.pop(&running.memory) {
                Ok(Some(chain)) => running.held.push(chain),
                Ok(None) => return,
                Err(fault) => {
                    self.fault = Some(fault);
                    running.interrupt.needs_reset();
                    return;
                }
            }
        }
    }

    /// Answers what is held and available on queue 0.
    pub fn serve(&mut self) {
        self.hold();
        let Some(running) = self.running.as_mut().filter(|_| self.fault.is_none()) else {
            return;
        };
        let queue = running.queues[0].as_mut().unwrap();
        for chain in running.held.drain(..) {
            let buffer = chain.writable[0];
            let at = GuestAddress(buffer.addr.0);
            running.memory.write_slice(b"echo", at).unwrap();
            queue.add_used(&running.memory, chain.head, 4).unwrap();
        }
        if queue.needs_notification(&running.memory).unwrap() {
            running.interrupt.queue(0);
        }
    }

    fn run(
        &mut self,
        activation: Activation,
        mut make: impl FnMut(usize, Queue, u64) -> Result<DeviceQueue, RestoreError>,
    ) -> Result<(), RestoreError> {
        let features = activation.features;
        let mut queues = Vec::new();
        let mut event_idx = false;
        for (index, queue) in activation.queues.into_iter().enumerate() {
            let queue = queue.map(|queue| {
                event_idx |= queue.event_idx_enabled();
                make(index, queue, features)
            });
            queues.push(queue.transpose()?);
        }
        self.activations += 1;
        self.running = Some(Running {
            features,
            memory: activation.memory,
            interrupt: activation.interrupt,
            queues,
            event_idx,
            held: Vec::new(),
        });
        Ok(())
    }
}

impl VirtioDevice for Echo {
    fn device_type(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        FEATURE | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        data.fill(0);
        let bytes = self.config.iter().skip(offset as usize);
        for (to, from) in data.iter_mut().zip(bytes) {
            *to = *from;
        }
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        let bytes = self.config.iter_mut().skip(offset as usize);
        for (to, from) in bytes.zip(data) {
            *to = *from;
        }
    }

    fn activate(&mut self, activation: Activation) {
        self.run(activation, |_, queue, features| {
            Ok(DeviceQueue::new(queue, features))
        })
        .unwrap();
    }

    fn kick(&mut self, _index: u16) {
        self.serve();
    }

    fn reset(&mut self) {
        self.running = None;
        self.fault = None;
    }

    fn save(&self) -> DeviceState {
        let queues = self.running.as_ref().map(|running| &running.queues);
        let queues = queues.into_iter().flatten();
        let saved = queues.map(|queue| queue.as_ref().map(DeviceQueue::save));
        DeviceState::Echo(self.config, saved.collect())
    }

    fn restore(
        &mut self,
        state: &DeviceState,
        activation: Option<Activation>,
    ) -> Result<(), RestoreError> {
        let DeviceState::Echo(config, saved) = state else {
            return Err(RestoreError::Kind);
        };
        self.config = *config;
        let Some(activation) = activation else {
            return Ok(());
        };
        let none = SavedQueue::default();
        self.run(activation, |index, queue, features| {
            let saved = saved[index].as_ref().unwrap_or(&none);
            DeviceQueue::restore("echo", queue, features, saved)
        })
    }
}

/// What the machine was asked.
#[derive(Debug, Default)]
pub struct Log {
    pub lines: Mutex<Vec<u16>>,
    /// By vector: its message.
    pub messages: Mutex<[Option<MsiMessage>; 3]>,
    pub sent: Mutex<Vec<u16>>,
    /// Where a listener has heard that registers are.
    pub moves: Mutex<Vec<Option<u64>>>,
    pub pulses: AtomicUsize,
}

impl Notify for Log {
    fn notify(&self, index: u16) {
        self.lines.lock().unwrap().push(index);
    }
}

impl IrqLine for Log {
    fn pulse(&self) {
        self.pulses.fetch_add(1, Ordering::SeqCst);
    }
}

impl BarListener for Log {
    fn bar_placed(&self, bar: u8, start: Option<u64>) {
        assert_eq!(bar, 0);
        self.moves.lock().unwrap().push(start);
    }
}

impl MsiVectors for Log {
    fn count(&self) -> u16 {
        3
    }

    fn set(&self, vector: u16, message: Option<MsiMessage>) {
        self.messages.lock().unwrap()[usize::from(vector)] = message;
    }

    fn send(&self, vector: u16) {
        let messages = self.messages.lock().unwrap();
        assert!(messages[usize::from(vector)].is_some(), "masked");
        self.sent.lock().unwrap().push(vector);
    }
}

/// Vectors that the driver uses: for the configuration, for queue 0.
pub const VECTORS: [u16; 2] = [2, 0];

/// A transport's registers, as a driver uses them.
pub trait Registers {
    fn status(&mut self) -> u32;
    fn set_status(&mut self, status: u32);
    fn offered(&mut self) -> u64;
    fn accept_word(&mut self, word: u32, features: u32);
    fn generation(&mut self) -> u32;
    fn select_queue(&mut self, index: u16);
    fn set_selected_size(&mut self, size: u16);
    /// Descriptor table, available and used ring of the selected queue; then it is enabled.
    fn enable_selected(&mut self, rings: [u64; 3]);
    fn notify(&mut self, index: u16);
    fn read_config_bytes(&mut self, offset: u64, data: &mut [u8]);
    fn write_config(&mut self, offset: u64, data: &[u8]);
    /// Any access to any register.
    fn access(&mut self, offset: u64, data: &mut [u8], write: bool);
    fn save(&self) -> Saved;
    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError>;

    fn accept(&mut self, features: u64) {
        self.accept_word(0, features as u32);
        self.accept_word(1, (features >> 32) as u32);
    }

    fn config(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0xee; len];
        self.read_config_bytes(offset, &mut data);
        data
    }

    fn set_queue_size(&mut self, index: u16, size: u16) {
        self.select_queue(index);
        self.set_selected_size(size);
    }

    fn enable_at(&mut self, index: u16, rings: [u64; 3]) {
        self.select_queue(index);
        self.enable_selected(rings);
    }

    fn place_queue(&mut self, index: u16, queue: &Queue) {
        self.set_queue_size(index, queue.size());
        self.enable_at(
            index,
            [queue.desc_table(), queue.avail_ring(), queue.used_ring()],
        );
    }
}

/// A saved transport.
#[derive(Clone, Debug, PartialEq)]
pub enum Saved {
    Pci(Box<VirtioPciState>),
    Mmio(Box<VirtioMmioState>),
}

impl Saved {
    pub fn common(&mut self) -> &mut CommonState {
        match self {
            Self::Pci(state) => &mut state.common,
            Self::Mmio(state) => &mut state.common,
        }
    }
}

/// A device behind a transport.
pub struct Lab {
    pub memory: Memory,
    pub log: Arc<Log>,
    device: Arc<Mutex<Echo>>,
    pub registers: AnyRegisters,
}

/// One of the transports.
pub type AnyRegisters = Box<dyn AnyTransport>;

/// [`Registers`] that can be boxed.
pub trait AnyTransport: Registers {
    /// Another of the kind.
    fn again(&self, parts: &Parts) -> AnyRegisters;
}

/// What a transport is made of.
pub struct Parts {
    pub device: SharedDevice,
    pub memory: Memory,
    pub log: Arc<Log>,
}

impl Lab {
    pub fn pci() -> Self {
        Self::with(memory(), |parts| Box::new(super::pci::Pci::new(parts)))
    }

    pub fn mmio() -> Self {
        Self::with(memory(), |parts| Box::new(super::mmio::Mmio::new(parts)))
    }

    fn with(memory: Memory, make: impl FnOnce(&Parts) -> AnyRegisters) -> Self {
        let device = Arc::new(Mutex::new(Echo::new()));
        let log = Arc::new(Log::default());
        let parts = Parts {
            device: Arc::clone(&device) as _,
            memory: memory.clone(),
            log: Arc::clone(&log),
        };
        Self {
            registers: make(&parts),
            memory,
            log,
            device,
        }
    }

    /// Another device with the same memory.
    pub fn fresh(&self) -> Self {
        Self::with(self.memory.clone(), |parts| self.registers.again(parts))
    }

    pub fn echo(&self) -> MutexGuard<'_, Echo> {
        self.device.lock().unwrap()
    }

    pub fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory
            .read_slice(&mut data, GuestAddress(gpa))
            .unwrap();
        data
    }

    /// Queues that were notified by way of an exit.
    pub fn notified(&self) -> Vec<u16> {
        std::mem::take(&mut self.log.lines.lock().unwrap())
    }

    /// Interrupts for queue 0 or, over mmio, for anything.
    pub fn interrupts(&self) -> usize {
        self.count(VECTORS[1])
    }

    /// Interrupts for the configuration or, over mmio, for anything.
    pub fn config_interrupts(&self) -> usize {
        self.count(VECTORS[0])
    }

    fn count(&self, vector: u16) -> usize {
        let sent = self.log.sent.lock().unwrap();
        let sent = sent.iter().filter(|known| **known == vector).count();
        sent + self.log.pulses.load(Ordering::SeqCst)
    }

    pub fn save_all(&self) -> Saved {
        self.registers.save()
    }

    pub fn save(&self) -> CommonState {
        self.save_all().common().clone()
    }

    pub fn restore_all(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        self.registers.restore(saved)
    }

    /// Restores `state` with the rest as it is.
    pub fn restore(&mut self, state: &CommonState) -> Result<(), RestoreError> {
        let mut saved = self.save_all();
        *saved.common() = state.clone();
        self.restore_all(&saved)
    }
}

fn memory() -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap()
}
