//! Random reads, writes and ends on both sides, against what must come out: nothing lost, nothing out of order, no more
//! on its way than there is credit for.

use super::*;
use instar_shared::vsock::{SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// One connection, from both sides.
struct Pair {
    ports: (u32, u32),
    id: ConnectionId,
    program: Arc<Mutex<Program>>,
    open: bool,
    /// What the guest sends, and how much of it is sent.
    guest_out: Vec<u8>,
    guest_sent: usize,
    guest_ended: bool,
    /// Credit that the guest has heard of.
    host_forwarded: u32,
    host_room: u32,
    /// What the guest has got, and how much of it its program has read.
    guest_in: Vec<u8>,
    guest_read: usize,
    guest_saw_end: bool,
    /// What the host's program sends, and how much of it is sent.
    host_out: Vec<u8>,
    host_sent: usize,
    /// What it has read.
    host_in: Vec<u8>,
}

struct World {
    bed: Bed,
    pairs: Vec<Pair>,
    seed: u64,
}

impl World {
    fn random(&mut self, n: usize) -> usize {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed % n as u64) as usize
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let len = self.random(most);
        (0..len).map(|_| self.random(256) as u8).collect()
    }

    fn add_pair(&mut self, n: u32) {
        let program = program(300 + self.random(5000));
        let (guest_out, host_out) = (self.bytes(300_000), self.bytes(300_000));
        let by_guest = self.random(2) == 0;
        let mut ports = (n, 77);
        let id = if by_guest {
            let request = header(ports.0, ports.1, Op::Request);
            while !self.bed.send_raw(&request, b"", 0) {
                self.bed.device.serve();
            }
            self.bed.device.kick(TX_QUEUE);
            let (id, port) = self.bed.device.backend().dials.pop_front().unwrap();
            assert_eq!(port, 77);
            self.bed.device.dialed(id, Some(pipe(&program)));
            id
        } else {
            let id = self.bed.device.connect(n, pipe(&program)).unwrap();
            ports.1 = 0;
            id
        };
        self.pairs.push(Pair {
            ports,
            id,
            program,
            open: false,
            guest_out,
            guest_sent: 0,
            guest_ended: false,
            host_forwarded: 0,
            host_room: 0,
            guest_in: Vec::new(),
            guest_read: 0,
            guest_saw_end: false,
            host_out,
            host_sent: 0,
            host_in: Vec::new(),
        });
    }

    /// The guest's packet with what its side has read.
    fn guest_packet(&mut self, n: usize, op: Op, flags: u32, data: &[u8]) -> bool {
        let pair = &self.pairs[n];
        let mut header = header(pair.ports.0, pair.ports.1, op);
        header.fwd_cnt = U32::new(pair.guest_read as u32);
        header.len = U32::new(data.len() as u32);
        header.flags = U32::new(flags);
        let cut = [0, 44, 10, 13][self.random(4)];
        let sent = self.bed.send_raw(&header, data, cut);
        if sent && self.bed.drivers[1].must_kick() {
            self.bed.device.kick(TX_QUEUE);
        }
        sent
    }

    fn guest_step(&mut self, n: usize) {
        match self.random(4) {
            0 | 1 => {
                let pair = &self.pairs[n];
                let in_flight = pair.guest_sent as u32 - pair.host_forwarded;
                let credit = (pair.host_room - in_flight) as usize;
                let left = pair.guest_out.len() - pair.guest_sent;
                let most = left.min(credit).min(0x1_0000);
                if !pair.open || pair.guest_ended || most == 0 {
                    return;
                }
                let len = 1 + self.random(most);
                let from = self.pairs[n].guest_sent;
                let data = self.pairs[n].guest_out[from..from + len].to_vec();
                if self.guest_packet(n, Op::Rw, 0, &data) {
                    self.pairs[n].guest_sent += len;
                }
            }
            2 => {
                let left = self.pairs[n].guest_in.len() - self.pairs[n].guest_read;
                if left > 0 {
                    self.pairs[n].guest_read += 1 + self.random(left);
                    // The count is told by the next packet that goes anyway, or by one of its own.
                    if self.pairs[n].open && self.random(2) == 0 {
                        self.guest_packet(n, Op::CreditUpdate, 0, b"");
                    }
                }
            }
            _ => self.guest_end(n),
        }
    }

    fn guest_end(&mut self, n: usize) {
        let pair = &self.pairs[n];
        let all = pair.guest_sent == pair.guest_out.len();
        if pair.open
            && all
            && !pair.guest_ended
            && self.guest_packet(n, Op::Shutdown, SHUTDOWN_SEND, b"")
        {
            self.pairs[n].guest_ended = true;
        }
    }

    fn host_step(&mut self, n: usize) {
        let writes = self.random(2) == 0;
        let amount = self.random(9000);
        let pair = &mut self.pairs[n];
        let mut program = lock(&pair.program);
        let mut ready = Readiness::default();
        if writes {
            let left = &pair.host_out[pair.host_sent..];
            let now = &left[..left.len().min(amount)];
            program.to_guest.extend(now);
            pair.host_sent += now.len();
            program.sent_all = pair.host_sent == pair.host_out.len();
            ready.readable = true;
        } else {
            let now = program.from_guest.len().min(amount);
            ready.writable = now > 0;
            pair.host_in.extend(program.from_guest.drain(..now));
        }
        drop(program);
        // Only an edge is told.
        let id = pair.id;
        if ready != Readiness::default() {
            self.bed.device.ready(id, ready);
            self.bed.device.serve();
        }
    }

    /// What the guest's driver got.
    fn guest_interrupt(&mut self) {
        for packet in self.bed.received() {
            let n = packet.guest as usize;
            let pair = &mut self.pairs[n];
            pair.host_room = packet.buf_alloc;
            pair.host_forwarded = packet.fwd_cnt;
            assert!(pair.host_forwarded as usize <= pair.guest_sent);
            match packet.op {
                Op::Response => pair.open = true,
                Op::Request => {
                    pair.open = true;
                    pair.ports.1 = packet.host;
                    while !self.guest_packet(n, Op::Response, 0, b"") {
                        self.bed.device.serve();
                    }
                }
                Op::Rw => {
                    assert!(!pair.guest_saw_end);
                    pair.guest_in.extend(packet.data);
                    let held = pair.guest_in.len() - pair.guest_read;
                    assert!(
                        held <= GUEST_BUFFER as usize,
                        "more than the guest has room for"
                    );
                }
                Op::Shutdown => {
                    assert_eq!(packet.flags, SHUTDOWN_SEND);
                    pair.guest_saw_end = true;
                }
                Op::CreditUpdate => {}
                Op::CreditRequest => _ = self.guest_packet(n, Op::CreditUpdate, 0, b""),
                Op::Rst => panic!("connection {n} was reset"),
            }
        }
    }

    fn is_done(&self) -> bool {
        self.pairs.iter().all(|pair| {
            pair.guest_ended
                && pair.guest_saw_end
                && lock(&pair.program).guest_sent_all
                && lock(&pair.program).from_guest.is_empty()
        })
    }

    fn check(&self) {
        for pair in &self.pairs {
            assert!(pair.host_in == pair.guest_out, "to the host");
            assert!(pair.guest_in == pair.host_out, "to the guest");
        }
    }
}

