//! Persistent bitmaps of a new image.

use crate::pages::{set_entry, zeroed};
use crate::{CreateError, NewImage};
use alloc::vec::Vec;
use instar_qcow2::HostOffset;
use instar_qcow2::bitmaps::RawBitmap;
use instar_qcow2::extensions::BitmapsExtension;
use instar_storage::StorageMut;
use zerocopy::IntoBytes;
use zerocopy::big_endian::{U16, U32, U64};

/// Autoclear feature bit 0.
const BITMAPS: u64 = 1 << 0;
/// Bitmap table entry bit 0: without a cluster, all bits of the cluster are set.
const ALL_ONES: u64 = 1 << 0;
/// Flag bit 1: the bitmap records writes.
const FLAG_AUTO: u32 = 1 << 1;
/// The only type there is.
const TYPE_DIRTY_TRACKING: u8 = 1;

/// A bitmap of a new image: begun by [`NewImage::new_bitmap`], ended by [`NewImage::add_bitmap`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewBitmap {
    name: Vec<u8>,
    granularity_bits: u8,
    enabled: bool,
    /// Bitmap table, big endian.
    table: Vec<u8>,
}

impl<S: StorageMut> NewImage<'_, S> {
    /// Begins a bitmap, all of whose bits are clear. The name has 1 to 1023 bytes, `granularity_bits` is 9 to 31.
    ///
    /// # Errors
    /// The bitmap would have more than QEMU takes; no memory.
    pub fn new_bitmap(
        &self,
        name: &[u8],
        granularity_bits: u8,
        enabled: bool,
    ) -> Result<NewBitmap, CreateError> {
        let bits = self
            .header
            .virtual_size
            .div_ceil(1_u64.checked_shl(granularity_bits.into()).unwrap_or(1));
        let clusters = self.header.cluster_bits.clusters_for(bits.div_ceil(8));
        Ok(NewBitmap {
            name: name.to_vec(),
            granularity_bits,
            enabled,
            table: zeroed(clusters.saturating_mul(8))?,
        })
    }

    /// Sets the bits that cluster `index` of the bitmap's data holds: bit 0 of byte 0 is the first. `data` is a
    /// cluster, or shorter at the bitmap's end.
    ///
    /// # Errors
    /// The format's limits; the store's.
    pub fn put_bits(
        &mut self,
        bitmap: &mut NewBitmap,
        index: u64,
        data: &[u8],
    ) -> Result<(), CreateError> {
        let word = if data.iter().all(|byte| *byte == 0) {
            0
        } else if data.iter().all(|byte| *byte == u8::MAX) {
            ALL_ONES
        } else {
            let offset = self.refcounts.take(&mut self.pages, 1)?;
            let mut cluster = zeroed(self.header.cluster_bits.size_bytes())?;
            let front = cluster.get_mut(..data.len()).ok_or(CreateError::Range)?;
            front.copy_from_slice(data);
            self.image.write_at(offset, &cluster)?;
            offset
        };
        set_entry(&mut bitmap.table, index, word);
        Ok(())
    }

    /// Adds a bitmap; [`NewImage::finish`] writes its table.
    pub fn add_bitmap(&mut self, bitmap: NewBitmap) {
        self.bitmaps.push(bitmap);
    }

    /// Writes tables and directory of all bitmaps.
    pub(crate) fn write_bitmaps(&mut self) -> Result<(), CreateError> {
        if self.bitmaps.is_empty() {
            return Ok(());
        }
        let bitmaps = core::mem::take(&mut self.bitmaps);
        let mut directory = Vec::new();
        for bitmap in &bitmaps {
            let table = self.write_clusters(&bitmap.table)?;
            put_entry(&mut directory, bitmap, table)?;
        }
        let offset = self.write_clusters(&directory)?;
        self.header.extensions.bitmaps = Some(BitmapsExtension {
            nb_bitmaps: u32::try_from(bitmaps.len()).map_err(|_| CreateError::TOO_LARGE)?,
            directory_size: directory.len() as u64,
            directory_offset: HostOffset(offset),
        });
        self.header.autoclear.0 |= BITMAPS;
        Ok(())
    }

    /// Writes `bytes` to clusters of their own, zeros after them.
    fn write_clusters(&mut self, bytes: &[u8]) -> Result<u64, CreateError> {
        let bits = self.header.cluster_bits;
        let clusters = bits.clusters_for(bytes.len() as u64);
        let offset = self.refcounts.take(&mut self.pages, clusters)?;
        self.image.write_at(offset, bytes)?;
        let end = offset.saturating_add(bytes.len() as u64);
        if !self.clean {
            let rest = bits.size_bytes().saturating_sub(end & bits.mask()) & bits.mask();
            self.image.write_at(end, &zeroed(rest)?)?;
        }
        Ok(offset)
    }
}

/// Appends the directory entry of `bitmap`, whose table is at `table`.
fn put_entry(out: &mut Vec<u8>, bitmap: &NewBitmap, table: u64) -> Result<(), CreateError> {
    let entries = bitmap.table.len() >> 3;
    let raw = RawBitmap {
        table_offset: U64::new(table),
        table_size: U32::new(u32::try_from(entries).map_err(|_| CreateError::TOO_LARGE)?),
        flags: U32::new(if bitmap.enabled { FLAG_AUTO } else { 0 }),
        bitmap_type: TYPE_DIRTY_TRACKING,
        granularity_bits: bitmap.granularity_bits,
        name_size: U16::new(u16::try_from(bitmap.name.len()).map_err(|_| CreateError::TOO_LARGE)?),
        extra_data_size: U32::ZERO,
    };
    out.extend_from_slice(raw.as_bytes());
    out.extend_from_slice(&bitmap.name);
    out.resize(out.len().next_multiple_of(8), 0);
    Ok(())
}
