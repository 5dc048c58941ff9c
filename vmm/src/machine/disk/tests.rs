//! A disk over a real file, served by its own thread and by I/O threads, against a driver on the test's.

#![allow(clippy::cast_possible_truncation)] // small numbers

use super::*;
use crate::machine::events::{EventThread, Subscriber};
use instar_devices::virtio::Notify;
use instar_devices::virtio::driver::{Buf, DRIVER_BYTES, Driver};
use instar_devices::virtio::testing::Told;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

const RINGS: u64 = 0x10_0000;
const BUFFERS: u64 = RINGS + DRIVER_BYTES;
const DISK_BYTES: u64 = 32 << 20;
/// Of a place in memory and on the disk, of which each request has one for itself.
const PLACE: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(120);

struct Bed {
    file: File,
    memory: Arc<GuestSlot>,
    driver: Driver,
    features: u64,
    device: SharedDevice,
    queues: Arc<QueueEvents>,
    told: Arc<Told>,
    _thread: EventThread,
    _disks: Disks,
}

fn confine() -> Confine {
    Arc::new(|_| Ok(()))
}

fn pattern(len: u64) -> Vec<u8> {
    (0..len).map(|n| (n / 509 % 253) as u8 + 1).collect()
}

impl Bed {
    fn new(rate: Option<RateLimit>, direct_align: u32) -> Self {
        let hole = crate::memory::Hole {
            start: 0xc000_0000,
            end: 0x1_0000_0000,
        };
        let memory = GuestSlot::with_hole(128 << 20, hole).unwrap();
        // In the build folder, which is on a real file system.
        let this = std::env::current_exe().unwrap();
        let file = tempfile::tempfile_in(this.parent().unwrap()).unwrap();
        file.write_all_at(&pattern(DISK_BYTES), 0).unwrap();
        let disks = Disks::new(1).unwrap();
        let disk = Disk {
            file: HostFile::new(file.try_clone().unwrap(), direct_align),
            name: "test".into(),
            len_bytes: DISK_BYTES,
            read_only: false,
            block_device: false,
            serial: "serial number of the disk".into(),
            rate,
        };
        let wired = disks.wire(0, Served::Raw(disk), &memory).unwrap();
        let begun = disks.begin(&confine()).unwrap();
        begun.into_iter().try_for_each(Begun::wait).unwrap();
        let subscribers: Vec<Subscriber> = vec![wired.subscriber];
        let mut thread = EventThread::start(subscribers, &confine()).unwrap();
        thread.wait().unwrap();
        let features = wired.device.lock().unwrap().features();
        let bed = Self {
            driver: Driver::new(memory.dma(), RINGS, 128, features),
            features,
            file,
            memory,
            device: wired.device,
            queues: wired.queues,
            told: Told::new(),
            _thread: thread,
            _disks: disks,
        };
        bed.activate();
        bed
    }

    fn activate(&self) {
        let memory = self.memory.dma();
        let ready = self.told.activation(memory, self.features, &[&self.driver]);
        self.device.lock().unwrap().activate(ready);
    }

    /// Asks for `kind` of `sector` with `data`; the place has header and status before and after it.
    fn ask(&mut self, place: u64, kind: u32, sector: u64, data: Option<(u32, bool)>) -> u16 {
        let room = BUFFERS + place * (PLACE + 0x1000);
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.memory.write(room, &header).unwrap();
        self.memory.write(room + 16, &[0xee]).unwrap();
        let mut buffers: Vec<Buf> = vec![(room, 16, false)];
        if let Some((len, write)) = data {
            buffers.push((room + 0x1000, len, write));
        }
        buffers.push((room + 16, 1, true));
        let head = self.driver.add(&buffers, true).expect("room in the queue");
        if self.driver.must_kick() {
            self.queues.notify(0);
        }
        head
    }

    fn data_at(place: u64) -> u64 {
        BUFFERS + place * (PLACE + 0x1000) + 0x1000
    }

    fn status(&self, place: u64) -> u8 {
        let mut status = [0];
        let at = Self::data_at(place) - 0x1000 + 16;
        self.memory.read(at, &mut status).unwrap();
        status[0]
    }

