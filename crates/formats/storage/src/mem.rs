//! Bytes in memory: sparse, and cheap to clone.

use crate::{Extent, Reserve, Storage, StorageError, StorageMut};
use core::fmt;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::vec::Vec;

/// Bytes of a page: what clones share, and the granularity of holes.
const PAGE_BYTES: usize = 16 << 10;
/// [`PAGE_BYTES`], as an offset.
const PAGE: u64 = PAGE_BYTES as u64;
/// File too large.
const EFBIG: u32 = 27;

type Page = [u8; PAGE_BYTES];

/// A sparse store in memory.
///
/// Clones share their pages until one of them writes, so that a copy of an image costs a few
/// nanoseconds per 16 KiB. Pages never written are holes. The length is at most `i64::MAX`,
/// past which a write is EFBIG; a flush does nothing.
#[derive(Clone, Default)]
pub struct MemStorage {
    state: RefCell<State>,
}

#[derive(Clone, Default)]
struct State {
    len: u64,
    pages: BTreeMap<u64, Arc<Page>>,
}

impl MemStorage {
    /// Holds `bytes`, all of it data.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        let mut state = State::default();
        state.write(0, &bytes);
        Self {
            state: RefCell::new(state),
        }
    }

    /// One hole of `len` bytes.
    #[must_use]
    pub fn hole(len: u64) -> Self {
        let pages = BTreeMap::new();
        Self {
            state: RefCell::new(State { len, pages }),
        }
    }

    /// A copy of a file; blocks of zeros become holes.
    ///
    /// # Errors
    /// What reading it says.
    pub fn load(file: &File) -> std::io::Result<Self> {
        let len = file.metadata()?.len();
        let mut state = State::default();
        let mut buf = std::vec![0; PAGE_BYTES];
        let mut at = 0;
        while at < len {
            let n = file.read_at(&mut buf, at)?;
            let bytes = buf.get(..n).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            if bytes.iter().any(|byte| *byte != 0) {
                state.write(at, bytes);
            }
            at = at.saturating_add(n as u64);
        }
        state.len = len;
        Ok(Self {
            state: RefCell::new(state),
        })
    }

    /// Writes everything to an empty file; holes stay holes.
    ///
    /// # Errors
    /// What writing it says.
    pub fn save(&self, file: &File) -> std::io::Result<()> {
        let state = self.state.borrow();
        file.set_len(state.len)?;
        for (index, page) in &state.pages {
            let at = index.saturating_mul(PAGE);
            let len = usize::try_from(state.len.saturating_sub(at)).unwrap_or(PAGE_BYTES);
            let bytes = page.get(..len.min(PAGE_BYTES)).unwrap_or_default();
            file.write_all_at(bytes, at)?;
        }
        Ok(())
    }

    /// All bytes.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let state = self.state.borrow();
        let mut bytes = std::vec![0; usize::try_from(state.len).unwrap_or(0)];
        state.read(0, &mut bytes);
        bytes
    }
}

impl From<Vec<u8>> for MemStorage {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(bytes)
    }
}

/// Equal length and equal bytes; where the holes are does not matter.
impl PartialEq for MemStorage {
    fn eq(&self, other: &Self) -> bool {
        const ZEROS: &Page = &[0; PAGE_BYTES];
        let (one, two) = (self.state.borrow(), other.state.borrow());
        let same = |index: &u64| {
            let one = one.pages.get(index).map_or(ZEROS, |page| &**page);
            let two = two.pages.get(index).map_or(ZEROS, |page| &**page);
            core::ptr::eq(one, two) || one == two
        };
        one.len == two.len && one.pages.keys().chain(two.pages.keys()).all(same)
    }
}

impl Eq for MemStorage {}

impl fmt::Debug for MemStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.borrow();
        write!(
            f,
            "MemStorage({} bytes, {} pages)",
            state.len,
            state.pages.len()
        )
    }
}

