//! Loads an operation binary: an ELF file that this project built itself.

use crate::VmError;
use crate::arch::{Access, Mapping};
use crate::memory::GuestSlot;
use instar_shared::abi::{ABI_NOTE, AbiNote, NOTE_SECTION};
use instar_shared::layout::{IMAGE, PAGE_SIZE};
use instar_shared::zerocopy::{FromBytes, IntoBytes};
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Object, ObjectSection, ObjectSymbol, elf};

/// A loaded image.
#[derive(Debug)]
pub struct LoadedImage {
    /// First instruction.
    pub entry_gva: u64,
    /// Its pages and what user mode may do with them.
    pub mappings: Vec<Mapping>,
}

/// Copies the segments of `elf` to the guest's memory.
///
/// # Errors
/// [`VmError::Image`] if the file is not ELF, carries another ABI version, leaves
/// the image region, or wants a page that is writable and executable.
pub fn load(elf: &[u8], slot: &GuestSlot) -> Result<LoadedImage, VmError> {
    let file = parse(elf)?;
    check_abi(&file)?;
    let endian = file.endian();
    let mut mappings = Vec::new();
    for header in file
        .elf_program_headers()
        .iter()
        .filter(|h| h.p_type(endian) == elf::PT_LOAD)
    {
        let (start, size) = (header.p_vaddr(endian), header.p_memsz(endian));
        let end = start
            .checked_add(size)
            .filter(|end| start >= IMAGE.start && *end <= IMAGE.end());
        let end = end.ok_or_else(|| {
            VmError::Image(format!("segment at {start:#x} leaves the image region"))
        })?;
        let data = header
            .data(endian, elf)
            .map_err(|()| VmError::Image("segment data is missing".into()))?;
        slot.populate(start, data.len() as u64);
        slot.write(start, data)?;
        let page = start - start % PAGE_SIZE;
        let size = (end - page).next_multiple_of(PAGE_SIZE);
        mappings.push(Mapping {
            start: page,
            size,
            access: access(header.p_flags(endian))?,
        });
    }
    let apart = mappings
        .windows(2)
        .all(|pair| matches!(pair, [a, b] if a.start + a.size <= b.start));
    if !apart || mappings.is_empty() {
        return Err(VmError::Image("segments share a page".into()));
    }
    Ok(LoadedImage {
        entry_gva: file.entry(),
        mappings,
    })
}

/// The function that holds `address` and the offset in it, for crash reports.
#[must_use]
pub fn symbolize(elf: &[u8], address: u64) -> Option<(String, u64)> {
    let file = parse(elf).ok()?;
    let symbol = file
        .symbols()
        .filter(|s| {
            s.is_definition() && s.address() <= address && address < s.address() + s.size().max(1)
        })
        .max_by_key(ObjectSymbol::address)?;
    let name = rustc_demangle::demangle(symbol.name().ok()?);
    Some((format!("{name:#}"), address - symbol.address()))
}

fn parse(elf: &[u8]) -> Result<ElfFile64<'_>, VmError> {
    ElfFile64::parse(elf).map_err(|e| VmError::Image(format!("not an ELF file: {e}")))
}

fn check_abi(file: &ElfFile64<'_>) -> Result<(), VmError> {
    let section = file.section_by_name(NOTE_SECTION);
    let data = section.and_then(|s| s.data().ok()).unwrap_or_default();
    match AbiNote::read_from_prefix(data) {
        Ok((note, _)) if note.as_bytes() == ABI_NOTE.as_bytes() => Ok(()),
        Ok((note, _)) => Err(VmError::Image(format!(
            "it was built for ABI version {}, this host speaks {}",
            note.version, ABI_NOTE.version
        ))),
        Err(_) => Err(VmError::Image("it carries no ABI version".into())),
    }
}

fn access(flags: elf::ProgramFlags) -> Result<Access, VmError> {
    let has = |flag: elf::ProgramFlags| flags.0 & flag.0 != 0;
    match (has(elf::PF_W), has(elf::PF_X)) {
        (true, true) => Err(VmError::Image(
            "a segment is writable and executable".into(),
        )),
        (true, false) => Ok(Access::ReadWrite),
        (false, true) => Ok(Access::ReadExecute),
        (false, false) => Ok(Access::Read),
    }
}
