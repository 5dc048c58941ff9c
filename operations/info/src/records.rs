//! The records of `info`, filled from what the format crates found.

use instar_guest_ops::Disk;
use instar_guest_ops::shared::zerocopy::IntoBytes;
use instar_guest_ops::storage::Storage;
use instar_luks::LuksInfo;
use instar_qcow2::bitmaps::Bitmap;
use instar_qcow2::header::CompressionType;
use instar_qcow2::info::{Encryption as Found, ImageInfo};
use instar_qcow2::snapshot::Snapshot;
use instar_raw::RawInfo;
use instar_shared::info::{
    BITMAP_AUTO, BITMAP_IN_USE, BitmapRecord, Compression, Encryption, IMAGE_BACKING,
    IMAGE_BACKING_FORMAT, IMAGE_BITMAPS, IMAGE_CORRUPT, IMAGE_DATA_FILE, IMAGE_DATA_FILE_NAME,
    IMAGE_DATA_FILE_RAW, IMAGE_DIRTY, IMAGE_EXTENDED_L2, IMAGE_LAZY_REFCOUNTS, ImageRecord,
    LUKS_NAME_BYTES, LuksRecord, SnapshotRecord,
};
use instar_shared::op::ImageFormat;
use op_chain::snapshot_record;

/// A fixed part as the bytes of a record.
#[derive(Clone, Copy)]
pub struct Fixed<T>(T);

impl<T: IntoBytes + instar_guest_ops::shared::zerocopy::Immutable> Fixed<T> {
    /// Its bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// A raw image: its size in whole sectors.
pub fn raw_image(disk: &Disk) -> Fixed<ImageRecord> {
    Fixed(ImageRecord {
        slot: u32::from(disk.slot()).into(),
        format: ImageFormat::Raw.raw().into(),
        virtual_size: RawInfo::new(disk.len_bytes()).virtual_size().into(),
        ..ImageRecord::zeroed()
    })
}

impl Fixed<ImageRecord> {
    /// The fixed part and the names that follow it.
    pub fn parts<'a>(&'a self, info: &'a ImageInfo) -> [&'a [u8]; 4] {
        let name = |name: Option<&'a [u8]>| name.unwrap_or_default();
        [
            self.as_slice(),
            name(info.backing_file()),
            name(info.backing_format()),
            name(info.data_file()),
        ]
    }
}

/// A qcow2 image.
pub fn qcow2_image(disk: &Disk, info: &ImageInfo) -> Fixed<ImageRecord> {
    let len =
        |name: Option<&[u8]>| u32::try_from(name.unwrap_or_default().len()).unwrap_or(u32::MAX);
    let compression = match info.header.compression_type {
        CompressionType::Zlib => Compression::Zlib,
        CompressionType::Zstd => Compression::Zstd,
    };
    let encryption = match info.encryption {
        None => Encryption::None,
        Some(Found::Aes) => Encryption::Aes,
        Some(Found::Luks(_)) => Encryption::Luks,
    };
    Fixed(ImageRecord {
        slot: u32::from(disk.slot()).into(),
        format: ImageFormat::Qcow2.raw().into(),
        version: info.header.version.into(),
        flags: flags(info).into(),
        virtual_size: info.virtual_size().into(),
        cluster_size: info.cluster_size().into(),
        refcount_bits: info.refcount_bits().into(),
        compression: compression.raw().into(),
        encryption: encryption.raw().into(),
        backing_len: len(info.backing_file()).into(),
        backing_format_len: len(info.backing_format()).into(),
        data_file_len: len(info.data_file()).into(),
        ..ImageRecord::zeroed()
    })
}

fn flags(info: &ImageInfo) -> u32 {
    let yes = |value: Option<bool>| value == Some(true);
    [
        (info.dirty_flag(), IMAGE_DIRTY),
        (yes(info.corrupt()), IMAGE_CORRUPT),
        (yes(info.lazy_refcounts()), IMAGE_LAZY_REFCOUNTS),
        (yes(info.extended_l2()), IMAGE_EXTENDED_L2),
        (info.data_file_raw().is_some(), IMAGE_DATA_FILE),
        (yes(info.data_file_raw()), IMAGE_DATA_FILE_RAW),
        (info.backing_file().is_some(), IMAGE_BACKING),
        (info.backing_format().is_some(), IMAGE_BACKING_FORMAT),
        (info.header.extensions.bitmaps.is_some(), IMAGE_BITMAPS),
        (info.data_file().is_some(), IMAGE_DATA_FILE_NAME),
    ]
    .into_iter()
    .fold(0, |flags, (set, bit)| if set { flags | bit } else { flags })
}

/// The LUKS header of an image that has one.
pub fn luks(info: &ImageInfo) -> Option<Fixed<LuksRecord>> {
    let Some(Found::Luks(luks)) = &info.encryption else {
        return None;
    };
    let mut record = LuksRecord {
        cipher_alg: padded(luks.cipher.name()),
        cipher_mode: padded(luks.mode.name()),
        ivgen_alg: padded(luks.iv_generator.name()),
        ivgen_hash_alg: padded(luks.iv_generator_hash.map_or("", |hash| hash.name())),
        hash_alg: padded(luks.hash.name()),
        payload_offset: luks.payload_offset.into(),
        master_key_iterations: luks.master_key_iterations.into(),
        ..LuksRecord::zeroed()
    };
    copy(&mut record.uuid, luks.uuid());
    fill_slots(&mut record, luks);
    Some(Fixed(record))
}

fn fill_slots(record: &mut LuksRecord, luks: &LuksInfo) {
    for (to, from) in record.slots.iter_mut().zip(&luks.slots) {
        to.active.set(u32::from(from.active));
        to.iterations.set(from.iterations);
        to.stripes.set(from.stripes);
        to.key_offset.set(from.key_offset);
    }
}

fn padded(name: &str) -> [u8; LUKS_NAME_BYTES] {
    let mut out = [0; LUKS_NAME_BYTES];
    copy(&mut out, name.as_bytes());
    out
}

fn copy(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

/// An internal snapshot; its ID and name follow.
pub fn snapshot(snapshot: &Snapshot) -> Fixed<SnapshotRecord> {
    Fixed(snapshot_record(snapshot))
}

/// A bitmap; its name follows.
pub fn bitmap(bitmap: &Bitmap) -> Fixed<BitmapRecord> {
    let flag = |set: bool, bit: u32| if set { bit } else { 0 };
    let flags = flag(bitmap.in_use(), BITMAP_IN_USE) | flag(bitmap.auto(), BITMAP_AUTO);
    Fixed(BitmapRecord {
        flags: flags.into(),
        name_len: u32::try_from(bitmap.name.len()).unwrap_or(u32::MAX).into(),
        granularity: bitmap.granularity_bytes().into(),
    })
}
