//! The device behind a transport: a driver that sleeps whenever it may, completions in any order, resets and moves at
//! any time. A notification that is lost either way leaves a request that never ends.

use super::*;
use crate::rate::RateLimiter;
use crate::virtio::driver::{self, DRIVER_BYTES, Driver};
use crate::virtio::testing::Told;
use crate::virtio::{DeviceState, SavedQueue, VirtioDevice};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES, virtio_blk_config,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

const RINGS: u64 = BASE;
const BUFFERS: u64 = BASE + DRIVER_BYTES;
/// Places for requests: memory for each, and a range of the disk that no other request touches.
const PLACES: usize = 12;
const PLACE_SECTORS: u64 = 8;
const PLACE_BYTES: u64 = PLACE_SECTORS * 512;
const ROOM: u64 = 0x2000;
const RING_FEATURES: u64 = (1 << VIRTIO_RING_F_EVENT_IDX) | (1 << VIRTIO_RING_F_INDIRECT_DESC);

type Disk = VirtioBlk<MemBackend<Memory>>;

/// What is asked in a place.
#[derive(Debug)]
enum Asked {
    Read { from: usize, len: usize },
    Write { from: usize, bytes: Vec<u8> },
    Zero { from: usize, len: usize },
    Nothing,
}

/// A machine with one disk.
struct Machine {
    memory: Memory,
    driver: Driver,
    features: u64,
    disk: Disk,
    told: Arc<Told>,
    /// What the disk holds once all that is asked is done.
    model: Vec<u8>,
    asked: BTreeMap<u16, (usize, Asked)>,
    free: Vec<usize>,
    /// The driver has notified the queue and the device's thread has not looked.
    kicked: bool,
    asleep: bool,
    finished: usize,
}

fn traits(len_bytes: u64) -> DiskTraits {
    DiskTraits {
        len_bytes,
        read_only: false,
        block_bytes: 4096,
    }
}

