//! Sources with compressed clusters, which a crew decompresses.

use super::{Disk, FROM, NONE, Random, TO, Watch, settings};
use crate::{Engine, RawTarget, ReadError, Source, Span, Stream, Unpack, Unpacker, What};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use instar_codec::Encoder;
use instar_layers::CompressionType;
use instar_storage::overlap::{Crew, MemOverlap};
use instar_storage::{MemStorage, StorageMut};

/// A crew that takes its time, and gives jobs back in another order.
struct Slow {
    room: usize,
    random: RefCell<Random>,
    jobs: RefCell<VecDeque<Box<Unpack>>>,
    taken: Cell<u32>,
}

impl Crew<Unpack> for Slow {
    fn room(&self) -> usize {
        self.room
    }
    fn cores(&self) -> usize {
        1
    }
    fn submit(&self, mut job: Box<Unpack>) -> Result<(), Box<Unpack>> {
        if self.in_flight() >= self.room {
            return Err(job);
        }
        job.run();
        self.taken.set(self.taken.get() + 1);
        self.jobs.borrow_mut().push_back(job);
        Ok(())
    }
    fn poll(&self) -> Option<Box<Unpack>> {
        let late = self.random.borrow_mut().below(3) == 0;
        if late { None } else { self.wait() }
    }
    fn wait(&self) -> Option<Box<Unpack>> {
        let mut jobs = self.jobs.borrow_mut();
        let most = jobs.len().checked_sub(1)?;
        let index = self.random.borrow_mut().below(most as u64 + 1);
        jobs.remove(usize::try_from(index).unwrap())
    }
    fn in_flight(&self) -> usize {
        self.jobs.borrow().len()
    }
}

/// Counts the bytes that the source itself is asked for.
struct Asked(Disk, Cell<u64>);

impl Source for Asked {
    fn len_bytes(&self) -> u64 {
        self.0.len_bytes()
    }
    fn span_at(&self, offset: u64, max: u64) -> Result<Span, ReadError> {
        self.0.span_at(offset, max)
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.1.set(self.1.get() + buf.len() as u64);
        self.0.read_at(offset, buf)
    }
}

/// Writes the stream of `cluster` to `file`, damaged or not, and moves `place` behind it.
fn compressed(
    random: &mut Random,
    cluster: &[u8],
    file: &MemStorage,
    place: &mut u64,
    damaged: bool,
) -> Stream {
    let kind = [CompressionType::Zlib, CompressionType::Zstd];
    let kind = kind[usize::try_from(random.below(2)).unwrap()];
    let mut packed = vec![0; 2 * cluster.len() + 1024];
    let mut encoder = Encoder::new(kind, cluster.len()).unwrap();
    let len = encoder.compress(cluster, &mut packed).unwrap();
    if damaged {
        packed[..len].fill(0xff);
    }
    *place += random.below(3) * random.below(6000);
    let offset = *place;
    file.write_at(offset, &packed[..len]).unwrap();
    *place += len as u64;
    // As an entry says it: up to the end of the last sector, in which the next cluster may begin.
    let end = place.next_multiple_of(512);
    Stream {
        file: FROM,
        offset,
        max_bytes: u32::try_from(end - offset).unwrap(),
        cluster_bytes: u32::try_from(cluster.len()).unwrap(),
        kind,
    }
}

/// A disk of clusters, most of them compressed, one in `damage` of which is damaged in the file alone.
fn disk(random: &mut Random, clusters: u64, cluster: usize, damage: u64) -> (Asked, MemStorage) {
    let file = MemStorage::default();
    let (mut spans, mut bytes) = (Vec::new(), Vec::new());
    let mut place: u64 = 1 << 20;
    for _ in 0..clusters {
        let mut data = vec![0; cluster];
        let kind = random.below(12);
        if kind > 0 {
            for chunk in data.chunks_mut(64) {
                chunk.fill(u8::try_from(random.below(255)).unwrap());
            }
        }
        let what = match kind {
            0 => What::Zero,
            1 => What::Packed(None),
            2 => {
                let offset = place.next_multiple_of(512);
                file.write_at(offset, &data).unwrap();
                place = offset + cluster as u64;
                let file = FROM;
                What::Data { file, offset }
            }
            _ => {
                let damaged = damage > 0 && random.below(damage) == 0;
                let stream = compressed(random, &data, &file, &mut place, damaged);
                What::Packed(Some(stream))
            }
        };
        let len = cluster as u64;
        spans.push(Span { len, what });
        bytes.extend(data);
    }
    let disk = Disk {
        spans,
        bytes,
        bad_sector: None,
    };
    (Asked(disk, Cell::new(0)), file)
}

