//! Drivers that lie.

use super::*;

const BOTH: (u32, u32) = (1000, 50);

fn connected() -> (Bed, Arc<Mutex<Program>>) {
    let mut bed = Bed::new();
    bed.fill(200, 4096, 0);
    bed.send(BOTH, Op::Request, 0, 0, b"");
    let program = bed.answer(Some(1000)).unwrap();
    assert_eq!(bed.ops(), [Op::Response]);
    (bed, program)
}

fn after(bed: &mut Bed, header: &Header, data: &[u8]) -> Vec<Op> {
    assert!(bed.send_raw(header, data, 0));
    bed.device.kick(TX_QUEUE);
    bed.ops()
}

#[test]
fn a_length_past_the_buffers_is_a_reset() {
    for len in [4, 5, 0x1_0000, u32::MAX] {
        let (mut bed, program) = connected();
        let mut lie = header(BOTH.0, BOTH.1, Op::Rw);
        lie.len = U32::new(len);
        assert_eq!(after(&mut bed, &lie, b"abc"), [Op::Rst]);
        assert!(lock(&program).dropped && lock(&program).from_guest.is_empty());
    }
}

#[test]
fn bytes_past_the_length_are_no_data() {
    let (mut bed, program) = connected();
    let mut short = header(BOTH.0, BOTH.1, Op::Rw);
    short.len = U32::new(2);
    assert_eq!(after(&mut bed, &short, b"abc"), []);
    assert_eq!(lock(&program).from_guest, b"ab");
    short.len = U32::new(0);
    assert_eq!(after(&mut bed, &short, b"abc"), []);
    assert_eq!(lock(&program).from_guest, b"ab");
}

#[test]
fn other_addresses_kinds_and_operations_reach_nobody() {
    let (mut bed, program) = connected();
    let good = || header(BOTH.0, BOTH.1, Op::Rw);
    let mut from_other = good();
    from_other.src_cid = U64::new(4);
    assert_eq!(after(&mut bed, &from_other, b""), []);
    let mut to_other = good();
    to_other.dst_cid = U64::new(5);
    assert_eq!(after(&mut bed, &to_other, b""), [Op::Rst]);
    to_other.op = U16::new(Op::Request.raw());
    assert_eq!(after(&mut bed, &to_other, b""), [Op::Rst]);
    let mut seqpacket = good();
    seqpacket.kind = U16::new(2);
    assert_eq!(after(&mut bed, &seqpacket, b""), [Op::Rst]);
    for op in [0, 8, u16::MAX] {
        let mut unknown = good();
        unknown.op = U16::new(op);
        assert_eq!(after(&mut bed, &unknown, b""), [Op::Rst]);
    }
    // A reset is not answered by one.
    let mut reset = header(1, 2, Op::Rst);
    assert_eq!(after(&mut bed, &reset, b""), []);
    reset.kind = U16::new(9);
    assert_eq!(after(&mut bed, &reset, b""), []);
    assert!(!lock(&program).dropped);
    assert_eq!(bed.device.connections(), 1);
}

#[test]
fn operations_out_of_place_end_the_connection() {
    for op in [Op::Request, Op::Response] {
        let (mut bed, program) = connected();
        assert_eq!(after(&mut bed, &header(BOTH.0, BOTH.1, op), b""), [Op::Rst]);
        assert!(lock(&program).dropped);
        assert_eq!(bed.device.connections(), 0);
    }
    let all = [
        Op::Request,
        Op::Response,
        Op::Rw,
        Op::Shutdown,
        Op::CreditUpdate,
        Op::CreditRequest,
    ];
    for op in all {
        let mut bed = Bed::new();
        bed.fill(10, 4096, 0);
        bed.send(BOTH, Op::Request, 0, 0, b"");
        assert_eq!(after(&mut bed, &header(BOTH.0, BOTH.1, op), b""), [Op::Rst]);
        // The answer comes too late.
        let program = bed.answer(Some(10)).unwrap();
        assert!(lock(&program).dropped);
        assert_eq!(bed.ops(), []);
    }
}

#[test]
fn credit_for_what_was_never_sent_ends_the_connection() {
    let (mut bed, program) = connected();
    lock(&program).to_guest.extend(b"abc");
    bed.device.ready(
        ConnectionId(0),
        Readiness {
            readable: true,
            ..Readiness::default()
        },
    );
    assert_eq!(bed.ops(), [Op::Rw]);
    let mut lie = header(BOTH.0, BOTH.1, Op::CreditUpdate);
    lie.fwd_cnt = U32::new(3);
    assert_eq!(after(&mut bed, &lie, b""), []);
    // Older news, which came late.
    lie.fwd_cnt = U32::new(1);
    assert_eq!(after(&mut bed, &lie, b""), []);
    lie.fwd_cnt = U32::new(4);
    assert_eq!(after(&mut bed, &lie, b""), [Op::Rst]);
    assert!(lock(&program).dropped);
}

