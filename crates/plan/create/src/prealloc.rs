//! Clusters that have their place, and perhaps their space, from the beginning.

use crate::place::Mapped;
use crate::{CreateError, NewImage, Preallocation, Spec};
use instar_plan_resize::ReserveError;
use instar_plan_txn::Monitor;
use instar_storage::{Reserve, StorageMut};

/// Bytes reserved by one request that writes.
const WRITTEN_PIECE_BYTES: u64 = 32 << 20;
/// Bytes reserved by one request that does not.
const PIECE_BYTES: u64 = 16 << 30;

impl<S: StorageMut> NewImage<'_, S> {
    /// Does what the preallocation mode asks for; an external data file that is a raw image is mapped in any case.
    pub(crate) fn preallocate(
        &mut self,
        spec: &Spec,
        monitor: &mut dyn Monitor,
    ) -> Result<(), CreateError> {
        if !spec.maps_everything() {
            return Ok(());
        }
        let size = spec.virtual_size();
        let clusters = self.header.cluster_bits.clusters_for(size);
        let data_bytes = size.next_multiple_of(spec.unit_bytes());
        match self.data {
            Some(data) => {
                if data.can_grow() {
                    data.set_len(data_bytes)?;
                }
                reserve(data, data_bytes, spec.preallocation(), monitor)
                    .map_err(CreateError::reserve(CreateError::ReserveData))?;
            }
            None => {
                let end = self.mapped_end(clusters);
                self.check_device(end, spec.preallocation())?;
                reserve(self.image, end, spec.preallocation(), monitor)
                    .map_err(CreateError::reserve(CreateError::Reserve))?;
            }
        }
        self.map_all(size, monitor)
            .map_err(CreateError::doing(CreateError::Allocate))
    }

    /// Refuses what a device cannot give.
    fn check_device(&self, end: u64, how: Preallocation) -> Result<(), CreateError> {
        if self.image.can_grow() {
            return Ok(());
        }
        if matches!(how, Preallocation::Falloc | Preallocation::Full) {
            return Err(CreateError::Reserve(ReserveError::Device(how)));
        }
        if end > self.image.len_bytes() {
            return Err(CreateError::Device);
        }
        Ok(())
    }

    fn map_all(&mut self, size: u64, monitor: &mut dyn Monitor) -> Result<(), CreateError> {
        let mut at = 0;
        while at < size {
            let place = self.map(at, size.saturating_sub(at), Mapped::Reserved)?;
            at = at.saturating_add(place.len);
            monitor.progress(at.min(size), size)?;
        }
        Ok(())
    }

    /// The file's end in bytes when all `clusters` of the disk are mapped; the refcount table's move not counted.
    fn mapped_end(&self, clusters: u64) -> u64 {
        let bits = self.header.cluster_bits;
        let l1_bytes = u64::from(self.header.l1_size).saturating_mul(8);
        let fixed = bits
            .clusters_for(l1_bytes)
            .saturating_add(u64::from(self.header.l1_size))
            .saturating_add(2)
            .saturating_add(bits.clusters_for(self.crypto_header().map_or(0, |area| area.1)))
            .saturating_add(clusters);
        // Each block counts itself, so it counts one cluster less of the rest.
        let others = self.header.refcounts_per_block().saturating_sub(1).max(1);
        let all = fixed.saturating_add(fixed.div_ceil(others));
        all.saturating_mul(bits.size_bytes())
    }
}

/// Reserves the first `end` bytes of a file that holds nothing yet.
///
/// # Errors
/// The store's; the monitor wants the end.
pub fn reserve<S: StorageMut>(
    storage: &S,
    end: u64,
    how: Preallocation,
    monitor: &mut dyn Monitor,
) -> Result<(), ReserveError> {
    let (how, most) = match how {
        Preallocation::Off | Preallocation::Metadata => return Ok(()),
        Preallocation::Falloc => (Reserve::Blocks, PIECE_BYTES),
        Preallocation::Full => (Reserve::WrittenZeros, WRITTEN_PIECE_BYTES),
    };
    let mut at = 0;
    while at < end {
        let len = most.min(end.saturating_sub(at));
        storage.allocate(at, len, how).map_err(|e| match how {
            Reserve::WrittenZeros => ReserveError::Full(e.errno),
            Reserve::Blocks => ReserveError::Falloc(e.errno),
        })?;
        at = at.saturating_add(len);
        monitor.progress(at, end)?;
    }
    Ok(())
}
