//! Devices with backends that do what a move says.

use instar_devices::blk::{Clock, CompletionOrder, DiskTraits, Errno, MemBackend, VirtioBlk};
use instar_devices::console::{Output, Size, VirtioConsole};
use instar_devices::net::{MAX_PACKET_BYTES, NetBackend, NetDevice, Offloads};
use instar_devices::rate::RateLimiter;
use instar_devices::rng::{Entropy, VirtioRng};
use instar_devices::virtio::{Memory, SharedDevice};
use instar_devices::vsock::{Backend, ConnectionId, Readiness, Stream, VsockDevice};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::Shutdown;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vm_memory::VolatileSlice;

/// A device, and how its backend is moved.
pub struct Fake {
    device: SharedDevice,
    event: Box<dyn FnMut([u8; 2])>,
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.device.fmt(f)
    }
}

impl Fake {
    /// A device whose backend does what `event` makes of two bytes.
    fn new<D: instar_devices::virtio::VirtioDevice + 'static>(
        device: D,
        mut event: impl FnMut(&mut D, [u8; 2]) + 'static,
    ) -> Self {
        let device = Arc::new(Mutex::new(device));
        let moved = Arc::clone(&device);
        Self {
            device,
            event: Box::new(move |bytes| event(&mut moved.lock().expect("a lock"), bytes)),
        }
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> SharedDevice {
        Arc::clone(&self.device)
    }

    /// Something happens to the backend.
    pub fn event(&mut self, bytes: [u8; 2]) {
        (self.event)(bytes);
    }
}

/// A program of the host that reads and writes a few bytes at a time.
#[derive(Debug)]
struct Program {
    /// Bytes of a turn; 0 blocks.
    piece: usize,
    /// Turns until the end.
    turns: u8,
}

impl Program {
    /// Bytes of this turn.
    fn turn(&mut self, wanted: usize) -> io::Result<usize> {
        if self.piece == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.turns & 7 == 1 {
            self.turns -= 1;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.turns = self.turns.saturating_sub(1);
        Ok(if self.turns == 0 {
            0
        } else {
            self.piece.min(wanted)
        })
    }
}

impl Stream for Program {
    fn read(&mut self, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let room = into.iter().map(VolatileSlice::len).sum();
        let mut left = self.turn(room)?;
        let done = left;
        for slice in into {
            let now = left.min(slice.len());
            slice.copy_from(&vec![0x5a; now]);
            left -= now;
        }
        Ok(done)
    }

    fn write(&mut self, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let there = from.iter().map(VolatileSlice::len).sum();
        match self.turn(there)? {
            0 => Err(io::ErrorKind::BrokenPipe.into()),
            done => Ok(done),
        }
    }

    fn shutdown(&mut self, _how: Shutdown) {}

