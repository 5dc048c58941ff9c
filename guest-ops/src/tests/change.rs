//! Disks that are changed.

use super::*;
use crate::storage::{Reserve, StorageMut, Write};

fn writable(
    len: usize,
    order: CompletionOrder,
) -> (FakeMachine, Context<FakeMachine>, Disk<FakeMachine>) {
    let machine = FakeMachine::new();
    machine.add_writable_disk(0, content(len), order);
    let mut ctx = Context::new(machine.clone());
    let disk = ctx.disk(0).unwrap();
    (machine, ctx, disk)
}

fn stored(machine: &FakeMachine) -> Vec<u8> {
    machine.0.disks.borrow()[&0].backend.bytes.clone()
}

fn log(machine: &FakeMachine) -> Vec<IoKind> {
    core::mem::take(
        &mut machine
            .0
            .disks
            .borrow_mut()
            .get_mut(&0)
            .unwrap()
            .backend
            .log,
    )
}

fn fail_next(machine: &FakeMachine, errno: u32) {
    let mut disks = machine.0.disks.borrow_mut();
    disks.get_mut(&0).unwrap().backend.fail_next = Some(Errno(errno));
}

#[test]
fn a_batch_of_writes_costs_one_exit_and_no_copy() {
    let (machine, _ctx, disk) = writable(1 << 20, CompletionOrder::AtOnce);
    let mut expected = content(1 << 20);
    let pool = machine.heap_slice(60 * 1000);
    pool.copy_from_slice(&content(70_000)[1234..61_234]);
    let writes: Vec<Write<'_>> = pool
        .chunks(1000)
        .enumerate()
        .map(|(i, buf)| Write {
            offset: i as u64 * 7777,
            buf,
        })
        .collect();
    for write in &writes {
        let at = write.offset as usize;
        expected[at..at + 1000].copy_from_slice(write.buf);
    }
    disk.write_batch(&writes).unwrap();
    assert_eq!((machine.queue_kicks(), machine.0.waits.get()), (1, 0));
    assert!(stored(&machine) == expected);
    disk.flush().unwrap();
    assert_eq!(log(&machine).last(), Some(&IoKind::Flush));
}

#[test]
fn a_write_through_is_one_exit_where_the_host_keeps_the_order() {
    for order in ORDERS {
        let (machine, _ctx, disk) = writable(1000, order);
        let buf: &[u8] = machine.heap_slice(600);
        let writes = [Write { offset: 900, buf }, Write { offset: 0, buf }];
        disk.write_through(&writes, 4096).unwrap();
        if order == CompletionOrder::AtOnce {
            assert_eq!(machine.queue_kicks(), 1);
        }
        assert_eq!((disk.len_bytes(), stored(&machine).len()), (4096, 4096));
        assert_eq!(&stored(&machine)[900..1500], buf);
        let log = log(&machine);
        assert_eq!(log.first(), Some(&IoKind::SetLength { len: 4096 }));
        assert_eq!(log.last(), Some(&IoKind::Flush));
        assert_eq!(log.len(), 4, "{order:?}: {log:?}");
        // It is long enough, and there is nothing to write.
        disk.write_through(&[], 10).unwrap();
        assert_eq!(disk.len_bytes(), 4096);
    }
}

#[test]
fn a_write_through_that_fails_says_so() {
    let (machine, _ctx, disk) = writable(1000, CompletionOrder::AtOnce);
    fail_next(&machine, 28);
    let buf: &[u8] = machine.heap_slice(100);
    let error = disk.write_through(&[Write { offset: 512, buf }], 0);
    assert_eq!(error.unwrap_err().errno, 28);
}

#[test]
fn first_bytes_are_read_once_until_the_disk_changes() {
    let (machine, _ctx, disk) = writable(10_000, CompletionOrder::AtOnce);
    let mut seen = [0; 200];
    for at in [0, 100, 3896] {
        disk.read_at(at, &mut seen).unwrap();
        assert_eq!(seen, content(10_000)[at as usize..][..200]);
    }
    assert_eq!(machine.queue_kicks(), 1);
    let buf: &[u8] = machine.heap_slice(50);
    disk.write_at(120, buf).unwrap();
    disk.read_at(100, &mut seen).unwrap();
    assert_eq!(&seen[20..70], buf);
    assert_eq!(machine.queue_kicks(), 3);
}

