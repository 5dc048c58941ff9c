//! The bus: finds functions for configuration accesses and by where their registers are.

use super::{
    BARS, BarListener, BarRange, FunctionState, HostBridge, PciFunction, SLOTS, SharedFunction,
};
use crate::bus::BusDevice;
use crate::registers::value;
use crate::virtio::RestoreError;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// Configuration space that the ECAM has for each function. PCI Express 5.0 §7.2.2.
const ECAM_FUNCTION_BYTES: u64 = 0x1000;
/// Bytes of it that functions here have.
const CONFIG_BYTES: u64 = super::config::CONFIG_BYTES as u64;
/// Configuration mechanism 1: the address register is on. PCI 3.0 §3.2.2.3.2.
const ADDRESS_ENABLE: u32 = 1 << 31;

/// There is no free slot or no room in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the PCI bus is full")]
pub struct BusFull;

/// A bus: functions are put in before the guest starts and stay.
///
/// Locks, in the order in which they are taken: a function's, then `placed`. A function's is held while it does what the
/// guest asked.
#[derive(Debug)]
pub struct PciBus {
    slots: Vec<Slot>,
    /// First address of the window for base address registers, and the first after it.
    window: (u64, u64),
    /// From where on the window is free.
    free: u64,
    /// Base address registers inside the window, in the order of slots.
    placed: RwLock<Vec<Placed>>,
    /// Address register of mechanism 1.
    config_address: AtomicU32,
}

#[derive(Debug)]
struct Slot {
    function: SharedFunction,
    listener: Option<Arc<dyn BarListener>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Placed {
    slot: u8,
    bar: u8,
    range: BarRange,
}

/// A saved bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciBusState {
    /// Address register of mechanism 1.
    pub config_address: u32,
    /// By slot.
    pub functions: Vec<FunctionState>,
}

impl PciBus {
    /// A bus with a host bridge in slot 0, and `window_size` bytes from `window_start` on, below 4 GiB, for base address
    /// registers.
    #[must_use]
    pub fn new(window_start: u64, window_size: u64) -> Self {
        let bridge = Slot {
            function: Arc::new(Mutex::new(HostBridge::new())),
            listener: None,
        };
        Self {
            slots: vec![bridge],
            window: (window_start, window_start.saturating_add(window_size)),
            free: window_start,
            placed: RwLock::new(Vec::new()),
            config_address: AtomicU32::new(0),
        }
    }

    /// Puts a function into the next slot, which is returned, and its base address registers into the window. They answer
    /// when the guest turns memory on; `listener` hears of it.
    ///
    /// # Errors
    /// [`BusFull`].
    pub fn insert(
        &mut self,
        function: SharedFunction,
        listener: Option<Arc<dyn BarListener>>,
    ) -> Result<u8, BusFull> {
        let slot = u8::try_from(self.slots.len()).map_err(|_| BusFull)?;
        if slot >= SLOTS {
            return Err(BusFull);
        }
        let mut free = self.free;
        {
            let mut held = lock(&function);
            for bar in 0..BARS {
                let len = u64::from(held.config().bar_len(bar));
                if len == 0 {
                    continue;
                }
                let start = free.checked_next_multiple_of(len).ok_or(BusFull)?;
                free = start.checked_add(len).ok_or(BusFull)?;
                if free > self.window.1 {
                    return Err(BusFull);
                }
                let start = u32::try_from(start).map_err(|_| BusFull)?;
                held.config_mut().place_bar(bar, start);
            }
        }
        self.free = free;
        self.slots.push(Slot { function, listener });
        Ok(slot)
    }

    /// The guest reads configuration space of the device in `slot`; ones where there is none.
    fn read_config(&self, slot: u8, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Some((at, offset)) = self.config_place(slot, offset) else {
            return;
        };
        lock(&at.function).read_config(offset, data);
    }

    /// The guest writes configuration space of the device in `slot`.
    fn write_config(&self, slot: u8, offset: u64, data: &[u8]) {
        let Some((at, offset)) = self.config_place(slot, offset) else {
            return;
        };
        let mut function = lock(&at.function);
        function.write_config(offset, data);
        self.place(slot, at, &*function);
    }

    /// The device in `slot`, if there is one and has something at `offset`.
    fn config_place(&self, slot: u8, offset: u64) -> Option<(&Slot, u16)> {
        let at = self.slots.get(usize::from(slot))?;
        let offset = u16::try_from(offset).ok()?;
        (u64::from(offset) < CONFIG_BYTES).then_some((at, offset))
    }

    /// Takes note of where the registers of a function are now and tells its listener. The function's lock is held, so
    /// notes come in the order of the guest's writes.
    fn place(&self, slot: u8, at: &Slot, function: &dyn PciFunction) {
        for bar in 0..BARS {
            let range = function
                .config()
                .bar(bar)
                .filter(|range| range.start >= self.window.0)
                .filter(|range| range.start.saturating_add(range.len) <= self.window.1);
            if self.note(slot, bar, range)
                && let Some(listener) = &at.listener
            {
                listener.bar_placed(bar, range.map(|range| range.start));
            }
        }
    }

