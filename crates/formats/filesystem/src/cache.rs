//! The last lines of a store that were read: readers of file systems ask for the same few blocks again and again, in
//! small pieces.

use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;
use instar_storage::{Storage, StorageError};

/// Bytes of a line.
const LINE: usize = 64 << 10;
/// Lines that are held: 4 MiB in all. A line's place is the remainder of its number.
const LINES: usize = 64;

/// A store with a cache in front. Reads of whole lines and more pass it by.
pub struct Cached<S> {
    inner: S,
    lines: RefCell<Vec<Line>>,
}

#[derive(Clone, Default)]
struct Line {
    /// Its number, if it holds something.
    number: Option<u64>,
    bytes: Vec<u8>,
}

impl<S> fmt::Debug for Cached<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cached")
    }
}

impl<S: Storage> Cached<S> {
    /// `inner`, with nothing in the cache.
    pub fn new(inner: S) -> Self {
        Self {
            inner,
            lines: RefCell::new(vec![Line::default(); LINES]),
        }
    }

    /// The store behind the cache.
    pub const fn inner(&self) -> &S {
        &self.inner
    }

    /// Copies from line `number`, from `within` on; returns how many bytes.
    fn copy(&self, number: u64, within: usize, buf: &mut [u8]) -> Result<usize, StorageError> {
        let index = usize::try_from(number.checked_rem(LINES as u64).unwrap_or(0)).unwrap_or(0);
        let mut lines = self.lines.borrow_mut();
        let Some(line) = lines.get_mut(index) else {
            return Ok(0);
        };
        if line.number != Some(number) {
            line.number = None;
            line.bytes.resize(LINE, 0);
            let start = number.saturating_mul(LINE as u64);
            self.inner.read_at(start, &mut line.bytes)?;
            line.number = Some(number);
        }
        let from = line.bytes.get(within..).unwrap_or(&[]);
        let len = from.len().min(buf.len());
        if let (Some(from), Some(to)) = (from.get(..len), buf.get_mut(..len)) {
            to.copy_from_slice(from);
        }
        Ok(len)
    }
}

impl<S: Storage> Storage for Cached<S> {
    fn len_bytes(&self) -> u64 {
        self.inner.len_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        if buf.len() >= LINE {
            return self.inner.read_at(offset, buf);
        }
        let (mut at, mut left) = (offset, buf);
        while !left.is_empty() {
            let number = at.checked_div(LINE as u64).unwrap_or(0);
            let within = at.checked_rem(LINE as u64).unwrap_or(0);
            let within = usize::try_from(within).unwrap_or(0);
            let done = self.copy(number, within, left)?.max(1).min(left.len());
            at = at.saturating_add(done as u64);
            left = left.split_at_mut(done).1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use instar_storage::MemStorage;

    #[test]
    fn bytes_are_those_of_the_store_wherever_they_lie() {
        let bytes: Vec<u8> = (0..=250).cycle().take(LINE * 200 / 7).collect();
        let store = Cached::new(MemStorage::new(bytes.clone()));
        for (offset, len) in [
            (0, 1),
            (LINE - 3, 7),
            (5, LINE - 1),
            (LINE, 2 * LINE),
            (17, 0),
        ] {
            for _ in 0..2 {
                let mut buf = vec![9; len];
                store.read_at(offset as u64, &mut buf).unwrap();
                assert_eq!(buf, bytes[offset..offset + len], "{len} at {offset}");
            }
        }
    }
}
