//! The guest's DNS server: it passes queries on to the host's, and their answers back.
//!
//! Queries and answers go through whole and as they are, but for the identifier, which is drawn anew: each query has a
//! socket of its own that only hears its server. They are read only to know the names.

use crate::frame;
use crate::host::{self, Kind, Token};
use crate::network::Ground;
use crate::servers::DNS_PORT;
use crate::{DNS_SERVER, GUEST};
use domain::base::iana::{Opcode, Rcode};
use domain::base::{Message, MessageBuilder};
use domain::rdata::{A, Cname};
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketType};
use std::collections::HashMap;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddrV4};
use std::time::{Duration, Instant};

/// Most queries that wait for an answer.
const MAX_QUERIES: usize = 256;
/// Longest query in bytes.
const MAX_QUERY_BYTES: usize = 4096;
/// A server has so long to answer, then the next one is asked.
const PATIENCE: Duration = Duration::from_secs(3);
/// Length of a message's header in bytes. RFC 1035 §4.1.1.
const HEADER_BYTES: usize = 12;
/// Most records of an answer that are read.
const MAX_RECORDS: usize = 256;

/// A query that waits for its answer.
#[derive(Debug)]
struct Query {
    socket: OwnedFd,
    guest_port: u16,
    /// As the guest has sent it.
    bytes: Vec<u8>,
    /// The identifier that the server sees.
    id: [u8; 2],
    /// The name that it asks for; none if names do not matter.
    name: Option<String>,
    /// Which server is asked.
    server: usize,
    until: Instant,
}

/// All queries.
#[derive(Debug, Default)]
pub struct Dns {
    queries: HashMap<u64, Query>,
    next_id: u64,
}

/// The identifier of a message, and the rest.
fn split(message: &[u8]) -> Option<([u8; 2], &[u8])> {
    let (id, rest) = message.split_first_chunk::<2>()?;
    (message.len() >= HEADER_BYTES).then_some((*id, rest))
}

/// A name in lower case, without the dot at its end.
fn text(name: &impl Display) -> String {
    let text = name.to_string().to_ascii_lowercase();
    text.strip_suffix('.').unwrap_or(&text).to_owned()
}

/// The one name that a query asks for.
fn asked(bytes: &[u8]) -> Option<String> {
    let message = Message::from_octets(bytes).ok()?;
    let header = message.header();
    if header.qr() || header.opcode() != Opcode::QUERY {
        return None;
    }
    Some(text(&message.sole_question().ok()?.qname()))
}

/// What an answer says.
struct Answer {
    /// Names that stand for the one that was asked for.
    names: Vec<String>,
    /// With how many seconds each lasts.
    addresses: Vec<(IpAddr, u32)>,
}

/// Reads an answer.
fn answered(bytes: &[u8]) -> Option<Answer> {
    let message = Message::from_octets(bytes).ok()?;
    let records = || message.answer().ok();
    let mut names = Vec::new();
    for record in records()?.limit_to::<Cname<_>>().take(MAX_RECORDS) {
        names.push(text(record.ok()?.data().cname()));
    }
    let mut addresses = Vec::new();
    for record in records()?.limit_to::<A>().take(MAX_RECORDS) {
        let record = record.ok()?;
        addresses.push((record.data().addr().into(), record.ttl().as_secs()));
    }
    Some(Answer { names, addresses })
}

/// An answer that says that there is none.
fn refusal(bytes: &[u8]) -> Option<Vec<u8>> {
    let message = Message::from_octets(bytes).ok()?;
    if message.header().qr() {
        return None;
    }
    let answer = MessageBuilder::new_vec().start_answer(&message, Rcode::REFUSED);
    Some(answer.ok()?.finish())
}

fn reply(ground: &mut Ground, guest_port: u16, message: &[u8]) {
    let from = SocketAddrV4::new(DNS_SERVER, DNS_PORT);
    let to = SocketAddrV4::new(GUEST, guest_port);
    if let Some(packet) = frame::udp(from, to, message) {
        ground.link.send(&packet);
    }
}

fn refuse(ground: &mut Ground, guest_port: u16, query: &[u8]) {
    if let Some(message) = refusal(query) {
        reply(ground, guest_port, &message);
    }
}

