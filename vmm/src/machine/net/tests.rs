//! A card on a tap device of this machine's kernel, in a network of its own: needs root and `/dev/net/tun`.

#![allow(clippy::cast_possible_truncation)] // small numbers

use super::super::tap::{TapError, open_tap};
use super::*;
use event_manager::{EventManager, SubscriberOps};
use instar_devices::net::{RX_QUEUE, TX_QUEUE};
use instar_devices::virtio::Memory;
use instar_devices::virtio::driver::{DRIVER_BYTES, Driver};
use instar_devices::virtio::testing::Told;
use rustix::thread::UnshareFlags;
use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

const BASE: u64 = 0x10_0000;
const DATA: u64 = BASE + 3 * DRIVER_BYTES;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// `VIRTIO_NET_F_GUEST_CSUM`, `VIRTIO_NET_F_MRG_RXBUF`, `VIRTIO_F_EVENT_IDX`.
const FEATURES: u64 = 1 << 1 | 1 << 15 | 1 << 29;

/// This thread, and programs that it starts, have a network of their own.
fn own_network() {
    // SAFETY: nothing of this thread depends on which network it is in.
    let done = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
    done.expect("a network of its own, which needs root");
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).status();
    assert!(done.expect("the program ip").success(), "ip {arguments}");
}

struct Bed {
    mem: Memory,
    rx: Driver,
    tx: Driver,
    device: SharedDevice,
    queues: Arc<QueueEvents>,
    events: EventManager<events::Subscriber>,
    rx_at: BTreeMap<u16, u64>,
    sent: u64,
}

impl Bed {
    fn new(name: &str) -> Self {
        let tap = open_tap(name).unwrap();
        ip(&format!("addr add 10.9.0.1/24 dev {name}"));
        ip(&format!("link set {name} up"));
        let wired = wire(Net {
            wire: super::super::parts::Wire::Tap(tap),
            name: name.to_owned(),
            mac: MAC,
        });
        let wired = wired.unwrap();
        let mem = Memory::from_ranges(&[(GuestAddress(BASE), 4 << 20)]).unwrap();
        let driver = |n| Driver::new(&mem, BASE + n * DRIVER_BYTES, 64, FEATURES);
        let (rx, tx, control) = (driver(0), driver(1), driver(2));
        let activation = Told::new().activation(&mem, FEATURES, &[&rx, &tx, &control]);
        wired.device.lock().unwrap().activate(activation);
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(wired.subscriber);
        let mut bed = Self {
            mem,
            rx,
            tx,
            device: wired.device,
            queues: wired.queues,
            events,
            rx_at: BTreeMap::new(),
            sent: 0,
        };
        for n in 0..32 {
            bed.give(DATA + n * 0x1000);
        }
        bed
    }

    fn give(&mut self, at: u64) {
        let head = self.rx.add(&[(at, 0x1000, true)], false).unwrap();
        self.rx_at.insert(head, at);
        if self.rx.must_kick() {
            self.queues.events()[usize::from(RX_QUEUE)]
                .write(1)
                .unwrap();
        }
    }

