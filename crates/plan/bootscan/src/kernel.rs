//! Kernels: which parts of a file go where. Linux, `Documentation/arch/x86/boot.rst`; Xen, `docs/misc/pvh.pandoc`.
//!
//! A bzImage for x86-64 is started at its 64-bit entry point, an ELF file at that of its PVH note. Kernels of other
//! architectures and 32-bit ones are refused.

use alloc::vec;
use alloc::vec::Vec;
use instar_filesystem::FsError;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Most segments that are loaded.
pub const MAX_SEGMENTS: usize = 16;
/// Largest kernel in bytes.
pub const MAX_KERNEL: u64 = 256 << 20;
/// Longest setup header that is kept, in bytes.
pub const MAX_SETUP_HEADER: usize = 256;
/// Where a setup header begins in a bzImage.
const SETUP_HEADER: usize = 0x1f1;
/// Bytes at the front of a bzImage with all of its setup header.
const HEAD: usize = SETUP_HEADER + MAX_SETUP_HEADER;
/// Kernels lie above the first megabyte, and below this.
const LOWEST: u64 = 1 << 20;
const HIGHEST: u64 = 1 << 32;
/// Oldest boot protocol with a 64-bit entry point.
const PROTOCOL_64: u16 = 0x020c;
/// `loadflags`: the kernel is loaded at 1 MiB or above.
const LOADED_HIGH: u8 = 1;
/// `xloadflags`: there is a 64-bit entry point at 0x200 of the kernel.
const XLF_KERNEL_64: u16 = 1;
/// Where it is.
const ENTRY_64: u64 = 0x200;
/// Note with the PVH entry point: Xen, `XEN_ELFNOTE_PHYS32_ENTRY`.
const NOTE_PHYS32_ENTRY: u32 = 18;
/// Largest segment of notes that is read, and most program headers.
const MAX_NOTES: u64 = 64 << 10;
const MAX_HEADERS: u16 = 64;
/// Highest address of an initial RAM disk where the kernel does not say one.
const INITRD_MAX: u64 = 0x37ff_ffff;

/// What a kernel's file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// bzImage.
    BzImage,
    /// ELF with a PVH note.
    Pvh,
}

/// A part of the file that goes to memory; what it has more there is zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub gpa: u64,
    /// First byte in the file.
    pub file_offset: u64,
    /// Bytes from the file.
    pub file_len: u64,
    /// Bytes in memory.
    pub mem_len: u64,
}

/// A kernel that can be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// What its file is.
    pub format: Format,
    /// Guest-physical address of the entry point.
    pub entry_gpa: u64,
    /// In the order of their addresses; they do not overlap.
    pub segments: Vec<Segment>,
    /// Of a bzImage: from offset 0x1f1 on.
    pub setup_header: Vec<u8>,
    /// Highest address that the initial RAM disk may reach to.
    pub initrd_max: u64,
}

/// A file that is no kernel for this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// Neither format.
    #[error("it is neither a bzImage for x86-64 nor an ELF file with a PVH entry")]
    Unknown,
    /// It has no 64-bit entry point, or a protocol before 2.12.
    #[error("it is a bzImage without a 64-bit entry point")]
    TooOld,
    /// Its parts do not lie in the file, overlap, or go where no memory for kernels is.
    #[error("its parts cannot be loaded where it wants them")]
    Layout,
    /// More than [`MAX_KERNEL`].
    #[error("it has more than 256 MiB")]
    TooLarge,
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Read(#[from] FsError),
}

/// Reads a part of the kernel's file.
pub type ReadAt<'a> = &'a dyn Fn(u64, &mut [u8]) -> Result<(), FsError>;

