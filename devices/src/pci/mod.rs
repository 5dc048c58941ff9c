//! A PCI bus: configuration space, base address registers, MSI-X. PCI Local Bus 3.0.
//!
//! One bus of 32 devices with one function each, the host bridge at 00:00.0. There is no firmware that places base
//! address registers, so [`PciBus::insert`] does; the guest may move them, and the bus finds a function by where its
//! registers are now. All of them are 32-bit memory. Interrupts are messages (MSI-X); no function has an interrupt pin.
//! Left out: bridges, I/O space, PCI Express capabilities, hotplug.
//!
//! ```text
//! ports 0xcf8-0xcff -> ConfigPorts --+
//! ECAM              -> Ecam ---------+-> PciBus -> PciFunction
//! 32-bit window     -> Window -------+
//! ```

mod bridge;
mod bus;
mod config;
mod msix;

#[cfg(test)]
mod tests;

pub use bridge::HostBridge;
pub use bus::{BusFull, ConfigPorts, Ecam, PciBus, PciBusState, Window};
pub use config::{BarRange, ConfigSpace, Identity};
pub(crate) use config::{COMMAND_BUS_MASTER, STATUS, STATUS_INTERRUPT};
pub(crate) use msix::{
    CAPABILITY_ID as MSIX_CAPABILITY_ID, CONTROL_WRITABLE as MSIX_CONTROL_WRITABLE,
};
pub use msix::{MAX_VECTORS, Msix, MsixEntryState, MsixState};

use crate::virtio::{RestoreError, VirtioPciState};
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

/// Devices of a bus.
pub const SLOTS: u8 = 32;
/// Base address registers of a function.
pub const BARS: u8 = 6;

/// A function, for its bus and whoever else configures it.
pub type SharedFunction = Arc<Mutex<dyn PciFunction>>;

/// A device on the bus, with one function. Guests choose every offset, length and value.
pub trait PciFunction: Debug + Send {
    /// Its configuration space.
    fn config(&self) -> &ConfigSpace;

    /// Its configuration space, to place base address registers.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// The guest reads configuration space at `offset`, below 256.
    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// The guest writes configuration space at `offset`, below 256.
    fn write_config(&mut self, offset: u16, data: &[u8]) {
        self.config_mut().write(offset, data);
    }

    /// The guest reads at `offset` of the range of base address register `bar`.
    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]);

    /// The guest writes at `offset` of the range of base address register `bar`.
    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]);

    /// The function as plain data.
    fn save(&self) -> FunctionState;

    /// As just made; base address registers are not placed.
    fn reset(&mut self);

    /// Takes `state` over, as a function just made.
    ///
    /// # Errors
    /// Says what no function of this kind can have.
    fn restore(&mut self, state: &FunctionState) -> Result<(), RestoreError>;
}

/// Hears where a function's base address registers are, so that what is registered at their addresses follows.
pub trait BarListener: Debug + Send + Sync {
    /// The range of `bar` begins at `start` now, inside the bus's window; at none if the guest has turned it off or
    /// moved it elsewhere. Two functions may be told the same address: a guest can do that.
    fn bar_placed(&self, bar: u8, start: Option<u64>);
}

/// A saved function. Untrusted: only [`PciFunction::restore`] makes a function of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FunctionState {
    /// The host bridge: its configuration space.
    HostBridge(Vec<u8>),
    /// A virtio device.
    Virtio(Box<VirtioPciState>),
}
