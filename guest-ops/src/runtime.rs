//! What the language needs of a program without an operating system: allocator and panic handler.

use crate::machine::heap_end;
use crate::page::Boot;
use crate::{Machine, Platform, Records};
use core::alloc::Layout;
use core::panic::PanicInfo;
use instar_shared::boot::BOOT_MAGIC;
use instar_shared::doorbell::{Control, Kick};
use instar_shared::layout::LARGE_PAGE_SIZE;
use instar_shared::record::RecordKind;
use talc::TalcCell;
use talc::base::Talc;
use talc::base::binning::{Binning, DefaultBinning};
use talc::cell::TalcSyncCell;
use talc::source::Source;

/// Gives the allocator the heap: what the boot page says, and what was granted since.
#[derive(Debug)]
struct GrantedHeap {
    /// First address that the allocator has not; 0 at start.
    claimed_end: u64,
}

// SAFETY: `acquire` uses no other allocator.
unsafe impl Source for GrantedHeap {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, _layout: Layout) -> Result<(), ()> {
        let boot = Boot::new(&Machine).read();
        if boot.magic.get() != BOOT_MAGIC {
            return Err(());
        }
        let start = talc.source.claimed_end.max(boot.heap_start.get());
        let end = if talc.source.claimed_end == 0 {
            // The allocator writes to both ends of what it has: the first part ends before the huge
            // pages begin, so that a small operation does not touch one.
            heap_end().min(start.saturating_add(LARGE_PAGE_SIZE))
        } else {
            heap_end()
        };
        let len = end.checked_sub(start).filter(|len| *len > 0).ok_or(())?;
        let len = usize::try_from(len).map_err(|_| ())?;
        talc.source.claimed_end = end;
        let base = Machine.pointer(start, len);
        // SAFETY: the contract gives this range to the operation, and only this allocator uses it:
        // each range starts where the last one ended.
        unsafe { talc.claim(base.as_ptr(), len) }
            .map(|_| ())
            .ok_or(())
    }
}

// SAFETY: an operation has one thread and no interrupts or signals.
#[global_allocator]
static HEAP: TalcSyncCell<GrantedHeap, DefaultBinning> =
    unsafe { TalcSyncCell::new(TalcCell::new(GrantedHeap { claimed_end: 0 })) };

/// Tells the host why, and does not go on.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let mut records = Records::new(Machine, 0);
    let message = info.message();
    match info.location() {
        Some(location) => records.text(
            RecordKind::Panic,
            &[],
            format_args!("{message} (at {location})"),
        ),
        None => records.text(RecordKind::Panic, &[], format_args!("{message}")),
    }
    Machine.kick(Kick::Control(Control::Panic).encode());
    loop {
        Machine.wait(0);
    }
}

/// Named by the unwind tables of the precompiled `alloc` crate. Guests abort on panic, so nothing
/// ever unwinds and nothing calls it.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// As above: the end of a landing pad that no panic reaches.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    Machine.kick(Kick::Control(Control::Panic).encode());
    loop {
        Machine.wait(0);
    }
}