/// Every change against a plain vector, in every order of completion.
#[test]
fn random_changes_are_seen_by_reads() {
    const LEN: usize = 60_000;
    for order in ORDERS {
        let (machine, _ctx, disk) = writable(LEN, order);
        let mut plain = content(LEN);
        let mut rng = Rng(11);
        let pool = machine.heap_slice(1 << 20);
        let image: Vec<u8> = (0..=u8::MAX).cycle().skip(3).take(150_000).collect();
        for round in 0..300_usize {
            let (at, len) = (rng.below(LEN + 9000), rng.below(5000));
            let (offset, end) = (at as u64, at + len);
            match rng.below(6) {
                0 => {
                    // Disjoint writes of one batch, which may complete in any order.
                    let (parts, step) = (rng.below(120) + 1, rng.below(90) + 1);
                    let bytes = &mut pool[..parts * step];
                    bytes.fill((round % 256) as u8);
                    let place = |i: usize| at + i * step * 2;
                    let parts = bytes.chunks(step).enumerate();
                    let writes: Vec<_> = parts
                        .map(|(i, buf)| Write {
                            offset: place(i) as u64,
                            buf,
                        })
                        .collect();
                    disk.write_batch(&writes).unwrap();
                    for write in &writes {
                        let at = write.offset as usize;
                        plain.resize(plain.len().max(at + step), 0);
                        plain[at..at + step].copy_from_slice(write.buf);
                    }
                }
                1 if len > 0 => {
                    // Memory of the test, which devices cannot reach.
                    let bytes = &image[round..round + len * 20];
                    disk.write_at(offset, bytes).unwrap();
                    plain.resize(plain.len().max(at + bytes.len()), 0);
                    plain[at..at + bytes.len()].copy_from_slice(bytes);
                }
                2 => {
                    disk.write_zeroes(offset, len as u64).unwrap();
                    if len > 0 {
                        plain.resize(plain.len().max(end), 0);
                        plain[at..end].fill(0);
                    }
                }
                3 => {
                    disk.set_len(offset).unwrap();
                    plain.resize(at, 0);
                }
                4 => {
                    disk.allocate(offset, len as u64, Reserve::Blocks).unwrap();
                    if len > 0 {
                        plain.resize(plain.len().max(end), 0);
                    }
                }
                _ => {
                    let at = plain.len() as u64;
                    disk.allocate(at, len as u64, Reserve::WrittenZeros)
                        .unwrap();
                    plain.resize(plain.len() + len, 0);
                }
            }
            assert_eq!(disk.len_bytes(), plain.len() as u64, "{order:?} {round}");
            let (at, buf) = (rng.below(LEN), &mut pool[..8000]);
            disk.read_at(at as u64, buf).unwrap();
            assert!(
                *buf == *expected(&plain, at as u64, 8000),
                "{order:?} {round}"
            );
        }
        assert!(stored(&machine) == plain, "{order:?}");
        assert_eq!(machine.0.disks.borrow()[&0].device.in_flight(), 0);
    }
}

#[test]
fn each_change_is_one_request_and_large_ones_are_cut() {
    let (machine, _ctx, disk) = writable(4096, CompletionOrder::AtOnce);
    let len = MAX_PIECE_BYTES + 5;
    disk.write_at(10, machine.heap_slice(len)).unwrap();
    let second = 10 + MAX_PIECE_BYTES as u64;
    let written = [10, second].map(|offset| IoKind::Write { offset });
    assert_eq!(log(&machine), written);
    assert_eq!(machine.queue_kicks(), 1);
    assert_eq!(disk.len_bytes(), 10 + len as u64);

    disk.write_zeroes(1 << 20, 1 << 26).unwrap();
    disk.discard(7, 1 << 50).unwrap();
    disk.set_len(100).unwrap();
    disk.allocate(5, 1 << 20, Reserve::Blocks).unwrap();
    disk.flush().unwrap();
    let expected = [
        IoKind::WriteZeroes {
            offset: 1 << 20,
            len: 1 << 26,
            unmap: true,
        },
        IoKind::Discard {
            offset: 7,
            len: 1 << 50,
        },
        IoKind::SetLength { len: 100 },
        IoKind::Allocate {
            offset: 5,
            len: 1 << 20,
            zeros: false,
        },
        IoKind::Flush,
    ];
    assert_eq!(log(&machine), expected);

    // What the host has to write is asked for in steps; the store here takes only the first.
    let error = disk
        .allocate(0, 1 << 40, Reserve::WrittenZeros)
        .unwrap_err();
    assert_eq!((error.errno, error.offset), (27, 256 << 20));
    assert_eq!(disk.len_bytes(), 256 << 20);
}

