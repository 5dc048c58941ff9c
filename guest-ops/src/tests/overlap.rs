//! Transfers that overlap, over devices that complete them in any order.

use super::*;
use crate::DiskSet;
use crate::storage::StorageMut;
use crate::storage::overlap::{Done, Overlap, Transfer, Work};

const LEN: usize = 200_000;

type Disks = (FakeMachine, Disk<FakeMachine>, Disk<FakeMachine>);

fn disks(order: CompletionOrder) -> Disks {
    let machine = FakeMachine::new();
    machine.add_disk(0, content(LEN), order);
    machine.add_writable_disk(4, content(LEN), order);
    let mut ctx = Context::new(machine.clone());
    let (one, two) = (ctx.disk(0).unwrap(), ctx.disk(4).unwrap());
    (machine, one, two)
}

fn stored(machine: &FakeMachine) -> Vec<u8> {
    machine.0.disks.borrow()[&4].backend.bytes.clone()
}

fn transfer(file: u16, token: u64, work: Work, buf: Vec<u8>) -> Transfer {
    Transfer {
        file,
        token,
        work,
        buf,
    }
}

fn all(set: &DiskSet<'_, FakeMachine>) -> Vec<Done> {
    let mut done: Vec<Done> = core::iter::from_fn(|| set.wait()).collect();
    done.sort_by_key(|done| done.token);
    done
}

/// Buffers that devices reach, and buffers that they do not, in every order; synchronous calls between.
#[test]
fn random_transfers_read_and_write_what_they_should() {
    for order in ORDERS {
        let (machine, one, two) = disks(order);
        let set = DiskSet::new([&one, &two]).unwrap();
        let mut rng = Rng(3);
        let mut plain = content(LEN);
        for round in 0..60_u64 {
            let base = (round % 10) as usize * 20_000;
            let mut expected = Vec::new();
            for token in 0..20_u64 {
                // Each has a place of its own, so that the order does not matter.
                let (offset, len) = (base + token as usize * 1000, 1 + rng.below(999));
                let bytes: Vec<u8> = (0..len).map(|_| rng.below(256) as u8).collect();
                let (work, file) = match rng.below(5) {
                    0 => (
                        Work::Write {
                            offset: offset as u64,
                            len,
                        },
                        4,
                    ),
                    1 => (
                        Work::Zero {
                            offset: offset as u64,
                            len: len as u64,
                        },
                        4,
                    ),
                    2 => (
                        Work::Read {
                            offset: offset as u64,
                            len,
                        },
                        4,
                    ),
                    3 => (Work::Flush, 4),
                    _ => (
                        Work::Read {
                            offset: offset as u64,
                            len,
                        },
                        0,
                    ),
                };
                let place = offset..offset + len;
                let after = match (work, file) {
                    (Work::Read { .. }, 0) => content(LEN)[place].to_vec(),
                    (Work::Read { .. }, _) => plain[place].to_vec(),
                    (Work::Write { .. }, _) => {
                        plain[place].copy_from_slice(&bytes);
                        bytes.clone()
                    }
                    (Work::Zero { .. }, _) => {
                        plain[place].fill(0);
                        bytes.clone()
                    }
                    _ => bytes.clone(),
                };
                expected.push((file, after));
                set.submit(transfer(file, token, work, bytes)).unwrap();
                if token == 10 {
                    let mut buf = [0; 10];
                    one.read_at(5, &mut buf).unwrap();
                    assert_eq!(buf, content(15)[5..]);
                }
            }
            assert_eq!(set.in_flight(), 20);
            let done = all(&set);
            assert_eq!((done.len(), set.in_flight()), (20, 0));
            for (done, (file, bytes)) in done.iter().zip(&expected) {
                assert_eq!((done.file, done.result), (*file, Ok(())));
                assert!(done.buf == *bytes, "{order:?} {}", done.token);
            }
        }
        assert!(stored(&machine) == plain);
        assert!(set.wait().is_none());
    }
}

#[test]
fn nothing_is_shown_to_the_host_before_the_kick_and_all_of_it_by_one() {
    let (machine, one, two) = disks(CompletionOrder::AtOnce);
    let set = DiskSet::new([&one, &two]).unwrap();
    for token in 0..30 {
        let work = Work::Read { offset: 0, len: 10 };
        set.submit(transfer(0, token, work, vec![0; 10])).unwrap();
    }
    assert_eq!(machine.queue_kicks(), 0);
    assert!(set.poll().is_some());
    assert_eq!(machine.queue_kicks(), 1);
    assert_eq!(all(&set).len(), 29);
    assert_eq!((machine.queue_kicks(), machine.0.waits.get()), (1, 0));
}

#[test]
fn a_full_queue_gives_the_transfer_back() {
    let (_machine, one, two) = disks(CompletionOrder::Held);
    let set = DiskSet::new([&one, &two]).unwrap();
    let work = Work::Read { offset: 0, len: 8 };
    let mut taken = 0;
    let back = loop {
        match set.submit(transfer(0, taken, work, vec![9; 8])) {
            Ok(()) => taken += 1,
            Err(back) => break back,
        }
    };
    assert_eq!((taken, back.token, back.buf), (85, 85, vec![9; 8]));
    // The other queue has room, and synchronous calls find it as well.
    set.submit(transfer(4, 100, work, vec![0; 8])).unwrap();
    let mut buf = [0; 4];
    one.read_at(0, &mut buf).unwrap();
    assert_eq!(buf, content(4)[..]);
    assert_eq!(all(&set).len(), 86);
}

