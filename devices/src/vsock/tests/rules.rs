//! One rule each.

use super::*;
use crate::virtio::{DeviceState, RestoreError};
use instar_shared::vsock::{SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

const GUEST: u32 = 1000;
const HOST: u32 = 50;
const BOTH: (u32, u32) = (GUEST, HOST);
const READ: Readiness = Readiness {
    readable: true,
    writable: false,
    hung_up: false,
};
const WRITE: Readiness = Readiness {
    readable: false,
    writable: true,
    hung_up: false,
};
const HUNG_UP: Readiness = Readiness {
    readable: true,
    writable: true,
    hung_up: true,
};

/// A connection that the guest began, to a program with `room`.
fn connected(room: usize) -> (Bed, Arc<Mutex<Program>>) {
    let mut bed = Bed::new();
    bed.fill(200, 4096, 0);
    bed.send(BOTH, Op::Request, 0, 0, b"");
    let program = bed.answer(Some(room)).unwrap();
    assert_eq!(bed.ops(), [Op::Response]);
    (bed, program)
}

/// A connection that a program began.
fn reached() -> (Bed, Arc<Mutex<Program>>, (u32, u32)) {
    let mut bed = Bed::new();
    bed.fill(200, 4096, 0);
    let program = program(1000);
    bed.device.connect(GUEST, pipe(&program)).unwrap();
    bed.device.serve();
    let got = bed.received();
    assert_eq!(got.len(), 1);
    assert_eq!((got[0].op, got[0].guest), (Op::Request, GUEST));
    let ports = (GUEST, got[0].host);
    (bed, program, ports)
}

fn id(bed: &Bed) -> ConnectionId {
    // The first connection of a device.
    assert!(bed.device.connections() > 0);
    ConnectionId(0)
}

#[test]
fn nobody_listening_is_a_reset() {
    let mut bed = Bed::new();
    bed.fill(10, 4096, 0);
    bed.send(BOTH, Op::Request, 0, 0, b"");
    assert_eq!(bed.device.backend().dials.front().map(|d| d.1), Some(HOST));
    assert_eq!(bed.ops(), []);
    bed.answer(None);
    assert_eq!(bed.ops(), [Op::Rst]);
    assert_eq!(bed.device.connections(), 0);
    bed.device.backend().full = true;
    bed.send(BOTH, Op::Request, 0, 0, b"");
    assert_eq!(bed.ops(), [Op::Rst]);
    assert_eq!(bed.device.connections(), 0);
}

#[test]
fn bytes_go_both_ways() {
    let (mut bed, program) = connected(1000);
    bed.send(BOTH, Op::Rw, 0, 0, b"from the guest");
    assert_eq!(lock(&program).from_guest, b"from the guest");
    lock(&program).to_guest.extend(b"from the host");
    let id = id(&bed);
    bed.device.ready(id, READ);
    bed.device.serve();
    let got = bed.received();
    assert_eq!(got.len(), 1);
    assert_eq!(
        (got[0].op, got[0].data.as_slice()),
        (Op::Rw, &b"from the host"[..])
    );
    assert_eq!((got[0].guest, got[0].host), BOTH);
    assert_eq!((got[0].buf_alloc, got[0].fwd_cnt), (BUFFER_BYTES, 14));
}

#[test]
fn a_program_reaches_the_guest() {
    let (mut bed, program, ports) = reached();
    assert_eq!(lock(&program).accepted, None);
    bed.send(ports, Op::Response, 0, 0, b"");
    assert_eq!(lock(&program).accepted, Some(ports.1));
    bed.send(ports, Op::Rw, 0, 0, b"hello");
    assert_eq!(lock(&program).from_guest, b"hello");
}

#[test]
fn the_guest_refuses() {
    let (mut bed, program, ports) = reached();
    bed.send(ports, Op::Rst, 0, 0, b"");
    assert!(lock(&program).dropped);
    assert_eq!(bed.ops(), []);
    assert_eq!(bed.device.connections(), 0);
}

#[test]
fn a_program_that_gives_up_is_a_reset() {
    let (mut bed, program, ports) = reached();
    let first = id(&bed);
    bed.device.ready(first, HUNG_UP);
    assert_eq!(bed.ops(), [Op::Rst]);
    assert!(lock(&program).dropped);
    bed.send(ports, Op::Response, 0, 0, b"");
    assert_eq!(bed.ops(), [Op::Rst]);
}

#[test]
fn programs_wait_for_a_driver() {
    let mut bed = Bed::new();
    bed.device.reset();
    let program = program(10);
    assert_eq!(bed.device.connect(GUEST, pipe(&program)), None);
    assert!(lock(&program).dropped);
}

#[test]
fn the_guest_ends_one_direction() {
    let (mut bed, program) = connected(4);
    bed.send(BOTH, Op::Rw, 0, 0, b"question");
    bed.send(BOTH, Op::Shutdown, SHUTDOWN_SEND, 0, b"");
    // The end comes after the bytes.
    assert!(!lock(&program).guest_sent_all);
    assert_eq!(lock(&program).from_guest, b"ques");
    lock(&program).from_guest.clear();
    let id = id(&bed);
    bed.device.ready(id, WRITE);
    assert_eq!(lock(&program).from_guest, b"tion");
    assert!(lock(&program).guest_sent_all);
    lock(&program).to_guest.extend(b"answer");
    lock(&program).sent_all = true;
    bed.device.ready(id, READ);
    assert_eq!(bed.ops(), [Op::Rw, Op::Shutdown]);
    bed.send(BOTH, Op::Shutdown, SHUTDOWN_BOTH, 6, b"");
    assert_eq!(bed.ops(), [Op::Rst]);
    assert!(lock(&program).dropped);
    assert_eq!(bed.device.connections(), 0);
}

#[test]
fn a_program_ends_one_direction() {
    let (mut bed, program) = connected(1000);
    lock(&program).sent_all = true;
    let id = id(&bed);
    bed.device.ready(id, READ);
    bed.device.serve();
    let got = bed.received();
    assert_eq!((got[0].op, got[0].flags), (Op::Shutdown, SHUTDOWN_SEND));
    bed.send(BOTH, Op::Rw, 0, 0, b"still");
    assert_eq!(lock(&program).from_guest, b"still");
    bed.send(BOTH, Op::Shutdown, SHUTDOWN_BOTH, 0, b"");
    assert_eq!(bed.ops(), [Op::Rst]);
}

#[test]
fn a_program_that_dies_ends_both_after_its_last_bytes() {
    let (mut bed, program) = connected(1000);
    lock(&program).to_guest.extend(b"last words");
    lock(&program).sent_all = true;
    lock(&program).takes_no_more = true;
    let id = id(&bed);
    bed.device.ready(id, HUNG_UP);
    bed.device.serve();
    let got = bed.received();
    assert_eq!(got[0].data, b"last words");
    assert_eq!((got[1].op, got[1].flags), (Op::Shutdown, SHUTDOWN_BOTH));
    assert_eq!(got.len(), 2);
    // What the guest sent before it heard goes nowhere, and is counted.
    bed.send(BOTH, Op::Rw, 0, 10, &[7; 60_000]);
    bed.device.serve();
    let got = bed.received();
    assert_eq!((got[0].op, got[0].fwd_cnt), (Op::CreditUpdate, 60_000));
    bed.send(BOTH, Op::Rst, 0, 10, b"");
    assert_eq!(bed.device.connections(), 0);
}

#[test]
fn a_program_that_takes_no_more_is_told_to_the_guest() {
    let (mut bed, program) = connected(1000);
    lock(&program).takes_no_more = true;
    bed.send(BOTH, Op::Rw, 0, 0, b"lost");
    let got = bed.received();
    assert_eq!((got[0].op, got[0].flags), (Op::Shutdown, SHUTDOWN_RECEIVE));
    lock(&program).to_guest.extend(b"but listen");
    let id = id(&bed);
    bed.device.ready(id, READ);
    assert_eq!(bed.ops(), [Op::Rw]);
}

#[test]
fn what_the_guest_sent_is_delivered_after_it_left() {
    let (mut bed, program) = connected(3);
    bed.send(BOTH, Op::Rw, 0, 0, b"abcdef");
    bed.send(BOTH, Op::Shutdown, SHUTDOWN_BOTH, 0, b"");
    bed.send(BOTH, Op::Rst, 0, 0, b"");
    assert_eq!(bed.ops(), []);
    assert_eq!(bed.device.connections(), 1);
    // The ports are free again meanwhile.
    bed.send(BOTH, Op::Request, 0, 0, b"");
    let second = bed.answer(Some(10)).unwrap();
    assert_eq!(bed.ops(), [Op::Response]);
    bed.send(BOTH, Op::Rw, 0, 0, b"second");
    assert_eq!(lock(&program).from_guest, b"abc");
    lock(&program).from_guest.clear();
    let first = id(&bed);
    bed.device.ready(first, WRITE);
    assert_eq!(lock(&program).from_guest, b"def");
    assert!(lock(&program).guest_sent_all && lock(&program).dropped);
    assert_eq!(lock(&second).from_guest, b"second");
    assert_eq!(bed.device.connections(), 1);
}

#[test]
fn a_guest_that_leaves_without_goodbye_drops_what_waits() {
    let (mut bed, program) = connected(3);
    bed.send(BOTH, Op::Rw, 0, 0, b"abcdef");
    bed.send(BOTH, Op::Rst, 0, 0, b"");
    assert!(lock(&program).dropped && !lock(&program).guest_sent_all);
    assert_eq!(bed.device.connections(), 0);
}

#[test]
fn no_more_is_sent_than_the_guest_has_room_for() {
    let (mut bed, program) = connected(10);
    lock(&program).to_guest.extend(vec![1; 100_000]);
    let id = id(&bed);
    bed.device.ready(id, READ);
    bed.device.serve();
    let got = bed.received();
    let sent: usize = got.iter().map(|packet| packet.data.len()).sum();
    assert_eq!(sent, GUEST_BUFFER as usize);
    assert_eq!(got.last().unwrap().op, Op::CreditRequest);
    // Once is enough.
    bed.device.ready(id, READ);
    assert_eq!(bed.ops(), []);
    bed.send(BOTH, Op::CreditUpdate, 0, 5000, b"");
    let got = bed.received();
    let sent: usize = got.iter().map(|packet| packet.data.len()).sum();
    assert_eq!(sent, 5000);
}

#[test]
fn a_stalled_program_holds_the_guest_to_its_credit() {
    let (mut bed, program) = connected(100);
    bed.send(BOTH, Op::Rw, 0, 0, &[1; 0x1_0000]);
    bed.send(BOTH, Op::Rw, 0, 0, &[2; 0x1_0000]);
    assert_eq!(bed.ops(), []);
    // 100 bytes have left, but the guest has not heard of it.
    bed.send(BOTH, Op::Rw, 0, 0, &[3; 1]);
    assert_eq!(bed.ops(), [Op::Rst]);
    assert!(lock(&program).dropped);
}

#[test]
fn the_guest_hears_of_room() {
    let (mut bed, program) = connected(100);
    bed.send(BOTH, Op::Rw, 0, 0, &[1; 50_000]);
    assert_eq!(bed.ops(), []);
    lock(&program).from_guest.clear();
    lock(&program).room = 1 << 20;
    let id = id(&bed);
    bed.device.ready(id, WRITE);
    bed.device.serve();
    let got = bed.received();
    assert_eq!((got[0].op, got[0].fwd_cnt), (Op::CreditUpdate, 50_000));
    bed.send(BOTH, Op::CreditRequest, 0, 0, b"");
    let got = bed.received();
    assert_eq!((got[0].op, got[0].fwd_cnt), (Op::CreditUpdate, 50_000));
}

#[test]
fn connections_take_turns() {
    let mut bed = Bed::new();
    bed.fill(3, 4096, 0);
    let mut programs = Vec::new();
    for guest in 1..=3 {
        bed.send((guest, HOST), Op::Request, 0, 0, b"");
        programs.push(bed.answer(Some(10)).unwrap());
    }
    assert_eq!(bed.ops(), [Op::Response; 3]);
    for (n, program) in (0..).zip(&programs) {
        lock(program).to_guest.extend(vec![1; 20_000]);
        bed.device.ready(ConnectionId(n), READ);
    }
    for _ in 0..3 {
        bed.fill(3, 4096, 0);
        bed.device.kick(RX_QUEUE);
        let got = bed.received();
        let ports: BTreeSet<u32> = got.iter().map(|packet| packet.guest).collect();
        assert_eq!(ports.len(), 3, "{ports:?}");
    }
}

#[test]
fn there_are_so_many_connections_and_no_more() {
    let mut bed = Bed::new();
    bed.fill(200, 4096, 0);
    let mut programs = Vec::new();
    for guest in 0..MAX_CONNECTIONS as u32 {
        bed.send((guest, HOST), Op::Request, 0, 0, b"");
        programs.push(bed.answer(Some(10)).unwrap());
        assert_eq!(bed.ops(), [Op::Response]);
        bed.fill(200, 4096, 0);
    }
    bed.send((MAX_CONNECTIONS as u32, HOST), Op::Request, 0, 0, b"");
    assert_eq!(bed.ops(), [Op::Rst]);
    assert_eq!(bed.device.connect(GUEST, pipe(&program(1))), None);
    bed.send((7, HOST), Op::Rst, 0, 0, b"");
    assert!(lock(&programs[7]).dropped);
    bed.send((7, HOST), Op::Request, 0, 0, b"");
    bed.answer(Some(10)).unwrap();
    assert_eq!(bed.ops(), [Op::Response]);
}

#[test]
fn a_driver_that_receives_nothing_has_its_packets_left_in_the_queue() {
    let mut bed = Bed::new();
    for n in 0..MAX_REPLIES as u32 + 40 {
        bed.send((n, HOST), Op::CreditUpdate, 0, 0, b"");
    }
    assert_eq!(bed.drivers[1].in_flight(), 40);
    bed.fill(100, 4096, 0);
    bed.device.kick(RX_QUEUE);
    while bed.device.has_more() {
        bed.device.serve();
    }
    assert_eq!(bed.received().len(), 100);
    bed.fill(200, 4096, 0);
    bed.device.kick(RX_QUEUE);
    while bed.device.has_more() {
        bed.device.serve();
    }
    assert_eq!(bed.received().len(), MAX_REPLIES + 40 - 100);
}

#[test]
fn a_restored_device_says_that_all_is_gone() {
    let (mut bed, program) = connected(10);
    let state = bed.device.save();
    bed.device.reset();
    assert!(lock(&program).dropped);
    let mut device = VsockDevice::new(CID, super::Ports::default());
    device.restore(&state, Some(bed.activation())).unwrap();
    bed.device = device;
    bed.device.serve();
    assert_eq!(bed.drivers[2].take_used(), None);
    let head = bed.drivers[2].add(&[(RX_BUFFERS, 4, true)], false).unwrap();
    assert!(bed.drivers[2].must_kick());
    bed.mem.write_obj(9_u32, GuestAddress(RX_BUFFERS)).unwrap();
    bed.device.kick(EVENT_QUEUE);
    assert_eq!(bed.drivers[2].take_used(), Some((head, 4)));
    let event: u32 = bed.mem.read_obj(GuestAddress(RX_BUFFERS)).unwrap();
    assert_eq!(event, 0);
    // What the driver still believes in is refused.
    bed.send(BOTH, Op::Rw, 0, 0, b"?");
    assert_eq!(bed.ops(), [Op::Rst]);
    // And nothing is said twice.
    bed.drivers[2].add(&[(RX_BUFFERS, 4, true)], false).unwrap();
    bed.device.kick(EVENT_QUEUE);
    assert_eq!(bed.drivers[2].take_used(), None);
}

#[test]
fn states_of_other_devices_are_refused() {
    let bed = Bed::new();
    let DeviceState::Vsock(state) = bed.device.save() else {
        panic!("another kind");
    };
    let mut device = VsockDevice::new(CID, super::Ports::default());
    let mut other = state.clone();
    other.version = 9;
    let refused = device.restore(&DeviceState::Vsock(other), None);
    assert!(matches!(
        refused,
        Err(RestoreError::Version { found: 9, .. })
    ));
    let mut other = state.clone();
    other.guest_cid = 4;
    let refused = device.restore(&DeviceState::Vsock(other), None);
    assert!(matches!(refused, Err(RestoreError::Impossible { .. })));
    let mut other = state;
    other.queues[0].as_mut().unwrap().in_flight = vec![300];
    let refused = device.restore(&DeviceState::Vsock(other), Some(bed.activation()));
    assert!(matches!(refused, Err(RestoreError::Impossible { .. })));
}

#[test]
fn the_configuration_is_the_address() {
    let bed = Bed::new();
    let mut all = [9; 12];
    bed.device.read_config(0, &mut all);
    assert_eq!(all, [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for (offset, want) in [(0, 3), (1, 0), (8, 0), (u32::MAX, 0)] {
        let mut byte = [9];
        bed.device.read_config(offset, &mut byte);
        assert_eq!(byte, [want]);
    }
}
