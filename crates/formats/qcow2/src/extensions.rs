//! Header extensions.
//!
//! qcow2 "Header extensions": a chain of (type, length, data padded to 8 bytes)
//! between the header and the backing file name, ended by type 0 or by the end
//! of the first cluster. Unknown types are skipped.

use crate::header::{OpenError, RawHeaderFields, ReadStage};
use crate::units::HostOffset;
use crate::window::Window;
use alloc::vec::Vec;
use instar_luks::LuksInfo;
use instar_storage::Storage;
use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// The end of the extension area.
pub const EXT_END: u32 = 0;
/// Backing file format name.
pub const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
/// Feature name table.
pub const EXT_FEATURE_TABLE: u32 = 0x6803_f857;
/// Bitmaps extension.
pub const EXT_BITMAPS: u32 = 0x2385_2875;
/// Full disk encryption header pointer.
pub const EXT_CRYPTO_HEADER: u32 = 0x0537_be77;
/// External data file name.
pub const EXT_DATA_FILE: u32 = 0x4441_5441;

/// QEMU: a backing format name is shorter than this many bytes.
pub const BACKING_FORMAT_LIMIT: u32 = 16;
/// QEMU: the most bitmaps an image may have.
pub const MAX_BITMAPS: u32 = 65_535;
/// QEMU: the most bytes a bitmap directory may have.
pub const MAX_BITMAP_DIRECTORY_BYTES: u64 = 65_535 * 1024;
/// Names of incompatible features kept for a refusal: one for each bit.
const MAX_FEATURE_NAMES: usize = 64;

/// Type and length before the data of each extension.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ExtensionHeader {
    /// Which extension.
    pub extension_type: U32,
    /// Bytes of data, padding not counted.
    pub length: U32,
}
wire_layout!(ExtensionHeader, size = 8, { extension_type @ 0, length @ 4 });

/// qcow2 "Bitmaps extension".
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RawBitmapsExtension {
    /// How many bitmaps the directory has.
    pub nb_bitmaps: U32,
    /// Must be 0.
    pub reserved: U32,
    /// Bytes of the bitmap directory.
    pub directory_size: U64,
    /// Where the bitmap directory is; cluster-aligned.
    pub directory_offset: U64,
}
wire_layout!(RawBitmapsExtension, size = 24, {
    nb_bitmaps @ 0, reserved @ 4, directory_size @ 8, directory_offset @ 16,
});

/// qcow2 "Full disk encryption header pointer".
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RawCryptoHeaderPointer {
    /// Where the encryption header is; cluster-aligned.
    pub offset: U64,
    /// Its length in bytes.
    pub length: U64,
}
wire_layout!(RawCryptoHeaderPointer, size = 16, { offset @ 0, length @ 8 });

/// One entry of the feature name table.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RawFeatureName {
    /// 0 incompatible, 1 compatible, 2 autoclear.
    pub feature_type: u8,
    /// Bit number within that bitmap.
    pub bit: u8,
    /// The name, padded with zeros.
    pub name: [u8; 46],
}
wire_layout!(RawFeatureName, size = 48, { feature_type @ 0, bit @ 1, name @ 2 });

/// A run of bytes inside the first cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// First byte.
    pub offset: HostOffset,
    /// Length in bytes; the run ends inside the first cluster.
    pub len: u32,
}

/// Where the LUKS header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CryptoHeader {
    /// A multiple of the cluster size, otherwise anything.
    pub offset: HostOffset,
    /// Bytes; anything.
    pub length: u64,
}

/// The bitmaps extension of an image whose bitmaps are to be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapsExtension {
    /// 1..=[`MAX_BITMAPS`].
    pub nb_bitmaps: u32,
    /// Bytes, at most [`MAX_BITMAP_DIRECTORY_BYTES`]; may be 0.
    pub directory_size: u64,
    /// A multiple of the cluster size, otherwise anything.
    pub directory_offset: HostOffset,
}

