//! The header area on its way to the disk.
//!
//! Only a write of one sector is whole. Where the sectors after the first change
//! as well, and the old area ends before them, they are written first: nothing
//! refers to them until the first sector does. Else the area is changed in three
//! steps, each of which leaves an image that is complete:
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
use instar_qcow2::Header;
use instar_qcow2::header::HeaderArea;
use instar_storage::{StorageMut, Write};

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
    let mut area = AreaOnDisk::read(storage, old)?;
    let switch = area.plan(storage, old, new)?;
    if let Some((at, rest)) = switch.early() {
        durably(storage, at, rest)?;
    }
    area.switch(storage, switch)
}

/// The header area as it is on the disk.
#[derive(Debug)]
pub struct AreaOnDisk {
    kept: HeaderArea,
    /// From the file's start on, as far as is known.
    bytes: Vec<u8>,
}

impl AreaOnDisk {
    /// Reads that of `header`.
    pub fn read<S: StorageMut>(storage: &S, header: &Header) -> Result<Self, TxnError> {
        let (kept, bytes) = HeaderArea::read(storage, header)?;
        Ok(Self { kept, bytes })
    }

    /// How the area becomes that of `new`. Nothing is written.
    ///
    /// # Errors
    /// [`TxnError::HeaderFull`], or the store's.
    pub fn plan<S: StorageMut>(
        &mut self,
        storage: &S,
        old: &Header,
        new: &Header,
    ) -> Result<Switch, TxnError> {
        let mut new = new.clone();
        // A writer keeps the autoclear bits that it knows and that are still true.
        let bitmaps = u64::from(new.extensions.bitmaps.is_some());
        let raw_data = new.autoclear.data_file_raw() && new.incompatible.external_data_file();
        new.autoclear.0 = if new.version >= 3 {
            bitmaps | (u64::from(raw_data) << 1)
        } else {
            0
        };
        let mut full = self.kept.encode(&new, true);
        if full.len() as u64 > new.cluster_bits.size_bytes() {
            full = self.kept.encode(&new, false);
        }
        if full.len() as u64 > new.cluster_bits.size_bytes() {
            return Err(TxnError::HeaderFull);
        }
        let new = HeaderArea::as_written(&new, &full);
        full.resize(full.len().next_multiple_of(SECTOR), 0);
        if self.bytes.len() < full.len() {
            self.bytes.resize(full.len(), 0);
            storage.read_at(0, &mut self.bytes)?;
        }
        let rest = full.get(SECTOR..).unwrap_or_default();
        let way = if self.bytes.get(SECTOR..full.len()) == Some(rest) {
            Way::OneSector
        } else if self.end(old) <= SECTOR {
            Way::RestFirst
        } else {
            match bridge(&self.kept, old, &new, full.len()) {
                Some(bridge) => Way::Bridge(bridge),
                None => Way::RestFirst,
            }
        };
        Ok(Switch { new, full, way })
    }

    /// First byte after what the old area uses.
    fn end(&self, old: &Header) -> usize {
        let name = old
            .backing_file_offset
            .get()
            .saturating_add(u64::from(old.backing_file_size));
        let name = if old.backing_file_offset.get() == 0 {
            0
        } else {
            usize::try_from(name).unwrap_or(usize::MAX)
        };
        self.kept.end().max(name)
    }

    /// Does what was planned, and makes it durable; what is written [early](Switch::early) is on the disk. Returns
    /// the header as it is then.
    ///
    /// # Errors
    /// The store's; the area is the old one or the new one.
    pub fn switch<S: StorageMut>(
        &mut self,
        storage: &S,
        switch: Switch,
    ) -> Result<Header, TxnError> {
        let (first, rest) = switch
            .full
            .split_at_checked(SECTOR)
            .unwrap_or((&switch.full, &[]));
        if let Way::Bridge(bridge) = &switch.way {
            if let Some((at, name)) = &bridge.name {
                durably(storage, *at, name)?;
            }
            durably(storage, 0, &bridge.sector)?;
            durably(storage, SECTOR as u64, rest)?;
        }
        durably(storage, 0, first)?;
        self.bytes = switch.full;
        Ok(switch.new)
    }
}

/// Writes `buf` at `offset`, and makes it and all before it durable.
fn durably<S: StorageMut>(storage: &S, offset: u64, buf: &[u8]) -> Result<(), TxnError> {
    Ok(storage.write_through(&[Write { offset, buf }], 0)?)
}

/// A change of the header area.
#[derive(Debug)]
pub struct Switch {
    /// The header as it is then.
    new: Header,
    /// Its area, whole sectors.
    full: Vec<u8>,
    way: Way,
}

#[derive(Debug)]
enum Way {
    /// The first sector is all that changes.
    OneSector,
    /// The others are written before it.
    RestFirst,
    /// By way of a first sector that needs no other.
    Bridge(Bridge),
}

impl Switch {
    /// What is to be on the disk before the switch, and where.
    pub fn early(&self) -> Option<(u64, &[u8])> {
        let rest = self.full.get(SECTOR..).unwrap_or_default();
        matches!(self.way, Way::RestFirst).then_some((SECTOR as u64, rest))
    }
}

/// A first sector that needs no other, except perhaps for the backing file name.
#[derive(Debug)]
struct Bridge {
    sector: Vec<u8>,
    /// Offset and bytes of the name, where it is not in the sector.
    name: Option<(u64, Vec<u8>)>,
}

fn bridge(area: &HeaderArea, old: &Header, new: &Header, full_len: usize) -> Option<Bridge> {
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
        name: Some((at, name.to_vec())),
    })
}