impl Dns {
    /// A query of the guest.
    pub fn packet(&mut self, ground: &mut Ground, guest_port: u16, bytes: &[u8]) {
        if bytes.len() > MAX_QUERY_BYTES || self.queries.len() >= MAX_QUERIES {
            return;
        }
        let Some((guest_id, _)) = split(bytes) else {
            return;
        };
        let mut name = None;
        if ground.policy.reads_names() {
            name = asked(bytes);
            let allowed = name
                .as_ref()
                .is_some_and(|name| ground.policy.resolves(name));
            if !allowed {
                let said = name.as_deref().unwrap_or("what is not one name");
                let now = ground.now;
                ground.log.line(
                    now,
                    format_args!("denied dns {said}: no rule lets it be resolved"),
                );
                return refuse(ground, guest_port, bytes);
            }
        }
        // The guest asks again before it has an answer.
        let again =
            |query: &Query| query.guest_port == guest_port && query.bytes.starts_with(&guest_id);
        if self.queries.values().any(again) {
            return;
        }
        self.ask(ground, guest_port, bytes.to_vec(), name, 0);
    }

    /// Asks the server with this number, or one after it.
    fn ask(
        &mut self,
        ground: &mut Ground,
        guest_port: u16,
        bytes: Vec<u8>,
        name: Option<String>,
        first: usize,
    ) {
        let servers = ground.servers.clone();
        for (server, address) in servers.iter().enumerate().skip(first) {
            let id = self.next_id;
            let Ok((socket, own_id)) = self.send(ground, *address, &bytes) else {
                continue;
            };
            let query = Query {
                socket,
                guest_port,
                bytes,
                id: own_id,
                name,
                server,
                until: ground.now.checked_add(PATIENCE).unwrap_or(ground.now),
            };
            self.queries.insert(id, query);
            return;
        }
        // Nobody is left: the guest asks again, or gives up.
    }

    fn send(
        &mut self,
        ground: &Ground,
        to: std::net::SocketAddr,
        bytes: &[u8],
    ) -> Result<(OwnedFd, [u8; 2]), Errno> {
        let mut own_id = [0; 2];
        rustix::rand::getrandom(&mut own_id, rustix::rand::GetRandomFlags::empty())?;
        let (_, rest) = split(bytes).ok_or(Errno::INVAL)?;
        let socket = host::connect(SocketType::DGRAM, to)?;
        let token = Token {
            kind: Kind::Dns,
            id: self.next_id,
        };
        self.next_id = self.next_id.wrapping_add(1);
        host::watch(&ground.epoll, &socket, token, EventFlags::IN)?;
        let message = [&own_id, rest].concat();
        rustix::net::send(&socket, &message, SendFlags::NOSIGNAL)?;
        Ok((socket, own_id))
    }

    /// A server has answered.
    pub fn event(&mut self, ground: &mut Ground, id: u64, buffer: &mut [u8]) {
        let Some(query) = self.queries.get(&id) else {
            return;
        };
        let got = rustix::net::recv(&query.socket, &mut *buffer, RecvFlags::empty());
        let message = match got {
            Ok((len, _)) => buffer.get(..len).unwrap_or_default(),
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => return self.next_server(ground, id),
        };
        let Some((_, rest)) = split(message).filter(|(own_id, _)| *own_id == query.id) else {
            return;
        };
        // An answer has its question's words behind the header.
        let is_answer = rest.first().is_some_and(|flags| flags & 0x80 != 0);
        let Some(query) = is_answer.then(|| self.queries.remove(&id)).flatten() else {
            return;
        };
        if let Some(name) = &query.name {
            if asked_again(message).as_ref() != Some(name) {
                return;
            }
            let Some(answer) = answered(message) else {
                return refuse(ground, query.guest_port, &query.bytes);
            };
            if answer
                .names
                .iter()
                .any(|name| ground.policy.denies_name(name))
            {
                return refuse(ground, query.guest_port, &query.bytes);
            }
            let now = ground.now;
            ground.policy.learn(name, &answer.addresses, now);
        }
        let Some((guest_id, _)) = split(&query.bytes) else {
            return;
        };
        let message = [&guest_id, rest].concat();
        reply(ground, query.guest_port, &message);
    }

    fn next_server(&mut self, ground: &mut Ground, id: u64) {
        if let Some(query) = self.queries.remove(&id) {
            let next = query.server.saturating_add(1);
            self.ask(ground, query.guest_port, query.bytes, query.name, next);
        }
    }

    /// Asks the next server where one has not answered in time; when that is to be looked at again.
    pub fn serve_timers(&mut self, ground: &mut Ground) -> Option<Instant> {
        let late = |(_, query): &(&u64, &Query)| query.until <= ground.now;
        let late: Vec<u64> = self
            .queries
            .iter()
            .filter(late)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            self.next_server(ground, id);
        }
        self.queries.values().map(|query| query.until).min()
    }
}

/// The name that an answer's question has.
fn asked_again(bytes: &[u8]) -> Option<String> {
    let message = Message::from_octets(bytes).ok()?;
    Some(text(&message.sole_question().ok()?.qname()))
}