impl State {
    fn read(&self, offset: u64, buf: &mut [u8]) {
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let (index, skip) = place(at);
            let n = rest.len().min(PAGE_BYTES.saturating_sub(skip));
            let (now, later) = rest.split_at_mut(n);
            let page = self.pages.get(&index).and_then(|page| page.get(skip..));
            match page.and_then(|page| page.get(..n)) {
                Some(bytes) => now.copy_from_slice(bytes),
                None => now.fill(0),
            }
            rest = later;
            // Past the last possible byte there are only zeros.
            at = at.saturating_add(n as u64);
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (index, skip) = place(at);
            let (now, later) = rest.split_at(rest.len().min(PAGE_BYTES.saturating_sub(skip)));
            let page = self.pages.entry(index);
            let page = Arc::make_mut(page.or_insert_with(|| Arc::new([0; PAGE_BYTES])));
            let to = page.get_mut(skip..).and_then(|to| to.get_mut(..now.len()));
            if let Some(to) = to {
                to.copy_from_slice(now);
            }
            rest = later;
            at = at.saturating_add(now.len() as u64);
        }
        self.len = self.len.max(at);
    }

    /// Clears `offset..end`; whole pages become holes. The length stays.
    fn clear(&mut self, offset: u64, end: u64) {
        if offset >= end {
            return;
        }
        let touched = place(offset).0..=place(end.saturating_sub(1)).0;
        let touched: Vec<u64> = self.pages.range(touched).map(|(index, _)| *index).collect();
        for index in touched {
            let start = index.saturating_mul(PAGE);
            let within = |at: u64| usize::try_from(at.saturating_sub(start).min(PAGE)).unwrap_or(0);
            let (from, to) = (within(offset), within(end));
            if to.saturating_sub(from) == PAGE_BYTES {
                self.pages.remove(&index);
            } else if let Some(page) = self.pages.get_mut(&index)
                && let Some(bytes) = Arc::make_mut(page).get_mut(from..to)
            {
                bytes.fill(0);
            }
        }
    }

    fn set_len(&mut self, len: u64) {
        // Every page's bytes past the end are zeros.
        self.clear(len, self.len);
        self.len = len;
    }

    fn extent_at(&self, offset: u64) -> Option<Extent> {
        let left = self.len.checked_sub(offset).filter(|left| *left > 0)?;
        let (first, _) = place(offset);
        let data = self.pages.contains_key(&first);
        let end = if data {
            let run = self.pages.range(first..).map(|(index, _)| *index);
            let run = run
                .zip(first..)
                .take_while(|(index, expected)| index == expected);
            run.last().map_or(first, |(index, _)| index).checked_add(1)
        } else {
            self.pages.range(first..).next().map(|(index, _)| *index)
        };
        let end = end.map_or(u64::MAX, |index| index.saturating_mul(PAGE));
        let len = end.saturating_sub(offset).min(left);
        Some(Extent { offset, len, data })
    }
}

/// Index of the page that holds byte `at`, and where in it.
#[allow(clippy::cast_possible_truncation)] // below PAGE_BYTES
const fn place(at: u64) -> (u64, usize) {
    (at / PAGE, (at % PAGE) as usize)
}

/// Where a change of `len` bytes at `offset` ends; 0 if it is of nothing.
fn end_of(offset: u64, len: u64) -> Result<u64, StorageError> {
    if len == 0 {
        return Ok(0);
    }
    let end = offset
        .checked_add(len)
        .filter(|end| i64::try_from(*end).is_ok());
    end.ok_or(StorageError {
        errno: EFBIG,
        offset,
    })
}

