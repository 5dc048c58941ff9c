//! Saved devices.

use crate::blk::BlkState;
use crate::console::ConsoleState;
use crate::net::NetState;
use crate::rng::RngState;
use crate::vsock::VsockState;

/// A saved device of any kind. Plain data and untrusted: only [`super::VirtioDevice::restore`] makes a device of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceState {
    /// A block device.
    Blk(Option<BlkState>),
    /// A network device.
    Net(NetState),
    /// A socket device.
    Vsock(VsockState),
    /// The device of the transports' tests: its configuration and queues.
    #[cfg(test)]
    Echo([u8; 4], Vec<Option<super::SavedQueue>>),
    /// A console.
    Console(ConsoleState),
    /// A source of random bytes.
    Rng(Option<RngState>),
}

/// Why a saved state is no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Of another kind of device.
    #[error("the saved state is of another kind of device")]
    Kind,
    /// Written by another version.
    #[error("the saved {device} state has version {found}, this program reads version {known}")]
    Version {
        /// Kind of device.
        device: &'static str,
        /// Version found.
        found: u32,
        /// Version that is read.
        known: u32,
    },
    /// A part of it cannot be.
    #[error("the saved {device} state has {what} that cannot be")]
    Impossible {
        /// Kind of device.
        device: &'static str,
        /// The part.
        what: &'static str,
    },
}

impl RestoreError {
    /// Refuses a state of `device` with another version than the `known` one.
    ///
    /// # Errors
    /// [`Self::Version`].
    pub(crate) const fn unless_version(
        device: &'static str,
        found: u32,
        known: u32,
    ) -> Result<(), Self> {
        if found == known {
            return Ok(());
        }
        Err(Self::Version {
            device,
            found,
            known,
        })
    }
}
