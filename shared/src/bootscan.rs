//! The `bootscan` operation: what a disk boots, and the parts of its kernel.
//!
//! Records come in this order: one `BootVolume` for each volume, any number of `BootNote`s, and if something can be
//! booted one `BootSource`, one `BootEntry` for each entry, and, if the entry's kernel can be read, one `BootPlan`.
//! Texts follow the fixed part of a record in the order of its length fields.
//!
//! A kernel and its initial RAM disk are copied into files that the host gives, so that the host maps or copies ranges
//! of them and interprets nothing.

use zerocopy::little_endian::{U16, U32, U64};

/// Longest name of an entry in [`BootscanConfig::wanted`], in bytes.
pub const MAX_WANTED: usize = 1024;
/// Largest kernel in bytes.
pub const MAX_KERNEL: u64 = 256 << 20;
/// Largest initial RAM disk in bytes: all of an entry together.
pub const MAX_INITRD: u64 = 1 << 30;
/// Most segments of a kernel.
pub const MAX_SEGMENTS: usize = 16;
/// Longest setup header of a bzImage that is kept, in bytes. Linux, `Documentation/arch/x86/boot.rst`.
pub const MAX_SETUP_HEADER: usize = 256;
/// Most volumes, entries and notes of a run, each.
pub const MAX_BOOT_RECORDS: u32 = 512;
/// Longest text in any of the records, in bytes.
pub const MAX_BOOT_TEXT: usize = 8192;
/// Most initial RAM disks of an entry.
pub const MAX_INITRDS: u32 = 8;
/// No volume, or no entry.
pub const NO_INDEX: u32 = u32::MAX;
/// Initial RAM disks of an entry begin at multiples of this in their file, as in GRUB.
pub const INITRD_ALIGN: u64 = 4;

/// [`BootscanConfig::flags`]: an entry is named.
pub const BOOTSCAN_WANTED: u32 = 1 << 0;

wire_struct! {
    /// What `bootscan` is to do.
    pub struct BootscanConfig {
        /// A [`crate::op::ImageFormat`]: the format of the image in slot 0, or `Probe`.
        pub format: U32,
        /// `BOOTSCAN_*`.
        pub flags: U32,
        /// Slot of the file that the kernel is copied into, 0 for none.
        pub kernel_slot: U16,
        /// Slot of the file that the initial RAM disks are copied into, 0 for none.
        pub initrd_slot: U16,
        /// Bytes of `wanted`.
        pub wanted_len: U32,
        /// Index, ID or title of the entry that is meant instead of the default one.
        pub wanted: [u8; MAX_WANTED],
        /// Zero.
        pub reserved: [u8; 48],
    }
}
wire_layout!(BootscanConfig, size = 1088, {
    format @ 0, flags @ 4, kernel_slot @ 8, initrd_slot @ 10, wanted_len @ 12, wanted @ 16, reserved @ 1040,
});

wire_struct! {
    /// How `bootscan` ended.
    pub struct BootscanResult {
        /// An [`crate::op::Outcome`].
        pub outcome: U32,
        /// A [`BootScheme`].
        pub scheme: U32,
        /// `BootVolume` records.
        pub volumes: U32,
        /// `BootEntry` records.
        pub entries: U32,
        /// The entry that is booted, or [`NO_INDEX`].
        pub chosen: U32,
        /// The boot loader's default entry, or [`NO_INDEX`].
        pub default: U32,
        /// Zero.
        pub reserved: [u8; 40],
    }
}
wire_layout!(BootscanResult, size = 64, {
    outcome @ 0, scheme @ 4, volumes @ 8, entries @ 12, chosen @ 16, default @ 20, reserved @ 24,
});

wire_enum! {
    /// The kind of partition table.
    pub enum BootScheme: u32 {
        /// None.
        None = 0,
        /// GUID partition table.
        Gpt = 1,
        /// The same, from its backup.
        GptBackup = 2,
        /// Master boot record.
        Mbr = 3,
    }
}

wire_enum! {
    /// Whose configuration was read.
    pub enum BootLoader: u32 {
        /// GRUB 2.
        Grub = 1,
        /// Boot loader specification.
        Bls = 2,
        /// extlinux or syslinux.
        Extlinux = 3,
    }
}

wire_enum! {
    /// What a kernel's file is.
    pub enum KernelFormat: u32 {
        /// bzImage for x86-64.
        BzImage = 1,
        /// ELF with a PVH entry.
        Pvh = 2,
    }
}

