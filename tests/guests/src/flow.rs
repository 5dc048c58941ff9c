//! The cases that do nothing wrong, and the script.

use crate::control::store;
use crate::{check, fail, leave};
use alloc::vec;
use alloc::vec::Vec;
use instar_guest_ops::storage::{Read, Storage, StorageMut};
use instar_guest_ops::{Context, Disk, Machine, Platform};
use instar_shared::control::FileRole;
use instar_shared::layout::CONFIG;
use instar_test_guests::{
    Case, FAILING_BYTES, GuestConfig, Hash, MAX_STEPS, STEP_KICK, STEP_STORE, STEP_WAIT, Step,
};

/// Lengths of reads, one after the other: below, at and above sectors, pages and requests.
const PIECES: [usize; 8] = [1, 511, 512, 4097, 65_536, 1 << 20, (5 << 20) + 3, 8192];

pub(crate) fn run(ctx: &mut Context, case: Case, argument: u64) {
    ctx.records().line(format_args!("case {}", case.name()));
    let answer = match case {
        Case::ReadDisk => read_disk(&disk(ctx)),
        Case::Checksum => {
            let disk = disk(ctx);
            checksum(ctx, &disk, argument)
        }
        Case::OpenMany => open_many(ctx, argument),
        Case::UntilCancelled => until_cancelled(ctx),
        Case::ReadFails => match disk(ctx).read_at(argument, &mut [0; 4096]) {
            Ok(()) => fail("the read did not fail"),
            Err(e) => u64::from(e.errno),
        },
        Case::Extents => extents(&disk(ctx)),
        Case::Script => script(),
        Case::ChangeDisk => match instar_test_guests::change(&disk(ctx), argument) {
            Ok(hash) => hash,
            Err(_) => fail("slot 0 cannot be changed"),
        },
        Case::WriteFails => write_fails(&disk(ctx), argument),
        _ => 0,
    };
    leave(ctx, case, answer);
}

fn disk(ctx: &mut Context) -> Disk {
    let Ok(disk) = ctx.disk(0) else {
        fail("no disk in slot 0");
    };
    disk
}

fn read_disk(disk: &Disk) -> u64 {
    let mut buf = [0; 4096];
    for at in (0..disk.len_bytes()).step_by(buf.len()) {
        check(disk.read_at(at, &mut buf).is_ok(), "slot 0 cannot be read");
    }
    0
}

/// Single reads and batches in turn.
fn checksum(ctx: &mut Context, disk: &Disk, start: u64) -> u64 {
    let mut hash = Hash::default();
    let (mut at, middle) = (start, start.midpoint(disk.len_bytes()));
    let mut said = false;
    for piece in PIECES.iter().cycle() {
        let left = disk.len_bytes().saturating_sub(at);
        if left == 0 {
            break;
        }
        if at > middle && !said {
            said = true;
            ctx.records().line(format_args!("past the middle"));
            ctx.records().drain();
        }
        let len = (*piece).min(left as usize);
        let mut buf = vec![0xaa; len];
        let (front, back) = buf.split_at_mut(len / 3);
        let back_at = at + front.len() as u64;
        let mut batch = [
            Read {
                offset: at,
                buf: front,
            },
            Read {
                offset: back_at,
                buf: back,
            },
        ];
        check(disk.read_batch(&mut batch).is_ok(), "slot 0 cannot be read");
        hash.add(&buf);
        at += len as u64;
    }
    hash.0
}

fn open_many(ctx: &mut Context, count: u64) -> u64 {
    let mut disks = vec![disk(ctx)];
    for number in 1..=count {
        let name = alloc::format!("file-{number}");
        match ctx.open_backing(0, name.as_bytes(), FileRole::Backing) {
            Ok(disk) => disks.push(disk),
            Err(_) => fail("a file was not opened"),
        }
    }
    let mut hash = Hash::default();
    for disk in &disks {
        let mut bytes: Vec<u8> = vec![0; disk.len_bytes() as usize];
        check(disk.read_at(0, &mut bytes).is_ok(), "a file cannot be read");
        hash.add(&bytes);
    }
    hash.0
}

fn write_fails(disk: &Disk, offset: u64) -> u64 {
    match disk.write_at(offset, &vec![0xb5; FAILING_BYTES]) {
        Ok(()) => fail("the write did not fail"),
        Err(e) => u64::from(e.errno) | disk.len_bytes() << 32,
    }
}

fn until_cancelled(ctx: &mut Context) -> u64 {
    let mut round = 0_u64;
    while !ctx.cancelled() {
        round = round.wrapping_add(1);
        ctx.records().progress(round, 0);
    }
    1
}

fn extents(disk: &Disk) -> u64 {
    let mut hash = Hash::default();
    let mut at = 0;
    loop {
        match disk.extent_at(at) {
            Ok(Some(extent)) => {
                for word in [extent.offset, extent.len, u64::from(extent.data)] {
                    hash.add(&word.to_le_bytes());
                }
                at = extent.offset + extent.len;
            }
            Ok(None) => return hash.0,
            Err(_) => fail("extents cannot be had"),
        }
    }
}

fn script() -> u64 {
    let first = Machine
        .pointer(CONFIG.start + size_of::<GuestConfig>() as u64, 1)
        .cast::<Step>();
    for index in 0..MAX_STEPS {
        // SAFETY: the config region holds this many steps, and any bytes are a step.
        let step = unsafe { first.add(index).read_volatile() };
        match step.kind.get() {
            STEP_STORE => {
                let len = step.value.get().min(16) as usize;
                store(Step::target(step.at.get()), &step.bytes[..len]);
            }
            STEP_KICK => Machine.kick(step.value.get()),
            STEP_WAIT => Machine.wait(step.value.get()),
            _ => return index as u64,
        }
    }
    MAX_STEPS as u64
}
