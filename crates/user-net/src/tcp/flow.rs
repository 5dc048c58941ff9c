//! One connection.

use super::Ends;
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use std::time::{Duration, Instant};

/// Bytes of each of a connection's two buffers, for the first of them.
const BUFFER_BYTES: usize = 256 << 10;
/// And for the rest, so that many connections do not take much memory.
const SMALL_BUFFER_BYTES: usize = 16 << 10;
/// Connections with large buffers.
const LARGE_FLOWS: usize = 64;
/// How long the acknowledgement of a short packet waits for an answer that takes it along. RFC 9293 §3.8.6.3 allows up to 500
/// ms, Linux begins with 40.
const ACK_DELAY: Duration = Duration::from_millis(10);
/// Longest packet that is short, in bytes: whoever sends longer ones may wait for room to send more.
const SHORT_PACKET: usize = 1024;
/// A guest that does not answer for so long has lost the connection.
const TIMEOUT: Duration = Duration::from_secs(120);

/// How far a connection is.
pub enum Stage {
    /// The host is asked.
    Connecting {
        /// The packet that the guest began with.
        syn: Vec<u8>,
    },
    /// There are two sides.
    Open {
        /// The guest's side.
        sockets: SocketSet<'static>,
        /// Its only socket.
        handle: SocketHandle,
    },
    /// The guest's side is closed, and the host has not taken everything yet.
    Draining {
        /// What is left.
        data: Vec<u8>,
        /// Of it, what the host has taken.
        taken: usize,
    },
}

impl Stage {
    /// A guest's side, closed; `count` connections are there.
    pub fn open(count: usize) -> Self {
        let bytes = if count <= LARGE_FLOWS {
            BUFFER_BYTES
        } else {
            SMALL_BUFFER_BYTES
        };
        let buffer = || SocketBuffer::new(vec![0; bytes]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(TIMEOUT.into()));
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        Self::Open { sockets, handle }
    }
}

/// A connection.
pub struct Flow {
    /// Its ends.
    pub ends: Ends,
    /// The host's side.
    pub host: OwnedFd,
    /// How far it is.
    pub stage: Stage,
    /// When it is to be looked at.
    pub wanted: Option<Instant>,
    /// When the list of timers has it: then or earlier.
    pub due: Option<Instant>,
    /// It is on the list of those that wait for the link.
    pub held_up: bool,
    readable: bool,
    writable: bool,
    /// The host's side has ended, or sends urgent data, before which a read ends: behind a read that is short there is more.
    reads_on: bool,
    /// The guest has sent all.
    guest_finished: bool,
    /// And the host knows.
    guest_done: bool,
    /// The host has sent all.
    host_done: bool,
}

impl Flow {
    pub const fn new(ends: Ends, host: OwnedFd, stage: Stage) -> Self {
        Self {
            ends,
            host,
            stage,
            wanted: None,
            due: None,
            held_up: false,
            readable: false,
            writable: true,
            reads_on: false,
            guest_finished: false,
            guest_done: false,
            host_done: false,
        }
    }

