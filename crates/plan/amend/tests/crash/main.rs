//! Power cuts, failing disks and damaged images. Whatever of an amend reached the
//! disk, the image is the old one or the new one, without an error, and its guest
//! data is what it was.
//!
//! `AMEND_SEED` repeats a run, `AMEND_CASES` sets the number of damaged images.

// Test code may end in a panic, and its numbers are small.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::cast_possible_truncation)]

#[allow(dead_code)]
#[path = "../oracle/images.rs"]
mod images;

use instar_plan_amend::{AmendError, Image, Layer, Request, amend};
use instar_plan_check::{CheckSummary, MessageKind, Reporter, check};
use instar_plan_resize::read_guest;
use instar_plan_txn::{Cancelled, Monitor};
use instar_qcow2::snapshot::SnapshotTable;
use instar_qcow2::{Header, OpenMode};
use instar_storage::{
    Calls, CrashStorage, Fault, FaultyStorage, MemStorage, Storage, StorageMut, crash,
};
use std::fs::File;

struct Free;

impl Monitor for Free {
    fn progress(&mut self, _: u64, _: u64) -> Result<(), Cancelled> {
        Ok(())
    }
    fn grant(&mut self, bytes: u64) -> u64 {
        bytes
    }
}

#[derive(Default)]
struct Lines(Vec<String>);

impl Reporter for Lines {
    fn message(&mut self, _: MessageKind, line: &[u8]) {
        self.0.push(String::from_utf8_lossy(line).into_owned());
    }
    fn progress(&mut self, _: u64, _: u64) -> Result<(), instar_plan_check::Cancelled> {
        Ok(())
    }
    fn grant(&mut self, bytes: u64) -> u64 {
        bytes
    }
}

const V2: Option<u32> = Some(2);
const V3: Option<u32> = Some(3);
const NOTHING: Request<'static> = Request {
    size: None,
    version: None,
    backing_file: None,
    backing_format: None,
    data_file: None,
    data_file_raw: None,
    lazy_refcounts: None,
    refcount_bits: None,
};