#[test]
fn large_transfers_are_cut_and_come_back_as_one() {
    let (machine, one, two) = disks(CompletionOrder::Shuffled(9));
    let set = DiskSet::new([&one, &two]).unwrap();
    let len = 2 * MAX_PIECE_BYTES + 5;
    let bytes: Vec<u8> = content(len);
    let write = Work::Write { offset: 7, len };
    set.submit(transfer(4, 1, write, bytes.clone())).unwrap();
    let done = set.wait().unwrap();
    assert!(done.result.is_ok() && done.buf == bytes && set.in_flight() == 0);
    assert_eq!(two.len_bytes(), 7 + len as u64);
    assert!(stored(&machine)[7..] == bytes);
    assert_eq!(machine.0.disks.borrow()[&4].backend.log.len(), 3);
}

#[test]
fn copies_allocations_and_discards_reach_the_host() {
    let (machine, one, two) = disks(CompletionOrder::Held);
    {
        let mut disks = machine.0.disks.borrow_mut();
        let backend = &mut disks.get_mut(&4).unwrap().backend;
        backend.others.insert(0, content(LEN));
    }
    let set = DiskSet::new([&one, &two]).unwrap();
    let offset = LEN as u64;
    let copy = Work::Copy {
        from: 0,
        from_offset: 100,
        offset,
        len: 5000,
    };
    let (allocate, discard) = (
        Work::Allocate { offset: 0, len: 10 },
        Work::Discard { offset: 0, len: 10 },
    );
    for (token, work) in [(0, copy), (1, allocate), (2, discard)] {
        set.submit(transfer(4, token, work, Vec::new())).unwrap();
    }
    assert!(all(&set).iter().all(|done| done.result.is_ok()));
    assert_eq!(two.len_bytes(), offset + 5000);
    assert!(stored(&machine)[LEN..] == content(LEN)[100..5100]);
}

#[test]
fn transfers_that_cannot_be_come_back_as_errors() {
    let (machine, one, two) = disks(CompletionOrder::AtOnce);
    let set = DiskSet::new([&one, &two]).unwrap();
    let huge = usize::MAX / 2;
    for (file, work, expected) in [
        (0, Work::Write { offset: 3, len: 4 }, Some((30, 3))),
        (0, Work::Zero { offset: 3, len: 4 }, Some((30, 3))),
        (0, Work::Flush, None),
        (4, Work::Read { offset: 3, len: 9 }, Some((22, 3))),
        (
            4,
            Work::Read {
                offset: 3,
                len: huge,
            },
            Some((22, 3)),
        ),
        (4, Work::Read { offset: 3, len: 0 }, None),
        (4, Work::Zero { offset: 3, len: 0 }, None),
        (9, Work::Flush, Some((22, 0))),
    ] {
        set.submit(transfer(file, 5, work, vec![1; 8])).unwrap();
        let done = set.wait().unwrap();
        let error = done.result.err().map(|error| (error.errno, error.offset));
        assert_eq!((error, done.buf), (expected, vec![1; 8]), "{work:?}");
        assert_eq!((done.file, done.token), (file, 5));
    }
    assert!(
        machine.0.kicks.borrow().is_empty(),
        "the host was not asked"
    );
}

#[test]
fn an_error_of_the_host_comes_with_its_transfer_and_the_length_is_asked_for() {
    let (machine, one, two) = disks(CompletionOrder::AtOnce);
    let set = DiskSet::new([&one, &two]).unwrap();
    machine
        .0
        .disks
        .borrow_mut()
        .get_mut(&4)
        .unwrap()
        .backend
        .fail_next = Some(Errno(28));
    let work = Work::Write {
        offset: 1 << 20,
        len: 8,
    };
    set.submit(transfer(4, 5, work, vec![1; 8])).unwrap();
    let error = StorageError {
        errno: 28,
        offset: 1 << 20,
    };
    assert_eq!(set.wait().unwrap().result, Err(error));
    assert_eq!(two.len_bytes(), LEN as u64);
    two.flush().unwrap();
}

/// What the device may still write to is never freed; the fake heap would not mind, but a `Vec` does.
#[test]
fn a_disk_dropped_with_transfers_in_flight_keeps_their_memory() {
    let (machine, one, two) = disks(CompletionOrder::Held);
    let set = DiskSet::new([&one, &two]).unwrap();
    let work = Work::Read { offset: 0, len: 64 };
    set.submit(transfer(0, 1, work, vec![0; 64])).unwrap();
    set.kick();
    drop(set);
    drop((one, two));
    let mut disks = machine.0.disks.borrow_mut();
    assert_eq!(disks.get_mut(&0).unwrap().backend.held(), 1);
}
