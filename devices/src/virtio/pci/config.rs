//! Configuration space of a virtio-pci device. VirtIO 1.3 §4.1.2, §4.1.4.

use super::{
    BAR_BYTES, COMMON, DEVICE, ISR, NOTIFY, NOTIFY_BYTES, PAGE, PENDING, REGISTERS_BAR, TABLE,
};
use crate::pci::{
    COMMAND_BUS_MASTER, ConfigSpace, Identity, MSIX_CAPABILITY_ID, MSIX_CONTROL_WRITABLE, STATUS,
    STATUS_INTERRUPT,
};
use virtio_bindings::virtio_ids;

/// PCI vendor of virtio devices. VirtIO 1.3 §4.1.2.
const VENDOR: u16 = 0x1af4;
/// Device of type 0.
const FIRST_DEVICE: u16 = 0x1040;
/// Capability ID: vendor-specific.
const VENDOR_CAPABILITY: u8 = 0x09;
/// `cfg_type` of the structures. VirtIO 1.3 §4.1.4.
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// Where capabilities are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// MSI-X capability.
    msix: u16,
    /// The capability through which registers are reached from configuration space.
    window: u16,
    /// Its data.
    pub window_data: u16,
}

impl Layout {
    /// Message control. PCI 3.0 §6.8.2.3.
    pub fn msix_control(&self, config: &ConfigSpace) -> u16 {
        u16::from_le_bytes(config.get(self.msix.saturating_add(2)))
    }

    /// What the driver has set the window to: base address register, offset, length. VirtIO 1.3 §4.1.4.9.
    pub fn window(&self, config: &ConfigSpace) -> (u8, u32, u32) {
        let [bar] = config.get(self.window.saturating_add(4));
        let word = |at: u16| u32::from_le_bytes(config.get(self.window.saturating_add(at)));
        (bar, word(8), word(12))
    }
}

/// Configuration space of a device of `device_type` with `vectors` vectors.
pub(super) fn space(device_type: u32, vectors: u16) -> (ConfigSpace, Layout) {
    let device = u16::try_from(device_type).unwrap_or(0);
    let device = FIRST_DEVICE.saturating_add(device);
    let identity = Identity {
        vendor: VENDOR,
        device,
        revision: 1,
        class: class(device_type),
        subsystem_vendor: VENDOR,
        subsystem: device,
    };
    let mut config = ConfigSpace::new(&identity).with_bar(REGISTERS_BAR, BAR_BYTES);
    let msix = add_msix(&mut config, vectors);
    for (kind, start) in [(COMMON_CFG, COMMON), (ISR_CFG, ISR), (DEVICE_CFG, DEVICE)] {
        add_structure(&mut config, kind, start, PAGE, &[]);
    }
    let multiplier = u32::try_from(NOTIFY_BYTES).unwrap_or(0).to_le_bytes();
    add_structure(&mut config, NOTIFY_CFG, NOTIFY, PAGE, &multiplier);
    let window = add_structure(&mut config, PCI_CFG, 0, 0, &[0; 4]);
    config.set_writable(window.saturating_add(4), &[0xff]);
    config.set_writable(window.saturating_add(8), &[0xff; 12]);
    let layout = Layout {
        msix,
        window,
        window_data: window.saturating_add(16),
    };
    (config, layout)
}

/// PCI 3.0 §6.8.2.
fn add_msix(config: &mut ConfigSpace, vectors: u16) -> u16 {
    let bar = u32::from(REGISTERS_BAR);
    let place = |offset: u64| u32::try_from(offset).unwrap_or(0) | bar;
    let last = vectors.saturating_sub(1);
    let mut body = last.to_le_bytes().to_vec();
    body.extend(place(TABLE).to_le_bytes());
    body.extend(place(PENDING).to_le_bytes());
    let msix = config.add_capability(MSIX_CAPABILITY_ID, &body);
    config.set_writable(msix.saturating_add(2), &MSIX_CONTROL_WRITABLE.to_le_bytes());
    msix
}

/// `struct virtio_pci_cap`. VirtIO 1.3 §4.1.4.
fn add_structure(config: &mut ConfigSpace, kind: u8, start: u64, len: u64, more: &[u8]) -> u16 {
    let word = |number: u64| u32::try_from(number).unwrap_or(0).to_le_bytes();
    let total = u8::try_from(more.len()).unwrap_or(0).saturating_add(16);
    let mut body = vec![total, kind, REGISTERS_BAR, 0, 0, 0];
    body.extend(word(start));
    body.extend(word(len));
    body.extend(more);
    config.add_capability(VENDOR_CAPABILITY, &body)
}

/// Base class and sub-class, which programs show to their users. PCI 3.0 appendix D.
fn class(device_type: u32) -> u32 {
    match device_type {
        virtio_ids::VIRTIO_ID_NET => 0x02_0000,
        virtio_ids::VIRTIO_ID_BLOCK => 0x01_8000,
        virtio_ids::VIRTIO_ID_CONSOLE | virtio_ids::VIRTIO_ID_VSOCK => 0x07_8000,
        _ => 0xff_0000,
    }
}

/// Whether the function may write to memory.
pub(super) fn bus_master(config: &ConfigSpace) -> bool {
    config.command() & COMMAND_BUS_MASTER != 0
}

/// Sets or clears the interrupt bit of the status register.
pub(super) fn set_interrupt_status(config: &mut ConfigSpace, asserted: bool) {
    let [status] = config.get(STATUS);
    let status = match asserted {
        true => status | STATUS_INTERRUPT,
        false => status & !STATUS_INTERRUPT,
    };
    config.set(STATUS, &[status]);
}
