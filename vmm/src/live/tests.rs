//! The data path over a source in memory: random requests at once against a model, and what hostile answers do.

#![allow(clippy::cast_possible_truncation)] // small numbers

use super::backend::{Answered, LiveBackend, LiveFile, LiveParts, Questions};
use super::check::Window;
use super::source::{Answer, DiskInfo, Extent, ExtentKind, Question, SourceGone};
use crate::block::{Finish, Finished, HostFile, IoPool};
use crate::memory::{GuestSlot, Hole};
use instar_devices::blk::{
    BlockBackend, Completion, Errno, GuestBuffer, IoKind, IoRequest, Submission, Token,
};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use vm_memory::GuestAddress;

const CLUSTER: u64 = 4096;
const CLUSTERS: u64 = 64;
const DISK: u64 = CLUSTER * CLUSTERS - 1024;
const SECTOR: u64 = 512;

/// Numbers from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % below
    }
}

/// What a cluster of the fake image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cluster {
    Backing,
    Zero,
    Own(u64),
    Shared(u64),
    Fetch,
}

/// An image: cluster by cluster, over an own file and a backing one.
#[derive(Debug)]
struct Image {
    map: Vec<Cluster>,
    own: File,
    backing: File,
    fetched: Vec<u8>,
    free: Vec<u64>,
    next: u64,
    tickets: BTreeMap<u32, Vec<(usize, u64)>>,
    last_ticket: u32,
    flushes: usize,
    links_since_flush: usize,
}

impl Image {
    fn bytes(&self, index: usize) -> Vec<u8> {
        let mut bytes = vec![0; CLUSTER as usize];
        let at = index as u64 * CLUSTER;
        match self.map[index] {
            Cluster::Zero => {}
            Cluster::Backing => {
                let _ = self.backing.read_at(&mut bytes, at).unwrap();
            }
            Cluster::Own(offset) | Cluster::Shared(offset) => {
                let _ = self.own.read_at(&mut bytes, offset).unwrap();
            }
            Cluster::Fetch => {
                bytes.copy_from_slice(&self.fetched[at as usize..][..CLUSTER as usize]);
            }
        }
        bytes
    }

    fn extent(&self, index: usize) -> Extent {
        let start = index as u64 * CLUSTER;
        let data = |file, offset, in_place| ExtentKind::Data {
            file,
            offset,
            in_place,
        };
        Extent {
            start,
            len: CLUSTER.min(DISK - start),
            kind: match self.map[index] {
                Cluster::Backing => data(1, start, false),
                Cluster::Zero => ExtentKind::Zero,
                Cluster::Own(offset) => data(0, offset, true),
                Cluster::Shared(offset) => data(0, offset, false),
                Cluster::Fetch => ExtentKind::Fetch,
            },
        }
    }

    fn new_cluster(&mut self) -> u64 {
        self.free.pop().unwrap_or_else(|| {
            self.next += CLUSTER;
            self.next
        })
    }

    fn answer(&mut self, question: Question, dice: &mut Dice) -> Answer {
        let index = |at: u64| (at / CLUSTER) as usize;
        match question {
            Question::Lookup { start, .. } => {
                let first = index(start);
                let last = (first + 1 + dice.roll(20) as usize).min(CLUSTERS as usize);
                Answer::Extents((first..last).map(|at| self.extent(at)).collect())
            }
            Question::Allocate { start, len } => {
                if dice.roll(50) == 0 {
                    return Answer::Refused(Errno(28));
                }
                self.allocate(index(start), index(start + len - 1))
            }
            Question::Link { ticket } => {
                for (index, offset) in self.tickets.remove(&ticket).expect("a known ticket") {
                    self.map[index] = Cluster::Own(offset);
                }
                self.links_since_flush += 1;
                Answer::Done
            }
            Question::Abandon { ticket } => {
                for (_, offset) in self.tickets.remove(&ticket).expect("a known ticket") {
                    self.free.push(offset);
                }
                Answer::Done
            }
            Question::Discard { start, len } | Question::WriteZeroes { start, len, .. } => {
                self.zero(start, len, matches!(question, Question::Discard { .. }));
                Answer::Done
            }
            Question::Fetch { start, len } => {
                let bytes = (index(start)..=index(start + len - 1)).flat_map(|at| {
                    assert_eq!(self.map[at], Cluster::Fetch);
                    self.bytes(at)
                });
                let skip = (start % CLUSTER) as usize;
                Answer::Bytes(bytes.skip(skip).take(len as usize).collect())
            }
            Question::Flush => {
                self.flushes += 1;
                self.links_since_flush = 0;
                Answer::Done
            }
            Question::Close => Answer::Done,
        }
    }

