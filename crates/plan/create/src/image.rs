//! An image that is being filled: its beginning and its end.

use crate::pages::{Pages, set_entry, zeroed};
use crate::refcounts::Refcounts;
use crate::{CreateError, NewBitmap, Spec, header};
use alloc::vec::Vec;
use instar_plan_txn::Monitor;
use instar_qcow2::entries::COPIED;
use instar_qcow2::{Header, HostOffset};
use instar_storage::{Cipher, StorageError, StorageMut};

/// What does not tear, in bytes.
const SECTOR: usize = 512;
/// No space left on device.
const ENOSPC: u32 = 28;
/// Bytes of an L1 page, unless the cluster is smaller.
const L1_PAGE_BYTES: u64 = 4096;

/// A new qcow2 image being filled. Until [`NewImage::finish`] returns it is no qcow2 image.
///
/// Offsets and lengths of guest data are in bytes. A range starts at a multiple of
/// [`Spec::unit_bytes`]; its end may be anywhere, and counts up to the next such multiple.
#[derive(Debug)]
pub struct NewImage<'a, S> {
    pub(crate) image: &'a S,
    pub(crate) data: Option<&'a S>,
    pub(crate) header: Header,
    /// L2 tables and refcount blocks.
    pub(crate) pages: Pages<'a, S>,
    l1: Pages<'a, S>,
    pub(crate) refcounts: Refcounts,
    pub(crate) bitmaps: Vec<NewBitmap>,
    /// Of the guest's data.
    pub(crate) cipher: Option<&'static dyn Cipher>,
    /// True if clusters that nobody has written read as zeros.
    pub(crate) clean: bool,
}

impl<'a, S: StorageMut> NewImage<'a, S> {
    /// Begins an image. What the files held is gone: a file is cut to length 0, a device loses its header.
    /// Preallocated clusters get their places, and their space.
    ///
    /// # Errors
    /// [`CreateError`]; what the files held may be gone.
    pub fn begin(
        image: &'a S,
        data: Option<&'a S>,
        spec: &Spec,
        monitor: &mut dyn Monitor,
    ) -> Result<Self, CreateError> {
        let mut header = spec.header.clone();
        let cluster = header.cluster_bits.size_bytes();
        let clean = clear(image, cluster)?;
        let mut pages = Pages::new(image, cluster);
        let mut refcounts = Refcounts::new(&header)?;
        refcounts.take(&mut pages, 2)?;
        let l1_bytes = u64::from(header.l1_size).saturating_mul(8);
        let l1_clusters = header.cluster_bits.clusters_for(l1_bytes);
        let l1_offset = refcounts.take(&mut pages, l1_clusters)?;
        header.l1_table_offset = HostOffset(l1_offset);
        if let Some(area) = &mut header.extensions.crypto_header {
            let clusters = header.cluster_bits.clusters_for(area.length);
            area.offset = HostOffset(refcounts.take(&mut pages, clusters)?);
        }
        let mut new = Self {
            image,
            data,
            header,
            pages,
            l1: Pages::new(image, L1_PAGE_BYTES.min(cluster)),
            refcounts,
            bitmaps: Vec::new(),
            cipher: None,
            clean,
        };
        if !clean {
            new.check_room()?;
            image.write_zeroes(l1_offset, l1_clusters.saturating_mul(cluster))?;
        }
        new.begin_data(spec)?;
        new.preallocate(spec, monitor)?;
        Ok(new)
    }

    /// Where the caller puts the LUKS header before [`NewImage::finish`], if the image has one: first byte and
    /// bytes. They lie in clusters of their own.
    #[must_use]
    pub fn crypto_header(&self) -> Option<(u64, u64)> {
        let area = self.header.extensions.crypto_header?;
        Some((area.offset.get(), area.length))
    }

    /// Enciphers from now on what the image itself writes for the guest. What the caller writes to places that it
    /// was given is the caller's to encipher.
    pub const fn encipher_with(&mut self, cipher: Option<&'static dyn Cipher>) {
        self.cipher = cipher;
    }

    /// Empties the data file and gives it its length.
    fn begin_data(&mut self, spec: &Spec) -> Result<(), CreateError> {
        let Some(data) = self.data.filter(|data| data.can_grow()) else {
            return Ok(());
        };
        if data.len_bytes() > 0 {
            data.set_len(0)?;
        }
        Ok(data.set_len(spec.virtual_size())?)
    }

