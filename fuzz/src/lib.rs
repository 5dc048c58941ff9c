//! A hostile driver: what all targets of virtio devices share.
//!
//! Each target's input is a list of moves of a guest with full control of memory and registers: accesses of any width
//! anywhere, negotiations (the usual one with a wrong step now and then), descriptors, rings, notifications; and of the
//! host: events of backends, and devices saved and put back in mid-flight.

pub mod fakes;
mod transport;

use instar_devices::virtio::Memory;
pub use transport::Transport;
use transport::{Access, Machine};
use vm_memory::{Bytes, GuestAddress};

/// Guest memory: two regions with a hole between them.
const REGIONS: [(GuestAddress, usize); 2] = [
    (GuestAddress(0), 0x8_0000),
    (GuestAddress(0x10_0000), 0x1_0000),
];
/// First of the pages with the rings: one for each queue.
const RINGS: u64 = 0x1000;
/// Where the available and the used ring of a queue are in its page.
const AVAIL: u64 = 0x800;
const USED: u64 = 0xc00;
/// Descriptors of a queue.
const SIZE: u16 = 16;
/// Queues of each device that the moves name.
const QUEUES: u64 = 4;

/// Makes a device over guest memory.
pub type Make = fn(&Memory) -> fakes::Fake;

/// One device of each kind.
pub const ALL: &[Make] = &[
    fakes::blk,
    fakes::console,
    fakes::vsock,
    fakes::rng,
    fakes::limited_blk,
    fakes::net,
];

/// Runs a guest that does what `moves` say to devices on `transport`.
pub fn run(transport: Transport, makers: &[Make], moves: &[u8]) {
    let memory = Memory::from_ranges(&REGIONS).expect("guest memory");
    let devices = makers.iter().map(|make| make(&memory)).collect();
    let machine = Machine::new(transport, devices, &memory);
    let mut guest = Guest {
        memory,
        machine,
        moves,
    };
    while guest.step().is_some() {}
}

struct Guest<'a> {
    memory: Memory,
    machine: Machine,
    moves: &'a [u8],
}

/// A queue of a device, as a move names it.
#[derive(Clone, Copy)]
struct Place {
    device: usize,
    queue: u16,
    page: u64,
}