/// Images and what is asked of them.
const CASES: &[(&str, Request<'static>)] = &[
    (
        "zeros 512",
        Request {
            version: V2,
            ..NOTHING
        },
    ),
    (
        "zeros over backing 4k",
        Request {
            version: V2,
            ..NOTHING
        },
    ),
    (
        "zeros in snapshots",
        Request {
            version: V2,
            ..NOTHING
        },
    ),
    (
        "zeros over a snapshot's data",
        Request {
            version: V2,
            ..NOTHING
        },
    ),
    (
        "shared zeros, tables apart",
        Request {
            version: V2,
            ..NOTHING
        },
    ),
    (
        "preallocated zeros",
        Request {
            version: V2,
            ..NOTHING
        },
    ),
    (
        "bitmaps",
        Request {
            version: V2,
            ..NOTHING
        },
    ),
    (
        "64 bit 512 zeros",
        Request {
            version: V2,
            refcount_bits: Some(16),
            size: Some(1 << 20),
            ..NOTHING
        },
    ),
    (
        "v2 snapshots with 8 bytes",
        Request {
            version: V3,
            refcount_bits: Some(64),
            ..NOTHING
        },
    ),
    (
        "v2 short snapshots",
        Request {
            version: V3,
            size: Some(3 << 20),
            lazy_refcounts: Some(true),
            ..NOTHING
        },
    ),
    (
        "v2 backing unknown extension",
        Request {
            version: V3,
            ..NOTHING
        },
    ),
    (
        "2 bit snapshots",
        Request {
            refcount_bits: Some(32),
            ..NOTHING
        },
    ),
    (
        "v3 unknown things",
        Request {
            refcount_bits: Some(1),
            lazy_refcounts: Some(true),
            size: Some(3 << 20),
            ..NOTHING
        },
    ),
    (
        "raw data file",
        Request {
            data_file: Some(b"other"),
            data_file_raw: Some(false),
            ..NOTHING
        },
    ),
];

/// An image in memory, and the backing file that it may have.
struct Start {
    image: MemStorage,
    backing: MemStorage,
}

fn start(name: &str) -> Start {
    let dir = tempfile::tempdir().unwrap();
    let plan = images::PLANS.iter().find(|plan| plan.name == name);
    let path = images::make(plan.unwrap(), dir.path());
    let load = |path| MemStorage::load(&File::open(path).unwrap()).unwrap();
    let backing = dir.path().join(images::BACKING);
    Start {
        image: load(path),
        backing: if backing.exists() {
            load(backing)
        } else {
            MemStorage::default()
        },
    }
}

fn run<S: StorageMut>(
    storage: &S,
    backing: &S,
    request: &Request<'_>,
) -> Result<Header, AmendError> {
    let header = Header::read(storage, OpenMode::Change).unwrap();
    let below = Layer {
        storage: backing,
        data: None,
        header: None,
        cipher: None,
    };
    let below = header.backing_file.is_some().then_some(below);
    let image = Image {
        storage,
        data: None,
        header: &header,
        cipher: None,
    };
    amend(image, below.as_slice(), request, &mut Free)
}

fn judge(storage: &impl Storage) -> (CheckSummary, Vec<String>) {
    let header = Header::read(storage, OpenMode::Change).unwrap_or_else(|e| panic!("{e}"));
    let mut lines = Lines::default();
    let summary = check(storage, &header, &mut lines).unwrap();
    (summary, lines.0)
}

fn assert_sound(storage: &impl Storage, what: &str) {
    let (summary, lines) = judge(storage);
    let errors = (summary.corruptions, summary.leaks, summary.check_errors);
    assert_eq!(errors, (0, 0, 0), "{what}: {lines:?}");
}

/// What tells the old image from the new one.
fn identity(storage: &MemStorage) -> impl PartialEq + std::fmt::Debug + use<> {
    let header = Header::read(storage, OpenMode::Change).unwrap();
    (
        (header.version, header.refcount_order, header.virtual_size),
        (header.compatible, header.autoclear, header.incompatible),
        header.extensions.data_file_name,
    )
}

/// Bytes of the disk and of each snapshot.
fn content(storage: &MemStorage, backing: &MemStorage) -> Vec<Vec<u8>> {
    let header = Header::read(storage, OpenMode::Change).unwrap();
    if header.incompatible.external_data_file() {
        return Vec::new();
    }
    let mut disks = vec![header.clone()];
    for snapshot in SnapshotTable::new(storage, &header) {
        let snapshot = snapshot.unwrap();
        disks.push(Header {
            l1_table_offset: snapshot.l1_table_offset,
            l1_size: snapshot.l1_size,
            virtual_size: snapshot.disk_size.unwrap_or(header.virtual_size),
            ..header.clone()
        });
    }
    disks
        .iter()
        .map(|header| disk(storage, backing, header))
        .collect()
}

fn disk(storage: &MemStorage, backing: &MemStorage, header: &Header) -> Vec<u8> {
    let top = Layer {
        storage,
        data: None,
        header: Some(header),
        cipher: None,
    };
    let below = Layer {
        storage: backing,
        data: None,
        header: None,
        cipher: None,
    };
    let layers = [top, below];
    let layers = if header.backing_file.is_some() {
        &layers[..]
    } else {
        &layers[..1]
    };
    let mut bytes = vec![0; header.virtual_size as usize];
    read_guest(layers, 0, &mut bytes).unwrap();
    bytes
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().expect("a number"))
}

fn seed() -> u64 {
    let seed = number("AMEND_SEED").unwrap_or(20_261_121);
    println!("AMEND_SEED={seed}");
    seed
}

/// How many states are judged for one whose guest data is compared as well.
const STATES_PER_CONTENT: usize = 16;

