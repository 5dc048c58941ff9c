//! qcow2: the checks, and the order of things.

use crate::bitmaps::Bitmaps;
use crate::content::{Layer, Unpack, unpack};
use crate::crop::crop;
use crate::device::check_data_file;
use crate::error::{At, ReserveError, Stage};
use crate::grow::Grow;
use crate::request::target;
use crate::reserve::Work;
use crate::{Preallocation, Request, ResizeError, Resized};
use instar_plan_txn::{Footprint, Monitor, Transaction, write_header};
use instar_qcow2::Header;
use instar_storage::{Cipher, StorageError, StorageMut};

/// The image that is resized.
#[derive(Debug)]
pub struct Image<'a, S> {
    /// The image.
    pub storage: &'a S,
    /// Its external data file, if it has one, open for writing.
    pub data: Option<&'a S>,
    /// Its header, read from `storage`.
    pub header: &'a Header,
    /// The cipher of its data, if that is encrypted and its key is known.
    pub cipher: Option<&'a dyn Cipher>,
}

impl<S> Clone for Image<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Image<'_, S> {}

/// Resizes a qcow2 image. `below` is its backing chain, the nearest first; empty if it has none.
///
/// # Errors
/// [`ResizeError`]: the image is as it was. Only where the switch itself or what follows it fails
/// ([`Stage::Switch`], or the length of a data file that shrinks) it may be the new one.
pub fn resize_qcow2<S: StorageMut>(
    image: Image<'_, S>,
    below: &[Layer<'_, S>],
    request: &Request,
    monitor: &mut dyn Monitor,
) -> Result<Resized, ResizeError> {
    let new_size = target(request, image.header.whole_sectors_size())?;
    resize_qcow2_to(image, below, new_size, request.preallocation, monitor)
}

/// As [`resize_qcow2`], for a program without decompressors.
///
/// # Errors
/// As [`resize_qcow2`]; [`ResizeError::Compressed`].
pub fn resize_qcow2_unpacked<S: StorageMut>(
    image: Image<'_, S>,
    below: &[Layer<'_, S>],
    request: &Request,
    monitor: &mut dyn Monitor,
) -> Result<Resized, ResizeError> {
    let wish = Wish {
        new_size: target(request, image.header.whole_sectors_size())?,
        preallocation: request.preallocation,
        version: image.header.version,
        unpack: None,
    };
    resize(image, below, wish, monitor)
}

/// As [`resize_qcow2`], for a size that the caller has judged: larger or smaller.
///
/// # Errors
/// As [`resize_qcow2`].
pub fn resize_qcow2_to<S: StorageMut>(
    image: Image<'_, S>,
    below: &[Layer<'_, S>],
    new_size: u64,
    preallocation: Preallocation,
    monitor: &mut dyn Monitor,
) -> Result<Resized, ResizeError> {
    let wish = Wish {
        new_size,
        preallocation,
        version: image.header.version,
        unpack: Some(unpack),
    };
    resize(image, below, wish, monitor)
}

fn resize<S: StorageMut>(
    image: Image<'_, S>,
    below: &[Layer<'_, S>],
    wish: Wish,
    monitor: &mut dyn Monitor,
) -> Result<Resized, ResizeError> {
    let header = image.header;
    let mut change = Change::plan(image, below, wish, monitor)?;
    if !change.is_needed() {
        change.after_commit()?;
        return Ok(change.resized());
    }
    if change.is_done_by_header(monitor)? {
        return Ok(change.resized());
    }
    let mut txn = Transaction::begin(image.storage, header, change.footprint(), monitor)
        .at(change.first_stage())?;
    match change.build(&mut txn, monitor) {
        Ok(()) => {
            let committed = txn.commit(monitor).at(Stage::Switch);
            if committed.is_err() {
                change.undo();
            }
            committed?;
        }
        Err(e) => {
            txn.abandon();
            change.undo();
            return Err(e);
        }
    }
    change.after_commit()?;
    Ok(change.resized())
}

/// A new size that has passed the checks that do not depend on the format.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// Bytes.
    pub new_size: u64,
    /// What is reserved of the new part.
    pub preallocation: Preallocation,
    /// The image's version in the new state.
    pub version: u32,
    /// What decompresses the cluster in which the disk ends, where that is filled up; without it such an image is
    /// left alone.
    pub unpack: Option<Unpack>,
}

/// What is done to the tables.
#[derive(Debug)]
enum Kind<'a, S> {
    Same,
    Shrink,
    Grow(alloc::boxed::Box<Grow<'a, S>>),
}

/// A resize as a part of a transaction that its caller begins and commits.
///
/// [`Change::plan`], [`Transaction::begin`] with [`Change::footprint`], [`Change::build`], then
/// [`Transaction::commit`] and [`Change::after_commit`]; or, if anything fails before the switch,
/// [`Transaction::abandon`] and [`Change::undo`].
#[derive(Debug)]
pub struct Change<'a, S> {
    image: Image<'a, S>,
    old_size: u64,
    new_size: u64,
    bitmaps: Option<Bitmaps>,
    kind: Kind<'a, S>,
    /// Length of the data file before.
    data_len: u64,
}

impl<'a, S: StorageMut> Change<'a, S> {
    /// Judges the new size, and what it means for the image. Nothing is written.
    ///
    /// # Errors
    /// What `qemu-img` refuses, in its order; the store's.
    pub fn plan(
        image: Image<'a, S>,
        below: &[Layer<'a, S>],
        wish: Wish,
        monitor: &mut dyn Monitor,
    ) -> Result<Self, ResizeError> {
        let header = image.header;
        let (old_size, new_size) = (header.whole_sectors_size(), wish.new_size);
        if !new_size.is_multiple_of(512) {
            return Err(ResizeError::NotWholeSectors);
        }
        if wish.version < 3 && header.nb_snapshots > 0 {
            return Err(ResizeError::SnapshotsInVersion2);
        }
        if new_size <= old_size
            && let Some(data) = image.data
        {
            check_data_file(data, Preallocation::Off, new_size)?;
        }
        let mut bitmaps = Bitmaps::read(image.storage, header, monitor)?;
        let kind = if new_size < old_size {
            Kind::Shrink
        } else if new_size == old_size {
            Kind::Same
        } else {
            let grow = Grow::new(image, below, &wish)?;
            Kind::Grow(alloc::boxed::Box::new(grow))
        };
        if let Some(bitmaps) = &mut bitmaps {
            bitmaps.plan(header, new_size)?;
        }
        Ok(Self {
            image,
            old_size,
            new_size,
            bitmaps,
            kind,
            data_len: image.data.map_or(0, |data| data.len_bytes()),
        })
    }

    /// False if the image itself stays as it is.
    #[must_use]
    pub const fn is_needed(&self) -> bool {
        !matches!(self.kind, Kind::Same)
    }

    /// Writes the header, if that is all there is to do: a growth for which the L1 table has room.
    fn is_done_by_header(&self, monitor: &mut dyn Monitor) -> Result<bool, ResizeError> {
        let (Kind::Grow(grow), None) = (&self.kind, &self.bitmaps) else {
            return Ok(false);
        };
        let Some((virtual_size, l1_size)) = grow.only_header()? else {
            return Ok(false);
        };
        let new = Header {
            virtual_size,
            l1_size,
            ..self.image.header.clone()
        };
        monitor.progress(1, 1)?;
        write_header(self.image.storage, self.image.header, &new).at(Stage::Switch)?;
        Ok(true)
    }

    /// The sizes.
    #[must_use]
    pub const fn resized(&self) -> Resized {
        Resized {
            old_size: self.old_size,
            new_size: self.new_size,
        }
    }

    /// What the change writes, for [`Transaction::begin`].
    #[must_use]
    pub fn footprint(&self) -> Footprint {
        let header = self.image.header;
        let mut footprint = match &self.kind {
            Kind::Same => return Footprint::default(),
            Kind::Shrink => {
                let l1_bytes = u64::from(header.l1_size).saturating_mul(8);
                let l1 = header.cluster_bits.clusters_for(l1_bytes);
                Footprint {
                    tables: l1.saturating_add(1),
                    fixed: 0,
                }
            }
            Kind::Grow(grow) => grow.footprint(),
        };
        let bitmaps = self.bitmaps.as_ref().map_or(0, |b| b.clusters);
        footprint.fixed = footprint.fixed.saturating_add(bitmaps);
        footprint
    }

    const fn first_stage(&self) -> Stage {
        match self.kind {
            Kind::Grow(_) => Stage::L1,
            Kind::Same | Kind::Shrink => Stage::Crop,
        }
    }

    /// Everything up to the commit. The data file, if it grows, is durable after this.
    ///
    /// # Errors
    /// The store's, the transaction's; the monitor wants the end.
    pub fn build(
        &mut self,
        txn: &mut Transaction<'_, S>,
        monitor: &mut dyn Monitor,
    ) -> Result<(), ResizeError> {
        let bitmaps = self.bitmaps.take();
        match &mut self.kind {
            Kind::Same => Ok(()),
            Kind::Grow(grow) => grow.build(txn, bitmaps, monitor),
            Kind::Shrink => {
                let header = self.image.header;
                let tables = u64::from(header.l1_size);
                let mut work = Work {
                    monitor,
                    done: 0,
                    total: tables.saturating_mul(header.cluster_bits.size_bytes()),
                };
                crop(txn, header, self.new_size, &mut work)?;
                if let Some(bitmaps) = bitmaps {
                    bitmaps.resize(txn, self.old_size, self.new_size, work.monitor)?;
                }
                txn.header.virtual_size = self.new_size;
                txn.cuts_tail = true;
                Ok(())
            }
        }
    }

    /// Cuts a data file that shrinks. It gets the disk's exact length also where that stays.
    ///
    /// # Errors
    /// The store's: the image has its new size, and the data file is longer than need be.
    pub fn after_commit(&self) -> Result<(), ResizeError> {
        let failed = |e: StorageError| ResizeError::File(ReserveError::Length(e.errno));
        let Some(data) = self
            .image
            .data
            .filter(|_| !matches!(self.kind, Kind::Grow(_)))
        else {
            return Ok(());
        };
        if data.len_bytes() != self.new_size {
            data.set_len(self.new_size).map_err(failed)?;
        }
        data.flush().map_err(failed)
    }

    /// Nothing was switched: a data file that has grown gets its length back.
    pub fn undo(&self) {
        if let Some(data) = self.image.data
            && data.len_bytes() > self.data_len
        {
            // Should this fail as well, the data file is longer than before, by zeros.
            let _ = data.set_len(self.data_len);
        }
    }
}