    fn allocate(&mut self, first: usize, last: usize) -> Answer {
        let mut extents = Vec::new();
        let mut made = Vec::new();
        for at in first..=last {
            let mut extent = self.extent(at);
            if !matches!(self.map[at], Cluster::Own(_)) {
                let offset = self.new_cluster();
                self.own.write_all_at(&self.bytes(at), offset).unwrap();
                made.push((at, offset));
                extent.kind = ExtentKind::Data {
                    file: 0,
                    offset,
                    in_place: true,
                };
            }
            extents.push(extent);
        }
        let mut ticket = 0;
        if !made.is_empty() {
            self.last_ticket += 1;
            ticket = self.last_ticket;
            self.tickets.insert(ticket, made);
        }
        Answer::Allocated { ticket, extents }
    }

    fn zero(&mut self, start: u64, len: u64, hint: bool) {
        let end = start + len;
        for at in (start / CLUSTER) as usize..=((end - 1) / CLUSTER) as usize {
            let (from, to) = (at as u64 * CLUSTER, DISK.min((at as u64 + 1) * CLUSTER));
            if start <= from && to <= end {
                // Its place is another's soon.
                if let Cluster::Own(offset) = self.map[at] {
                    self.own
                        .write_all_at(&[0xdd; CLUSTER as usize], offset)
                        .unwrap();
                    self.free.push(offset);
                }
                self.map[at] = Cluster::Zero;
            } else if !hint {
                let mut bytes = self.bytes(at);
                let (skip, until) = (start.max(from) - from, end.min(to) - from);
                bytes[skip as usize..until as usize].fill(0);
                let offset = match self.map[at] {
                    Cluster::Own(offset) => offset,
                    _ => self.new_cluster(),
                };
                self.own.write_all_at(&bytes, offset).unwrap();
                self.map[at] = Cluster::Own(offset);
            }
        }
    }
}

/// Asks the image, in batches, and hears its answers later.
#[derive(Debug)]
struct Fake {
    image: Arc<Mutex<Image>>,
    seed: u64,
    taken: VecDeque<(Option<u64>, Question)>,
    answered: VecDeque<Answered>,
    /// Instead of the image's.
    lie: Option<fn(Question, Answer) -> Option<Answer>>,
}

impl Fake {
    fn step(&mut self) {
        let mut dice = Dice(self.seed);
        for _ in 0..dice.roll(4) {
            let Some((by, question)) = self.taken.pop_front() else {
                break;
            };
            let mut answer = self.image.lock().unwrap().answer(question, &mut dice);
            if let Some(lie) = self.lie
                && let Some(other) = lie(question, answer.clone())
            {
                answer = other;
            }
            self.answered.push_back(Answered {
                by,
                question,
                answer,
            });
        }
        self.seed = dice.0;
    }
}

impl Questions for Fake {
    fn ask(&mut self, by: Option<u64>, question: Question) {
        self.taken.push_back((by, question));
    }

    fn send(&mut self) -> Result<(), SourceGone> {
        Ok(())
    }

    fn answers(&mut self) -> Result<Vec<Answered>, SourceGone> {
        let mut dice = Dice(self.seed ^ 55);
        let count = dice.roll(self.answered.len() as u64 + 1) as usize;
        Ok(self.answered.drain(..count).collect())
    }

    fn forget(&mut self) {
        let mut tickets = Vec::new();
        for answered in self.answered.drain(..) {
            if let Answer::Allocated { ticket, .. } = answered.answer
                && ticket != 0
            {
                tickets.push(ticket);
            }
        }
        self.taken.retain(|(_, question)| {
            matches!(question, Question::Link { .. } | Question::Abandon { .. })
        });
        for ticket in tickets {
            self.taken.push_back((None, Question::Abandon { ticket }));
        }
    }

    fn holds(&self) -> bool {
        false
    }

    fn end(&mut self) {
        self.forget();
    }
}

#[derive(Debug, Default)]
struct Done(Mutex<Vec<Finished>>);

impl Finish for Done {
    fn finish(&self, finished: Finished) {
        self.0.lock().unwrap().push(finished);
    }

    fn forget(&self, _slot: u16) {
        self.0.lock().unwrap().clear();
    }
}

struct Bed {
    backend: LiveBackend<Fake>,
    image: Arc<Mutex<Image>>,
    memory: Arc<GuestSlot>,
    done: Arc<Done>,
    model: Vec<u8>,
}

fn temp() -> File {
    tempfile::tempfile().unwrap()
}