#[test]
fn a_crew_decompresses_what_the_source_would() {
    let mut crews = 0;
    for seed in 0..40 {
        let mut random = Random(seed);
        let cluster = 512 << random.below(10);
        let clusters = 1 + random.below((24 << 20) / cluster as u64).min(600);
        let damage = [0, 0, 90][usize::try_from(random.below(3)).unwrap()];
        let (mut source, file) = disk(&mut random, clusters, cluster, damage);
        let only_streams = random.below(2) == 0;
        if only_streams {
            for span in &mut source.0.spans {
                if span.what == What::Packed(None) {
                    span.what = What::Zero;
                }
            }
            for (span, bytes) in source
                .0
                .spans
                .iter()
                .zip(source.0.bytes.chunks_mut(cluster))
            {
                if span.what == What::Zero {
                    bytes.fill(0);
                }
            }
        }
        let len = source.len_bytes();
        let to = MemStorage::hole(len);
        let io = MemOverlap::new([(FROM, &file), (TO, &to)], 4, seed);
        let streams = |span: &&Span| matches!(span.what, What::Packed(Some(_)));
        let first = source.0.spans.iter().find(|s| s.what != What::Zero);
        let by_crew = only_streams && cluster >= 32 << 10 && first.is_some_and(|s| streams(&s));
        let failing = by_crew && random.below(3) == 0;
        if failing {
            // The first read fails; the source can give its bytes all the same.
            io.fail(0, 5);
        }
        let crew = Slow {
            room: 1 + usize::try_from(random.below(3)).unwrap(),
            random: RefCell::new(Random(seed)),
            jobs: RefCell::default(),
            taken: Cell::new(0),
        };
        let settings = settings(&mut random);
        let mut target = RawTarget {
            file: TO,
            zeroed: true,
        };
        let mut watch = Watch(Vec::new(), None);
        let done = Engine::new(&io, &source, &mut target, &mut watch, settings, NONE)
            .unpacking(Some(Unpacker::new(&crew)))
            .run();
        assert_eq!(done, Ok(()), "seed {seed} {settings:?}");
        assert!(to.to_vec() == source.0.bytes, "seed {seed} {settings:?}");
        assert_eq!(crew.in_flight(), 0);
        if by_crew {
            crews += 1;
            assert!(crew.taken.get() > 0, "seed {seed}: the crew was not asked");
        }
        if by_crew && damage == 0 && !failing {
            assert_eq!(source.1.get(), 0, "seed {seed}: the source was asked");
        }
    }
    assert!(crews > 3);
}

#[test]
fn a_cluster_that_nobody_can_decompress_fails_the_copy() {
    let mut random = Random(7);
    let (mut source, file) = disk(&mut random, 400, 65536, 0);
    let mut streams = (0..)
        .zip(&source.0.spans)
        .filter_map(|(index, span)| match span.what {
            What::Packed(Some(stream)) => Some((index * 65536, stream.offset)),
            _ => None,
        });
    let (damaged, place) = streams.nth(150).unwrap();
    file.write_at(place, &[0xff; 16]).unwrap();
    source.0.bad_sector = Some(damaged);
    let to = MemStorage::hole(source.len_bytes());
    let io = MemOverlap::new([(FROM, &file), (TO, &to)], 4, 1);
    let crew = Slow {
        room: 2,
        random: RefCell::new(Random(1)),
        jobs: RefCell::default(),
        taken: Cell::new(0),
    };
    let mut target = RawTarget {
        file: TO,
        zeroed: true,
    };
    for salvage in [false, true] {
        let mut settings = settings(&mut random);
        (settings.copy, settings.salvage) = (false, salvage);
        let mut watch = Watch(Vec::new(), None);
        let result = Engine::new(&io, &source, &mut target, &mut watch, settings, NONE)
            .unpacking(Some(Unpacker::new(&crew)))
            .run();
        assert_eq!(result.is_ok(), salvage);
        assert_eq!(watch.0.len(), usize::from(salvage));
        assert!(watch.0.iter().all(|lost| lost.offset == damaged));
    }
}
