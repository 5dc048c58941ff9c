//! The device between a driver that counts credit, and programs of the host that read and write as they like.

#![allow(clippy::cast_possible_truncation)] // small numbers

mod hostile;
mod interleave;
mod rules;

use super::*;
use crate::virtio::driver::{DRIVER_BYTES, Driver};
use crate::virtio::{Activation, Interrupt, Memory, VirtioDevice};
use instar_shared::vsock::{HOST_CID, Header, Op, TYPE_STREAM};
use instar_shared::zerocopy::little_endian::{U16, U32, U64};
use instar_shared::zerocopy::{FromBytes, IntoBytes};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

const CID: u32 = 3;
const BASE: u64 = 0x10_0000;
const RX_BUFFERS: u64 = BASE + 3 * DRIVER_BYTES;
const RX_BUFFER_BYTES: u64 = 0x2000;
const TX_BUFFERS: u64 = RX_BUFFERS + 256 * RX_BUFFER_BYTES;
const TX_BUFFER_BYTES: u64 = 0x1_1000;
const TX_SLOTS: u64 = 64;
const FEATURES: u64 = 1 << 28 | 1 << 29;
/// Room that the guest has for each connection.
const GUEST_BUFFER: u32 = 40_000;

/// A host program's end of a stream.
#[derive(Debug, Default)]
pub(super) struct Program {
    /// What the guest sent, and the program has not read.
    pub from_guest: VecDeque<u8>,
    /// What the program has sent.
    pub to_guest: VecDeque<u8>,
    /// Bytes that `from_guest` may have.
    pub room: usize,
    /// The program sends no more.
    pub sent_all: bool,
    /// The program takes no more.
    pub takes_no_more: bool,
    /// The guest sends no more.
    pub guest_sent_all: bool,
    /// The device has dropped its end.
    pub dropped: bool,
    /// The port that was accepted.
    pub accepted: Option<u32>,
    /// Reads and writes that had nothing to do.
    pub blocked: u32,
}

/// The device's end.
#[derive(Debug)]
struct Pipe(Arc<Mutex<Program>>);

impl Drop for Pipe {
    fn drop(&mut self) {
        self.0.lock().unwrap().dropped = true;
    }
}

