//! What the records of the `info` operation say, after validation.
//!
//! Every field comes from a guest that may be hostile: an unknown value, a
//! length that does not fit or a file that does not exist ends the operation.

use crate::text::until_nul;
use instar_shared::info::{self as wire, Compression, Encryption};
use instar_shared::op::ImageFormat;
use instar_shared::record::RecordKind;
use instar_shared::zerocopy::FromBytes;

/// Longest chain that is described: the size of the device table.
const MAX_IMAGES: usize = 1024;
/// Most snapshots of one image (qcow2: 65536 in QEMU).
const MAX_SNAPSHOTS: usize = 65536;
/// Most bitmaps of one image (qcow2: 65535 in QEMU).
const MAX_BITMAPS: usize = 65535;
/// Memory for everything that records say, in bytes; bitmap names alone may be 64 MiB.
const MAX_BYTES: usize = 128 << 20;
/// Bytes of a snapshot's ID that are shown.
const SNAPSHOT_ID_BYTES: usize = 127;
/// Bytes of a snapshot's name that are shown.
const SNAPSHOT_NAME_BYTES: usize = 255;
/// Largest size of anything: sizes are signed 64-bit numbers to other programs.
const MAX_SIZE: u64 = i64::MAX.unsigned_abs();
/// Every flag of an image record.
const IMAGE_FLAGS: u32 = (wire::IMAGE_DATA_FILE_NAME << 1) - 1;

/// Why a record was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The payload is shorter or longer than its own lengths say.
    #[error("the record's length is wrong")]
    Length,
    /// A field has a value that does not exist.
    #[error("{field} is {value}, which does not exist")]
    Value {
        /// Name of the field.
        field: &'static str,
        /// What stood there.
        value: u64,
    },
    /// A slot without a file.
    #[error("slot {0} has no file")]
    NoFile(u32),
    /// The second description of one file.
    #[error("slot {0} is described twice")]
    Twice(u32),
    /// A detail without an image before it.
    #[error("the record belongs to no image")]
    NoImage,
    /// More of something than can be.
    #[error("there are too many {0}")]
    TooMany(&'static str),
    /// A name with characters that the field cannot have.
    #[error("{0} is not a name")]
    Name(&'static str),
    /// A kind that this operation does not send.
    #[error("records of this kind do not belong to this operation")]
    Kind,
}

/// A backing file's name and format as the image states them.
#[derive(Debug, PartialEq, Eq)]
pub struct Backing {
    /// The name, never empty.
    pub name: Vec<u8>,
    /// The format's name, if one stands there.
    pub format: Option<Vec<u8>>,
}

/// What only qcow2 images have.
#[derive(Debug, PartialEq, Eq)]
pub struct Qcow2 {
    /// Version 3 rather than 2.
    pub version3: bool,
    /// `IMAGE_*` of the record.
    pub flags: u32,
    /// Cluster size in bytes.
    pub cluster_size: u64,
    /// Width of a refcount.
    pub refcount_bits: u32,
    /// How compressed clusters are compressed.
    pub compression: Compression,
    /// How the content is encrypted.
    pub encryption: Encryption,
    /// Name of the external data file.
    pub data_file: Option<Vec<u8>>,
    /// The bitmaps, if the image has a list of them.
    pub bitmaps: Option<Vec<Bitmap>>,
    /// The LUKS header.
    pub luks: Option<Box<wire::LuksRecord>>,
}

impl Qcow2 {
    /// Whether all bits of `flag` are set.
    #[must_use]
    pub fn has(&self, flag: u32) -> bool {
        self.flags & flag == flag
    }
}

/// One image.
#[derive(Debug, PartialEq, Eq)]
pub struct Image {
    /// Slot of its file.
    pub slot: u32,
    /// Guest-visible size in bytes.
    pub virtual_size: u64,
    /// Its backing file.
    pub backing: Option<Backing>,
    /// Its internal snapshots.
    pub snapshots: Vec<Snapshot>,
    /// What qcow2 adds; none for raw.
    pub qcow2: Option<Qcow2>,
}

/// An internal snapshot.
#[derive(Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Identifier.
    pub id: Box<[u8]>,
    /// Name.
    pub name: Box<[u8]>,
    /// Numbers, as sent.
    pub numbers: wire::SnapshotRecord,
}

