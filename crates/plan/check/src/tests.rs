//! The check over images built byte by byte: clusters of 512 bytes, refcounts
//! of 16 bits.

#![allow(clippy::cast_possible_truncation)]

use crate::{Cancelled, CheckError, CheckSummary, MessageKind, Reporter, check};
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;
use instar_qcow2::{Header, OpenMode};
use instar_storage::{Extent, FaultyStorage, MemStorage, Storage, StorageError};

const CLUSTER: u64 = 512;
const COPIED: u64 = 1 << 63;

#[derive(Default)]
struct Log {
    lines: Vec<String>,
    grant: Option<u64>,
    cancel_at: Option<u64>,
    calls: u64,
}

impl Reporter for Log {
    fn message(&mut self, kind: MessageKind, line: &[u8]) {
        assert_eq!(kind, MessageKind::Plain);
        self.lines.push(String::from_utf8_lossy(line).into_owned());
    }

    fn progress(&mut self, done: u64, total: u64) -> Result<(), Cancelled> {
        assert!(done <= total);
        self.calls += 1;
        if self.cancel_at.is_some_and(|at| self.calls > at) {
            Err(Cancelled)
        } else {
            Ok(())
        }
    }

    fn grant(&mut self, bytes: u64) -> u64 {
        self.grant.map_or(bytes, |grant| grant.min(bytes))
    }
}

/// A sparse store: bytes by cluster.
#[derive(Clone, Default)]
struct Sparse {
    clusters: BTreeMap<u64, [u8; CLUSTER as usize]>,
    len: u64,
    bytes_read: Cell<u64>,
}

impl Sparse {
    fn put(&mut self, at: u64, bytes: &[u8]) {
        for (at, byte) in (at..).zip(bytes) {
            self.clusters.entry(at / CLUSTER).or_insert([0; 512])[(at % CLUSTER) as usize] = *byte;
        }
    }

    fn put64(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_be_bytes());
    }

    fn put32(&mut self, at: u64, value: u32) {
        self.put(at, &value.to_be_bytes());
    }

    fn flat(&self) -> MemStorage {
        let mut bytes = alloc::vec![0; self.len as usize];
        self.read_at(0, &mut bytes).unwrap();
        MemStorage::new(bytes)
    }
}

