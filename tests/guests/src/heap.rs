//! Memory, files and panics.

use crate::{check, fail};
use alloc::vec::Vec;
use instar_guest_ops::{Context, Machine, Platform};
use instar_shared::control::{ControlPage, FileRequest, FileResponse, FileStatus};
use instar_shared::doorbell::{Control, Kick};
use instar_shared::layout::CONTROL;
use instar_test_guests::Case;
use zerocopy::{FromBytes, IntoBytes};

#[allow(clippy::panic)]
pub(crate) fn run(ctx: &mut Context, case: Case) {
    match case {
        Case::BadFileRequests => bad_files(),
        Case::HugeGrant => {
            check(
                ctx.grant(u64::MAX) < u64::MAX / 2,
                "a grant of all memory there can be",
            );
            check(ctx.grant(0) == 0, "a grant that nobody asked for");
        }
        Case::Panic => panic!("on purpose"),
        Case::PanicLong => panic!("{:40000}", "long"),
        Case::AllocateHuge => {
            core::hint::black_box(Vec::<u8>::with_capacity(1 << 40));
        }
        Case::AllocateAll => {
            let mut all = Vec::new();
            loop {
                all.push(Vec::<u8>::with_capacity(1 << 20));
                core::hint::black_box(&all);
            }
        }
        Case::AllocateAndFree => allocate_and_free(),
        _ => {
            while !full() {
                ctx.records().line(format_args!("{:1000}", ""));
            }
            panic!("on purpose");
        }
    }
}

/// Whether less than two kilobytes are left in the record window.
fn full() -> bool {
    let offset = core::mem::offset_of!(ControlPage, record_bytes) as u64;
    let mut fill = [0; 4];
    load(CONTROL.start + offset, &mut fill);
    // The writer leaves room for the longest record; lines fill it up to there.
    u64::from(u32::from_le_bytes(fill)) + 34_000 > instar_shared::layout::RECORDS.size
}

/// Copies bytes from a region that the guest may read.
pub(crate) fn load(addr: u64, bytes: &mut [u8]) {
    let len = bytes.len();
    // SAFETY: the control page is mapped; the target is a slice of this length.
    unsafe {
        Machine
            .pointer(addr, len)
            .copy_to_nonoverlapping(core::ptr::NonNull::from(bytes).cast(), len);
    }
}

fn allocate_and_free() {
    let mut kept: Vec<Vec<u64>> = Vec::new();
    let mut seed = 1_u64;
    for round in 0..5000_u64 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let len = (seed >> 33) as usize % 20_000 + 1;
        kept.push(alloc::vec![round; len]);
        if kept.len() > 16 {
            let gone = kept.swap_remove((seed >> 40) as usize % kept.len());
            check(
                gone.iter().all(|word| *word == gone[0]),
                "memory was given out twice",
            );
        }
    }
}

/// Requests that the host must answer without opening anything.
fn bad_files() {
    type Change = fn(&mut FileRequest);
    let changes: [Change; 10] = [
        |r| r.slot.set(0),
        |r| r.slot.set(1024),
        |r| r.slot.set(u32::MAX),
        |r| r.role.set(99),
        |r| r.access.set(0),
        |r| r.parent_slot.set(999),
        |r| r.parent_slot.set(u32::MAX),
        |r| r.name_len.set(0),
        |r| r.name_len.set(4097),
        |r| r.name[1] = 0,
    ];
    for change in changes {
        let mut request = FileRequest::zeroed();
        request.slot.set(5);
        request.role.set(1);
        request.access.set(1);
        request.name_len.set(4);
        request.name[..4].copy_from_slice(b"name");
        change(&mut request);
        let at = core::mem::offset_of!(ControlPage, file_request) as u64;
        crate::control::store(CONTROL.start + at, request.as_bytes());
        Machine.kick(Kick::Control(Control::OpenFile).encode());
        let at = core::mem::offset_of!(ControlPage, file_response) as u64;
        let mut raw = [0; size_of::<FileResponse>()];
        load(CONTROL.start + at, &mut raw);
        let Ok(response) = FileResponse::read_from_bytes(&raw) else {
            fail("no response");
        };
        let status = response.status.get();
        check(
            FileStatus::try_from(status).is_ok(),
            "an unknown file status",
        );
        check(
            status != FileStatus::Opened.raw(),
            "a bad file request was granted",
        );
    }
}
