//! The host bridge, 00:00.0: what kernels look for to believe in a bus.

use super::{ConfigSpace, FunctionState, Identity, PciFunction};
use crate::virtio::RestoreError;

/// A generic host bridge without registers of its own. No kernel has a driver or a special case for it.
const IDENTITY: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: 0x06_0000,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// The host bridge.
#[derive(Debug)]
pub struct HostBridge {
    config: ConfigSpace,
}

impl HostBridge {
    /// A host bridge.
    #[must_use]
    pub fn new() -> Self {
        Self {
            config: ConfigSpace::new(&IDENTITY),
        }
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl PciFunction for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn read_bar(&mut self, _bar: u8, _offset: u64, _data: &mut [u8]) {}

    fn write_bar(&mut self, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn save(&self) -> FunctionState {
        FunctionState::HostBridge(self.config.bytes().to_vec())
    }

    fn reset(&mut self) {
        self.config.reset();
    }

    fn restore(&mut self, state: &FunctionState) -> Result<(), RestoreError> {
        let FunctionState::HostBridge(bytes) = state else {
            return Err(RestoreError::Kind);
        };
        self.config.write(0, bytes);
        Ok(())
    }
}