impl Machine {
    fn new(features: u64, order: CompletionOrder) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(BASE), 0x10_0000)]).unwrap();
        let len = PLACES * usize::try_from(PLACE_BYTES).unwrap();
        let model = content(len);
        let mut backend = MemBackend::new(memory.clone(), model.clone());
        backend.order = order;
        let mut machine = Self {
            driver: Driver::new(&memory, RINGS, 32, features),
            features,
            disk: VirtioBlk::new(traits(len as u64), backend),
            memory,
            told: Told::new(),
            model,
            asked: BTreeMap::new(),
            free: (0..PLACES).collect(),
            kicked: false,
            asleep: false,
            finished: 0,
        };
        machine.activate();
        machine
    }

    fn activate(&mut self) {
        let ready = self
            .told
            .activation(&self.memory, self.features, &[&self.driver]);
        self.disk.activate(ready);
    }

    fn room(place: usize) -> u64 {
        BUFFERS + place as u64 * ROOM
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    /// Asks for something in a free place; false if there is none, or no descriptors.
    fn ask(&mut self, choice: u32) -> bool {
        let Some(place) = self.free.pop() else {
            return false;
        };
        let first = place as u64 * PLACE_SECTORS;
        let skip = u64::from(choice >> 8) % PLACE_SECTORS;
        let sectors = 1 + u64::from(choice >> 12) % (PLACE_SECTORS - skip);
        let (from, len) = ((first + skip) as usize * 512, sectors as usize * 512);
        let (asked, kind, write) = match choice % 5 {
            0 | 1 => (Asked::Read { from, len }, 0_u32, true),
            2 => {
                let bytes = vec![(choice >> 16) as u8; len];
                (Asked::Write { from, bytes }, 1, false)
            }
            3 => (Asked::Zero { from, len }, 13, false),
            _ => (Asked::Nothing, 4, false),
        };
        let room = Self::room(place);
        let (header, data, status) = (room, room + 16, room + ROOM - 1);
        self.put(header, &kind.to_le_bytes());
        let mut data_len = len as u32;
        match &asked {
            Asked::Write { bytes, .. } => self.put(data, bytes),
            Asked::Zero { .. } => {
                // Two segments, if there are two sectors.
                let mut segments = segment(first + skip, 1, 1);
                if sectors > 1 {
                    segments.extend(segment(first + skip + 1, sectors as u32 - 1, 0));
                }
                data_len = segments.len() as u32;
                self.put(data, &segments);
            }
            Asked::Nothing => data_len = 0,
            Asked::Read { .. } => {}
        }
        let sector = if kind > 1 { 0 } else { first + skip };
        self.put(header + 8, &sector.to_le_bytes());
        self.put(status, &[0xee]);
        let mut buffers: Vec<driver::Buf> = vec![(header, 16, false)];
        if data_len > 100 && choice & 0x40 != 0 {
            buffers.push((data, 100, write));
            buffers.push((data + 100, data_len - 100, write));
        } else if data_len > 0 {
            buffers.push((data, data_len, write));
        }
        buffers.push((status, 1, true));
        let Some(head) = self.driver.add(&buffers, choice & 0x80 != 0) else {
            self.free.push(place);
            return false;
        };
        self.asked.insert(head, (place, asked));
        true
    }

    fn notify(&mut self) {
        self.kicked |= self.driver.must_kick();
    }

    /// The device's thread, if it has been woken.
    fn serve(&mut self) -> bool {
        let woken = std::mem::take(&mut self.kicked);
        if woken {
            self.disk.kick(0);
        }
        woken
    }

    /// The backend finishes `count` requests.
    fn finish(&mut self, count: usize) {
        self.disk.complete(|backend| backend.release(count));
    }

    /// The driver, if it is awake or woken: takes all, then tries to sleep.
    fn drive(&mut self) -> bool {
        if self.asleep && !self.told.take_queue(0) {
            return false;
        }
        self.asleep = false;
        while let Some((head, written)) = self.driver.take_used() {
            self.check(head, written);
        }
        self.asleep = self.driver.sleep();
        true
    }

    fn check(&mut self, head: u16, written: u32) {
        let (place, asked) = self.asked.remove(&head).expect("it was asked for");
        let room = Self::room(place);
        let read = |at, len| {
            let mut bytes = vec![0; len];
            self.memory
                .read_slice(&mut bytes, GuestAddress(at))
                .unwrap();
            bytes
        };
        assert_eq!(read(room + ROOM - 1, 1), [0], "{asked:?}");
        match asked {
            Asked::Read { from, len } => {
                assert_eq!(read(room + 16, len), self.model[from..from + len]);
                assert_eq!(written as usize, len + 1);
            }
            Asked::Write { from, bytes } => {
                self.model[from..from + bytes.len()].copy_from_slice(&bytes);
            }
            Asked::Zero { from, len } => self.model[from..from + len].fill(0),
            Asked::Nothing => assert_eq!(written, 1),
        }
        self.free.push(place);
        self.finished += 1;
    }

    /// The driver starts all over; what it has not taken is lost.
    fn reset(&mut self) {
        while let Some((head, written)) = self.driver.take_used() {
            self.check(head, written);
        }
        self.disk.reset();
        let mut store = Vec::new();
        self.disk.complete(|backend| {
            assert_eq!(backend.held(), 0);
            store.clone_from(&backend.bytes);
        });
        for (_, asked) in self.asked.values() {
            let (from, new) = match asked {
                Asked::Write { from, bytes } => (*from, bytes.clone()),
                Asked::Zero { from, len } => (*from, vec![0; *len]),
                Asked::Read { .. } | Asked::Nothing => continue,
            };
            // What was not finished is done or not, sector by sector.
            for (n, new) in new.chunks(512).enumerate() {
                let sector = from + n * 512..from + n * 512 + 512;
                let now = &store[sector.clone()];
                assert!(now == new || now == &self.model[sector.clone()]);
                self.model[sector.clone()].copy_from_slice(now);
            }
        }
        assert!(!self.driver.sleep() || self.driver.take_used().is_none());
        self.free
            .extend(self.asked.values().map(|(place, _)| *place));
        self.asked.clear();
        self.driver = Driver::new(&self.memory, RINGS, 32, self.features);
        self.activate();
        let _ = self.told.take_queue(0);
        (self.asleep, self.kicked) = (false, false);
    }

    /// The device goes on as another one.
    fn recycle(&mut self) {
        let saved = self.disk.save();
        self.disk.reset();
        let ready = self
            .told
            .activation(&self.memory, self.features, &[&self.driver]);
        self.disk.restore(&saved, Some(ready)).unwrap();
        assert_eq!(self.disk.save(), saved);
        self.kicked = true;
    }

    /// Everything comes to its end by notifications and interrupts alone.
    fn settle(&mut self) {
        self.drive();
        loop {
            self.serve();
            self.finish(usize::MAX);
            let mut held = 0;
            self.disk.complete(|backend| held = backend.held());
            if !self.drive() && !self.kicked && held == 0 {
                break;
            }
        }
        let left: Vec<u16> = self.asked.keys().copied().collect();
        assert!(left.is_empty(), "it sleeps for ever: {left:?}");
        let mut bytes = Vec::new();
        self.disk
            .complete(|backend| bytes.clone_from(&backend.bytes));
        assert!(bytes == self.model, "the disk holds something else");
        assert_eq!(self.told.resets(), 0);
    }

    fn step(&mut self, choice: u32) {
        match choice % 16 {
            0..=5 => {
                for n in 0..1 + (choice >> 4) % 4 {
                    self.ask((choice >> 5).wrapping_add(n.wrapping_mul(0x9e37_79b9)));
                }
                self.notify();
            }
            6..=8 => {
                self.serve();
            }
            9..=10 => self.finish(1 + (choice >> 4) as usize % 5),
            11..=13 => {
                self.drive();
            }
            14 => self.recycle(),
            _ if choice & 0xf0 == 0 => self.reset(),
            _ => self.settle(),
        }
    }
}

