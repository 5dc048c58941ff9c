//! Connections: each is one of smoltcp's sockets towards the guest and one of the host's.
//!
//! ```text
//!  guest's SYN -> Connecting --connected--> Open --both ends closed--> gone
//!                     |                      |  '-- the host is slow --> Draining -> gone
//!                     '-- refused: reset     '-- a reset goes on to the other side
//!  forwarded port --------------------------^
//! ```
//!
//! smoltcp looks through all sockets of a set for each packet, so each connection has a set of its own, and is found here.
//! Data is in smoltcp's buffers and nowhere else: read from the host into the one, sent to it from the other. A side that
//! is slow fills them, and then the other side's window, or the host's socket, holds its sender up.

mod flow;

use crate::host::{self, Kind, Token};
use crate::network::Ground;
use crate::policy::Protocol;
use crate::{DNS_SERVER, GATEWAY, GUEST};
use flow::{Flow, Stage};
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::net::SocketType;
use smoltcp::iface::{Config, Interface, PollResult, SocketSet};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::{SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

/// Most connections.
pub const MAX_FLOWS: usize = 4096;
/// Most of them that the host has not answered yet.
const MAX_CONNECTING: usize = 512;
/// Longest SYN that is kept until the host is connected, in bytes.
const MAX_SYN_BYTES: usize = 1500;
/// Ports of the router from which forwarded connections come.
const FORWARD_PORTS: std::ops::Range<u16> = 32_768..61_000;
/// What is not done at once is looked at again after this.
const AGAIN: Duration = Duration::from_millis(1);
/// How sockets of connections are watched.
const WATCHED: EventFlags = EventFlags::IN
    .union(EventFlags::OUT)
    .union(EventFlags::RDHUP)
    .union(EventFlags::PRI)
    .union(EventFlags::ET);

/// Both ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ends {
    /// Port of the guest.
    pub guest_port: u16,
    /// The other end, as the guest sees it.
    pub far: SocketAddrV4,
}

/// All connections.
pub struct Tcp {
    interface: Interface,
    began: Instant,
    flows: HashMap<u64, Flow>,
    by_ends: HashMap<Ends, u64>,
    next_id: u64,
    next_port: u16,
    connecting: usize,
    /// Packets have come for them.
    touched: Vec<u64>,
    /// They have something to send, and the link takes nothing.
    held_up: Vec<u64>,
    timers: BinaryHeap<Reverse<(Instant, u64)>>,
    /// No sockets: what comes for them is answered by a reset.
    nobody: SocketSet<'static>,
}

impl std::fmt::Debug for Tcp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut tcp = f.debug_struct("Tcp");
        tcp.field("flows", &self.flows.len())
            .finish_non_exhaustive()
    }
}