/// Why a bitmaps extension that is there is not used. `Display` is the text that
/// `qemu-img` prints after `qemu-img: warning: `.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BitmapsIgnored {
    /// The autoclear bit is clear: a program that does not know bitmaps wrote.
    #[error(
        "a program lacking bitmap support modified this file, so all bitmaps are now \
         considered inconsistent\nSome clusters may be leaked, run 'qemu-img check -r' \
         on the image file to fix."
    )]
    AutoclearBitClear,
    /// Version 2 has no autoclear bits.
    #[error(
        "This qcow2 v2 image contains bitmaps, but they may have been modified by a program \
         without persistent bitmap support; so now they must all be considered inconsistent\n\
         Some clusters may be leaked, run 'qemu-img check -r' on the image file to fix."
    )]
    Version2,
}

/// All extensions that mean something to `info` or `check`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// The backing format name, up to its first NUL; shorter than
    /// [`BACKING_FORMAT_LIMIT`].
    pub backing_format: Option<Vec<u8>>,
    /// Where the feature name table is.
    pub feature_name_table: Option<Area>,
    /// Where the LUKS header is; only with crypt method 2.
    pub crypto_header: Option<CryptoHeader>,
    /// The bitmaps, where they can be trusted.
    pub bitmaps: Option<BitmapsExtension>,
    /// A bitmaps extension is there and is not used; a warning is due.
    pub bitmaps_ignored: Option<BitmapsIgnored>,
    /// The external data file's name, up to its first NUL; shorter than a
    /// cluster. There is such a file only where the incompatible feature bit says
    /// so, but the name is shown without it as well.
    pub data_file_name: Option<Vec<u8>>,
}

/// Walks the extension area.
struct Chain {
    offset: u64,
    end: u64,
}

/// One step of the walk.
struct Extension {
    kind: u32,
    data_offset: u64,
    len: u32,
}

impl Chain {
    /// The next extension; `None` at the end of the chain.
    fn next<S: Storage>(
        &mut self,
        window: &mut Window<'_, S>,
    ) -> Result<Option<Extension>, OpenError> {
        if self.offset >= self.end {
            return Ok(None);
        }
        let mut raw = ExtensionHeader::new_zeroed();
        let stage = ReadStage::Extension {
            offset: self.offset,
        };
        window
            .read(self.offset, raw.as_mut_bytes())
            .map_err(|e| stage.failed(e))?;
        let len = raw.length.get();
        let data_offset = self.offset.saturating_add(8);
        // The type is not looked at before the length: an end mark with a length
        // past the area is refused as well.
        if data_offset > self.end || u64::from(len) > self.end.saturating_sub(data_offset) {
            return Err(OpenError::ExtensionTooLarge);
        }
        self.offset = data_offset.saturating_add(u64::from(len).next_multiple_of(8));
        let kind = raw.extension_type.get();
        Ok((kind != EXT_END).then_some(Extension {
            kind,
            data_offset,
            len,
        }))
    }
}

/// What the chain gives: the extensions, and the LUKS header that one points to.
pub(crate) struct Found {
    pub(crate) extensions: Extensions,
    pub(crate) luks: Option<LuksInfo>,
}

/// Reads the whole chain and checks what QEMU checks on the way; the LUKS header
/// is judged where the chain points to it, and not looked at if `is_keyless`.
pub(crate) fn read<S: Storage>(
    window: &mut Window<'_, S>,
    fields: &RawHeaderFields,
    is_keyless: bool,
) -> Result<Found, OpenError> {
    let mut found = Found {
        extensions: Extensions::default(),
        luks: None,
    };
    let mut chain = Chain {
        offset: fields.header_length,
        end: fields.extensions_end(),
    };
    while let Some(ext) = chain.next(window)? {
        found.extensions.take(window, fields, &ext)?;
        if let (EXT_CRYPTO_HEADER, Some(pointer)) = (ext.kind, found.extensions.crypto_header) {
            if is_keyless {
                return Err(OpenError::KeyRequired);
            }
            let (offset, room) = (pointer.offset.get(), pointer.length);
            found.luks = Some(LuksInfo::read(window.storage(), offset, room)?);
        }
    }
    Ok(found)
}

