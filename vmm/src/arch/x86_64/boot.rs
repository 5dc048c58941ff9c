//! What a processor has to be like at a kernel's first instruction, in either way of starting one.
//!
//! - 32-bit protected mode without paging: the PVH entry (Xen, docs/misc/pvh.pandoc).
//! - 64-bit mode with the first gigabyte at equal addresses: Linux, Documentation/arch/x86/boot.rst, "64-bit boot
//!   protocol".

use super::Segment;
use super::tables::descriptor;

/// How many bytes page tables have at equal addresses.
const MAPPED: u64 = 1 << 30;
const LARGE_PAGE: u64 = 2 << 20;
const TABLE_BYTES: u64 = 4096;
const PRESENT_WRITABLE: u64 = 3;
const LARGE: u64 = 1 << 7;

// Control registers. Intel SDM vol. 3A, §2.5; EFER: §2.2.1.
const CR0_PE_ET: u64 = 1 | 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;

/// Selectors as Linux wants them: `__BOOT_CS`, `__BOOT_DS`; a task comes behind.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;
const CODE_ACCESSED: u8 = 0xb;
const DATA_ACCESSED: u8 = 0x3;
const TASK_BUSY: u8 = 0xb;
/// Entries of the descriptor table: two empty ones, code, data, task.
const ENTRIES: u16 = 5;

/// How a kernel is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 32-bit protected mode without paging; the argument comes in EBX.
    Protected,
    /// 64-bit mode; the argument comes in RSI.
    Long,
}

/// The first instruction of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// In which mode.
    pub mode: Mode,
    /// Where it is.
    pub instruction: u64,
    /// What it is told: a guest-physical address.
    pub argument: u64,
}

/// System registers at the first instruction.
#[derive(Clone, Copy, Debug)]
pub struct SystemRegisters {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// CS.
    pub code: Segment,
    /// DS, ES, FS, GS, SS.
    pub data: Segment,
    /// TR.
    pub task: Segment,
    /// Limit of the descriptor table.
    pub gdt_limit: u16,
}

impl Mode {
    /// System registers; `page_tables` is where [`page_tables`] lie.
    pub const fn registers(self, page_tables: u64) -> SystemRegisters {
        let long = matches!(self, Self::Long);
        SystemRegisters {
            cr0: if long { CR0_PE_ET | CR0_PG } else { CR0_PE_ET },
            cr3: if long { page_tables } else { 0 },
            cr4: if long { CR4_PAE } else { 0 },
            efer: if long { EFER_LME_LMA } else { 0 },
            code: flat(CODE_SELECTOR, CODE_ACCESSED, long),
            data: flat(DATA_SELECTOR, DATA_ACCESSED, false),
            task: Segment {
                limit: 0x67,
                code_or_data: false,
                ..flat(TASK_SELECTOR, TASK_BUSY, false)
            },
            gdt_limit: ENTRIES * 8 - 1,
        }
    }

    /// The descriptor table that these registers come from.
    pub fn descriptors(self) -> Vec<u8> {
        let registers = self.registers(0);
        let entries = [
            0,
            0,
            descriptor(registers.code),
            descriptor(registers.data),
            descriptor(registers.task),
        ];
        entries.into_iter().flat_map(u64::to_le_bytes).collect()
    }
}

/// A segment of all addresses.
const fn flat(selector: u16, kind: u8, long: bool) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        kind,
        dpl: 0,
        code_or_data: true,
        long,
    }
}

/// Page tables, to lie at `start`: the first gigabyte at equal addresses, in pages of 2 MiB.
pub fn page_tables(start: u64) -> Vec<u8> {
    let table = |first: u64| {
        let mut table = vec![first];
        table.resize(512, 0);
        table
    };
    let next = start.saturating_add(TABLE_BYTES);
    let mut entries = table(next | PRESENT_WRITABLE);
    entries.extend(table(next.saturating_add(TABLE_BYTES) | PRESENT_WRITABLE));
    entries.extend(
        (0..MAPPED / LARGE_PAGE).map(|page| (page * LARGE_PAGE) | PRESENT_WRITABLE | LARGE),
    );
    entries.into_iter().flat_map(u64::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_the_well_known_values() {
        let words = |mode: Mode| {
            let bytes = mode.descriptors();
            let words = bytes
                .chunks(8)
                .map(|word| u64::from_le_bytes(word.try_into().unwrap()));
            words.collect::<Vec<_>>()
        };
        let (data, task) = (0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067);
        assert_eq!(words(Mode::Long), [0, 0, 0x00af_9b00_0000_ffff, data, task]);
        assert_eq!(
            words(Mode::Protected),
            [0, 0, 0x00cf_9b00_0000_ffff, data, task]
        );
    }

    #[test]
    fn every_address_of_the_first_gigabyte_is_mapped_to_itself() {
        let start = 0x9000;
        let bytes = page_tables(start);
        assert_eq!(bytes.len() as u64, 3 * TABLE_BYTES);
        let entry = |table: u64, index: u64| {
            let at = usize::try_from(table - start + index * 8).unwrap();
            u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
        };
        for address in [0, 0x1000, 0x10_0000, 0x3fff_ffff_u64] {
            let pointers = entry(start, address >> 39) & !0xfff;
            let directory = entry(pointers, address >> 30) & !0xfff;
            let page = entry(directory, address >> 21 & 511);
            assert_eq!(page & 0xfff, PRESENT_WRITABLE | LARGE);
            assert_eq!(page & !0xfff | address & (LARGE_PAGE - 1), address);
        }
    }
}