impl Storage for Sparse {
    fn len_bytes(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        self.bytes_read
            .set(self.bytes_read.get() + buf.len() as u64);
        buf.fill(0);
        let end = offset.saturating_add(buf.len() as u64);
        for (cluster, bytes) in self.clusters.range(offset / CLUSTER..end.div_ceil(CLUSTER)) {
            let start = cluster * CLUSTER;
            let (from, to) = (start.max(offset), (start + CLUSTER).min(end));
            buf[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&bytes[(from - start) as usize..(to - start) as usize]);
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Option<Extent>, StorageError> {
        if offset >= self.len {
            return Ok(None);
        }
        let cluster = offset / CLUSTER;
        if self.clusters.contains_key(&cluster) {
            return Ok(Some(Extent {
                offset,
                len: CLUSTER - offset % CLUSTER,
                data: true,
            }));
        }
        let start = self
            .clusters
            .range(..cluster)
            .next_back()
            .map_or(0, |(c, _)| (c + 1) * CLUSTER);
        let end = self
            .clusters
            .range(cluster..)
            .next()
            .map_or(self.len, |(c, _)| c * CLUSTER);
        Ok(Some(Extent {
            offset: start,
            len: end - start,
            data: false,
        }))
    }
}

/// Header, refcount table (`table` clusters) at 1, then L1 and further clusters
/// as the caller puts them.
fn image(len: u64, table: u32, l1: u64, l1_size: u32, size: u64) -> Sparse {
    let mut image = Sparse {
        len,
        ..Sparse::default()
    };
    image.put(0, b"QFI\xfb");
    image.put32(4, 3);
    image.put32(20, 9);
    image.put64(24, size);
    image.put32(36, l1_size);
    image.put64(40, l1);
    image.put64(48, CLUSTER);
    image.put32(56, table);
    image.put32(96, 4);
    image.put32(100, 104);
    image
}

/// Stores a refcount, making the refcount block at cluster `block` if needed.
fn refcount(image: &mut Sparse, cluster: u64, block: u64, value: u16) {
    image.put64(CLUSTER + cluster / 256 * 8, block * CLUSTER);
    image.put(block * CLUSTER + cluster % 256 * 2, &value.to_be_bytes());
}

/// Clusters: 0 header, 1 refcount table, 2 block, 3 L1, 4 L2, 5 and 6 data.
fn small() -> Sparse {
    let mut image = image(7 * CLUSTER, 1, 3 * CLUSTER, 1, 64 * CLUSTER);
    for cluster in 0..7 {
        refcount(&mut image, cluster, 2, 1);
    }
    image.put64(3 * CLUSTER, COPIED | (4 * CLUSTER));
    image.put64(4 * CLUSTER, COPIED | (5 * CLUSTER));
    image.put64(4 * CLUSTER + 8, COPIED | (6 * CLUSTER));
    image
}

fn run<S: Storage>(storage: &S, log: &mut Log) -> Result<CheckSummary, CheckError> {
    let header = Header::read(storage, OpenMode::Check).unwrap();
    check(storage, &header, log)
}

#[test]
fn clean_image_has_no_findings() {
    let mut log = Log::default();
    let sum = run(&small().flat(), &mut log).unwrap();
    assert_eq!(log.lines, [""; 0]);
    assert_eq!((sum.corruptions, sum.leaks, sum.check_errors), (0, 0, 0));
    assert_eq!(
        (
            sum.total_clusters,
            sum.allocated_clusters,
            sum.fragmented_clusters
        ),
        (64, 2, 0)
    );
    assert_eq!((sum.image_end_offset, sum.passes), (7 * CLUSTER, 1));
}

#[test]
fn findings_come_in_order_with_totals() {
    let mut image = small();
    image.put64(3 * CLUSTER, COPIED | (4 * CLUSTER) | 2);
    image.put64(4 * CLUSTER, COPIED | (6 * CLUSTER));
    image.put64(4 * CLUSTER + 16, COPIED | (1 << 40));
    let mut log = Log::default();
    let sum = run(&image, &mut log).unwrap();
    assert_eq!(
        log.lines,
        [
            "ERROR found L1 entry with reserved bits set: 8000000000000802",
            "ERROR: counting reference for region exceeding the end of the file by one cluster or more: offset 0x10000000000 size 0x200",
            "Leaked cluster 5 refcount=1 reference=0",
            "ERROR cluster 6 refcount=1 reference=2",
            "ERROR OFLAG_COPIED data cluster: l2_entry=8000010000000000 refcount=0",
        ]
    );
    assert_eq!((sum.corruptions, sum.leaks), (4, 1));
    assert_eq!((sum.allocated_clusters, sum.fragmented_clusters), (3, 2));
}

/// Data in three pages of counters, with a leak, an error and a wrong flag in
/// each, and a refcount that overflows nothing.
fn spread() -> Sparse {
    let mut image = image(13_000 * CLUSTER, 1, 3 * CLUSTER, 1, 64 * CLUSTER);
    for cluster in 0..5 {
        refcount(&mut image, cluster, 2, 1);
    }
    image.put64(3 * CLUSTER, COPIED | (4 * CLUSTER));
    for (nth, start) in (0..).zip([20_u64, 5_000, 9_000]) {
        let block = start + 10;
        refcount(&mut image, block, block, 1);
        refcount(&mut image, start + 1, block, 1);
        refcount(&mut image, start + 2, block, 3);
        let at = 4 * CLUSTER + nth * 32;
        image.put64(at, start * CLUSTER);
        image.put64(at + 8, (start + 1) * CLUSTER);
        image.put64(at + 16, COPIED | ((start + 2) * CLUSTER));
    }
    image.put64(CLUSTER, 2 * CLUSTER);
    for (cluster, value) in [(21, 1), (22, 3), (30, 1)] {
        refcount(&mut image, cluster, 2, value);
    }
    image
}

#[test]
fn small_grant_gives_the_same_findings_in_more_passes() {
    let image = spread();
    let (mut all, mut tiled) = (
        Log::default(),
        Log {
            grant: Some(0),
            ..Log::default()
        },
    );
    let one = run(&image, &mut all).unwrap();
    let many = run(&image, &mut tiled).unwrap();
    assert_eq!((one.passes, many.passes), (1, 3));
    assert_eq!(CheckSummary { passes: 1, ..many }, one);
    assert!(all.lines.len() >= 12, "{:?}", all.lines);
    all.lines.sort();
    tiled.lines.sort();
    assert_eq!(all.lines, tiled.lines);
}

#[test]
fn sparse_pebibyte_is_checked_in_bounded_work() {
    let len = 1_u64 << 50;
    let mut image = image(len, 16_384, 0x80_0400, 1 << 22, 1 << 37);
    let far = len / CLUSTER - 1;
    // All L1 entries of one cluster name tables, some of them far off in holes.
    for nth in 0..64 {
        image.put64(0x80_0400 + 8 * nth, COPIED | ((nth + 1) << 43));
    }
    image.put64(0x300_0000, COPIED | (far * CLUSTER));
    image.put64(0x80_0400, COPIED | 0x300_0000);
    let mut log = Log {
        grant: Some(8 << 20),
        ..Log::default()
    };
    let sum = run(&image, &mut log).unwrap();
    assert!(
        log.lines.contains(&alloc::format!(
            "ERROR cluster {far} refcount=0 reference=1"
        )),
        "{:?}",
        log.lines.len()
    );
    assert_eq!(sum.image_end_offset, len);
    assert!(
        image.bytes_read.get() < 1 << 30,
        "{} bytes",
        image.bytes_read.get()
    );
}

#[test]
fn each_failing_read_ends_in_an_answer() {
    let image = spread().flat();
    let header = Header::read(&image, OpenMode::Check).unwrap();
    let mut ends = BTreeMap::new();
    for fail_at in 0..64 {
        let store = FaultyStorage::new(&image, fail_at, 5);
        let mut log = Log::default();
        let result = check(&store, &header, &mut log);
        let end = match result {
            Ok(sum) if sum.check_errors > 0 => "unknown refcounts",
            Ok(_) => "ended",
            Err(CheckError::Failed { errno: 5 }) => "failed",
            Err(other) => panic!("{other}"),
        };
        *ends.entry(end).or_insert(0) += 1;
    }
    assert!(
        ends.contains_key("failed") && ends.contains_key("ended"),
        "{ends:?}"
    );
}

#[test]
fn each_cancel_is_obeyed() {
    let image = spread();
    let mut log = Log::default();
    run(&image, &mut log).unwrap();
    for cancel_at in 0..log.calls {
        let mut log = Log {
            cancel_at: Some(cancel_at),
            ..Log::default()
        };
        assert_eq!(run(&image, &mut log), Err(CheckError::Cancelled));
    }
}

#[test]
fn overflow_of_one_page_is_told_once_when_the_page_is_given_up() {
    let mut image = spread();
    image.put32(96, 0); // 1 bit: two references to a cluster overflow
    for (at, cluster) in [
        (96, 9_000_u64),
        (104, 9_000),
        (112, 20),
        (120, 20),
        (128, 9_000),
    ] {
        image.put64(4 * CLUSTER + at, cluster * CLUSTER);
    }
    let (mut all, mut tiled) = (
        Log::default(),
        Log {
            grant: Some(0),
            ..Log::default()
        },
    );
    let one = run(&image, &mut all).unwrap();
    let many = run(&image, &mut tiled).unwrap();
    assert!(many.passes > 1);
    assert_eq!(CheckSummary { passes: 1, ..many }, one);
    let overflows = |log: &Log| {
        log.lines
            .iter()
            .filter(|line| line.contains("overflow"))
            .count()
    };
    assert_eq!(
        (overflows(&all), overflows(&tiled)),
        (5, 5),
        "{:?}",
        all.lines
    );
}