/// The fields of a setup header that matter, from 0x1f1 on.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SetupHeader {
    setup_sects: u8,
    root_flags: U16,
    syssize: U32,
    unused: [u8; 6],
    boot_flag: U16,
    jump: u8,
    jump_len: u8,
    magic: [u8; 4],
    version: U16,
    unused_too: [u8; 9],
    loadflags: u8,
    setup_move_size: U16,
    code32_start: U32,
    ramdisk: [u8; 8],
    bootsect_kludge: U32,
    heap_end: [u8; 4],
    cmd_line: U32,
    initrd_addr_max: U32,
    kernel_alignment: U32,
    relocatable: u8,
    min_alignment: u8,
    xloadflags: U16,
    cmdline_size: U32,
    unused_three: [u8; 28],
    pref_address: U64,
    init_size: U32,
}
const _: () = {
    assert!(core::mem::offset_of!(SetupHeader, boot_flag) == 0x1fe - SETUP_HEADER);
    assert!(core::mem::offset_of!(SetupHeader, magic) == 0x202 - SETUP_HEADER);
    assert!(core::mem::offset_of!(SetupHeader, loadflags) == 0x211 - SETUP_HEADER);
    assert!(core::mem::offset_of!(SetupHeader, initrd_addr_max) == 0x22c - SETUP_HEADER);
    assert!(core::mem::offset_of!(SetupHeader, xloadflags) == 0x236 - SETUP_HEADER);
    assert!(core::mem::offset_of!(SetupHeader, pref_address) == 0x258 - SETUP_HEADER);
};

/// ELF header. System V ABI, "ELF Header".
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ElfHeader {
    ident: [u8; 16],
    kind: U16,
    machine: U16,
    version: U32,
    entry: U64,
    phoff: U64,
    shoff: U64,
    flags: U32,
    ehsize: U16,
    phentsize: U16,
    phnum: U16,
    rest: [u8; 6],
}
const _: () = assert!(size_of::<ElfHeader>() == 64);

/// Program header. System V ABI, "Program Header".
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ProgramHeader {
    kind: U32,
    flags: U32,
    offset: U64,
    vaddr: U64,
    paddr: U64,
    filesz: U64,
    memsz: U64,
    align: U64,
}
const _: () = assert!(size_of::<ProgramHeader>() == 56);

/// `e_ident` of a 64-bit little-endian file, and `e_machine` of x86-64.
const ELF64_LITTLE: [u8; 6] = *b"\x7fELF\x02\x01";
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// Looks at a kernel of `len` bytes.
///
/// # Errors
/// It is none that can be loaded.
pub fn parse(len: u64, read: ReadAt<'_>) -> Result<Kernel, KernelError> {
    if len > MAX_KERNEL {
        return Err(KernelError::TooLarge);
    }
    if len < HEAD as u64 {
        return Err(KernelError::Unknown);
    }
    let mut head = vec![0; HEAD];
    read(0, &mut head)?;
    let kernel = if head.starts_with(&ELF64_LITTLE) {
        elf(len, &head, read)?
    } else {
        bz_image(len, &head)?
    };
    if well_placed(&kernel, len) {
        Ok(kernel)
    } else {
        Err(KernelError::Layout)
    }
}

