//! Requests that overlap, copies between disks, and jobs on further vCPUs: well-behaved and not.

use crate::{check, fail, leave};
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use instar_guest_ops::storage::overlap::{Crew as _, Done, Overlap, Transfer, Work};
use instar_guest_ops::storage::{Storage, StorageMut};
use instar_guest_ops::{Context, Crew, Disk, DiskSet, Machine, Platform, Queue, Segment};
use instar_shared::blk::{RequestHeader, RequestType, VendorFooter};
use instar_shared::device::{DeviceEntry, entry_address};
use instar_shared::doorbell::{Control, Kick};
use instar_test_guests::Case;
use zerocopy::FromZeros;

const EINVAL: u32 = 22;
const EFBIG: u32 = 27;
/// Buffers of a copy.
const BUFFERS: usize = 8;
/// Jobs that a crew does.
const JOBS: u64 = 300;

pub(crate) fn run(ctx: &mut Context, case: Case, argument: u64) {
    let answer = match case {
        Case::CopyThrough => copy_through(ctx, argument),
        Case::CopyRange => copy_range(ctx),
        Case::CopyOntoItself => copy_onto_itself(ctx),
        Case::ExitInFlight => {
            let (disk, _) = two(ctx);
            let set = set_of([&disk]);
            for token in 0..16 {
                let _ = set.submit(read(token, 0, 1 << 20));
            }
            set.kick();
            // Dropped with everything in flight.
            0
        }
        Case::SameBufferTwice => same_buffer_twice(),
        Case::NeverCollects => never_collects(ctx),
        Case::CrewWorks => crew_works(ctx),
        Case::KickNobody => {
            Machine.kick(Kick::Vcpu(3).encode());
            fail("there is no vCPU 3");
        }
        Case::CrewFaultsMainLoops => {
            let crew = Crew::start(ctx, misbehave);
            submit(&crew, Case::CrewFaults.raw());
            loop {
                core::hint::spin_loop();
            }
        }
        _ => {
            let crew = Crew::start(ctx, misbehave);
            submit(&crew, case.raw());
            match crew.wait() {
                Some(_) => 0,
                None => fail("the job is gone"),
            }
        }
    };
    leave(ctx, case, answer);
}

fn two(ctx: &mut Context) -> (Disk, Option<Disk>) {
    let Ok(one) = ctx.disk(0) else {
        fail("no disk in slot 0");
    };
    (one, ctx.disk(1).ok())
}

fn set_of<'a>(disks: impl IntoIterator<Item = &'a Disk>) -> DiskSet<'a> {
    match DiskSet::new(disks) {
        Some(set) => set,
        None => fail("a set of no disks"),
    }
}

fn read(token: u64, offset: u64, len: usize) -> Transfer {
    Transfer {
        file: 0,
        token,
        work: Work::Read { offset, len },
        buf: vec![0; len],
    }
}

#[track_caller]
fn start(set: &DiskSet<'_>, transfer: Transfer) {
    check(set.submit(transfer).is_ok(), "the queue is full");
}

#[track_caller]
fn done(set: &DiskSet<'_>) -> Done {
    match set.wait() {
        Some(done) => done,
        None => fail("nothing is in flight"),
    }
}

/// Reads slot 0 and writes slot 1, buffers of `size` bytes at a time; the bytes copied.
fn copy_through(ctx: &mut Context, size: u64) -> u64 {
    let granted = ctx.grant(size * BUFFERS as u64 + (8 << 20));
    check(granted > 0, "no memory");
    let (source, Some(target)) = two(ctx) else {
        fail("no disk in slot 1");
    };
    let (len, size) = (source.len_bytes(), size as usize);
    check(target.set_len(len).is_ok(), "slot 1 takes no length");
    let set = set_of([&source, &target]);
    let mut next = 0;
    let mut begin = |mut buf: Vec<u8>| {
        let here = (len - next).min(size as u64) as usize;
        if here == 0 {
            return;
        }
        buf.truncate(size);
        let work = Work::Read {
            offset: next,
            len: here,
        };
        let token = next;
        start(
            &set,
            Transfer {
                file: 0,
                token,
                work,
                buf,
            },
        );
        next += here as u64;
    };
    for _ in 0..BUFFERS {
        begin(vec![0; size]);
    }
    let mut written = 0;
    while let Some(done) = set.wait() {
        check(done.result.is_ok(), "a request failed");
        if done.file == 1 {
            written += (len - done.token).min(size as u64);
            begin(done.buf);
            continue;
        }
        let offset = done.token;
        let work = Work::Write {
            offset,
            len: (len - offset).min(size as u64) as usize,
        };
        let (token, buf) = (offset, done.buf);
        start(
            &set,
            Transfer {
                file: 1,
                token,
                work,
                buf,
            },
        );
    }
    check(target.flush().is_ok(), "slot 1 cannot be flushed");
    written
}

