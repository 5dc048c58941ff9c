//! Writes into an image.

mod part;
mod read;

use crate::WriteError;
use crate::below::Below;
use crate::counts::Counts;
use crate::header::{keep_known_autoclear, write_fields};
use crate::mapping::{Division, Mapping, mask};
use crate::place::Packed;
use crate::record::Recorder;
use crate::tables::Tables;
use alloc::boxed::Box;
use alloc::collections::BinaryHeap;
use alloc::vec::Vec;
use core::fmt;
use instar_layers::Decompress;
use instar_qcow2::Header;
use instar_qcow2::header::CryptMethod;
use instar_storage::{Cipher, DataPlace, StorageMut};

/// An image that takes writes.
pub struct WriteImage<'a, S> {
    pub(crate) image: &'a S,
    pub(crate) data: Option<&'a S>,
    below: Box<dyn Below + 'a>,
    codec: Box<dyn Decompress + 'a>,
    /// Of the guest data, if that is encrypted.
    cipher: Option<&'static dyn Cipher>,
    pub(crate) header: Header,
    pub(crate) division: Division,
    pub(crate) tables: Tables,
    pub(crate) counts: Counts,
    /// Clusters with metadata, ascending: nothing may be written there as data.
    pub(crate) metadata: Vec<u64>,
    pub(crate) packed: Packed,
    pub(crate) recorder: Recorder,
}

impl<S> fmt::Debug for WriteImage<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteImage")
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

impl<'a, S: StorageMut> WriteImage<'a, S> {
    /// Opens the image with this header, which is neither dirty nor corrupt, for writing. `data` is its data file if
    /// it has one.
    ///
    /// # Errors
    /// A table cannot be used; the image is encrypted.
    pub fn open(
        image: &'a S,
        data: Option<&'a S>,
        header: &Header,
        below: Box<dyn Below + 'a>,
        codec: Box<dyn Decompress + 'a>,
    ) -> Result<Self, WriteError> {
        Self::open_with(image, data, header, below, codec, None)
    }

    /// As [`Self::open`], with the cipher of the guest data if that is encrypted.
    ///
    /// # Errors
    /// A table cannot be used; the image is encrypted and there is no cipher.
    pub fn open_with(
        image: &'a S,
        data: Option<&'a S>,
        header: &Header,
        below: Box<dyn Below + 'a>,
        codec: Box<dyn Decompress + 'a>,
        cipher: Option<&'static dyn Cipher>,
    ) -> Result<Self, WriteError> {
        if cipher.is_some() != (header.crypt_method != CryptMethod::None) {
            return Err(WriteError::Encrypted);
        }
        if header.incompatible.external_data_file() != data.is_some() {
            let what = "data file";
            return Err(WriteError::Corrupt { what });
        }
        let counts = Counts::read(image, header)?;
        let tables = Tables::read(image, header)?;
        let metadata = metadata(header, &counts, &tables)?;
        let mut header = header.clone();
        keep_known_autoclear(&mut header);
        write_fields(image, &header)?;
        let recorder = Recorder::open(image, &header)?;
        Ok(Self {
            image,
            data,
            below,
            codec,
            cipher,
            division: Division::of(&header),
            header,
            tables,
            counts,
            metadata,
            packed: Packed::default(),
            recorder,
        })
    }