    /// Notes where a base address register is; whether that is news.
    fn note(&self, slot: u8, bar: u8, range: Option<BarRange>) -> bool {
        let mut placed = self.placed.write().unwrap_or_else(PoisonError::into_inner);
        let key = (slot, bar);
        let known = placed.binary_search_by_key(&key, |place| (place.slot, place.bar));
        match (known, range) {
            (Ok(index), None) => {
                placed.remove(index);
                true
            }
            (Ok(index), Some(range)) => placed.get_mut(index).is_some_and(|place| {
                let moved = place.range != range;
                place.range = range;
                moved
            }),
            (Err(index), Some(range)) => {
                placed.insert(index, Placed { slot, bar, range });
                true
            }
            (Err(_), None) => false,
        }
    }

    /// The function whose registers are at `address`, which register and the offset; the lowest slot if there are several.
    fn at_address(&self, address: u64) -> Option<(&Slot, u8, u64)> {
        let placed = self.placed.read().unwrap_or_else(PoisonError::into_inner);
        let (place, offset) = placed
            .iter()
            .find_map(|place| Some((*place, place.range.offset_of(address)?)))?;
        drop(placed);
        let at = self.slots.get(usize::from(place.slot))?;
        Some((at, place.bar, offset))
    }

    /// The bus and all of its functions as plain data.
    #[must_use]
    pub fn save(&self) -> PciBusState {
        let functions = self.slots.iter().map(|at| lock(&at.function).save());
        PciBusState {
            config_address: self.config_address.load(Ordering::Relaxed),
            functions: functions.collect(),
        }
    }

    /// All functions as just made, their registers off.
    pub fn reset(&self) {
        self.config_address.store(0, Ordering::Relaxed);
        for (slot, at) in (0..SLOTS).zip(&self.slots) {
            let mut function = lock(&at.function);
            function.reset();
            self.place(slot, at, &*function);
        }
    }

    /// Takes a saved bus over, with the same functions in the same slots, as after [`Self::reset`].
    ///
    /// # Errors
    /// Says what no such bus can have; then some functions may have been restored.
    pub fn restore(&self, state: &PciBusState) -> Result<(), RestoreError> {
        if state.functions.len() != self.slots.len() {
            return Err(RestoreError::Impossible {
                device: "PCI bus",
                what: "a number of functions",
            });
        }
        self.config_address
            .store(state.config_address, Ordering::Relaxed);
        let slots = (0..SLOTS).zip(&self.slots);
        for ((slot, at), saved) in slots.zip(&state.functions) {
            let mut function = lock(&at.function);
            let restored = function.restore(saved);
            self.place(slot, at, &*function);
            restored?;
        }
        Ok(())
    }
}

fn lock(function: &SharedFunction) -> MutexGuard<'_, dyn PciFunction + 'static> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Configuration space in memory: enhanced configuration access mechanism of bus 0. PCI Express 5.0 §7.2.2.
#[derive(Debug)]
pub struct Ecam(pub Arc<PciBus>);

impl Ecam {
    /// Slot and offset in its configuration space; functions other than 0 do not exist.
    fn place(offset: u64) -> Option<(u8, u64)> {
        let function = offset.checked_div(ECAM_FUNCTION_BYTES)?;
        let slot = u8::try_from(function >> 3).ok()?;
        (function & 0b111 == 0).then_some((slot, offset & 0xfff))
    }
}

impl BusDevice for Ecam {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((slot, offset)) = Self::place(offset) {
            self.0.read_config(slot, offset, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some((slot, offset)) = Self::place(offset) {
            self.0.write_config(slot, offset, data);
        }
    }
}

/// Configuration mechanism 1: eight ports, address and data. PCI 3.0 §3.2.2.3.2.
#[derive(Debug)]
pub struct ConfigPorts(pub Arc<PciBus>);

impl ConfigPorts {
    /// Slot and offset that the address register and an offset of the data register name.
    fn place(&self, port: u64) -> Option<(u8, u64)> {
        let address = self.0.config_address.load(Ordering::Relaxed);
        let [register, device, bus, _] = address.to_le_bytes();
        let named = address & ADDRESS_ENABLE != 0 && bus == 0 && device & 0b111 == 0;
        let byte = port.checked_sub(4).filter(|byte| *byte < 4 && named)?;
        Some((device >> 3, u64::from(register & !0b11) | byte))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if offset == 0 && data.len() == 4 {
            let address = self.0.config_address.load(Ordering::Relaxed);
            data.copy_from_slice(&address.to_le_bytes());
        } else if let Some((slot, offset)) = self.place(offset) {
            self.0.read_config(slot, offset, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == 0 && data.len() == 4 {
            let address = value(data).and_then(|value| u32::try_from(value).ok());
            self.0
                .config_address
                .store(address.unwrap_or(0), Ordering::Relaxed);
        } else if let Some((slot, offset)) = self.place(offset) {
            self.0.write_config(slot, offset, data);
        }
    }
}

/// The window for base address registers, wherever in it the guest has them.
#[derive(Debug)]
pub struct Window(pub Arc<PciBus>);

impl BusDevice for Window {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let address = self.0.window.0.saturating_add(offset);
        if let Some((at, bar, offset)) = self.0.at_address(address) {
            lock(&at.function).read_bar(bar, offset, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let address = self.0.window.0.saturating_add(offset);
        if let Some((at, bar, offset)) = self.0.at_address(address) {
            lock(&at.function).write_bar(bar, offset, data);
        }
    }
}
