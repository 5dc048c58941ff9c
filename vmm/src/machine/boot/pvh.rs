//! What a kernel with a PVH entry is told. Xen, `public/arch-x86/hvm/start_info.h`.

use super::Module;
use super::map::Range;
use crate::VmError;
use crate::machine::layout;
use crate::memory::GuestSlot;
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::ByteValued;

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
/// Modules and memory map, behind the start information.
const MODULES: u64 = layout::PVH_START_INFO + 0x100;
const MEMORY_MAP: u64 = layout::PVH_START_INFO + 0x200;

/// Writes start information, module list and memory map.
///
/// # Errors
/// [`VmError::OutsideMemory`].
pub fn store(map: &[Range], initrd: Option<Module>, memory: &GuestSlot) -> Result<(), VmError> {
    let entries = map.iter().map(|range| hvm_memmap_table_entry {
        addr: range.start,
        size: range.len,
        type_: range.kind as u32,
        reserved: 0,
    });
    for (place, entry) in (MEMORY_MAP..)
        .step_by(size_of::<hvm_memmap_table_entry>())
        .zip(entries)
    {
        memory.write(place, entry.as_slice())?;
    }
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.start,
            size: initrd.len,
            ..Default::default()
        };
        memory.write(MODULES, module.as_slice())?;
    }
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: initrd.is_some().into(),
        modlist_paddr: initrd.map_or(0, |_| MODULES),
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: layout::ACPI_TABLES,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).unwrap_or(u32::MAX),
        ..Default::default()
    };
    memory.write(layout::PVH_START_INFO, info.as_slice())
}
