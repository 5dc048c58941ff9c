//! Four-level page tables. Intel SDM vol. 3A, §5.5 "4-Level Paging and 5-Level Paging".

use super::place;
use crate::VmError;
use crate::arch::{Access, Mapping};
use crate::memory::GuestSlot;
use instar_shared::bits;
use instar_shared::layout::{LARGE_PAGE_SIZE, PAGE_SIZE, SYSTEM};
use instar_shared::zerocopy::IntoBytes;
use instar_shared::zerocopy::little_endian::U64;

/// Physical address of the top-level table, for CR3.
pub const ROOT_GPA: u64 = place::PAGE_TABLES;

const PRESENT: u64 = bits(0, 0);
const WRITABLE: u64 = bits(1, 1);
const USER: u64 = bits(2, 2);
const ACCESSED: u64 = bits(5, 5);
const DIRTY: u64 = bits(6, 6);
const LARGE: u64 = bits(7, 7);
const NO_EXECUTE: u64 = bits(63, 63);
const ADDRESS: u64 = bits(12, 51);
const ENTRIES: usize = 512;

/// What ring 0 may do with a page that ring 3 cannot see.
#[derive(Clone, Copy, Debug)]
pub enum SupervisorAccess {
    /// Read.
    Read,
    /// Read and write.
    ReadWrite,
    /// Read and execute.
    Execute,
}

/// Tables under construction; table `i` will lie at page `i` of the table area.
pub struct PageTables {
    tables: Vec<[U64; ENTRIES]>,
}

impl PageTables {
    /// An empty address space.
    pub fn new() -> Self {
        Self {
            tables: vec![[U64::ZERO; ENTRIES]],
        }
    }

    /// Maps a run for ring 3, with 2 MiB pages where it is aligned to them.
    pub fn map_user(&mut self, mapping: Mapping) -> Result<(), VmError> {
        let flags = match mapping.access {
            Access::Read => USER | NO_EXECUTE,
            Access::ReadWrite => USER | WRITABLE | NO_EXECUTE,
            Access::ReadExecute => USER,
        };
        self.map(mapping.start, mapping.size, flags)
    }

    /// Maps one page for ring 0 only.
    pub fn map_supervisor(&mut self, gpa: u64, access: SupervisorAccess) -> Result<(), VmError> {
        let flags = match access {
            SupervisorAccess::Read => NO_EXECUTE,
            SupervisorAccess::ReadWrite => WRITABLE | NO_EXECUTE,
            SupervisorAccess::Execute => 0,
        };
        self.map(gpa, PAGE_SIZE, flags)
    }

    fn map(&mut self, start: u64, size: u64, flags: u64) -> Result<(), VmError> {
        let end = start
            .checked_add(size)
            .filter(|_| (start | size).is_multiple_of(PAGE_SIZE));
        let end = end.ok_or_else(|| {
            VmError::Image(format!("mapping {start:#x}+{size:#x} is not whole pages"))
        })?;
        let mut at = start;
        while at < end {
            let large = at.is_multiple_of(LARGE_PAGE_SIZE) && end - at >= LARGE_PAGE_SIZE;
            let (level, step, size_flag) = if large {
                (2, LARGE_PAGE_SIZE, LARGE)
            } else {
                (1, PAGE_SIZE, 0)
            };
            let flags = flags | size_flag | PRESENT | ACCESSED | DIRTY;
            // Small pages end where large ones can begin.
            let next_large = (at + 1).next_multiple_of(LARGE_PAGE_SIZE);
            let end = if large { end } else { end.min(next_large) };
            for entry in self.entries_from(at, level)? {
                if end - at < step {
                    break;
                }
                *entry = (at | flags).into();
                at += step;
            }
        }
        Ok(())
    }

    /// The entries from that of `address` to the end of its table of `level` (1: page table, 2: page directory).
    fn entries_from(&mut self, address: u64, level: u32) -> Result<&mut [U64], VmError> {
        let mut table = 0;
        for depth in (level + 1..=4).rev() {
            table = self.table_below(table, index(address, depth))?;
        }
        let table = self.tables.get_mut(table);
        let entries = table.and_then(|table| table.get_mut(index(address, level)..));
        entries.ok_or_else(too_many)
    }

    /// The table that entry `index` of `table` points to, made if it is not there.
    fn table_below(&mut self, table: usize, index: usize) -> Result<usize, VmError> {
        let next = self.tables.len();
        let entry = self.slot(table, index)?;
        if entry.get() & PRESENT != 0 {
            let page = (entry.get() & ADDRESS).saturating_sub(ROOT_GPA) / PAGE_SIZE;
            return usize::try_from(page).map_err(|_| too_many());
        }
        // Permissions are the leaf's; the levels above allow everything.
        *entry = (table_gpa(next)? | PRESENT | WRITABLE | USER | ACCESSED).into();
        self.tables.push([U64::ZERO; ENTRIES]);
        Ok(next)
    }