/// A persistent bitmap.
#[derive(Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Name.
    pub name: Box<[u8]>,
    /// `BITMAP_*`.
    pub flags: u32,
    /// Bytes per bit.
    pub granularity: u64,
}

/// The chain so far.
#[derive(Debug, Default)]
pub struct Chain {
    images: Vec<Image>,
    bytes: usize,
}

impl Chain {
    /// The images, first the one that the user named.
    #[must_use]
    pub fn images(&self) -> &[Image] {
        &self.images
    }

    /// Takes one record over. `has_file` says whether a slot has a file.
    ///
    /// # Errors
    /// What is wrong with the record; the chain is then unchanged.
    pub fn add(
        &mut self,
        kind: RecordKind,
        payload: &[u8],
        has_file: &dyn Fn(u32) -> bool,
    ) -> Result<(), RecordError> {
        let bytes = self.bytes.saturating_add(payload.len()).saturating_add(128);
        if bytes > MAX_BYTES {
            return Err(RecordError::TooMany("names"));
        }
        match kind {
            RecordKind::Image => self.add_image(payload, has_file)?,
            RecordKind::Snapshot => self.add_snapshot(payload)?,
            RecordKind::Bitmap => self.add_bitmap(payload)?,
            RecordKind::Luks => self.add_luks(payload)?,
            _ => return Err(RecordError::Kind),
        }
        self.bytes = bytes;
        Ok(())
    }

    fn add_image(
        &mut self,
        payload: &[u8],
        has_file: &dyn Fn(u32) -> bool,
    ) -> Result<(), RecordError> {
        if self.images.len() >= MAX_IMAGES {
            return Err(RecordError::TooMany("images"));
        }
        let image = parse_image(payload)?;
        if !has_file(image.slot) {
            return Err(RecordError::NoFile(image.slot));
        }
        if self.images.iter().any(|other| other.slot == image.slot) {
            return Err(RecordError::Twice(image.slot));
        }
        self.images.push(image);
        Ok(())
    }

    fn add_snapshot(&mut self, payload: &[u8]) -> Result<(), RecordError> {
        let image = self.last_qcow2()?;
        if image.snapshots.len() >= MAX_SNAPSHOTS {
            return Err(RecordError::TooMany("snapshots"));
        }
        image.snapshots.push(parse_snapshot(payload)?);
        Ok(())
    }

    fn add_bitmap(&mut self, payload: &[u8]) -> Result<(), RecordError> {
        let (record, rest) =
            wire::BitmapRecord::read_from_prefix(payload).map_err(|_| RecordError::Length)?;
        let (name, rest) = take(rest, record.name_len.get())?;
        at_end(rest)?;
        let flags = known_flags(
            "a bitmap's flags",
            record.flags.get(),
            wire::BITMAP_IN_USE | wire::BITMAP_AUTO,
        )?;
        let granularity = size("a bitmap's granularity", record.granularity.get())?;
        let bitmap = Bitmap {
            name: until_nul(name).into(),
            flags,
            granularity,
        };
        let bitmaps = self
            .last_qcow2()?
            .qcow2
            .as_mut()
            .and_then(|q| q.bitmaps.as_mut());
        let bitmaps = bitmaps.ok_or(RecordError::NoImage)?;
        if bitmaps.len() >= MAX_BITMAPS {
            return Err(RecordError::TooMany("bitmaps"));
        }
        bitmaps.push(bitmap);
        Ok(())
    }