#[test]
fn changes_of_nothing_cost_no_exit() {
    let (machine, _ctx, disk) = writable(100, CompletionOrder::AtOnce);
    disk.write_batch(&[]).unwrap();
    disk.write_at(500, &[]).unwrap();
    disk.write_zeroes(500, 0).unwrap();
    disk.discard(0, 0).unwrap();
    disk.allocate(500, 0, Reserve::Blocks).unwrap();
    assert!(machine.0.kicks.borrow().is_empty());
    assert_eq!(disk.len_bytes(), 100);
}

#[test]
fn a_failed_change_names_errno_and_offset_and_leaves_the_true_length() {
    for order in ORDERS {
        let (machine, _ctx, disk) = writable(1000, order);
        let pool = machine.heap_slice(100 * 10);
        fail_next(&machine, 28);
        let writes: Vec<Write<'_>> = pool
            .chunks(10)
            .enumerate()
            .map(|(i, buf)| Write {
                offset: 2000 + i as u64 * 10,
                buf,
            })
            .collect();
        assert_eq!(disk.write_batch(&writes).unwrap_err().errno, 28);
        assert_eq!(disk.len_bytes(), stored(&machine).len() as u64, "{order:?}");
        let before = disk.len_bytes();
        for (errno, change) in [(5, 0), (122, 1), (28, 2), (27, 3), (95, 4)] {
            fail_next(&machine, errno);
            let (result, offset) = match change {
                0 => (disk.set_len(5), 5),
                1 => (disk.write_zeroes(6000, 9), 6000),
                2 => (disk.allocate(0, 9000, Reserve::Blocks), 0),
                3 => (disk.write_at(8000, b"static"), 8000),
                _ => (disk.discard(3, 4), 3),
            };
            assert_eq!(result, Err(StorageError { errno, offset }));
            assert_eq!(disk.len_bytes(), before);
        }
        fail_next(&machine, 5);
        assert_eq!(disk.flush().unwrap_err().errno, 5);
        disk.flush().unwrap();
    }
}

#[test]
fn read_only_disks_refuse_without_asking() {
    let (machine, _ctx, disk) = machine(100, CompletionOrder::AtOnce);
    assert!(disk.is_read_only());
    let refused = |offset| Err(StorageError { errno: 30, offset });
    assert_eq!(disk.write_at(7, b"x"), refused(7));
    assert_eq!(disk.write_zeroes(8, 1), refused(8));
    assert_eq!(disk.discard(9, 1), refused(9));
    assert_eq!(disk.allocate(10, 1, Reserve::Blocks), refused(10));
    assert_eq!(disk.set_len(11), refused(11));
    assert_eq!(disk.flush(), Ok(()));
    assert!(machine.0.kicks.borrow().is_empty());
}

#[test]
fn what_is_known_of_holes_is_forgotten_with_each_change() {
    let (machine, _ctx, disk) = writable(64 << 10, CompletionOrder::AtOnce);
    let at = |offset| disk.extent_at(offset).unwrap().map(|e| (e.len, e.data));
    assert_eq!(at(0), Some((64 << 10, true)));
    disk.write_zeroes(4096, 8192).unwrap();
    assert_eq!(at(0), Some((4096, true)));
    assert_eq!(at(4096), Some((8192, false)));
    disk.write_at(8192, machine.heap_slice(1)).unwrap();
    disk.write_at(8192, &[1]).unwrap();
    assert_eq!(at(4096), Some((4096, false)));
    disk.set_len(6000).unwrap();
    assert_eq!(at(4096), Some((1904, false)));
    assert_eq!(at(6000), None);
}