    /// The guest's side.
    pub fn guest_side(&mut self) -> Option<&mut Socket<'static>> {
        match &mut self.stage {
            Stage::Open { sockets, handle } => Some(sockets.get_mut(*handle)),
            _ => None,
        }
    }

    /// The guest's side, to which a packet of `len` bytes has come.
    pub fn hears(&mut self, len: usize) -> Option<&mut SocketSet<'static>> {
        let Stage::Open { sockets, handle } = &mut self.stage else {
            return None;
        };
        let delay = (len <= SHORT_PACKET).then(|| ACK_DELAY.into());
        sockets
            .get_mut::<Socket<'static>>(*handle)
            .set_ack_delay(delay);
        Some(sockets)
    }

    /// The host's socket has something to say.
    pub const fn ready(&mut self, events: EventFlags) {
        let broken = events.intersects(EventFlags::ERR.union(EventFlags::HUP));
        let readable = EventFlags::IN.union(EventFlags::RDHUP);
        self.reads_on |= broken || events.intersects(EventFlags::RDHUP.union(EventFlags::PRI));
        self.readable |= broken || events.intersects(readable);
        self.writable |= broken || events.intersects(EventFlags::OUT);
    }

    /// The host has answered: the guest's side listens for its first packet, which is returned.
    pub fn connected(&mut self, count: usize) -> Option<Vec<u8>> {
        let open = Stage::open(count);
        let Stage::Connecting { syn } = std::mem::replace(&mut self.stage, open) else {
            return None;
        };
        let (address, port) = (*self.ends.far.ip(), self.ends.far.port());
        let socket = self.guest_side()?;
        // A new socket can listen, and the port is not 0.
        socket.listen((address, port)).ok()?;
        Some(syn)
    }

    /// Moves what can be moved.
    pub fn pump(&mut self) {
        match &mut self.stage {
            Stage::Connecting { .. } => {}
            Stage::Open { sockets, handle } => {
                let socket = sockets.get_mut::<Socket<'static>>(*handle);
                let sides = Sides {
                    host: &self.host,
                    readable: &mut self.readable,
                    writable: &mut self.writable,
                    reads_on: self.reads_on,
                    guest_finished: &mut self.guest_finished,
                    guest_done: &mut self.guest_done,
                    host_done: &mut self.host_done,
                };
                sides.pump(socket);
            }
            Stage::Draining { .. } => self.drain(),
        }
    }

    /// Takes over what a closed guest's side has left, once it has nothing more to say: it would be lost with it.
    pub fn settle(&mut self) {
        let finished = self.guest_finished;
        let Some(socket) = self.guest_side() else {
            return;
        };
        let closed = matches!(socket.state(), State::Closed | State::TimeWait);
        if !(closed && finished && socket.can_recv()) {
            return;
        }
        let mut data = Vec::new();
        while let Ok(len) = socket.recv(|bytes| {
            data.extend_from_slice(bytes);
            (bytes.len(), bytes.len())
        }) && len > 0
        {}
        self.stage = Stage::Draining { data, taken: 0 };
        self.drain();
    }

    fn drain(&mut self) {
        let Stage::Draining { data, taken } = &mut self.stage else {
            return;
        };
        while self.writable {
            let rest = data.get(*taken..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            match rustix::net::send(&self.host, rest, SendFlags::NOSIGNAL) {
                Ok(len) => *taken = taken.saturating_add(len),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.writable = false,
                Err(_) => *taken = data.len(),
            }
        }
    }

    /// Whether nothing is left to do; then a connection that did not end well is reset on the host's side.
    pub fn is_over(&mut self, link_blocked: bool) -> bool {
        let (over, well) = match &self.stage {
            Stage::Connecting { .. } => (false, false),
            Stage::Draining { data, taken } => (*taken >= data.len(), true),
            Stage::Open { sockets, handle } => {
                let socket = sockets.get::<Socket<'static>>(*handle);
                match socket.state() {
                    State::Closed => (true, self.guest_done && self.host_done),
                    // Nothing is lost on the link, so nobody asks again, once the last acknowledgement is sent.
                    State::TimeWait => (!link_blocked && self.guest_done, true),
                    _ => (false, false),
                }
            }
        };
        if over && !well {
            // The socket is closed next; without this it would look as if all had been sent.
            let _ = rustix::net::sockopt::set_socket_linger(&self.host, Some(Duration::ZERO));
        }
        over
    }
}

/// The host's side of an open connection.
struct Sides<'a> {
    host: &'a OwnedFd,
    readable: &'a mut bool,
    writable: &'a mut bool,
    reads_on: bool,
    guest_finished: &'a mut bool,
    guest_done: &'a mut bool,
    host_done: &'a mut bool,
}

impl Sides<'_> {
    fn pump(self, socket: &mut Socket<'static>) {
        let mut broken = false;
        while *self.writable && socket.can_recv() && !broken {
            let sent = socket.recv(|bytes| {
                let sent = rustix::net::send(self.host, bytes, SendFlags::NOSIGNAL);
                (sent.unwrap_or(0), sent)
            });
            match sent {
                Ok(Ok(_) | Err(Errno::INTR)) => {}
                Ok(Err(Errno::AGAIN)) => *self.writable = false,
                _ => broken = true,
            }
        }
        *self.guest_finished |= matches!(
            socket.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        );
        if *self.guest_finished && !socket.can_recv() && !*self.guest_done {
            *self.guest_done = true;
            // If it is not connected any more, it knows already.
            let _ = rustix::net::shutdown(self.host, Shutdown::Write);
        }
        while *self.readable && socket.can_send() && !broken && !*self.host_done {
            let got = socket.send(|room| {
                let len = room.len();
                let got = rustix::net::recv(self.host, room, RecvFlags::empty());
                let got = got.map(|(_, got)| (got, got == len));
                (got.map_or(0, |(got, _)| got), got)
            });
            match got {
                Ok(Ok((0, _))) => {
                    *self.host_done = true;
                    socket.close();
                }
                // Less than there is room for is all that there is; what comes later is told of.
                Ok(Ok((_, filled))) => *self.readable = filled || self.reads_on,
                Ok(Err(Errno::INTR)) => {}
                Ok(Err(Errno::AGAIN)) => *self.readable = false,
                _ => broken = true,
            }
        }
        if broken {
            socket.abort();
        }
    }
}