    fn add_luks(&mut self, payload: &[u8]) -> Result<(), RecordError> {
        let record = wire::LuksRecord::read_from_bytes(payload).map_err(|_| RecordError::Length)?;
        // The operation's own words; the UUID is the image's, any bytes.
        for (field, name) in [
            ("the cipher algorithm", &record.cipher_alg[..]),
            ("the cipher mode", &record.cipher_mode[..]),
            ("the IV generator", &record.ivgen_alg[..]),
            ("the IV generator's hash", &record.ivgen_hash_alg[..]),
            ("the hash", &record.hash_alg[..]),
        ] {
            if !until_nul(name)
                .iter()
                .all(|byte| (b' '..=b'~').contains(byte))
            {
                return Err(RecordError::Name(field));
            }
        }
        for slot in &record.slots {
            one_of("a key slot's state", slot.active.get().into(), &[0, 1])?;
            size("a key slot's offset", slot.key_offset.get())?;
        }
        size("the payload's offset", record.payload_offset.get())?;
        let qcow2 = self.last_qcow2()?.qcow2.as_mut();
        let qcow2 = qcow2.filter(|q| q.encryption == Encryption::Luks && q.luks.is_none());
        qcow2.ok_or(RecordError::NoImage)?.luks = Some(Box::new(record));
        Ok(())
    }

    fn last_qcow2(&mut self) -> Result<&mut Image, RecordError> {
        let last = self.images.last_mut().filter(|image| image.qcow2.is_some());
        last.ok_or(RecordError::NoImage)
    }
}

/// Snapshots without the image around them.
#[derive(Debug, Default)]
pub struct Snapshots {
    list: Vec<Snapshot>,
}

impl Snapshots {
    /// The snapshots, in the image's order.
    #[must_use]
    pub fn all(&self) -> &[Snapshot] {
        &self.list
    }

    /// Takes the payload of one record over.
    ///
    /// # Errors
    /// What is wrong with the record.
    pub fn add(&mut self, payload: &[u8]) -> Result<(), RecordError> {
        if self.list.len() >= MAX_SNAPSHOTS {
            return Err(RecordError::TooMany("snapshots"));
        }
        self.list.push(parse_snapshot(payload)?);
        Ok(())
    }
}

/// Reads and validates a snapshot record and the names behind it.
fn parse_snapshot(payload: &[u8]) -> Result<Snapshot, RecordError> {
    let (numbers, rest) =
        wire::SnapshotRecord::read_from_prefix(payload).map_err(|_| RecordError::Length)?;
    let (id, rest) = take(rest, numbers.id_len.get())?;
    let (name, rest) = take(rest, numbers.name_len.get())?;
    at_end(rest)?;
    Ok(Snapshot {
        id: shown(id, SNAPSHOT_ID_BYTES).into(),
        name: shown(name, SNAPSHOT_NAME_BYTES).into(),
        numbers,
    })
}

/// Reads and validates an image record and the names behind it.
fn parse_image(payload: &[u8]) -> Result<Image, RecordError> {
    let (record, rest) =
        wire::ImageRecord::read_from_prefix(payload).map_err(|_| RecordError::Length)?;
    let (backing, rest) = take(rest, record.backing_len.get())?;
    let (backing_format, rest) = take(rest, record.backing_format_len.get())?;
    let (data_file, rest) = take(rest, record.data_file_len.get())?;
    at_end(rest)?;
    let reserved = u64::from_le_bytes(record.reserved);
    one_of("an image's reserved field", reserved, &[0])?;
    let flags = known_flags("an image's flags", record.flags.get(), IMAGE_FLAGS)?;
    let name = |flag: u32, bytes: &[u8]| match (flags & flag != 0, until_nul(bytes)) {
        (false, _) if !bytes.is_empty() => Err(RecordError::Length),
        (true, name) if !name.is_empty() => Ok(Some(name.to_vec())),
        _ => Ok(None),
    };
    let format = name(wire::IMAGE_BACKING_FORMAT, backing_format)?;
    let backing = name(wire::IMAGE_BACKING, backing)?.map(|name| Backing { name, format });
    // Unlike the others, this name is shown even if it is empty.
    let data_file = match flags & wire::IMAGE_DATA_FILE_NAME {
        0 => name(wire::IMAGE_DATA_FILE_NAME, data_file)?,
        _ => Some(until_nul(data_file).to_vec()),
    };
    let qcow2 = match ImageFormat::try_from(record.format.get()) {
        Ok(ImageFormat::Qcow2) => Some(parse_qcow2(&record, flags, data_file)?),
        Ok(ImageFormat::Raw) => {
            raw_fields(&record, flags)?;
            None
        }
        _ => return Err(value("an image's format", record.format.get().into())),
    };
    let virtual_size = size("an image's size", record.virtual_size.get())?;
    Ok(Image {
        slot: record.slot.get(),
        // A raw image is as long as its file, and lengths are whole sectors to other programs.
        virtual_size: if qcow2.is_none() {
            whole_sectors(virtual_size)
        } else {
            virtual_size
        },
        backing,
        snapshots: Vec::new(),
        qcow2,
    })
}

