//! A disk that grows: space for its new clusters, their tables, and the cluster in which it ended.

use crate::bitmaps::Bitmaps;
use crate::content::{Layer, unit_bytes, zeroed};
use crate::device::{Need, check_data_file, refuse_reserving, why_no_room};
use crate::error::{At, ReserveError, Stage};
use crate::head::{self, Growth};
use crate::layout::{Entry, Runs, clusters};
use crate::reserve::{Work, clear, reserve};
use crate::tables::{self, Part};
use crate::{Image, Preallocation, ResizeError, Wish};
use alloc::vec::Vec;
use instar_plan_txn::{Footprint, Monitor, Transaction, TxnError};
use instar_qcow2::header::{MAX_L1_BYTES, MAX_REFCOUNT_TABLE_BYTES};
use instar_storage::{StorageError, StorageMut};

/// Clusters that are allocated at once; their refcounts are in memory then.
const MAX_ALLOCATED_AT_ONCE: u64 = 1 << 20;
/// The most clusters for which holes are looked for.
const MAX_ALLOCATED_IN_PIECES: u64 = 1 << 16;
/// EFBIG.
const EFBIG: u32 = 27;

/// A disk that grows.
#[derive(Debug)]
pub struct Grow<'a, S> {
    image: Image<'a, S>,
    /// The image and its backing chain.
    layers: Vec<Layer<'a, S>>,
    growth: Growth,
    /// How space is reserved: in the image, or in its data file.
    space: Preallocation,
    /// Entries of the new L1 table.
    l1_size: u32,
    part: Part,
}

