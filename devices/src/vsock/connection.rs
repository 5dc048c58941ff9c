//! One connection: what each side has sent, may send, and has ended. VirtIO 1.3 §5.10.6.
//!
//! ```text
//! guest begins:  Dialing --------------------> Open --> Reset --> gone
//! host begins:   Requested --(RESPONSE)------> Open --> Orphan -> gone
//! ```
//! `Open` holds half-closed connections too: each direction has its own flag. A connection that the guest has left
//! (RST) while bytes that it had sent still wait for the host's program is an `Orphan`: only those are delivered.

use super::backend::{Readiness, Stream};
use super::buffer::Buffer;
use super::{BUFFER_BYTES, CREDIT_STEP_BYTES, slices};
use instar_shared::vsock::{Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use std::io::ErrorKind;
use std::net::Shutdown;
use std::num::Wrapping;
use vm_memory::VolatileSlice;

/// The two ports that make a connection; the addresses are always the guest's and the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ports {
    /// The guest's.
    pub guest: u32,
    /// The host's.
    pub host: u32,
}

/// Where a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The guest asked; the host's program is being reached.
    Dialing,
    /// The host asked; the guest has not answered.
    Requested,
    /// Both sides agreed.
    Open,
    /// The guest is to be told that it is over.
    Reset,
    /// The guest has left; what it had sent goes on to the host's program.
    Orphan,
    /// Nothing is left to do.
    Gone,
}

/// Packets that the guest is to get, apart from data.
#[derive(Clone, Copy, Debug, Default)]
struct Owed {
    request: bool,
    response: bool,
    credit_update: bool,
    credit_request: bool,
}

/// A packet for the guest: all of it that the connection knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outgoing {
    /// What it is.
    pub op: Op,
    /// `SHUTDOWN_*`.
    pub flags: u32,
    /// Bytes of data, which are in the guest's buffers already.
    pub len: u32,
    /// Bytes that have left the buffer.
    pub fwd_cnt: u32,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub ports: Ports,
    /// Stands in the queue of those with something to send.
    pub queued: bool,
    phase: Phase,
    stream: Option<Box<dyn Stream>>,
    readiness: Readiness,
    owed: Owed,
    /// From the guest to the host.
    inbound: Inbound,
    /// From the host to the guest.
    outbound: Outbound,
    /// What the guest has ended: `SHUTDOWN_*`.
    guest_ended: u32,
    /// What the host has ended and the guest was told.
    told_ended: u32,
}

/// From the guest to the host.
#[derive(Debug, Default)]
struct Inbound {
    buffer: Buffer,
    /// Bytes that have left the buffer, modulo 2^32.
    forwarded: Wrapping<u32>,
    /// [`Self::forwarded`] as the guest has last seen it.
    told: Wrapping<u32>,
    /// The host's program takes no more.
    closed: bool,
    /// The stream was told that no more comes.
    finished: bool,
}

/// From the host to the guest.
#[derive(Debug, Default)]
struct Outbound {
    /// Bytes sent, modulo 2^32.
    sent: Wrapping<u32>,
    /// Of those, bytes that have left the guest's buffer.
    forwarded: Wrapping<u32>,
    /// Length of the guest's buffer in bytes.
    buffer_bytes: u32,
    /// The guest was asked for credit since it last ran out.
    asked: bool,
    /// The host's program sends no more.
    closed: bool,
}

impl Outbound {
    /// Bytes that may be sent. VirtIO 1.3 §5.10.6.3 "Buffer Space Management".
    fn credit(&self) -> u32 {
        self.buffer_bytes
            .saturating_sub((self.sent - self.forwarded).0)
    }

    /// Takes what a header says over; false if the guest claims more than it was sent.
    fn learn(&mut self, header: &Header) -> bool {
        let claimed = Wrapping(header.fwd_cnt.get());
        let in_flight = self.sent - self.forwarded;
        let progress = claimed - self.forwarded;
        // Two threads of the guest may send in another order than they counted: going back is no progress.
        if progress <= in_flight {
            self.forwarded = claimed;
        } else if progress.0 < u32::MAX / 2 {
            return false;
        }
        self.buffer_bytes = header.buf_alloc.get();
        if self.credit() > 0 {
            self.asked = false;
        }
        true
    }
}

impl Connection {
    fn new(ports: Ports, phase: Phase, stream: Option<Box<dyn Stream>>) -> Self {
        Self {
            ports,
            queued: false,
            phase,
            stream,
            readiness: Readiness {
                readable: true,
                writable: true,
                hung_up: false,
            },
            owed: Owed {
                request: phase == Phase::Requested,
                ..Owed::default()
            },
            inbound: Inbound::default(),
            outbound: Outbound::default(),
            guest_ended: 0,
            told_ended: 0,
        }
    }

    /// The guest asks by `header`; the host's program is not reached yet.
    pub fn dialing(ports: Ports, header: &Header) -> Self {
        let mut connection = Self::new(ports, Phase::Dialing, None);
        connection.outbound.learn(header);
        connection
    }

