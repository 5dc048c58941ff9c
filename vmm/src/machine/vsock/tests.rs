//! Real sockets on one side, a driver on the other.

#![allow(clippy::cast_possible_truncation)] // small numbers

use super::*;
use event_manager::{EventManager, SubscriberOps};
use instar_devices::virtio::Memory;
use instar_devices::virtio::driver::{DRIVER_BYTES, Driver};
use instar_devices::virtio::testing::Told;
use instar_devices::vsock::{RX_QUEUE, TX_QUEUE};
use instar_shared::vsock::{HOST_CID, Header, Op, SHUTDOWN_BOTH, SHUTDOWN_SEND, TYPE_STREAM};
use instar_shared::zerocopy::little_endian::{U16, U32, U64};
use instar_shared::zerocopy::{FromBytes, IntoBytes};
use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

const CID: u32 = 5;
const BASE: u64 = 0x10_0000;
const DATA: u64 = BASE + 3 * DRIVER_BYTES;
const SLOT: u64 = 0x1_1000;
/// Room that the guest has for each connection.
const ROOM: u32 = 200_000;

#[derive(Debug)]
struct ByPath(PathBuf);

impl Connector for ByPath {
    fn connect(&mut self, port: u32) -> io::Result<UnixStream> {
        let path = format!("{}_{port}", self.0.display());
        let stream = UnixStream::connect(path)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

/// A packet that the guest got.
struct Packet {
    op: Op,
    ports: (u32, u32),
    flags: u32,
    /// Bytes that the device has room for, and that have left that room.
    room: u32,
    forwarded: u32,
    data: Vec<u8>,
}

struct Bed {
    folder: tempfile::TempDir,
    mem: Memory,
    rx: Driver,
    tx: Driver,
    wired_queues: Arc<QueueEvents>,
    _device: SharedDevice,
    events: EventManager<events::Subscriber>,
    rx_at: BTreeMap<u16, u64>,
    tx_free: Vec<u64>,
    tx_at: BTreeMap<u16, u64>,
    got: VecDeque<Packet>,
    /// Bytes of each connection that the guest has read.
    read: BTreeMap<(u32, u32), u32>,
}

impl Bed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vsock");
        let wired = wire(Vsock {
            cid: CID,
            listener: UnixListener::bind(&path).unwrap(),
            connector: Box::new(ByPath(path)),
        });
        let wired = wired.unwrap();
        let mem = Memory::from_ranges(&[(GuestAddress(BASE), 32 << 20)]).unwrap();
        let driver = |n| Driver::new(&mem, BASE + n * DRIVER_BYTES, 128, 1 << 29);
        let (rx, tx, event) = (driver(0), driver(1), driver(2));
        let activation = Told::new().activation(&mem, 1 << 29, &[&rx, &tx, &event]);
        wired.device.lock().unwrap().activate(activation);
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(wired.subscriber);
        let mut bed = Self {
            folder,
            mem,
            rx,
            tx,
            wired_queues: wired.queues,
            _device: wired.device,
            events,
            rx_at: BTreeMap::new(),
            tx_free: (200..260).map(|n| DATA + n * SLOT).collect(),
            tx_at: BTreeMap::new(),
            got: VecDeque::new(),
            read: BTreeMap::new(),
        };
        for n in 0..100 {
            bed.give(DATA + n * SLOT);
        }
        bed
    }

    fn program(&self) -> UnixStream {
        UnixStream::connect(self.folder.path().join("vsock")).unwrap()
    }

    fn give(&mut self, at: u64) {
        let head = self.rx.add(&[(at, 8192, true)], false).unwrap();
        self.rx_at.insert(head, at);
    }

    fn send(&mut self, ports: (u32, u32), op: Op, flags: u32, data: &[u8]) {
        while self.tx_free.is_empty() {
            self.turn();
        }
        let at = self.tx_free.pop().unwrap();
        let header = Header {
            src_cid: U64::new(CID.into()),
            dst_cid: U64::new(HOST_CID),
            src_port: U32::new(ports.0),
            dst_port: U32::new(ports.1),
            len: U32::new(data.len() as u32),
            kind: U16::new(TYPE_STREAM),
            op: U16::new(op.raw()),
            flags: U32::new(flags),
            buf_alloc: U32::new(ROOM),
            fwd_cnt: U32::new(self.read.get(&ports).copied().unwrap_or(0)),
        };
        let bytes = [header.as_bytes(), data].concat();
        self.mem.write_slice(&bytes, GuestAddress(at)).unwrap();
        let head = self.tx.add(&[(at, bytes.len() as u32, false)], false);
        self.tx_at.insert(head.unwrap(), at);
        if self.tx.must_kick() {
            self.wired_queues.events()[usize::from(TX_QUEUE)]
                .write(1)
                .unwrap();
        }
    }

