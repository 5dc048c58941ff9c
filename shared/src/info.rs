//! The `info` operation.
//!
//! For each image of the chain the guest sends one `Image` record, then its
//! `Snapshot`, `Bitmap` and `Luks` records. Names follow the fixed part of a
//! record in the order of its length fields. The file's own length and disk
//! usage are the host's to know and are not in here.

use zerocopy::little_endian::{U32, U64};

/// Walk the whole backing chain.
pub const INFO_BACKING_CHAIN: u32 = 1 << 0;

wire_struct! {
    /// What `info` is to do.
    pub struct InfoConfig {
        /// An [`crate::op::ImageFormat`]: the format of the image in slot 0, or `Probe`.
        pub format: U32,
        /// `INFO_*`.
        pub flags: U32,
        /// Zero.
        pub reserved: [u8; 56],
    }
}
wire_layout!(InfoConfig, size = 64, { format @ 0, flags @ 4, reserved @ 8 });

wire_struct! {
    /// How `info` ended.
    pub struct InfoResult {
        /// A [`crate::op::Outcome`].
        pub outcome: U32,
        /// Images described by records.
        pub images: U32,
        /// Zero.
        pub reserved: [u8; 56],
    }
}
wire_layout!(InfoResult, size = 64, { outcome @ 0, images @ 4, reserved @ 8 });

/// [`ImageRecord::flags`]: the dirty bit is set.
pub const IMAGE_DIRTY: u32 = 1 << 0;
/// [`ImageRecord::flags`]: the corrupt bit is set.
pub const IMAGE_CORRUPT: u32 = 1 << 1;
/// [`ImageRecord::flags`]: lazy refcounts.
pub const IMAGE_LAZY_REFCOUNTS: u32 = 1 << 2;
/// [`ImageRecord::flags`]: extended L2 entries.
pub const IMAGE_EXTENDED_L2: u32 = 1 << 3;
/// [`ImageRecord::flags`]: an external data file is used.
pub const IMAGE_DATA_FILE: u32 = 1 << 4;
/// [`ImageRecord::flags`]: the external data file is raw.
pub const IMAGE_DATA_FILE_RAW: u32 = 1 << 5;
/// [`ImageRecord::flags`]: the backing file's name is there.
pub const IMAGE_BACKING: u32 = 1 << 6;
/// [`ImageRecord::flags`]: the backing file's format is there.
pub const IMAGE_BACKING_FORMAT: u32 = 1 << 7;
/// [`ImageRecord::flags`]: the list of bitmaps is there, even if empty.
pub const IMAGE_BITMAPS: u32 = 1 << 8;
/// [`ImageRecord::flags`]: the data file's name is there.
pub const IMAGE_DATA_FILE_NAME: u32 = 1 << 9;

wire_enum! {
    /// [`ImageRecord::encryption`].
    pub enum Encryption: u32 {
        /// None.
        None = 0,
        /// The legacy AES of early qcow.
        Aes = 1,
        /// LUKS; a [`LuksRecord`] follows.
        Luks = 2,
    }
}

wire_enum! {
    /// [`ImageRecord::compression`].
    pub enum Compression: u32 {
        /// Deflate.
        Zlib = 0,
        /// Zstandard.
        Zstd = 1,
    }
}

wire_struct! {
    /// One image. The names of backing file, backing format and data file follow, in that order.
    pub struct ImageRecord {
        /// Slot of the image's file.
        pub slot: U32,
        /// An [`crate::op::ImageFormat`].
        pub format: U32,
        /// qcow2 version, 2 or 3; 0 for raw.
        pub version: U32,
        /// `IMAGE_*`.
        pub flags: U32,
        /// Guest-visible size in bytes.
        pub virtual_size: U64,
        /// Cluster size in bytes; 0 for raw.
        pub cluster_size: U64,
        /// Width of a refcount, 1 to 64; 0 for raw.
        pub refcount_bits: U32,
        /// A [`Compression`].
        pub compression: U32,
        /// An [`Encryption`].
        pub encryption: U32,
        /// Zero.
        pub reserved: [u8; 8],
        /// Length of the backing file's name.
        pub backing_len: U32,
        /// Length of the backing format's name.
        pub backing_format_len: U32,
        /// Length of the data file's name.
        pub data_file_len: U32,
    }
}
wire_layout!(ImageRecord, size = 64, {
    slot @ 0, format @ 4, version @ 8, flags @ 12, virtual_size @ 16, cluster_size @ 24, refcount_bits @ 32,
    compression @ 36, encryption @ 40, reserved @ 44, backing_len @ 52,
    backing_format_len @ 56, data_file_len @ 60,
});

