//! The device between a driver and a host that has packets and takes them.

#![allow(clippy::cast_possible_truncation)] // small numbers

use super::*;
use crate::virtio::driver::{Buf, DRIVER_BYTES, Driver};
use crate::virtio::testing::Told;
use crate::virtio::{DeviceState, Memory, RestoreError, VirtioDevice};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{Bytes, GuestAddress};

const BASE: u64 = 0x10_0000;
const DATA: u64 = BASE + 3 * DRIVER_BYTES;
const DATA_BYTES: u64 = 64 << 20;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const RINGS: u64 = 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// The host's side.
#[derive(Debug, Default)]
struct Host {
    to_guest: VecDeque<Vec<u8>>,
    from_guest: Vec<Vec<u8>>,
    /// Packets that it still takes.
    takes: usize,
    offloads: Offloads,
    asked: u32,
    error: Option<io::ErrorKind>,
    /// It tells of packets as long as there are some.
    tells_again: bool,
    /// A packet was taken in part only.
    holds_rest: bool,
}

impl NetBackend for Host {
    fn receive(&mut self, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.asked += 1;
        let Some(packet) = self.to_guest.pop_front() else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let mut rest = packet.as_slice();
        for slice in into {
            let (now, later) = rest.split_at(rest.len().min(slice.len()));
            slice.copy_from(now);
            rest = later;
        }
        Ok(packet.len() - rest.len())
    }

