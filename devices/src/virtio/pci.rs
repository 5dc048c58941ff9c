//! virtio-pci, without the legacy interface: one range of registers, MSI-X. VirtIO 1.3 §4.1.
//!
//! The range has a page for each structure, so that guests can map them apart:
//!
//! | offset | structure |
//! |---|---|
//! | 0x0000 | common configuration, VirtIO 1.3 §4.1.4.3 |
//! | 0x1000 | interrupt status, §4.1.4.5 |
//! | 0x2000 | the device's configuration, §4.1.4.6 |
//! | 0x3000 | notifications, four bytes for each queue, §4.1.4.4 |
//! | 0x4000 | MSI-X table |
//! | 0x5000 | MSI-X pending bits |

mod config;
mod interrupt;

use super::common::{Common, DeviceSide, Half, Ring};
use super::{Interrupt, Memory, Notify, RestoreError, SharedDevice, VirtioPciState};
use crate::msi::MsiVectors;
use crate::pci::{ConfigSpace, FunctionState, Msix, PciFunction};
use crate::registers::{read_image, touches, value};
use config::Layout;
use interrupt::PciInterrupt;
use std::sync::Arc;

/// The base address register of all registers.
pub const REGISTERS_BAR: u8 = 0;
/// Length of its range in bytes.
pub const BAR_BYTES: u32 = 0x8000;
/// Length of a page of it.
const PAGE: u64 = 0x1000;
const COMMON: u64 = 0;
const ISR: u64 = PAGE;
const DEVICE: u64 = 2 * PAGE;
const NOTIFY: u64 = 3 * PAGE;
const TABLE: u64 = 4 * PAGE;
const PENDING: u64 = 5 * PAGE;
/// Bytes of the range from one queue's notification address to the next.
const NOTIFY_BYTES: u64 = 4;

/// A device's function.
#[derive(Debug)]
pub struct VirtioPci {
    config: ConfigSpace,
    layout: Layout,
    common: Common,
    interrupt: Arc<PciInterrupt>,
}

impl VirtioPci {
    /// The function of `device`. It wants a vector for each queue and one more; with fewer, the driver has queues share.
    #[must_use]
    pub fn new(
        device: SharedDevice,
        memory: Memory,
        vectors: Arc<dyn MsiVectors>,
        notify: Arc<dyn Notify>,
    ) -> Self {
        let side = Arc::new(DeviceSide::default());
        let queues = {
            let device = super::common::lock(&device);
            device.queue_sizes().len()
        };
        let msix = Msix::new(vectors);
        let interrupt = Arc::new(PciInterrupt::new(Arc::clone(&side), msix, queues));
        let told: Arc<dyn Interrupt> = Arc::clone(&interrupt) as _;
        let common = Common::new(device, memory, notify, told, side);
        let (config, layout) = config::space(common.device_type(), interrupt.msix.count());
        Self {
            config,
            layout,
            common,
            interrupt,
        }
    }

    /// Offset, in the range of [`REGISTERS_BAR`], of the register whose 16-bit writes notify queue `index`.
    #[must_use]
    pub fn notify_offset(index: u16) -> u64 {
        NOTIFY.saturating_add(u64::from(index).saturating_mul(NOTIFY_BYTES))
    }

    /// The common configuration as the driver reads it. VirtIO 1.3 §4.1.4.3.
    fn common_image(&self) -> Vec<u8> {
        let common = &self.common;
        let [status, ..] = common.status().to_le_bytes();
        let [generation, ..] = common.generation().to_le_bytes();
        let queue = common.queue().copied().unwrap_or_default();
        let vector = self.interrupt.queue_vector(common.queue_select);
        let mut image = Vec::with_capacity(64);
        image.extend(common.device_features_select.to_le_bytes());
        image.extend(common.device_features().to_le_bytes());
        image.extend(common.driver_features_select.to_le_bytes());
        image.extend(common.driver_features().to_le_bytes());
        image.extend(self.interrupt.config_vector().to_le_bytes());
        image.extend(common.queue_count().to_le_bytes());
        image.extend([status, generation]);
        image.extend(common.queue_select.to_le_bytes());
        image.extend(queue.size.to_le_bytes());
        image.extend(vector.to_le_bytes());
        image.extend(u16::from(queue.enabled).to_le_bytes());
        // Each queue is notified at its own address.
        image.extend(common.queue_select.to_le_bytes());
        image.extend(queue.desc_table_gpa.to_le_bytes());
        image.extend(queue.avail_ring_gpa.to_le_bytes());
        image.extend(queue.used_ring_gpa.to_le_bytes());
        image
    }

