//! The memory that a front end shares.

use crate::memory::GuestSlot;
use rustix::fs::SeekFrom;
use std::fs::File;
use std::sync::Arc;
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vhost::vhost_user::{Error, Result};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// What is where.
#[derive(Debug)]
pub struct SharedMemory {
    /// The guest's memory.
    pub slot: Arc<GuestSlot>,
    places: Vec<Place>,
}

/// A region, as the front end's own addresses name it.
#[derive(Clone, Copy, Debug)]
struct Place {
    user: u64,
    len: u64,
    guest: u64,
}

impl SharedMemory {
    /// Maps the regions. Their files must be long enough.
    ///
    /// # Errors
    /// They cannot be mapped, or overlap.
    pub fn map(regions: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<Self> {
        let mut places = Vec::new();
        let mut mapped = Vec::new();
        for (region, file) in regions.iter().zip(files) {
            // The struct is packed.
            let (guest, len) = ({ region.guest_phys_addr }, { region.memory_size });
            let (user, offset) = ({ region.user_addr }, { region.mmap_offset });
            let size = usize::try_from(len).map_err(|_| Error::InvalidParam)?;
            // What lies past the file's end would end this process when it is touched.
            let file_len = rustix::fs::seek(&file, SeekFrom::End(0));
            let file_len = file_len.map_err(|_| Error::InvalidParam)?;
            if offset.checked_add(len).is_none_or(|end| end > file_len) {
                return Err(Error::InvalidParam);
            }
            let file = FileOffset::new(file, offset);
            let region = GuestRegionMmap::from_range(GuestAddress(guest), size, Some(file));
            mapped.push(region.map_err(|_| Error::InvalidParam)?);
            places.push(Place { user, len, guest });
        }
        mapped.sort_by_key(|region| vm_memory::GuestMemoryRegion::start_addr(region).0);
        let memory = GuestMemoryMmap::from_regions(mapped).map_err(|_| Error::InvalidParam)?;
        Ok(Self {
            slot: GuestSlot::shared(memory),
            places,
        })
    }

    /// The guest's address for one of the front end's.
    pub fn guest_address(&self, user: u64) -> Option<u64> {
        self.places.iter().find_map(|place| {
            let skip = user.checked_sub(place.user)?;
            (skip < place.len).then(|| place.guest.checked_add(skip))?
        })
    }
}
