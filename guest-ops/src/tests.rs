//! The guest's side against the host's devices, in one process.

#![allow(clippy::cast_possible_truncation)] // small numbers

use crate::extents::ExtentCache;
use crate::fake::{FakeMachine, TICKS_PER_SECOND, answer};
use crate::storage::{Extent, Read, Storage, StorageError};
use crate::{Context, Disk, DiskError, MAX_PIECE_BYTES, OpenError, RecordTooLong};
use instar_devices::blk::{CompletionOrder, Errno, IoKind};
use instar_shared::boot::{BootPage, CANCEL_REQUESTED};
use instar_shared::check::{CheckConfig, CheckResult};
use instar_shared::control::{FileRole, FileStatus, MAX_NAME_BYTES};
use instar_shared::layout::{BOOT, CONFIG, RECORDS, RESULT, SECRETS};
use instar_shared::record::{FailureKind, MAX_PAYLOAD, RecordKind};
use instar_shared::secret::{self, SecretRole, SecretUse};
use instar_shared::zerocopy::IntoBytes;
use vm_memory::{Bytes, GuestAddress};

mod change;
mod overlap;
mod queries;

const ORDERS: [CompletionOrder; 3] = [
    CompletionOrder::AtOnce,
    CompletionOrder::Held,
    CompletionOrder::Shuffled(42),
];

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 5 % 251) as u8 + 1).collect()
}