impl Storage for MemStorage {
    fn len_bytes(&self) -> u64 {
        self.state.borrow().len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        self.state.borrow().read(offset, buf);
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Option<Extent>, StorageError> {
        Ok(self.state.borrow().extent_at(offset))
    }
}

impl StorageMut for MemStorage {
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), StorageError> {
        end_of(offset, buf.len() as u64)?;
        if !buf.is_empty() {
            self.state.borrow_mut().write(offset, buf);
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StorageError> {
        let end = end_of(offset, len)?;
        let mut state = self.state.borrow_mut();
        state.clear(offset, end);
        state.len = state.len.max(end);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), StorageError> {
        let end = offset.saturating_add(len);
        let mut state = self.state.borrow_mut();
        let end = end.min(state.len);
        state.clear(offset, end);
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64, how: Reserve) -> Result<(), StorageError> {
        if how == Reserve::WrittenZeros {
            return self.write_zeroes(offset, len);
        }
        let end = end_of(offset, len)?;
        let mut state = self.state.borrow_mut();
        state.len = state.len.max(end);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), StorageError> {
        end_of(0, len)?;
        self.state.borrow_mut().set_len(len);
        Ok(())
    }

    fn flush(&self) -> Result<(), StorageError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_past_the_end_gives_zeros() {
        let mut buf = [0xff; 4];
        let store = MemStorage::new(std::vec![1, 2]);
        store.read_at(1, &mut buf).unwrap();
        assert_eq!(buf, [2, 0, 0, 0]);
        store.read_at(u64::MAX, &mut buf).unwrap();
        assert_eq!(buf, [0; 4]);
    }

    #[test]
    fn changes_agree_with_a_plain_vector() {
        let mut seed = 0x5eed_u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        let store = MemStorage::default();
        let mut plain: Vec<u8> = Vec::new();
        for round in 0..2000_u64 {
            let (at, len) = (next(100_000), next(40_000));
            let end = usize::try_from(at + len).unwrap();
            let at_index = usize::try_from(at).unwrap();
            match next(8) {
                0..4 => {
                    let byte = u8::try_from(round % 256).unwrap();
                    store
                        .write_at(at, &std::vec![byte; end - at_index])
                        .unwrap();
                    if len > 0 {
                        plain.resize(plain.len().max(end), 0);
                        plain[at_index..end].fill(byte);
                    }
                }
                4 | 5 => {
                    store.write_zeroes(at, len).unwrap();
                    plain.resize(plain.len().max(end), 0);
                    plain[at_index..end].fill(0);
                }
                6 => {
                    store.discard(at, len).unwrap();
                    let end = end.min(plain.len());
                    plain[at_index.min(end)..end].fill(0);
                }
                _ => {
                    store.set_len(at).unwrap();
                    plain.resize(at_index, 0);
                }
            }
            let copy = store.clone();
            copy.write_at(next(1000), b"only the copy").unwrap();
            assert_eq!(store.len_bytes(), plain.len() as u64, "round {round}");
            assert!(store.to_vec() == plain, "round {round}");
        }
    }

    #[test]
    fn extents_are_the_pages_written() {
        let store = MemStorage::hole(1 << 50);
        store.write_at(3 * PAGE + 5, &[1; PAGE_BYTES]).unwrap();
        let extent = |at| store.extent_at(at).unwrap().map(|e| (e.len, e.data));
        assert_eq!(extent(7), Some((3 * PAGE - 7, false)));
        assert_eq!(extent(3 * PAGE), Some((2 * PAGE, true)));
        assert_eq!(extent(5 * PAGE), Some(((1 << 50) - 5 * PAGE, false)));
        assert_eq!(extent(1 << 50), None);
        assert_eq!(store.write_at(u64::MAX - 1, &[0; 4]).unwrap_err().errno, 27);
    }

    #[test]
    fn files_come_back_as_they_were() {
        let store = MemStorage::hole(PAGE * 9 + 17);
        store.write_at(PAGE * 2 - 1, b"across").unwrap();
        store.write_at(PAGE * 9 + 10, b"the end").unwrap();
        let path = std::env::temp_dir().join(std::format!("instar-mem-{}", std::process::id()));
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(true);
        let file = options.open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        store.save(&file).unwrap();
        assert_eq!(MemStorage::load(&file).unwrap(), store);
        store.write_at(0, b"x").unwrap();
        assert_ne!(MemStorage::load(&file).unwrap(), store);
    }
}
