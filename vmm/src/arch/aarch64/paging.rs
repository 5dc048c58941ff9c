//! Stage-1 translation tables: 4 KiB granule, 39-bit addresses, three levels.
//! Arm ARM (DDI 0487), chapter D8; descriptors in sections D8.3 and D8.4.

use super::place;
use super::registers::{ADDRESS_BITS, ATTRIBUTE_DEVICE, ATTRIBUTE_NORMAL};
use crate::VmError;
use crate::arch::{Access, Mapping};
use crate::memory::GuestSlot;
use instar_shared::bits;
use instar_shared::layout::{LARGE_PAGE_SIZE, MAX_SLOT_SIZE, PAGE_SIZE, SYSTEM};

/// Physical address of the top-level table, for TTBR0_EL1.
pub const ROOT_GPA: u64 = place::TABLES;

const VALID: u64 = bits(0, 0);
/// At levels 1 and 2 a table, at level 3 a page; a block has it clear.
const TABLE_OR_PAGE: u64 = bits(1, 1);
const ATTRIBUTE_SHIFT: u32 = 2;
/// AP[1]: EL0 may do what EL1 may.
const EL0: u64 = bits(6, 6);
/// AP[2].
const READ_ONLY: u64 = bits(7, 7);
const INNER_SHAREABLE: u64 = bits(8, 9);
const ACCESSED: u64 = bits(10, 10);
const NEVER_EL1_EXECUTE: u64 = bits(53, 53);
const NEVER_EL0_EXECUTE: u64 = bits(54, 54);
const NEVER_EXECUTE: u64 = NEVER_EL1_EXECUTE | NEVER_EL0_EXECUTE;
const NORMAL: u64 = ATTRIBUTE_NORMAL << ATTRIBUTE_SHIFT | INNER_SHAREABLE;
const DEVICE: u64 = ATTRIBUTE_DEVICE << ATTRIBUTE_SHIFT;
const ADDRESS: u64 = bits(12, 47);
const ENTRIES: usize = 512;
const TOP_LEVEL: u32 = 1;
const LAST_LEVEL: u32 = 3;

const _: () = assert!(MAX_SLOT_SIZE <= 1 << ADDRESS_BITS);
const _: () = assert!(place::TRAP_PAGE + PAGE_SIZE <= 1 << ADDRESS_BITS);

/// Tables under construction; table `i` will lie at page `i` of the table area.
pub struct Tables {
    tables: Vec<[u64; ENTRIES]>,
}

impl Tables {
    /// An empty address space.
    pub fn new() -> Self {
        Self {
            tables: vec![[0; ENTRIES]],
        }
    }

    /// Maps a run for EL0, with 2 MiB blocks where it is aligned to them.
    pub fn map_user(&mut self, mapping: Mapping) -> Result<(), VmError> {
        let rights = match mapping.access {
            Access::Read => READ_ONLY | NEVER_EXECUTE,
            Access::ReadWrite => NEVER_EXECUTE,
            Access::ReadExecute => READ_ONLY | NEVER_EL1_EXECUTE,
        };
        self.map(
            mapping.start,
            mapping.start,
            mapping.size,
            EL0 | NORMAL | rights,
        )
    }

    /// Maps the vector page: EL1 reads and executes it, EL0 sees nothing.
    pub fn map_vectors(&mut self, gpa: u64) -> Result<(), VmError> {
        self.map(gpa, gpa, PAGE_SIZE, NORMAL | READ_ONLY | NEVER_EL0_EXECUTE)
    }

    /// Maps the page that EL0 rings at.
    pub fn map_doorbell(&mut self, gva: u64, gpa: u64) -> Result<(), VmError> {
        self.map(gva, gpa, PAGE_SIZE, EL0 | DEVICE | NEVER_EXECUTE)
    }

    /// Maps the page that only the vectors write.
    pub fn map_trap_page(&mut self, gva: u64, gpa: u64) -> Result<(), VmError> {
        self.map(gva, gpa, PAGE_SIZE, DEVICE | NEVER_EXECUTE)
    }

    fn map(&mut self, start: u64, to: u64, size: u64, flags: u64) -> Result<(), VmError> {
        let whole = (start | to | size).is_multiple_of(PAGE_SIZE);
        let end = start
            .checked_add(size)
            .filter(|end| whole && *end <= 1 << ADDRESS_BITS);
        let end = end.ok_or_else(|| {
            VmError::Image(format!("mapping {start:#x}+{size:#x} is not whole pages"))
        })?;
        let (mut at, mut to) = (start, to);
        while at < end {
            let large = (at | to).is_multiple_of(LARGE_PAGE_SIZE) && end - at >= LARGE_PAGE_SIZE;
            let (level, step, kind) = if large {
                (LAST_LEVEL - 1, LARGE_PAGE_SIZE, 0)
            } else {
                (LAST_LEVEL, PAGE_SIZE, TABLE_OR_PAGE)
            };
            let entry = self.entry(at, level)?;
            if *entry != 0 {
                return Err(mapped_twice(at));
            }
            *entry = to | flags | kind | ACCESSED | VALID;
            (at, to) = (at + step, to + step);
        }
        Ok(())
    }

    /// The entry for `address` in its table of `level`.
    fn entry(&mut self, address: u64, level: u32) -> Result<&mut u64, VmError> {
        let mut table = 0;
        for above in TOP_LEVEL..level {
            table = self.table_below(table, address, above)?;
        }
        self.slot(table, index(address, level))
    }

    /// The table that `address` leads to from `table` of `level`, made if it is not there.
    fn table_below(&mut self, table: usize, address: u64, level: u32) -> Result<usize, VmError> {
        let next = self.tables.len();
        let entry = self.slot(table, index(address, level))?;
        if *entry & VALID == 0 {
            // Permissions are the leaf's; the levels above restrict nothing.
            *entry = table_gpa(next)? | TABLE_OR_PAGE | VALID;
            self.tables.push([0; ENTRIES]);
            return Ok(next);
        }
        if *entry & TABLE_OR_PAGE == 0 {
            return Err(mapped_twice(address));
        }
        let page = (*entry & ADDRESS).saturating_sub(ROOT_GPA) / PAGE_SIZE;
        usize::try_from(page).map_err(|_| too_many())
    }

    fn slot(&mut self, table: usize, index: usize) -> Result<&mut u64, VmError> {
        self.tables
            .get_mut(table)
            .and_then(|t| t.get_mut(index))
            .ok_or_else(too_many)
    }

    /// Writes the tables to the guest's memory.
    pub fn store(&self, slot: &GuestSlot) -> Result<(), VmError> {
        for (i, table) in self.tables.iter().enumerate() {
            let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
            slot.write(table_gpa(i)?, &bytes)?;
        }
        Ok(())
    }
}

/// Nine bits of `address` for `level` 1..=3.
fn index(address: u64, level: u32) -> usize {
    usize::try_from(address >> (12 + 9 * (LAST_LEVEL - level)) & bits(0, 8)).unwrap_or(0)
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
    VmError::Image("the translation tables do not fit the system region".into())
}

fn mapped_twice(address: u64) -> VmError {
    VmError::Image(format!("address {address:#x} is mapped twice"))
}