fn copy_of(token: u64, file: u16, from: (u16, u64), offset: u64, len: u64) -> Transfer {
    Transfer {
        file,
        token,
        work: Work::Copy {
            from: from.0,
            from_offset: from.1,
            offset,
            len,
        },
        buf: Vec::new(),
    }
}

/// Lets the host copy slot 0 to slot 1, in two pieces at once; the bytes copied.
fn copy_range(ctx: &mut Context) -> u64 {
    let (source, Some(target)) = two(ctx) else {
        fail("no disk in slot 1");
    };
    let len = source.len_bytes();
    let half = len / 2;
    let set = set_of([&source, &target]);
    start(&set, copy_of(0, 1, (0, 0), 0, half));
    start(&set, copy_of(1, 1, (0, half), half, len - half));
    check(done(&set).result.is_ok(), "a copy failed");
    check(done(&set).result.is_ok(), "a copy failed");
    check(set.wait().is_none(), "something is in flight");
    check(target.flush().is_ok(), "slot 1 cannot be flushed");
    target.len_bytes()
}

/// Copies that cannot be, each of which the guest checks, then one within slot 0 that can.
fn copy_onto_itself(ctx: &mut Context) -> u64 {
    let (disk, _) = two(ctx);
    let set = set_of([&disk]);
    let far = i64::MAX as u64;
    let cases = [
        (copy_of(0, 0, (0, 0), 0, 4096), EINVAL),
        (copy_of(1, 0, (0, 4095), 0, 4096), EINVAL),
        (copy_of(2, 0, (0, 0), 1 << 20, far), EINVAL),
        (copy_of(3, 0, (7, 0), 0, 4096), EINVAL),
        (copy_of(4, 0, (5000, 0), 0, 4096), EINVAL),
        (copy_of(5, 0, (0, u64::MAX), 0, 4096), EINVAL),
        (copy_of(6, 0, (0, 0), 1 << 40, 4096), EFBIG),
        (copy_of(7, 9, (0, 0), 0, 4096), EINVAL),
    ];
    for (transfer, errno) in cases {
        start(&set, transfer);
        let errno_now = done(&set).result.err().map_or(0, |error| error.errno);
        check(errno_now == errno, "another errno");
    }
    start(&set, copy_of(8, 0, (0, 0), 8192, 8192));
    check(
        done(&set).result.is_ok(),
        "ranges that touch do not overlap",
    );
    let (mut one, mut two) = ([0; 8192], [1; 8192]);
    check(disk.read_at(0, &mut one).is_ok(), "slot 0 cannot be read");
    check(
        disk.read_at(8192, &mut two).is_ok(),
        "slot 0 cannot be read",
    );
    u64::from(one == two)
}

/// The queue of slot 0, driven by hand.
fn queue() -> Queue<Machine> {
    let address = entry_address(0).unwrap_or(0);
    let entry = Machine.pointer(address, size_of::<DeviceEntry>());
    // SAFETY: the device table is mapped, and any bytes are an entry.
    let entry = unsafe { entry.cast::<DeviceEntry>().read_volatile() };
    match Queue::new(Machine, 0, &entry) {
        Ok(queue) => queue,
        Err(_) => fail("slot 0 has no queue"),
    }
}

/// Adds a read of 1 MiB at `offset` into `data`; its footer, which is leaked.
fn add_read(queue: &mut Queue<Machine>, offset: u64, data: u64) {
    let mut header = RequestHeader::new_zeroed();
    header.request_type.set(RequestType::ReadBytes.raw());
    header.sector.set(offset);
    let header = Box::leak(Box::new(header));
    let footer: &mut VendorFooter = Box::leak(Box::new(VendorFooter::new_zeroed()));
    let segment = |addr, len, writable| Segment {
        addr,
        len,
        writable,
    };
    let chain = [
        segment((&raw const *header).expose_provenance() as u64, 16, false),
        segment(data, 1 << 20, true),
        segment((&raw const *footer).expose_provenance() as u64, 8, true),
    ];
    // SAFETY: header and footer are leaked, and the data is used for nothing: what it holds does not
    // matter.
    check(unsafe { queue.add(&chain) }.is_some(), "the queue is full");
}