/// The feature name table, looked for only as far as the chain is sound.
pub(crate) fn find_feature_table<S: Storage>(
    window: &mut Window<'_, S>,
    fields: &RawHeaderFields,
) -> Option<Area> {
    let mut found = None;
    let mut chain = Chain {
        offset: fields.header_length,
        end: fields.extensions_end(),
    };
    while let Ok(Some(ext)) = chain.next(window) {
        match ext.kind {
            EXT_FEATURE_TABLE => found = Some(ext.area()),
            EXT_BACKING_FORMAT if ext.len >= BACKING_FORMAT_LIMIT => break,
            _ => {}
        }
    }
    found
}

impl Extension {
    const fn area(&self) -> Area {
        Area {
            offset: HostOffset(self.data_offset),
            len: self.len,
        }
    }

    /// The data up to its first NUL. It lies within the first cluster.
    fn read_name<S: Storage>(&self, window: &mut Window<'_, S>) -> Result<Vec<u8>, OpenError> {
        let len = usize::try_from(self.len).map_err(|_| OpenError::ExtensionTooLarge)?;
        let stage = ReadStage::Extension {
            offset: self.data_offset,
        };
        let mut name = window
            .read_vec(self.data_offset, len)
            .map_err(|e| stage.window(e))?;
        cut_at_nul(&mut name);
        Ok(name)
    }

    fn read_into<S: Storage>(
        &self,
        window: &mut Window<'_, S>,
        out: &mut [u8],
    ) -> Result<(), OpenError> {
        let stage = ReadStage::Extension {
            offset: self.data_offset,
        };
        window
            .read(self.data_offset, out)
            .map_err(|e| stage.failed(e))
    }
}

impl Extensions {
    fn take<S: Storage>(
        &mut self,
        window: &mut Window<'_, S>,
        fields: &RawHeaderFields,
        ext: &Extension,
    ) -> Result<(), OpenError> {
        match ext.kind {
            EXT_BACKING_FORMAT => {
                if ext.len >= BACKING_FORMAT_LIMIT {
                    return Err(OpenError::BackingFormatTooLong { len: ext.len });
                }
                self.backing_format = Some(ext.read_name(window)?);
            }
            EXT_FEATURE_TABLE => self.feature_name_table = Some(ext.area()),
            EXT_CRYPTO_HEADER => self.take_crypto_header(window, fields, ext)?,
            EXT_BITMAPS => self.take_bitmaps(window, fields, ext)?,
            EXT_DATA_FILE => {
                self.data_file_name = Some(ext.read_name(window)?);
            }
            _ => {}
        }
        Ok(())
    }

    fn take_crypto_header<S: Storage>(
        &mut self,
        window: &mut Window<'_, S>,
        fields: &RawHeaderFields,
        ext: &Extension,
    ) -> Result<(), OpenError> {
        if !fields.is_luks() {
            return Err(OpenError::CryptoHeaderUnexpected);
        }
        if ext.len != 16 {
            return Err(OpenError::CryptoHeaderSize { len: ext.len });
        }
        let mut raw = RawCryptoHeaderPointer::new_zeroed();
        ext.read_into(window, raw.as_mut_bytes())?;
        let offset = raw.offset.get();
        if !fields.cluster_bits.is_aligned(offset) {
            let cluster_size = fields.cluster_bits.size_bytes();
            return Err(OpenError::CryptoHeaderUnaligned {
                offset,
                cluster_size,
            });
        }
        let length = raw.length.get();
        self.crypto_header = Some(CryptoHeader {
            offset: HostOffset(offset),
            length,
        });
        Ok(())
    }

    fn take_bitmaps<S: Storage>(
        &mut self,
        window: &mut Window<'_, S>,
        fields: &RawHeaderFields,
        ext: &Extension,
    ) -> Result<(), OpenError> {
        if ext.len != 24 {
            return Err(OpenError::BitmapsExtensionLength);
        }
        if !fields.has_bitmaps_autoclear_bit() {
            self.bitmaps_ignored = Some(if fields.version == 2 {
                BitmapsIgnored::Version2
            } else {
                BitmapsIgnored::AutoclearBitClear
            });
            return Ok(());
        }
        let mut raw = RawBitmapsExtension::new_zeroed();
        ext.read_into(window, raw.as_mut_bytes())?;
        self.bitmaps = Some(checked_bitmaps(fields, &raw)?);
        Ok(())
    }
}

