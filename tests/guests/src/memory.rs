//! Regions and their edges.

use instar_guest_ops::Context;
use instar_shared::control::{ControlPage, MemoryGrant};
use instar_shared::layout::{
    BOOT, CONFIG, CONTROL, DEVICE_TABLE, MAX_SLOT_SIZE, RECORDS, SECRETS, STACK,
};
use instar_test_guests::Case;
use zerocopy::FromBytes;

pub(crate) fn run(ctx: &mut Context, case: Case) {
    let heap_end = ctx.boot().heap_end.get();
    match case {
        Case::WriteBootPage => write(BOOT.start + 8),
        Case::WriteConfig => write(CONFIG.start),
        Case::WriteDeviceTable => write(DEVICE_TABLE.start),
        Case::PastControl => read(CONTROL.end()),
        Case::PastRecords => read(RECORDS.end()),
        Case::BeforeStack => read(STACK.start - 1),
        Case::ReadSecrets => read(SECRETS.start),
        Case::PastStack => read(STACK.end()),
        Case::PastHeap => read(heap_end),
        Case::PastSlot => read(all_memory(ctx)),
        Case::PastHeapWide => read_wide(heap_end),
        Case::ExecutePastHeap => execute(heap_end),
        Case::FarAbove => read(MAX_SLOT_SIZE * 2),
        _ => {
            write(RECORDS.start);
            execute(RECORDS.start);
        }
    }
}

/// Has the host grant all it has; where the heap ends then.
pub(crate) fn all_memory(ctx: &mut Context) -> u64 {
    let _ = ctx.grant(u64::MAX);
    let at = CONTROL.start + core::mem::offset_of!(ControlPage, memory) as u64;
    let mut raw = [0; size_of::<MemoryGrant>()];
    crate::heap::load(at, &mut raw);
    MemoryGrant::read_from_bytes(&raw).map_or(0, |grant| grant.heap_end.get())
}

fn execute(addr: u64) {
    let code: *const u8 = core::ptr::with_exposed_provenance(addr as usize);
    // SAFETY: not sound; the page is not executable and the machine must stop it.
    let code: extern "C" fn() = unsafe { core::mem::transmute(code) };
    code();
}

#[cfg(target_arch = "x86_64")]
fn read_wide(addr: u64) {
    // SAFETY: not sound; nothing is there and the machine must stop it.
    unsafe { core::arch::asm!("pshufd xmm0, [{}], 0", in(reg) addr, out("xmm0") _) };
}

#[cfg(not(target_arch = "x86_64"))]
fn read_wide(addr: u64) {
    read(addr);
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
