//! One image, opened for its content.

use crate::entry::{Rules, State};
use crate::error::DataError;
use crate::scan::{LayerRun, scan};
use crate::sparse::{Extents, is_preallocated};
use crate::tables::{Geometry, Tables};
use crate::{FileOf, RunKind};
use alloc::boxed::Box;
use core::cell::{Cell, RefCell};
use instar_qcow2::Header;
use instar_qcow2::header::CompressionType;
use instar_storage::{Cipher, Storage};

/// QEMU's unit of a disk's size: a file's last sector is filled up with zeros.
const SECTOR_BYTES: u64 = 512;
/// Bytes of L2 tables held for a layer unless its chain says less.
pub(crate) const TABLE_BUDGET: u64 = 1 << 20;

/// Which state of a qcow2 image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The active one.
    Active,
    /// An internal snapshot.
    Snapshot {
        /// Where its L1 table starts, in bytes.
        l1_offset: u64,
        /// Entries of its L1 table; guest clusters past them are not allocated.
        l1_entries: u32,
        /// Its virtual size in bytes.
        size: u64,
    },
}

/// One image, opened for its content.
#[derive(Debug)]
pub struct Layer<S> {
    image: S,
    len: u64,
    kind: Kind<S>,
    /// The last answer, which often holds the next question.
    last: Cell<Option<LayerRun>>,
}

#[derive(Debug)]
enum Kind<S> {
    Raw,
    Qcow2(Box<Qcow2<S>>),
}

#[derive(Debug)]
struct Qcow2<S> {
    data_file: Option<S>,
    header: Header,
    /// Of its data, if that is encrypted.
    cipher: Option<&'static dyn Cipher>,
    rules: Rules,
    tables: RefCell<Tables>,
    /// Whether holes may lie under its data.
    preallocated: Cell<bool>,
    /// Of the file that the data is in.
    extents: Extents,
}

impl<S: Storage> Layer<S> {
    /// A raw image. Its virtual size is the file's length, filled up to whole sectors of 512 bytes.
    pub fn raw(store: S) -> Self {
        let len = store.len_bytes().checked_next_multiple_of(SECTOR_BYTES);
        Self {
            len: len.unwrap_or(u64::MAX),
            image: store,
            kind: Kind::Raw,
            last: Cell::new(None),
        }
    }

    /// A qcow2 image whose header was read, with its external data file if the header says that it has one. Its data is
    /// not encrypted, or is not wanted.
    pub fn qcow2(store: S, data_file: Option<S>, header: Header, at: View) -> Self {
        Self::qcow2_with(store, data_file, header, at, None)
    }

    /// As [`Layer::qcow2`], with the cipher of its data if that is encrypted.
    pub fn qcow2_with(
        store: S,
        data_file: Option<S>,
        header: Header,
        at: View,
        cipher: Option<&'static dyn Cipher>,
    ) -> Self {
        let (l1, len) = match at {
            View::Active => {
                let l1 = (header.l1_table_offset.get(), header.l1_size.into());
                (l1, header.whole_sectors_size())
            }
            View::Snapshot {
                l1_offset,
                l1_entries,
                size,
            } => (
                (l1_offset, l1_entries.into()),
                size & !SECTOR_BYTES.wrapping_sub(1),
            ),
        };
        let table_bytes = header.cluster_bits.size_bytes();
        let geometry = Geometry::new(l1, table_bytes, header.l2_table_span(), len);
        let qcow2 = Qcow2 {
            data_file,
            rules: Rules::new(&header),
            header,
            cipher,
            tables: RefCell::new(Tables::new(geometry, TABLE_BUDGET)),
            preallocated: Cell::new(false),
            extents: Extents::default(),
        };
        Self {
            image: store,
            len,
            kind: Kind::Qcow2(Box::new(qcow2)),
            last: Cell::new(None),
        }
    }

    /// Virtual size in bytes.
    #[must_use]
    pub const fn len_bytes(&self) -> u64 {
        self.len
    }

    /// The header, if it is a qcow2 image.
    #[must_use]
    pub fn header(&self) -> Option<&Header> {
        match &self.kind {
            Kind::Raw => None,
            Kind::Qcow2(qcow2) => Some(&qcow2.header),
        }
    }