    /// The cipher of the guest data, if that is encrypted. Whoever writes data to a place that was given enciphers it;
    /// compressed data stays as it is.
    #[must_use]
    pub const fn cipher(&self) -> Option<&'static dyn Cipher> {
        self.cipher
    }

    /// Virtual size in bytes.
    #[must_use]
    pub const fn len_bytes(&self) -> u64 {
        self.header.whole_sectors_size()
    }

    /// Writes all of `bytes` at `guest`, of any alignment.
    ///
    /// # Errors
    /// A part may have been written.
    pub fn write_at(&mut self, guest: u64, bytes: &[u8]) -> Result<(), WriteError> {
        self.check_range(guest, bytes.len() as u64)?;
        self.recorder.note(guest, bytes.len() as u64);
        let bits = self.header.cluster_bits;
        let (mut at, mut rest) = (guest, bytes);
        while !rest.is_empty() {
            let start = at & bits.mask();
            let len =
                usize::try_from(bits.size_bytes().saturating_sub(start)).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at(len.min(rest.len()));
            self.write_cluster(at >> bits.get(), start, now)?;
            at = at.saturating_add(now.len() as u64);
            rest = later;
            if self.is_full() {
                self.commit()?;
            }
        }
        Ok(())
    }

    pub(crate) fn check_range(&self, guest: u64, len: u64) -> Result<(), WriteError> {
        let end = guest.checked_add(len);
        if end.is_none_or(|end| end > self.len_bytes()) {
            return Err(WriteError::PastEnd);
        }
        Ok(())
    }

    /// Where the bytes at `guest` lie if nothing but they need be written, and how many of `len` do in a row: the file
    /// (true: the data file) and the offset there. The caller may write them itself, at any time.
    ///
    /// # Errors
    /// The tables cannot be read.
    pub fn in_place(
        &mut self,
        guest: u64,
        len: u64,
    ) -> Result<Option<(bool, u64, u64)>, WriteError> {
        let bits = self.header.cluster_bits;
        let start = guest & bits.mask();
        let len = len.min(bits.size_bytes().saturating_sub(start));
        if len == 0
            || guest
                .checked_add(len)
                .is_none_or(|end| end > self.len_bytes())
        {
            return Ok(None);
        }
        let mapping = self.mapping(guest >> bits.get())?;
        let units = self.units(start, len);
        if !mapping.owned || mapping.data & units != units {
            return Ok(None);
        }
        self.check_place(mapping.host)?;
        self.recorder.note(guest, len);
        let at = mapping.host.saturating_add(start);
        Ok(Some((self.data.is_some(), at, len)))
    }

    /// Writes what the tables have to say of all that was written before, and makes everything durable.
    ///
    /// # Errors
    /// The store's; the same may be tried again.
    pub fn commit(&mut self) -> Result<(), WriteError> {
        if self.recorder.is_full() {
            self.record()?;
        }
        self.commit_tables()
    }

    pub(crate) fn commit_tables(&mut self) -> Result<(), WriteError> {
        if self.tables.is_dirty() || self.counts.is_dirty() {
            self.counts.name_blocks(self.image, &mut self.header)?;
            self.counts.write_counts(self.image)?;
            self.tables.write_fresh(self.image)?;
            self.flush_data()?;
            self.image.flush()?;
            self.tables.write_links(self.image)?;
            self.image.flush()?;
            self.tables.settled();
            return self.counts.apply_drops(self.image);
        }
        self.flush_data()
    }

    /// As [`Self::commit`], with refcounts that fell.
    ///
    /// # Errors
    /// As there.
    pub fn flush(&mut self) -> Result<(), WriteError> {
        self.commit()?;
        Ok(self.image.flush()?)
    }

    fn flush_data(&self) -> Result<(), WriteError> {
        match self.data {
            Some(data) => Ok(data.flush()?),
            None => Ok(()),
        }
    }

    /// The file that guest data lies in.
    const fn file(&self) -> &'a S {
        match self.data {
            Some(data) => data,
            None => self.image,
        }
    }

    pub(crate) fn mapping(&mut self, cluster: u64) -> Result<Mapping, WriteError> {
        let words = self.tables.get(self.image, cluster)?;
        Mapping::decode(words, self.division, self.data.is_some())
    }

    /// The units that hold `len` bytes from byte `start` of a cluster on.
    pub(crate) const fn units(&self, start: u64, len: u64) -> u32 {
        if !self.division.extended {
            return 1;
        }
        let shift = self.division.unit().trailing_zeros();
        let last = start.saturating_add(len).saturating_sub(1);
        mask(start >> shift, last >> shift)
    }

    /// Whether data may be written to a cluster.
    pub(crate) fn check_place(&self, host: u64) -> Result<(), WriteError> {
        let cluster = host >> self.header.cluster_bits.get();
        if self.data.is_none() && self.metadata.binary_search(&cluster).is_ok() {
            let what = "data cluster overlaps with metadata";
            return Err(WriteError::Corrupt { what });
        }
        Ok(())
    }

    /// Writes `bytes` at byte `start` of a guest cluster.
    pub(crate) fn write_cluster(
        &mut self,
        cluster: u64,
        start: u64,
        bytes: &[u8],
    ) -> Result<(), WriteError> {
        let len = bytes.len() as u64;
        self.place_part(cluster, start, len, Some(bytes)).map(drop)
    }

    /// The first byte of a guest cluster that lies at `host`.
    const fn data_place(&self, cluster: u64, host: u64) -> DataPlace {
        DataPlace {
            host,
            guest: cluster << self.header.cluster_bits.get(),
        }
    }

    /// Writes guest data.
    fn write_data(&self, at: DataPlace, bytes: &[u8]) -> Result<(), WriteError> {
        let file = self.file();
        let written = match self.cipher {
            Some(cipher) => cipher.write(file, at, bytes),
            None => file.write_at(at.host, bytes),
        };
        Ok(written?)
    }

    /// Nothing refers to the old place of a cluster any more.
    pub(crate) fn leave(&mut self, old: &Mapping) {
        let bits = self.header.cluster_bits.get();
        if let Some(data) = old.compressed {
            let first = data.first_sector_offset().get() >> bits;
            let last = data.end_offset().get().saturating_sub(1) >> bits;
            let count = last.saturating_sub(first).saturating_add(1);
            self.counts.drop_later(first, count);
        } else if old.placed && self.data.is_none() {
            self.counts.drop_later(old.host >> bits, 1);
        }
    }
}

/// Clusters with metadata, ascending.
fn metadata(header: &Header, counts: &Counts, tables: &Tables) -> Result<Vec<u64>, WriteError> {
    let bits = header.cluster_bits;
    let mut clusters = Vec::new();
    let room = counts
        .places()
        .count()
        .saturating_add(tables.places().count());
    let reserved = clusters.try_reserve(room);
    reserved.map_err(|_| WriteError::OutOfMemory)?;
    clusters.push(0);
    for place in counts.places().chain(tables.places()) {
        clusters.push(place >> bits.get());
    }
    let l1_bytes = u64::from(header.l1_size).saturating_mul(8);
    for (offset, bytes) in [
        (header.l1_table_offset, l1_bytes),
        (header.refcount_table_offset, header.refcount_table_bytes()),
    ] {
        let first = bits.cluster_of(offset).get();
        clusters.extend(first..first.saturating_add(bits.clusters_for(bytes)));
    }
    // By a heap, which is a tenth of the code of the other ways.
    Ok(BinaryHeap::from(clusters).into_sorted_vec())
}
