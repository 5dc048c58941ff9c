//! Kernels in memory, and what they are told.

use super::*;
use crate::boot_plan::{BootPlan, Segment};
use crate::machine::tests::kernel::{bzimage, elf, file};
use crate::memory::Hole;
use instar_shared::bootscan::KernelFormat;
use std::sync::Arc;

const MIB: u64 = 1 << 20;

fn memory(bytes: u64) -> Arc<GuestSlot> {
    let hole = Hole {
        start: layout::HOLE_START,
        end: layout::HIGH_MEMORY_START,
    };
    GuestSlot::with_hole(bytes, hole).unwrap()
}

fn boot(kernel: &[u8], initrd: Option<&[u8]>, cmdline: &str) -> Boot {
    Boot::Kernel {
        kernel: file(kernel),
        initrd: initrd.map(file),
        cmdline: cmdline.into(),
    }
}

fn word(memory: &GuestSlot, gpa: u64) -> u64 {
    let mut bytes = [0; 8];
    memory.read(gpa, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

fn long(memory: &GuestSlot, gpa: u64) -> u64 {
    word(memory, gpa) & 0xffff_ffff
}

fn bytes(memory: &GuestSlot, gpa: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read(gpa, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_kernel_with_a_pvh_entry_gets_start_information() {
    let memory = memory(64 * MIB);
    let kernel = elf(b"code", true);
    let entry = load(boot(&kernel, Some(b"disk"), "quiet"), &memory).unwrap();
    let wanted = Entry {
        mode: Mode::Protected,
        instruction: layout::KERNEL_START,
        argument: layout::PVH_START_INFO,
    };
    assert_eq!(entry, wanted);
    assert_eq!(bytes(&memory, layout::KERNEL_START, 4), b"code");
    let info = layout::PVH_START_INFO;
    assert_eq!(long(&memory, info), 0x336e_c578);
    assert_eq!((long(&memory, info + 4), long(&memory, info + 12)), (1, 1));
    let module = word(&memory, info + 16);
    let (start, len) = (word(&memory, module), word(&memory, module + 8));
    assert_eq!((start, len), (64 * MIB - 4096, 4));
    assert_eq!(bytes(&memory, start, 4), b"disk");
    assert_eq!(bytes(&memory, word(&memory, info + 24), 6), b"quiet\0");
    assert_eq!(word(&memory, info + 32), layout::ACPI_TABLES);
    let (map, entries) = (word(&memory, info + 40), long(&memory, info + 48));
    let entry = |index: u64| {
        let at = map + index * 24;
        (
            word(&memory, at),
            word(&memory, at + 8),
            long(&memory, at + 16),
        )
    };
    assert_eq!(entries, 4);
    assert_eq!(entry(0), (0, layout::LOW_MEMORY_END, 1));
    assert_eq!(entry(2), (layout::KERNEL_START, 63 * MIB, 1));
}

#[test]
fn an_elf_kernel_without_one_gets_boot_parameters_in_64_bit_mode() {
    let memory = memory(5 << 30);
    let kernel = elf(b"code", false);
    let entry = load(boot(&kernel, None, ""), &memory).unwrap();
    assert_eq!(entry.mode, Mode::Long);
    assert_eq!(entry.instruction, layout::KERNEL_START);
    let page = entry.argument;
    assert_eq!(bytes(&memory, page + 0x202, 4), b"HdrS");
    assert_eq!(bytes(&memory, page + 0x210, 1), [0xff]);
    assert_eq!(word(&memory, page + 0x70), layout::ACPI_TABLES);
    assert_eq!(long(&memory, page + 0x228), layout::COMMAND_LINE);
    assert_eq!(word(&memory, page + 0x218), 0);
    let entries = bytes(&memory, page + 0x1e8, 1)[0];
    let last = page + 0x2d0 + 20 * (u64::from(entries) - 1);
    assert_eq!(
        (word(&memory, last), word(&memory, last + 8)),
        (4 << 30, 2 << 30)
    );
    assert_eq!(
        bytes(&memory, layout::BOOT_GDT + 16, 8),
        0x00af_9b00_0000_ffff_u64.to_le_bytes()
    );
    assert_eq!(
        word(&memory, layout::BOOT_PAGE_TABLES),
        layout::BOOT_PAGE_TABLES + 0x1003
    );
}

#[test]
fn a_bzimage_keeps_its_header_and_its_limits() {
    let memory = memory(64 * MIB);
    let mut kernel = bzimage(b"code");
    let entry = load(boot(&kernel, Some(&[7; 5000]), &"x".repeat(100)), &memory).unwrap();
    assert_eq!(entry.instruction, layout::KERNEL_START + 0x200);
    let page = entry.argument;
    assert_eq!(bytes(&memory, page + 0x206, 2), [0x0f, 0x02]);
    // 32 MiB is where its header has the disk end.
    let (start, len) = (long(&memory, page + 0x218), long(&memory, page + 0x21c));
    assert_eq!((start, len), (32 * MIB - 8192, 5000));
    assert_eq!(bytes(&memory, start + 4999, 2), [7, 0]);
    let error = load(boot(&kernel, None, &"x".repeat(101)), &memory).unwrap_err();
    assert!(error.to_string().contains("at most 100 bytes"), "{error}");
    kernel[0x236] = 0;
    let error = load(boot(&kernel, None, ""), &memory).unwrap_err();
    assert!(error.to_string().contains("no 64-bit entry"), "{error}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let memory = memory(34 * MIB);
    let refused = |boot: Boot| load(boot, &memory).unwrap_err().to_string();
    let kernel = bzimage(b"code");
    // Unpacked it takes the memory from 16 MiB to 24 MiB.
    let disk = vec![1; 9 << 20];
    let text = refused(boot(&kernel, Some(&disk), ""));
    assert!(
        text.contains("does not fit into memory beside the kernel"),
        "{text}"
    );
    let text = refused(boot(b"#!/bin/sh", None, ""));
    assert!(text.contains("neither an ELF file"), "{text}");
    let text = refused(boot(b"", None, ""));
    assert!(text.contains("neither an ELF file"), "{text}");
    let mut far = elf(b"code", true);
    // Its one loaded segment: the physical address.
    far[64 + 24..64 + 32].copy_from_slice(&(40 * MIB).to_le_bytes());
    let text = refused(boot(&far, None, ""));
    assert!(text.contains("the kernel cannot be loaded"), "{text}");
    let text = refused(boot(&elf(b"code", true), None, "a\0b"));
    assert!(text.contains("without zeros"), "{text}");
    let text = refused(Boot::Firmware(file(&elf(b"code", false))));
    assert!(text.contains("no PVH entry"), "{text}");
}

fn found(initrd_len: u64) -> Boot {
    let segment = |gpa, file_offset, file_len, mem_len| Segment {
        gpa,
        file_offset,
        file_len,
        mem_len,
    };
    let mut setup_header = vec![0; 123];
    setup_header[0x11..0x17].copy_from_slice(b"HdrS\x0f\x02");
    let plan = BootPlan {
        format: KernelFormat::BzImage,
        segments: vec![
            segment(16 * MIB, 4, 4, MIB),
            segment(20 * MIB, 0, 4, 4 * MIB),
        ],
        entry_gpa: 16 * MIB + 2,
        kernel_len: 8,
        initrd_len,
        initrd_max: 32 * MIB - 1,
        setup_header,
    };
    Boot::Found {
        plan: Box::new(plan),
        kernel: file(b"onetwo--"),
        initrd: file(&[9; 5000]),
        cmdline: "root=/dev/vda1".into(),
    }
}

#[test]
fn a_kernel_that_was_found_is_copied_as_planned() {
    let memory = memory(64 * MIB);
    let entry = load(found(5000), &memory).unwrap();
    assert_eq!(entry.mode, Mode::Long);
    assert_eq!(entry.instruction, 16 * MIB + 2);
    assert_eq!(bytes(&memory, 16 * MIB, 5), b"wo--\0");
    assert_eq!(bytes(&memory, 20 * MIB, 5), b"onet\0");
    let page = entry.argument;
    assert_eq!(bytes(&memory, page + 0x202, 6), b"HdrS\x0f\x02");
    assert_eq!(long(&memory, page + 0x228), layout::COMMAND_LINE);
    assert_eq!(
        bytes(&memory, layout::COMMAND_LINE, 15),
        b"root=/dev/vda1\0"
    );
    let (start, len) = (long(&memory, page + 0x218), long(&memory, page + 0x21c));
    assert_eq!((start, len), (32 * MIB - 8192, 5000));
    assert_eq!(bytes(&memory, start + 4999, 2), [9, 0]);
}

#[test]
fn a_kernel_that_was_found_and_does_not_fit_is_refused() {
    // Its memory ends at 24 MiB; the initial RAM disk ends below 32 MiB.
    let error = load(found(0), &memory(22 * MIB)).unwrap_err().to_string();
    assert!(error.contains("needs memory up to 0x1800000"), "{error}");
    load(found(0), &memory(24 * MIB)).unwrap();
    let error = load(found(9 * MIB), &memory(64 * MIB))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("does not fit into memory beside the kernel"),
        "{error}"
    );
    let error = load(found(5001), &memory(64 * MIB))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("cannot read the initial RAM disk"),
        "{error}"
    );
}
