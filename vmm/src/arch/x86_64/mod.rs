//! x86-64: four-level paging, descriptor tables and the trap page.
//!
//! Everything here lies in the system region (`instar_shared::layout::SYSTEM`).
//! Page tables are mapped nowhere. The GDT, IDT and TSS must have linear
//! addresses for the CPU to find them: they are supervisor-only, read-only pages
//! that ring 3 cannot read. Busy and accessed bits are set beforehand, so the
//! CPU never writes them.

mod paging;
mod tables;
mod trap;

use super::Mapping;
use crate::VmError;
use crate::memory::GuestSlot;

pub use paging::ROOT_GPA;
pub use tables::{GDT, IDT, KERNEL_CODE, Segment, TASK, USER_CODE, USER_DATA};
pub use trap::decode;

/// Offsets of the parts in the system region, by page.
mod place {
    use instar_shared::layout::{PAGE_SIZE, SYSTEM};

    pub const GDT: u64 = SYSTEM.start;
    pub const IDT: u64 = SYSTEM.start + PAGE_SIZE;
    pub const TSS: u64 = SYSTEM.start + 2 * PAGE_SIZE;
    pub const TRAP_CODE: u64 = SYSTEM.start + 3 * PAGE_SIZE;
    // A guard page lies on each side of the trap stack.
    pub const TRAP_STACK: u64 = SYSTEM.start + 5 * PAGE_SIZE;
    pub const PAGE_TABLES: u64 = SYSTEM.start + 16 * PAGE_SIZE;
}

/// Writes page tables for `user` and everything ring 0 needs to report a trap.
///
/// # Errors
/// [`VmError`] if a mapping is malformed or the tables do not fit.
pub fn install(slot: &GuestSlot, user: &[Mapping]) -> Result<(), VmError> {
    tables::install(slot)?;
    trap::install(slot)?;
    let mut tables = paging::PageTables::new();
    for mapping in user {
        tables.map_user(*mapping)?;
    }
    tables.map_supervisor(place::GDT, paging::SupervisorAccess::Read)?;
    tables.map_supervisor(place::IDT, paging::SupervisorAccess::Read)?;
    tables.map_supervisor(place::TSS, paging::SupervisorAccess::Read)?;
    tables.map_supervisor(place::TRAP_CODE, paging::SupervisorAccess::Execute)?;
    tables.map_supervisor(place::TRAP_STACK, paging::SupervisorAccess::ReadWrite)?;
    tables.store(slot)
}
