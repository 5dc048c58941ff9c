//! virtio-mmio.

use super::fixture::{AnyRegisters, AnyTransport, Lab, Parts, Registers, Saved};
use super::{RUNNING, VERSION_1, start};
use crate::bus::BusDevice;
use crate::virtio::{MMIO_NOTIFY_OFFSET, RestoreError, VirtioMmio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Registers in memory.
pub struct Mmio(VirtioMmio);

impl Mmio {
    pub fn new(parts: &Parts) -> Self {
        Self(VirtioMmio::new(
            Arc::clone(&parts.device),
            parts.memory.clone(),
            Arc::clone(&parts.log) as _,
            Arc::clone(&parts.log) as _,
        ))
    }

    fn get(&mut self, offset: u64) -> u32 {
        let mut data = [0xee; 4];
        self.0.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn set(&mut self, offset: u64, value: u32) {
        self.0.write(offset, &value.to_le_bytes());
    }
}

impl AnyTransport for Mmio {
    fn again(&self, parts: &Parts) -> AnyRegisters {
        Box::new(Self::new(parts))
    }
}

/// The offsets are those of VirtIO 1.3 §4.2.2, written down again.
impl Registers for Mmio {
    fn status(&mut self) -> u32 {
        self.get(0x70)
    }

    fn set_status(&mut self, status: u32) {
        self.set(0x70, status);
    }

    fn offered(&mut self) -> u64 {
        self.set(0x14, 2);
        assert_eq!(self.get(0x10), 0);
        self.set(0x14, 1);
        let high = u64::from(self.get(0x10));
        self.set(0x14, 0);
        high << 32 | u64::from(self.get(0x10))
    }

    fn accept_word(&mut self, word: u32, features: u32) {
        self.set(0x24, word);
        self.set(0x20, features);
    }

    fn generation(&mut self) -> u32 {
        self.get(0xfc)
    }

    fn select_queue(&mut self, index: u16) {
        self.set(0x30, u32::from(index));
    }

    fn set_selected_size(&mut self, size: u16) {
        self.set(0x38, u32::from(size));
    }

    fn enable_selected(&mut self, rings: [u64; 3]) {
        for (offset, ring) in [0x80, 0x90, 0xa0].into_iter().zip(rings) {
            self.set(offset, ring as u32);
            self.set(offset + 4, (ring >> 32) as u32);
        }
        self.set(0x44, 1);
    }

    fn notify(&mut self, index: u16) {
        assert_eq!(MMIO_NOTIFY_OFFSET, 0x50);
        self.set(0x50, u32::from(index));
    }

    fn read_config_bytes(&mut self, offset: u64, data: &mut [u8]) {
        self.0.read(0x100 + offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.0.write(0x100 + offset, data);
    }

    fn access(&mut self, offset: u64, data: &mut [u8], write: bool) {
        match write {
            true => self.0.write(offset % 0x1000, data),
            false => self.0.read(offset % 0x1000, data),
        }
    }

    fn save(&self) -> Saved {
        Saved::Mmio(Box::new(self.0.save()))
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        match saved {
            Saved::Mmio(state) => self.0.restore(state),
            Saved::Pci(_) => unreachable!(),
        }
    }
}

fn get(lab: &mut Lab, offset: u64) -> u32 {
    let mut data = [0xee; 4];
    lab.registers.access(offset, &mut data, false);
    u32::from_le_bytes(data)
}

fn set(lab: &mut Lab, offset: u64, value: u32) {
    let mut data = value.to_le_bytes();
    lab.registers.access(offset, &mut data, true);
}

#[test]
fn the_page_says_what_it_is() {
    let mut lab = Lab::mmio();
    assert_eq!(get(&mut lab, 0), 0x7472_6976);
    assert_eq!(get(&mut lab, 4), 2);
    assert_eq!(get(&mut lab, 8), 30);
    assert_ne!(get(&mut lab, 12), 0);
    for (queue, max) in [(0, 16), (1, 4), (2, 0), (0x1_0000, 0), (u32::MAX, 0)] {
        set(&mut lab, 0x30, queue);
        assert_eq!(get(&mut lab, 0x34), max);
        assert_eq!(get(&mut lab, 0x44), 0);
    }
    for shared_memory in [0xb0, 0xb4, 0xb8, 0xbc] {
        assert_eq!(get(&mut lab, shared_memory), u32::MAX);
    }
}

#[test]
fn registers_take_words_only() {
    let mut lab = Lab::mmio();
    for len in [1, 2, 8] {
        let mut data = vec![1; len];
        lab.registers.access(0x70, &mut data, true);
        assert_eq!(lab.registers.status(), 0);
        lab.registers.access(0, &mut data, false);
        assert_eq!(data, vec![0; len]);
    }
    let mut unaligned = [0xee; 4];
    lab.registers.access(1, &mut unaligned, false);
    assert_eq!(unaligned, [0; 4]);
}

#[test]
fn interrupts_say_what_for_until_they_are_acknowledged() {
    let mut lab = Lab::mmio();
    let mut driver = start(&mut lab, VERSION_1);
    driver.add(&[(0, 64, true)], false).unwrap();
    lab.echo().serve();
    lab.echo().change_config();
    assert_eq!(lab.log.pulses.load(Ordering::SeqCst), 2);
    assert_eq!(get(&mut lab, 0x60), 3);
    set(&mut lab, 0x64, 1);
    assert_eq!(get(&mut lab, 0x60), 2);
    // Another device that is put in its place interrupts again for what is not acknowledged.
    let saved = lab.save_all();
    let mut other = lab.fresh();
    other.restore_all(&saved).unwrap();
    assert_eq!(get(&mut other, 0x60), 2);
    assert_eq!(other.log.pulses.load(Ordering::SeqCst), 1);
    lab.registers.set_status(0);
    assert_eq!(get(&mut lab, 0x60), 0);
}

#[test]
fn a_queue_is_taken_back_only_before_the_device_has_it() {
    let mut lab = Lab::mmio();
    let _driver = start(&mut lab, VERSION_1);
    set(&mut lab, 0x30, 0);
    set(&mut lab, 0x44, 0);
    assert_eq!(get(&mut lab, 0x44), 1);
    lab.registers.set_status(0);
    lab.registers.accept(VERSION_1);
    lab.registers.set_status(RUNNING & !4);
    lab.registers.enable_at(0, [0x1000, 0x2000, 0x3000]);
    assert_eq!(get(&mut lab, 0x44), 1);
    set(&mut lab, 0x44, 0);
    assert_eq!(get(&mut lab, 0x44), 0);
    // What is no flag does nothing.
    set(&mut lab, 0x44, 2);
    assert_eq!(get(&mut lab, 0x44), 0);
}
