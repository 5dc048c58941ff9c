//! Devices on a transport, and a driver's usual accesses.

use crate::fakes::Fake;
use instar_devices::bus::BusDevice;
use instar_devices::msi::{IrqLine, MsiMessage, MsiVectors};
use instar_devices::pci::{ConfigPorts, Ecam, PciBus, Window};
use instar_devices::virtio::{Memory, Notify, PCI_BAR_BYTES, VirtioMmio, VirtioPci};
use std::sync::{Arc, Mutex};

const WINDOW: u64 = 0xe800_0000;
const WINDOW_SIZE: u64 = 0x10_0000;
/// `VIRTIO_F_VERSION_1`.
const VERSION_1: u64 = 1 << 32;

/// How devices are found.
#[derive(Clone, Copy, Debug)]
pub enum Transport {
    /// virtio-pci.
    Pci,
    /// virtio-mmio.
    Mmio,
}

/// What an access is to.
#[derive(Clone, Copy, Debug)]
pub enum Access {
    /// Configuration space, or registers if there is none.
    Config,
    /// The ports of configuration mechanism 1, or registers if there are none.
    Port,
    /// The device's registers.
    Registers,
}

/// Devices on their transport.
pub struct Machine {
    devices: Vec<Fake>,
    /// By device and queue: its largest size, at most [`crate::SIZE`], and the size that it has.
    sizes: Vec<Vec<(u16, u16)>>,
    bus: Transported,
}

enum Transported {
    Pci(Arc<PciBus>),
    Mmio(Vec<VirtioMmio>),
}

/// Interrupts that nobody hears.
#[derive(Debug)]
struct Deaf;

impl IrqLine for Deaf {
    fn pulse(&self) {}
}

impl Notify for Deaf {
    fn notify(&self, _index: u16) {}
}

impl MsiVectors for Deaf {
    fn count(&self) -> u16 {
        5
    }

    fn set(&self, vector: u16, _message: Option<MsiMessage>) {
        assert!(vector < self.count());
    }

    fn send(&self, vector: u16) {
        assert!(vector < self.count());
    }
}

impl Machine {
    pub fn new(transport: Transport, devices: Vec<Fake>, memory: &Memory) -> Self {
        let sizes = devices.iter().map(|fake| {
            let device = fake.device();
            let device = device.lock().expect("a lock");
            let sizes = device.queue_sizes().iter();
            sizes
                .map(|size| ((*size).min(crate::SIZE), *size))
                .collect()
        });
        let sizes = sizes.collect();
        let shared = devices.iter().map(Fake::device);
        let bus = match transport {
            Transport::Pci => {
                let mut bus = PciBus::new(WINDOW, WINDOW_SIZE);
                for device in shared {
                    let function =
                        VirtioPci::new(device, memory.clone(), Arc::new(Deaf), Arc::new(Deaf));
                    bus.insert(Arc::new(Mutex::new(function)), None)
                        .expect("room on the bus");
                }
                Transported::Pci(Arc::new(bus))
            }
            Transport::Mmio => Transported::Mmio(
                shared
                    .map(|device| {
                        VirtioMmio::new(device, memory.clone(), Arc::new(Deaf), Arc::new(Deaf))
                    })
                    .collect(),
            ),
        };
        Self {
            devices,
            sizes,
            bus,
        }
    }

    pub fn len(&self) -> usize {
        self.devices.len()
    }

    /// Entries of a queue, as the driver has set it; 1 for one that does not exist.
    pub fn queue_size(&self, device: usize, queue: u16) -> u16 {
        let size = self.sizes[device].get(usize::from(queue));
        size.map_or(1, |(_, size)| *size)
    }

    /// A notification on the device's own thread.
    pub fn kick(&self, device: usize, queue: u16) {
        let device = self.devices[device].device();
        device.lock().expect("a lock").kick(queue);
    }

    /// Something that a backend has to say.
    pub fn event(&mut self, device: usize, event: [u8; 2]) {
        self.devices[device].event(event);
    }

    /// Saves all devices and puts them back: what was saved of devices must be what devices can be.
    pub fn recycle(&mut self) {
        match &mut self.bus {
            Transported::Pci(bus) => {
                let saved = bus.save();
                bus.reset();
                bus.restore(&saved).expect("what was saved");
            }
            Transported::Mmio(devices) => {
                for device in devices {
                    let saved = device.save();
                    device.reset();
                    device.restore(&saved).expect("what was saved");
                }
            }
        }
        for (index, fake) in self.devices.iter().enumerate() {
            for queue in 0..self.sizes[index].len() {
                let device = fake.device();
                device.lock().expect("a lock").kick(queue as u16);
            }
        }
    }

    pub fn access(
        &mut self,
        (device, what): (usize, Access),
        offset: u64,
        data: &mut [u8],
        write: bool,
    ) {
        let slot = device as u64 + 1;
        match &mut self.bus {
            Transported::Pci(bus) => {
                let bus = Arc::clone(bus);
                let registers = slot * u64::from(PCI_BAR_BYTES);
                let (mut at, offset): (Box<dyn BusDevice>, u64) = match what {
                    Access::Config => (Box::new(Ecam(bus)), (slot << 15) + offset % 0x180),
                    Access::Port => (Box::new(ConfigPorts(bus)), offset % 8),
                    Access::Registers => (
                        Box::new(Window(bus)),
                        registers - u64::from(PCI_BAR_BYTES) + offset % u64::from(PCI_BAR_BYTES),
                    ),
                };
                match write {
                    true => at.write(offset, data),
                    false => at.read(offset, data),
                }
            }
            Transported::Mmio(devices) => match write {
                true => devices[device].write(offset % 0x1000, data),
                false => devices[device].read(offset % 0x1000, data),
            },
        }
    }

