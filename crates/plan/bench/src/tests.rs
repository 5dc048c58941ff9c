//! Streams over stores in memory that complete requests in a seeded order.

use super::*;
use alloc::vec::Vec;
use instar_plan_convert::{Source, Span, What};
use instar_storage::overlap::{MemOverlap, Work};
use instar_storage::{MemStorage, Storage};

const SEED: u64 = 0x1757_2026_1121_0001;

struct Free;

impl Monitor for Free {
    fn progress(&mut self, _done: u64, _total: u64) -> Result<(), Cancelled> {
        Ok(())
    }
}

struct StopAt(u64);

impl Monitor for StopAt {
    fn progress(&mut self, done: u64, _total: u64) -> Result<(), Cancelled> {
        if done >= self.0 {
            Err(Cancelled)
        } else {
            Ok(())
        }
    }
}

fn reads(count: u32, depth: u32, len: u32, step: u32, start: u64) -> Settings {
    Settings {
        count,
        depth,
        len,
        step,
        start,
        write: None,
    }
}

fn writes(count: u32, depth: u32, flush_interval: u32, drain: bool) -> Settings {
    Settings {
        write: Some(Writes {
            pattern: 0x5a,
            flush_interval,
            drain,
        }),
        ..reads(count, depth, 512, 512, 0)
    }
}

/// 8 KiB: data of file 7 at 4096, zeros, packed, data again, each 2 KiB.
struct Quarters;

impl Source for Quarters {
    fn len_bytes(&self) -> u64 {
        8192
    }
    fn span_at(&self, offset: u64, max: u64) -> Result<Span, ReadError> {
        let what = match offset / 2048 {
            0 | 3 => What::Data {
                file: 7,
                offset: 4096 + offset,
            },
            1 => What::Zero,
            _ => What::Packed(None),
        };
        let len = (2048 - offset % 2048).min(max);
        Ok(Span { len, what })
    }
    fn read_at(&self, _offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        buf.fill(1);
        Ok(())
    }
}

use instar_plan_convert::ReadError;

fn raw(len: usize) -> (MemStorage, RawWriter) {
    let store = MemStorage::new(alloc::vec![0; len]);
    let image = RawWriter {
        file: 7,
        len_bytes: len as u64,
    };
    (store, image)
}

#[test]
fn reads_go_where_the_bytes_lie_and_nowhere_else() {
    let store = MemStorage::new(alloc::vec![0; 16384]);
    let overlap = MemOverlap::new([(7, &store)], 8, SEED);
    let settings = reads(2, 2, 8192, 8192, 0);
    run(&overlap, &mut Reader(Quarters), &settings, &mut Free).unwrap();
    let mut sent: Vec<_> = overlap.log();
    sent.sort_by_key(|(_, work)| work.offset());
    let one = |offset| (7, Work::Read { offset, len: 2048 });
    let expected = [one(4096), one(4096), one(4096 + 6144), one(4096 + 6144)];
    assert_eq!(sent, expected);
}

#[test]
fn as_many_are_in_flight_as_asked_for_and_no_more() {
    for depth in [1, 3, 16] {
        let (store, mut image) = raw(1 << 20);
        let overlap = MemOverlap::new([(7, &store)], 64, SEED);
        run(
            &overlap,
            &mut image,
            &writes(100, depth, 0, true),
            &mut Free,
        )
        .unwrap();
        assert_eq!(overlap.most_in_flight(), depth as usize, "seed {SEED:#x}");
        assert_eq!(overlap.submitted(), 100);
    }
}

#[test]
fn a_full_queue_is_waited_for() {
    let (store, mut image) = raw(1 << 20);
    let overlap = MemOverlap::new([(7, &store)], 2, SEED);
    run(&overlap, &mut image, &writes(50, 16, 0, true), &mut Free).unwrap();
    assert_eq!(overlap.submitted(), 50);
}

