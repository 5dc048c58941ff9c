//! Clusters of metadata in memory, written out in batches.

use crate::CreateError;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use instar_storage::{StorageMut, Write};

/// Bytes of pages that are kept, unless [`MIN_PAGES`] are more.
const CACHE_BYTES: u64 = 2 << 20;
/// Pages that are kept in any case: what one step touches.
const MIN_PAGES: u64 = 6;

/// Pages of one size, by their offset in the store. All of them are dirty; what is written out is forgotten.
#[derive(Debug)]
pub struct Pages<'a, S> {
    storage: &'a S,
    page_bytes: u64,
    most: usize,
    pages: BTreeMap<u64, Vec<u8>>,
}

impl<'a, S: StorageMut> Pages<'a, S> {
    /// No pages of `page_bytes` bytes.
    pub fn new(storage: &'a S, page_bytes: u64) -> Self {
        let most = CACHE_BYTES
            .checked_div(page_bytes)
            .unwrap_or(0)
            .max(MIN_PAGES);
        Self {
            storage,
            page_bytes,
            most: usize::try_from(most).unwrap_or(1),
            pages: BTreeMap::new(),
        }
    }

    /// Starts a page of zeros.
    ///
    /// # Errors
    /// The store's, while other pages make room; no memory.
    pub fn fresh(&mut self, offset: u64) -> Result<(), CreateError> {
        let page = self.page()?;
        self.pages.insert(offset, page);
        Ok(())
    }

    /// The page at `offset`, read back if it was written out.
    ///
    /// # Errors
    /// The store's; no memory.
    pub fn get(&mut self, offset: u64) -> Result<&mut Vec<u8>, CreateError> {
        if !self.pages.contains_key(&offset) {
            let mut page = self.page()?;
            self.storage.read_at(offset, &mut page)?;
            self.pages.insert(offset, page);
        }
        self.pages.get_mut(&offset).ok_or(CreateError::OutOfMemory)
    }

    /// Room for one more.
    fn page(&mut self) -> Result<Vec<u8>, CreateError> {
        if self.pages.len() >= self.most {
            self.write_out()?;
        }
        zeroed(self.page_bytes)
    }

    /// Writes all pages out.
    ///
    /// # Errors
    /// The store's.
    pub fn write_out(&mut self) -> Result<(), CreateError> {
        let writes: Vec<Write<'_>> = self
            .pages
            .iter()
            .map(|(offset, buf)| Write {
                offset: *offset,
                buf,
            })
            .collect();
        self.storage.write_batch(&writes)?;
        self.pages.clear();
        Ok(())
    }
}

/// `len` zero bytes.
pub fn zeroed(len: u64) -> Result<Vec<u8>, CreateError> {
    let len = usize::try_from(len).map_err(|_| CreateError::OutOfMemory)?;
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(len)
        .map_err(|_| CreateError::OutOfMemory)?;
    bytes.resize(len, 0);
    Ok(bytes)
}

/// The big-endian number at `index` of a table of 8-byte entries; 0 past its end.
pub fn entry(table: &[u8], index: u64) -> u64 {
    let at = usize::try_from(index).unwrap_or(usize::MAX);
    let raw = table.as_chunks::<8>().0.get(at).copied();
    u64::from_be_bytes(raw.unwrap_or_default())
}

/// Sets the number at `index` of a table of 8-byte entries; nothing past its end.
pub fn set_entry(table: &mut [u8], index: u64, value: u64) {
    let at = usize::try_from(index).unwrap_or(usize::MAX);
    if let Some(slot) = table.as_chunks_mut::<8>().0.get_mut(at) {
        *slot = value.to_be_bytes();
    }
}