fn machine(
    len: usize,
    order: CompletionOrder,
) -> (FakeMachine, Context<FakeMachine>, Disk<FakeMachine>) {
    let machine = FakeMachine::new();
    machine.add_disk(0, content(len), order);
    let mut ctx = Context::new(machine.clone());
    let disk = ctx.disk(0).unwrap();
    (machine, ctx, disk)
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

/// What `Disk` must read.
fn expected(bytes: &[u8], offset: u64, len: usize) -> Vec<u8> {
    let at = |i: usize| {
        usize::try_from(offset)
            .ok()
            .and_then(|o| bytes.get(o + i).copied())
    };
    (0..len).map(|i| at(i).unwrap_or(0)).collect()
}

#[test]
fn opening_costs_no_exit_and_a_batch_costs_one() {
    let (machine, _ctx, disk) = machine(1 << 20, CompletionOrder::AtOnce);
    assert!(machine.0.kicks.borrow().is_empty());
    assert_eq!(disk.len_bytes(), 1 << 20);
    let mut buffers: Vec<&mut [u8]> = (0..60).map(|_| machine.heap_slice(1000)).collect();
    let mut reads: Vec<Read<'_>> = buffers
        .iter_mut()
        .enumerate()
        .map(|(i, buf)| Read {
            offset: i as u64 * 7777,
            buf,
        })
        .collect();
    disk.read_batch(&mut reads).unwrap();
    assert_eq!(
        (machine.0.kicks.borrow().len(), machine.0.waits.get()),
        (1, 0)
    );
    for (i, buf) in buffers.iter().enumerate() {
        assert_eq!(**buf, expected(&content(1 << 20), i as u64 * 7777, 1000));
    }
}

#[test]
fn random_batches_read_what_is_there_in_every_completion_order() {
    const LEN: usize = 100_000;
    let bytes = content(LEN);
    for order in ORDERS {
        let (machine, _ctx, disk) = machine(LEN, order);
        let mut rng = Rng(7);
        let pool = machine.heap_slice(4 << 20);
        for _ in 0..400 {
            let mut rest = &mut pool[..];
            let mut reads = Vec::new();
            for _ in 0..rng.below(200) {
                let len = rng.below(300);
                let (buf, after) = rest.split_at_mut(len);
                buf.fill(0xdd);
                rest = after;
                reads.push(Read {
                    offset: rng.below(LEN + 500) as u64,
                    buf,
                });
            }
            disk.read_batch(&mut reads).unwrap();
            for read in &reads {
                assert_eq!(
                    *read.buf,
                    expected(&bytes, read.offset, read.buf.len()),
                    "{order:?} {}",
                    read.offset
                );
            }
        }
        assert_eq!(machine.0.disks.borrow()[&0].device.in_flight(), 0);
    }
}

#[test]
fn ring_indices_wrap_around() {
    let (machine, _ctx, disk) = machine(4096, CompletionOrder::Shuffled(3));
    let bytes = content(4096);
    let buffer = machine.heap_slice(80 * 8);
    for round in 0..1000_u64 {
        let mut reads: Vec<Read<'_>> = buffer
            .chunks_mut(8)
            .enumerate()
            .map(|(i, buf)| Read {
                offset: (round + i as u64) % 4000,
                buf,
            })
            .collect();
        disk.read_batch(&mut reads).unwrap();
        for read in reads {
            assert_eq!(*read.buf, expected(&bytes, read.offset, 8));
        }
    }
    // 80,000 chains: the 16-bit indices went round once.
    let next_used = machine.0.disks.borrow()[&0].device.save().queue.next_used;
    assert_eq!(u32::from(next_used), 80_000 % 0x1_0000);
}

#[test]
fn large_reads_are_cut_and_never_go_past_the_end() {
    let len = 3 * MAX_PIECE_BYTES + 1234;
    let (machine, _ctx, disk) = machine(len, CompletionOrder::AtOnce);
    let buf = machine.heap_slice(len + 5000);
    buf.fill(0xdd);
    disk.read_at(10, buf).unwrap();
    assert_eq!(buf[..len - 10], content(len)[10..]);
    assert!(buf[len - 10..].iter().all(|byte| *byte == 0));
    let piece = MAX_PIECE_BYTES as u64;
    let offsets =
        [10, 10 + piece, 10 + 2 * piece, 10 + 3 * piece].map(|offset| IoKind::Read { offset });
    assert_eq!(machine.0.disks.borrow()[&0].backend.log, offsets);
    assert_eq!(machine.queue_kicks(), 1);
}

#[test]
fn reads_past_the_end_and_of_nothing_cost_no_exit() {
    let (machine, _ctx, disk) = machine(100, CompletionOrder::AtOnce);
    let buf = machine.heap_slice(8);
    for offset in [100, 101, u64::MAX] {
        buf.fill(1);
        disk.read_at(offset, buf).unwrap();
        assert_eq!(buf, [0; 8]);
    }
    disk.read_at(0, &mut []).unwrap();
    disk.read_batch(&mut []).unwrap();
    assert!(machine.0.kicks.borrow().is_empty());
}

#[test]
fn buffers_that_devices_cannot_reach_are_bounced() {
    for order in ORDERS {
        let (_machine, _ctx, disk) = machine(300_000, order);
        let mut buf = vec![0xdd; 200_001];
        disk.read_at(99_998, &mut buf).unwrap();
        assert_eq!(buf, expected(&content(300_000), 99_998, 200_001));
    }
}

#[test]
fn device_error_names_errno_and_offset_and_the_disk_goes_on() {
    for order in ORDERS {
        let (machine, _ctx, disk) = machine(100_000, order);
        let pool = machine.heap_slice(100 * 10);
        for round in 0..3 {
            machine
                .0
                .disks
                .borrow_mut()
                .get_mut(&0)
                .unwrap()
                .backend
                .fail_next = Some(Errno(61));
            let mut reads: Vec<Read<'_>> = pool
                .chunks_mut(10)
                .enumerate()
                .map(|(i, buf)| Read {
                    offset: 500 + i as u64 * 10,
                    buf,
                })
                .collect();
            let error = disk.read_batch(&mut reads).unwrap_err();
            assert_eq!(error.errno, 61, "{order:?} {round}");
            if order != ORDERS[2] {
                assert_eq!(
                    error,
                    StorageError {
                        errno: 61,
                        offset: 500
                    }
                );
            }
            assert_eq!(
                machine.0.disks.borrow()[&0].device.in_flight(),
                0,
                "nothing is left behind"
            );
        }
        disk.read_at(7, &mut pool[..50]).unwrap();
        assert_eq!(pool[..50], content(100_000)[7..57]);
    }
}

#[test]
fn extents_come_many_at_a_time_and_cover_the_disk() {
    const LEN: usize = 1_000_000;
    let (machine, _ctx, disk) = machine(LEN, CompletionOrder::AtOnce);
    for start in (0..LEN).step_by(20_480) {
        let end = (start + 8192).min(LEN);
        machine
            .0
            .disks
            .borrow_mut()
            .get_mut(&0)
            .unwrap()
            .backend
            .bytes[start..end]
            .fill(0);
    }
    let mut at = 0;
    let mut runs = 0;
    while let Some(extent) = disk.extent_at(at).unwrap() {
        assert!(extent.len > 0 && extent.offset <= at && at < extent.offset + extent.len);
        assert_eq!(extent.data, extent.offset % 20_480 != 0, "{extent:?}");
        at = extent.offset + extent.len;
        runs += 1;
    }
    assert_eq!((at, runs), (LEN as u64, 98));
    assert_eq!(machine.queue_kicks(), 2, "64 runs at a time");
    assert_eq!(disk.extent_at(LEN as u64), Ok(None));
    assert_eq!(disk.extent_at(u64::MAX), Ok(None));
    // The middle of a run that was asked for is answered from the cache.
    let kicks = machine.queue_kicks();
    let last = disk.extent_at(LEN as u64 - 1).unwrap().unwrap();
    assert!(last.offset + last.len == LEN as u64);
    assert_eq!(machine.queue_kicks(), kicks);
}

#[test]
fn extent_answers_are_cut_merged_and_made_whole() {
    let mut cache = ExtentCache::default();
    assert_eq!(cache.find(0), None);
    cache.replace(
        100,
        1000,
        &answer(&[(50, true), (50, true), (u64::MAX, false), (9, true)]),
    );
    assert_eq!(cache.find(99), None);
    assert_eq!(
        cache.find(199),
        Some(Extent {
            offset: 100,
            len: 100,
            data: true
        })
    );
    assert_eq!(
        cache.find(200),
        Some(Extent {
            offset: 200,
            len: 800,
            data: false
        })
    );
    assert_eq!(cache.find(1000), None);
    cache.replace(10, 1000, &answer(&[(0, false), (7, true)]));
    assert_eq!(
        cache.find(10),
        Some(Extent {
            offset: 10,
            len: 990,
            data: true
        })
    );
}

#[test]
fn slots_are_had_once_and_only_if_present() {
    let (machine, mut ctx, disk) = machine(10, CompletionOrder::AtOnce);
    assert_eq!((disk.slot(), disk.is_block_device()), (0, false));
    assert_eq!(ctx.disk(0).unwrap_err(), DiskError::Taken);
    assert_eq!(ctx.disk(1).unwrap_err(), DiskError::Absent);
    assert_eq!(ctx.disk(1024).unwrap_err(), DiskError::Absent);
    machine.add_disk(1, vec![9], CompletionOrder::AtOnce);
    assert_eq!(ctx.disk(1).unwrap().len_bytes(), 1);
}

#[test]
fn open_backing_asks_for_the_next_slot_and_reads_the_file() {
    let (machine, mut ctx, _disk) = machine(10, CompletionOrder::AtOnce);
    for slot in 1..4_u16 {
        *machine.0.next_file.borrow_mut() = Some((FileStatus::Opened, 0, content(50)));
        let disk = ctx
            .open_backing(slot - 1, b"base.qcow2", FileRole::Backing)
            .unwrap();
        let asked = machine.0.last_file.borrow_mut().take().unwrap();
        let role = FileRole::Backing.raw();
        assert_eq!(
            asked,
            (
                u32::from(slot),
                role,
                u32::from(slot) - 1,
                b"base.qcow2".to_vec()
            )
        );
        assert_eq!((disk.slot(), disk.len_bytes()), (slot, 50));
        let mut buf = [0; 4];
        disk.read_at(3, &mut buf).unwrap();
        assert_eq!(buf, content(50)[3..7]);
    }
}

#[test]
fn open_backing_passes_refusals_on() {
    let (machine, mut ctx, _disk) = machine(10, CompletionOrder::AtOnce);
    for (status, errno) in [
        (FileStatus::Failed, 2),
        (FileStatus::Refused, 0),
        (FileStatus::Loop, 0),
    ] {
        *machine.0.next_file.borrow_mut() = Some((status, errno, vec![]));
        let error = ctx
            .open_backing(0, &[b'x'; MAX_NAME_BYTES], FileRole::Data)
            .unwrap_err();
        assert_eq!(error, OpenError::Host(status, errno));
    }
    let kicks = machine.0.kicks.borrow().len();
    let error = ctx
        .open_backing(0, &[b'x'; MAX_NAME_BYTES + 1], FileRole::Data)
        .unwrap_err();
    assert_eq!(
        (error, machine.0.kicks.borrow().len()),
        (OpenError::NameTooLong, kicks)
    );
}

#[test]
fn size_is_announced_for_a_file_that_is_there() {
    let machine = FakeMachine::new();
    machine.add_disk(3, Vec::new(), CompletionOrder::AtOnce);
    let mut ctx = Context::new(machine);
    assert_eq!(ctx.announce_size(3, 1 << 40), Ok(()));
    assert_eq!(ctx.announce_size(4, 1), Err(crate::AnnounceError::Invalid));
}

#[test]
fn config_result_grant_and_cancel_reach_their_places() {
    let (machine, mut ctx, _disk) = machine(10, CompletionOrder::AtOnce);
    let mut config = CheckConfig::zeroed();
    config.repair.set(77);
    machine
        .0
        .mem
        .write_slice(config.as_bytes(), GuestAddress(CONFIG.start))
        .unwrap();
    assert_eq!(ctx.config::<CheckConfig>(), config);

    let mut result = CheckResult::zeroed();
    result.leaks.set(5);
    ctx.set_result(&result);
    let mut seen = CheckResult::zeroed();
    machine
        .0
        .mem
        .read_slice(seen.as_mut_bytes(), GuestAddress(RESULT.start))
        .unwrap();
    assert_eq!(seen, result);

    machine.0.memory_cap.set(1 << 20);
    assert_eq!((ctx.grant(1 << 30), ctx.grant(100)), (1 << 20, 100));

    assert!(!ctx.cancelled());
    machine
        .0
        .mem
        .write_obj(CANCEL_REQUESTED, GuestAddress(BOOT.start + 8))
        .unwrap();
    assert!(ctx.cancelled());
}

#[test]
#[should_panic(expected = "another ABI")]
fn another_abi_version_is_refused() {
    let machine = FakeMachine::new();
    machine
        .0
        .mem
        .write_obj(99_u32, GuestAddress(BOOT.start + 4))
        .unwrap();
    let _ctx = Context::new(machine);
}

#[test]
fn records_arrive_whole_and_in_order_and_drain_only_when_full() {
    let (machine, mut ctx, _disk) = machine(10, CompletionOrder::AtOnce);
    ctx.records().line(format_args!("one {}", 1));
    ctx.records().diagnostic(format_args!(""));
    ctx.records()
        .failure(FailureKind::OpenImage, 3, format_args!("why: ä"));
    ctx.records()
        .record(RecordKind::Snapshot, &[b"abc", b"", b"defgh"])
        .unwrap();
    assert!(
        machine.0.kicks.borrow().is_empty(),
        "no exit before the window is full"
    );
    machine.take_records();
    let mut failure = vec![1, 0, 0, 0, 3, 0, 0, 0];
    failure.extend("why: ä".bytes());
    assert_eq!(
        *machine.0.records.borrow(),
        [
            (RecordKind::Line, b"one 1".to_vec()),
            (RecordKind::Diagnostic, vec![]),
            (RecordKind::Failure, failure),
            (RecordKind::Snapshot, b"abcdefgh".to_vec()),
        ]
    );
}

#[test]
fn many_records_drain_by_themselves() {
    let (machine, mut ctx, _disk) = machine(10, CompletionOrder::AtOnce);
    let mut rng = Rng(5);
    let mut sent = Vec::new();
    for i in 0..3000_usize {
        let payload = vec![(i % 256) as u8; rng.below(700)];
        ctx.records()
            .record(RecordKind::Bitmap, &[&payload])
            .unwrap();
        sent.push((RecordKind::Bitmap, payload));
    }
    ctx.records().drain();
    let total: usize = sent
        .iter()
        .map(|(_, payload)| 8 + payload.len().next_multiple_of(8))
        .sum();
    let windows = total.div_ceil(usize::try_from(RECORDS.size).unwrap());
    assert!(
        machine.0.kicks.borrow().len() <= windows + 1,
        "each drain takes a full window"
    );
    assert!(*machine.0.records.borrow() == sent);
    let kicks = machine.0.kicks.borrow().len();
    ctx.records().drain();
    assert_eq!(
        machine.0.kicks.borrow().len(),
        kicks,
        "an empty window costs no exit"
    );
}

#[test]
fn long_records_are_refused_and_long_texts_cut_between_characters() {
    let (machine, mut ctx, _disk) = machine(10, CompletionOrder::AtOnce);
    let long = vec![7; MAX_PAYLOAD];
    ctx.records().record(RecordKind::Luks, &[&long]).unwrap();
    assert_eq!(
        ctx.records().record(RecordKind::Luks, &[&long, b"x"]),
        Err(RecordTooLong)
    );
    let text = "ä".repeat(MAX_PAYLOAD);
    ctx.records().line(format_args!("x{text}{text}"));
    machine.take_records();
    let records = machine.0.records.borrow();
    assert_eq!((records.len(), records[0].1.len()), (2, MAX_PAYLOAD));
    let cut = core::str::from_utf8(&records[1].1).expect("cut between characters");
    assert!(cut.len() <= MAX_PAYLOAD && cut.len() > MAX_PAYLOAD - 8);
    assert!(cut.starts_with("xäää") && cut.ends_with("ä [...]"));
}

#[test]
fn progress_is_seen_at_once_but_not_more_than_ten_times_a_second() {
    let (machine, mut ctx, _disk) = machine(10, CompletionOrder::AtOnce);
    for i in 0..3 * TICKS_PER_SECOND / 10 {
        machine.0.clock.set(i * 10);
        ctx.records().progress(i, 300_000);
    }
    let records = machine.0.records.borrow();
    assert_eq!(records.len(), 29);
    assert!(
        records
            .iter()
            .all(|(kind, payload)| *kind == RecordKind::Progress && payload.len() == 16)
    );
    let mut first = 10_000_u64.to_le_bytes().to_vec();
    first.extend(300_000_u64.to_le_bytes());
    assert_eq!(records[0].1, first);
    assert_eq!(machine.0.kicks.borrow().len(), 29);
}

/// A machine with two secrets in its region.
fn machine_with_secrets() -> FakeMachine {
    let machine = FakeMachine::new();
    let uses = [
        (0, SecretRole::Open, &b"first"[..]),
        (2, SecretRole::New, b""),
    ];
    let uses = uses.map(|(depth, role, bytes)| SecretUse {
        slot: 1,
        depth,
        role,
        bytes,
    });
    let mut region = vec![0; SECRETS.size as usize];
    secret::encode(uses.into_iter(), &mut region).unwrap();
    let write = |bytes: &[u8], at: u64| {
        machine.0.mem.write_slice(bytes, GuestAddress(at)).unwrap();
    };
    write(&region, SECRETS.start);
    let count = core::mem::offset_of!(BootPage, secrets) as u64;
    write(&2_u32.to_le_bytes(), BOOT.start + count);
    machine
}

#[test]
fn secrets_are_taken_out_of_their_region_by_the_first_call() {
    let machine = machine_with_secrets();
    let mut ctx = Context::new(machine.clone());
    assert!(ctx.secret(7, 7, SecretRole::Old).is_none());
    let mut region = vec![1; SECRETS.size as usize];
    let at = GuestAddress(SECRETS.start);
    machine.0.mem.read_slice(&mut region, at).unwrap();
    assert!(region.iter().all(|byte| *byte == 0));
    assert!(ctx.has_secret(1, 0, SecretRole::Open) && !ctx.has_secret(1, 1, SecretRole::Open));
    let mut secret = |slot, depth, role| ctx.secret(slot, depth, role).map(|s| s.to_vec());
    assert_eq!(secret(1, 0, SecretRole::Open), Some(b"first".to_vec()));
    // Each can be had once.
    assert_eq!(secret(1, 0, SecretRole::Open), None);
    assert_eq!(secret(1, 2, SecretRole::New), Some(Vec::new()));
    assert_eq!(secret(1, 0, SecretRole::New), None);
    assert_eq!(secret(0, 0, SecretRole::Open), None);
    let mut ctx = Context::new(machine_with_secrets());
    let text = format!("{ctx:?} {:?}", ctx.secret(1, 0, SecretRole::Open));
    assert!(
        !text.contains("first") && !text.contains("102, 105"),
        "{text}"
    );
}

#[test]
fn without_secrets_their_region_is_not_touched() {
    let machine = FakeMachine::new();
    let at = GuestAddress(SECRETS.start);
    machine.0.mem.write_slice(b"rubbish", at).unwrap();
    let mut ctx = Context::new(machine);
    assert!(ctx.secret(0, 0, SecretRole::Open).is_none());
}

#[test]
#[should_panic = "the secret region is damaged"]
fn damaged_secrets_end_the_operation() {
    let machine = machine_with_secrets();
    let at = GuestAddress(SECRETS.start);
    machine.0.mem.write_slice(b"rubbish", at).unwrap();
    let _ = Context::new(machine).secret(0, 0, SecretRole::Open);
}