/// [`SnapshotRecord::icount`] of a snapshot without an instruction count.
pub const NO_ICOUNT: u64 = u64::MAX;

wire_struct! {
    /// One internal snapshot. Its ID and name follow.
    pub struct SnapshotRecord {
        /// Size of the VM state in bytes.
        pub vm_state_size: U64,
        /// When it was taken, seconds since 1970-01-01 UTC.
        pub date_sec: U32,
        /// And nanoseconds.
        pub date_nsec: U32,
        /// Guest run time in nanoseconds.
        pub vm_clock_nsec: U64,
        /// Instruction count, or [`NO_ICOUNT`].
        pub icount: U64,
        /// Virtual disk size in bytes when it was taken.
        pub disk_size: U64,
        /// Length of the ID.
        pub id_len: U32,
        /// Length of the name.
        pub name_len: U32,
    }
}
wire_layout!(SnapshotRecord, size = 48, {
    vm_state_size @ 0, date_sec @ 8, date_nsec @ 12, vm_clock_nsec @ 16, icount @ 24, disk_size @ 32,
    id_len @ 40, name_len @ 44,
});

/// [`BitmapRecord::flags`]: in use, so its content is not to be trusted.
pub const BITMAP_IN_USE: u32 = 1 << 0;
/// [`BitmapRecord::flags`]: tracks writes from the start.
pub const BITMAP_AUTO: u32 = 1 << 1;

wire_struct! {
    /// One persistent bitmap. Its name follows.
    pub struct BitmapRecord {
        /// `BITMAP_*`.
        pub flags: U32,
        /// Length of the name.
        pub name_len: U32,
        /// Bytes per bit.
        pub granularity: U64,
    }
}
wire_layout!(BitmapRecord, size = 16, { flags @ 0, name_len @ 4, granularity @ 8 });

/// Key slots of a LUKS1 header.
pub const LUKS_SLOTS: usize = 8;
/// Longest algorithm name in a [`LuksRecord`], NUL-padded.
pub const LUKS_NAME_BYTES: usize = 32;

wire_struct! {
    /// A key slot.
    pub struct LuksSlotRecord {
        /// 1 if it holds a key.
        pub active: U32,
        /// PBKDF2 iterations.
        pub iterations: U32,
        /// Stripes of the split key.
        pub stripes: U32,
        /// Zero.
        pub reserved: U32,
        /// Where the split key lies, bytes from the header's start.
        pub key_offset: U64,
    }
}
wire_layout!(LuksSlotRecord, size = 24, { active @ 0, iterations @ 4, stripes @ 8, reserved @ 12, key_offset @ 16 });

wire_struct! {
    /// The LUKS1 header of an encrypted image, in qemu's names.
    pub struct LuksRecord {
        /// Cipher, e.g. `aes-256`.
        pub cipher_alg: [u8; LUKS_NAME_BYTES],
        /// Mode, e.g. `xts`.
        pub cipher_mode: [u8; LUKS_NAME_BYTES],
        /// IV generator, e.g. `plain64`.
        pub ivgen_alg: [u8; LUKS_NAME_BYTES],
        /// Hash of the IV generator (`essiv`), all zero if none.
        pub ivgen_hash_alg: [u8; LUKS_NAME_BYTES],
        /// Hash, e.g. `sha256`.
        pub hash_alg: [u8; LUKS_NAME_BYTES],
        /// UUID as text, NUL-padded.
        pub uuid: [u8; 40],
        /// Where the payload starts, bytes from the header's start.
        pub payload_offset: U64,
        /// PBKDF2 iterations of the master key digest.
        pub master_key_iterations: U32,
        /// Zero.
        pub reserved: U32,
        /// The key slots.
        pub slots: [LuksSlotRecord; LUKS_SLOTS],
    }
}
wire_layout!(LuksRecord, size = 408, {
    cipher_alg @ 0, cipher_mode @ 32, ivgen_alg @ 64, ivgen_hash_alg @ 96, hash_alg @ 128, uuid @ 160,
    payload_offset @ 200, master_key_iterations @ 208, reserved @ 212, slots @ 216,
});
