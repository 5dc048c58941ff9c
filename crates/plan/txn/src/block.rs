//! A refcount block on its way from the old state to the new one.

use crate::{TxnError, without_zeros};
use alloc::vec::Vec;
use core::ops::Range;
use instar_qcow2::refcount::RefcountWidth;
use instar_storage::{StorageMut, Write};

/// What does not tear.
const SECTOR: usize = 512;

/// A refcount block of the new state.
#[derive(Debug, Default)]
pub struct Block {
    /// Where the old state has it, until that is freed; 0 if nowhere.
    pub home: u64,
    /// Where the old state had it when that was freed.
    freed_home: u64,
    /// Where the state before the old one had it; 0 if nowhere.
    pub before: u64,
    /// Where the new state has it, if it changes; 0 before that is known.
    pub shadow: u64,
    /// It differs from the old state.
    pub changed: bool,
    /// `shadow` is `before`, with the bytes of that time.
    pub returned: bool,
    /// Something was written to `shadow`.
    stored: bool,
    /// `data` differs from what is at `shadow`.
    pub dirty: bool,
    /// It counts nothing, and the new state does without it.
    pub gone: bool,
    /// Its bytes, if they are in memory.
    pub data: Option<Vec<u8>>,
    /// The part of `data` that differs from the first old state.
    touched: Range<usize>,
    /// A bit for each cluster that the old state uses and the new one does not.
    pub pinned: Vec<u64>,
}

impl Block {
    /// Where the new state has it, as far as is known.
    pub const fn place(&self) -> u64 {
        if self.changed { self.shadow } else { self.home }
    }

    /// Where the old state has it, if that is still the caller's to free; else 0.
    pub fn take_home(&mut self) -> u64 {
        let home = core::mem::take(&mut self.home);
        if home != 0 {
            self.freed_home = home;
        }
        home
    }

    /// The new state becomes the old one.
    pub fn switched(&mut self) {
        self.before = self.home;
        if self.changed {
            self.before = core::mem::take(&mut self.freed_home);
            self.home = core::mem::take(&mut self.shadow);
        }
        (self.changed, self.dirty, self.gone) = (false, false, false);
        (self.returned, self.stored) = (false, false);
        self.pinned = Vec::new();
    }

    /// What is to be written. Bytes from `zeros_from` on are zeros before.
    pub fn write_of(&self, zeros_from: u64) -> Option<Write<'_>> {
        let data = self.data.as_deref()?;
        if !self.dirty || self.shadow == 0 {
            return None;
        }
        if self.returned {
            let start = self.touched.start & !SECTOR.saturating_sub(1);
            let end = self.touched.end.next_multiple_of(SECTOR).min(data.len());
            let buf = data.get(start..end)?;
            let offset = self.shadow.saturating_add(start as u64);
            return (!buf.is_empty()).then_some(Write { offset, buf });
        }
        let zeros_from = if self.stored { u64::MAX } else { zeros_from };
        without_zeros(self.shadow, data, zeros_from)
    }

    /// What was to be written is.
    pub const fn written(&mut self) {
        if self.shadow != 0 {
            self.dirty = false;
        }
    }

    /// Notes that `count` refcounts from `at` on change.
    fn touch(&mut self, width: RefcountWidth, at: u64, count: u64) {
        let byte = |entry: u64| entry.saturating_mul(u64::from(width.bits()));
        let start = usize::try_from(byte(at) / 8).unwrap_or(usize::MAX);
        let end = byte(at.saturating_add(count)).div_ceil(8);
        let end = usize::try_from(end).unwrap_or(usize::MAX);
        if self.touched.is_empty() {
            self.touched = start..end;
        } else {
            self.touched = self.touched.start.min(start)..self.touched.end.max(end);
        }
    }

    /// Sets a refcount; one that becomes 0 is pinned.
    pub fn set(&mut self, width: RefcountWidth, per_block: u64, at: u64, value: u64) {
        self.touch(width, at, 1);
        if let Some(data) = &mut self.data {
            width.set(data, at, value);
        }
        if value == 0 {
            self.pin(at, per_block);
        }
    }

    fn pin(&mut self, at: u64, per_block: u64) {
        if self.pinned.is_empty() {
            let words = usize::try_from(per_block.div_ceil(64)).unwrap_or(0);
            self.pinned.resize(words, 0);
        }
        let word = usize::try_from(at / 64).unwrap_or(usize::MAX);
        if let Some(word) = self.pinned.get_mut(word) {
            *word |= 1 << (at % 64);
        }
    }

    /// True if the old state uses the cluster and the new one does not.
    pub fn is_pinned(&self, at: u64) -> bool {
        let word = usize::try_from(at / 64).unwrap_or(usize::MAX);
        self.pinned
            .get(word)
            .is_some_and(|word| word & (1 << (at % 64)) != 0)
    }

    /// Changes `count` refcounts from `at` on by one. True if one was pinned; the error is the index of the
    /// first that cannot be changed, counted from `at`.
    pub fn change(
        &mut self,
        width: RefcountWidth,
        per_block: u64,
        at: u64,
        count: u64,
        drop: bool,
    ) -> Result<bool, u64> {
        self.touch(width, at, count);
        if width.bits() == 16 {
            return self.change_16(per_block, at, count, drop);
        }
        let mut pinned = false;
        for i in 0..count {
            let entry = at.saturating_add(i);
            let data = self.data.as_deref_mut().unwrap_or_default();
            let old = width.get(data, entry).unwrap_or(0);
            let new = if drop {
                old.checked_sub(1).ok_or(i)?
            } else {
                old.checked_add(1).filter(|n| *n <= width.max()).ok_or(i)?
            };
            width.set(data, entry, new);
            if new == 0 {
                self.pin(entry, per_block);
                pinned = true;
            }
        }
        Ok(pinned)
    }

    /// [`Self::change`] for the common width.
    fn change_16(&mut self, per_block: u64, at: u64, count: u64, drop: bool) -> Result<bool, u64> {
        let mut data = self.data.take().unwrap_or_default();
        let from = usize::try_from(at).unwrap_or(usize::MAX);
        let len = usize::try_from(count).unwrap_or(usize::MAX);
        let entries = data.as_chunks_mut::<2>().0.iter_mut().skip(from).take(len);
        let mut result = Ok(false);
        for (entry, i) in entries.zip(0_u64..) {
            let old = u16::from_be_bytes(*entry);
            let new = if drop {
                old.checked_sub(1)
            } else {
                old.checked_add(1)
            };
            let Some(new) = new else {
                result = Err(i);
                break;
            };
            *entry = new.to_be_bytes();
            if new == 0 {
                self.pin(at.saturating_add(i), per_block);
                result = Ok(true);
            }
        }
        self.data = Some(data);
        result
    }

    /// Writes it, if it has a place.
    ///
    /// # Errors
    /// The store's.
    pub fn write<S: StorageMut>(&mut self, storage: &S) -> Result<(), TxnError> {
        if let (true, true, Some(data)) = (self.dirty, self.shadow != 0, &self.data) {
            storage.write_at(self.shadow, data)?;
            (self.dirty, self.stored) = (false, true);
        }
        // A changed block without a shadow stays in memory.
        Ok(())
    }
}
