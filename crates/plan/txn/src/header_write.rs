//! The header area on its way to the disk.
//!
//! Only a write of one sector is whole. An area of several sectors is changed in
//! three steps, each of which leaves an image that is complete:
//!
//! 1. sector 0 becomes the new header with all that is needed in that sector
//!    alone: the feature name table is left out. This is the commit point.
//! 2. the sectors after it, which nothing refers to now, are written;
//! 3. sector 0 is written with the whole chain of extensions.
//!
//! Where names are too long for one sector, the backing file name is put behind
//! everything that old and new area use before step 1. Where even that does not
//! fit the cluster, the sectors behind the first are written before it; then a
//! crash between the two can show new names with the old header, and nothing
//! else.

use crate::TxnError;
use alloc::vec::Vec;
use instar_qcow2::header::HeaderArea;
use instar_qcow2::{Header, OpenMode};
use instar_storage::StorageMut;

/// What does not tear.
const SECTOR: usize = 512;

/// Changes the header area, and nothing else, to that of `new`; the clusters that `new` names are on disk.
///
/// Unknown autoclear bits are cleared, as a writer must. Returns the header as it is now.
///
/// # Errors
/// The store's, or [`TxnError::HeaderFull`]; the image is then the old or the new one.
pub fn write_header<S: StorageMut>(
    storage: &S,
    old: &Header,
    new: &Header,
) -> Result<Header, TxnError> {
    let mut new = new.clone();
    // A writer keeps the autoclear bits that it knows and that are still true.
    let bitmaps = u64::from(new.extensions.bitmaps.is_some());
    let raw_data = new.autoclear.data_file_raw() && new.incompatible.external_data_file();
    new.autoclear.0 = if new.version >= 3 {
        bitmaps | (u64::from(raw_data) << 1)
    } else {
        0
    };
    let area = HeaderArea::read(storage, old)?;
    let mut full = area.encode(&new, true);
    if full.len() as u64 > new.cluster_bits.size_bytes() {
        full = area.encode(&new, false);
    }
    if full.len() as u64 > new.cluster_bits.size_bytes() {
        return Err(TxnError::HeaderFull);
    }
    full.resize(full.len().next_multiple_of(SECTOR), 0);
    write_area(storage, &area, old, &new, &full)?;
    Header::read(storage, OpenMode::CheckWithKey).map_err(|_| TxnError::Corrupt {
        what: "the header that was written does not open",
    })
}

fn write_area<S: StorageMut>(
    storage: &S,
    area: &HeaderArea,
    old: &Header,
    new: &Header,
    full: &[u8],
) -> Result<(), TxnError> {
    let (first, rest) = full.split_at_checked(SECTOR).unwrap_or((full, &[]));
    let mut there = alloc::vec![0; rest.len()];
    storage.read_at(SECTOR as u64, &mut there)?;
    if there != rest {
        match bridge(area, old, new, full.len()) {
            Some(bridge) => {
                if let Some((at, name)) = bridge.name {
                    storage.write_at(at, name)?;
                    storage.flush()?;
                }
                storage.write_at(0, &bridge.sector)?;
                storage.flush()?;
                storage.write_at(SECTOR as u64, rest)?;
            }
            None => storage.write_at(SECTOR as u64, rest)?,
        }
        storage.flush()?;
    }
    storage.write_at(0, first)?;
    Ok(storage.flush()?)
}

/// A first sector that needs no other, except perhaps for the backing file name.
struct Bridge<'h> {
    sector: Vec<u8>,
    /// Offset and bytes of the name, where it is not in the sector.
    name: Option<(u64, &'h [u8])>,
}

fn bridge<'h>(
    area: &HeaderArea,
    old: &Header,
    new: &'h Header,
    full_len: usize,
) -> Option<Bridge<'h>> {
    let mut small = area.encode(new, false);
    if small.len() <= SECTOR {
        small.resize(SECTOR, 0);
        return Some(Bridge {
            sector: small,
            name: None,
        });
    }
    let name = new.backing_file.as_deref()?;
    let without = Header {
        backing_file: None,
        ..new.clone()
    };
    let mut small = area.encode(&without, false);
    let old_end = old
        .backing_file_offset
        .get()
        .saturating_add(u64::from(old.backing_file_size));
    let at = old_end.max(full_len as u64).next_multiple_of(SECTOR as u64);
    let end = at.saturating_add(name.len() as u64);
    if small.len() > SECTOR || end > new.cluster_bits.size_bytes() {
        return None;
    }
    small.resize(SECTOR, 0);
    let len = u32::try_from(name.len()).ok()?;
    small.get_mut(8..16)?.copy_from_slice(&at.to_be_bytes());
    small.get_mut(16..20)?.copy_from_slice(&len.to_be_bytes());
    Some(Bridge {
        sector: small,
        name: Some((at, name)),
    })
}