impl Guest<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (now, later) = self.moves.split_first_chunk::<N>()?;
        self.moves = later;
        Some(*now)
    }

    fn place(&self, byte: u8) -> Place {
        let device = usize::from(byte >> 4) % self.machine.len();
        let queue = u64::from(byte) % QUEUES;
        Place {
            device,
            queue: queue as u16,
            page: RINGS + (device as u64 * QUEUES + queue) * 0x1000,
        }
    }

    /// One move; `None` when there are no more.
    fn step(&mut self) -> Option<()> {
        let [kind, which] = self.take()?;
        let place = self.place(which);
        match kind % 16 {
            0..3 => self.chain(place)?,
            3 => self.descriptor(place)?,
            4 => {
                let [head] = self.take()?;
                self.offer(place, u16::from(head));
            }
            5 => self.store()?,
            6 => self.machine.notify(place.device, place.queue),
            7 => self.machine.kick(place.device, place.queue),
            8..10 => {
                let event = self.take()?;
                self.machine.event(place.device, event);
            }
            10 => self.access(place, false)?,
            11 => self.access(place, true)?,
            12 => self.start(place.device)?,
            13 => {
                let [status] = self.take()?;
                self.machine.set_status(place.device, status & 0x4f);
            }
            14 => self.machine.recycle(),
            _ => self.driver_event(place)?,
        }
        Some(())
    }

    /// A negotiation as drivers do it, with a step left out if the move says so.
    fn start(&mut self, device: usize) -> Option<()> {
        let [features, missing, size] = self.take()?;
        let size = 1_u16 << (size % 5);
        let rings: Vec<[u64; 3]> = (0..QUEUES)
            .map(|queue| {
                let page = RINGS + (device as u64 * QUEUES + queue) * 0x1000;
                [page, page + AVAIL, page + USED]
            })
            .collect();
        for ring in &rings {
            // A driver's rings are zeros to begin with.
            let zeros = [0; 0x1000];
            self.memory
                .write_slice(&zeros, GuestAddress(ring[0]))
                .ok()?;
        }
        self.machine
            .negotiate(device, u64::from(features), missing, size, &rings);
        Some(())
    }

    /// A chain of up to four descriptors, mostly sensible, made available and notified.
    fn chain(&mut self, place: Place) -> Option<()> {
        let [head, shape, more] = self.take()?;
        let head = u16::from(head) % SIZE;
        let count = u16::from(shape & 3) + 1;
        let indirect = shape & 0x80 != 0 && more & 1 != 0;
        let table = match indirect {
            true => 0x6_0000 + u64::from(head) * 0x100,
            false => place.page,
        };
        for link in 0..count {
            let index = if indirect { link } else { (head + link) % SIZE };
            let [len_low, len_high, at] = self.take()?;
            let len = u32::from(u16::from_le_bytes([len_low, len_high]));
            // Request headers, at the front of a chain, come from what moves have stored at the buffers.
            let address = 0x5_0000 + u64::from(at) * 0x100;
            let writable = u16::from(shape >> (2 + link) & 1 != 0) * 2;
            let next = u16::from(link + 1 < count);
            let after = if indirect {
                link + 1
            } else {
                (index + 1) % SIZE
            };
            self.write_descriptor(table, index, (address, len), (writable | next, after));
        }
        if indirect {
            let len = u32::from(count) * 16;
            self.write_descriptor(place.page, head, (table, len), (4, 0));
        }
        self.offer(place, head);
        self.machine.kick(place.device, place.queue);
        Some(())
    }

    fn descriptor(&mut self, place: Place) -> Option<()> {
        let [index, flags, next, region] = self.take()?;
        let low = u16::from_le_bytes(self.take()?);
        let len = u32::from_le_bytes(self.take()?);
        let base = [0, 0x5_0000, 0x7_f000, 0x10_f000, u64::MAX - 0xffff][usize::from(region % 5)];
        let address = base.wrapping_add(u64::from(low));
        let link = (u16::from(flags), u16::from(next));
        self.write_descriptor(place.page, u16::from(index) % SIZE, (address, len), link);
        Some(())
    }

    fn write_descriptor(
        &mut self,
        table: u64,
        index: u16,
        (address, len): (u64, u32),
        (flags, next): (u16, u16),
    ) {
        let number = u128::from(address)
            | u128::from(len) << 64
            | u128::from(flags) << 96
            | u128::from(next) << 112;
        let at = GuestAddress(table + u64::from(index) * 16);
        let _ = self.memory.write_slice(&number.to_le_bytes(), at);
    }

    /// Puts a head into the available ring.
    fn offer(&mut self, place: Place, head: u16) {
        let avail = place.page + AVAIL;
        let index: u16 = self.memory.read_obj(GuestAddress(avail + 2)).unwrap_or(0);
        let size = self.machine.queue_size(place.device, place.queue).max(1);
        let entry = avail + 4 + u64::from(index % size) * 2;
        let _ = self.memory.write_obj(head, GuestAddress(entry));
        let next = index.wrapping_add(1);
        let _ = self.memory.write_obj(next, GuestAddress(avail + 2));
    }

    /// Tells the device when to interrupt.
    fn driver_event(&mut self, place: Place) -> Option<()> {
        let [flags, event] = self.take()?;
        let avail = place.page + AVAIL;
        let size = self.machine.queue_size(place.device, place.queue);
        let _ = self
            .memory
            .write_obj(u16::from(flags & 1), GuestAddress(avail));
        let at = GuestAddress(avail + 4 + u64::from(size) * 2);
        let _ = self.memory.write_obj(u16::from(event), at);
        Some(())
    }

    /// Bytes anywhere in rings and buffers.
    fn store(&mut self) -> Option<()> {
        let [low, high, len] = self.take()?;
        let offset = u64::from(u16::from_le_bytes([low, high]));
        let base = if len & 0x80 == 0 { 0x5_0000 } else { RINGS };
        let len = usize::from(len & 0x7f).min(self.moves.len());
        let (bytes, later) = self.moves.split_at(len);
        self.moves = later;
        let _ = self.memory.write_slice(bytes, GuestAddress(base + offset));
        Some(())
    }

    /// An access to registers, of any width at any offset.
    fn access(&mut self, place: Place, write: bool) -> Option<()> {
        let [kind, low, high] = self.take()?;
        let len = [1, 2, 4, 8][usize::from(kind & 3)];
        let offset = u64::from(u16::from_le_bytes([low, high]));
        let what = match kind >> 2 & 3 {
            0 => Access::Config,
            1 => Access::Port,
            _ => Access::Registers,
        };
        let mut data = vec![0; len];
        if write {
            let value: [u8; 8] = match kind & 0x80 {
                0 => self.take()?,
                _ => {
                    let [byte] = self.take()?;
                    u64::from(byte).to_le_bytes()
                }
            };
            data.copy_from_slice(&value[..len]);
        }
        self.machine
            .access((place.device, what), offset, &mut data, write);
        Some(())
    }
}
