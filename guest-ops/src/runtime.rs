//! What the language needs of a program without an operating system: allocator and panic handler.

use crate::machine::heap_end;
use crate::page::Boot;
use crate::{Machine, Platform, Records};
use core::alloc::Layout;
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};
use instar_shared::boot::BOOT_MAGIC;
use instar_shared::doorbell::{Control, Kick};
use instar_shared::layout::{
    LARGE_PAGE_SIZE, MAX_VCPUS, PANIC_TEXT_BYTES, panic_note_of, stack_of,
};
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

// SAFETY: only the first vCPU allocates (the jobs of a crew do not), and it has no interrupts or signals.
#[global_allocator]
static HEAP: TalcSyncCell<GrantedHeap, DefaultBinning> =
    unsafe { TalcSyncCell::new(TalcCell::new(GrantedHeap { claimed_end: 0 })) };

/// Tells the host why, and does not go on.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let further = PANIC_OF_FURTHER.load(Ordering::Acquire);
    if further != 0 {
        // SAFETY: only `note_panics` stores another value than 0, and that is such a function.
        let note: fn(&PanicInfo<'_>) = unsafe { core::mem::transmute(further) };
        note(info);
    }
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

/// [`panic_of_further`], once there is a crew; 0 before.
static PANIC_OF_FURTHER: AtomicUsize = AtomicUsize::new(0);

/// From now on there may be further vCPUs that panic.
pub(crate) fn note_panics() {
    let note: fn(&PanicInfo<'_>) = panic_of_further;
    PANIC_OF_FURTHER.store(note as usize, Ordering::Release);
}

/// Tells the host why, if this is not the first vCPU.
fn panic_of_further(info: &PanicInfo<'_>) {
    if let Some(note) = panic_note() {
        write_note(note, info);
        Machine.kick(Kick::Control(Control::Panic).encode());
    }
}

/// Where this vCPU says why it panicked, if it is not the first: its stack says which one it is.
fn panic_note() -> Option<u64> {
    let here = 0_u8;
    let at = (&raw const here).expose_provenance() as u64;
    let mut further = 1..MAX_VCPUS;
    let index = further.find(|index| {
        stack_of(*index).is_some_and(|stack| (stack.start..stack.end()).contains(&at))
    })?;
    panic_note_of(index)
}

/// Writes the note at guest address `at`: the record window is the first vCPU's.
fn write_note(at: u64, info: &PanicInfo<'_>) {
    let mut note = Note {
        text: Machine.pointer(at.saturating_add(4), PANIC_TEXT_BYTES),
        len: 0,
    };
    let message = info.message();
    let _ = match info.location() {
        Some(location) => write!(note, "{message} (at {location})"),
        None => write!(note, "{message}"),
    };
    let len = u32::try_from(note.len).unwrap_or(0).to_le_bytes();
    // SAFETY: the note is part of the result region, which is mapped, and this vCPU's own.
    unsafe { Machine.pointer(at, 4).cast().write_volatile(len) };
}

/// A panic note under construction; what does not fit is cut off.
struct Note {
    text: NonNull<u8>,
    len: usize,
}

impl fmt::Write for Note {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.len >= PANIC_TEXT_BYTES {
                return Err(fmt::Error);
            }
            // SAFETY: below the length of the note, which is this vCPU's own.
            unsafe { self.text.add(self.len).write_volatile(byte) };
            self.len = self.len.saturating_add(1);
        }
        Ok(())
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