    /// Sleeps as a driver does, until the device interrupts.
    fn sleep(&mut self) {
        if !self.driver.sleep() {
            return;
        }
        let began = Instant::now();
        while !self.told.take_queue(0) {
            assert!(began.elapsed() < LONG, "no interrupt");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// The next request that is done.
    fn next(&mut self) -> u16 {
        loop {
            if let Some((head, _)) = self.driver.take_used() {
                return head;
            }
            self.sleep();
        }
    }

    /// One request to its end.
    fn one(&mut self, kind: u32, sector: u64, data: Option<(u32, bool)>) -> u8 {
        let head = self.ask(0, kind, sector, data);
        assert_eq!(self.next(), head);
        self.status(0)
    }
}

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;

/// Requests of all lengths, many at once, through the page cache and past it.
fn hammer(direct_align: u32) {
    let mut bed = Bed::new(None, direct_align);
    let mut model = pattern(DISK_BYTES);
    let mut asked = BTreeMap::new();
    let mut free: Vec<u64> = (0..32).collect();
    let mut seed = 7_u64;
    let mut next = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed >> 33
    };
    for round in 0..3000_u64 {
        while !free.is_empty() && next() % 8 != 0 {
            let place = free.swap_remove(next() as usize % free.len());
            let sectors = match next() % 4 {
                0 => 2048,
                1 => 1 + next() % 2047,
                _ => 1 + next() % 16,
            };
            let sector = place * 2048 + next() % (2049 - sectors);
            let len = sectors * 512;
            let (kind, data) = match next() % 8 {
                0 => (FLUSH, None),
                1..=3 => (OUT, Some((len as u32, false))),
                _ => (IN, Some((len as u32, true))),
            };
            let from = sector as usize * 512;
            let range = from..from + len as usize;
            if kind == OUT {
                let bytes = vec![round as u8; len as usize];
                bed.memory.write(Bed::data_at(place), &bytes).unwrap();
                model[range.clone()].copy_from_slice(&bytes);
            }
            let sector = if kind == FLUSH { 0 } else { sector };
            let head = bed.ask(place, kind, sector, data);
            asked.insert(head, (place, kind, range));
        }
        if asked.is_empty() {
            continue;
        }
        let head = bed.next();
        let (place, kind, range) = asked.remove(&head).expect("it was asked for");
        assert_eq!(bed.status(place), 0, "{kind} {range:?}");
        if kind == IN {
            let mut bytes = vec![0; range.len()];
            bed.memory.read(Bed::data_at(place), &mut bytes).unwrap();
            assert!(bytes == model[range.clone()], "{range:?} reads otherwise");
        }
        free.push(place);
    }
    while !asked.is_empty() {
        asked.remove(&bed.next()).expect("it was asked for");
    }
    let mut stored = vec![0; DISK_BYTES as usize];
    bed.file.read_exact_at(&mut stored, 0).unwrap();
    assert!(stored == model, "the file holds something else");
    assert_eq!(bed.told.resets(), 0);
}

#[test]
fn many_requests_through_the_page_cache() {
    hammer(0);
}

#[test]
fn many_requests_past_the_page_cache() {
    hammer(4096);
}

/// After a reset nothing touches the guest's memory, whatever was on its way.
#[test]
fn a_reset_waits_for_what_is_on_its_way() {
    let mut bed = Bed::new(None, 4096);
    for round in 0..200_u64 {
        for place in 0..24 {
            bed.ask(place, IN, place * 2048, Some((PLACE as u32, true)));
        }
        if round % 3 == 0 {
            bed.next();
        }
        bed.device.lock().unwrap().reset();
        let zeros = vec![0; PLACE as usize];
        for place in 0..24 {
            bed.memory.write(Bed::data_at(place), &zeros).unwrap();
        }
        std::thread::sleep(Duration::from_micros(200));
        for place in 0..24 {
            let mut bytes = vec![1; PLACE as usize];
            bed.memory.read(Bed::data_at(place), &mut bytes).unwrap();
            assert!(bytes == zeros, "round {round}: place {place} was written");
        }
        bed.driver = Driver::new(bed.memory.dma(), RINGS, 128, bed.features);
        let _ = bed.told.take_queue(0);
        bed.activate();
    }
    assert_eq!(bed.one(IN, 0, Some((4096, true))), 0);
    assert_eq!(bed.told.resets(), 0);
}

#[test]
fn a_disk_goes_on_elsewhere_with_requests_on_their_way() {
    let mut bed = Bed::new(None, 4096);
    let mut finished = 0;
    for round in 0..100_u8 {
        let mut asked = Vec::new();
        for place in 0..24 {
            let bytes = vec![round.wrapping_add(place as u8); PLACE as usize];
            bed.memory.write(Bed::data_at(place), &bytes).unwrap();
            let head = bed.ask(place, OUT, place * 2048, Some((PLACE as u32, false)));
            asked.push(head);
        }
        let mut device = bed.device.lock().unwrap();
        let saved = device.save();
        device.reset();
        let ready = bed
            .told
            .activation(bed.memory.dma(), bed.features, &[&bed.driver]);
        device.restore(&saved, Some(ready)).unwrap();
        drop(device);
        bed.queues.wake();
        while !asked.is_empty() {
            let head = bed.next();
            asked.retain(|asked| *asked != head);
            finished += 1;
        }
        let mut stored = vec![0; PLACE as usize];
        let place = u64::from(round) % 24;
        bed.file.read_exact_at(&mut stored, place * PLACE).unwrap();
        assert!(
            stored
                .iter()
                .all(|byte| *byte == round.wrapping_add(place as u8))
        );
    }
    assert_eq!(finished, 2400);
}

#[test]
fn identifier_discard_and_what_is_past_the_end() {
    let mut bed = Bed::new(None, 0);
    assert_eq!(bed.one(GET_ID, 0, Some((20, true))), 0);
    let mut id = [0; 20];
    bed.memory.read(Bed::data_at(0), &mut id).unwrap();
    assert_eq!(&id, b"serial number of the");
    let mut segment = [0; 16];
    segment[0] = 8;
    segment[8] = 128;
    bed.memory.write(Bed::data_at(0), &segment).unwrap();
    assert_eq!(bed.one(DISCARD, 0, Some((16, false))), 0);
    let mut bytes = vec![1; 128 * 512];
    bed.file.read_exact_at(&mut bytes, 8 * 512).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
    assert_eq!(bed.one(OUT, DISK_BYTES / 512 - 1, Some((1024, false))), 1);
    assert_eq!(bed.file.metadata().unwrap().len(), DISK_BYTES);
}

#[test]
fn a_limit_is_kept_by_the_timer() {
    let rate = RateLimit {
        bytes_per_second: 0,
        requests_per_second: 100,
    };
    let mut bed = Bed::new(Some(rate), 0);
    let began = Instant::now();
    for place in 0..31 {
        bed.ask(place, IN, 0, Some((512, true)));
    }
    for _ in 0..31 {
        bed.next();
    }
    // Ten are saved up, the others come in a fifth of a second.
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(190), "{took:?}");
}