impl Tcp {
    /// No connections; `seed` is random.
    pub fn new(ground: &mut Ground, seed: u64) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let now = smoltcp::time::Instant::ZERO;
        let mut interface = Interface::new(config, &mut ground.link.port(None), now);
        // Every address that the guest sends to is one of ours.
        interface.set_any_ip(true);
        interface.update_ip_addrs(|addresses| {
            // There is room for one.
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(GATEWAY), 24));
        });
        Self {
            interface,
            began: ground.now,
            flows: HashMap::new(),
            by_ends: HashMap::new(),
            next_id: 0,
            next_port: FORWARD_PORTS.start,
            connecting: 0,
            touched: Vec::new(),
            held_up: Vec::new(),
            timers: BinaryHeap::new(),
            nobody: SocketSet::new(Vec::new()),
        }
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    fn time(&self, now: Instant) -> smoltcp::time::Instant {
        let micros = now.saturating_duration_since(self.began).as_micros();
        smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// A packet of the guest; `syn` and `rst` are its flags.
    pub fn packet(&mut self, ground: &mut Ground, ends: Ends, packet: &[u8], syn: bool, rst: bool) {
        let now = self.time(ground.now);
        let Some(id) = self.by_ends.get(&ends).copied() else {
            if syn {
                self.begin(ground, ends, packet);
            } else {
                self.refuse(ground, packet);
            }
            return;
        };
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        if let Some(sockets) = flow.hears(packet.len()) {
            let mut port = ground.link.port(Some(packet));
            self.interface.poll_ingress_single(now, &mut port, sockets);
            self.touched.push(id);
        } else if rst && matches!(flow.stage, Stage::Connecting { .. }) {
            self.remove(id);
        }
    }

    /// Answers a packet that is nobody's with a reset.
    fn refuse(&mut self, ground: &mut Ground, packet: &[u8]) {
        let now = self.time(ground.now);
        let mut port = ground.link.port(Some(packet));
        let nobody = &mut self.nobody;
        self.interface.poll_ingress_single(now, &mut port, nobody);
    }

    /// Connects to where the guest wants to.
    fn begin(&mut self, ground: &mut Ground, ends: Ends, packet: &[u8]) {
        let full = self.flows.len() >= MAX_FLOWS || self.connecting >= MAX_CONNECTING;
        if full || packet.len() > MAX_SYN_BYTES {
            return self.refuse(ground, packet);
        }
        let to = if ends.far == SocketAddrV4::new(DNS_SERVER, crate::servers::DNS_PORT) {
            // What goes through it is not read, so it is there only where names do not matter.
            let server = ground.servers.first().copied();
            server.filter(|_| !ground.policy.reads_names())
        } else if ground.allows(Protocol::Tcp, ends.guest_port, ends.far) {
            let address = host::address(*ends.far.ip());
            Some(SocketAddr::from((address, ends.far.port())))
        } else {
            None
        };
        let connected = to.map(|to| host::connect(SocketType::STREAM, to));
        let Some(Ok(socket)) = connected else {
            return self.refuse(ground, packet);
        };
        let syn = packet.to_vec();
        if self
            .add(ground, ends, socket, Stage::Connecting { syn })
            .is_some()
        {
            self.connecting = self.connecting.saturating_add(1);
        } else {
            self.refuse(ground, packet);
        }
    }

    /// A program of the host has connected to a port that leads to `guest_port`.
    pub fn forward(&mut self, ground: &mut Ground, socket: OwnedFd, guest_port: u16) {
        if self.flows.len() >= MAX_FLOWS {
            return;
        }
        let Some(ends) = self.free_ends(guest_port) else {
            return;
        };
        let stage = Stage::open(self.flows.len());
        let Some(id) = self.add(ground, ends, socket, stage) else {
            return;
        };
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        let context = self.interface.context();
        let remote = (IpAddress::Ipv4(GUEST), guest_port);
        let local = (IpAddress::Ipv4(*ends.far.ip()), ends.far.port());
        let connected = flow
            .guest_side()
            .map(|socket| socket.connect(context, remote, local));
        if !matches!(connected, Some(Ok(()))) {
            return self.remove(id);
        }
        self.serve(ground, id);
    }

    /// Ends that no connection has.
    fn free_ends(&mut self, guest_port: u16) -> Option<Ends> {
        for _ in FORWARD_PORTS {
            let port = self.next_port;
            let next = port.saturating_add(1);
            self.next_port = if FORWARD_PORTS.contains(&next) {
                next
            } else {
                FORWARD_PORTS.start
            };
            let ends = Ends {
                guest_port,
                far: SocketAddrV4::new(GATEWAY, port),
            };
            if !self.by_ends.contains_key(&ends) {
                return Some(ends);
            }
        }
        None
    }

    fn add(&mut self, ground: &Ground, ends: Ends, socket: OwnedFd, stage: Stage) -> Option<u64> {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        let token = Token {
            kind: Kind::Tcp,
            id,
        };
        host::watch(&ground.epoll, &socket, token, WATCHED).ok()?;
        self.by_ends.insert(ends, id);
        self.flows.insert(id, Flow::new(ends, socket, stage));
        Some(id)
    }

    fn remove(&mut self, id: u64) {
        let Some(flow) = self.flows.remove(&id) else {
            return;
        };
        if matches!(flow.stage, Stage::Connecting { .. }) {
            self.connecting = self.connecting.saturating_sub(1);
        }
        if self.by_ends.get(&flow.ends) == Some(&id) {
            self.by_ends.remove(&flow.ends);
        }
    }

    /// Something happened on the host's side.
    pub fn event(&mut self, ground: &mut Ground, id: u64, events: EventFlags) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        flow.ready(events);
        if matches!(flow.stage, Stage::Connecting { .. }) {
            if !events.intersects(EventFlags::OUT | EventFlags::ERR | EventFlags::HUP) {
                return;
            }
            self.connecting = self.connecting.saturating_sub(1);
            let connected = rustix::net::sockopt::socket_error(&flow.host);
            let connected = matches!(connected, Ok(Ok(())));
            let count = self.flows.len();
            let Some(flow) = self.flows.get_mut(&id) else {
                return;
            };
            let Some(syn) = flow.connected(count) else {
                return;
            };
            if !connected {
                self.remove(id);
                return self.refuse(ground, &syn);
            }
            let now = self.time(ground.now);
            let mut port = ground.link.port(Some(&syn));
            if let Some(Stage::Open { sockets, .. }) =
                self.flows.get_mut(&id).map(|flow| &mut flow.stage)
            {
                self.interface.poll_ingress_single(now, &mut port, sockets);
            }
        }
        self.serve(ground, id);
    }

    /// Serves all that packets have come for.
    pub fn serve_touched(&mut self, ground: &mut Ground) {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        for id in touched.drain(..) {
            self.serve(ground, id);
        }
        self.touched = touched;
    }

    /// Serves all that were held up.
    pub fn serve_held_up(&mut self, ground: &mut Ground) {
        for id in std::mem::take(&mut self.held_up) {
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.held_up = false;
            }
            self.serve(ground, id);
        }
    }

    /// Serves all whose time has come; when the next one's does. Most times are put off before they come, as answers do: the
    /// list learns of it here, for those that stand first.
    pub fn serve_timers(&mut self, ground: &mut Ground) -> Option<Instant> {
        while let Some(Reverse((at, id))) = self.timers.peek().copied() {
            let flow = self.flows.get_mut(&id);
            let Some(flow) = flow.filter(|flow| flow.due == Some(at)) else {
                self.timers.pop();
                continue;
            };
            let wanted = flow.wanted;
            if wanted == Some(at) && at > ground.now {
                return Some(at);
            }
            self.timers.pop();
            flow.due = None;
            match wanted {
                Some(later) if later > at => {
                    flow.due = Some(later);
                    self.timers.push(Reverse((later, id)));
                }
                Some(_) => self.serve(ground, id),
                None => {}
            }
        }
        None
    }

    /// Moves what can be moved of a connection.
    fn serve(&mut self, ground: &mut Ground, id: u64) {
        let now = self.time(ground.now);
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        flow.pump();
        flow.wanted = None;
        let mut wanted = None;
        if let Stage::Open { sockets, .. } = &mut flow.stage {
            let mut port = ground.link.port(None);
            while self.interface.poll_egress(now, &mut port, sockets) != PollResult::None {}
            wanted = self.interface.poll_at(now, sockets);
        }
        if !ground.link.is_blocked() {
            flow.settle();
        }
        if flow.is_over(ground.link.is_blocked()) {
            return self.remove(id);
        }
        if matches!(flow.stage, Stage::Draining { .. }) {
            // The guest may use its port again.
            if self.by_ends.get(&flow.ends) == Some(&id) {
                self.by_ends.remove(&flow.ends);
            }
            return;
        }
        let Some(wanted) = wanted else {
            return;
        };
        if wanted <= now && ground.link.is_blocked() {
            if !flow.held_up {
                flow.held_up = true;
                self.held_up.push(id);
            }
            return;
        }
        let wait = wanted.total_micros().saturating_sub(now.total_micros());
        let wait = Duration::from_micros(u64::try_from(wait).unwrap_or(0)).max(AGAIN);
        flow.wanted = ground.now.checked_add(wait);
        if let Some(wanted) = flow.wanted
            && flow.due.is_none_or(|due| wanted < due)
        {
            flow.due = Some(wanted);
            self.timers.push(Reverse((wanted, id)));
        }
    }
}