    /// The cipher of its data, if that is encrypted; compressed clusters are not.
    #[must_use]
    pub fn cipher(&self) -> Option<&'static dyn Cipher> {
        match &self.kind {
            Kind::Raw => None,
            Kind::Qcow2(qcow2) => qcow2.cipher,
        }
    }

    /// How its compressed clusters are compressed.
    #[must_use]
    pub fn compression(&self) -> CompressionType {
        self.header()
            .map_or(CompressionType::Zlib, |header| header.compression_type)
    }

    /// The image file, or its data file if it has one and that is asked for.
    pub fn store(&self, file: FileOf) -> &S {
        match (&self.kind, file) {
            (Kind::Qcow2(qcow2), FileOf::DataFile) => {
                qcow2.data_file.as_ref().unwrap_or(&self.image)
            }
            _ => &self.image,
        }
    }

    /// The file that uncompressed data lies in.
    pub fn data_file_of(&self) -> FileOf {
        match &self.kind {
            Kind::Qcow2(qcow2) if qcow2.data_file.is_some() => FileOf::DataFile,
            _ => FileOf::Image,
        }
    }

    /// Looks whether the metadata of a qcow2 image is preallocated, so that [`Layer::hole_at`] looks for holes
    /// under its data. `allocated_bytes` is what the file system has allocated for the image file.
    ///
    /// # Errors
    /// Its refcounts cannot be read.
    pub fn detect_preallocation(&self, allocated_bytes: u64) -> Result<(), DataError> {
        if let Kind::Qcow2(qcow2) = &self.kind {
            let found = is_preallocated(&self.image, &qcow2.header, allocated_bytes)?;
            qcow2.preallocated.set(found);
        }
        Ok(())
    }

    /// Whether the data at `host_offset` of `file` lies in a hole, and for how many bytes (at most `len`) that is
    /// the answer. `None`: the image's metadata is not preallocated, so its data is data.
    ///
    /// # Errors
    /// The file cannot say.
    pub fn hole_at(
        &self,
        file: FileOf,
        host_offset: u64,
        len: u64,
    ) -> Result<Option<(bool, u64)>, DataError> {
        match &self.kind {
            // A hole is not zeros once it is deciphered.
            Kind::Qcow2(qcow2) if qcow2.preallocated.get() && qcow2.cipher.is_none() => {
                let extent = qcow2.extents.find(self.store(file), host_offset)?;
                let (data, end) = extent.map_or((false, u64::MAX), |extent| {
                    (extent.data, extent.offset.saturating_add(extent.len))
                });
                let here = end.saturating_sub(host_offset).clamp(1, len.max(1));
                Ok(Some((!data, here)))
            }
            _ => Ok(None),
        }
    }

    /// First byte of the disk past the piece of a table that maps `offset`: QEMU gives no run beyond it.
    pub fn piece_end(&self, offset: u64) -> u64 {
        match &self.kind {
            Kind::Raw => u64::MAX,
            Kind::Qcow2(qcow2) => {
                let tables = qcow2.tables.borrow();
                let span = tables.geometry().slice_span();
                let mask = span.wrapping_sub(1);
                (offset | mask).saturating_add(1)
            }
        }
    }

    /// Sets how many bytes of L2 tables are held.
    pub(crate) fn set_budget(&self, bytes: u64) {
        if let Kind::Qcow2(qcow2) = &self.kind {
            qcow2.tables.borrow_mut().set_budget(bytes);
        }
    }

    /// The run of this layer that holds `offset`, which is below its size. It may go on after its end.
    pub(crate) fn run_at(&self, offset: u64) -> Result<LayerRun, DataError> {
        if let Some(run) = self.last.get().and_then(|run| run.from(offset)) {
            return Ok(run);
        }
        let run = match &self.kind {
            Kind::Raw => self.raw_run(offset)?,
            Kind::Qcow2(qcow2) => qcow2.run(&self.image, offset, self.len)?,
        };
        self.last.set(Some(run));
        Ok(run)
    }

    /// The file's data and holes; the part of the last sector that it has not is a hole.
    fn raw_run(&self, offset: u64) -> Result<LayerRun, DataError> {
        let extent = self.image.extent_at(offset)?;
        // The store gives the whole extent around the offset, which may have begun before it.
        let left = extent.map_or(self.len, |e| e.offset.saturating_add(e.len));
        let left = left.saturating_sub(offset).max(1);
        let kind = if extent.is_some_and(|extent| extent.data) {
            RunKind::Data {
                file: FileOf::Image,
                host_offset: offset,
            }
        } else {
            RunKind::Zero {
                host_offset: Some(offset),
            }
        };
        Ok(LayerRun {
            offset,
            len: left,
            state: State::of(kind),
            then: None,
        })
    }
}

impl<S: Storage> Qcow2<S> {
    fn run(&self, image: &S, offset: u64, disk_len: u64) -> Result<LayerRun, DataError> {
        let mut tables = self.tables.borrow_mut();
        let slice = tables.geometry().slice_of(offset);
        tables.fetch(image, slice)?;
        let mut run = scan(self.rules, &tables, offset)?;
        let left = disk_len.saturating_sub(offset);
        if run.len >= left {
            (run.len, run.then) = (left, None);
        }
        Ok(run)
    }
}