    fn send(&mut self, from: &[VolatileSlice<'_>]) -> io::Result<()> {
        if let Some(error) = self.error.take() {
            return Err(error.into());
        }
        if self.takes == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.takes -= 1;
        let mut packet = Vec::new();
        for slice in from {
            let mut bytes = vec![0_u8; slice.len()];
            slice.copy_to(&mut bytes);
            packet.extend(bytes);
        }
        self.from_guest.push(packet);
        Ok(())
    }

    fn set_offloads(&mut self, offloads: Offloads) {
        self.offloads = offloads;
    }

    fn tells_again(&self) -> bool {
        self.tells_again
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.holds_rest {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(())
    }
}

struct Bed {
    mem: Memory,
    drivers: [Driver; 3],
    device: NetDevice<Host>,
    told: Arc<Told>,
    features: u64,
    /// By head: the buffers of a chain in the receive queue.
    given: BTreeMap<u16, Vec<Buf>>,
    next: u64,
}

impl Bed {
    fn new(features: u64) -> Self {
        let mem = Memory::from_ranges(&[(GuestAddress(BASE), (DATA_BYTES + DATA - BASE) as usize)]);
        let mem = mem.unwrap();
        let driver = |n, size| Driver::new(&mem, BASE + n * DRIVER_BYTES, size, features);
        let mut bed = Self {
            drivers: [driver(0, 256), driver(1, 256), driver(2, 64)],
            device: NetDevice::new(
                MAC,
                Host {
                    takes: usize::MAX,
                    ..Host::default()
                },
            ),
            told: Told::new(),
            features,
            given: BTreeMap::new(),
            next: 0,
            mem,
        };
        let activation = bed.activation();
        bed.device.activate(activation);
        bed
    }

    fn activation(&self) -> crate::virtio::Activation {
        let [a, b, c] = &self.drivers;
        self.told.activation(&self.mem, self.features, &[a, b, c])
    }

    /// Memory that nothing else has for now.
    fn place(&mut self, len: u64) -> u64 {
        if self.next + len > DATA_BYTES {
            self.next = 0;
        }
        let at = DATA + self.next;
        self.next += len;
        at
    }

    /// Gives the device a chain of buffers of these lengths to receive in.
    fn give(&mut self, lens: &[u32], table: bool) -> bool {
        let mut buffers = Vec::new();
        for len in lens {
            let at = self.place(u64::from(*len) + 3);
            buffers.push((at, *len, true));
        }
        let head = self.drivers[0].add(&buffers, table);
        head.inspect(|head| _ = self.given.insert(*head, buffers))
            .is_some()
    }

    fn kick(&mut self, index: u16) {
        if self.drivers[usize::from(index)].must_kick() {
            self.device.kick(index);
        }
    }

    /// The packets that the driver got, and how many chains each took.
    fn got(&mut self) -> Vec<(Vec<u8>, u16)> {
        let mut packets = Vec::new();
        while let Some(mut packet) = self.take_chain() {
            let count = u16::from_le_bytes([packet[10], packet[11]]);
            for _ in 1..count {
                packet.extend(self.take_chain().expect("all of a packet at once"));
            }
            packets.push((packet, count));
        }
        self.drivers[0].sleep();
        packets
    }

    fn take_chain(&mut self) -> Option<Vec<u8>> {
        let (head, written) = self.drivers[0].take_used()?;
        let mut bytes = Vec::new();
        for (at, len, _) in self.given.remove(&head).unwrap() {
            let here = len.min(written - bytes.len() as u32);
            let mut part = vec![0; here as usize];
            self.mem.read_slice(&mut part, GuestAddress(at)).unwrap();
            bytes.extend(part);
        }
        assert_eq!(bytes.len(), written as usize);
        Some(bytes)
    }

    fn arrive(&mut self, packet: Vec<u8>) {
        self.device.backend().to_guest.push_back(packet);
        self.device.ready(true, false);
    }

    fn send(&mut self, packet: &[u8], cuts: &[usize]) {
        let mut buffers = Vec::new();
        let mut rest = packet;
        for cut in cuts.iter().copied().chain([usize::MAX]) {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            if !now.is_empty() {
                let at = self.place(now.len() as u64);
                self.mem.write_slice(now, GuestAddress(at)).unwrap();
                buffers.push((at, now.len() as u32, false));
            }
            rest = later;
        }
        while self.drivers[1].take_used().is_some() {}
        self.drivers[1].sleep();
        self.drivers[1].add(&buffers, cuts.len() % 2 == 1).unwrap();
    }

    fn command(&mut self, bytes: &[u8], room: u32) -> u8 {
        let at = self.place(64);
        self.mem.write_slice(bytes, GuestAddress(at)).unwrap();
        self.mem.write_obj(9_u8, GuestAddress(at + 32)).unwrap();
        let buffers = [(at, bytes.len() as u32, false), (at + 32, room, true)];
        let buffers = &buffers[..1 + usize::from(room > 0)];
        self.drivers[2].add(buffers, false).unwrap();
        self.kick(CONTROL_QUEUE);
        self.mem.read_obj(GuestAddress(at + 32)).unwrap()
    }
}

/// A packet as a tap device has it: a header without a count of buffers, and bytes that tell it from others.
fn packet(len: usize, n: u64) -> Vec<u8> {
    let mut packet: Vec<u8> = (0..len as u64)
        .map(|i| (i * 7 + n * 13 + i / 251) as u8)
        .collect();
    for byte in packet.iter_mut().take(12) {
        *byte = 0;
    }
    packet
}

/// As the driver gets it.
fn counted(mut packet: Vec<u8>, count: u16) -> (Vec<u8>, u16) {
    packet[10..12].copy_from_slice(&count.to_le_bytes());
    (packet, count)
}

#[test]
fn the_card_is_what_it_says() {
    let bed = Bed::new(MERGEABLE);
    assert_eq!(bed.device.device_type(), 1);
    let mut config = [9; 10];
    bed.device.read_config(0, &mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 9, 1, 0, 0, 0]);
    let mut status = [9; 2];
    bed.device.read_config(6, &mut status);
    assert_eq!(status, [1, 0]);
    bed.device.read_config(u32::MAX, &mut status);
    assert_eq!(status, [0, 0]);
}

#[test]
fn packets_leave_whole_however_they_are_cut() {
    for features in [0, RINGS] {
        let mut bed = Bed::new(features);
        let sent = packet(1000, 1);
        for cuts in [&[][..], &[12], &[1, 11, 500], &[700]] {
            bed.send(&sent, cuts);
            bed.kick(TX_QUEUE);
            assert_eq!(bed.device.backend().from_guest.pop(), Some(sent.clone()));
            assert!(bed.told.take_queue(TX_QUEUE));
        }
    }
}

#[test]
fn what_the_host_does_not_take_now_waits() {
    let mut bed = Bed::new(RINGS);
    bed.device.backend().takes = 2;
    for n in 0..5 {
        bed.send(&packet(100, n), &[12]);
    }
    bed.kick(TX_QUEUE);
    assert_eq!(bed.device.backend().from_guest.len(), 2);
    // It is not asked again until it says so.
    bed.device.backend().takes = 10;
    bed.device.kick(TX_QUEUE);
    assert_eq!(bed.device.backend().from_guest.len(), 2);
    bed.device.ready(false, true);
    let sent: Vec<_> = (0..5).map(|n| packet(100, n)).collect();
    assert_eq!(bed.device.backend().from_guest, sent);
}

#[test]
fn the_rest_of_a_packet_goes_before_the_next_one() {
    let mut bed = Bed::new(RINGS);
    bed.send(&packet(100, 1), &[]);
    bed.send(&packet(100, 2), &[]);
    bed.device.backend().holds_rest = true;
    bed.kick(TX_QUEUE);
    assert!(bed.device.waits_for_room());
    assert!(bed.device.backend().from_guest.is_empty());
    bed.device.ready(false, true);
    assert!(bed.device.waits_for_room());
    bed.device.backend().holds_rest = false;
    bed.device.ready(false, true);
    assert!(!bed.device.waits_for_room());
    assert_eq!(
        bed.device.backend().from_guest,
        [packet(100, 1), packet(100, 2)]
    );
}

#[test]
fn a_packet_that_the_host_refuses_is_lost_alone() {
    let mut bed = Bed::new(RINGS);
    bed.device.backend().error = Some(io::ErrorKind::InvalidInput);
    bed.send(&packet(100, 1), &[]);
    bed.send(&packet(100, 2), &[]);
    bed.kick(TX_QUEUE);
    assert_eq!(bed.device.backend().from_guest, [packet(100, 2)]);
    bed.device.backend().from_guest.clear();
    // Too long for any packet.
    bed.send(&packet(MAX_PACKET_BYTES + 1, 3), &[]);
    bed.send(&packet(MAX_PACKET_BYTES, 4), &[]);
    bed.kick(TX_QUEUE);
    assert_eq!(
        bed.device.backend().from_guest,
        [packet(MAX_PACKET_BYTES, 4)]
    );
    assert_eq!(bed.told.resets(), 0);
}

#[test]
fn packets_take_as_many_buffers_as_they_need() {
    for features in [MERGEABLE, MERGEABLE | RINGS] {
        let mut bed = Bed::new(features);
        for _ in 0..60 {
            assert!(bed.give(&[1526], false));
        }
        for (len, count) in [(60, 1), (1526, 1), (1527, 2), (65_550, 43), (60, 1)] {
            bed.arrive(packet(len, 5));
            assert_eq!(bed.got(), [counted(packet(len, 5), count)]);
            assert!(bed.told.take_queue(RX_QUEUE));
        }
        // The host is asked once more after each, and no more.
        assert_eq!(bed.device.backend().asked, 10);
    }
}

#[test]
fn while_packets_come_alone_nobody_asks_for_more() {
    let mut bed = Bed::new(MERGEABLE | RINGS);
    bed.device.backend().tells_again = true;
    bed.arrive(packet(100, 1));
    // There is no buffer yet, so the host need not tell again.
    assert!(bed.device.waits_for_buffers());
    for _ in 0..40 {
        bed.give(&[1526], false);
    }
    bed.kick(RX_QUEUE);
    assert_eq!((bed.got().len(), bed.device.backend().asked), (1, 2));
    assert!(!bed.device.waits_for_buffers());
    for n in 0..ALONE_PACKETS {
        bed.arrive(packet(100, n.into()));
        let asked = bed.device.backend().asked;
        assert_eq!((bed.got().len(), asked), (1, 3 + n));
    }
    // It looks again from time to time: where there are more, they are taken at once.
    bed.device.backend().asked = 0;
    for _ in 0..2 {
        let packets = [packet(100, 1), packet(100, 2), packet(100, 3)];
        bed.device.backend().to_guest.extend(packets);
        bed.device.ready(true, false);
        assert_eq!(bed.got().len(), 3);
    }
    assert_eq!(bed.device.backend().asked, 8);
}

#[test]
fn whole_packets_need_no_offloads() {
    let device = NetDevice::new(MAC, Host::default()).with_whole_packets();
    let unfinished = 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4 | 1;
    assert_eq!(device.features() & unfinished, 0);
    assert_ne!(device.features() & MERGEABLE, 0);
    let usual = NetDevice::new(MAC, Host::default());
    assert_eq!(usual.features() & unfinished, unfinished);
}

#[test]
fn one_buffer_is_all_without_merging() {
    let mut bed = Bed::new(RINGS);
    for _ in 0..3 {
        bed.give(&[12, 1000, 514], true);
    }
    bed.arrive(packet(1527, 1));
    bed.arrive(packet(1526, 2));
    bed.arrive(packet(100, 3));
    assert_eq!(
        bed.got(),
        [counted(packet(1526, 2), 1), counted(packet(100, 3), 1)]
    );
}

#[test]
fn a_guest_without_buffers_is_not_read_for() {
    let mut bed = Bed::new(MERGEABLE | RINGS);
    bed.arrive(packet(100, 1));
    bed.arrive(packet(100, 2));
    assert_eq!(bed.device.backend().asked, 0);
    bed.give(&[1526], false);
    bed.kick(RX_QUEUE);
    assert_eq!(bed.got(), [counted(packet(100, 1), 1)]);
    assert_eq!(bed.device.backend().to_guest.len(), 1);
    bed.give(&[1526], false);
    bed.kick(RX_QUEUE);
    assert_eq!(bed.got(), [counted(packet(100, 2), 1)]);
}

#[test]
fn a_long_packet_waits_for_buffers() {
    let mut bed = Bed::new(MERGEABLE | RINGS);
    bed.give(&[1526], false);
    bed.arrive(packet(4000, 1));
    assert_eq!(bed.got(), []);
    bed.give(&[1526], false);
    bed.kick(RX_QUEUE);
    assert_eq!(bed.got(), []);
    bed.give(&[5, 7, 990], true);
    bed.kick(RX_QUEUE);
    assert_eq!(bed.got(), [counted(packet(4000, 1), 3)]);
}

#[test]
fn a_packet_that_never_fits_is_dropped() {
    let mut bed = Bed::new(MERGEABLE);
    while bed.give(&[100], false) {}
    bed.arrive(packet(25_601, 1));
    assert_eq!(bed.got(), []);
    bed.arrive(packet(25_600, 2));
    assert_eq!(bed.got(), [counted(packet(25_600, 2), 256)]);
}

#[test]
fn scraps_are_no_packets() {
    let mut bed = Bed::new(MERGEABLE);
    bed.give(&[1526], false);
    for len in [0, 1, 11] {
        bed.arrive(packet(len, 1));
    }
    bed.arrive(packet(12, 1));
    assert_eq!(bed.got(), [counted(packet(12, 1), 1)]);
}

#[test]
fn others_have_their_turn() {
    let mut bed = Bed::new(MERGEABLE);
    for n in 0..200 {
        bed.send(&packet(50, n), &[]);
        bed.give(&[100], false);
    }
    bed.device.kick(TX_QUEUE);
    assert_eq!(bed.device.backend().from_guest.len(), TURN_PACKETS as usize);
    assert!(bed.device.has_more());
    bed.device.go_on();
    assert_eq!(bed.device.backend().from_guest.len(), 200);
    assert!(!bed.device.has_more());
    bed.device.backend().to_guest = (0..200).map(|n| packet(50, n)).collect();
    bed.device.ready(true, false);
    assert!(bed.device.has_more());
    assert_eq!(bed.got().len(), TURN_PACKETS as usize);
    bed.device.go_on();
    assert_eq!(bed.got().len(), 200 - TURN_PACKETS as usize);
}

#[test]
fn the_guest_changes_what_it_takes() {
    let all = 1 << VIRTIO_NET_F_GUEST_CSUM
        | 1 << VIRTIO_NET_F_GUEST_TSO4
        | 1 << VIRTIO_NET_F_GUEST_TSO6
        | 1 << VIRTIO_NET_F_GUEST_ECN;
    let mut bed = Bed::new(RINGS | all);
    let full = Offloads {
        checksum: true,
        tso4: true,
        tso6: true,
        ecn: true,
    };
    assert_eq!(bed.device.backend().offloads, full);
    let set = |bits: u64| [&[5, 0][..], &bits.to_le_bytes()].concat();
    assert_eq!(bed.command(&set(1 << VIRTIO_NET_F_GUEST_CSUM), 1), 0);
    let checksum = Offloads {
        checksum: true,
        ..Offloads::default()
    };
    assert_eq!(bed.device.backend().offloads, checksum);
    // Never accepted, not a command, cut off.
    assert_eq!(bed.command(&set(1), 1), 1);
    assert_eq!(bed.command(&[5, 1, 0, 0, 0, 0, 0, 0, 0, 0], 1), 1);
    assert_eq!(bed.command(&[1, 0, 1], 1), 1);
    assert_eq!(bed.command(&set(0)[..9], 1), 1);
    assert_eq!(bed.device.backend().offloads, checksum);
    assert!(bed.told.take_queue(CONTROL_QUEUE));
    // A restored device goes on so.
    let state = bed.device.save();
    let mut device = NetDevice::new(MAC, Host::default());
    device.restore(&state, Some(bed.activation())).unwrap();
    assert_eq!(device.backend().offloads, checksum);
    assert_eq!(bed.command(&set(all), 1), 0);
    assert_eq!(bed.device.backend().offloads, full);
    assert_eq!(bed.told.resets(), 0);
    bed.command(&set(0), 0);
    assert_eq!(bed.told.resets(), 1);
}

#[test]
fn offloads_need_checksums() {
    let mut bed = Bed::new(1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_ECN);
    assert_eq!(bed.device.backend().offloads, Offloads::default());
}

#[test]
fn drivers_that_break_the_rules_need_a_reset() {
    let bad: [(u16, &[Buf]); 4] = [
        (TX_QUEUE, &[(DATA, 11, false)]),
        (TX_QUEUE, &[(DATA, 100, true)]),
        (RX_QUEUE, &[(DATA, 11, true)]),
        (RX_QUEUE, &[(DATA, 100, false)]),
    ];
    for (index, buffers) in bad {
        let mut bed = Bed::new(MERGEABLE);
        bed.device.backend().to_guest.push_back(packet(100, 1));
        bed.drivers[usize::from(index)].add(buffers, false).unwrap();
        bed.device.kick(index);
        assert_eq!(bed.told.resets(), 1);
        // Nothing is touched any more.
        bed.drivers[0].add(&[(DATA, 1000, true)], false).unwrap();
        bed.arrive(packet(100, 1));
        assert_eq!(bed.drivers[0].take_used(), None);
        assert_eq!(bed.told.resets(), 1);
        let state = bed.device.save();
        let activation = bed.activation();
        bed.device.restore(&state, Some(activation)).unwrap();
        bed.arrive(packet(100, 1));
        assert_eq!(bed.drivers[0].take_used(), None);
    }
}

#[test]
fn states_of_other_devices_are_refused() {
    let mut bed = Bed::new(MERGEABLE);
    let DeviceState::Net(state) = bed.device.save() else {
        panic!("another kind");
    };
    let mut other = state.clone();
    other.version = 9;
    let refused = bed.device.restore(&DeviceState::Net(other), None);
    assert!(matches!(
        refused,
        Err(RestoreError::Version { found: 9, .. })
    ));
    let mut other = state.clone();
    other.offloads = 1 << VIRTIO_NET_F_GUEST_CSUM;
    let refused = bed
        .device
        .restore(&DeviceState::Net(other), Some(bed.activation()));
    assert!(matches!(refused, Err(RestoreError::Impossible { .. })));
    let mut other = state;
    other.queues[1].as_mut().unwrap().in_flight = vec![4, 4];
    let refused = bed
        .device
        .restore(&DeviceState::Net(other), Some(bed.activation()));
    assert!(matches!(refused, Err(RestoreError::Impossible { .. })));
}

/// Random packets both ways, buffers of all shapes, and saves in between: what arrives is whole and in order; only
/// packets on their way in at a save may be missing.
#[test]
fn nothing_is_torn_or_out_of_order() {
    for seed in 1..=6_u64 {
        println!("seed {seed}");
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = move |n: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % n
        };
        let features = [MERGEABLE, MERGEABLE | RINGS][random(2) as usize];
        let mut bed = Bed::new(features);
        let (mut arrived, mut seen, mut sent, mut saves) = (0_u64, 0_u64, 0_u64, 0_u64);
        let sizes = [100, 1500, 9000, 65_000];
        let length = |n: u64| 20 + (n * 7919 % sizes[(n % 4) as usize]) as usize;
        for _ in 0..4000 {
            match random(6) {
                0 | 1 => {
                    let count = 1 + random(3);
                    let lens: Vec<u32> = (0..count).map(|_| 12 + random(2000) as u32).collect();
                    bed.give(&lens, random(2) == 0);
                    bed.kick(RX_QUEUE);
                }
                2 => {
                    bed.arrive(packet(length(arrived), arrived));
                    arrived += 1;
                }
                3 => {
                    let cuts = [random(100) as usize, random(900) as usize];
                    bed.send(&packet(length(sent), sent), &cuts[..random(3) as usize]);
                    sent += 1;
                    bed.kick(TX_QUEUE);
                }
                4 if random(50) == 0 => {
                    let state = bed.device.save();
                    let activation = bed.activation();
                    bed.device.reset();
                    bed.device.restore(&state, Some(activation)).unwrap();
                    bed.device.kick(RX_QUEUE);
                    bed.device.kick(TX_QUEUE);
                    saves += 1;
                }
                _ => {
                    for (got, count) in bed.got() {
                        let same = |n: u64| counted(packet(length(n), n), count).0 == got;
                        let next = (seen..arrived).find(|n| same(*n)).expect("a packet");
                        saves = saves.checked_sub(next - seen).expect("lost without a save");
                        seen = next + 1;
                    }
                }
            }
            while bed.device.has_more() {
                bed.device.go_on();
            }
        }
        assert_eq!(bed.told.resets(), 0);
        let want: Vec<_> = (0..sent).map(|n| packet(length(n), n)).collect();
        assert!(bed.device.backend().from_guest == want);
        assert!(seen > 100 && sent > 100, "{seen} {sent}");
    }
}
