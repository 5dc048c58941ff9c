//! What a kernel with a 64-bit entry is told: boot parameters. Linux, Documentation/arch/x86/zero-page.rst.

use super::Module;
use super::map::Range;
use crate::machine::error::MachineError;
use crate::machine::layout;
use crate::memory::GuestSlot;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::ByteValued;

const BOOT_FLAG: u16 = 0xaa55;
const HEADER: u32 = u32::from_le_bytes(*b"HdrS");
/// A loader without a number of its own.
const UNKNOWN_LOADER: u8 = 0xff;
const ELF_ALIGNMENT: u32 = 0x100_0000;

/// Writes the boot parameters of a kernel, with the header that its file has, if it has one.
///
/// # Errors
/// [`MachineError`].
pub fn store(
    header: Option<&setup_header>,
    map: &[Range],
    initrd: Option<Module>,
    memory: &GuestSlot,
) -> Result<(), MachineError> {
    let mut params = boot_params {
        acpi_rsdp_addr: layout::ACPI_TABLES,
        hdr: header.copied().unwrap_or(setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER,
            kernel_alignment: ELF_ALIGNMENT,
            ..Default::default()
        }),
        e820_entries: u8::try_from(map.len()).unwrap_or(0),
        ..Default::default()
    };
    params.hdr.type_of_loader = UNKNOWN_LOADER;
    params.hdr.cmd_line_ptr = small(layout::COMMAND_LINE);
    params.hdr.ramdisk_image = initrd.map_or(0, |initrd| small(initrd.start));
    params.hdr.ramdisk_size = initrd.map_or(0, |initrd| small(initrd.len));
    let mut table = params.e820_table;
    for (entry, range) in table.iter_mut().zip(map) {
        *entry = boot_e820_entry {
            addr: range.start,
            size: range.len,
            r#type: range.kind as u32,
        };
    }
    params.e820_table = table;
    memory.write(layout::ZERO_PAGE, params.as_slice())?;
    Ok(())
}

/// Addresses below the hole and lengths of what lies there.
fn small(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
