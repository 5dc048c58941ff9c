//! Configuration space of a function: a type 0 header and its capabilities. PCI 3.0 §6.1, §6.2, §6.7.

use super::BARS;
use crate::registers::read_image;

/// Bytes of configuration space; there is no extended one.
pub const CONFIG_BYTES: usize = 256;
/// Command register. PCI 3.0 §6.2.2.
pub const COMMAND: u16 = 0x04;
/// Status register. PCI 3.0 §6.2.3.
pub const STATUS: u16 = 0x06;
/// The function answers at its memory ranges.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// The function may write to memory: data and messages.
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Interrupt pins are off.
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// An interrupt pin would be asserted.
pub const STATUS_INTERRUPT: u8 = 1 << 3;
/// There is a list of capabilities.
const STATUS_CAPABILITIES: u8 = 1 << 4;
const REVISION: u16 = 0x08;
const FIRST_BAR: u16 = 0x10;
const SUBSYSTEM_VENDOR: u16 = 0x2c;
const CAPABILITIES: u16 = 0x34;
const INTERRUPT_LINE: u16 = 0x3c;
/// Where capabilities may begin: after the header.
const FIRST_CAPABILITY: u16 = 0x40;

/// What a function is. PCI 3.0 §6.2.1.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Who made it.
    pub vendor: u16,
    /// What its maker calls it.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Base class, sub-class and interface, the base class in bits 16 to 23.
    pub class: u32,
    /// Subsystem vendor.
    pub subsystem_vendor: u16,
    /// Subsystem.
    pub subsystem: u16,
}

/// Where a base address register's range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarRange {
    /// First guest-physical address.
    pub start: u64,
    /// Length in bytes, a power of two.
    pub len: u64,
}

impl BarRange {
    /// Offset of `address` in the range.
    #[must_use]
    pub fn offset_of(&self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(self.start)?;
        (offset < self.len).then_some(offset)
    }
}

/// Configuration space: bytes, of which the guest may change those that `writable` has.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_BYTES],
    writable: [u8; CONFIG_BYTES],
    /// Length of each base address register's range; 0 for none.
    bar_bytes: [u32; BARS as usize],
    /// Where the next capability goes.
    next_capability: u16,
    /// Where the pointer to it goes.
    last_pointer: u16,
}

impl ConfigSpace {
    /// A header without base address registers and capabilities.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        let mut space = Self {
            bytes: [0; CONFIG_BYTES],
            writable: [0; CONFIG_BYTES],
            bar_bytes: [0; BARS as usize],
            next_capability: FIRST_CAPABILITY,
            last_pointer: CAPABILITIES,
        };
        space.set(0x00, &identity.vendor.to_le_bytes());
        space.set(0x02, &identity.device.to_le_bytes());
        let class = (identity.class << 8) | u32::from(identity.revision);
        space.set(REVISION, &class.to_le_bytes());
        space.set(SUBSYSTEM_VENDOR, &identity.subsystem_vendor.to_le_bytes());
        space.set(0x2e, &identity.subsystem.to_le_bytes());
        let command = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE;
        space.set_writable(COMMAND, &command.to_le_bytes());
        space.set_writable(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Adds a range of 32-bit memory, not prefetchable, at no address yet. `len` is a power of two, 16 or more.
    /// PCI 3.0 §6.2.5.1.
    #[must_use]
    pub fn with_bar(mut self, bar: u8, len: u32) -> Self {
        debug_assert!(len.is_power_of_two() && len >= 16 && bar < BARS);
        if let Some(bytes) = self.bar_bytes.get_mut(usize::from(bar)) {
            *bytes = len;
            // The bits below the length are zeros whatever is written: that is how drivers learn it.
            self.set_writable(bar_register(bar), &len.wrapping_neg().to_le_bytes());
        }
        self
    }

    /// Adds capability `id` with `body` after its two bytes of header; returns its offset. PCI 3.0 §6.7.
    /// All capabilities of a function together must fit.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> u16 {
        let offset = self.next_capability;
        let [pointer, _] = offset.to_le_bytes();
        self.set(self.last_pointer, &[pointer]);
        self.set(STATUS, &[STATUS_CAPABILITIES]);
        self.set(offset, &[id, 0]);
        self.set(offset.saturating_add(2), body);
        self.last_pointer = offset.saturating_add(1);
        let len = u16::try_from(body.len()).unwrap_or(u16::MAX);
        let end = offset.saturating_add(2).saturating_add(len);
        debug_assert!(usize::from(end) <= CONFIG_BYTES);
        self.next_capability = end.next_multiple_of(4);
        offset
    }

    /// Sets bytes, whether or not the guest may.
    pub fn set(&mut self, offset: u16, data: &[u8]) {
        let bytes = self.bytes.iter_mut().skip(usize::from(offset));
        for (byte, new) in bytes.zip(data) {
            *byte = *new;
        }
    }

    /// The guest may change the bits that are ones in `mask`.
    pub fn set_writable(&mut self, offset: u16, mask: &[u8]) {
        let bytes = self.writable.iter_mut().skip(usize::from(offset));
        for (byte, new) in bytes.zip(mask) {
            *byte = *new;
        }
    }

    /// The guest reads; zeros past the end.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        read_image(&self.bytes, u64::from(offset), data);
    }

    /// The guest writes what it may.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        let bytes = self.bytes.iter_mut().zip(&self.writable);
        for ((byte, mask), new) in bytes.skip(usize::from(offset)).zip(data) {
            *byte = (*byte & !mask) | (new & mask);
        }
    }

    /// `N` bytes from `offset` on.
    #[must_use]
    pub fn get<const N: usize>(&self, offset: u16) -> [u8; N] {
        let mut data = [0; N];
        self.read(offset, &mut data);
        data
    }

    /// The command register.
    #[must_use]
    pub fn command(&self) -> u16 {
        u16::from_le_bytes(self.get(COMMAND))
    }

    /// Length of a base address register's range in bytes; 0 for none.
    #[must_use]
    pub fn bar_len(&self, bar: u8) -> u32 {
        self.bar_bytes.get(usize::from(bar)).copied().unwrap_or(0)
    }

    /// Puts a base address register at `start`, which is a multiple of its length.
    pub fn place_bar(&mut self, bar: u8, start: u32) {
        self.write(bar_register(bar), &start.to_le_bytes());
    }

    /// Where a base address register's range is; none if it has none or memory is turned off.
    #[must_use]
    pub fn bar(&self, bar: u8) -> Option<BarRange> {
        let len = u64::from(self.bar_len(bar));
        let start = u64::from(u32::from_le_bytes(self.get(bar_register(bar))));
        let answers = len > 0 && self.command() & COMMAND_MEMORY != 0;
        answers.then_some(BarRange { start, len })
    }

    /// The bytes, to save them.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Makes every bit that the guest may change zero.
    pub fn reset(&mut self) {
        self.write(0, &[0; CONFIG_BYTES]);
    }
}

/// Offset of a base address register.
fn bar_register(bar: u8) -> u16 {
    FIRST_BAR.saturating_add(u16::from(bar).saturating_mul(4))
}
