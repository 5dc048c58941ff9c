#![allow(clippy::cast_possible_truncation)] // small numbers

use super::*;
use crate::virtio::driver::{DRIVER_BYTES, Driver};
use crate::virtio::testing::Told;
use std::sync::Mutex;
use vm_memory::{Bytes, GuestAddress};

const BASE: u64 = 0x10_0000;
const OTHER: u64 = BASE + DRIVER_BYTES;
const DATA: u64 = OTHER + DRIVER_BYTES;
const SIZE: Size = Size {
    columns: 80,
    rows: 25,
};

/// An output with room for so many bytes.
#[derive(Debug, Default)]
struct Out {
    bytes: Vec<u8>,
    room: usize,
}

#[derive(Clone, Debug, Default)]
struct SharedOut(Arc<Mutex<Out>>);

impl Output for SharedOut {
    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut out = self.0.lock().unwrap();
        let taken = bytes.len().min(out.room);
        out.bytes.extend(&bytes[..taken]);
        out.room -= taken;
        taken
    }
}

struct Bed {
    memory: Memory,
    input: Driver,
    output: Driver,
    device: VirtioConsole,
    out: SharedOut,
    told: Arc<Told>,
}

impl Bed {
    fn new(room: usize) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(BASE), 0x20_0000)]).unwrap();
        let out = SharedOut::default();
        out.0.lock().unwrap().room = room;
        let device = VirtioConsole::new(Box::new(out.clone()), SIZE);
        let features = device.features();
        let mut bed = Self {
            input: Driver::new(&memory, BASE, 64, features),
            output: Driver::new(&memory, OTHER, 64, features),
            memory,
            device,
            out,
            told: Told::new(),
        };
        bed.device.activate(bed.activation());
        bed
    }

    fn activation(&self) -> Activation {
        let features = self.device.features();
        self.told
            .activation(&self.memory, features, &[&self.input, &self.output])
    }

    /// The guest sends `bytes` in a chain of two buffers.
    fn send(&mut self, at: u64, bytes: &[u8]) -> Option<u16> {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
        let len = u32::try_from(bytes.len()).unwrap();
        let half = len / 2;
        let buffers = [(at, half, false), (at + u64::from(half), len - half, false)];
        let head = self.output.add(&buffers, true);
        if self.output.must_kick() {
            self.device.kick(OUTPUT_QUEUE);
        }
        head
    }

    fn room(&mut self, room: usize) {
        self.out.0.lock().unwrap().room += room;
        self.device.send();
    }

    fn out(&self) -> Vec<u8> {
        std::mem::take(&mut self.out.0.lock().unwrap().bytes)
    }
}

#[test]
fn output_waits_for_room_and_nothing_is_lost_or_doubled() {
    let mut bed = Bed::new(5);
    let text: Vec<u8> = (0..20_000_u32).map(|n| (n / 7) as u8).collect();
    let first = bed.send(DATA, &text);
    let second = bed.send(DATA + 0x8000, b"then this");
    assert!(bed.device.is_waiting());
    assert_eq!(bed.out(), text[..5]);
    assert_eq!(bed.output.take_used(), None);
    bed.room(10_000);
    assert_eq!(bed.out(), text[5..10_005]);
    // It goes on elsewhere in the middle of a chain.
    let saved = bed.device.save();
    bed.device.reset();
    let mut other = VirtioConsole::new(Box::new(bed.out.clone()), SIZE);
    other.restore(&saved, Some(bed.activation())).unwrap();
    assert_eq!(other.save(), saved);
    bed.device = other;
    bed.output.sleep();
    bed.room(20_000);
    assert!(!bed.device.is_waiting());
    let rest = bed.out();
    assert_eq!(rest[..9_995], text[10_005..]);
    assert_eq!(rest[9_995..], *b"then this");
    assert!(bed.told.take_queue(OUTPUT_QUEUE));
    assert_eq!(bed.output.take_used(), first.map(|head| (head, 0)));
    assert_eq!(bed.output.take_used(), second.map(|head| (head, 0)));
}

#[test]
fn input_is_kept_until_there_are_buffers() {
    let mut bed = Bed::new(0);
    let text: Vec<u8> = (0..6000_u32).map(|n| (n / 7) as u8).collect();
    assert_eq!(bed.device.wants_input(), INPUT_BYTES);
    bed.device.input(&text);
    assert_eq!(bed.device.wants_input(), 0);
    assert_eq!(bed.device.save(), bed.device.save());
    let mut got = Vec::new();
    bed.input.sleep();
    while got.len() < text.len() {
        for n in 0..10 {
            bed.input.add(&[(DATA + n * 100, 100, true)], n % 2 == 0);
        }
        assert!(bed.input.must_kick(), "there is something for it");
        bed.device.kick(INPUT_QUEUE);
        assert!(bed.told.take_queue(INPUT_QUEUE));
        for n in 0..10 {
            let (_, len) = bed.input.take_used().expect("a buffer");
            let mut bytes = vec![0; len as usize];
            let at = GuestAddress(DATA + n * 100);
            bed.memory.read_slice(&mut bytes, at).unwrap();
            got.extend(bytes);
        }
        bed.input.sleep();
    }
    assert_eq!(got, text);
    assert_eq!(bed.device.wants_input(), INPUT_BYTES);
    // With buffers there, input goes right to them.
    bed.input.add(&[(DATA, 100, true)], false);
    bed.device.input(b"q");
    assert_eq!(bed.input.take_used().map(|(_, len)| len), Some(1));
}

#[test]
fn size_is_told_when_it_changes() {
    let mut bed = Bed::new(0);
    let mut config = [0xff; 14];
    bed.device.read_config(0, &mut config);
    assert_eq!(config, [80, 0, 25, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bed.device.resize(SIZE);
    assert_eq!(bed.told.config_changes(), 0);
    let (columns, rows) = (300, 50);
    bed.device.resize(Size { columns, rows });
    assert_eq!(bed.told.config_changes(), 1);
    let mut config = [0xff; 3];
    bed.device.read_config(1, &mut config);
    assert_eq!(config, [1, 50, 0]);
}

#[test]
fn drivers_that_break_the_rules_have_to_reset() {
    let wrong = |index: u16, write: bool| {
        let mut bed = Bed::new(10);
        let driver = if index == 0 {
            &mut bed.input
        } else {
            &mut bed.output
        };
        driver.add(&[(DATA, 8, write)], false);
        bed.device.input(b"x");
        bed.device.kick(index);
        bed.device.kick(index);
        bed.told.resets()
    };
    assert_eq!(wrong(INPUT_QUEUE, false), 1);
    assert_eq!(wrong(OUTPUT_QUEUE, true), 1);
    assert_eq!(wrong(OUTPUT_QUEUE, false), 0);
}

#[test]
fn a_driver_may_leave_queues_out() {
    let mut bed = Bed::new(10);
    let mut activation = bed.activation();
    activation.queues = vec![None];
    bed.device.activate(activation);
    bed.device.input(b"x");
    for index in 0..3 {
        bed.device.kick(index);
    }
    let saved = bed.device.save();
    let mut activation = bed.activation();
    activation.queues.clear();
    bed.device.restore(&saved, Some(activation)).unwrap();
    assert!(bed.device.restore(&saved, Some(bed.activation())).is_err());
}