/// The fields of a qcow2 image.
fn parse_qcow2(
    record: &wire::ImageRecord,
    flags: u32,
    data_file: Option<Vec<u8>>,
) -> Result<Qcow2, RecordError> {
    let version = one_of("a qcow2 version", record.version.get().into(), &[2, 3])?;
    let cluster_size = record.cluster_size.get();
    if !cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&cluster_size) {
        return Err(value("a cluster size", cluster_size));
    }
    let refcount_bits = record.refcount_bits.get();
    if !refcount_bits.is_power_of_two() || refcount_bits > 64 {
        return Err(value("a refcount's width", refcount_bits.into()));
    }
    Ok(Qcow2 {
        version3: version == 3,
        flags,
        cluster_size,
        refcount_bits,
        compression: Compression::try_from(record.compression.get())
            .map_err(|raw| value("a compression type", raw.into()))?,
        encryption: Encryption::try_from(record.encryption.get())
            .map_err(|raw| value("an encryption method", raw.into()))?,
        data_file,
        bitmaps: (flags & wire::IMAGE_BITMAPS != 0).then(Vec::new),
        luks: None,
    })
}

/// Checks that a raw image claims nothing that raw images cannot have.
fn raw_fields(record: &wire::ImageRecord, flags: u32) -> Result<(), RecordError> {
    one_of("a raw image's flags", flags.into(), &[0])?;
    one_of("a raw image's version", record.version.get().into(), &[0])?;
    one_of(
        "a raw image's cluster size",
        record.cluster_size.get(),
        &[0],
    )?;
    one_of(
        "a raw image's encryption",
        record.encryption.get().into(),
        &[0],
    )?;
    Ok(())
}

/// Rounds a length up to whole 512-byte sectors.
#[must_use]
pub fn whole_sectors(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(512).unwrap_or(bytes)
}

/// The first `length` bytes, and what follows.
fn take(bytes: &[u8], length: u32) -> Result<(&[u8], &[u8]), RecordError> {
    let length = usize::try_from(length).map_err(|_| RecordError::Length)?;
    bytes.split_at_checked(length).ok_or(RecordError::Length)
}

fn at_end(rest: &[u8]) -> Result<(), RecordError> {
    rest.is_empty().then_some(()).ok_or(RecordError::Length)
}

/// The part of a C string that fits a field of `limit` bytes.
fn shown(bytes: &[u8], limit: usize) -> &[u8] {
    let text = until_nul(bytes);
    text.get(..limit).unwrap_or(text)
}

fn value(field: &'static str, value: u64) -> RecordError {
    RecordError::Value { field, value }
}

fn one_of(field: &'static str, raw: u64, allowed: &[u64]) -> Result<u64, RecordError> {
    if allowed.contains(&raw) {
        Ok(raw)
    } else {
        Err(value(field, raw))
    }
}

fn known_flags(field: &'static str, raw: u32, known: u32) -> Result<u32, RecordError> {
    if raw & !known == 0 {
        Ok(raw)
    } else {
        Err(value(field, raw.into()))
    }
}

fn size(field: &'static str, raw: u64) -> Result<u64, RecordError> {
    if raw <= MAX_SIZE {
        Ok(raw)
    } else {
        Err(value(field, raw))
    }
}

#[cfg(test)]
mod tests;
