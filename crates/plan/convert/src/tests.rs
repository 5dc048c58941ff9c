//! Copies over memory, with requests that end in any order.

use crate::{
    Cancelled, ConvertError, Engine, Monitor, Place, RawTarget, ReadError, Salvaged, Settings,
    Source, Span, Squeeze, Squeezer, Target, TargetError, What, Zeros,
};
use alloc::vec;
use alloc::vec::Vec;
use instar_layers::{CompressionType, Decompress};
use instar_storage::overlap::{Inline, MemOverlap};
use instar_storage::{MemStorage, Storage, StorageMut};

mod sealed;
mod unpacking;

/// Number of the source's file and of the target's.
const FROM: u16 = 0;
const TO: u16 = 1;

/// No compression.
const NONE: Option<Squeezer<'static>> = None;

/// A disk of spans with what it reads as.
struct Disk {
    spans: Vec<Span>,
    bytes: Vec<u8>,
    bad_sector: Option<u64>,
}

impl Source for Disk {
    fn len_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn span_at(&self, offset: u64, max: u64) -> Result<Span, ReadError> {
        let mut at = 0;
        for span in &self.spans {
            let end = at + span.len;
            if offset < end {
                let skip = offset - at;
                let what = match span.what {
                    What::Data { file, offset } => What::Data {
                        file,
                        offset: offset + skip,
                    },
                    other => other,
                };
                let len = (span.len - skip).min(max);
                return Ok(Span { len, what });
            }
            at = end;
        }
        panic!("{offset} is past the end");
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let start = usize::try_from(offset).unwrap();
        let bad = self.bad_sector.is_some_and(|bad| {
            let end = offset + buf.len() as u64;
            (offset..end).contains(&bad) || (bad..bad + 512).contains(&offset)
        });
        if bad {
            return Err(ReadError {
                errno: 5,
                notice: None,
            });
        }
        buf.copy_from_slice(&self.bytes[start..start + buf.len()]);
        Ok(())
    }
}

struct Watch(Vec<Salvaged>, Option<u64>);