#[test]
fn steps_start_over_at_the_end() {
    let store = MemStorage::new(alloc::vec![0; 10240]);
    let overlap = MemOverlap::new([(7, &store)], 1, SEED);
    let mut image = RawWriter {
        file: 7,
        len_bytes: 10240,
    };
    run(
        &overlap,
        &mut image,
        &reads(4, 1, 1024, 4096, 9216),
        &mut Free,
    )
    .unwrap();
    let offsets: Vec<u64> = overlap.log().iter().map(|(_, w)| w.offset()).collect();
    // As qemu-img bench -c 4 -d 1 -s 1024 -S 4096 -o 9216 was seen to read a file of 10 KiB.
    assert_eq!(offsets, [9216, 3072, 7168, 1024]);
}

#[test]
fn what_crosses_the_end_fails() {
    let (store, mut image) = raw(10240);
    let overlap = MemOverlap::new([(7, &store)], 8, SEED);
    let failed = run(&overlap, &mut image, &reads(6, 1, 4096, 4096, 0), &mut Free);
    assert_eq!(failed, Err(BenchError::Request { errno: 5 }));
    assert_eq!(overlap.submitted(), 2);
    let (_, mut empty) = raw(0);
    let failed = run(&overlap, &mut empty, &reads(1, 1, 1, 1, 0), &mut Free);
    assert_eq!(failed, Err(BenchError::Request { errno: 5 }));
    assert_eq!(
        failed.unwrap_err().to_string(),
        "Failed request: Input/output error"
    );
}

use alloc::string::ToString;

/// Writes before each flush.
fn between_flushes(log: &[(u16, Work)]) -> Vec<usize> {
    let flushes = log.split(|(_, work)| *work == Work::Flush);
    flushes.map(<[_]>::len).collect()
}

#[test]
fn a_draining_flush_stands_between_what_comes_before_and_after() {
    let (store, mut image) = raw(1 << 20);
    let overlap = MemOverlap::new([(7, &store)], 64, SEED);
    run(&overlap, &mut image, &writes(24, 4, 8, true), &mut Free).unwrap();
    let log = overlap.log();
    assert_eq!(between_flushes(&log), [8, 8, 8, 0], "seed {SEED:#x}");
    let second = &log[9..17];
    assert!(
        second
            .iter()
            .all(|(_, work)| (4096..8192).contains(&work.offset()))
    );
}

#[test]
fn without_draining_there_are_as_many_flushes() {
    let (store, mut image) = raw(1 << 20);
    let overlap = MemOverlap::new([(7, &store)], 64, SEED);
    run(&overlap, &mut image, &writes(24, 4, 8, false), &mut Free).unwrap();
    let flushes = overlap
        .log()
        .iter()
        .filter(|(_, w)| *w == Work::Flush)
        .count();
    assert_eq!(flushes, 3, "seed {SEED:#x}");
}

#[test]
fn the_pattern_is_what_is_written() {
    let (store, mut image) = raw(8192);
    let overlap = MemOverlap::new([(7, &store)], 64, SEED);
    run(&overlap, &mut image, &writes(3, 2, 0, true), &mut Free).unwrap();
    let mut bytes = [0; 2048];
    store.read_at(0, &mut bytes).unwrap();
    assert!(bytes[..1536].iter().all(|byte| *byte == 0x5a));
    assert!(bytes[1536..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_failed_request_or_flush_ends_the_run_when_the_others_are_done() {
    for nth in [0, 8, 20] {
        let (store, mut image) = raw(1 << 20);
        let overlap = MemOverlap::new([(7, &store)], 64, SEED);
        overlap.fail(nth, 28);
        let failed = run(&overlap, &mut image, &writes(100, 4, 8, true), &mut Free);
        assert_eq!(failed, Err(BenchError::Request { errno: 28 }), "{nth}");
        assert!(overlap.submitted() < 100);
        assert_eq!(instar_storage::overlap::Overlap::in_flight(&overlap), 0);
    }
}

#[test]
fn a_cancelled_run_ends_early() {
    let (store, mut image) = raw(1 << 20);
    let overlap = MemOverlap::new([(7, &store)], 64, SEED);
    let failed = run(
        &overlap,
        &mut image,
        &writes(100, 4, 0, true),
        &mut StopAt(10),
    );
    assert_eq!(failed, Err(BenchError::Cancelled));
    assert!(overlap.submitted() < 20);
}