/// Two reads of different places into one buffer: its content is the guest's trouble.
fn same_buffer_twice() -> u64 {
    let mut queue = queue();
    let buf: &mut [u8] = Box::leak(vec![0; 1 << 20].into_boxed_slice());
    let data = buf.as_ptr().expose_provenance() as u64;
    add_read(&mut queue, 0, data);
    add_read(&mut queue, 1 << 20, data);
    queue.kick();
    let mut left = 2;
    while left > 0 {
        match queue.pop_used() {
            Ok(Some(_)) => left -= 1,
            Ok(None) => queue.wait(),
            Err(_) => fail("the host broke the queue"),
        }
    }
    0
}

/// Fills the queue, and rings for ever without a look at what comes back.
fn never_collects(ctx: &mut Context) -> u64 {
    let (disk, _) = two(ctx);
    let set = set_of([&disk]);
    let mut token = 0;
    while set.submit(read(token, 0, 64 << 10)).is_ok() {
        token += 1;
    }
    set.kick();
    loop {
        Machine.kick(Kick::Queue { slot: 0, queue: 0 }.encode());
    }
}

/// Work for a further vCPU.
struct Job {
    input: u64,
    output: u64,
}

fn work(job: &mut Job) {
    let mut sum = job.input;
    for _ in 0..10_000 {
        sum = sum.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    }
    job.output = sum;
}

/// Many jobs beside reads of slot 0; the answer is how many cores worked besides this one.
fn crew_works(ctx: &mut Context) -> u64 {
    let (disk, _) = two(ctx);
    let set = set_of([&disk]);
    let crew = Crew::start(ctx, work);
    let (mut next, mut back) = (0, 0);
    let _ = set.submit(read(0, 0, 1 << 20));
    while back < JOBS {
        while next < JOBS {
            let job = Box::new(Job {
                input: next,
                output: 0,
            });
            if crew.submit(job).is_err() {
                break;
            }
            next += 1;
        }
        if let Some(done) = set.poll() {
            check(done.result.is_ok(), "a read failed");
            let _ = set.submit(read(0, 0, 1 << 20));
        }
        while let Some(job) = crew.poll() {
            let mut again = Job {
                input: job.input,
                output: 0,
            };
            work(&mut again);
            check(again.output == job.output, "a job was not done");
            back += 1;
        }
        if back < JOBS && crew.in_flight() > 0 {
            set.idle();
        }
    }
    crew.cores() as u64
}

fn submit(crew: &Crew<u32>, case: u32) {
    check(crew.cores() > 0, "this machine has one core");
    check(crew.submit(Box::new(case)).is_ok(), "no room for a job");
}

/// A job that does what no job may.
#[allow(clippy::panic)]
fn misbehave(case: &mut u32) {
    match Case::try_from(*case) {
        Ok(Case::CrewLoops) => loop {
            core::hint::spin_loop();
        },
        Ok(Case::CrewFaults) => {
            // SAFETY: none: it must fault.
            let byte = unsafe { core::ptr::with_exposed_provenance::<u8>(8).read_volatile() };
            *case = byte.into();
        }
        Ok(Case::CrewPanics) => panic!("on purpose, elsewhere"),
        Ok(Case::CrewOpens) => Machine.kick(Kick::Control(Control::OpenFile).encode()),
        Ok(Case::CrewExits) => Machine.kick(Kick::Control(Control::Exit).encode()),
        Ok(Case::CrewKicksDevice) => Machine.kick(Kick::Queue { slot: 0, queue: 0 }.encode()),
        Ok(Case::CrewWaits) => Machine.wait(0),
        Ok(Case::CrewOverflows) => *case = deeper(u64::from(*case)) as u32,
        _ => {}
    }
}

#[inline(never)]
#[allow(unconditional_recursion)]
fn deeper(depth: u64) -> u64 {
    let mut room = [depth; 64];
    core::hint::black_box(&mut room);
    deeper(depth + 1) + room[3]
}
