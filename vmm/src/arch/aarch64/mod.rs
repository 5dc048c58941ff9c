//! arm64: stage-1 translation, the vector page and the doorbell pages.
//!
//! Everything here lies in the system region (`instar_shared::layout::SYSTEM`).
//! Translation tables are mapped nowhere. The vector page is EL1's only: EL0 can
//! neither read nor execute it, and nobody can write it.
//!
//! Two pages lead to addresses that no memory stands behind, so that a store
//! there leaves the guest: the *doorbell page*, which EL0 may write, and the
//! *trap page*, which only the vectors may write. They lie at
//! [`ARM64_DOORBELL_PAGE`] for the guest. For the hypervisor they lie at the end
//! of the slot, because a host may offer a machine no more than 36 address bits.

mod exit;
mod paging;
mod registers;
mod trap;

use super::{Access, Mapping};
use crate::VmError;
use crate::memory::GuestSlot;
use instar_shared::layout::{ARM64_DOORBELL_PAGE, PAGE_SIZE};

pub use exit::{Store, exit_of_store};
pub use registers::{EL0_PSTATE, Register, cpu_features, system_registers};
pub use trap::{STACK_POINTER as TRAP_STACK_POINTER, TrapState, decode};

/// Offsets of the parts in the system region, by page.
mod place {
    use instar_shared::layout::{ARM64_DOORBELL_PAGE, PAGE_SIZE, SYSTEM};

    pub const VECTORS: u64 = SYSTEM.start;
    pub const TABLES: u64 = SYSTEM.start + 16 * PAGE_SIZE;
    /// Virtual address of the trap page, right after the doorbell page.
    pub const TRAP_PAGE: u64 = ARM64_DOORBELL_PAGE + PAGE_SIZE;
}

/// Guest-physical address that the doorbell page leads to; the trap page's follows it.
#[must_use]
pub const fn doorbell_gpa(slot_size: u64) -> u64 {
    slot_size
}

/// Guest-physical address that the trap page leads to.
#[must_use]
pub const fn trap_gpa(slot_size: u64) -> u64 {
    slot_size.saturating_add(PAGE_SIZE)
}

/// First guest-physical address that nothing uses.
#[must_use]
pub const fn end_gpa(slot_size: u64) -> u64 {
    trap_gpa(slot_size).saturating_add(PAGE_SIZE)
}

/// Writes translation tables for `user` and everything EL1 needs to report a trap: all vCPUs share it,
/// as the store of a vector changes no memory.
///
/// The code that `user` names must be in memory already.
///
/// # Errors
/// [`VmError`] if a mapping is malformed or leaves the slot, if the tables do not
/// fit, or if the slot would reach the doorbell page.
pub fn install(slot: &GuestSlot, user: &[Mapping], _vcpus: u8) -> Result<(), VmError> {
    let size = slot.size();
    if size > ARM64_DOORBELL_PAGE {
        let most = format!(
            "on arm64 a guest has at most {} GiB",
            ARM64_DOORBELL_PAGE >> 30
        );
        return Err(VmError::Memory {
            bytes: size,
            source: std::io::Error::other(most),
        });
    }
    trap::install(slot)?;
    let mut tables = paging::Tables::new();
    for mapping in user {
        tables.map_user(*mapping)?;
    }
    tables.map_vectors(place::VECTORS)?;
    tables.map_doorbell(ARM64_DOORBELL_PAGE, doorbell_gpa(size))?;
    tables.map_trap_page(place::TRAP_PAGE, trap_gpa(size))?;
    tables.store(slot)?;
    sync_code(slot, place::VECTORS, PAGE_SIZE);
    for text in user
        .iter()
        .filter(|mapping| mapping.access == Access::ReadExecute)
    {
        sync_code(slot, text.start, text.size);
    }
    Ok(())
}

/// Makes the instruction fetches of the guest see what was written to `gpa..gpa + size`.
#[cfg(target_os = "macos")]
fn sync_code(slot: &GuestSlot, gpa: u64, size: u64) {
    unsafe extern "C" {
        fn sys_icache_invalidate(start: *mut std::ffi::c_void, len: usize);
    }
    let inside = gpa.checked_add(size).is_some_and(|end| end <= slot.size());
    if let (true, Ok(skip), Ok(len)) = (inside, usize::try_from(gpa), usize::try_from(size)) {
        // SAFETY: the range lies in the slot's mapping; the call changes caches, not contents.
        unsafe { sys_icache_invalidate(slot.host_address().wrapping_add(skip).cast(), len) };
    }
}

/// KVM cleans the data cache and invalidates the instruction cache itself when it first maps a
/// page of the guest.
#[cfg(not(target_os = "macos"))]
const fn sync_code(_: &GuestSlot, _: u64, _: u64) {}

/// Frequency of the counter that the guest reads, in Hz; the host's own has the same.
#[cfg(target_arch = "aarch64")]
#[must_use]
pub fn counter_hz() -> u64 {
    let hz: u64;
    // SAFETY: reads a register that both systems let user programs read.
    unsafe {
        std::arch::asm!("mrs {}, cntfrq_el0", out(reg) hz, options(nomem, nostack, preserves_flags))
    };
    hz
}

#[cfg(test)]
mod tests;