fn bz_image(len: u64, head: &[u8]) -> Result<Kernel, KernelError> {
    let raw = head.get(SETUP_HEADER..).ok_or(KernelError::Unknown)?;
    let (header, _) = SetupHeader::read_from_prefix(raw).map_err(|_| KernelError::Unknown)?;
    if header.boot_flag.get() != 0xaa55 || header.magic != *b"HdrS" {
        return Err(KernelError::Unknown);
    }
    let wide = header.xloadflags.get() & XLF_KERNEL_64 != 0;
    if header.version.get() < PROTOCOL_64 || header.loadflags & LOADED_HIGH == 0 || !wide {
        return Err(KernelError::TooOld);
    }
    let sectors = match header.setup_sects {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let file_offset = sectors.saturating_add(1).saturating_mul(512);
    let file_len = len.checked_sub(file_offset).ok_or(KernelError::Layout)?;
    let gpa = if header.relocatable == 0 {
        header.code32_start.get().into()
    } else {
        header.pref_address.get()
    };
    // The header ends where the jump in front of its magic number leads.
    let end = usize::from(header.jump_len).saturating_add(0x202);
    let end = end.saturating_sub(SETUP_HEADER).min(raw.len());
    Ok(Kernel {
        format: Format::BzImage,
        entry_gpa: gpa.saturating_add(ENTRY_64),
        segments: vec![Segment {
            gpa,
            file_offset,
            file_len,
            mem_len: file_len.max(header.init_size.get().into()),
        }],
        setup_header: raw.get(..end).unwrap_or(raw).to_vec(),
        initrd_max: header.initrd_addr_max.get().into(),
    })
}

fn elf(len: u64, head: &[u8], read: ReadAt<'_>) -> Result<Kernel, KernelError> {
    let (header, _) = ElfHeader::read_from_prefix(head).map_err(|_| KernelError::Unknown)?;
    let count = header.phnum.get();
    let sized = usize::from(header.phentsize.get()) == size_of::<ProgramHeader>();
    if header.machine.get() != MACHINE_X86_64 || !sized || count > MAX_HEADERS {
        return Err(KernelError::Unknown);
    }
    let mut raw = vec![0; usize::from(count).saturating_mul(size_of::<ProgramHeader>())];
    if !inside(header.phoff.get(), raw.len() as u64, len) {
        return Err(KernelError::Layout);
    }
    read(header.phoff.get(), &mut raw)?;
    let (mut segments, mut entry) = (Vec::new(), None);
    for raw in raw.chunks_exact(size_of::<ProgramHeader>()) {
        let part = ProgramHeader::read_from_bytes(raw).map_err(|_| KernelError::Unknown)?;
        let (offset, size) = (part.offset.get(), part.filesz.get());
        match part.kind.get() {
            PT_LOAD if part.memsz.get() > 0 => segments.push(Segment {
                gpa: part.paddr.get(),
                file_offset: offset,
                file_len: size,
                mem_len: part.memsz.get(),
            }),
            PT_NOTE if inside(offset, size, len) && size <= MAX_NOTES => {
                let mut notes = vec![0; usize::try_from(size).unwrap_or(0)];
                read(offset, &mut notes)?;
                entry = entry.or(pvh_entry(&notes));
            }
            _ => {}
        }
    }
    segments.sort_by_key(|segment| segment.gpa);
    Ok(Kernel {
        format: Format::Pvh,
        entry_gpa: entry.ok_or(KernelError::Unknown)?,
        segments,
        setup_header: Vec::new(),
        initrd_max: INITRD_MAX,
    })
}

/// The address in the note that says where PVH begins.
fn pvh_entry(notes: &[u8]) -> Option<u64> {
    let mut rest = notes;
    loop {
        let (head, body) = <[U32; 3]>::read_from_prefix(rest).ok()?;
        let [name_len, desc_len, kind] =
            head.map(|n| usize::try_from(n.get()).unwrap_or(usize::MAX));
        let name_end = name_len.checked_next_multiple_of(4)?;
        let desc_end = name_end.checked_add(desc_len.checked_next_multiple_of(4)?)?;
        let name = body.get(..name_len)?;
        let desc = body.get(name_end..)?.get(..desc_len)?;
        if name == b"Xen\0" && Some(NOTE_PHYS32_ENTRY) == u32::try_from(kind).ok() {
            let (low, _) = U32::read_from_prefix(desc).ok()?;
            return Some(low.get().into());
        }
        rest = body.get(desc_end..)?;
    }
}

/// Whether a range lies in a file of `len` bytes.
fn inside(offset: u64, size: u64, len: u64) -> bool {
    offset.checked_add(size).is_some_and(|end| end <= len)
}

/// Whether all parts come from the file, lie where kernels may, one after the other, and the entry point is in one.
fn well_placed(kernel: &Kernel, len: u64) -> bool {
    let mut free = LOWEST;
    for segment in &kernel.segments {
        let end = segment.gpa.checked_add(segment.mem_len);
        let Some(end) = end.filter(|end| *end <= HIGHEST && segment.gpa >= free) else {
            return false;
        };
        if !inside(segment.file_offset, segment.file_len, len) || segment.mem_len < segment.file_len
        {
            return false;
        }
        free = end;
    }
    let entry = kernel.entry_gpa;
    let within = |s: &Segment| entry >= s.gpa && entry < s.gpa.saturating_add(s.file_len);
    kernel.segments.len() <= MAX_SEGMENTS && kernel.segments.iter().any(within)
}

#[cfg(test)]
mod tests;
