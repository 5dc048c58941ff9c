//! What is in memory before the first instruction: kernel or firmware, initial RAM disk, command line, and what the
//! kernel is told about the machine.
//!
//! The files are ones that the user names; `linux-loader` reads their headers and has the rest read straight into the
//! guest's memory. Of a kernel that an operation has found on a disk, ranges are copied and no byte is looked at.

mod found;
mod map;
mod pvh;
mod zero_page;

use super::error::MachineError;
use super::layout;
use super::parts::Boot;
use crate::VmError;
use crate::arch::x86_64::boot::{Entry, Mode, page_tables};
use crate::memory::GuestSlot;
use linux_loader::loader::{
    BzImage, Elf, KernelLoader, KernelLoaderResult, PvhBootCapability, bootparam::setup_header,
};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use vm_memory::{Bytes, GuestAddress};

/// The bytes that an ELF file begins with.
const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
/// Longest command line of an x86-64 Linux that does not say, without the zero at its end.
const COMMAND_LINE_MAX: u64 = 2047;
/// Offset of the 64-bit entry of a bzImage. Boot protocol, "64-bit boot protocol".
const ENTRY_64: u64 = 0x200;
const PAGE: u64 = 4096;

/// A module, such as the initial RAM disk, in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Module {
    start: u64,
    len: u64,
}

/// A kernel in memory.
struct Kernel {
    /// How it is started.
    start: Start,
    /// Where what it needs in memory ends, as far as its file says.
    end: u64,
    /// Where an initial RAM disk must end.
    initrd_end: u64,
    /// Longest command line.
    command_line: u64,
}

enum Start {
    /// PVH entry.
    Pvh(u64),
    /// 64-bit entry, and the header of a bzImage.
    Long(u64, Option<setup_header>),
}

/// Loads `boot` into `memory`; what starts it.
///
/// # Errors
/// [`MachineError`]: a file cannot be read, is not what it should be, or does not fit.
pub fn load(boot: Boot, memory: &GuestSlot) -> Result<Entry, MachineError> {
    match boot {
        Boot::Kernel {
            mut kernel,
            initrd,
            cmdline,
        } => {
            let kernel = load_kernel(&mut kernel, memory)?;
            store_command_line(&cmdline, kernel.command_line, memory)?;
            let initrd = initrd
                .map(|mut initrd| {
                    let bytes = initrd.seek(SeekFrom::End(0)).map_err(unreadable_initrd)?;
                    load_initrd(initrd, bytes, &kernel, memory)
                })
                .transpose()?;
            start(&kernel.start, initrd, memory)
        }
        Boot::Found {
            plan,
            mut kernel,
            initrd,
            cmdline,
        } => {
            let loaded = found::load(&plan, &mut kernel, memory)?;
            store_command_line(&cmdline, loaded.command_line, memory)?;
            let initrd = match plan.initrd_len {
                0 => None,
                bytes => Some(load_initrd(initrd, bytes, &loaded, memory)?),
            };
            start(&loaded.start, initrd, memory)
        }
        Boot::Firmware(mut file) => {
            let loaded = load_elf("firmware", &mut file, memory)?;
            let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
                return Err(MachineError::NotPvh);
            };
            store_command_line("", COMMAND_LINE_MAX, memory)?;
            start(&Start::Pvh(entry.0), None, memory)
        }
    }
}

/// Writes what the kernel is told.
fn start(start: &Start, initrd: Option<Module>, memory: &GuestSlot) -> Result<Entry, MachineError> {
    let map = map::memory_map(memory.regions());
    let entry = match start {
        Start::Pvh(instruction) => {
            pvh::store(&map, initrd, memory)?;
            Entry {
                mode: Mode::Protected,
                instruction: *instruction,
                argument: layout::PVH_START_INFO,
            }
        }
        Start::Long(instruction, header) => {
            zero_page::store(header.as_ref(), &map, initrd, memory)?;
            let tables = page_tables(layout::BOOT_PAGE_TABLES);
            memory.write(layout::BOOT_PAGE_TABLES, &tables)?;
            Entry {
                mode: Mode::Long,
                instruction: *instruction,
                argument: layout::ZERO_PAGE,
            }
        }
    };
    memory.write(layout::BOOT_GDT, &entry.mode.descriptors())?;
    Ok(entry)
}