#[test]
fn a_guest_that_shrinks_its_room_gets_no_more() {
    let (mut bed, program) = connected();
    let mut small = header(BOTH.0, BOTH.1, Op::CreditUpdate);
    small.buf_alloc = U32::new(0);
    assert_eq!(after(&mut bed, &small, b""), []);
    lock(&program).to_guest.extend(b"abcdef");
    let readable = Readiness {
        readable: true,
        ..Readiness::default()
    };
    bed.device.ready(ConnectionId(0), readable);
    assert_eq!(bed.ops(), [Op::CreditRequest]);
    for (room, sent) in [(0, ""), (2, "ab"), (1, ""), (2, ""), (3, "c")] {
        small.buf_alloc = U32::new(room);
        assert!(bed.send_raw(&small, b"", 0));
        bed.device.kick(TX_QUEUE);
        bed.device.serve();
        let got = bed.received();
        let got: Vec<u8> = got.into_iter().flat_map(|packet| packet.data).collect();
        assert_eq!(got, sent.as_bytes());
    }
}

#[test]
fn data_after_the_end_ends_the_connection() {
    let (mut bed, program) = connected();
    bed.send(BOTH, Op::Shutdown, 2, 0, b"");
    assert!(lock(&program).guest_sent_all);
    bed.send(BOTH, Op::Rw, 0, 0, b"more");
    assert_eq!(bed.ops(), [Op::Rst]);
}

#[test]
fn chains_that_are_no_packets_need_a_reset() {
    let short: [&[(u64, u32, bool)]; 2] = [&[(TX_BUFFERS, 43, false)], &[(TX_BUFFERS, 44, true)]];
    for chain in short {
        let (mut bed, program) = connected();
        bed.reap();
        bed.drivers[1].add(chain, false).unwrap();
        bed.device.kick(TX_QUEUE);
        assert!(bed.needs_reset());
        assert!(lock(&program).dropped);
        // Nothing is touched any more.
        bed.drivers[1]
            .add(&[(TX_BUFFERS, 44, false)], false)
            .unwrap();
        bed.device.kick(TX_QUEUE);
        assert_eq!(bed.drivers[1].take_used(), None);
        assert_eq!(bed.device.connect(1, pipe(&program_of_10())), None);
        bed.device.reset();
    }
    for chain in [(RX_BUFFERS, 44, true), (RX_BUFFERS, 4096, false)] {
        let mut bed = Bed::new();
        bed.drivers[0].add(&[chain], false).unwrap();
        bed.send(BOTH, Op::Rw, 0, 0, b"");
        assert!(bed.needs_reset());
    }
    for len in [3, 0x1000] {
        let mut bed = Bed::new();
        let state = bed.device.save();
        let activation = bed.activation();
        bed.device.restore(&state, Some(activation)).unwrap();
        bed.drivers[2]
            .add(&[(RX_BUFFERS, len, len > 4)], false)
            .unwrap();
        bed.device.kick(EVENT_QUEUE);
        assert_eq!(bed.needs_reset(), len == 3);
    }
}

fn program_of_10() -> Arc<Mutex<Program>> {
    program(10)
}

#[test]
fn random_packets_break_nothing() {
    let mut seed = 0x5eed_u64;
    let mut random = move |n: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % n
    };
    let mut bed = Bed::new();
    let mut programs = Vec::new();
    for _ in 0..60_000 {
        bed.fill(random(4) as usize, 4096, 0);
        let mut header = header(random(3) as u32, random(3) as u32, Op::Rw);
        header.op = U16::new(random(9) as u16);
        header.flags = U32::new(random(4) as u32);
        header.fwd_cnt = U32::new([0, 0, 5, u32::MAX][random(4) as usize]);
        header.buf_alloc = U32::new([0, 100, u32::MAX][random(3) as usize]);
        header.len = U32::new([0, 10, 10, u32::MAX][random(4) as usize]);
        assert!(bed.send_raw(&header, &[1; 10], 0));
        bed.device.kick(TX_QUEUE);
        bed.received();
        while let Some((id, _)) = bed.device.backend().dials.pop_front() {
            let host = program(15);
            lock(&host).to_guest.extend([1; 20]);
            let stream = (random(3) > 0).then(|| pipe(&host));
            bed.device.dialed(id, stream);
            programs.push((id, host));
        }
        if random(5) == 0 {
            let port = random(3) as u32;
            let host = program(5);
            if let Some(id) = bed.device.connect(port, pipe(&host)) {
                programs.push((id, host));
            }
        }
        if !programs.is_empty() {
            let which = random(programs.len() as u64) as usize;
            let (id, host) = &programs[which];
            lock(host).from_guest.clear();
            let readiness = Readiness {
                readable: random(2) == 0,
                writable: random(2) == 0,
                hung_up: random(8) == 0,
            };
            bed.device.ready(*id, readiness);
        }
        bed.device.serve();
        programs.retain(|(_, host)| !lock(host).dropped);
        assert!(!bed.needs_reset());
        assert!(bed.device.connections() <= MAX_CONNECTIONS);
    }
}