fn live_file(file: &File, writable: bool) -> LiveFile {
    LiveFile {
        file: Arc::new(HostFile::from(file.try_clone().unwrap())),
        window: Window {
            writable,
            max_len_bytes: 1 << 30,
        },
        block_device: false,
    }
}

impl Bed {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let (own, backing) = (temp(), temp());
        let bytes: Vec<u8> = (0..DISK + 1024).map(|_| dice.roll(255) as u8).collect();
        backing.write_all_at(&bytes[..bytes.len() / 2], 0).unwrap();
        let mut image = Image {
            map: vec![Cluster::Zero; CLUSTERS as usize],
            own,
            backing,
            fetched: bytes.clone(),
            free: Vec::new(),
            next: 0,
            tickets: BTreeMap::new(),
            last_ticket: 0,
            flushes: 0,
            links_since_flush: 0,
        };
        for at in 0..CLUSTERS as usize {
            let offset = image.new_cluster();
            image
                .own
                .write_all_at(&bytes[at * 7..][..4096], offset)
                .unwrap();
            image.map[at] = match dice.roll(5) {
                0 => Cluster::Backing,
                1 => Cluster::Own(offset),
                2 => Cluster::Shared(offset),
                3 => Cluster::Fetch,
                _ => Cluster::Zero,
            };
        }
        let mut model: Vec<u8> = (0..CLUSTERS as usize)
            .flat_map(|at| image.bytes(at))
            .collect();
        model.truncate(DISK as usize);
        let files = vec![
            Some(live_file(&image.own, true)),
            Some(live_file(&image.backing, false)),
        ];
        let hole = Hole {
            start: 0xc000_0000,
            end: 0x1_0000_0000,
        };
        let memory = GuestSlot::with_hole(64 << 20, hole).unwrap();
        let done = Arc::new(Done::default());
        let pool = Arc::new(IoPool::new(Arc::clone(&done) as Arc<dyn Finish>));
        pool.start(2, &(Arc::new(|_| Ok(())) as crate::operation::Confine))
            .unwrap();
        let image = Arc::new(Mutex::new(image));
        let parts = LiveParts {
            slot: 0,
            info: DiskInfo {
                len_bytes: DISK,
                cluster_bytes: CLUSTER as u32,
                read_only: false,
            },
            files,
            memory: Arc::clone(&memory),
            pool,
            id: [0; 20],
        };
        let fake = Fake {
            image: Arc::clone(&image),
            seed: seed ^ 99,
            taken: VecDeque::new(),
            answered: VecDeque::new(),
            lie: None,
        };
        Self {
            backend: LiveBackend::new(parts, fake).unwrap(),
            image,
            memory,
            done,
            model,
        }
    }

    /// What threads and source have done; what has ended.
    fn step(&mut self) -> Vec<(Token, Completion)> {
        self.backend.questions().step();
        self.backend.take_answers();
        let finished = std::mem::take(&mut *self.done.0.lock().unwrap());
        for done in finished {
            self.backend.take_finished(done.token, done.completion);
        }
        std::iter::from_fn(|| self.backend.poll()).collect()
    }

    fn submit(&mut self, token: Token, kind: IoKind, place: u64, len: u64) -> Option<Completion> {
        // In two pieces, as drivers do.
        let first = (len / 3) as u32;
        let buffer = |at, len| GuestBuffer {
            addr: GuestAddress(at),
            len,
        };
        let buffers = match kind {
            IoKind::Read { .. } | IoKind::Write { .. } => vec![
                buffer(place, first),
                buffer(place + u64::from(first), len as u32 - first),
            ],
            _ => Vec::new(),
        };
        match self.backend.submit(token, IoRequest { kind, buffers }) {
            Submission::Done(completion) => Some(completion),
            Submission::Pending => None,
        }
    }

    /// One request to its end.
    fn whole(&mut self, kind: IoKind, len: u64) -> Result<u32, Errno> {
        if let Some(completion) = self.submit(1 << 40, kind, 0, len) {
            return completion.result;
        }
        for _ in 0..100_000 {
            if let Some((_, completion)) = self.step().pop() {
                return completion.result;
            }
            std::thread::yield_now();
        }
        panic!("{kind:?} does not end");
    }

    fn check_all(&mut self) {
        for at in (0..DISK).step_by(32 << 10) {
            let len = (32 << 10).min(DISK - at);
            assert_eq!(self.whole(IoKind::Read { offset: at }, len), Ok(len as u32));
            let mut seen = vec![0; len as usize];
            self.memory.read(0, &mut seen).unwrap();
            let model = &self.model[at as usize..][..len as usize];
            assert!(seen == model, "bytes {at}..{}", at + len);
        }
    }
}

