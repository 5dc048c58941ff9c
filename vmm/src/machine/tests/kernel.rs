//! Files that are kernels to a loader.

use std::fs::File;
use std::io::Write;

const START: u64 = 0x10_0000;

/// A file with these bytes.
pub fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// An ELF file of `code` at 1 MiB, where it starts; in 32-bit mode if it has a PVH entry, else in 64-bit mode.
pub fn elf(code: &[u8], pvh: bool) -> Vec<u8> {
    let (headers, note) = (64 + 2 * 56_u64, 20_u64);
    let mut bytes = Vec::from(*b"\x7fELF\x02\x01\x01");
    bytes.resize(16, 0);
    bytes.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [START, 64, 0] {
        bytes.extend(word.to_le_bytes());
    }
    let phnum: u16 = if pvh { 2 } else { 1 };
    for half in [0, 0, 64, 56, phnum, 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    let mut segment = |kind: u32, offset: u64, address: u64, len: u64| {
        bytes.extend(kind.to_le_bytes());
        bytes.extend(5_u32.to_le_bytes());
        for word in [offset, address, address, len, len, 16] {
            bytes.extend(word.to_le_bytes());
        }
    };
    segment(1, headers + note, START, code.len() as u64);
    segment(4, headers, 0, note);
    // Name and descriptor of 4 bytes each, type XEN_ELFNOTE_PHYS32_ENTRY.
    for word in [4, 4, 18, u32::from_le_bytes(*b"Xen\0"), 0x10_0000] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(code);
    bytes
}

/// A bzImage of `code`: version 2.15, 64-bit entry, unpacks to 8 MiB at 16 MiB, a command line of 100 bytes at most, the
/// initial RAM disk below 32 MiB.
pub fn bzimage(code: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0x1f1, &[1]);
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x211, &[1]);
    put(0x214, &0x10_0000_u32.to_le_bytes());
    put(0x22c, &0x1ff_ffff_u32.to_le_bytes());
    put(0x236, &[1]);
    put(0x238, &100_u32.to_le_bytes());
    put(0x258, &0x100_0000_u64.to_le_bytes());
    put(0x260, &0x80_0000_u32.to_le_bytes());
    bytes.resize(1024 + 0x200, 0x90);
    bytes.extend(code);
    bytes
}