/// [`BootVolume::flags`]: an EFI system partition.
pub const VOLUME_EFI: u32 = 1 << 0;
/// [`BootVolume::flags`]: marked as bootable.
pub const VOLUME_ACTIVE: u32 = 1 << 1;
/// All flags of [`BootVolume::flags`].
pub const VOLUME_FLAGS: u32 = VOLUME_EFI | VOLUME_ACTIVE;

wire_struct! {
    /// Head of a `BootVolume` record: a partition, or the whole disk.
    pub struct BootVolume {
        /// First byte on the disk.
        pub start: U64,
        /// Length in bytes.
        pub len: U64,
        /// Number of the partition, 0 for the whole disk.
        pub number: U32,
        /// `VOLUME_*`.
        pub flags: U32,
        /// Lengths of the name of the file system, of its label and its UUID, and of the partition's UUID and name.
        pub lens: [U16; 5],
        /// Zero.
        pub reserved: [u8; 6],
    }
}
wire_layout!(BootVolume, size = 40, { start @ 0, len @ 8, number @ 16, flags @ 20, lens @ 24, reserved @ 34 });

wire_struct! {
    /// Head of the `BootSource` record.
    pub struct BootSource {
        /// A [`BootLoader`].
        pub loader: U32,
        /// Volume of the configuration: an index.
        pub volume: U32,
        /// Lengths of its path, and of the clause that says why the default entry is that.
        pub lens: [U16; 2],
        /// Zero.
        pub reserved: [u8; 4],
    }
}
wire_layout!(BootSource, size = 16, { loader @ 0, volume @ 4, lens @ 8, reserved @ 12 });

wire_struct! {
    /// Head of a `BootEntry` record.
    pub struct BootEntry {
        /// Volume of the kernel: an index, or [`NO_INDEX`] if it has none.
        pub kernel_volume: U32,
        /// Volumes of the initial RAM disks: indices.
        pub initrd_volumes: [U32; 8],
        /// Initial RAM disks.
        pub initrds: U32,
        /// Lengths of the index, the ID, the title, the kernel's path, the paths of the initial RAM disks with a NUL
        /// behind each, the command line, and the clause that says why it cannot be booted.
        pub lens: [U16; 7],
        /// Zero.
        pub reserved: [u8; 2],
    }
}
wire_layout!(BootEntry, size = 56, {
    kernel_volume @ 0, initrd_volumes @ 4, initrds @ 36, lens @ 40, reserved @ 54,
});

wire_struct! {
    /// A part of the kernel's file that goes to guest memory.
    pub struct BootSegment {
        /// Guest-physical address.
        pub gpa: U64,
        /// First byte in the kernel's file.
        pub file_offset: U64,
        /// Bytes from the file.
        pub file_len: U64,
        /// Bytes in memory, at least as many; those past the file's are zeros.
        pub mem_len: U64,
    }
}
wire_layout!(BootSegment, size = 32, { gpa @ 0, file_offset @ 8, file_len @ 16, mem_len @ 24 });

wire_struct! {
    /// The `BootPlan` record: how the chosen entry's kernel is loaded. Its command line is the entry's.
    pub struct BootPlan {
        /// A [`KernelFormat`].
        pub format: U32,
        /// Segments that are used.
        pub segments: U32,
        /// Guest-physical address of the entry point: the 64-bit one of a bzImage, the 32-bit one of PVH.
        pub entry_gpa: U64,
        /// Length of the kernel's file in bytes.
        pub kernel_len: U64,
        /// Length of the initial RAM disks together, with what is between them; 0 for none.
        pub initrd_len: U64,
        /// Highest address that the initial RAM disk may reach to.
        pub initrd_max: U64,
        /// Bytes of `setup_header`.
        pub setup_header_len: U32,
        /// Zero.
        pub reserved: U32,
        /// The segments, in the order of their addresses.
        pub segment: [BootSegment; MAX_SEGMENTS],
        /// Of a bzImage: its setup header, from offset 0x1f1 on.
        pub setup_header: [u8; MAX_SETUP_HEADER],
    }
}
wire_layout!(BootPlan, size = 816, {
    format @ 0, segments @ 4, entry_gpa @ 8, kernel_len @ 16, initrd_len @ 24, initrd_max @ 32,
    setup_header_len @ 40, reserved @ 44, segment @ 48, setup_header @ 560,
});