/// A request on its way.
struct Flying {
    kind: IoKind,
    place: u64,
    range: std::ops::Range<usize>,
    bytes: Vec<u8>,
}

fn random_io(seed: u64, steps: usize) {
    let mut bed = Bed::new(seed);
    let mut dice = Dice(seed ^ 0xabcd);
    let mut flying: BTreeMap<Token, Flying> = BTreeMap::new();
    for token in 0..steps as u64 {
        let start = dice.roll(DISK / SECTOR) * SECTOR;
        let longest = if dice.roll(8) == 0 { 60 } else { 10 };
        let len = (SECTOR * (1 + dice.roll(longest))).min(DISK - start);
        let range = start as usize..(start + len) as usize;
        let free =
            |other: &Flying| other.range.end <= range.start || range.end <= other.range.start;
        if flying.len() < 16 && flying.values().all(free) {
            let kind = match dice.roll(20) {
                0..8 => IoKind::Read { offset: start },
                8..16 => IoKind::Write { offset: start },
                16 => IoKind::Discard { offset: start, len },
                17 => IoKind::WriteZeroes {
                    offset: start,
                    len,
                    unmap: true,
                },
                _ => IoKind::Flush,
            };
            let place = (1 + token % 512) * 64 * 1024;
            let mut bytes = vec![token as u8; len as usize];
            bytes[0] = (token >> 8) as u8;
            bed.memory.write(place, &bytes).unwrap();
            let one = Flying {
                kind,
                place,
                range: if kind == IoKind::Flush { 0..0 } else { range },
                bytes,
            };
            flying.insert(token, one);
            if let Some(completion) = bed.submit(token, kind, place, len) {
                settle(&mut bed, flying.remove(&token).unwrap(), completion);
            }
        }
        for (token, completion) in bed.step() {
            settle(&mut bed, flying.remove(&token).unwrap(), completion);
        }
    }
    let mut rounds = 0;
    while !flying.is_empty() {
        for (token, completion) in bed.step() {
            settle(&mut bed, flying.remove(&token).unwrap(), completion);
        }
        rounds += 1;
        assert!(rounds < 1_000_000, "{} requests do not end", flying.len());
        std::thread::yield_now();
    }
    bed.check_all();
    assert_eq!(bed.whole(IoKind::Flush, 0), Ok(0));
    let image = bed.image.lock().unwrap();
    assert!(image.flushes > 0 && image.tickets.is_empty());
    assert_eq!(image.links_since_flush, 0);
    // The image itself says the same.
    for at in 0..CLUSTERS as usize {
        let model = &bed.model[at * 4096..((at + 1) * 4096).min(DISK as usize)];
        assert!(image.bytes(at)[..model.len()] == *model, "cluster {at}");
    }
    drop(image);
}

/// A request has ended: what it read is so, what it wrote goes into the model.
fn settle(bed: &mut Bed, one: Flying, completion: Completion) {
    let model = &mut bed.model[one.range.clone()];
    match (one.kind, completion.result) {
        (IoKind::Read { .. }, Ok(filled)) => {
            assert_eq!(filled as usize, one.range.len());
            let mut seen = vec![0; one.range.len()];
            bed.memory.read(one.place, &mut seen).unwrap();
            assert!(seen == model, "read of {:?}", one.range);
        }
        (IoKind::Write { .. }, Ok(0)) => model.copy_from_slice(&one.bytes),
        // No space: a part of what was in place before may be written.
        (IoKind::Write { .. }, Err(Errno(28))) => reread(bed, one.range),
        (IoKind::Discard { .. }, Ok(0)) => {
            let from = (one.range.start as u64).next_multiple_of(CLUSTER);
            let end = one.range.end as u64;
            let to = if end == DISK {
                end
            } else {
                end - end % CLUSTER
            };
            if from < to {
                bed.model[from as usize..to as usize].fill(0);
            }
        }
        (IoKind::WriteZeroes { .. }, Ok(0)) => model.fill(0),
        (IoKind::Flush, Ok(0)) => {}
        (kind, result) => panic!("{kind:?}: {result:?}"),
    }
}

/// What failed writes left is what the image has.
fn reread(bed: &mut Bed, range: std::ops::Range<usize>) {
    let image = bed.image.lock().unwrap();
    for at in range {
        bed.model[at] = image.bytes(at / 4096)[at % 4096];
    }
}

#[test]
fn random_requests_at_once_are_as_in_a_model() {
    for seed in 1..=40 {
        println!("seed {seed}");
        random_io(seed, 1500);
    }
}