proptest! {
    #[test]
    fn no_request_is_lost_or_done_wrong(
        choices in prop::collection::vec(any::<u32>(), 20..300),
        rings in 0_u32..4,
        seed in any::<u64>(),
    ) {
        let bits = [VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC];
        let on = |n: u32| u64::from((rings >> n) & 1) << bits[n as usize];
        let order = match seed % 4 {
            0 => CompletionOrder::AtOnce,
            _ => CompletionOrder::Shuffled(seed),
        };
        let features = on(0) | on(1) | (1 << VIRTIO_BLK_F_FLUSH) | (1 << VIRTIO_BLK_F_WRITE_ZEROES);
        let features = if seed & 8 == 0 { features } else { features & !(1 << VIRTIO_BLK_F_FLUSH) };
        let mut machine = Machine::new(features, order);
        for choice in choices {
            machine.step(choice);
        }
        machine.settle();
    }
}

#[test]
fn many_requests_come_through() {
    let features = RING_FEATURES | (1 << VIRTIO_BLK_F_FLUSH) | (1 << VIRTIO_BLK_F_WRITE_ZEROES);
    let mut machine = Machine::new(features, CompletionOrder::Shuffled(3));
    let mut choice = 1_u32;
    for _ in 0..50_000 {
        choice = choice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        machine.step(((choice >> 3) & !0xf) | ((choice >> 28) % 14));
    }
    machine.settle();
    assert!(machine.finished > 10_000, "{}", machine.finished);
}

/// VirtIO 1.3 §5.2.4 "Device configuration layout", against the C struct.
#[test]
fn configuration_is_where_drivers_read_it() {
    let memory = Memory::from_ranges(&[(GuestAddress(BASE), 0x1000)]).unwrap();
    let disk = VirtioBlk::new(traits((5 << 20) + 700), MemBackend::new(memory, vec![]));
    let number = |offset: usize, len: usize| {
        let mut bytes = [0; 8];
        disk.read_config(u32::try_from(offset).unwrap(), &mut bytes[..len]);
        u64::from_le_bytes(bytes)
    };
    type C = virtio_blk_config;
    assert_eq!(number(offset_of!(C, capacity), 8), (5 << 11) + 1);
    assert_eq!(number(offset_of!(C, size_max), 4), 256 << 10);
    assert_eq!(number(offset_of!(C, seg_max), 4), 254);
    assert_eq!(number(offset_of!(C, blk_size), 4), 512);
    assert_eq!(number(offset_of!(C, physical_block_exp), 1), 3);
    assert_eq!(number(offset_of!(C, min_io_size), 2), 8);
    assert_eq!(number(offset_of!(C, num_queues), 2), 1);
    assert_eq!(number(offset_of!(C, max_discard_sectors), 4), 1 << 22);
    assert_eq!(number(offset_of!(C, max_discard_seg), 4), 32);
    assert_eq!(number(offset_of!(C, discard_sector_alignment), 4), 8);
    assert_eq!(number(offset_of!(C, max_write_zeroes_sectors), 4), 1 << 22);
    assert_eq!(number(offset_of!(C, max_write_zeroes_seg), 4), 32);
    assert_eq!(number(offset_of!(C, write_zeroes_may_unmap), 1), 1);
    assert_eq!(number(1000, 8), 0);
    assert_eq!(number(u32::MAX as usize, 8), 0);
}

