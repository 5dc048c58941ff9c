//! Guest memory of an operation: one reservation from address 0, identity-mapped.
//!
//! A guest-virtual address equals its guest-physical address wherever ring 3
//! (EL0) may look. Every region starts at a 16 KiB boundary, so the same map
//! serves hosts with 16 KiB pages, and at least one unmapped page follows it.
//!
//! | region | from | size | guest may |
//! |---|---|---|---|
//! | (none) | 0 | 64 KiB | nothing: null pointers fault |
//! | system | 64 KiB | 1.9 MiB | nothing: page tables, descriptor tables, trap page |
//! | image | 2 MiB | up to 4 MiB | as its ELF segments say: r-x, r--, rw- |
//! | boot page | 16 MiB | 4 KiB | read |
//! | config | 16 MiB + 64 KiB | 16 KiB | read |
//! | device table | 16 MiB + 128 KiB | 128 KiB | read |
//! | result | 17 MiB | 4 KiB | read, write |
//! | control | 17 MiB + 64 KiB | 16 KiB | read, write |
//! | records | 17 MiB + 128 KiB | 256 KiB | read, write |
//! | secrets | 17 MiB + 448 KiB | 16 KiB | read, write; mapped only if there are any |
//! | live | 17 MiB + 512 KiB | 272 KiB | read, write; mapped only for a resident operation |
//! | stack | 20 MiB | 256 KiB | read, write; devices too |
//! | further stacks | 20 MiB + 512 KiB | 256 KiB for each further vCPU | read, write; devices too |
//! | queues | 22 MiB | 8 MiB | read, write; devices too |
//! | heap | 32 MiB | grows by grants | read, write; devices too |
//!
//! Devices reach only [`DMA_START`] to the end of the slot: a request that
//! names page tables, code or the boot page is refused.

/// Regions start at multiples of this: the largest page size of a supported host.
pub const REGION_ALIGN: u64 = 16 << 10;
/// The smallest page the guest's tables map.
pub const PAGE_SIZE: u64 = 4 << 10;
/// Alignment of the heap, and the size of the large pages that map it.
pub const LARGE_PAGE_SIZE: u64 = 2 << 20;

/// A run of guest addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub size: u64,
}

impl Region {
    /// The first address past the region.
    #[must_use]
    #[allow(clippy::arithmetic_side_effects)] // proved for each region by `tripwires`
    pub const fn end(self) -> u64 {
        self.start + self.size
    }
}

/// Page tables, descriptor tables, trap page: ring 0's, written by the host only.
pub const SYSTEM: Region = Region {
    start: 0x1_0000,
    size: 0x1f_0000,
};
/// The operation's ELF image; its link address is the start.
pub const IMAGE: Region = Region {
    start: 0x20_0000,
    size: 0x40_0000,
};
/// [`crate::boot::BootPage`].
pub const BOOT: Region = Region {
    start: 0x100_0000,
    size: 0x1000,
};
/// The operation's config struct.
pub const CONFIG: Region = Region {
    start: 0x101_0000,
    size: 0x4000,
};
/// [`crate::device::DeviceEntry`] × [`crate::device::MAX_DEVICES`].
pub const DEVICE_TABLE: Region = Region {
    start: 0x102_0000,
    size: 0x2_0000,
};
/// The operation's result struct.
pub const RESULT: Region = Region {
    start: 0x110_0000,
    size: 0x1000,
};
/// [`crate::control::ControlPage`].
pub const CONTROL: Region = Region {
    start: 0x111_0000,
    size: 0x4000,
};
/// The record window: see [`crate::record`].
pub const RECORDS: Region = Region {
    start: 0x112_0000,
    size: 0x4_0000,
};
/// Passwords: see [`crate::secret`]. Below [`DMA_START`], so that no request can carry one into a file.
pub const SECRETS: Region = Region {
    start: 0x117_0000,
    size: 0x4000,
};
/// What a resident operation is asked, and its answers: see [`crate::live`].
pub const LIVE: Region = Region {
    start: 0x118_0000,
    size: 0x4_4000,
};
/// The stack; grows down from its end.
pub const STACK: Region = Region {
    start: 0x140_0000,
    size: 0x4_0000,
};
/// Most vCPUs of a machine.
pub const MAX_VCPUS: u8 = 4;
/// The stacks of the vCPUs from 1 on, [`FURTHER_STACK_STRIDE`] bytes apart, each as large as [`STACK`]. Only
/// those of vCPUs that there are can be reached.
pub const FURTHER_STACKS: Region = Region {
    start: 0x148_0000,
    size: 0xf_0000,
};
/// From one of the further stacks to the next: what is not stack is not mapped.
pub const FURTHER_STACK_STRIDE: u64 = 0x5_0000;
/// Virtqueues, [`crate::device::QUEUE_STRIDE`] bytes per device slot.
pub const QUEUES: Region = Region {
    start: 0x160_0000,
    size: 0x80_0000,
};
/// First address of the heap; its end is in the boot page.
pub const HEAP_START: u64 = 0x200_0000;
/// First address that a device may read or write.
pub const DMA_START: u64 = STACK.start;
/// Largest slot: what the system region's page tables can map.
pub const MAX_SLOT_SIZE: u64 = 256 << 30;
/// Smallest heap that an operation is given, whatever the memory cap says.
pub const MIN_HEAP_SIZE: u64 = 4 << 20;
/// Largest heap at start; what is granted later comes on top. The hypervisor keeps tables for every
/// page of guest memory, so memory that nobody asked for still costs time.
pub const INITIAL_HEAP_SIZE: u64 = 32 << 20;

/// The stack of vCPU `index`, or `None` if there is no such vCPU.
#[must_use]
pub fn stack_of(index: u8) -> Option<Region> {
    if index >= MAX_VCPUS {
        return None;
    }
    let Some(before) = index.checked_sub(1) else {
        return Some(STACK);
    };
    let offset = u64::from(before).checked_mul(FURTHER_STACK_STRIDE)?;
    Some(Region {
        start: FURTHER_STACKS.start.checked_add(offset)?,
        size: STACK.size,
    })
}

/// Where vCPU `index`, not the first, says why it panicked: the length of the text as a little-endian
/// [`u32`], then the text, at most [`PANIC_TEXT_BYTES`] long. Lies in [`RESULT`], past every result.
#[must_use]
pub fn panic_note_of(index: u8) -> Option<u64> {
    if index == 0 || index >= MAX_VCPUS {
        return None;
    }
    RESULT
        .start
        .checked_add(u64::from(index).checked_mul(PANIC_NOTE_BYTES)?)
}

/// Room for one panic note.
pub const PANIC_NOTE_BYTES: u64 = 1024;
/// Longest text of a panic note.
pub const PANIC_TEXT_BYTES: usize = 1000;

/// arm64 only: a page that stage 1 maps for EL0 and stage 2 does not, so that a store exits.
pub const ARM64_DOORBELL_PAGE: u64 = 0x80_0000_0000 - REGION_ALIGN;

/// The fixed regions in address order, with names for crash reports.
pub const REGIONS: &[(&str, Region)] = &[
    ("system", SYSTEM),
    ("image", IMAGE),
    ("boot page", BOOT),
    ("config", CONFIG),
    ("device table", DEVICE_TABLE),
    ("result", RESULT),
    ("control page", CONTROL),
    ("records", RECORDS),
    ("secrets", SECRETS),
    ("live", LIVE),
    ("stack", STACK),
    ("further stacks", FURTHER_STACKS),
    ("queues", QUEUES),
];
