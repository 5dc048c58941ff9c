//! What answers at an address: port and memory-mapped registers.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

/// Registers at a range of ports or addresses. The guest chooses offset, length (1, 2, 4 or 8 bytes) and value.
pub trait BusDevice: Debug + Send {
    /// The guest reads at `offset` of the range; what the device does not fill stays as it is.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// The guest writes at `offset` of the range.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device that the threads of several vCPUs reach.
pub type SharedBusDevice = Arc<Mutex<dyn BusDevice>>;

/// The ranges of an address space, none of which overlap. Where nothing is, reads give ones and writes go nowhere.
#[derive(Clone, Debug, Default)]
pub struct Bus {
    /// By first address: length and device.
    ranges: BTreeMap<u64, (u64, SharedBusDevice)>,
}

/// A range that is taken, empty, or passes the end of the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len:#x} bytes at {start:#x} are taken, or no range")]
pub struct RangeTaken {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Bus {
    /// Puts `device` at `len` bytes from `start` on.
    ///
    /// # Errors
    /// [`RangeTaken`].
    pub fn insert(
        &mut self,
        start: u64,
        len: u64,
        device: SharedBusDevice,
    ) -> Result<(), RangeTaken> {
        let taken = RangeTaken { start, len };
        let last = len
            .checked_sub(1)
            .and_then(|more| start.checked_add(more))
            .ok_or(taken)?;
        let before = self.ranges.range(..=last).next_back();
        if before.is_some_and(|(first, (len, _))| first.saturating_add(*len) > start) {
            return Err(taken);
        }
        self.ranges.insert(start, (len, device));
        Ok(())
    }

    /// The guest reads `data.len()` bytes at `address`; false if nothing is there.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        let Some((offset, device)) = self.find(address) else {
            return false;
        };
        let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
        device.read(offset, data);
        true
    }

    /// The guest writes `data` at `address`; false if nothing is there.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let Some((offset, device)) = self.find(address) else {
            return false;
        };
        let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
        device.write(offset, data);
        true
    }

    fn find(&self, address: u64) -> Option<(u64, &SharedBusDevice)> {
        let (start, (len, device)) = self.ranges.range(..=address).next_back()?;
        let offset = address.checked_sub(*start)?;
        (offset < *len).then_some((offset, device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Register(u8);

    impl BusDevice for Register {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0.wrapping_add(u8::try_from(offset).unwrap()));
        }

        fn write(&mut self, _offset: u64, data: &[u8]) {
            self.0 = data[0];
        }
    }

    fn register() -> SharedBusDevice {
        Arc::new(Mutex::new(Register::default()))
    }

    #[test]
    fn ranges_do_not_overlap() {
        let mut bus = Bus::default();
        bus.insert(0x100, 0x10, register()).unwrap();
        for (start, len) in [
            (0x100, 1),
            (0x10f, 1),
            (0xf0, 0x11),
            (0x0, 0x1000),
            (0x200, 0),
            (u64::MAX, 2),
        ] {
            let taken = bus.insert(start, len, register());
            assert_eq!(taken, Err(RangeTaken { start, len }));
        }
        bus.insert(0xf0, 0x10, register()).unwrap();
        bus.insert(0x110, 1, register()).unwrap();
        bus.insert(u64::MAX, 1, register()).unwrap();
    }

    #[test]
    fn accesses_reach_their_range_only() {
        let mut bus = Bus::default();
        bus.insert(0x100, 0x10, register()).unwrap();
        assert!(bus.write(0x104, &[7]));
        let mut data = [0; 2];
        assert!(bus.read(0x105, &mut data));
        assert_eq!(data, [12, 12]);
        for address in [0xff, 0x110, 0, u64::MAX] {
            assert!(!bus.read(address, &mut data));
            assert_eq!(data, [0xff, 0xff]);
            assert!(!bus.write(address, &[1]));
        }
    }
}
