//! The real machine: doorbell instructions, and memory that is mapped one to one.

use crate::Platform;
use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use instar_shared::layout::DMA_START;

/// The microVM this program runs in. Rings doorbells with privileged meaning: anywhere else it faults.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine;

// SAFETY: guest-virtual addresses equal guest-physical ones in all regions of the contract, which stay
// mapped; stack and heap lie above DMA_START, below the slot's end, and the heap's memory comes from
// the global allocator.
unsafe impl Platform for Machine {
    fn kick(&self, value: u32) {
        doorbell::kick(value);
    }

    fn wait(&self, value: u32) {
        doorbell::wait(value);
    }

    fn pointer(&self, addr: u64, _len: usize) -> NonNull<u8> {
        let address = usize::try_from(addr).unwrap_or(0);
        let pointer = core::ptr::with_exposed_provenance_mut(address);
        NonNull::new(pointer).unwrap_or_else(NonNull::dangling)
    }

    fn dma_address(&self, pointer: *const u8, len: usize) -> Option<u64> {
        let start = pointer.expose_provenance() as u64;
        let end = start.checked_add(len as u64)?;
        (start >= DMA_START && end <= heap_end()).then_some(start)
    }

    fn dma_alloc(&self, layout: Layout) -> Option<NonNull<u8>> {
        if layout.size() == 0 {
            return None;
        }
        // SAFETY: the size is not zero.
        NonNull::new(unsafe { alloc::alloc::alloc_zeroed(layout) })
    }

    unsafe fn dma_free(&self, pointer: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller says that it came from `dma_alloc` with this layout.
        unsafe { alloc::alloc::dealloc(pointer.as_ptr(), layout) }
    }

    fn heap_grew(&self, heap_end: u64) {
        GRANTED_END.fetch_max(heap_end, Ordering::Relaxed);
    }

    fn ticks(&self) -> u64 {
        doorbell::ticks()
    }
}

/// First address past the last grant; 0 before the first one.
static GRANTED_END: AtomicU64 = AtomicU64::new(0);

/// First address past the heap as it is now.
pub(crate) fn heap_end() -> u64 {
    match GRANTED_END.load(Ordering::Relaxed) {
        0 => crate::page::Boot::new(&Machine).read().heap_end.get(),
        granted => granted,
    }
}

#[cfg(target_arch = "x86_64")]
mod doorbell {
    use instar_shared::doorbell::{KICK_PORT, WAIT_PORT};

    pub(super) fn kick(value: u32) {
        out(KICK_PORT, value);
    }

    pub(super) fn wait(value: u32) {
        out(WAIT_PORT, value);
    }

    fn out(port: u16, value: u32) {
        // SAFETY: the ports are the doorbells; the host touches only memory that the contract gives it,
        // which the compiler must assume changed (no `nomem`).
        unsafe {
            core::arch::asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags));
        }
    }

    pub(super) fn ticks() -> u64 {
        // SAFETY: SSE2-era instruction, allowed in ring 3 by the contract.
        unsafe { core::arch::x86_64::_rdtsc() }
    }
}

#[cfg(target_arch = "aarch64")]
mod doorbell {
    use instar_shared::doorbell::{KICK_OFFSET, WAIT_OFFSET};
    use instar_shared::layout::ARM64_DOORBELL_PAGE;

    pub(super) fn kick(value: u32) {
        store(ARM64_DOORBELL_PAGE | KICK_OFFSET, value);
    }

    pub(super) fn wait(value: u32) {
        store(ARM64_DOORBELL_PAGE | WAIT_OFFSET, value);
    }

    fn store(address: u64, value: u32) {
        // SAFETY: the page is the doorbells'. One plain store, so that the host can decode it; the
        // barrier puts what the driver wrote before it.
        unsafe {
            core::arch::asm!("dmb ish", "str {v:w}, [{a}]", "dmb ish", v = in(reg) value, a = in(reg) address, options(nostack, preserves_flags));
        }
    }

    pub(super) fn ticks() -> u64 {
        let ticks: u64;
        // SAFETY: the contract lets EL0 read the virtual counter.
        unsafe {
            core::arch::asm!("mrs {}, cntvct_el0", out(reg) ticks, options(nomem, nostack, preserves_flags));
        }
        ticks
    }
}
