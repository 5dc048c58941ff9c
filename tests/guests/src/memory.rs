//! Regions and their edges.

use instar_guest_ops::Context;
use instar_shared::layout::{BOOT, CONFIG, CONTROL, DEVICE_TABLE, MAX_SLOT_SIZE, RECORDS, STACK};
use instar_test_guests::Case;

pub(crate) fn run(ctx: &mut Context, case: Case) {
    let heap_end = ctx.boot().heap_end.get();
    match case {
        Case::WriteBootPage => write(BOOT.start + 8),
        Case::WriteConfig => write(CONFIG.start),
        Case::WriteDeviceTable => write(DEVICE_TABLE.start),
        Case::PastControl => read(CONTROL.end()),
        Case::PastRecords => read(RECORDS.end()),
        Case::BeforeStack => read(STACK.start - 1),
        Case::PastStack => read(STACK.end()),
        Case::PastHeap => read(heap_end),
        Case::FarAbove => read(MAX_SLOT_SIZE * 2),
        _ => {
            write(RECORDS.start);
            let code: *const u8 = core::ptr::with_exposed_provenance(RECORDS.start as usize);
            // SAFETY: not sound; the page is not executable and the machine must stop it.
            let code: extern "C" fn() = unsafe { core::mem::transmute(code) };
            code();
        }
    }
}

fn write(addr: u64) {
    let pointer: *mut u8 = core::ptr::with_exposed_provenance_mut(addr as usize);
    // SAFETY: not sound; the page is read-only or the machine's to check.
    unsafe { pointer.write_volatile(0xc3) };
}

fn read(addr: u64) {
    let pointer: *const u8 = core::ptr::with_exposed_provenance(addr as usize);
    // SAFETY: not sound; nothing is mapped there and the machine must stop it.
    unsafe { pointer.read_volatile() };
}