    /// Where the L2 table is that maps `guest`; a new one if there is none.
    pub(crate) fn l2_table(&mut self, guest: u64) -> Result<u64, CreateError> {
        if let Some(offset) = self.l2_table_if_any(guest)? {
            return Ok(offset);
        }
        let offset = self.refcounts.take(&mut self.pages, 1)?;
        self.pages.fresh(offset)?;
        let (page, index) = self.l1_place(guest);
        set_entry(self.l1.get(page)?, index, COPIED | offset);
        Ok(offset)
    }

    /// Where the L2 table is that maps `guest`, if there is one.
    pub(crate) fn l2_table_if_any(&mut self, guest: u64) -> Result<Option<u64>, CreateError> {
        let (page, index) = self.l1_place(guest);
        let entry = crate::pages::entry(self.l1.get(page)?, index);
        Ok((entry != 0).then_some(entry & !COPIED))
    }

    /// Offset of the page of the L1 table, and index in it.
    fn l1_place(&self, guest: u64) -> (u64, u64) {
        let per_page = L1_PAGE_BYTES.min(self.header.cluster_bits.size_bytes()) >> 3;
        let index = guest
            .checked_div(self.header.l2_table_span())
            .unwrap_or(u64::MAX);
        let page = index.checked_div(per_page).unwrap_or(0);
        let in_page = index.checked_rem(per_page).unwrap_or(0);
        let offset = page.saturating_mul(per_page).saturating_mul(8);
        let start = self.header.l1_table_offset.get();
        (start.saturating_add(offset), in_page)
    }

    /// Writes what is missing, and makes it a qcow2 image. On return everything is durable.
    ///
    /// # Errors
    /// [`CreateError`]: it is no qcow2 image then, unless the store failed at the last flush.
    pub fn finish(mut self) -> Result<(), CreateError> {
        self.write_bitmaps()?;
        let (offset, clusters) = self.refcounts.place_table(&mut self.pages)?;
        self.header.refcount_table_offset = HostOffset(offset);
        self.header.refcount_table_clusters =
            u32::try_from(clusters).map_err(|_| CreateError::TOO_LARGE)?;
        self.check_room()?;
        let table = self.refcounts.table_bytes(clusters)?;
        self.pages.write_out()?;
        self.l1.write_out()?;
        self.image.write_at(offset, &table)?;
        let mut head = header::encode(&self.header);
        head.resize(head.len().next_multiple_of(SECTOR), 0);
        let (first, rest) = head
            .split_at_checked(SECTOR)
            .ok_or(CreateError::HeaderFull)?;
        if !rest.is_empty() {
            self.image.write_at(SECTOR as u64, rest)?;
        }
        if self.image.can_grow() {
            self.image.set_len(self.length())?;
        }
        if let Some(data) = self.data {
            data.flush()?;
        }
        self.image.flush()?;
        self.image.write_at(0, first)?;
        Ok(self.image.flush()?)
    }

    /// Refuses a device that the image does not fit.
    fn check_room(&self) -> Result<(), CreateError> {
        let len = self.image.len_bytes();
        if self.image.can_grow() || self.length() <= len {
            return Ok(());
        }
        Err(CreateError::Storage(StorageError {
            errno: ENOSPC,
            offset: len,
        }))
    }

    /// The file's length: whole clusters, but for an L1 table at its end.
    fn length(&self) -> u64 {
        let l1_bytes = u64::from(self.header.l1_size).saturating_mul(8);
        let l1_end = self.header.l1_table_offset.get().saturating_add(l1_bytes);
        let end = self.refcounts.end_offset();
        if self.header.cluster_bits.clusters_for(l1_end)
            == self.header.cluster_bits.clusters_for(end)
        {
            return l1_end;
        }
        end
    }
}

/// Empties a file, or takes the header off a device. True if what is not written from now on is zeros.
fn clear<S: StorageMut>(image: &S, cluster: u64) -> Result<bool, CreateError> {
    if image.can_grow() {
        if image.len_bytes() > 0 {
            // The old header must not outlive what it speaks of.
            image.set_len(0)?;
            image.flush()?;
        }
        return Ok(true);
    }
    let len = cluster.min(image.len_bytes());
    image.write_at(0, &zeroed(len)?)?;
    image.flush()?;
    Ok(false)
}