impl Stream for Pipe {
    fn read(&mut self, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut program = self.0.lock().unwrap();
        assert!(slices::len(into) > 0, "a read of nothing");
        if program.to_guest.is_empty() && !program.sent_all {
            program.blocked += 1;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut done = 0;
        for slice in into {
            let n = slice.len().min(program.to_guest.len());
            let bytes: Vec<u8> = program.to_guest.drain(..n).collect();
            slice.copy_from(&bytes);
            done += n;
        }
        Ok(done)
    }

    fn write(&mut self, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut program = self.0.lock().unwrap();
        assert!(slices::len(from) > 0, "a write of nothing");
        assert!(!program.guest_sent_all, "a write after the end");
        if program.takes_no_more {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let room = program.room - program.from_guest.len();
        if room == 0 {
            program.blocked += 1;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut done = 0;
        for slice in slices::front(from, room) {
            let mut bytes = vec![0; slice.len()];
            slice.copy_to(&mut bytes);
            done += bytes.len();
            program.from_guest.extend(bytes);
        }
        Ok(done)
    }

    fn shutdown(&mut self, how: Shutdown) {
        let mut program = self.0.lock().unwrap();
        if how != Shutdown::Read {
            program.guest_sent_all = true;
        }
    }

    fn accepted(&mut self, port: u32) -> io::Result<()> {
        let mut program = self.0.lock().unwrap();
        assert_eq!(program.accepted.replace(port), None);
        if program.takes_no_more {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    }
}

/// Knows which ports are listened at; answers when it is told to.
#[derive(Debug, Default)]
pub(super) struct Ports {
    pub dials: VecDeque<(ConnectionId, u32)>,
    pub full: bool,
}

impl Backend for Ports {
    fn dial(&mut self, id: ConnectionId, port: u32) -> io::Result<()> {
        if self.full {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.dials.push_back((id, port));
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Told {
    needs_reset: AtomicBool,
    queues: Mutex<BTreeSet<u16>>,
}

impl Interrupt for Told {
    fn queue(&self, index: u16) {
        self.queues.lock().unwrap().insert(index);
    }

    fn config(&self) {}

    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
    }
}

/// A packet that the guest got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub op: Op,
    pub guest: u32,
    pub host: u32,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
    pub data: Vec<u8>,
}

/// The guest's driver, the device, and what the host's programs hold.
pub(super) struct Bed {
    pub mem: Memory,
    pub drivers: [Driver; 3],
    pub device: VsockDevice<Ports>,
    told: Arc<Told>,
    /// By head: the buffer in the receive queue, and its length.
    rx: BTreeMap<u16, (u64, u32)>,
    rx_free: Vec<u64>,
    tx: BTreeMap<u16, u64>,
    tx_free: Vec<u64>,
}

impl Bed {
    pub fn new() -> Self {
        let size = TX_BUFFERS + TX_SLOTS * TX_BUFFER_BYTES - BASE;
        let mem = Memory::from_ranges(&[(GuestAddress(BASE), size as usize)]).unwrap();
        let driver = |n| Driver::new(&mem, BASE + n * DRIVER_BYTES, 256, FEATURES);
        let mut bed = Self {
            drivers: [driver(0), driver(1), driver(2)],
            device: VsockDevice::new(CID, Ports::default()),
            told: Arc::default(),
            rx: BTreeMap::new(),
            rx_free: (0..256).map(|n| RX_BUFFERS + n * RX_BUFFER_BYTES).collect(),
            tx: BTreeMap::new(),
            tx_free: (0..TX_SLOTS)
                .map(|n| TX_BUFFERS + n * TX_BUFFER_BYTES)
                .collect(),
            mem,
        };
        let activation = bed.activation();
        bed.device.activate(activation);
        bed
    }

    pub fn activation(&self) -> Activation {
        Activation {
            features: FEATURES | 1 << 32,
            memory: self.mem.clone(),
            queues: self.drivers.iter().map(|d| Some(d.queue())).collect(),
            interrupt: self.told.clone(),
        }
    }

    pub fn needs_reset(&self) -> bool {
        self.told.needs_reset.load(Ordering::SeqCst)
    }

    /// Gives the device up to `count` buffers of `len` bytes to receive in, cut in two at `cut` if that is not 0.
    pub fn fill(&mut self, count: usize, len: u32, cut: u32) {
        for _ in 0..count {
            let Some(at) = self.rx_free.pop() else { break };
            let whole = [(at, len, true)];
            let parts = [(at, cut, true), (at + u64::from(cut), len - cut, true)];
            let buffers: &[_] = if cut == 0 { &whole } else { &parts };
            match self.drivers[0].add(buffers, cut % 2 == 1) {
                Some(head) => _ = self.rx.insert(head, (at, len)),
                None => {
                    self.rx_free.push(at);
                    break;
                }
            }
        }
    }

    /// Puts a packet into the transmit queue; false if there is no room. The header is cut off at `cut` if that is not
    /// 0.
    pub fn send_raw(&mut self, header: &Header, data: &[u8], cut: u32) -> bool {
        self.reap();
        let Some(at) = self.tx_free.pop() else {
            return false;
        };
        self.mem
            .write_slice(header.as_bytes(), GuestAddress(at))
            .unwrap();
        self.mem.write_slice(data, GuestAddress(at + 44)).unwrap();
        let len = 44 + data.len() as u32;
        let parts = [(at, cut, false), (at + u64::from(cut), len - cut, false)];
        let whole = [(at, len, false)];
        let buffers: &[_] = if cut == 0 || cut == len {
            &whole
        } else {
            &parts
        };
        let head = self.drivers[1].add(buffers, cut % 2 == 1).unwrap();
        self.tx.insert(head, at);
        true
    }

    pub fn reap(&mut self) {
        while let Some((head, written)) = self.drivers[1].take_used() {
            assert_eq!(written, 0);
            self.tx_free.push(self.tx.remove(&head).unwrap());
        }
    }

    /// A packet of connection `guest`/`host` with credit for [`GUEST_BUFFER`] bytes, of which `forwarded` have left.
    pub fn send(
        &mut self,
        (guest, host): (u32, u32),
        op: Op,
        flags: u32,
        forwarded: u32,
        data: &[u8],
    ) {
        let mut header = header(guest, host, op);
        header.flags = U32::new(flags);
        header.fwd_cnt = U32::new(forwarded);
        header.len = U32::new(data.len() as u32);
        assert!(self.send_raw(&header, data, 0));
        self.device.kick(TX_QUEUE);
    }

    /// What the device has put into the receive queue.
    pub fn received(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        while let Some((head, written)) = self.drivers[0].take_used() {
            let (at, len) = self.rx.remove(&head).unwrap();
            self.rx_free.push(at);
            assert!(written >= 44 && written <= len);
            let mut bytes = vec![0; written as usize];
            self.mem.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            let (header, data) = Header::read_from_prefix(&bytes).unwrap();
            assert_eq!(header.len.get() as usize, data.len());
            assert!(header.src_cid.get() == HOST_CID || header.op.get() == Op::Rst.raw());
            assert_eq!(header.dst_cid.get(), u64::from(CID));
            let op = Op::try_from(header.op.get()).unwrap();
            assert!(data.is_empty() || op == Op::Rw);
            packets.push(Packet {
                op,
                guest: header.dst_port.get(),
                host: header.src_port.get(),
                flags: header.flags.get(),
                buf_alloc: header.buf_alloc.get(),
                fwd_cnt: header.fwd_cnt.get(),
                data: data.to_vec(),
            });
        }
        packets
    }

    /// Serves until the device has nothing left, and says what the guest got, by kind.
    pub fn ops(&mut self) -> Vec<Op> {
        self.device.serve();
        self.received().iter().map(|packet| packet.op).collect()
    }

    /// Answers the oldest dial with a program that has `room`, or with nobody.
    pub fn answer(&mut self, room: Option<usize>) -> Option<Arc<Mutex<Program>>> {
        let (id, _) = self.device.backend().dials.pop_front().expect("a dial");
        let program = room.map(program);
        let stream = program.as_ref().map(pipe);
        self.device.dialed(id, stream);
        self.device.serve();
        program
    }
}

pub(super) fn program(room: usize) -> Arc<Mutex<Program>> {
    let room = Program {
        room,
        ..Program::default()
    };
    Arc::new(Mutex::new(room))
}

pub(super) fn pipe(program: &Arc<Mutex<Program>>) -> Box<dyn Stream> {
    Box::new(Pipe(Arc::clone(program)))
}

pub(super) fn lock(program: &Arc<Mutex<Program>>) -> MutexGuard<'_, Program> {
    program.lock().unwrap()
}

pub(super) fn header(guest: u32, host: u32, op: Op) -> Header {
    Header {
        src_cid: U64::new(CID.into()),
        dst_cid: U64::new(HOST_CID),
        src_port: U32::new(guest),
        dst_port: U32::new(host),
        kind: U16::new(TYPE_STREAM),
        op: U16::new(op.raw()),
        buf_alloc: U32::new(GUEST_BUFFER),
        ..Header::zeroed()
    }
}