    /// The driver writes the common configuration: a whole field, or half of an address. Other accesses, which VirtIO 1.3
    /// §4.1.3.1 forbids, do nothing.
    fn write_common(&mut self, offset: u64, data: &[u8]) {
        let Some(value) = value(data) else { return };
        let [low, high] = [value & 0xffff_ffff, value >> 32].map(|half| u32::try_from(half).ok());
        let (Some(low), Some(high)) = (low, high) else {
            return;
        };
        let short = u16::try_from(value).unwrap_or(u16::MAX);
        let common = &mut self.common;
        match (offset, data.len()) {
            (0, 4) => common.device_features_select = low,
            (8, 4) => common.driver_features_select = low,
            (12, 4) => common.set_driver_features(low),
            (16, 2) => self.interrupt.set_config_vector(short),
            (20, 1) => self.set_status(low),
            (22, 2) => common.queue_select = short,
            (24, 2) => common.set_queue_size(short),
            (26, 2) => self.interrupt.set_queue_vector(common.queue_select, short),
            // Drivers must not write 0. VirtIO 1.3 §4.1.4.3.2.
            (28, 2) if short == 1 => common.enable_queue(),
            (32 | 36 | 40 | 44 | 48 | 52, 4) => {
                let half = if offset & 4 == 0 {
                    Half::Low
                } else {
                    Half::High
                };
                common.set_ring(ring(offset), half, low);
            }
            (32 | 40 | 48, 8) => {
                common.set_ring(ring(offset), Half::Low, low);
                common.set_ring(ring(offset), Half::High, high);
            }
            _ => {}
        }
    }

    fn set_status(&mut self, status: u32) {
        self.common.set_status(status);
        if status == 0 {
            self.interrupt.reset();
        }
        self.follow_command();
    }

    /// Does what the command register and message control say: a function that may not write to memory sends no messages
    /// and has no queues. Drivers turn that off only when they are done with the device.
    fn follow_command(&mut self) {
        let bus_master = config::bus_master(&self.config);
        let control = self.layout.msix_control(&self.config);
        self.interrupt.msix.set_control(control, bus_master);
        if !bus_master {
            self.common.stop();
        }
    }

    /// The driver reads or writes registers through configuration space. VirtIO 1.3 §4.1.4.9.
    fn window_place(&self) -> Option<(u64, usize)> {
        let (bar, offset, len) = self.layout.window(&self.config);
        let len = usize::try_from(len)
            .ok()
            .filter(|len| matches!(len, 1 | 2 | 4))?;
        let (offset, end) = (u64::from(offset), u64::from(BAR_BYTES));
        let aligned = offset.is_multiple_of(u64::try_from(len).ok()?);
        (bar == REGISTERS_BAR && aligned && offset < end).then_some((offset, len))
    }
}

impl PciFunction for VirtioPci {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        let window = self.layout.window_data;
        if touches(u64::from(offset), data, u64::from(window), 4)
            && let Some((register, len)) = self.window_place()
        {
            let mut bytes = [0; 4];
            if let Some(bytes) = bytes.get_mut(..len) {
                self.read_bar(REGISTERS_BAR, register, bytes);
            }
            self.config.set(window, &bytes);
        }
        let asserted = self.interrupt.would_assert_pin();
        config::set_interrupt_status(&mut self.config, asserted);
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        self.config.write(offset, data);
        let window = self.layout.window_data;
        if touches(u64::from(offset), data, u64::from(window), 4)
            && let Some((register, len)) = self.window_place()
        {
            let bytes: [u8; 4] = self.config.get(window);
            if let Some(bytes) = bytes.get(..len) {
                self.write_bar(REGISTERS_BAR, register, bytes);
            }
        }
        self.follow_command();
    }

    fn read_bar(&mut self, _bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let within = offset & 0xfff;
        match offset & !0xfff {
            COMMON => read_image(&self.common_image(), within, data),
            ISR if within == 0 => {
                let isr = self.interrupt.take_isr();
                read_image(&[isr], 0, data);
            }
            DEVICE => self.common.read_config(within, data),
            TABLE => self.interrupt.msix.read_table(within, data),
            PENDING => self.interrupt.msix.read_pending(within, data),
            _ => {}
        }
    }

    fn write_bar(&mut self, _bar: u8, offset: u64, data: &[u8]) {
        let within = offset & 0xfff;
        match offset & !0xfff {
            COMMON => self.write_common(within, data),
            DEVICE => self.common.write_config(within, data),
            // The address says which queue, what is written says it again.
            NOTIFY => {
                let index = within.checked_div(NOTIFY_BYTES).unwrap_or(u64::MAX);
                self.common.notify(u32::try_from(index).unwrap_or(u32::MAX));
            }
            TABLE => self.interrupt.msix.write_table(within, data),
            _ => {}
        }
    }

    fn save(&self) -> FunctionState {
        let (isr, config_vector, queue_vectors) = self.interrupt.save();
        FunctionState::Virtio(Box::new(VirtioPciState {
            common: self.common.save(),
            config: self.config.bytes().to_vec(),
            msix: self.interrupt.msix.save(),
            isr,
            config_vector,
            queue_vectors,
        }))
    }

    fn reset(&mut self) {
        self.common.reset();
        self.interrupt.reset();
        self.interrupt.msix.reset();
        self.config.reset();
    }

    fn restore(&mut self, state: &FunctionState) -> Result<(), RestoreError> {
        let FunctionState::Virtio(state) = state else {
            return Err(RestoreError::Kind);
        };
        self.interrupt
            .restore(state.isr, state.config_vector, &state.queue_vectors)?;
        self.interrupt.msix.restore(&state.msix)?;
        self.config.write(0, &state.config);
        // Messages first, so that the device finds them as they were.
        self.follow_command();
        self.common
            .restore(&state.common, super::transport_state::PCI)?;
        self.follow_command();
        Ok(())
    }
}

/// What an address in the common configuration places.
fn ring(offset: u64) -> Ring {
    match offset & !0b111 {
        32 => Ring::Descriptors,
        40 => Ring::Available,
        _ => Ring::Used,
    }
}
