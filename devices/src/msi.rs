//! Interrupts, as devices see them.

use std::fmt::Debug;

/// A message that a device sends to interrupt: a 32-bit write. PCI 3.0 §6.8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiMessage {
    /// Where it is written.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

/// The messages of one function's MSI-X table; made by the machine. Never blocks.
pub trait MsiVectors: Debug + Send + Sync {
    /// Number of vectors.
    fn count(&self) -> u16;

    /// The driver has set or changed the message of a vector, or masked it (`None`).
    fn set(&self, vector: u16, message: Option<MsiMessage>);

    /// Sends the message of a vector; nothing happens if it is masked or does not exist.
    fn send(&self, vector: u16);
}

/// A wire to the interrupt controller, edge-triggered.
pub trait IrqLine: Debug + Send + Sync {
    /// Interrupts once.
    fn pulse(&self);
}