fn load_kernel(file: &mut File, memory: &GuestSlot) -> Result<Kernel, MachineError> {
    let mut magic = [0; 4];
    let read = file.rewind().and_then(|()| file.read_exact(&mut magic));
    read.map_err(|source| match source.kind() {
        std::io::ErrorKind::UnexpectedEof => MachineError::UnknownKernel,
        _ => MachineError::Read {
            what: "kernel",
            source,
        },
    })?;
    if magic != ELF_MAGIC {
        return load_bzimage(file, memory);
    }
    let loaded = load_elf("kernel", file, memory)?;
    let start = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Start::Pvh(entry.0),
        _ => Start::Long(loaded.kernel_load.0, None),
    };
    Ok(Kernel {
        start,
        end: loaded.kernel_end,
        initrd_end: u64::MAX,
        command_line: COMMAND_LINE_MAX,
    })
}

fn load_elf(
    what: &'static str,
    file: &mut File,
    memory: &GuestSlot,
) -> Result<KernelLoaderResult, MachineError> {
    let lowest = Some(GuestAddress(layout::KERNEL_START));
    Elf::load(memory.all(), None, file, lowest).map_err(|e| MachineError::Load {
        what,
        reason: e.to_string(),
    })
}

fn load_bzimage(file: &mut File, memory: &GuestSlot) -> Result<Kernel, MachineError> {
    let start = Some(GuestAddress(layout::KERNEL_START));
    let loaded = BzImage::load(memory.all(), start, file, start).map_err(|e| match e {
        linux_loader::loader::Error::Bzimage(
            linux_loader::loader::bzimage::Error::InvalidBzImage,
        ) => MachineError::UnknownKernel,
        e => MachineError::Load {
            what: "kernel",
            reason: e.to_string(),
        },
    })?;
    let header = loaded.setup_header.ok_or(MachineError::UnknownKernel)?;
    if header.version < 0x20c || header.xloadflags & 1 == 0 {
        return Err(MachineError::Not64Bit);
    }
    // It moves itself to where it wants to be, and unpacks itself there.
    let unpacked = header.pref_address.saturating_add(header.init_size.into());
    Ok(Kernel {
        start: Start::Long(loaded.kernel_load.0.saturating_add(ENTRY_64), Some(header)),
        end: loaded.kernel_end.max(unpacked),
        initrd_end: u64::from(header.initrd_addr_max).saturating_add(1),
        command_line: header.cmdline_size.into(),
    })
}

fn unreadable_initrd(source: std::io::Error) -> MachineError {
    MachineError::Read {
        what: "initial RAM disk",
        source,
    }
}

/// Puts an initial RAM disk of so many bytes as high as it may be.
fn load_initrd(
    mut file: File,
    bytes: u64,
    kernel: &Kernel,
    memory: &GuestSlot,
) -> Result<Module, MachineError> {
    let too_large = MachineError::InitrdTooLarge { bytes };
    let low = memory.regions().first().map_or(0, |region| region.len);
    let end = low.min(kernel.initrd_end);
    let start = end
        .checked_sub(bytes)
        .map(|start| start - start % PAGE)
        .filter(|start| *start >= kernel.end);
    let (Some(start), Ok(len)) = (start, usize::try_from(bytes)) else {
        return Err(too_large);
    };
    file.rewind().map_err(unreadable_initrd)?;
    memory
        .all()
        .read_exact_volatile_from(GuestAddress(start), &mut file, len)
        .map_err(|e| unreadable_initrd(std::io::Error::other(e)))?;
    Ok(Module { start, len: bytes })
}

fn store_command_line(line: &str, most: u64, memory: &GuestSlot) -> Result<(), MachineError> {
    let most = most.min(layout::COMMAND_LINE_SIZE.saturating_sub(1));
    let bytes = line.len();
    if bytes as u64 > most || line.contains('\0') {
        return Err(MachineError::CommandLine { bytes, most });
    }
    let written: Result<(), VmError> = memory.write(layout::COMMAND_LINE, line.as_bytes());
    written?;
    // The zero at its end is there: memory was never written.
    Ok(())
}

#[cfg(test)]
mod tests;