    /// A turn of the device's thread, and of the guest's interrupts.
    fn turn(&mut self) {
        self.events.run_with_timeout(5).unwrap();
        while let Some((head, _)) = self.tx.take_used() {
            self.tx_free.push(self.tx_at.remove(&head).unwrap());
        }
        while let Some((head, written)) = self.rx.take_used() {
            let at = self.rx_at.remove(&head).unwrap();
            let mut bytes = vec![0; written as usize];
            self.mem.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            let (header, data) = Header::read_from_prefix(&bytes).unwrap();
            let ports = (header.dst_port.get(), header.src_port.get());
            *self.read.entry(ports).or_default() += data.len() as u32;
            self.got.push_back(Packet {
                op: Op::try_from(header.op.get()).unwrap(),
                ports,
                flags: header.flags.get(),
                room: header.buf_alloc.get(),
                forwarded: header.fwd_cnt.get(),
                data: data.to_vec(),
            });
            self.give(at);
        }
        if self.rx.must_kick() {
            self.wired_queues.events()[usize::from(RX_QUEUE)]
                .write(1)
                .unwrap();
        }
    }

    /// The next packet that the guest gets.
    fn next(&mut self) -> Packet {
        let end = Instant::now() + Duration::from_secs(120);
        while self.got.is_empty() {
            assert!(Instant::now() < end, "no packet came");
            self.turn();
        }
        self.got.pop_front().unwrap()
    }

    /// Nothing comes for the guest.
    fn quiet(&mut self) {
        for _ in 0..5 {
            self.turn();
        }
        assert!(self.got.is_empty());
    }

    /// A program that the guest has accepted.
    fn accepted(&mut self, port: u32) -> (UnixStream, (u32, u32)) {
        let mut program = self.program();
        program
            .write_all(format!("CONNECT {port}\n").as_bytes())
            .unwrap();
        let request = self.next();
        assert_eq!((request.op, request.ports.0), (Op::Request, port));
        self.send(request.ports, Op::Response, 0, b"");
        self.quiet();
        let want = format!("OK {}\n", request.ports.1);
        let mut line = vec![0; want.len()];
        program.read_exact(&mut line).unwrap();
        assert_eq!(line, want.as_bytes());
        (program, request.ports)
    }
}

fn is_closed(program: &mut UnixStream) -> bool {
    program
        .set_read_timeout(Some(Duration::from_secs(120)))
        .unwrap();
    matches!(program.read(&mut [0; 10]), Ok(0) | Err(_))
}

#[test]
fn a_program_talks_to_the_guest() {
    let mut bed = Bed::new();
    let (mut program, ports) = bed.accepted(52);
    program.write_all(b"hello").unwrap();
    let got = bed.next();
    assert_eq!(
        (got.op, got.ports, &got.data[..]),
        (Op::Rw, ports, &b"hello"[..])
    );
    bed.send(ports, Op::Rw, 0, b"world");
    bed.quiet();
    let mut answer = [0; 5];
    program.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"world");
    drop(program);
    let got = bed.next();
    assert_eq!((got.op, got.flags), (Op::Shutdown, SHUTDOWN_BOTH));
    bed.send(ports, Op::Rst, 0, b"");
    bed.quiet();
}

#[test]
fn what_follows_the_line_is_the_guests() {
    let mut bed = Bed::new();
    let mut program = bed.program();
    program.write_all(b"CONN").unwrap();
    bed.quiet();
    program.write_all(b"ECT 7\nearly").unwrap();
    let ports = bed.next().ports;
    bed.quiet();
    bed.send(ports, Op::Response, 0, b"");
    assert_eq!(bed.next().data, b"early");
    program.shutdown(std::net::Shutdown::Write).unwrap();
    let got = bed.next();
    assert_eq!((got.op, got.flags), (Op::Shutdown, SHUTDOWN_SEND));
    bed.send(ports, Op::Rw, 0, b"late");
    bed.send(ports, Op::Shutdown, SHUTDOWN_BOTH, b"");
    assert_eq!(bed.next().op, Op::Rst);
    let mut all = String::new();
    program.read_to_string(&mut all).unwrap();
    assert_eq!(all, format!("OK {}\nlate", ports.1));
}