    /// A program of the host asks.
    pub fn requested(ports: Ports, stream: Box<dyn Stream>) -> Self {
        Self::new(ports, Phase::Requested, Some(stream))
    }

    /// Whether there is nothing left to do.
    pub fn is_gone(&self) -> bool {
        self.phase == Phase::Gone
    }

    /// Whether the guest does not know the connection any more.
    pub fn is_left(&self) -> bool {
        matches!(self.phase, Phase::Gone | Phase::Orphan)
    }

    /// The host's program was reached, or not.
    pub fn dialed(&mut self, stream: Option<Box<dyn Stream>>) {
        if self.phase != Phase::Dialing {
            return;
        }
        match stream {
            Some(stream) => {
                self.stream = Some(stream);
                self.phase = Phase::Open;
                self.owed.response = true;
            }
            None => self.reset(),
        }
    }

    /// A packet of the guest, with its data.
    pub fn receive(&mut self, op: Op, header: &Header, data: &[VolatileSlice<'_>]) {
        if op == Op::Rst {
            return self.leave();
        }
        if !self.outbound.learn(header) {
            return self.reset();
        }
        match (self.phase, op) {
            (Phase::Requested, Op::Response) if !self.owed.request => self.open(),
            (Phase::Open, Op::Rw) => self.receive_data(data),
            (Phase::Open, Op::Shutdown) => self.end(header.flags.get()),
            (Phase::Open, Op::CreditUpdate) => {}
            (Phase::Open, Op::CreditRequest) => self.owed.credit_update = true,
            (Phase::Reset | Phase::Orphan | Phase::Gone, _) => {}
            _ => self.reset(),
        }
    }

    /// What became possible with the stream.
    pub fn ready(&mut self, now: Readiness) {
        self.readiness.readable |= now.readable | now.hung_up;
        self.readiness.writable |= now.writable;
        if now.hung_up {
            self.readiness.hung_up = true;
            if self.phase == Phase::Requested {
                return self.give_up();
            }
            self.close_inbound();
        }
        self.flush();
    }

    /// The next packet for the guest, if there is one; data are put into `room`, which is not empty.
    pub fn next_packet(&mut self, room: &[VolatileSlice<'_>]) -> Option<Outgoing> {
        let (op, flags, len) = self.choose(room)?;
        if op == Op::Rst {
            self.stream = None;
            self.phase = Phase::Gone;
        }
        self.inbound.told = self.inbound.forwarded;
        self.owed.credit_update = false;
        Some(Outgoing {
            op,
            flags,
            len,
            fwd_cnt: self.inbound.forwarded.0,
        })
    }

    fn choose(&mut self, room: &[VolatileSlice<'_>]) -> Option<(Op, u32, u32)> {
        match self.phase {
            Phase::Reset => return Some((Op::Rst, 0, 0)),
            Phase::Requested if std::mem::take(&mut self.owed.request) => {
                return Some((Op::Request, 0, 0));
            }
            Phase::Open => {}
            _ => return None,
        }
        if std::mem::take(&mut self.owed.response) {
            return Some((Op::Response, 0, 0));
        }
        if self.guest_ended == SHUTDOWN_BOTH && self.inbound.buffer.is_empty() {
            return Some((Op::Rst, 0, 0));
        }
        if let Some(len) = self.read(room) {
            return Some((Op::Rw, 0, len));
        }
        if self.phase == Phase::Reset {
            return Some((Op::Rst, 0, 0));
        }
        if std::mem::take(&mut self.owed.credit_request) {
            return Some((Op::CreditRequest, 0, 0));
        }
        let ended = self.ended();
        if ended != self.told_ended {
            self.told_ended = ended;
            return Some((Op::Shutdown, ended, 0));
        }
        self.owes_credit().then_some((Op::CreditUpdate, 0, 0))
    }

    /// Reads from the stream into `room`, as far as the guest's credit goes; `None` if nothing comes.
    fn read(&mut self, room: &[VolatileSlice<'_>]) -> Option<u32> {
        let wanted = !self.outbound.closed && self.guest_ended & SHUTDOWN_RECEIVE == 0;
        if !wanted || !self.readiness.readable {
            return None;
        }
        let credit = self.outbound.credit();
        if credit == 0 {
            self.owed.credit_request = !std::mem::replace(&mut self.outbound.asked, true);
            return None;
        }
        let stream = self.stream.as_mut()?;
        let room = slices::front(room, credit as usize);
        loop {
            match stream.read(&room) {
                Ok(0) => self.outbound.closed = true,
                Ok(n) => {
                    let n = u32::try_from(n).unwrap_or(credit).min(credit);
                    self.outbound.sent += n;
                    return Some(n);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.readiness.readable = false,
                Err(_) => self.reset(),
            }
            return None;
        }
    }

    /// What the host has ended: `SHUTDOWN_*`, from the host's side.
    fn ended(&self) -> u32 {
        let send = if self.outbound.closed {
            SHUTDOWN_SEND
        } else {
            0
        };
        // What the host's program sent before it went is sent first.
        let receive = if self.inbound.closed && (self.outbound.closed || !self.readiness.hung_up) {
            SHUTDOWN_RECEIVE
        } else {
            0
        };
        send | receive
    }

    /// Whether the guest should hear that there is room again.
    fn owes_credit(&self) -> bool {
        let untold = (self.inbound.forwarded - self.inbound.told).0;
        self.owed.credit_update || untold >= CREDIT_STEP_BYTES
    }

    /// The guest has accepted.
    fn open(&mut self) {
        let port = self.ports.host;
        match self.stream.as_mut().map(|stream| stream.accepted(port)) {
            Some(Ok(())) => self.phase = Phase::Open,
            _ => self.reset(),
        }
    }

    fn receive_data(&mut self, data: &[VolatileSlice<'_>]) {
        let len = slices::len(data);
        let room = BUFFER_BYTES.saturating_sub(self.inbound.untold_len());
        if len > room as usize || self.guest_ended & SHUTDOWN_SEND != 0 {
            return self.reset();
        }
        let mut done = 0;
        if self.inbound.buffer.is_empty() {
            done = self.write(data);
        }
        if self.inbound.closed {
            done = len;
        }
        self.inbound.forwarded += u32::try_from(done).unwrap_or(BUFFER_BYTES);
        self.inbound.buffer.push(data, done);
    }

    /// Writes as much as the stream takes now.
    fn write(&mut self, data: &[VolatileSlice<'_>]) -> usize {
        let mut done = 0_usize;
        let len = slices::len(data);
        while done < len && self.readiness.writable && !self.inbound.closed {
            let Some(stream) = self.stream.as_mut() else {
                break;
            };
            match stream.write(&slices::after(data, done)) {
                Ok(n) if n > 0 => done = done.saturating_add(n).min(len),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.readiness.writable = false,
                _ => self.close_inbound(),
            }
        }
        done
    }

    /// Hands on what waits for the stream.
    fn flush(&mut self) {
        while !self.inbound.buffer.is_empty() && self.readiness.writable {
            let mut buffer = std::mem::take(&mut self.inbound.buffer);
            let done = self.write(&buffer.slices());
            if self.inbound.closed {
                // Dropped with what was in it; the count went on when it was closed.
                let left = buffer.len().saturating_sub(done);
                self.inbound.forward(done.saturating_add(left));
                break;
            }
            buffer.pop(done);
            self.inbound.buffer = buffer;
            self.inbound.forward(done);
        }
        if self.inbound.buffer.is_empty() {
            if self.guest_ended & SHUTDOWN_SEND != 0 {
                self.finish();
            }
            if self.phase == Phase::Orphan {
                self.stream = None;
                self.phase = Phase::Gone;
            }
        }
    }

    /// The host's program takes no more: what waits for it is dropped.
    fn close_inbound(&mut self) {
        self.inbound.closed = true;
        let left = self.inbound.buffer.len();
        self.inbound.buffer = Buffer::default();
        self.inbound.forward(left);
    }

    /// The stream hears that no more comes.
    fn finish(&mut self) {
        if !std::mem::replace(&mut self.inbound.finished, true)
            && let Some(stream) = self.stream.as_mut()
        {
            stream.shutdown(Shutdown::Write);
        }
    }

    /// The guest ends one direction or both.
    fn end(&mut self, flags: u32) {
        self.guest_ended |= flags & SHUTDOWN_BOTH;
        if self.guest_ended & SHUTDOWN_RECEIVE != 0
            && let Some(stream) = self.stream.as_mut()
        {
            stream.shutdown(Shutdown::Read);
        }
        self.flush();
    }

    /// The guest has left.
    fn leave(&mut self) {
        let deliver = self.phase == Phase::Open
            && self.guest_ended & SHUTDOWN_SEND != 0
            && !self.inbound.buffer.is_empty();
        if deliver {
            self.phase = Phase::Orphan;
        } else if self.phase != Phase::Orphan {
            self.stream = None;
            self.phase = Phase::Gone;
        }
    }

    /// The host's program has gone before the guest answered.
    fn give_up(&mut self) {
        if self.owed.request {
            self.stream = None;
            self.phase = Phase::Gone;
        } else {
            self.reset();
        }
    }

    /// It is over: nothing more is delivered, and the guest hears of it.
    fn reset(&mut self) {
        self.stream = None;
        self.inbound.buffer = Buffer::default();
        self.phase = Phase::Reset;
    }
}

impl Inbound {
    /// Bytes of the buffer that the guest has to think taken.
    fn untold_len(&self) -> u32 {
        let left = u32::try_from(self.buffer.len()).unwrap_or(BUFFER_BYTES);
        left.saturating_add((self.forwarded - self.told).0)
    }

    fn forward(&mut self, n: usize) {
        self.forwarded += u32::try_from(n).unwrap_or(BUFFER_BYTES);
    }
}
