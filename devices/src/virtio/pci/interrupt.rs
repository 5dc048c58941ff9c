//! Interrupts of a virtio-pci device: vectors of queues and configuration, and the status register for drivers without
//! MSI-X. VirtIO 1.3 §4.1.4.5, §4.1.5.1.

use crate::pci::Msix;
use crate::virtio::common::DeviceSide;
use crate::virtio::{Interrupt, RestoreError, transport_state};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

/// `VIRTIO_MSI_NO_VECTOR`.
const NO_VECTOR: u16 = 0xffff;
/// Interrupt status: a queue. VirtIO 1.3 §4.1.4.5.
const ISR_QUEUE: u8 = 1 << 0;
/// Interrupt status: the configuration.
const ISR_CONFIG: u8 = 1 << 1;

/// What interrupts for a device.
#[derive(Debug)]
pub(super) struct PciInterrupt {
    side: Arc<DeviceSide>,
    pub msix: Msix,
    isr: AtomicU8,
    config_vector: AtomicU16,
    /// By queue.
    queue_vectors: Vec<AtomicU16>,
}

impl PciInterrupt {
    pub fn new(side: Arc<DeviceSide>, msix: Msix, queues: usize) -> Self {
        let none = || AtomicU16::new(NO_VECTOR);
        Self {
            side,
            msix,
            isr: AtomicU8::new(0),
            config_vector: none(),
            queue_vectors: std::iter::repeat_with(none).take(queues).collect(),
        }
    }

    pub fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::SeqCst)
    }

    /// Vector of queue `index`; none if there is no such queue.
    pub fn queue_vector(&self, index: u16) -> u16 {
        let vector = self.queue_vectors.get(usize::from(index));
        vector.map_or(NO_VECTOR, |vector| vector.load(Ordering::SeqCst))
    }

    pub fn set_config_vector(&self, vector: u16) {
        self.config_vector
            .store(self.possible(vector), Ordering::SeqCst);
    }

    pub fn set_queue_vector(&self, index: u16, vector: u16) {
        if let Some(known) = self.queue_vectors.get(usize::from(index)) {
            known.store(self.possible(vector), Ordering::SeqCst);
        }
    }

    /// A vector that does not exist is none, and that is how the driver learns it. VirtIO 1.3 §4.1.5.1.2.1.
    fn possible(&self, vector: u16) -> u16 {
        match vector < self.msix.count() {
            true => vector,
            false => NO_VECTOR,
        }
    }

    /// The status register; reading it clears it.
    pub fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::SeqCst)
    }

    /// Whether an interrupt pin, if there was one, would be asserted. VirtIO 1.3 §4.1.4.5.1.
    pub fn would_assert_pin(&self) -> bool {
        self.isr.load(Ordering::SeqCst) != 0 && !self.msix.enabled()
    }

    /// What a reset of the device resets; MSI-X is not the device's.
    pub fn reset(&self) {
        self.isr.store(0, Ordering::SeqCst);
        self.config_vector.store(NO_VECTOR, Ordering::SeqCst);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::SeqCst);
        }
    }

    /// Status register, vector of the configuration, vectors of queues.
    pub fn save(&self) -> (u8, u16, Vec<u16>) {
        let vectors = self.queue_vectors.iter();
        let vectors = vectors.map(|vector| vector.load(Ordering::SeqCst));
        let isr = self.isr.load(Ordering::SeqCst);
        (isr, self.config_vector(), vectors.collect())
    }

    pub fn restore(
        &self,
        isr: u8,
        config_vector: u16,
        queue_vectors: &[u16],
    ) -> Result<(), RestoreError> {
        if queue_vectors.len() != self.queue_vectors.len() {
            return Err(RestoreError::Impossible {
                device: transport_state::PCI,
                what: "a number of queue vectors",
            });
        }
        self.isr
            .store(isr & (ISR_QUEUE | ISR_CONFIG), Ordering::SeqCst);
        self.set_config_vector(config_vector);
        for (index, vector) in (0_u16..).zip(queue_vectors) {
            self.set_queue_vector(index, *vector);
        }
        Ok(())
    }

    fn raise_config(&self) {
        self.isr.fetch_or(ISR_CONFIG, Ordering::SeqCst);
        self.msix.send(self.config_vector());
    }
}

impl Interrupt for PciInterrupt {
    fn queue(&self, index: u16) {
        if !self.msix.enabled() {
            self.isr.fetch_or(ISR_QUEUE, Ordering::SeqCst);
        }
        self.msix.send(self.queue_vector(index));
    }

    fn config(&self) {
        self.side.count_change();
        self.raise_config();
    }

    fn needs_reset(&self) {
        self.side.set_needs_reset();
        self.raise_config();
    }
}