#[test]
fn the_guest_refuses_and_the_socket_closes() {
    let mut bed = Bed::new();
    let mut program = bed.program();
    program.write_all(b"CONNECT 7\n").unwrap();
    let ports = bed.next().ports;
    bed.send(ports, Op::Rst, 0, b"");
    bed.quiet();
    assert!(is_closed(&mut program));
}

#[test]
fn other_first_lines_close_the_socket() {
    let mut bed = Bed::new();
    for line in [
        "GET / HTTP/1.1\n",
        "CONNECT x\n",
        "CONNECT 11111111111111111111111111",
    ] {
        let mut program = bed.program();
        program.write_all(line.as_bytes()).unwrap();
        bed.quiet();
        assert!(is_closed(&mut program), "{line:?}");
    }
    // Gone before it has said anything.
    drop(bed.program());
    let mut program = bed.program();
    program.write_all(b"CONNECT 5").unwrap();
    program.shutdown(std::net::Shutdown::Write).unwrap();
    bed.quiet();
    assert!(is_closed(&mut program));
}

#[test]
fn programs_that_say_nothing_do_not_keep_others_out() {
    let mut bed = Bed::new();
    let mut silent: Vec<_> = (0..150)
        .map(|_| {
            let program = bed.program();
            bed.turn();
            program
        })
        .collect();
    bed.quiet();
    assert!(is_closed(&mut silent[0]));
    bed.accepted(9);
}

#[test]
fn the_guest_reaches_who_listens() {
    let mut bed = Bed::new();
    bed.send((1000, 80), Op::Request, 0, b"");
    assert_eq!(bed.next().op, Op::Rst);
    let listener = UnixListener::bind(bed.folder.path().join("vsock_80")).unwrap();
    bed.send((1000, 80), Op::Request, 0, b"");
    assert_eq!(bed.next().op, Op::Response);
    let mut program = listener.accept().unwrap().0;
    program.write_all(b"welcome").unwrap();
    assert_eq!(bed.next().data, b"welcome");
    bed.send((1000, 80), Op::Rw, 0, b"thanks");
    bed.send((1000, 80), Op::Shutdown, SHUTDOWN_BOTH, b"");
    assert_eq!(bed.next().op, Op::Rst);
    let mut all = Vec::new();
    program.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"thanks");
}

#[test]
fn megabytes_come_back_as_they_were_sent() {
    const LEN: usize = 6 << 20;
    let byte = |n: usize| (n * 31 + n / 4093) as u8;
    let mut bed = Bed::new();
    let (mut program, ports) = bed.accepted(1024);
    let mut writer = program.try_clone().unwrap();
    let writes = std::thread::spawn(move || {
        let all: Vec<u8> = (0..LEN).map(byte).collect();
        writer.write_all(&all).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let reads = std::thread::spawn(move || {
        let mut all = Vec::new();
        program.read_to_end(&mut all).unwrap();
        all
    });
    // The guest echoes, as far as its credit goes.
    let (mut echo, mut sent, mut ended) = (VecDeque::new(), 0_u32, false);
    loop {
        let got = bed.next();
        match got.op {
            Op::Rw => echo.extend(got.data),
            Op::CreditUpdate => {}
            Op::CreditRequest => bed.send(ports, Op::CreditUpdate, 0, b""),
            Op::Shutdown => ended = true,
            Op::Rst => break,
            op => panic!("{op:?}"),
        }
        let credit = got.room - (sent - got.forwarded);
        let now: Vec<u8> = echo.drain(..echo.len().min(credit as usize)).collect();
        sent += now.len() as u32;
        for piece in now.chunks(0x1_0000) {
            bed.send(ports, Op::Rw, 0, piece);
        }
        if ended && echo.is_empty() {
            ended = false;
            bed.send(ports, Op::Shutdown, SHUTDOWN_BOTH, b"");
        }
    }
    assert_eq!(sent as usize, LEN);
    writes.join().unwrap();
    let all = reads.join().unwrap();
    assert_eq!(all.len(), LEN);
    assert!((0..LEN).all(|n| all[n] == byte(n)));
}