#[test]
fn features_are_those_of_the_disk() {
    let memory = Memory::from_ranges(&[(GuestAddress(BASE), 0x1000)]).unwrap();
    let has = |read_only: bool, bit: u32| {
        let traits = DiskTraits {
            read_only,
            ..traits(1 << 20)
        };
        let disk = VirtioBlk::new(traits, MemBackend::new(memory.clone(), vec![]));
        disk.features() & (1 << bit) != 0
    };
    for bit in [
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_TOPOLOGY,
    ] {
        assert!(has(false, bit) && has(true, bit), "{bit}");
    }
    for bit in [VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES] {
        assert!(has(false, bit) && !has(true, bit), "{bit}");
    }
    assert!(has(true, VIRTIO_BLK_F_RO) && !has(false, VIRTIO_BLK_F_RO));
}

/// VirtIO 1.3 §5.2.6.2: without flushes every write is durable when it is done.
#[test]
fn writes_are_flushed_for_a_driver_without_flushes() {
    for (flush, flushes) in [(0, 2), (1 << VIRTIO_BLK_F_FLUSH, 0)] {
        let features = RING_FEATURES | flush | (1 << VIRTIO_BLK_F_WRITE_ZEROES);
        let mut machine = Machine::new(features, CompletionOrder::Held);
        for kind in [0, 2, 3] {
            assert!(machine.ask(kind));
        }
        machine.notify();
        machine.settle();
        machine.disk.complete(|backend| {
            let seen = backend.log.iter().filter(|kind| **kind == IoKind::Flush);
            assert_eq!(seen.count(), flushes, "{:?}", backend.log);
        });
    }
}

#[test]
fn segments_are_done_together_or_not_at_all() {
    type Segments<'a> = &'a [(u64, u32, u32)];
    let cases: [(Segments, Status, usize); 5] = [
        (&[(0, 1, 0), (4, 2, 0), (2, 1, 0)], Status::Ok, 3),
        (&[(0, 1, 0), (15, 2, 0)], Status::IoErr, 0),
        (&[(0, 1, 0), (0, 1, 8)], Status::Unsupported, 0),
        (&[(0, 1, 0), (0, u32::MAX, 0)], Status::IoErr, 0),
        (&[(0, 1, 0); 33], Status::IoErr, 0),
    ];
    for (segments, status, done) in cases {
        let mut bed = Bed::new(8192);
        let bytes: Vec<u8> = segments
            .iter()
            .flat_map(|(sector, sectors, flags)| segment(*sector, *sectors, *flags))
            .collect();
        bed.mem.write_slice(&bytes, GuestAddress(DATA)).unwrap();
        let data = [(DATA, bytes.len() as u32, false)];
        bed.one(RequestType::Discard, 0, &data);
        assert_eq!(bed.status(0), status.raw(), "{segments:?}");
        assert_eq!(bed.backend.log.len(), done);
    }
    // One of several fails.
    let mut bed = Bed::new(8192);
    bed.backend.order = CompletionOrder::Held;
    let bytes = [segment(0, 1, 0), segment(2, 1, 0)].concat();
    bed.mem.write_slice(&bytes, GuestAddress(DATA)).unwrap();
    bed.request(0, RequestType::WriteZeroes, 0, &[(DATA, 32, false)]);
    assert_eq!(bed.kick(), Ok(0));
    bed.backend.fail_next = Some(Errno(28));
    bed.backend.release(1);
    assert_eq!((bed.complete(), bed.used()), (Ok(0), None));
    bed.backend.release(1);
    assert_eq!((bed.complete(), bed.used()), (Ok(1), Some((0, 1))));
    assert_eq!(bed.status(0), Status::IoErr.raw());
}