    fn set(&mut self, device: usize, what: Access, offset: u64, data: &[u8]) {
        self.access((device, what), offset, &mut data.to_vec(), true);
    }

    fn registers(&mut self, device: usize, offset: u64, data: &[u8]) {
        self.set(device, Access::Registers, offset, data);
    }

    fn pci(&self) -> bool {
        matches!(self.bus, Transported::Pci(_))
    }

    /// A notification by its register.
    pub fn notify(&mut self, device: usize, queue: u16) {
        match self.pci() {
            true => self.registers(
                device,
                VirtioPci::notify_offset(queue),
                &queue.to_le_bytes(),
            ),
            false => self.registers(device, 0x50, &u32::from(queue).to_le_bytes()),
        }
    }

    pub fn set_status(&mut self, device: usize, status: u8) {
        match self.pci() {
            true => self.registers(device, 20, &[status]),
            false => self.registers(device, 0x70, &u32::from(status).to_le_bytes()),
        }
    }

    /// The usual steps, but for those whose bits `missing` has. `features` are the low ones, `VERSION_1` comes with them.
    pub fn negotiate(
        &mut self,
        device: usize,
        features: u64,
        missing: u8,
        size: u16,
        rings: &[[u64; 3]],
    ) {
        if self.pci() {
            // Memory and bus mastering on, MSI-X on, where the function was put.
            let place = WINDOW + device as u64 * u64::from(PCI_BAR_BYTES);
            self.set(device, Access::Config, 0x10, &place.to_le_bytes()[..4]);
            self.set(device, Access::Config, 4, &[6, 0]);
            self.set(device, Access::Config, 0x42, &[0, 0x80]);
        }
        // What a byte names of the features that can be: the lowest, those of rings, all that is offered.
        let offered = {
            let held = self.devices[device].device();
            let held = held.lock().expect("a lock");
            held.features()
        };
        let wanted = match features & 3 {
            0 => offered,
            1 => offered & !(3 << 28),
            2 => offered & (features | 3 << 28),
            _ => features,
        };
        let version = if missing & 0x40 == 0 { VERSION_1 } else { 0 };
        let words = [wanted as u32, ((wanted | version) >> 32) as u32];
        let skip = |step: u8| missing & 0x80 != 0 && missing >> step & 1 != 0;
        for (step, status) in [0, 1, 3].into_iter().enumerate() {
            if !skip(step as u8) {
                self.set_status(device, status);
            }
        }
        for (word, value) in (0_u32..).zip(words) {
            let [select, accept] = if self.pci() { [8, 12] } else { [0x24, 0x20] };
            self.registers(device, select, &word.to_le_bytes());
            self.registers(device, accept, &value.to_le_bytes());
        }
        self.set_status(device, 11);
        let count = self.sizes[device].len();
        for (queue, rings) in (0_u16..).zip(rings.iter().take(count)) {
            if !skip(3) || queue != 0 {
                self.place(device, queue, size, rings);
            }
        }
        if !skip(4) {
            self.set_status(device, 15);
        }
        // A driver that takes all steps is let through; on a bus, if no other function is in the way.
        if missing & 0xc0 == 0 && features & 3 != 3 && (device == 0 || !self.pci()) {
            let mut status = [0; 4];
            let at = if self.pci() { 20 } else { 0x70 };
            let status = &mut status[..if self.pci() { 1 } else { 4 }];
            self.access((device, Access::Registers), at, status, false);
            assert_eq!(status[0] & 0xf, 15, "{status:?}");
        }
    }

    fn place(&mut self, device: usize, queue: u16, size: u16, rings: &[u64; 3]) {
        let pci = self.pci();
        let select = u32::from(queue).to_le_bytes();
        let (max, known) = &mut self.sizes[device][usize::from(queue)];
        *known = size.min(*max);
        let wanted = u32::from(*known).to_le_bytes();
        let one = 1_u32.to_le_bytes();
        let (width, at, ready) = match pci {
            true => (2, [22, 24], 28),
            false => (4, [0x30, 0x38], 0x44),
        };
        self.registers(device, at[0], &select[..width]);
        self.registers(device, at[1], &wanted[..width]);
        if pci {
            self.registers(device, 16, &4_u16.to_le_bytes());
            self.registers(device, 26, &queue.to_le_bytes());
        }
        let offsets = if pci {
            [32, 40, 48]
        } else {
            [0x80, 0x90, 0xa0]
        };
        for (offset, ring) in offsets.into_iter().zip(rings) {
            self.registers(device, offset, &ring.to_le_bytes()[..4]);
            self.registers(device, offset + 4, &ring.to_le_bytes()[4..]);
        }
        self.registers(device, ready, &one[..width]);
    }
}
