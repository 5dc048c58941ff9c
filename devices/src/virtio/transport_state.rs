//! Saved transports. Plain data and untrusted: only `restore` makes registers of it.

use super::DeviceState;
use crate::pci::MsixState;

/// What the driver has told of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueRegisters {
    /// Number of descriptors, a power of two.
    pub size: u16,
    /// The driver has placed it.
    pub enabled: bool,
    /// Guest-physical address of the descriptor table.
    pub desc_table_gpa: u64,
    /// Guest-physical address of the available ring.
    pub avail_ring_gpa: u64,
    /// Guest-physical address of the used ring.
    pub used_ring_gpa: u64,
}

/// What transports have in common, and the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommonState {
    /// [`super::TRANSPORT_STATE_VERSION`].
    pub version: u32,
    /// Device status without `DEVICE_NEEDS_RESET`.
    pub status: u32,
    /// `DEVICE_NEEDS_RESET`.
    pub needs_reset: bool,
    /// Generation of the configuration.
    pub generation: u32,
    /// The device has the queues.
    pub active: bool,
    /// Which 32 bits of the offered features are shown.
    pub device_features_select: u32,
    /// Which 32 bits of the accepted features are written.
    pub driver_features_select: u32,
    /// Features accepted.
    pub driver_features: u64,
    /// The driver has accepted bits past 63.
    pub unknown_features: bool,
    /// Which queue the queue registers are of.
    pub queue_select: u16,
    /// By index.
    pub queues: Vec<QueueRegisters>,
    /// The device itself.
    pub device: DeviceState,
}

/// A virtio-mmio device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtioMmioState {
    /// Registers of all transports, and the device.
    pub common: CommonState,
    /// Interrupt status. VirtIO 1.3 §4.2.2.
    pub interrupt_status: u32,
}

/// A virtio-pci device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtioPciState {
    /// Registers of all transports, and the device.
    pub common: CommonState,
    /// Configuration space; only what a guest can write counts.
    pub config: Vec<u8>,
    /// The MSI-X table.
    pub msix: MsixState,
    /// Interrupt status. VirtIO 1.3 §4.1.4.5.
    pub isr: u8,
    /// Vector for changes of the configuration.
    pub config_vector: u16,
    /// Vector of each queue.
    pub queue_vectors: Vec<u16>,
}

/// The transports, in errors.
pub(super) const MMIO: &str = "virtio-mmio";
/// As [`MMIO`].
pub(super) const PCI: &str = "virtio-pci";
