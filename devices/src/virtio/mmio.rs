//! virtio-mmio, version 2: a page of registers and a wire. VirtIO 1.3 §4.2.

use super::common::{Common, DeviceSide, Half, Ring};
use super::{Interrupt, Memory, Notify, QueueRegisters, RestoreError, SharedDevice};
use super::{VirtioMmioState, transport_state};
use crate::bus::BusDevice;
use crate::msi::IrqLine;
use crate::registers::value;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use virtio_bindings::bindings::virtio_mmio as register;

/// "virt", little-endian. VirtIO 1.3 §4.2.2.
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// Version of devices that are not legacy ones.
const VERSION: u32 = 2;
/// Whose device it is: nobody assigns these.
const VENDOR: u32 = u32::from_le_bytes(*b"inst");
/// Where the device's configuration begins.
const CONFIG: u64 = register::VIRTIO_MMIO_CONFIG as u64;

/// Offset of the register whose 32-bit writes notify; what is written is the index of the queue.
pub const NOTIFY_OFFSET: u64 = register::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// A device's registers.
#[derive(Debug)]
pub struct VirtioMmio {
    common: Common,
    interrupt: Arc<MmioInterrupt>,
}

/// Interrupts by a wire: a status register says what for. The wire is edge-triggered and is pulsed each time: a driver
/// that acknowledges before it looks at its queues, as it must, misses nothing.
#[derive(Debug)]
struct MmioInterrupt {
    side: Arc<DeviceSide>,
    status: AtomicU32,
    line: Arc<dyn IrqLine>,
}

impl MmioInterrupt {
    fn raise(&self, what: u32) {
        self.status.fetch_or(what, Ordering::SeqCst);
        self.line.pulse();
    }
}

impl Interrupt for MmioInterrupt {
    fn queue(&self, _index: u16) {
        self.raise(register::VIRTIO_MMIO_INT_VRING);
    }

    fn config(&self) {
        self.side.count_change();
        self.raise(register::VIRTIO_MMIO_INT_CONFIG);
    }

    fn needs_reset(&self) {
        self.side.set_needs_reset();
        self.raise(register::VIRTIO_MMIO_INT_CONFIG);
    }
}

impl VirtioMmio {
    /// Registers of `device`, which interrupts by `line`.
    #[must_use]
    pub fn new(
        device: SharedDevice,
        memory: Memory,
        line: Arc<dyn IrqLine>,
        notify: Arc<dyn Notify>,
    ) -> Self {
        let side = Arc::new(DeviceSide::default());
        let interrupt = Arc::new(MmioInterrupt {
            side: Arc::clone(&side),
            status: AtomicU32::new(0),
            line,
        });
        let told: Arc<dyn Interrupt> = Arc::clone(&interrupt) as _;
        Self {
            common: Common::new(device, memory, notify, told, side),
            interrupt,
        }
    }

    /// Registers and device as plain data.
    #[must_use]
    pub fn save(&self) -> VirtioMmioState {
        VirtioMmioState {
            common: self.common.save(),
            interrupt_status: self.interrupt.status.load(Ordering::SeqCst),
        }
    }

    /// As just made; on return nothing of the device touches guest memory.
    pub fn reset(&mut self) {
        self.common.reset();
        self.interrupt.status.store(0, Ordering::SeqCst);
    }

    /// Takes `state` over, as a device just made.
    ///
    /// # Errors
    /// Says what no device of this kind can have.
    pub fn restore(&mut self, state: &VirtioMmioState) -> Result<(), RestoreError> {
        self.interrupt
            .status
            .store(state.interrupt_status, Ordering::SeqCst);
        self.common.restore(&state.common, transport_state::MMIO)?;
        if state.interrupt_status != 0 {
            self.interrupt.line.pulse();
        }
        Ok(())
    }