fn run(seed: u64) {
    let mut world = World {
        bed: Bed::new(),
        pairs: Vec::new(),
        seed: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
    };
    for n in 0..1 + world.random(6) as u32 {
        world.add_pair(n);
    }
    let mut steps = 0_u32;
    while !world.is_done() {
        steps += 1;
        assert!(steps < 400_000, "it does not end");
        let n = world.random(world.pairs.len());
        match world.random(4) {
            0 => world.guest_step(n),
            1 => world.host_step(n),
            2 => {
                let (count, len) = (world.random(6), 45 + world.random(8000) as u32);
                let cut = [0, 44, 1, 30][world.random(4)];
                world.bed.fill(count, len, cut);
                if world.bed.drivers[0].must_kick() {
                    world.bed.device.kick(RX_QUEUE);
                }
            }
            _ => world.guest_interrupt(),
        }
        while world.bed.device.has_more() {
            world.bed.device.serve();
        }
        assert!(!world.bed.needs_reset());
    }
    world.check();
    // Both directions have ended: the guest says goodbye, and nothing is left.
    for n in 0..world.pairs.len() {
        while !world.guest_packet(n, Op::Shutdown, SHUTDOWN_SEND | SHUTDOWN_RECEIVE, b"") {
            world.bed.device.serve();
        }
        world.bed.device.serve();
    }
    world.bed.fill(20, 100, 0);
    world.bed.device.kick(RX_QUEUE);
    let resets = world.bed.received();
    let resets = resets.iter().filter(|packet| packet.op == Op::Rst).count();
    assert_eq!(resets, world.pairs.len());
    assert_eq!(world.bed.device.connections(), 0);
}

#[test]
fn nothing_is_lost_or_out_of_order() {
    for seed in 0..40 {
        println!("seed {seed}");
        run(seed);
    }
}