#[derive(Debug)]
struct Hand(&'static AtomicU64);

impl Clock for Hand {
    fn now(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

#[test]
fn a_limit_holds_requests_back_and_lets_them_go() {
    static NOW: OnceLock<AtomicU64> = OnceLock::new();
    let now = NOW.get_or_init(|| AtomicU64::new(0));
    let mut machine = Machine::new(RING_FEATURES, CompletionOrder::AtOnce);
    let disk = VirtioBlk::new(
        traits(PLACES as u64 * PLACE_BYTES),
        MemBackend::new(machine.memory.clone(), machine.model.clone()),
    );
    // One request every 100 ms, and one that is saved up.
    let limiter = RateLimiter::new(0, 10).unwrap();
    machine.disk = disk.with_limit(limiter, Box::new(Hand(now)));
    assert_eq!(machine.disk.closed_for(), None);
    machine.activate();
    for _ in 0..6 {
        assert!(machine.ask(4));
    }
    machine.notify();
    let mut done = Vec::new();
    for _ in 0..12 {
        machine.serve();
        machine.drive();
        done.push(machine.finished);
        if let Some(wait) = machine.disk.closed_for() {
            assert!(wait <= Duration::from_millis(101), "{wait:?}");
        }
        now.fetch_add(51, Ordering::Relaxed);
        machine.disk.serve();
    }
    for (steps, done) in done.iter().enumerate() {
        assert!(*done <= 2 + steps * 51 / 100, "{done} after {steps} steps");
    }
    assert_eq!(done.last(), Some(&6));
}

#[test]
fn a_driver_that_breaks_the_rules_is_told_once() {
    let mut machine = Machine::new(RING_FEATURES, CompletionOrder::AtOnce);
    machine.driver.offer(31);
    for _ in 0..3 {
        machine.disk.kick(0);
        machine.disk.complete(|_| {});
    }
    assert_eq!(machine.told.resets(), 1);
    let DeviceState::Blk(Some(saved)) = machine.disk.save() else {
        panic!("a disk is saved");
    };
    assert!(saved.needs_reset);
    machine.reset();
    assert!(machine.ask(0));
    machine.notify();
    machine.serve();
    machine.drive();
    assert_eq!(machine.finished, 1, "after a reset it works");
}

#[test]
fn states_that_cannot_be_are_refused() {
    let mut machine = Machine::new(RING_FEATURES, CompletionOrder::AtOnce);
    let good = machine.disk.save();
    let ready = |machine: &Machine| {
        let told = &machine.told;
        Some(told.activation(&machine.memory, RING_FEATURES, &[&machine.driver]))
    };
    let without = DeviceState::Blk(None);
    assert!(machine.disk.restore(&without, ready(&machine)).is_err());
    assert!(machine.disk.restore(&good, None).is_ok());
    assert_eq!(machine.disk.save(), without);
    let mut no_queue = ready(&machine).unwrap();
    no_queue.queues.clear();
    assert!(machine.disk.restore(&good, Some(no_queue)).is_err());
    let in_flight = DeviceState::Blk(Some(BlkState {
        version: STATE_VERSION,
        queue: SavedQueue {
            in_flight: vec![32],
            ..SavedQueue::default()
        },
        needs_reset: false,
    }));
    assert!(machine.disk.restore(&in_flight, ready(&machine)).is_err());
    let other = DeviceState::Rng(None);
    let kind = Err(RestoreError::Kind);
    assert_eq!(machine.disk.restore(&other, ready(&machine)), kind);
}

/// Random rings and tables: any outcome but a panic, and after a reset the disk works.
#[test]
fn random_rings_with_tables_never_panic() {
    let mut seed = 0x5eed_u64;
    let mut next = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed >> 33
    };
    let (mut faults, mut done) = (0, 0);
    for _ in 0..3000 {
        let mut machine = Machine::new(RING_FEATURES, CompletionOrder::AtOnce);
        machine.put(BUFFERS, &(next() % 14).to_le_bytes());
        for table in [RINGS, BUFFERS + 0x400] {
            for index in 0..8 {
                let addr = [BUFFERS, BUFFERS, BUFFERS, BUFFERS + 0x400, 0, u64::MAX];
                let addr = addr[next() as usize % 6].wrapping_add(next() % 2 * 16);
                let len = [16, 512, 1, 128, 16, 0, u32::MAX][next() as usize % 7];
                let flags = [1, 2, 3, 1, 2, 4, 4, 5, 0][next() as usize % 9];
                let link = (flags, (next() % 9) as u16);
                machine
                    .driver
                    .write_descriptor(table, index, (addr, len), link);
            }
        }
        // One good request before, now and then: the header is where many of the others look for theirs.
        if next() % 4 == 0 {
            machine
                .driver
                .write_descriptor(RINGS, 0, (BUFFERS, 16), (1, 1));
            machine
                .driver
                .write_descriptor(RINGS, 1, (BUFFERS + 0x400, 32), (4, 0));
            machine
                .driver
                .write_descriptor(BUFFERS + 0x400, 0, (BUFFERS + 512, 512), (3, 1));
            machine
                .driver
                .write_descriptor(BUFFERS + 0x400, 1, (BUFFERS + 256, 1), (2, 1));
        }
        for _ in 0..1 + next() % 3 {
            machine.driver.offer((next() % 9 / 2) as u16);
        }
        machine.disk.kick(0);
        faults += machine.told.resets();
        done += u32::from(machine.told.resets() == 0);
    }
    assert!(faults > 500 && done > 20, "{faults} faults, {done} good");
}
