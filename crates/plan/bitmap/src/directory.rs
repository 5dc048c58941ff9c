//! The bitmap directory as a list of entries of which one is looked for, and as bytes that are edited.

use crate::zeroed;
use alloc::vec::Vec;
use instar_plan_txn::TxnError;
use instar_qcow2::bitmaps::{Bitmap, BitmapDirectory, RawBitmap};
use instar_qcow2::extensions::BitmapsExtension;
use instar_qcow2::{Header, HostOffset};
use instar_storage::Storage;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of an entry before its name.
const ENTRY_BYTES: u64 = 24;
/// Flag bit 1: the bitmap records writes.
pub(crate) const FLAG_AUTO: u32 = 2;
/// The only type of bitmap: dirty tracking.
const TYPE_DIRTY_TRACKING: u8 = 1;

/// An entry, and where in the directory it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The entry.
    pub(crate) bitmap: Bitmap,
    /// Its first byte in the directory.
    pub(crate) at: u64,
    /// Its bytes, padding included.
    pub(crate) bytes: u64,
}

/// Bytes of an entry with a name of so many bytes.
pub(crate) const fn entry_bytes(name_len: u64) -> u64 {
    ENTRY_BYTES.saturating_add(name_len).next_multiple_of(8)
}

/// The first bitmap called `name` that starts at byte `from` of the directory or after it.
///
/// # Errors
/// The store's; the directory was judged when the image was opened.
pub(crate) fn find<S: Storage>(
    storage: &S,
    header: &Header,
    name: &[u8],
    from: u64,
) -> Result<Option<Place>, TxnError> {
    let Some(extension) = header.extensions.bitmaps else {
        return Ok(None);
    };
    let mut at = 0_u64;
    for bitmap in BitmapDirectory::new(storage, extension) {
        let bitmap = bitmap.map_err(|_| TxnError::Corrupt {
            what: "bitmap directory",
        })?;
        let bytes = entry_bytes(bitmap.name_size.into());
        if at >= from && bitmap.name == name {
            return Ok(Some(Place { bitmap, at, bytes }));
        }
        at = at.saturating_add(bytes);
    }
    Ok(None)
}

/// The directory's bytes; none if there is no directory.
///
/// # Errors
/// The store's, or no memory.
pub(crate) fn read<S: Storage>(
    storage: &S,
    extension: Option<BitmapsExtension>,
) -> Result<Vec<u8>, TxnError> {
    let Some(extension) = extension else {
        return Ok(Vec::new());
    };
    let mut bytes = zeroed(extension.directory_size)?;
    storage.read_at(extension.directory_offset.get(), &mut bytes)?;
    Ok(bytes)
}

/// The fields of an entry that an edit sets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields {
    /// Where the bitmap table is.
    pub(crate) table_offset: HostOffset,
    /// Its entries.
    pub(crate) table_size: u32,
    /// Whether the bitmap records writes.
    pub(crate) auto: bool,
    /// Logarithm of the granularity.
    pub(crate) granularity_bits: u8,
}

/// A whole new entry.
pub(crate) fn encode(fields: Fields, name: &[u8]) -> Result<Vec<u8>, TxnError> {
    let name_size = u16::try_from(name.len()).map_err(|_| TxnError::TooLarge)?;
    let raw = RawBitmap {
        table_offset: U64::new(fields.table_offset.get()),
        table_size: U32::new(fields.table_size),
        flags: U32::new(if fields.auto { FLAG_AUTO } else { 0 }),
        bitmap_type: TYPE_DIRTY_TRACKING,
        granularity_bits: fields.granularity_bits,
        name_size: U16::new(name_size),
        extra_data_size: U32::ZERO,
    };
    let mut entry = zeroed(entry_bytes(name_size.into()))?;
    let (head, tail) = entry
        .split_at_mut_checked(raw.as_bytes().len())
        .ok_or(TxnError::TooLarge)?;
    head.copy_from_slice(raw.as_bytes());
    tail.iter_mut().zip(name).for_each(|(to, from)| *to = *from);
    Ok(entry)
}

/// Sets the fields of the entry at `place`; its name stays.
pub(crate) fn set_fields(
    directory: &mut [u8],
    place: &Place,
    fields: Fields,
) -> Result<(), TxnError> {
    let corrupt = || TxnError::Corrupt {
        what: "bitmap directory",
    };
    let at = usize::try_from(place.at).map_err(|_| corrupt())?;
    let head = directory
        .get_mut(at..)
        .and_then(|rest| rest.first_chunk_mut::<24>())
        .ok_or_else(corrupt)?;
    let raw = RawBitmap::mut_from_bytes(head).map_err(|_| corrupt())?;
    raw.table_offset.set(fields.table_offset.get());
    raw.table_size.set(fields.table_size);
    raw.flags.set(if fields.auto { FLAG_AUTO } else { 0 });
    raw.granularity_bits = fields.granularity_bits;
    Ok(())
}

/// Puts `entry` where `place` was; nothing, if `entry` is empty.
pub(crate) fn replace(
    directory: &mut Vec<u8>,
    place: &Place,
    entry: &[u8],
) -> Result<(), TxnError> {
    let range = usize::try_from(place.at)
        .ok()
        .zip(usize::try_from(place.at.saturating_add(place.bytes)).ok());
    let range = range.filter(|(start, end)| start <= end && *end <= directory.len());
    let Some((start, end)) = range else {
        return Err(TxnError::Corrupt {
            what: "bitmap directory",
        });
    };
    directory
        .try_reserve_exact(entry.len())
        .map_err(|_| TxnError::OutOfMemory)?;
    directory.splice(start..end, entry.iter().copied());
    Ok(())
}
