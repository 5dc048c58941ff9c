//! The network: its event loop.

mod frames;
mod ground;

pub use ground::{Ground, Settings};

use crate::dns::Dns;
use crate::forward::Listener;
use crate::host::{self, Kind, Token};
use crate::link::{Link, MAX_MESSAGE_BYTES};
use crate::log::Log;
use crate::ping::Ping;
use crate::policy::Protocol;
use crate::tcp::Tcp;
use crate::udp::Udp;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

/// After a frame has come alone, nobody asks for another one behind so many.
const ALONE_FRAMES: u32 = 16;
/// Frames of the guest before its connections have their turn.
const TURN_FRAMES: usize = 64;
/// Connections to forwarded ports that are taken at a time.
const TURN_ACCEPTED: usize = 16;
/// Events that are looked at together.
const EVENTS: usize = 128;
/// How often what nobody uses is looked for.
const SWEEP: Duration = Duration::from_secs(5);

/// Why a network cannot be, or not any more.
#[derive(Debug, thiserror::Error)]
#[error("the user network: {step}: {errno}")]
pub struct NetworkError {
    step: &'static str,
    errno: Errno,
}

fn failed(step: &'static str) -> impl Fn(Errno) -> NetworkError {
    move |errno| NetworkError { step, errno }
}

/// A user-mode network.
#[derive(Debug)]
pub struct Network {
    ground: Ground,
    tcp: Tcp,
    udp: Udp,
    ping: Ping,
    dns: Dns,
    listeners: Vec<Listener>,
    buffer: Vec<u8>,
    /// The guest may have sent more.
    readable: bool,
    /// Frames that are taken to come alone.
    alone: u32,
    /// The link is watched for room as well.
    watches_room: bool,
    swept: Instant,
}