fn checked_bitmaps(
    fields: &RawHeaderFields,
    raw: &RawBitmapsExtension,
) -> Result<BitmapsExtension, OpenError> {
    let nb_bitmaps = raw.nb_bitmaps.get();
    let directory_size = raw.directory_size.get();
    let directory_offset = raw.directory_offset.get();
    if raw.reserved.get() != 0 {
        return Err(OpenError::BitmapsReservedField);
    }
    if nb_bitmaps > MAX_BITMAPS {
        return Err(OpenError::TooManyBitmaps { nb_bitmaps });
    }
    if nb_bitmaps == 0 {
        return Err(OpenError::ZeroBitmaps);
    }
    if !fields.cluster_bits.is_aligned(directory_offset) {
        return Err(OpenError::BitmapDirectoryOffset);
    }
    if directory_size > MAX_BITMAP_DIRECTORY_BYTES {
        return Err(OpenError::BitmapDirectoryTooLarge {
            size: directory_size,
        });
    }
    Ok(BitmapsExtension {
        nb_bitmaps,
        directory_size,
        directory_offset: HostOffset(directory_offset),
    })
}

/// Names the unsupported bits in `mask`: "six, seven, Unknown incompatible
/// feature: 300". Bits that no entry names are given as one hexadecimal number.
pub(crate) fn name_features<S: Storage>(
    window: &mut Window<'_, S>,
    table: Option<Area>,
    mut mask: u64,
) -> Vec<u8> {
    let mut text = Vec::new();
    let area = table.unwrap_or(Area {
        offset: HostOffset(0),
        len: 0,
    });
    let end = area.offset.get().saturating_add(u64::from(area.len));
    let mut at = area.offset.get();
    let mut named = 0_usize;
    while at < end && mask != 0 && named < MAX_FEATURE_NAMES {
        let Some(entry) = read_feature_name(window, at, end) else {
            break;
        };
        at = at.saturating_add(48);
        // QEMU takes the bit number modulo 64.
        let bit = 1_u64 << (entry.bit & 63);
        let name = entry.name.split(|b| *b == 0).next().unwrap_or_default();
        if entry.feature_type == 0 && mask & bit != 0 && !name.is_empty() {
            append_part(&mut text, name);
            mask &= !bit;
            named = named.saturating_add(1);
        }
    }
    if mask != 0 {
        append_part(&mut text, b"Unknown incompatible feature: ");
        append_hex(&mut text, mask);
    }
    text
}

/// An entry of the table, its end filled with zeros where the table is cut.
fn read_feature_name<S: Storage>(
    window: &mut Window<'_, S>,
    at: u64,
    end: u64,
) -> Option<RawFeatureName> {
    let mut entry = RawFeatureName::new_zeroed();
    window.read(at, entry.as_mut_bytes()).ok()?;
    let have = usize::try_from(end.saturating_sub(at))
        .unwrap_or(48)
        .min(48);
    entry.as_mut_bytes().get_mut(have..)?.fill(0);
    Some(entry)
}

fn append_part(text: &mut Vec<u8>, part: &[u8]) {
    if !text.is_empty() {
        text.extend_from_slice(b", ");
    }
    text.extend_from_slice(part);
}

/// Appends a number in hexadecimal, without leading zeros. `format!` would bring all that makes texts longer along.
fn append_hex(text: &mut Vec<u8>, number: u64) {
    let mut shift = u64::BITS.saturating_sub(number.leading_zeros());
    shift = shift.next_multiple_of(4);
    while shift > 0 {
        shift = shift.saturating_sub(4);
        let [low, ..] = (number >> shift).to_le_bytes();
        let digit = low & 15;
        text.push(digit.saturating_add(if digit < 10 { b'0' } else { b'a' - 10 }));
    }
}

/// Cuts a name at its first NUL, where a C string ends.
pub(crate) fn cut_at_nul(name: &mut Vec<u8>) {
    if let Some(end) = name.iter().position(|b| *b == 0) {
        name.truncate(end);
    }
}