    fn accepted(&mut self, port: u32) -> io::Result<()> {
        match port & 7 {
            7 => Err(io::ErrorKind::BrokenPipe.into()),
            _ => Ok(()),
        }
    }
}

/// Remembers what was dialed.
#[derive(Debug, Default)]
struct Dialer {
    dialed: Vec<ConnectionId>,
}

impl Backend for Dialer {
    fn dial(&mut self, id: ConnectionId, port: u32) -> io::Result<()> {
        if port & 0xf == 0xf {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        self.dialed.push(id);
        Ok(())
    }
}

/// virtio-vsock.
#[must_use]
pub fn vsock(_memory: &Memory) -> Fake {
    let mut known = Vec::new();
    let device = VsockDevice::new(3, Dialer::default());
    Fake::new(device, move |device, [kind, value]| {
        let program = || -> Box<dyn Stream> {
            Box::new(Program {
                piece: usize::from(value) * 16,
                turns: kind >> 3,
            })
        };
        match kind & 7 {
            0 | 1 => known.extend(device.connect(u32::from(value & 3), program())),
            2 | 3 => {
                if let Some(id) = device.backend().dialed.pop() {
                    device.dialed(id, (kind & 1 == 0).then(program));
                    known.push(id);
                }
            }
            4 | 5 => {
                let index = usize::from(value);
                if let Some(id) = known.get(index % known.len().max(1)).copied() {
                    let readiness = Readiness {
                        readable: kind & 8 != 0,
                        writable: kind & 16 != 0,
                        hung_up: kind & 32 != 0,
                    };
                    device.ready(id, readiness);
                }
            }
            _ => {}
        }
        device.serve();
    })
}

/// Bytes of a disk.
const DISK_BYTES: usize = 64 << 10;

/// A clock on which a little time passes whenever it is looked at.
#[derive(Debug, Default)]
struct Ticks(Mutex<u32>);

impl Clock for Ticks {
    fn now(&self) -> Duration {
        let mut ticks = self.0.lock().expect("a lock");
        *ticks += 1;
        Duration::from_millis(1) * *ticks
    }
}

type Disk = VirtioBlk<MemBackend<Memory>>;

fn disk(memory: &Memory, read_only: bool) -> Disk {
    let traits = DiskTraits {
        len_bytes: DISK_BYTES as u64,
        read_only,
        block_bytes: 4096,
    };
    let mut backend = MemBackend::new(memory.clone(), vec![0xd1; DISK_BYTES]);
    backend.order = CompletionOrder::Shuffled(7);
    // What lies past the end of a disk cannot be reached.
    backend.max_bytes = DISK_BYTES as u64;
    VirtioBlk::new(traits, backend)
}

/// Requests that wait are finished, one fails, or the limit is looked at again.
fn disk_event(disk: &mut Disk, [kind, count]: [u8; 2]) {
    match kind & 3 {
        0 | 1 => disk.complete(|backend| backend.release(usize::from(count & 7))),
        2 => disk.complete(|backend| {
            backend.fail_next = Some(Errno::EIO);
            backend.order = match count & 1 {
                0 => CompletionOrder::AtOnce,
                _ => CompletionOrder::Shuffled(count.into()),
            };
        }),
        _ => {
            let _ = disk.closed_for();
            disk.serve();
        }
    }
    disk.complete(|backend| {
        assert_eq!(backend.bytes.len(), DISK_BYTES);
    });
}

/// virtio-blk.
#[must_use]
pub fn blk(memory: &Memory) -> Fake {
    Fake::new(disk(memory, false), disk_event)
}

/// virtio-blk, read-only and with a limit.
#[must_use]
pub fn limited_blk(memory: &Memory) -> Fake {
    let limiter = RateLimiter::new(1 << 20, 100).expect("a limit");
    let disk = disk(memory, true).with_limit(limiter, Box::new(Ticks::default()));
    Fake::new(disk, |disk, event| {
        disk_event(disk, event);
        disk.complete(|backend| {
            assert!(backend.bytes.iter().all(|byte| *byte == 0xd1), "written");
        });
    })
}

/// Random bytes that are none, and that run out.
#[derive(Debug)]
struct Zeros(u8);

impl Entropy for Zeros {
    fn fill(&mut self, bytes: &mut [u8]) -> bool {
        self.0 = self.0.wrapping_add(1);
        bytes.fill(self.0);
        self.0 & 0xf != 0xf
    }
}

/// virtio-rng.
#[must_use]
pub fn rng(_memory: &Memory) -> Fake {
    Fake::new(VirtioRng::new(Box::new(Zeros(0))), |_, _| ())
}

/// A terminal with little room.
#[derive(Debug, Default)]
struct Terminal {
    room: usize,
}

impl Output for Terminal {
    fn write(&mut self, bytes: &[u8]) -> usize {
        self.room = (self.room * 5 + 3) % 512;
        bytes.len().min(self.room & 0xff)
    }
}

/// virtio-console.
#[must_use]
pub fn console(_memory: &Memory) -> Fake {
    let size = |columns: u8| Size {
        columns: columns.into(),
        rows: 25,
    };
    let console = VirtioConsole::new(Box::new(Terminal::default()), size(80));
    Fake::new(console, move |console, [kind, count]| match kind & 3 {
        0 | 1 => {
            let len = console.wants_input().min(usize::from(count));
            console.input(&vec![count; len]);
        }
        2 => console.resize(size(count)),
        _ => {
            let _ = console.is_waiting();
            console.send();
        }
    })
}

/// A network whose packets are as long as moves say.
#[derive(Debug, Default)]
struct Wire {
    packets: VecDeque<usize>,
    /// Packets that are taken before the next has to wait.
    room: u8,
}

impl NetBackend for Wire {
    fn receive(&mut self, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let packet = self.packets.pop_front();
        let mut left = packet.ok_or(io::ErrorKind::WouldBlock)?;
        let room: usize = into.iter().map(VolatileSlice::len).sum();
        let done = left.min(room);
        for slice in into {
            let now = left.min(slice.len());
            slice.copy_from(&vec![0x5a; now]);
            left -= now;
        }
        Ok(done)
    }

    fn send(&mut self, from: &[VolatileSlice<'_>]) -> io::Result<()> {
        let len: usize = from.iter().map(VolatileSlice::len).sum();
        assert!(len <= MAX_PACKET_BYTES, "a packet of {len} bytes");
        self.room = self.room.checked_sub(1).ok_or(io::ErrorKind::WouldBlock)?;
        match self.room & 7 {
            7 => Err(io::ErrorKind::InvalidInput.into()),
            _ => Ok(()),
        }
    }

    fn set_offloads(&mut self, _offloads: Offloads) {}
}

/// virtio-net.
#[must_use]
pub fn net(_memory: &Memory) -> Fake {
    let device = NetDevice::new([2, 0, 0, 0, 0, 1], Wire::default());
    Fake::new(device, |device, [kind, value]| {
        let packets = &mut device.backend().packets;
        match kind & 3 {
            0 | 1 if packets.len() < 64 => {
                packets.push_back(usize::from(value) << (kind >> 4 & 7));
            }
            2 => device.backend().room = value,
            _ => device.go_on(),
        }
        device.ready(kind & 4 != 0, kind & 8 != 0);
    })
}
