//! x86-64: four-level paging, descriptor tables and the trap page.
//!
//! Everything here lies in the system region (`instar_shared::layout::SYSTEM`).
//! Page tables are mapped nowhere. The GDT, IDT and TSS must have linear
//! addresses for the CPU to find them: they are supervisor-only, read-only pages
//! that ring 3 cannot read. Busy and accessed bits are set beforehand, so the
//! CPU never writes them.

pub mod boot;
mod paging;
mod tables;
mod trap;

use super::Mapping;
use crate::VmError;
use crate::memory::GuestSlot;

pub use paging::ROOT_GPA;
pub use tables::{GDT, IDT, KERNEL_CODE, Segment, USER_CODE, USER_DATA, task};
pub use trap::decode;

/// Offsets of the parts in the system region, by page.
mod place {
    use instar_shared::layout::{PAGE_SIZE, SYSTEM};

    pub const GDT: u64 = SYSTEM.start;
    pub const IDT: u64 = SYSTEM.start + PAGE_SIZE;
    pub const TRAP_CODE: u64 = SYSTEM.start + 3 * PAGE_SIZE;
    pub const PAGE_TABLES: u64 = SYSTEM.start + 16 * PAGE_SIZE;

    /// The TSS of vCPU `index`.
    pub const fn tss(index: u8) -> u64 {
        let page = match index {
            0 => 2,
            further => 4 + 3 * further as u64,
        };
        SYSTEM.start + page * PAGE_SIZE
    }

    /// The trap stack of vCPU `index`: what lies on each side of it cannot be written.
    pub const fn trap_stack(index: u8) -> u64 {
        SYSTEM.start + (5 + 3 * index as u64) * PAGE_SIZE
    }

    const _: () = {
        let last = instar_shared::layout::MAX_VCPUS - 1;
        assert!(trap_stack(last) + 2 * PAGE_SIZE <= PAGE_TABLES);
    };
}

/// Writes page tables for `user` and everything ring 0 needs to report a trap of one of `vcpus`.
///
/// # Errors
/// [`VmError`] if a mapping is malformed or the tables do not fit.
pub fn install(slot: &GuestSlot, user: &[Mapping], vcpus: u8) -> Result<(), VmError> {
    tables::install(slot, vcpus)?;
    trap::install(slot)?;
    let mut tables = paging::PageTables::new();
    for mapping in user {
        tables.map_user(*mapping)?;
    }
    tables.map_supervisor(place::GDT, paging::SupervisorAccess::Read)?;
    tables.map_supervisor(place::IDT, paging::SupervisorAccess::Read)?;
    tables.map_supervisor(place::TRAP_CODE, paging::SupervisorAccess::Execute)?;
    for vcpu in 0..vcpus {
        tables.map_supervisor(place::tss(vcpu), paging::SupervisorAccess::Read)?;
        tables.map_supervisor(place::trap_stack(vcpu), paging::SupervisorAccess::ReadWrite)?;
    }
    tables.store(slot)
}
