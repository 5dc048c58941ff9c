//! Names: queries, answers, and what they let a guest reach.

use super::guest::{Bed, Guest, closed};
use crate::DNS_SERVER;
use crate::policy::{Policy, Protocol, Target, Verdict};
use domain::base::iana::Rcode;
use domain::base::{Message, MessageBuilder, Name, Record, Rtype, Ttl};
use domain::rdata::{A, Cname};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

type Text = Name<Vec<u8>>;

fn name(text: &str) -> Text {
    text.parse().unwrap()
}

fn query(id: u16, text: &str) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(id);
    builder.header_mut().set_rd(true);
    let mut question = builder.question();
    question.push((name(text), Rtype::A)).unwrap();
    question.finish()
}

/// A DNS server that knows `alias` as another name for `bad`; all names have `address`, but that `rebind` has one of a LAN.
pub fn server(address: Ipv4Addr) -> (SocketAddr, UdpSocket) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = socket.local_addr().unwrap();
    let own = socket.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((len, peer)) = own.recv_from(&mut buffer) {
            if len == 1 {
                return;
            }
            let message = Message::from_octets(&buffer[..len]).unwrap();
            let asked = message.sole_question().unwrap().qname().to_string();
            let builder = MessageBuilder::new_vec();
            let mut answer = builder.start_answer(&message, Rcode::NOERROR).unwrap();
            let ttl = Ttl::from_secs(60);
            let mut owner = asked.clone();
            if asked.starts_with("alias") {
                owner = "bad.example.com".into();
                let record = Cname::new(name(&owner));
                answer
                    .push(Record::new(
                        name(&asked),
                        domain::base::iana::Class::IN,
                        ttl,
                        record,
                    ))
                    .unwrap();
            }
            let lan = Ipv4Addr::new(192, 168, 1, 1);
            let rebind = asked.starts_with("rebind");
            let record = A::new(if rebind { lan } else { address });
            answer
                .push(Record::new(
                    name(&owner),
                    domain::base::iana::Class::IN,
                    ttl,
                    record,
                ))
                .unwrap();
            own.send_to(&answer.finish(), peer).unwrap();
        }
    });
    (at, socket)
}

pub fn stop(at: SocketAddr) {
    UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .send_to(b"x", at)
        .unwrap();
}

/// Asks; the answer's code and how many records it has.
pub fn ask(guest: &mut Guest, port: u16, text: &str) -> (Rcode, u16) {
    let to = SocketAddrV4::new(DNS_SERVER, 53);
    guest.send_udp(port, to, &query(port ^ 0x5555, text));
    let (from, own, payload) = guest.datagram();
    assert_eq!((from, own), (to, port));
    let message = Message::from_octets(payload).unwrap();
    assert_eq!(message.header().id(), port ^ 0x5555);
    assert!(message.header().qr());
    let asked = message.sole_question().unwrap().qname().to_string();
    assert!(asked.eq_ignore_ascii_case(text));
    (message.header().rcode(), message.header_counts().ancount())
}

#[test]
fn queries_go_to_the_hosts_servers() {
    let (at, _socket) = server(Ipv4Addr::new(1, 2, 3, 4));
    // The first one does not answer: its port is closed.
    let (port, _closed) = closed(Protocol::Udp);
    let bed = Bed {
        servers: vec![(Ipv4Addr::LOCALHOST, port).into(), at],
        ..Bed::default()
    };
    let mut guest = bed.start();
    assert_eq!(
        ask(&mut guest, 4000, "good.example.com"),
        (Rcode::NOERROR, 1)
    );
    assert_eq!(ask(&mut guest, 4001, "x.invalid"), (Rcode::NOERROR, 1));
    stop(at);
}

#[test]
fn only_allowed_names_are_resolved_when_all_is_denied() {
    let (at, _socket) = server(Ipv4Addr::new(1, 2, 3, 4));
    let bed = Bed {
        allow: vec!["*.example.com", "good.example.org:443"],
        deny: vec!["all", "bad.example.com"],
        servers: vec![at],
        ..Bed::default()
    };
    let mut guest = bed.start();
    let cases = [
        ("www.example.com", Rcode::NOERROR),
        ("WWW.Example.COM", Rcode::NOERROR),
        ("GOOD.example.org", Rcode::NOERROR),
        ("example.com", Rcode::REFUSED),
        ("bad.example.com", Rcode::REFUSED),
        // Another name of a denied one.
        ("alias.example.com", Rcode::REFUSED),
        ("example.org", Rcode::REFUSED),
        ("secret.leaks.example.net", Rcode::REFUSED),
        ("notexample.com", Rcode::REFUSED),
    ];
    for (index, (text, want)) in cases.into_iter().enumerate() {
        let (code, _) = ask(&mut guest, 4000 + index as u16, text);
        assert_eq!(code, want, "{text}");
    }
    stop(at);
}

#[test]
fn answers_open_what_their_names_are_allowed_for_as_long_as_they_last() {
    let rules = |texts: &[&str]| {
        texts
            .iter()
            .map(|text| (*text).to_owned())
            .collect::<Vec<_>>()
    };
    let allow = rules(&["tcp:www.example.com:443", "*.example.org"]);
    let mut policy = Policy::new(&allow, &rules(&["all", "8.8.4.4"])).unwrap();
    let now = Instant::now();
    let public: IpAddr = [93, 184, 216, 34].into();
    let lan: IpAddr = [192, 168, 1, 1].into();
    let decide = |policy: &Policy, protocol, address, port, at| {
        let target = Target {
            protocol,
            address,
            port,
            own: false,
        };
        policy.decide(&target, at) == Verdict::Allow
    };
    assert!(!decide(&policy, Protocol::Tcp, public, 443, now));
    policy.learn("www.example.com", &[(public, 300), (lan, 300)], now);
    assert!(decide(&policy, Protocol::Tcp, public, 443, now));
    assert!(!decide(&policy, Protocol::Tcp, public, 80, now));
    assert!(!decide(&policy, Protocol::Udp, public, 443, now));
    // An answer does not open the LAN, and no rule that denies an address.
    assert!(!decide(&policy, Protocol::Tcp, lan, 443, now));
    let denied: IpAddr = [8, 8, 4, 4].into();
    policy.learn("a.example.org", &[(denied, 300)], now);
    assert!(!decide(&policy, Protocol::Tcp, denied, 443, now));
    // Nobody else's answer opens anything.
    let other: IpAddr = [1, 1, 1, 1].into();
    policy.learn("example.net", &[(other, 300)], now);
    assert!(!decide(&policy, Protocol::Tcp, other, 443, now));
    assert!(!decide(
        &policy,
        Protocol::Tcp,
        public,
        443,
        now + Duration::from_secs(301)
    ));
}
