//! Bitmaps: their directory, tables and data clusters. qcow2 "Bitmaps".
//!
//! An image whose bitmaps are consistent and not in use is refused when it is
//! opened if one of them is damaged. What is left to find here is damage of
//! bitmaps in use.

use crate::counter::Counter;
use crate::run::{EINVAL, Run, TABLE_BYTES, What, zeroed};
use crate::{CheckError, Reporter};
use alloc::vec::Vec;
use instar_qcow2::bits;
use instar_qcow2::entries::OFFSET_MASK;
use instar_storage::Storage;

/// Bytes of a directory entry before its extra data.
const ENTRY_BYTES: u64 = 24;
/// QEMU: the most entries of a bitmap table.
const MAX_TABLE_ENTRIES: u32 = 0x800_0000;
/// Reserved bits of a bitmap table entry.
const RESERVED: u64 = bits(1, 8) | bits(56, 63);
/// Bit 0 of a bitmap table entry without offset: all bits are ones.
const ALL_ONES: u64 = 1;

const DAMAGED: CheckError = CheckError::Failed { errno: EINVAL };

/// What the check needs of a directory entry.
struct Bitmap {
    table_offset: u64,
    table_entries: u32,
    /// Bytes of the entry with its padding.
    bytes: u64,
}

fn parse(entry: &[u8]) -> Option<Bitmap> {
    let (offset, rest) = entry.split_first_chunk::<8>()?;
    let (entries, rest) = rest.split_first_chunk::<4>()?;
    let (name_len, rest) = rest.get(6..)?.split_first_chunk::<2>()?;
    let (extra, _) = rest.split_first_chunk::<4>()?;
    let bytes = ENTRY_BYTES
        .checked_add(u32::from_be_bytes(*extra).into())?
        .checked_add(u16::from_be_bytes(*name_len).into())?
        .checked_next_multiple_of(8)?;
    Some(Bitmap {
        table_offset: u64::from_be_bytes(*offset),
        table_entries: u32::from_be_bytes(*entries),
        bytes,
    })
}

impl<S: Storage, T: Counter, R: Reporter> Run<'_, S, T, R> {
    /// Counts the bitmap directory, the bitmap tables and the bitmaps' data.
    pub(crate) fn count_bitmaps(&mut self) -> Result<(), CheckError> {
        let Some(extension) = &self.header.extensions.bitmaps else {
            return Ok(());
        };
        if extension.nb_bitmaps == 0 {
            return Ok(());
        }
        let (start, size) = (extension.directory_offset.get(), extension.directory_size);
        self.count_table_region(start, size)?;
        // The header reader has refused a directory above 64 MiB.
        let mut at = 0;
        let mut buf = zeroed(TABLE_BYTES.min(size))?;
        let mut window: Option<u64> = None;
        while at < size {
            let held = window.is_some_and(|from| {
                at >= from
                    && at.saturating_add(ENTRY_BYTES) <= from.saturating_add(buf.len() as u64)
            });
            if !held {
                self.read(start.saturating_add(at), &mut buf)
                    .map_err(|e| CheckError::Failed { errno: e.errno })?;
                window = Some(at);
            }
            let from =
                usize::try_from(at.saturating_sub(window.unwrap_or(at))).map_err(|_| DAMAGED)?;
            let bitmap = buf.get(from..).and_then(parse).ok_or(DAMAGED)?;
            at = at.saturating_add(bitmap.bytes);
            if at > size || bitmap.table_entries > MAX_TABLE_ENTRIES {
                return Err(DAMAGED);
            }
            self.count_bitmap(&bitmap)?;
        }
        Ok(())
    }

    fn count_bitmap(&mut self, bitmap: &Bitmap) -> Result<(), CheckError> {
        let bytes = u64::from(bitmap.table_entries).saturating_mul(8);
        self.count_table_region(bitmap.table_offset, bytes)?;
        let mut piece: Vec<u8> = zeroed(TABLE_BYTES.min(bytes))?;
        let mut at = 0_u64;
        while at < bytes {
            let len = TABLE_BYTES.min(bytes.saturating_sub(at));
            let offset = bitmap.table_offset.saturating_add(at);
            let piece = piece
                .get_mut(..usize::try_from(len).unwrap_or(0))
                .unwrap_or_default();
            at = at.saturating_add(len);
            self.out.progress(0)?;
            let in_range = crate::run::check_range(offset, len);
            if in_range.is_ok() && self.holes.are_zeros(self.storage, offset, len) {
                continue;
            }
            self.read(offset, piece)
                .map_err(|e| CheckError::Failed { errno: e.errno })?;
            self.holes.saw(instar_storage::bytes::is_zero(piece));
            self.count_bitmap_piece(piece)?;
        }
        Ok(())
    }

    fn count_bitmap_piece(&mut self, piece: &[u8]) -> Result<(), CheckError> {
        let cluster_bits = self.header.cluster_bits;
        for entry in piece.as_chunks::<8>().0 {
            let entry = u64::from_be_bytes(*entry);
            let offset = entry & OFFSET_MASK;
            let damaged = entry & RESERVED != 0
                || !cluster_bits.is_aligned(offset)
                || (offset != 0 && entry & ALL_ONES != 0);
            if damaged {
                return Err(DAMAGED);
            }
            if offset != 0 && self.what != What::Tables {
                self.count_region(offset, cluster_bits.size_bytes())?;
            }
        }
        Ok(())
    }
}
