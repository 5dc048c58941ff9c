//! Kernels, whole and hostile.

use super::*;

fn look(file: &[u8]) -> Result<Kernel, KernelError> {
    parse(file.len() as u64, &|at, buf| {
        let at = usize::try_from(at).unwrap();
        buf.copy_from_slice(&file[at..at + buf.len()]);
        Ok(())
    })
}

/// A bzImage with two setup sectors and 10,000 bytes of kernel.
fn image() -> Vec<u8> {
    let mut file = vec![0; 3 * 512 + 10_000];
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
    file[0x260..0x264].copy_from_slice(&0x20_0000_u32.to_le_bytes());
    file
}

#[test]
fn bz_image_is_one_segment_behind_its_setup() {
    let kernel = look(&image()).unwrap();
    assert_eq!(
        (kernel.format, kernel.entry_gpa),
        (Format::BzImage, 0x0100_0200)
    );
    let segment = Segment {
        gpa: 0x0100_0000,
        file_offset: 1536,
        file_len: 10_000,
        mem_len: 0x20_0000,
    };
    assert_eq!(kernel.segments, [segment]);
    assert_eq!(kernel.setup_header.len(), 0x202 + 0x6a - 0x1f1);
    assert_eq!(kernel.initrd_max, 0x7fff_ffff);
}

#[test]
fn bz_image_that_cannot_be_loaded_is_refused() {
    let with = |at: usize, bytes: &[u8]| {
        let mut file = image();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        look(&file)
    };
    assert_eq!(with(0x202, b"XXXX"), Err(KernelError::Unknown));
    assert_eq!(with(0x206, &[0x0b, 2]), Err(KernelError::TooOld));
    assert_eq!(with(0x236, &[0]), Err(KernelError::TooOld));
    assert_eq!(with(0x258, &[0; 8]), Err(KernelError::Layout));
    assert_eq!(with(0x258, &[0xff; 8]), Err(KernelError::Layout));
    assert_eq!(with(0x260, &[0xff; 4]), Err(KernelError::Layout));
    assert_eq!(with(0x1f1, &[0xff]), Err(KernelError::Layout));
    assert_eq!(look(&image()[..600]), Err(KernelError::Unknown));
}

/// An ELF file with a note and one segment at 16 MiB.
fn elf_file(entry: u32) -> Vec<u8> {
    let mut file = vec![0; 8192];
    file[..6].copy_from_slice(&ELF64_LITTLE);
    file[18] = 62;
    file[32] = 64;
    file[54] = 56;
    file[56] = 2;
    let mut header = |at: usize, kind: u32, numbers: [u64; 5]| {
        file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        let [offset, paddr, filesz, memsz, align] = numbers;
        for (i, number) in [offset, 0, paddr, filesz, memsz, align]
            .into_iter()
            .enumerate()
        {
            file[at + 8 + 8 * i..at + 16 + 8 * i].copy_from_slice(&number.to_le_bytes());
        }
    };
    header(64, PT_NOTE, [1024, 0, 20, 20, 4]);
    header(120, PT_LOAD, [4096, 16 << 20, 4096, 8192, 4096]);
    for (i, number) in [4, 4, 18, u32::from_le_bytes(*b"Xen\0"), entry]
        .into_iter()
        .enumerate()
    {
        file[1024 + 4 * i..1028 + 4 * i].copy_from_slice(&number.to_le_bytes());
    }
    file
}

#[test]
fn elf_file_starts_at_its_pvh_note() {
    let kernel = look(&elf_file(0x0100_0010)).unwrap();
    assert_eq!(
        (kernel.format, kernel.entry_gpa),
        (Format::Pvh, 0x0100_0010)
    );
    assert_eq!(kernel.segments.len(), 1);
    assert_eq!(kernel.segments[0].mem_len, 8192);
    assert_eq!(look(&elf_file(0x10)), Err(KernelError::Layout));
    let mut file = elf_file(0x0100_0010);
    file[1024 + 8] = 17;
    assert_eq!(look(&file), Err(KernelError::Unknown));
}

#[test]
fn no_byte_of_a_header_does_more_than_refuse() {
    for file in [image(), elf_file(0x0100_0010)] {
        for at in 0..1100 {
            for value in [0, 0x7f, 0xff] {
                let mut file = file.clone();
                file[at] = value;
                if let Ok(kernel) = look(&file) {
                    assert!(well_placed(&kernel, file.len() as u64), "{value} at {at}");
                }
            }
        }
    }
}
