//! Disks as distributions lay them out, made from scratch by other programs, as an ordinary user.
//!
//! - `make`: file systems from folders, and partitioned disks of them.
//! - `distributions`: Debian, Ubuntu, Fedora and Alpine.

mod distributions;
mod make;

pub use distributions::{ALL, Layout, alpine, debian, fedora, fedora_btrfs, ubuntu};
pub use make::{Disk, Fs, Part, Tree};

/// A bzImage for x86-64 with a setup of two sectors and `len` bytes behind it, which say which kernel it is.
pub fn kernel(name: &str, len: usize) -> Vec<u8> {
    let mut file = vec![0; 3 * 512];
    file[0x1f1] = 2;
    file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    file[0x200..0x202].copy_from_slice(&[0xeb, 0x6a]);
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    file[0x211] = 1;
    file[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    file[0x234] = 1;
    file[0x236] = 1;
    file[0x258..0x260].copy_from_slice(&0x0100_0000_u64.to_le_bytes());
    let memory = u32::try_from(len)
        .unwrap_or(u32::MAX)
        .saturating_add(1 << 20);
    file[0x260..0x264].copy_from_slice(&memory.to_le_bytes());
    file.extend(content(name, len));
    file
}

/// `len` bytes that no other name gives.
pub fn content(name: &str, len: usize) -> Vec<u8> {
    let mut rng = crate::rng::Rng::for_test(name);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(rng.next_u64().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
