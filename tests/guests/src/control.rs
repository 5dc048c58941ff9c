//! Doorbells and the record stream.

use crate::fail;
use instar_guest_ops::{Context, Machine, Platform};
use instar_shared::control::ControlPage;
use instar_shared::doorbell::{Control, Kick};
use instar_shared::info::ImageRecord;
use instar_shared::layout::{CONTROL, RECORDS, RESULT};
use instar_shared::record::{MAX_PAYLOAD, RecordHeader, RecordKind};
use instar_test_guests::Case;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

pub(crate) fn run(ctx: &mut Context, case: Case) {
    match case.raw() {
        80..100 => bells(ctx, case),
        _ => records(ctx, case),
    }
}

fn control(control: Control) {
    Machine.kick(Kick::Control(control).encode());
}

fn bells(ctx: &mut Context, case: Case) {
    match case {
        Case::Loop => loop {
            core::hint::spin_loop();
        },
        Case::KickLoop => loop {
            Machine.kick(Kick::Queue { slot: 0, queue: 0 }.encode());
        },
        Case::WaitLoop => loop {
            Machine.wait(0);
        },
        Case::ShortWaitLoop => loop {
            Machine.wait(1);
        },
        Case::DrainLoop => loop {
            control(Control::Drain);
        },
        Case::UnknownKick => Machine.kick(0xffff_1234),
        Case::KickEmptySlot => Machine.kick(
            Kick::Queue {
                slot: 777,
                queue: 0,
            }
            .encode(),
        ),
        Case::KickUnknownQueue => Machine.kick(Kick::Queue { slot: 0, queue: 7 }.encode()),
        Case::FloodRecords => loop {
            ctx.records().line(format_args!("{:4000}", "flood"));
        },
        Case::FloodProgress => loop {
            ctx.records().progress(1, 2);
        },
        Case::GrantLoop => loop {
            let _ = ctx.grant(1 << 20);
        },
        _ => loop {
            control(Control::OpenFile);
        },
    }
}

/// Writes one record by hand and says that `fill` bytes are there.
fn send(kind: u32, len: u32, payload: &[u8], fill: u32) {
    let header = RecordHeader {
        kind: U32::new(kind),
        len: U32::new(len),
    };
    store(RECORDS.start, header.as_bytes());
    store(RECORDS.start + 8, payload);
    set_fill(fill);
    control(Control::Drain);
}

fn set_fill(fill: u32) {
    let offset = core::mem::offset_of!(ControlPage, record_bytes) as u64;
    store(CONTROL.start + offset, U32::new(fill).as_bytes());
}

/// Copies bytes into a region of the contract that the guest may write.
pub(crate) fn store(addr: u64, bytes: &[u8]) {
    let pointer = Machine.pointer(addr, bytes.len());
    // SAFETY: the regions are mapped for writing, and no slice refers to them.
    unsafe {
        pointer.copy_from_nonoverlapping(core::ptr::NonNull::from(bytes).cast(), bytes.len())
    };
}

fn records(ctx: &mut Context, case: Case) {
    let line = RecordKind::Line.raw();
    match case {
        Case::RecordKindUnknown => send(999, 8, &[0; 8], 16),
        Case::RecordPastFill => send(line, 100, b"too short", 24),
        Case::RecordLenMax => send(line, u32::MAX, b"", 16),
        Case::FillPastWindow => send(line, 0, b"", u32::MAX),
        Case::FillInHeader => send(line, 0, b"", 4),
        Case::RecordRubbish => {
            rubbish(ctx.boot().entropy);
            control(Control::Drain);
        }
        Case::RecordTooLong => {
            let len = MAX_PAYLOAD as u32 + 8;
            send(line, len, b"", len + 8);
        }
        Case::LineOfAllBytes => {
            let bytes: [u8; 256] = core::array::from_fn(|i| i as u8);
            send(line, 256, &bytes, 264);
        }
        Case::FailureShort => send(RecordKind::Failure.raw(), 4, &[1, 0, 0, 0, 0, 0, 0, 0], 16),
        Case::ProgressLength => send(RecordKind::Progress.raw(), 8, &[0; 8], 16),
        Case::ImageShort => send(RecordKind::Image.raw(), 8, &[0; 8], 16),
        Case::ImageNames => {
            let mut image = ImageRecord::zeroed();
            image.format.set(2);
            image.backing_len.set(u32::MAX);
            send(RecordKind::Image.raw(), 64, image.as_bytes(), 72);
        }
        Case::RubbishAtExit => rubbish(ctx.boot().entropy),
        _ => {
            for chunk in 0..RESULT.size / 64 {
                store(RESULT.start + chunk * 64, &[0xff; 64]);
            }
            return;
        }
    }
    let refused = !matches!(case, Case::LineOfAllBytes | Case::RubbishAtExit);
    if refused {
        fail("the host took the record");
    }
}

/// Fills the window with random bytes; the first record's kind is one that does not exist.
fn rubbish(entropy: [u8; 64]) {
    for chunk in 0..RECORDS.size / 64 {
        store(RECORDS.start + chunk * 64, &entropy);
    }
    store(RECORDS.start, &[0xee; 4]);
    set_fill(RECORDS.size as u32);
}
