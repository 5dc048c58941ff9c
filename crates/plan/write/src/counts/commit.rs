//! What a commit writes of the refcounts, in its order.

use super::{Counts, ENTRY_BYTES};
use crate::WriteError;
use crate::header::write_fields;
use alloc::vec::Vec;
use instar_qcow2::{Header, HostOffset};
use instar_storage::StorageMut;

/// Runs of clusters: first and count.
#[derive(Debug, Default)]
struct Runs(Vec<(u64, u64)>);

impl Runs {
    /// Adds a cluster, to the last run if it adjoins.
    fn add(&mut self, cluster: u64) {
        match self.0.last_mut() {
            Some((first, count)) if first.saturating_add(*count) == cluster => {
                *count = count.saturating_add(1);
            }
            _ => self.0.push((cluster, 1)),
        }
    }
}

impl Counts {
    /// Step 1 of a commit: all blocks are named by the refcount table, and that by the header.
    pub fn name_blocks<S: StorageMut>(
        &mut self,
        image: &S,
        header: &mut Header,
    ) -> Result<(), WriteError> {
        if self.outgrown {
            return self.move_table(image, header);
        }
        if !self.write_fresh(image)? {
            return Ok(());
        }
        image.flush()?;
        let start = header.refcount_table_offset.get();
        for (index, block) in self.blocks.iter_mut() {
            if let (true, Some(place)) = (block.fresh, self.table.get(*index)) {
                let at = start.saturating_add((*index as u64).saturating_mul(ENTRY_BYTES));
                image.write_at(at, &place.to_be_bytes())?;
            }
        }
        self.blocks
            .values_mut()
            .for_each(|block| block.fresh = false);
        Ok(())
    }

    /// Writes blocks that the table does not name yet; true if there are any.
    fn write_fresh<S: StorageMut>(&mut self, image: &S) -> Result<bool, WriteError> {
        let mut any = false;
        for (index, block) in self.blocks.iter_mut() {
            if let (true, Some(place)) = (block.fresh, self.table.get(*index)) {
                image.write_at(*place, &block.bytes)?;
                block.dirty = false;
                any = true;
            }
        }
        Ok(any)
    }

    /// Writes the refcount table anew and has the header name it.
    fn move_table<S: StorageMut>(
        &mut self,
        image: &S,
        header: &mut Header,
    ) -> Result<(), WriteError> {
        let (place, clusters) = loop {
            let clusters = self.table_clusters();
            let place = self.allocate(image, clusters)?;
            // The room for it may have needed a block that made it longer.
            if self.table_clusters() == clusters {
                break (place, clusters);
            }
            for cluster in (place >> self.bits.get()..).take(usize::try_from(clusters).unwrap_or(0))
            {
                self.give_back(image, cluster << self.bits.get())?;
            }
        };
        self.write_fresh(image)?;
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(self.table.len().saturating_mul(8))
            .map_err(|_| WriteError::OutOfMemory)?;
        bytes.extend(self.table.iter().flat_map(|place| place.to_be_bytes()));
        image.write_at(place, &bytes)?;
        self.write_counts(image)?;
        image.flush()?;
        let old = (header.refcount_table_offset, header.refcount_table_clusters);
        header.refcount_table_offset = HostOffset(place);
        header.refcount_table_clusters =
            u32::try_from(clusters).map_err(|_| WriteError::TooLarge)?;
        write_fields(image, header).inspect_err(|_| {
            (header.refcount_table_offset, header.refcount_table_clusters) = old;
        })?;
        self.outgrown = false;
        self.blocks
            .values_mut()
            .for_each(|block| block.fresh = false);
        self.drop_later(old.0.get() >> self.bits.get(), u64::from(old.1));
        Ok(())
    }

    fn table_clusters(&self) -> u64 {
        let bytes = (self.table.len() as u64).saturating_mul(ENTRY_BYTES);
        self.bits.clusters_for(bytes)
    }

    /// Steps 2 and 4 of a commit: writes what has changed.
    pub fn write_counts<S: StorageMut>(&mut self, image: &S) -> Result<(), WriteError> {
        for (index, block) in self.blocks.iter_mut() {
            if let (true, Some(place)) = (block.dirty, self.table.get(*index)) {
                image.write_at(*place, &block.bytes)?;
                block.dirty = false;
            }
        }
        Ok(())
    }

    /// Step 4 of a commit: lowers what is to fall.
    pub fn apply_drops<S: StorageMut>(&mut self, image: &S) -> Result<(), WriteError> {
        let mut freed = Runs::default();
        for (first, count) in core::mem::take(&mut self.drops) {
            for cluster in first..first.saturating_add(count) {
                let width = self.width;
                let (index, at) = self.block_of(cluster);
                let old = match self.block(image, index)? {
                    Some(block) => width.get(&block.bytes, at).unwrap_or(0),
                    None => 0,
                };
                // One that is 0 already was wrong before; a check says so.
                if let Some(new) = old.checked_sub(1) {
                    self.set(image, cluster, new)?;
                    if new == 0 {
                        self.hint = self.hint.min(cluster);
                        self.next_run = self.next_run.min(cluster);
                        freed.add(cluster);
                    }
                }
            }
        }
        self.write_counts(image)?;
        if self.punch {
            for (first, count) in freed.0 {
                let (offset, len) = (first << self.bits.get(), count << self.bits.get());
                let end = image.len_bytes().saturating_sub(offset);
                // It is a hint.
                let _ = image.discard(offset, len.min(end));
            }
        }
        Ok(())
    }
}