impl Monitor for Watch {
    fn progress(&mut self, done: u64, _total: u64) -> Result<(), Cancelled> {
        match self.1 {
            Some(stop) if done >= stop => Err(Cancelled),
            _ => Ok(()),
        }
    }
    fn salvaged(&mut self, what: Salvaged) {
        self.0.push(what);
    }
    fn pace(&mut self, _done: u64, _total: u64) {}
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Makes a disk, and the file that its data lies in, in another order.
fn disk(random: &mut Random, sectors: u64) -> (Disk, MemStorage) {
    let file = MemStorage::default();
    let (mut spans, mut bytes) = (Vec::new(), Vec::new());
    let mut left = sectors * 512;
    let mut place = 1 << 30;
    while left > 0 {
        let unit = 1 << (9 + random.below(12));
        let len = (unit * (1 + random.below(40))).min(left);
        let what = match random.below(6) {
            0 | 1 => What::Zero,
            2 => What::Packed(None),
            _ => {
                place -= len + random.below(3) * 512;
                What::Data {
                    file: FROM,
                    offset: place,
                }
            }
        };
        let n = usize::try_from(len).unwrap();
        let mut data = vec![0_u8; n];
        if what != What::Zero {
            for chunk in data.chunks_mut(512 << random.below(8)) {
                if random.below(3) > 0 {
                    chunk.fill(u8::try_from(random.below(255)).unwrap());
                }
            }
        }
        if let What::Data { offset, .. } = what {
            file.write_at(offset, &data).unwrap();
        }
        bytes.extend(data);
        spans.push(Span { len, what });
        left -= len;
    }
    let disk = Disk {
        spans,
        bytes,
        bad_sector: None,
    };
    (disk, file)
}

fn settings(random: &mut Random) -> Settings {
    let sparse = [0, 512, 4096, 65536, 3 << 20];
    let sparse_bytes = sparse[usize::try_from(random.below(5)).unwrap()];
    Settings {
        sparse_bytes,
        fill: sparse_bytes == 0 && random.below(2) == 0,
        copy: sparse_bytes == 0 && random.below(2) == 0,
        salvage: false,
        any_order: random.below(2) == 0,
    }
}

#[test]
fn raw_copies_equal_their_source() {
    for seed in 0..60 {
        let mut random = Random(seed);
        let sectors = 1 + random.below(30_000);
        let (source, file) = disk(&mut random, sectors);
        let zeroed = random.below(2) == 0;
        let to = if zeroed {
            MemStorage::hole(sectors * 512)
        } else {
            MemStorage::new(vec![0xee; source.bytes.len()])
        };
        let room = usize::try_from(1 + random.below(40)).unwrap();
        let io = MemOverlap::new([(FROM, &file), (TO, &to)], room, seed);
        let mut target = RawTarget { file: TO, zeroed };
        let settings = settings(&mut random);
        let mut watch = Watch(Vec::new(), None);
        Engine::new(&io, &source, &mut target, &mut watch, settings, NONE)
            .run()
            .unwrap();
        assert!(to.to_vec() == source.bytes, "seed {seed} {settings:?}");
    }
}

/// Clusters in the order of their places, and which of them were left to the backing file.
struct Clusters {
    unit: u64,
    places: Vec<(u64, u64)>,
    zeros: Vec<(u64, u64)>,
    next: u64,
    below: u8,
}

impl Target for Clusters {
    fn unit(&self) -> u64 {
        self.unit
    }
    fn place(&mut self, guest: u64, len: u64) -> Result<Place, TargetError> {
        assert_eq!(guest % self.unit, 0);
        let len = len.min(3 * self.unit);
        let offset = self.next;
        self.next += len.next_multiple_of(self.unit);
        let len = len.next_multiple_of(self.unit);
        for at in (0..len).step_by(usize::try_from(self.unit).unwrap()) {
            self.places.push((guest + at, offset + at));
        }
        Ok(Place {
            file: TO,
            offset,
            len,
        })
    }
    fn place_compressed(&mut self, _: u64, _: u32) -> Result<Place, TargetError> {
        unreachable!()
    }
    fn zeros(&mut self, guest: u64, len: u64) -> Result<Zeros, TargetError> {
        assert_eq!(guest % self.unit, 0);
        self.zeros.push((guest, guest + len));
        Ok(Zeros::Done)
    }
    fn read_below(&self, _guest: u64, buf: &mut [u8]) -> Result<(), TargetError> {
        buf.fill(self.below);
        Ok(())
    }
}

#[test]
fn clusters_over_a_backing_file_read_as_the_source_over_it() {
    for seed in 0..60 {
        let mut random = Random(seed);
        let sectors = 1 + random.below(30_000);
        let (mut source, file) = disk(&mut random, sectors);
        let mut expected = source.bytes.clone();
        let mut at = 0;
        for span in &mut source.spans {
            let len = usize::try_from(span.len).unwrap();
            if span.what == What::Zero && random.below(2) == 0 {
                span.what = What::Below;
                expected[at..at + len].fill(0xbb);
            }
            at += len;
        }
        let to = MemStorage::default();
        let io = MemOverlap::new([(FROM, &file), (TO, &to)], 16, seed);
        let mut target = Clusters {
            unit: 512 << random.below(13),
            places: Vec::new(),
            zeros: Vec::new(),
            next: 1 << 20,
            below: 0xbb,
        };
        let mut settings = settings(&mut random);
        settings.fill = false;
        let mut watch = Watch(Vec::new(), None);
        Engine::new(&io, &source, &mut target, &mut watch, settings, NONE)
            .run()
            .unwrap();
        let mut found = vec![0xbb; expected.len()];
        for (start, end) in &target.zeros {
            found[usize::try_from(*start).unwrap()..usize::try_from(*end).unwrap()].fill(0);
        }
        for (guest, place) in &target.places {
            let guest = usize::try_from(*guest).unwrap();
            let end = (guest + usize::try_from(target.unit).unwrap()).min(found.len());
            to.read_at(*place, &mut found[guest..end]).unwrap();
        }
        assert!(found == expected, "seed {seed} {settings:?}");
        if !settings.any_order {
            assert!(target.places.is_sorted(), "seed {seed}");
        }
    }
}

#[test]
fn failures_are_reported_with_their_place() {
    let file = MemStorage::new(vec![7; 8 << 20]);
    let source = Disk {
        spans: vec![Span {
            len: 8 << 20,
            what: What::Data {
                file: FROM,
                offset: 0,
            },
        }],
        bytes: vec![7; 8 << 20],
        bad_sector: None,
    };
    let settings = Settings {
        sparse_bytes: 4096,
        fill: false,
        copy: false,
        salvage: false,
        any_order: false,
    };
    let mut failed = Vec::new();
    for nth in 0..8 {
        let to = MemStorage::hole(8 << 20);
        let io = MemOverlap::new([(FROM, &file), (TO, &to)], 16, 3);
        io.fail(nth, 28);
        let mut target = RawTarget {
            file: TO,
            zeroed: true,
        };
        let mut watch = Watch(Vec::new(), None);
        let result = Engine::new(&io, &source, &mut target, &mut watch, settings, NONE).run();
        failed.push(result.unwrap_err());
    }
    let read = |e: &&ConvertError| matches!(e, ConvertError::Read { .. });
    assert_eq!(failed.iter().filter(read).count(), 4);
    assert!(failed.iter().any(|e| {
        alloc::format!("{e}") == "error while writing at byte 2097152: No space left on device"
    }));
}

#[test]
fn salvaging_loses_a_sector() {
    let file = MemStorage::new(vec![7; 8 << 20]);
    let source = Disk {
        spans: vec![Span {
            len: 8 << 20,
            what: What::Data {
                file: FROM,
                offset: 0,
            },
        }],
        bytes: vec![7; 8 << 20],
        bad_sector: Some(3 << 20),
    };
    let to = MemStorage::hole(8 << 20);
    let io = MemOverlap::new([(FROM, &file), (TO, &to)], 16, 3);
    io.fail(1, 5);
    let mut target = RawTarget {
        file: TO,
        zeroed: true,
    };
    let settings = Settings {
        sparse_bytes: 4096,
        fill: false,
        copy: false,
        salvage: true,
        any_order: false,
    };
    let mut watch = Watch(Vec::new(), None);
    Engine::new(&io, &source, &mut target, &mut watch, settings, NONE)
        .run()
        .unwrap();
    let found = to.to_vec();
    let zeros = found.iter().filter(|byte| **byte == 0).count();
    assert_eq!((zeros, watch.0.len()), (512, 1));
    assert_eq!(
        alloc::format!("{}", watch.0[0]),
        "warning: error while reading offset 3145728: Input/output error"
    );
}

#[test]
fn cancelling_ends_the_copy() {
    let mut random = Random(5);
    let (source, file) = disk(&mut random, 30_000);
    let to = MemStorage::hole(30_000 * 512);
    let io = MemOverlap::new([(FROM, &file), (TO, &to)], 4, 1);
    let mut target = RawTarget {
        file: TO,
        zeroed: true,
    };
    let mut watch = Watch(Vec::new(), Some(4 << 20));
    let settings = settings(&mut random);
    let result = Engine::new(&io, &source, &mut target, &mut watch, settings, NONE).run();
    assert_eq!(result, Err(ConvertError::Cancelled));
}

/// A target that takes compressed clusters one behind the other.
struct Packed {
    places: Vec<(u64, u64, Option<u32>)>,
    next: u64,
}

const CLUSTER: u64 = 65536;

impl Target for Packed {
    fn unit(&self) -> u64 {
        CLUSTER
    }
    fn place(&mut self, guest: u64, len: u64) -> Result<Place, TargetError> {
        let offset = self.next.next_multiple_of(CLUSTER);
        self.next = offset + CLUSTER;
        self.places.push((guest, offset, None));
        let len = len.min(CLUSTER).next_multiple_of(CLUSTER);
        let file = TO;
        Ok(Place { file, offset, len })
    }
    fn place_compressed(&mut self, guest: u64, len: u32) -> Result<Place, TargetError> {
        let offset = self.next;
        self.next += u64::from(len);
        self.places.push((guest, offset, Some(len)));
        let (file, len) = (TO, len.into());
        Ok(Place { file, offset, len })
    }
    fn zeros(&mut self, _guest: u64, _len: u64) -> Result<Zeros, TargetError> {
        Ok(Zeros::Done)
    }
    fn read_below(&self, _guest: u64, _buf: &mut [u8]) -> Result<(), TargetError> {
        unreachable!()
    }
}

#[test]
fn compressed_clusters_come_in_order_and_decompress() {
    for seed in 0..12 {
        let kind = [CompressionType::Zlib, CompressionType::Zstd][usize::from(seed % 2 == 1)];
        let mut random = Random(seed);
        let sectors = 1 + random.below(20_000);
        let (source, file) = disk(&mut random, sectors);
        let to = MemStorage::default();
        let io = MemOverlap::new([(FROM, &file), (TO, &to)], 16, seed);
        let crew = Inline::new(Squeeze::run);
        let mut target = Packed {
            places: Vec::new(),
            next: 327_680,
        };
        let mut settings = settings(&mut random);
        (settings.copy, settings.any_order) = (false, false);
        let mut watch = Watch(Vec::new(), None);
        let squeezer = Some(Squeezer::new(&crew, kind, 65536));
        Engine::new(&io, &source, &mut target, &mut watch, settings, squeezer)
            .run()
            .unwrap();
        assert!(target.places.is_sorted_by_key(|place| place.0));
        let mut found = vec![0; source.bytes.len().next_multiple_of(65536)];
        let mut decoder = instar_codec::Decoder::new();
        for (guest, offset, len) in &target.places {
            let start = usize::try_from(*guest).unwrap();
            let out = &mut found[start..start + 65536];
            match len {
                None => to.read_at(*offset, out).unwrap(),
                Some(len) => {
                    let mut packed = vec![0; usize::try_from(*len).unwrap()];
                    to.read_at(*offset, &mut packed).unwrap();
                    decoder.decompress(kind, &packed, out).unwrap();
                }
            }
        }
        found.truncate(source.bytes.len());
        assert!(found == source.bytes, "seed {seed}");
    }
}