    fn slot(&mut self, table: usize, index: usize) -> Result<&mut U64, VmError> {
        self.tables
            .get_mut(table)
            .and_then(|t| t.get_mut(index))
            .ok_or_else(too_many)
    }

    /// Writes the tables to the guest's memory.
    pub fn store(&self, slot: &GuestSlot) -> Result<(), VmError> {
        // They lie one after the other.
        let last = table_gpa(self.tables.len().saturating_sub(1))?;
        let bytes = self.tables.as_bytes();
        slot.populate(ROOT_GPA, last + PAGE_SIZE - ROOT_GPA);
        slot.write(ROOT_GPA, bytes)
    }
}

/// Nine bits of `address` for `level` 1..=4.
fn index(address: u64, level: u32) -> usize {
    usize::try_from((address >> (12 + 9 * (level - 1))) & bits(0, 8)).unwrap_or(0)
}

fn table_gpa(i: usize) -> Result<u64, VmError> {
    let gpa = u64::try_from(i)
        .ok()
        .and_then(|i| i.checked_mul(PAGE_SIZE))
        .and_then(|off| ROOT_GPA.checked_add(off));
    gpa.filter(|gpa| gpa.saturating_add(PAGE_SIZE) <= SYSTEM.end())
        .ok_or_else(too_many)
}

fn too_many() -> VmError {
    VmError::Image("the page tables do not fit the system region".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use instar_shared::layout;

    /// Walks the tables as the CPU would; the leaf entry of `address`, or 0.
    fn walk(tables: &PageTables, address: u64) -> u64 {
        let mut table = 0;
        for level in (1..=4).rev() {
            let entry = tables.tables[table][index(address, level)].get();
            if entry & PRESENT == 0 || level == 1 || entry & LARGE != 0 {
                return entry;
            }
            table = usize::try_from(((entry & ADDRESS) - ROOT_GPA) / PAGE_SIZE).unwrap();
        }
        0
    }

    #[test]
    fn user_pages_are_never_writable_and_executable() {
        for access in [Access::Read, Access::ReadWrite, Access::ReadExecute] {
            let mut tables = PageTables::new();
            tables
                .map_user(Mapping {
                    start: 0x20_0000,
                    size: 0x3000,
                    access,
                })
                .unwrap();
            let leaf = walk(&tables, 0x20_1000);
            assert_ne!(leaf & USER, 0);
            assert!(leaf & WRITABLE == 0 || leaf & NO_EXECUTE != 0, "{access:?}");
            assert_eq!(leaf & NO_EXECUTE == 0, access == Access::ReadExecute);
            assert_eq!(walk(&tables, 0x20_3000), 0, "the page after is a guard");
        }
    }

    #[test]
    fn supervisor_pages_are_not_user_pages() {
        let mut tables = PageTables::new();
        tables
            .map_supervisor(place::GDT, SupervisorAccess::Read)
            .unwrap();
        let leaf = walk(&tables, place::GDT);
        assert_eq!(leaf & (USER | WRITABLE), 0);
        assert_eq!(walk(&tables, ROOT_GPA), 0, "page tables are mapped nowhere");
    }

    #[test]
    fn the_largest_slot_fits_the_system_region() {
        let mut tables = PageTables::new();
        let size = layout::MAX_SLOT_SIZE - layout::HEAP_START;
        tables
            .map_user(Mapping {
                start: layout::HEAP_START,
                size,
                access: Access::ReadWrite,
            })
            .unwrap();
        assert_ne!(walk(&tables, layout::MAX_SLOT_SIZE - 1) & LARGE, 0);
        let slot = GuestSlot::new(64 << 20).unwrap();
        tables.store(&slot).unwrap();
    }

    #[test]
    fn a_run_has_small_pages_only_where_large_ones_do_not_fit() {
        let mut tables = PageTables::new();
        let large = 3 * LARGE_PAGE_SIZE..5 * LARGE_PAGE_SIZE;
        let start = large.start - 2 * PAGE_SIZE;
        let end = large.end + 3 * PAGE_SIZE;
        tables
            .map_user(Mapping {
                start,
                size: end - start,
                access: Access::ReadWrite,
            })
            .unwrap();
        for at in (start..end).step_by(4096) {
            let leaf = walk(&tables, at);
            let is_large = large.contains(&at);
            let page = if is_large { LARGE_PAGE_SIZE } else { PAGE_SIZE };
            assert_eq!(leaf & LARGE != 0, is_large, "{at:#x}");
            assert_eq!(leaf & ADDRESS, at - at % page, "{at:#x}");
        }
        assert_eq!(walk(&tables, start - PAGE_SIZE), 0);
        assert_eq!(walk(&tables, end), 0);
    }

    #[test]
    fn unaligned_mappings_are_refused() {
        let mut tables = PageTables::new();
        for (start, size) in [(1, PAGE_SIZE), (0, 1), (u64::MAX - 0xfff, 2 * PAGE_SIZE)] {
            assert!(
                tables
                    .map_user(Mapping {
                        start,
                        size,
                        access: Access::Read
                    })
                    .is_err()
            );
        }
    }
}