impl Network {
    /// Builds a network; nothing is moved yet.
    ///
    /// # Errors
    /// The system has no more descriptors.
    pub fn new(settings: Settings) -> Result<Self, NetworkError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed("epoll_create"))?;
        let link = Link::new(settings.link, settings.guest_mac, settings.mtu);
        let token = |kind, id| Token { kind, id };
        host::watch(
            &epoll,
            link.socket(),
            token(Kind::Link, 0),
            link_flags(false),
        )
        .map_err(failed("epoll_ctl"))?;
        for (index, listener) in (0..).zip(&settings.listeners) {
            let token = token(Kind::Forward, index);
            host::watch(&epoll, &listener.socket, token, EventFlags::IN)
                .map_err(failed("epoll_ctl"))?;
        }
        let mut seed = [0; 8];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
            .map_err(failed("getrandom"))?;
        let now = Instant::now();
        let mut ground = Ground {
            link,
            epoll,
            policy: settings.policy,
            servers: settings.servers,
            log: Log::new(settings.log, now),
            now,
        };
        let tcp = Tcp::new(&mut ground, u64::from_ne_bytes(seed));
        Ok(Self {
            ground,
            tcp,
            udp: Udp::default(),
            ping: Ping::default(),
            dns: Dns::default(),
            listeners: settings.listeners,
            buffer: vec![0; MAX_MESSAGE_BYTES],
            readable: true,
            alone: 0,
            watches_room: false,
            swept: now,
        })
    }

    /// How many TCP connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.tcp.len()
    }

    /// Serves the guest until its side of the link is closed.
    ///
    /// # Errors
    /// The system's, of waiting.
    pub fn run(&mut self) -> Result<(), NetworkError> {
        let longest = Duration::from_secs(3600);
        while self.turn(longest)? {}
        Ok(())
    }

    /// Waits for at most so long until something happens, and serves it; false once the guest's side is closed.
    ///
    /// # Errors
    /// The system's, of waiting.
    pub fn turn(&mut self, longest: Duration) -> Result<bool, NetworkError> {
        self.ground.now = Instant::now();
        let until = self.serve_timers();
        let wait = until
            .saturating_duration_since(self.ground.now)
            .min(longest);
        let wait = if self.readable { Duration::ZERO } else { wait };
        let mut events = [const { MaybeUninit::<epoll::Event>::uninit() }; EVENTS];
        let (events, _) = match epoll::wait(&self.ground.epoll, &mut events, Some(&timespec(wait)))
        {
            Ok(events) => events,
            Err(Errno::INTR) => return Ok(true),
            Err(errno) => return Err(failed("epoll_wait")(errno)),
        };
        self.ground.now = Instant::now();
        for event in events.iter() {
            if let Some(token) = Token::of(event.data) {
                self.event(token, event.flags);
            }
        }
        self.serve_link();
        self.watch_room()?;
        Ok(!self.ground.link.is_closed())
    }

    /// Has the link watched for room while something waits for it, and only then: it has room each time that the guest's side
    /// takes a frame.
    fn watch_room(&mut self) -> Result<(), NetworkError> {
        let blocked = self.ground.link.is_blocked();
        if blocked != self.watches_room {
            let token = Token {
                kind: Kind::Link,
                id: 0,
            };
            let flags = link_flags(blocked);
            host::watch_again(&self.ground.epoll, self.ground.link.socket(), token, flags)
                .map_err(failed("epoll_ctl"))?;
            self.watches_room = blocked;
        }
        Ok(())
    }

    /// Serves what is due; when to look again.
    fn serve_timers(&mut self) -> Instant {
        let now = self.ground.now;
        if now.saturating_duration_since(self.swept) >= SWEEP {
            self.swept = now;
            self.udp.sweep(now);
            self.ping.sweep(now);
        }
        let sweep = self.swept.checked_add(SWEEP);
        let tcp = self.tcp.serve_timers(&mut self.ground);
        let dns = self.dns.serve_timers(&mut self.ground);
        [tcp, dns, sweep].into_iter().flatten().min().unwrap_or(now)
    }

    fn event(&mut self, token: Token, flags: EventFlags) {
        let (ground, buffer) = (&mut self.ground, self.buffer.as_mut_slice());
        match token.kind {
            Kind::Link => {
                self.readable |= flags.intersects(EventFlags::IN | EventFlags::HUP);
                if flags.contains(EventFlags::OUT) && ground.link.is_blocked() {
                    ground.link.flush();
                }
            }
            Kind::Tcp => self.tcp.event(ground, token.id, flags),
            Kind::Udp => self.udp.event(ground, token.id, buffer),
            Kind::Ping => self.ping.event(ground, token.id, buffer),
            Kind::Dns => self.dns.event(ground, token.id, buffer),
            Kind::Forward => self.forward(token.id),
        }
    }

    /// Takes a turn's frames from the guest, then serves the connections that they are of.
    fn serve_link(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        for count in 0..TURN_FRAMES {
            if !self.readable {
                break;
            }
            match self.ground.link.receive(&mut buffer) {
                Some(frame) => {
                    // The link is watched by level: what has come meanwhile is told of.
                    self.readable = self.alone == 0;
                    self.alone = self.alone.saturating_sub(1);
                    self.frame(frame);
                }
                None => {
                    self.readable = false;
                    match count {
                        0 => {}
                        1 => self.alone = ALONE_FRAMES,
                        _ => self.alone = 0,
                    }
                }
            }
        }
        self.buffer = buffer;
        self.tcp.serve_touched(&mut self.ground);
        if !self.ground.link.is_blocked() {
            self.tcp.serve_held_up(&mut self.ground);
        }
    }

    /// A program of the host uses a forwarded port.
    fn forward(&mut self, index: u64) {
        let Ok(index) = usize::try_from(index) else {
            return;
        };
        let Some(listener) = self.listeners.get(index) else {
            return;
        };
        let (ground, guest_port) = (&mut self.ground, listener.forward.guest_port);
        if listener.forward.protocol == Protocol::Udp {
            let (socket, buffer) = (&listener.socket, self.buffer.as_mut_slice());
            return self.udp.forward(ground, index, socket, guest_port, buffer);
        }
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        for _ in 0..TURN_ACCEPTED {
            match rustix::net::accept_with(&listener.socket, flags) {
                Ok(socket) => {
                    // It matters for speed only.
                    let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
                    self.tcp.forward(ground, socket, guest_port);
                }
                Err(_) => return,
            }
        }
    }
}

/// What the link is watched for, for as long as it is so.
const fn link_flags(room: bool) -> EventFlags {
    if room {
        EventFlags::IN.union(EventFlags::OUT)
    } else {
        EventFlags::IN
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}
