//! What the language needs of a program without an operating system: allocator and panic handler.

use crate::page::Boot;
use crate::{Machine, Platform, Records};
use core::alloc::Layout;
use core::panic::PanicInfo;
use instar_shared::boot::BOOT_MAGIC;
use instar_shared::doorbell::{Control, Kick};
use instar_shared::record::RecordKind;
use talc::TalcCell;
use talc::base::Talc;
use talc::base::binning::{Binning, DefaultBinning};
use talc::cell::TalcSyncCell;
use talc::source::Source;

/// Gives the allocator the boot page's heap, once.
#[derive(Debug)]
struct BootHeap {
    claimed: bool,
}

// SAFETY: `acquire` uses no other allocator.
unsafe impl Source for BootHeap {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, _layout: Layout) -> Result<(), ()> {
        if core::mem::replace(&mut talc.source.claimed, true) {
            return Err(());
        }
        let boot = Boot::new(&Machine).read();
        if boot.magic.get() != BOOT_MAGIC {
            return Err(());
        }
        let len = boot.heap_end.get().saturating_sub(boot.heap_start.get());
        let len = usize::try_from(len).map_err(|_| ())?;
        let base = Machine.pointer(boot.heap_start.get(), len);
        // SAFETY: the contract gives this range to the operation, and only this allocator uses it.
        unsafe { talc.claim(base.as_ptr(), len) }
            .map(|_| ())
            .ok_or(())
    }
}

// SAFETY: an operation has one thread and no interrupts or signals.
#[global_allocator]
static HEAP: TalcSyncCell<BootHeap, DefaultBinning> =
    unsafe { TalcSyncCell::new(TalcCell::new(BootHeap { claimed: false })) };

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