    /// The registers that can be read; others are zeros.
    fn register(&self, offset: u32) -> u32 {
        let queue = |get: fn(&QueueRegisters) -> u32| self.common.queue().map_or(0, get);
        match offset {
            register::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            register::VIRTIO_MMIO_VERSION => VERSION,
            register::VIRTIO_MMIO_DEVICE_ID => self.common.device_type(),
            register::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            register::VIRTIO_MMIO_DEVICE_FEATURES => self.common.device_features(),
            register::VIRTIO_MMIO_QUEUE_NUM_MAX => u32::from(self.common.max_queue_size()),
            register::VIRTIO_MMIO_QUEUE_READY => queue(|queue| u32::from(queue.enabled)),
            register::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status.load(Ordering::SeqCst),
            register::VIRTIO_MMIO_STATUS => self.common.status(),
            // There is no shared memory: its length is -1. VirtIO 1.3 §4.2.2.
            register::VIRTIO_MMIO_SHM_LEN_LOW
            | register::VIRTIO_MMIO_SHM_LEN_HIGH
            | register::VIRTIO_MMIO_SHM_BASE_LOW
            | register::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            register::VIRTIO_MMIO_CONFIG_GENERATION => self.common.generation(),
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u32, value: u32) {
        let common = &mut self.common;
        match offset {
            register::VIRTIO_MMIO_DEVICE_FEATURES_SEL => common.device_features_select = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES_SEL => common.driver_features_select = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES => common.set_driver_features(value),
            // An index that no queue can have selects none.
            register::VIRTIO_MMIO_QUEUE_SEL => {
                common.queue_select = u16::try_from(value).unwrap_or(u16::MAX);
            }
            register::VIRTIO_MMIO_QUEUE_NUM => {
                common.set_queue_size(u16::try_from(value).unwrap_or(0));
            }
            register::VIRTIO_MMIO_QUEUE_READY => match value {
                0 => common.disable_queue(),
                1 => common.enable_queue(),
                _ => {}
            },
            register::VIRTIO_MMIO_QUEUE_NOTIFY => common.notify(value),
            register::VIRTIO_MMIO_INTERRUPT_ACK => {
                self.interrupt.status.fetch_and(!value, Ordering::SeqCst);
            }
            register::VIRTIO_MMIO_STATUS => {
                common.set_status(value & 0xff);
                if value & 0xff == 0 {
                    self.interrupt.status.store(0, Ordering::SeqCst);
                }
            }
            _ => {
                if let Some((ring, half)) = ring_register(offset) {
                    common.set_ring(ring, half, value);
                }
            }
        }
    }
}

/// What a register places.
fn ring_register(offset: u32) -> Option<(Ring, Half)> {
    Some(match offset {
        register::VIRTIO_MMIO_QUEUE_DESC_LOW => (Ring::Descriptors, Half::Low),
        register::VIRTIO_MMIO_QUEUE_DESC_HIGH => (Ring::Descriptors, Half::High),
        register::VIRTIO_MMIO_QUEUE_AVAIL_LOW => (Ring::Available, Half::Low),
        register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => (Ring::Available, Half::High),
        register::VIRTIO_MMIO_QUEUE_USED_LOW => (Ring::Used, Half::Low),
        register::VIRTIO_MMIO_QUEUE_USED_HIGH => (Ring::Used, Half::High),
        _ => return None,
    })
}

/// Registers take aligned accesses of 32 bits, others give zeros and do nothing; the device's configuration takes any.
/// VirtIO 1.3 §4.2.2.2.
impl BusDevice for VirtioMmio {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(config) = offset.checked_sub(CONFIG) {
            self.common.read_config(config, data);
            return;
        }
        data.fill(0);
        if let (Ok(offset), Ok(data)) = (u32::try_from(offset), <&mut [u8; 4]>::try_from(data)) {
            *data = self.register(offset).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(config) = offset.checked_sub(CONFIG) {
            self.common.write_config(config, data);
            return;
        }
        let word = value(data).filter(|_| data.len() == 4);
        let word = word.and_then(|word| u32::try_from(word).ok());
        if let (Ok(offset), Some(word)) = (u32::try_from(offset), word) {
            self.set_register(offset, word);
        }
    }
}