    /// The next packet that `wanted` likes; others are none of ours, such as those of IPv6.
    fn next(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            assert!(Instant::now() < end, "no packet came");
            self.events.run_with_timeout(5).unwrap();
            while let Some((head, written)) = self.rx.take_used() {
                let at = self.rx_at.remove(&head).unwrap();
                let mut bytes = vec![0; written as usize];
                self.mem.read_slice(&mut bytes, GuestAddress(at)).unwrap();
                self.give(at);
                assert_eq!(bytes[10..12], [1, 0]);
                if wanted(&bytes[12..]) {
                    return bytes;
                }
            }
        }
    }

    fn send(&mut self, frame: &[u8]) {
        let at = DATA + 0x10_0000 + self.sent % 16 * 0x1000;
        self.sent += 1;
        let packet = [&[0; 12], frame].concat();
        self.mem.write_slice(&packet, GuestAddress(at)).unwrap();
        self.tx.add(
            &[(at, 12, false), (at + 12, frame.len() as u32, false)],
            false,
        );
        if self.tx.must_kick() {
            self.queues.events()[usize::from(TX_QUEUE)]
                .write(1)
                .unwrap();
        }
        let end = Instant::now() + Duration::from_secs(120);
        while self.tx.take_used().is_none() {
            assert!(Instant::now() < end, "the packet is not sent");
            self.events.run_with_timeout(5).unwrap();
        }
    }

    /// Answers who has 10.9.0.2: the guest.
    fn answer_arp(&mut self) -> [u8; 6] {
        let request = self.next(|frame| frame[12..14] == [8, 6] && frame[38..42] == [10, 9, 0, 2]);
        let host: [u8; 6] = request[12 + 6..12 + 12].try_into().unwrap();
        let mut reply = Vec::new();
        reply.extend([&host[..], &MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]].concat());
        reply.extend([&MAC[..], &[10, 9, 0, 2], &host, &[10, 9, 0, 1]].concat());
        self.send(&reply);
        host
    }
}

/// An IPv4 packet with UDP from the guest to port `port` of the host, its checksum left out.
fn datagram(host: [u8; 6], port: u16, text: &[u8]) -> Vec<u8> {
    let udp_len = 8 + text.len() as u16;
    let mut ip = vec![
        0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1,
    ];
    ip[2..4].copy_from_slice(&(20 + udp_len).to_be_bytes());
    let words = ip
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = [&host[..], &MAC, &[8, 0], &ip].concat();
    for word in [4000, port, udp_len, 0] {
        frame.extend(word.to_be_bytes());
    }
    frame.extend(text);
    frame
}

#[test]
fn packets_go_through_the_kernel_both_ways() {
    own_network();
    let mut bed = Bed::new("instartest0");
    let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
    let is_udp = |frame: &[u8]| frame[12..14] == [8, 0] && frame[23] == 17;
    let mut host = None;
    for round in 0..3 {
        socket.send_to(b"to the guest", "10.9.0.2:4000").unwrap();
        let host = *host.get_or_insert_with(|| bed.answer_arp());
        let got = bed.next(is_udp);
        assert_eq!(got[12 + 42..], *b"to the guest");
        // The checksum is the guest's to fill in, which it has accepted.
        assert_eq!(got[0] & 1, 1, "VIRTIO_NET_HDR_F_NEEDS_CSUM");
        let port = socket.local_addr().unwrap().port();
        bed.send(&datagram(host, port, b"to the host"));
        socket
            .set_read_timeout(Some(Duration::from_secs(120)))
            .unwrap();
        let mut text = [0; 100];
        let (len, from) = socket.recv_from(&mut text).unwrap();
        assert_eq!(&text[..len], b"to the host");
        assert_eq!(from, "10.9.0.2:4000".parse().unwrap());
        if round == 1 {
            bed.recycle();
        }
    }
}

impl Bed {
    /// Saves the device, and restores it with the same queues.
    fn recycle(&mut self) {
        let mut device = self.device.lock().unwrap();
        let state = device.save();
        let control = Driver::new(&self.mem, BASE + 2 * DRIVER_BYTES, 64, FEATURES);
        let told = Told::new();
        let activation = told.activation(&self.mem, FEATURES, &[&self.rx, &self.tx, &control]);
        device.reset();
        device.restore(&state, Some(activation)).unwrap();
        self.queues.wake();
    }
}

#[test]
fn taps_that_cannot_be_used_say_why() {
    own_network();
    let first = open_tap("instartest1").unwrap();
    let refused = |name: &str| open_tap(name).unwrap_err();
    assert!(matches!(refused("instartest1"), TapError::Busy { .. }));
    assert!(matches!(refused("lo"), TapError::NotTap { .. }));
    for name in [
        "",
        ".",
        "..",
        "tap%d",
        "a/b",
        "a b",
        "sixteen_bytes_on",
        "a\0b",
    ] {
        assert!(matches!(refused(name), TapError::Name { .. }), "{name:?}");
    }
    drop(first);
    open_tap("instartest1").unwrap();
}
