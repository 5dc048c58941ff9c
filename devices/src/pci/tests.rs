#![allow(clippy::cast_possible_truncation)] // small numbers

use super::*;
use crate::bus::BusDevice;

/// A function with two ranges, which reads as the number of its range.
#[derive(Debug)]
struct Plain(ConfigSpace);

impl PciFunction for Plain {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.0
    }

    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(bar << 4 | offset as u8 & 0xf);
    }

    fn write_bar(&mut self, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn save(&self) -> FunctionState {
        FunctionState::HostBridge(self.0.bytes().to_vec())
    }

    fn reset(&mut self) {
        self.0.reset();
    }

    fn restore(&mut self, state: &FunctionState) -> Result<(), RestoreError> {
        let FunctionState::HostBridge(bytes) = state else {
            return Err(RestoreError::Kind);
        };
        self.0.write(0, bytes);
        Ok(())
    }
}

fn plain(len: u32) -> SharedFunction {
    let identity = Identity {
        vendor: 0x1234,
        device: 0x5678,
        revision: 0,
        class: 0xff_0000,
        subsystem_vendor: 0,
        subsystem: 0,
    };
    let config = ConfigSpace::new(&identity)
        .with_bar(0, len)
        .with_bar(3, 0x100);
    Arc::new(Mutex::new(Plain(config)))
}

const WINDOW: u64 = 0xe800_0000;

fn ecam(bus: &Arc<PciBus>, slot: u64, offset: u64) -> u32 {
    let mut data = [0; 4];
    Ecam(Arc::clone(bus)).read((slot << 15) + offset, &mut data);
    u32::from_le_bytes(data)
}

fn set_ecam(bus: &Arc<PciBus>, slot: u64, offset: u64, value: u32) {
    Ecam(Arc::clone(bus)).write((slot << 15) + offset, &value.to_le_bytes());
}

fn port(bus: &Arc<PciBus>, offset: u64, len: usize) -> u32 {
    let mut data = [0; 4];
    ConfigPorts(Arc::clone(bus)).read(offset, &mut data[..len]);
    u32::from_le_bytes(data)
}

fn set_port(bus: &Arc<PciBus>, offset: u64, data: &[u8]) {
    ConfigPorts(Arc::clone(bus)).write(offset, data);
}

fn bus() -> Arc<PciBus> {
    let mut bus = PciBus::new(WINDOW, 0x1_0000);
    assert_eq!(bus.insert(plain(0x1000), None), Ok(1));
    assert_eq!(bus.insert(plain(0x4000), None), Ok(2));
    Arc::new(bus)
}

#[test]
fn both_mechanisms_reach_the_same_registers() {
    let bus = bus();
    for slot in 0..32_u32 {
        for function in [0, 3] {
            let device = u64::from(slot) << 3 | function;
            let mut data = [0; 4];
            Ecam(Arc::clone(&bus)).read(device << 12, &mut data);
            let address = 0x8000_0000 | (device as u32) << 8;
            set_port(&bus, 0, &address.to_le_bytes());
            assert_eq!(port(&bus, 0, 4), address);
            assert_eq!(port(&bus, 4, 4), u32::from_le_bytes(data));
            let there = slot < 3 && function == 0;
            assert_eq!(port(&bus, 4, 4) != u32::MAX, there);
        }
    }
    // Kernels look for a host bridge to believe in mechanism 1.
    assert_eq!(ecam(&bus, 0, 8) >> 8, 0x06_0000);
    // No extended configuration space.
    assert_eq!(ecam(&bus, 1, 0x100), u32::MAX);
}

#[test]
fn mechanism_1_takes_parts_of_words() {
    let bus = bus();
    set_port(&bus, 0, &0x8000_0800_u32.to_le_bytes());
    assert_eq!(port(&bus, 4, 2), 0x1234);
    assert_eq!(port(&bus, 6, 2), 0x5678);
    assert_eq!(port(&bus, 7, 1), 0x56);
    // Only whole words are addresses.
    set_port(&bus, 3, &[1]);
    set_port(&bus, 0, &[1, 2]);
    assert_eq!(port(&bus, 0, 4), 0x8000_0800);
    assert_eq!(port(&bus, 0, 1), 0xff);
    // The interrupt line is a byte that software may use.
    set_port(&bus, 0, &0x8000_083c_u32.to_le_bytes());
    set_port(&bus, 4, &[11]);
    assert_eq!(ecam(&bus, 1, 0x3c), 11);
    // Turned off, or another bus: nothing there.
    for address in [0x0000_0800_u32, 0x8001_0800] {
        set_port(&bus, 0, &address.to_le_bytes());
        assert_eq!(port(&bus, 4, 4), u32::MAX);
    }
}

#[test]
fn registers_have_places_of_their_own() {
    let bus = bus();
    let places = [(1, 0x10), (1, 0x1c), (2, 0x10), (2, 0x1c)];
    let places = places.map(|(slot, register)| ecam(&bus, slot, register));
    assert_eq!(places, [0xe800_0000, 0xe800_1000, 0xe800_4000, 0xe800_8000]);
    let mut window = Window(Arc::clone(&bus));
    let mut data = [0; 2];
    window.read(0, &mut data);
    assert_eq!(data, [0xff; 2], "memory is not turned on");
    set_ecam(&bus, 1, 4, 2);
    set_ecam(&bus, 2, 4, 2);
    for (offset, seen) in [(0, 0), (0xfff, 0xf), (0x1001, 0x31), (0x1100, 0xff)] {
        window.read(offset, &mut data);
        assert_eq!(data, [seen; 2]);
    }
    window.read(0x80ff, &mut data);
    assert_eq!(data, [0x3f; 2]);
    // Two at one place: the lower slot answers, the other when that is gone.
    set_ecam(&bus, 2, 0x1c, 0xe800_0000);
    window.read(1, &mut data);
    assert_eq!(data, [1; 2]);
    set_ecam(&bus, 1, 4, 0);
    window.read(1, &mut data);
    assert_eq!(data, [0x31; 2]);
}

#[test]
fn a_full_bus_takes_no_more() {
    let mut bus = PciBus::new(WINDOW, 0x1_0000);
    assert_eq!(bus.insert(plain(0x2_0000), None), Err(BusFull));
    assert_eq!(bus.insert(plain(0x8000), None), Ok(1));
    assert_eq!(bus.insert(plain(0x8000), None), Err(BusFull));
    for slot in 2..32 {
        let room = bus.insert(plain(0x100), None);
        assert_eq!(room, Ok(slot));
    }
    assert_eq!(bus.insert(plain(0x100), None), Err(BusFull));
}

#[test]
fn a_saved_bus_is_restored_with_its_places() {
    let bus = bus();
    set_ecam(&bus, 1, 4, 2);
    set_ecam(&bus, 1, 0x10, 0xe800_c000);
    set_port(&bus, 0, &0x8000_083c_u32.to_le_bytes());
    let saved = bus.save();
    let mut data = [0];
    let mut window = Window(Arc::clone(&bus));
    bus.reset();
    window.read(0xc001, &mut data);
    assert_eq!(data, [0xff]);
    assert_eq!(port(&bus, 0, 4), 0);
    bus.restore(&saved).unwrap();
    window.read(0xc001, &mut data);
    assert_eq!(data, [1]);
    assert_eq!(bus.save(), saved);
    let mut short = saved;
    short.functions.pop();
    assert!(bus.restore(&short).is_err());
}