impl<'a, S: StorageMut> Grow<'a, S> {
    /// Plans the growth.
    ///
    /// # Errors
    /// The size or the format does not allow it; the store's.
    pub fn new(
        image: Image<'a, S>,
        below: &[Layer<'a, S>],
        wish: &Wish,
    ) -> Result<Self, ResizeError> {
        let header = image.header;
        let (new_size, preallocation) = (wish.new_size, wish.preallocation);
        let old_size = header.whole_sectors_size();
        let needed = new_size.div_ceil(header.l2_table_span());
        let l1_size = needed.max(header.l1_size.into());
        let l1_size = u32::try_from(l1_size)
            .ok()
            .filter(|size| u64::from(*size).saturating_mul(8) <= MAX_L1_BYTES);
        let l1_size = l1_size.ok_or(ResizeError::Failed {
            stage: Stage::L1,
            errno: EFBIG,
        })?;
        let mut layers = Vec::new();
        layers.push(Layer {
            storage: image.storage,
            data: image.data,
            header: Some(header),
            cipher: image.cipher,
        });
        layers.extend_from_slice(below);
        let hide = below.first().is_some_and(|b| b.size_bytes() > old_size);
        let growth = Growth {
            old_size,
            new_size,
            clusters: in_tables(image, preallocation),
            hide,
            unpack: wish.unpack,
        };
        growth.check_version(header, wish.version)?;
        let part = plan_part(image, &layers, &growth)?;
        let grow = Self {
            image,
            layers,
            growth,
            space: preallocation,
            l1_size,
            part,
        };
        grow.check_room()?;
        Ok(grow)
    }

    /// Clusters of the image file that the part takes.
    fn fixed(&self, part: &Part) -> u64 {
        if self.image.data.is_some() {
            return 0;
        }
        let all = part.end.saturating_sub(part.first);
        let head = part.head.map(|(head, _)| u64::from(head.fresh));
        if self.growth.clusters == Preallocation::Off {
            return head.unwrap_or(0);
        }
        match head {
            Some(0) => all.saturating_sub(1),
            _ => all,
        }
    }

    /// What the growth writes, besides bitmaps.
    pub fn footprint(&self) -> Footprint {
        let header = self.image.header;
        let l1_bytes = u64::from(self.l1_size).saturating_mul(8);
        let l1_clusters = header.cluster_bits.clusters_for(l1_bytes);
        let fixed = self.fixed(&self.part);
        let tables = self.part.tables(header).saturating_add(l1_clusters);
        // The new clusters need refcount blocks, which are copied like tables.
        let blocks = fixed
            .saturating_add(tables)
            .checked_div(header.refcounts_per_block());
        let blocks = blocks.unwrap_or(0).saturating_add(2);
        Footprint {
            tables: tables.saturating_add(blocks),
            fixed,
        }
    }

    /// A refcount table that is too small for the clusters that are to be taken.
    fn check_room(&self) -> Result<(), ResizeError> {
        let header = self.image.header;
        let clusters = self.fixed(&self.part);
        let most = (MAX_REFCOUNT_TABLE_BYTES / 8).saturating_mul(header.refcounts_per_block());
        if clusters > most {
            return Err(ResizeError::Failed {
                stage: self.allocation_stage(),
                errno: EFBIG,
            });
        }
        Ok(())
    }

    /// What the growth takes, for a device that may be too small for it.
    fn need(&self) -> Need {
        let header = self.image.header;
        let bytes = u64::from(self.l1_size).saturating_mul(8);
        let longer = self.l1_size > header.l1_size;
        let last = self.part.end.saturating_sub(1);
        let last_table = last.saturating_sub(last.checked_rem(header.l2_entries()).unwrap_or(0));
        Need {
            l1: header
                .cluster_bits
                .clusters_for(if longer { bytes } else { 0 }),
            tables: self.part.tables(header),
            before_last: last_table.saturating_sub(self.part.first),
        }
    }

    /// Everything up to the commit.
    ///
    /// # Errors
    /// The store's, the transaction's; the monitor wants the end.
    pub fn build(
        &mut self,
        txn: &mut Transaction<'_, S>,
        bitmaps: Option<Bitmaps>,
        monitor: &mut dyn Monitor,
    ) -> Result<(), ResizeError> {
        let header = self.image.header;
        let cluster = header.cluster_bits.size_bytes();
        let part = &self.part;
        let tables = part.tables(header).saturating_mul(cluster);
        let reserved = match self.space {
            Preallocation::Falloc | Preallocation::Full => {
                part.end.saturating_sub(part.first).saturating_mul(cluster)
            }
            _ => 0,
        };
        let mut work = Work {
            monitor,
            done: 0,
            total: tables.saturating_add(reserved),
        };
        self.allocate(txn, &mut work)?;
        self.write_head()?;
        self.size_data_file(&mut work)?;
        self.write_tables(txn, &mut work)?;
        if let Some(bitmaps) = bitmaps {
            let (old, new) = (self.growth.old_size, self.growth.new_size);
            bitmaps.resize(txn, old, new, work.monitor)?;
        }
        txn.header.virtual_size = self.growth.new_size;
        if let Some(data) = self.image.data {
            let failed = |e: StorageError| ResizeError::File(ReserveError::Length(e.errno));
            data.flush().map_err(failed)?;
        }
        Ok(())
    }

    const fn allocation_stage(&self) -> Stage {
        match self.space {
            Preallocation::Falloc | Preallocation::Full => Stage::Refcounts,
            Preallocation::Metadata => Stage::Allocate,
            Preallocation::Off => Stage::Zero,
        }
    }

    /// Takes the clusters of the image file, makes them zeros and reserves their space.
    fn allocate(
        &mut self,
        txn: &mut Transaction<'_, S>,
        work: &mut Work<'_>,
    ) -> Result<(), ResizeError> {
        let stage = self.allocation_stage();
        let bits = self.image.header.cluster_bits;
        let all = self.fixed(&self.part);
        let mut left = all;
        if self.image.data.is_none() {
            refuse_reserving(txn, self.space, self.need())?;
        }
        // Pieces of a table's length find holes in a small file; in a large one, looking for them takes too long.
        let pieces = self.space == Preallocation::Metadata && left <= MAX_ALLOCATED_IN_PIECES;
        let most = if pieces {
            self.image.header.l2_entries()
        } else {
            MAX_ALLOCATED_AT_ONCE
        };
        while left > 0 {
            let now = left.min(most);
            let first = txn.allocate_fixed(now).map_err(|e| {
                let taken = all.saturating_sub(left);
                why_no_room(txn, e, stage, self.need(), taken)
            })?;
            self.part.runs.push(bits.cluster_of(first).get(), now);
            left = left.saturating_sub(now);
            work.step(0)?;
        }
        for (first, count) in self.part.runs.all() {
            let start = tables::offset_of(self.image.header, *first).get();
            let end = tables::offset_of(self.image.header, first.saturating_add(*count)).get();
            clear(self.image.storage, start, end)?;
            reserve(self.image.storage, start, end, self.space, work)
                .map_err(ResizeError::underlying)?;
        }
        Ok(())
    }

    /// Writes the cluster in which the old disk ends.
    fn write_head(&mut self) -> Result<(), ResizeError> {
        let header = self.image.header;
        let part = &mut self.part;
        let Some((planned, _)) = part.head else {
            return Ok(());
        };
        let place = match (self.image.data, planned.fresh) {
            (Some(_), _) => Some(part.first),
            (None, true) => part.runs.take(),
            (None, false) => {
                let old = self.layers.first().map(|l| l.mapping(header, part.first));
                let offset = old.transpose()?.unwrap_or_default().entry.host_offset();
                Some(header.cluster_bits.cluster_of(offset).get())
            }
        };
        let place = place.ok_or(TxnError::TooLarge).at(Stage::Zero)?;
        let entry = head::write(
            &planned,
            &self.layers,
            header,
            &self.growth,
            self.image.data.unwrap_or(self.image.storage),
            tables::offset_of(header, place).get(),
        )?;
        part.head = Some((planned, entry));
        Ok(())
    }

    /// Gives an external data file its new length.
    fn size_data_file(&self, work: &mut Work<'_>) -> Result<(), ResizeError> {
        let Some(data) = self.image.data else {
            return Ok(());
        };
        let failed = |e: StorageError| ResizeError::File(ReserveError::Length(e.errno));
        if self.growth.clusters == Preallocation::Off {
            check_data_file(data, Preallocation::Off, self.growth.new_size)?;
            if !data.can_grow() {
                return Ok(());
            }
            return data.set_len(self.growth.new_size).map_err(failed);
        }
        let len = data.len_bytes();
        // A cluster that is new is filled up; one that was there is not.
        let fresh = self.part.head.is_none_or(|(head, _)| head.fresh);
        let only_head = u64::from(!fresh);
        let end = if self.part.end.saturating_sub(self.part.first) > only_head {
            let unit = unit_bytes(self.image.header);
            self.growth.new_size.next_multiple_of(unit)
        } else {
            self.growth.new_size
        };
        if end <= len {
            return Ok(());
        }
        let how = match self.space {
            Preallocation::Off => Preallocation::Metadata,
            other => other,
        };
        check_data_file(data, how, end)?;
        reserve(data, len, end, self.space, work).map_err(ResizeError::file)?;
        if data.len_bytes() < end {
            data.set_len(end).map_err(|e| ResizeError::Failed {
                stage: Stage::Map,
                errno: e.errno,
            })?;
        }
        Ok(())
    }

    /// True if the L1 table's clusters have room for the new entries, and zeros there.
    ///
    /// A device without room is not asked: `qemu-img` says so when it looks for a place for a longer table.
    fn has_l1_room(&self, storage: &S) -> Result<bool, ResizeError> {
        let header = self.image.header;
        let bytes = |entries: u32| u64::from(entries).saturating_mul(8);
        let (old, new) = (bytes(header.l1_size), bytes(self.l1_size));
        if old == new {
            return Ok(true);
        }
        let clusters = |bytes| header.cluster_bits.clusters_for(bytes);
        if !storage.can_grow() || clusters(old) != clusters(new) {
            return Ok(false);
        }
        let mut rest = zeroed(new.saturating_sub(old))?;
        let offset = header.l1_table_offset.get().saturating_add(old);
        storage
            .read_at(offset, &mut rest)
            .map_err(TxnError::from)
            .at(Stage::L1)?;
        Ok(rest.iter().all(|byte| *byte == 0))
    }

    /// The size and L1 length of the new state, if the header is all that changes.
    ///
    /// # Errors
    /// The store's.
    pub fn only_header(&self) -> Result<Option<(u64, u32)>, ResizeError> {
        let alone = self.image.data.is_none() && self.part.first >= self.part.end;
        if !alone || !self.has_l1_room(self.image.storage)? {
            return Ok(None);
        }
        Ok(Some((self.growth.new_size, self.l1_size)))
    }

    /// Writes L2 tables and the L1 table, as far as they change.
    fn write_tables(
        &mut self,
        txn: &mut Transaction<'_, S>,
        work: &mut Work<'_>,
    ) -> Result<(), ResizeError> {
        let header = self.image.header;
        if self.part.first >= self.part.end && self.has_l1_room(txn.storage())? {
            txn.header.l1_size = self.l1_size;
            return Ok(());
        }
        let mut l1 = txn
            .read_l1(header.l1_table_offset, header.l1_size)
            .at(Stage::L1)?;
        let more = usize::try_from(self.l1_size).unwrap_or(usize::MAX);
        l1.try_reserve_exact(more.saturating_sub(l1.len()))
            .map_err(|_| ResizeError::OutOfMemory)?;
        l1.resize(more, 0);
        tables::write(txn, header, &self.growth, (&mut self.part, &mut l1), work)?;
        txn.replace_active_l1(&l1).at(Stage::L1)
    }
}

/// What the tables get: an external data file has its space to itself, and one that is raw has all its clusters in
/// the tables.
fn in_tables<S>(image: Image<'_, S>, preallocation: Preallocation) -> Preallocation {
    let raw = image.header.autoclear.data_file_raw();
    match (image.data.is_some(), preallocation) {
        (true, Preallocation::Falloc | Preallocation::Full) => Preallocation::Metadata,
        (true, Preallocation::Off) if raw => Preallocation::Metadata,
        (_, other) => other,
    }
}

/// The clusters that change, without their places.
fn plan_part<S: StorageMut>(
    image: Image<'_, S>,
    layers: &[Layer<'_, S>],
    growth: &Growth,
) -> Result<Part, ResizeError> {
    let header = image.header;
    let (mut first, mut end) = clusters(header, growth.old_size, growth.new_size);
    if growth.clusters == Preallocation::Off && !growth.hide {
        end = first;
    }
    let mut head = None;
    if growth.old_size & header.cluster_bits.mask() != 0 && first < end {
        let layer = layers.first();
        let old = layer.map(|l| l.mapping(header, first)).transpose()?;
        let planned = head::plan(header, growth, old.unwrap_or_default())?;
        if growth.unpack.is_none() {
            head::check_unpacked(&planned, layers, header, growth)?;
        }
        if planned.changes || planned.writes() {
            head = Some((planned, Entry::default()));
        } else {
            first = first.saturating_add(1);
        }
    }
    Ok(Part {
        first,
        end,
        head,
        runs: Runs::default(),
    })
}