#[test]
fn what_is_known_is_not_asked_again() {
    let mut bed = Bed::new(3);
    bed.check_all();
    assert_eq!(bed.whole(IoKind::Write { offset: 0 }, DISK), Ok(0));
    bed.backend.questions().lie = Some(|question, _| {
        assert!(matches!(question, Question::Link { .. }), "{question:?}");
        None
    });
    for offset in (0..DISK).step_by(512) {
        assert_eq!(bed.whole(IoKind::Write { offset }, 512), Ok(0));
        assert_eq!(bed.whole(IoKind::Read { offset }, 512), Ok(512));
    }
}

#[test]
fn a_stop_leaves_no_allocation_behind() {
    for seed in 0..60 {
        let mut bed = Bed::new(seed);
        for (token, offset) in (0..).zip((0..DISK).step_by(8192)) {
            let _ = bed.submit(token, IoKind::Write { offset }, 1 << 20, 4096 + 512);
        }
        for _ in 0..seed % 7 {
            bed.step();
        }
        bed.backend.stop();
        for _ in 0..1000 {
            assert!(bed.step().is_empty());
        }
        assert!(bed.image.lock().unwrap().tickets.is_empty());
        let model: Vec<u8> = {
            let image = bed.image.lock().unwrap();
            (0..CLUSTERS as usize)
                .flat_map(|at| image.bytes(at))
                .collect()
        };
        bed.model.copy_from_slice(&model[..DISK as usize]);
        bed.check_all();
    }
}

#[test]
fn hostile_answers_are_errors_and_the_end() {
    let endless: fn(Question, Answer) -> Option<Answer> = |_, _| {
        let kind = ExtentKind::Zero;
        let all = (0..5000).map(|at| Extent {
            start: at * 512,
            len: 512,
            kind,
        });
        Some(Answer::Extents(all.collect()))
    };
    let outside: fn(Question, Answer) -> Option<Answer> = |_, answer| match answer {
        Answer::Extents(mut extents) | Answer::Allocated { mut extents, .. } => {
            for extent in &mut extents {
                extent.kind = ExtentKind::Data {
                    file: 0,
                    offset: (1 << 30) - 100,
                    in_place: true,
                };
            }
            Some(Answer::Extents(extents))
        }
        other => Some(other),
    };
    let lies: [fn(Question, Answer) -> Option<Answer>; 6] = [
        |_, _| Some(Answer::Done),
        |_, _| Some(Answer::Extents(Vec::new())),
        |_, _| Some(Answer::Bytes(vec![0; 7])),
        |question, _| match question {
            Question::Allocate { start, len } => Some(Answer::Allocated {
                ticket: 5,
                extents: vec![Extent {
                    start,
                    len,
                    kind: ExtentKind::Data {
                        file: 1,
                        offset: 0,
                        in_place: true,
                    },
                }],
            }),
            _ => Some(Answer::Bytes(Vec::new())),
        },
        endless,
        outside,
    ];
    for (at, lie) in lies.into_iter().enumerate() {
        for kind in [IoKind::Read { offset: 0 }, IoKind::Write { offset: 0 }] {
            let mut bed = Bed::new(7);
            bed.backend.questions().lie = Some(lie);
            assert_eq!(bed.whole(kind, DISK), Err(Errno::EIO), "lie {at}, {kind:?}");
            let gone = bed.backend.gone().unwrap().to_string();
            assert!(gone.contains("the disk cannot be used any more"), "{gone}");
            assert_eq!(bed.whole(IoKind::Read { offset: 0 }, 512), Err(Errno::EIO));
            assert_eq!(bed.whole(IoKind::Flush, 0), Err(Errno::EIO));
        }
    }
}

#[test]
fn a_link_that_is_refused_is_the_end() {
    let mut bed = Bed::new(2);
    bed.backend.questions().lie = Some(|question, _| {
        matches!(question, Question::Link { .. }).then_some(Answer::Refused(Errno(28)))
    });
    let _ = bed.whole(IoKind::Write { offset: 0 }, DISK);
    for _ in 0..1000 {
        bed.step();
    }
    assert!(bed.backend.gone().is_some());
}

#[test]
fn what_lies_outside_of_the_disk_is_refused() {
    let mut bed = Bed::new(1);
    for kind in [
        IoKind::Read { offset: DISK - 512 },
        IoKind::Write { offset: u64::MAX },
    ] {
        assert_eq!(bed.whole(kind, 1024), Err(Errno::EINVAL));
    }
    let kind = IoKind::SetLength { len: 5 };
    assert_eq!(bed.whole(kind, 0), Err(Errno::EOPNOTSUPP));
}
