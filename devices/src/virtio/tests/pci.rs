//! A driver's access to virtio-pci registers, by their bus.

use super::fixture::{AnyRegisters, AnyTransport, Parts, Registers, Saved, VECTORS};
use crate::bus::BusDevice;
use crate::pci::{Ecam, FunctionState, PciBus, Window};
use crate::virtio::{RestoreError, VirtioPci};
use std::sync::{Arc, Mutex};

const WINDOW: u64 = 0xe800_0000;
const SLOT: u64 = 1;

/// A function on a bus, and where its structures are: found by its capabilities.
pub struct Pci {
    bus: Arc<PciBus>,
    ecam: Ecam,
    window: Window,
    /// Offsets in the window, by `cfg_type`.
    structures: [u64; 6],
}

impl Pci {
    pub fn new(parts: &Parts) -> Self {
        let function = VirtioPci::new(
            Arc::clone(&parts.device),
            parts.memory.clone(),
            Arc::clone(&parts.log) as _,
            Arc::clone(&parts.log) as _,
        );
        let mut bus = PciBus::new(WINDOW, 0x10_0000);
        let slot = bus.insert(
            Arc::new(Mutex::new(function)),
            Some(Arc::clone(&parts.log) as _),
        );
        assert_eq!(slot, Ok(1));
        let bus = Arc::new(bus);
        let mut pci = Self {
            ecam: Ecam(Arc::clone(&bus)),
            window: Window(Arc::clone(&bus)),
            bus,
            structures: [0; 6],
        };
        pci.set_up();
        pci
    }

    /// Turns the function on and finds its structures, and its MSI-X table (type 0).
    fn set_up(&mut self) {
        self.set_config(4, &6_u16.to_le_bytes());
        let mut at = u64::from(self.get_config::<1>(0x34)[0]);
        while at != 0 {
            let [id, next, _, kind] = self.get_config(at);
            let [bar] = self.get_config(at + 4);
            if id == 0x09 && kind != 5 {
                assert_eq!(bar, 0);
                let offset = u32::from_le_bytes(self.get_config(at + 8));
                self.structures[usize::from(kind)] = u64::from(offset);
            } else if id == 0x11 {
                let table = u32::from_le_bytes(self.get_config(at + 4));
                assert_eq!(table & 7, 0);
                self.structures[0] = u64::from(table);
                self.set_config(at + 2, &0x8000_u16.to_le_bytes());
            }
            at = u64::from(next);
        }
        for vector in 0..3_u64 {
            for (word, value) in [0xfee0_0000, 0, 0x40, 0].into_iter().enumerate() {
                let at = self.structures[0] + vector * 16 + word as u64 * 4;
                self.set::<4>(at, value + u64::from(word == 2) * vector);
            }
        }
    }

    fn get_config<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut data = [0xee; N];
        self.ecam.read((SLOT << 15) + offset, &mut data);
        data
    }

    fn set_config(&mut self, offset: u64, data: &[u8]) {
        self.ecam.write((SLOT << 15) + offset, data);
    }

    /// Where the registers are in the window now.
    fn base(&mut self) -> u64 {
        u64::from(u32::from_le_bytes(self.get_config(0x10))) - WINDOW
    }

    fn get<const N: usize>(&mut self, offset: u64) -> u64 {
        let mut data = [0xee; N];
        let base = self.base();
        self.window.read(base + offset, &mut data);
        let mut all = [0; 8];
        all[..N].copy_from_slice(&data);
        u64::from_le_bytes(all)
    }

    fn set<const N: usize>(&mut self, offset: u64, value: u64) {
        let base = self.base();
        self.window.write(base + offset, &value.to_le_bytes()[..N]);
    }
}

impl AnyTransport for Pci {
    fn again(&self, parts: &Parts) -> AnyRegisters {
        Box::new(Self::new(parts))
    }
}

/// The offsets are those of VirtIO 1.3 §4.1.4.3, written down again.
impl Registers for Pci {
    fn status(&mut self) -> u32 {
        self.get::<1>(20) as u32
    }

    fn set_status(&mut self, status: u32) {
        self.set::<1>(20, u64::from(status));
    }

    fn offered(&mut self) -> u64 {
        self.set::<4>(0, 2);
        assert_eq!(self.get::<4>(4), 0);
        self.set::<4>(0, 1);
        let high = self.get::<4>(4);
        self.set::<4>(0, 0);
        high << 32 | self.get::<4>(4)
    }

    fn accept_word(&mut self, word: u32, features: u32) {
        self.set::<4>(8, u64::from(word));
        self.set::<4>(12, u64::from(features));
    }

    fn generation(&mut self) -> u32 {
        self.get::<1>(21) as u32
    }

    fn select_queue(&mut self, index: u16) {
        self.set::<2>(22, u64::from(index));
    }

    fn set_selected_size(&mut self, size: u16) {
        self.set::<2>(24, u64::from(size));
    }

    fn enable_selected(&mut self, rings: [u64; 3]) {
        self.set::<2>(16, u64::from(VECTORS[0]));
        self.set::<2>(26, u64::from(VECTORS[1]));
        for (offset, ring) in [32, 40, 48].into_iter().zip(rings) {
            self.set::<4>(offset, ring & 0xffff_ffff);
            self.set::<4>(offset + 4, ring >> 32);
        }
        self.set::<2>(28, 1);
    }

    fn notify(&mut self, index: u16) {
        self.select_queue(index);
        let offset = self.structures[2] + self.get::<2>(30) * 4;
        assert_eq!(offset, VirtioPci::notify_offset(index));
        self.set::<2>(offset, u64::from(index));
    }

    fn read_config_bytes(&mut self, offset: u64, data: &mut [u8]) {
        let at = self.base() + self.structures[4] + offset;
        self.window.read(at, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let at = self.base() + self.structures[4] + offset;
        self.window.write(at, data);
    }

    fn access(&mut self, offset: u64, data: &mut [u8], write: bool) {
        let (config, offset) = (offset & 1 << 20 != 0, offset % 0x1_0000);
        match (config, write) {
            (false, false) => self.window.read(offset, data),
            (false, true) => self.window.write(offset, data),
            (true, false) => self.ecam.read(offset, data),
            (true, true) => self.ecam.write(offset, data),
        }
    }

    fn save(&self) -> Saved {
        match &self.bus.save().functions[1] {
            FunctionState::Virtio(state) => Saved::Pci(state.clone()),
            FunctionState::HostBridge(_) => unreachable!(),
        }
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), RestoreError> {
        let Saved::Pci(state) = saved else {
            unreachable!()
        };
        self.bus.reset();
        let mut all = self.bus.save();
        all.functions[1] = FunctionState::Virtio(state.clone());
        self.bus.restore(&all)
    }
}