#[test]
fn every_crash_state_is_the_old_image_or_the_new_one() {
    let seed = seed();
    for (name, request) in CASES {
        let Start { image, backing } = start(name);
        let (old, old_content) = (identity(&image), content(&image, &backing));
        let storage = CrashStorage::new(image);
        let below = CrashStorage::new(backing.clone());
        run(&storage, &below, request).unwrap_or_else(|e| panic!("{name}: {e}"));
        let now = storage.image();
        let (new, new_content) = (identity(&now), content(&now, &backing));
        assert_ne!(old, new, "{name}");
        if request.size.is_none() {
            assert_eq!(old_content, new_content, "{name}");
        }
        let recording = storage.finish();
        let mut states = 0;
        for (label, state) in crash::states(&recording, seed, 30) {
            let what = format!("AMEND_SEED={seed} {name}: {label}");
            assert_sound(&state, &what);
            let is_new = identity(&state) == new;
            assert!(is_new || identity(&state) == old, "{what}");
            let all = label.durable == recording.steps();
            assert!(is_new || !all, "{what}: the new image was lost");
            if states % STATES_PER_CONTENT == 0 {
                let expected = if is_new { &new_content } else { &old_content };
                assert!(*expected == content(&state, &backing), "{what}: content");
            }
            states += 1;
        }
        println!("{name}: {states} states");
        assert!(states > 1, "{name}: {states} states only");
    }
}

#[test]
fn every_failing_call_leaves_the_old_image_or_the_new_one() {
    for (name, request) in CASES {
        let Start { image, backing } = start(name);
        let (old, old_content) = (identity(&image), content(&image, &backing));
        for (nth, errno) in (0..).zip([28, 5, 122].into_iter().cycle()) {
            let fault = Fault {
                calls: Calls::Changes,
                nth,
                errno,
                lasting: nth % 2 == 0,
            };
            let storage = FaultyStorage::with(image.clone(), fault);
            let below = FaultyStorage::with(
                backing.clone(),
                Fault {
                    nth: u64::MAX,
                    ..fault
                },
            );
            let result = run(&storage, &below, request);
            let struck = storage.struck();
            let after = storage.into_inner();
            let what = format!("{name}, change {nth} fails: {result:?}");
            assert_sound(&after, &what);
            if result.is_err() && identity(&after) == old {
                assert!(content(&after, &backing) == old_content, "{what}");
            }
            if !struck {
                assert!(result.is_ok(), "{what}");
                break;
            }
        }
    }
}

/// A small generator of random numbers (xorshift64*).
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8) as usize % n.max(1)
    }
}

#[test]
fn damaged_images_come_to_an_end() {
    let seed = seed();
    let cases = number("AMEND_CASES").unwrap_or(400) as usize;
    let starts: Vec<_> = CASES
        .iter()
        .map(|(name, request)| (start(name), request))
        .collect();
    let mut rng = Rng(seed | 1);
    let (mut opened, mut done) = (0, 0);
    for case in 0..cases {
        let (Start { image, backing }, request) = &starts[case % starts.len()];
        let mut bytes = image.to_vec();
        for _ in 0..1 + rng.below(3) {
            // Where the bytes are not data, or anywhere.
            let limit = if rng.below(4) == 0 {
                bytes.len()
            } else {
                bytes.len().min(300 << 10)
            };
            let at = rng.below(limit);
            bytes[at] = [0, 1, 0x40, 0x80, 0xff][rng.below(5)];
        }
        let damaged = MemStorage::new(bytes);
        if Header::read(&damaged, OpenMode::Change).is_err() {
            continue;
        }
        opened += 1;
        let before = judge(&damaged).0;
        let result = run(&damaged, backing, request);
        if result.is_ok() && before.corruptions == 0 {
            let what = format!("AMEND_SEED={seed} case {case}");
            assert_eq!(judge(&damaged).0.corruptions, 0, "{what}");
            done += 1;
        }
    }
    println!("AMEND_SEED={seed}: {cases} cases, {opened} opened, {done} amended");
    assert!(
        opened * 4 > cases,
        "too few images were damaged and still opened"
    );
}
