//! Refcounts in memory: pages of counters, only where the image has something.
//!
//! A page holds, for [`PAGE_CLUSTERS`] clusters, the references counted and the
//! refcounts that the image stores. It comes into being with the first nonzero
//! refcount or reference in it, so a sparse file costs what it contains. When
//! the granted memory is used up, the highest pages are given up and the window
//! ends below them; the check then runs again from the lowest page missed.

use crate::counter::Counter;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// The logarithm of [`PAGE_CLUSTERS`].
pub const PAGE_BITS: u32 = 12;
/// Clusters of a page.
pub const PAGE_CLUSTERS: usize = 1 << PAGE_BITS;
/// Most pages in a window, whatever the grant: 8 MiB of directory.
const MAX_DIRECTORY: u64 = 1 << 21;
/// The number of a page that is not in use.
const FREE: u64 = u64::MAX;

/// Counters of [`PAGE_CLUSTERS`] clusters.
pub struct Page<T> {
    /// Its first cluster divided by [`PAGE_CLUSTERS`].
    pub number: u64,
    /// References counted.
    pub counted: Box<[T; PAGE_CLUSTERS]>,
    /// Refcounts that the image stores.
    pub stored: Box<[T; PAGE_CLUSTERS]>,
    /// Messages that counting in this page has given.
    messages: u32,
}

/// No memory even for the least that is needed.
#[derive(Clone, Copy, Debug)]
pub struct NoMemory;

/// The pages of one window of clusters.
pub struct Pages<T> {
    /// For each page from `first` on: 0, or its place in `slots` plus one.
    directory: Vec<u32>,
    slots: Vec<Page<T>>,
    free: Vec<u32>,
    capacity: usize,
    first: u64,
    end: u64,
    /// Pages that the file has.
    total: u64,
    /// The lowest page that was wanted at or above `end`.
    missed: Option<u64>,
    /// Messages of pages that were given up: not to be printed again.
    told: BTreeMap<u64, u32>,
    /// No more messages.
    silent: bool,
}

fn boxed<T: Counter>() -> Option<Box<[T; PAGE_CLUSTERS]>> {
    let mut items = Vec::new();
    items.try_reserve_exact(PAGE_CLUSTERS).ok()?;
    items.resize(PAGE_CLUSTERS, T::default());
    Box::try_from(items.into_boxed_slice()).ok()
}

impl<T: Counter> Pages<T> {
    /// Bytes of one page with its share of the directory.
    pub const PAGE_BYTES: u64 =
        (2 * PAGE_CLUSTERS * size_of::<T>() + size_of::<Page<T>>() + 4) as u64;

    /// Pages for `clusters` clusters in `bytes` of memory, at least one page.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn new(clusters: u64, bytes: u64) -> Result<Self, NoMemory> {
        let total = clusters.div_ceil(PAGE_CLUSTERS as u64);
        let capacity = usize::try_from(bytes.checked_div(Self::PAGE_BYTES).unwrap_or(0))
            .unwrap_or(usize::MAX)
            .max(1);
        let mut directory = Vec::new();
        let entries = usize::try_from(total.min(MAX_DIRECTORY)).map_err(|_| NoMemory)?;
        directory.try_reserve_exact(entries).map_err(|_| NoMemory)?;
        directory.resize(entries, 0);
        let mut pages = Self {
            directory,
            slots: Vec::new(),
            free: Vec::new(),
            capacity,
            first: 0,
            end: 0,
            total,
            missed: None,
            told: BTreeMap::new(),
            silent: false,
        };
        pages.begin(0);
        Ok(pages)
    }

    /// Empties everything and starts a window at page `first`.
    pub fn begin(&mut self, first: u64) {
        self.free.clear();
        for (at, page) in (0_u32..).zip(&mut self.slots) {
            page.number = FREE;
            self.free.push(at);
        }
        self.directory.fill(0);
        self.first = first;
        self.end = self
            .total
            .min(first.saturating_add(self.directory.len() as u64));
        self.missed = None;
    }

    /// First page of the window.
    pub const fn first(&self) -> u64 {
        self.first
    }

    /// The lowest page that this window could not hold, where the next begins.
    pub const fn next_window(&self) -> Option<u64> {
        self.missed
    }

    /// Notes that something is at a page, which may be past the window.
    pub fn miss(&mut self, number: u64) {
        if number >= self.end {
            self.missed = Some(self.missed.map_or(number, |low| low.min(number)));
        }
    }

    /// True if the page can be counted in this window.
    pub const fn covers(&self, number: u64) -> bool {
        number >= self.first && number < self.end
    }

    fn place(&self, number: u64) -> Option<usize> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let slot = *self.directory.get(at)?;
        usize::try_from(slot.checked_sub(1)?).ok()
    }

    /// The page if it has come into being.
    pub fn get(&self, number: u64) -> Option<&Page<T>> {
        self.slots.get(self.place(number)?)
    }

    /// The page, made on first use; `None` if the window does not hold it.
    ///
    /// # Errors
    /// [`NoMemory`].
    #[inline]
    pub fn get_or_make(&mut self, number: u64) -> Result<Option<&mut Page<T>>, NoMemory> {
        if let Some(at) = self.place(number) {
            return Ok(self.slots.get_mut(at));
        }
        self.make(number)
    }

    #[cold]
    #[inline(never)]
    fn make(&mut self, number: u64) -> Result<Option<&mut Page<T>>, NoMemory> {
        self.miss(number);
        if !self.covers(number) {
            return Ok(None);
        }
        let mut slot = self.new_slot()?;
        if slot.is_none() {
            self.give_up_highest(number);
            if !self.covers(number) {
                return Ok(None);
            }
            slot = self.free.pop();
        }
        let (Some(slot), Ok(at)) = (slot, usize::try_from(number.saturating_sub(self.first)))
        else {
            return Err(NoMemory);
        };
        if let Some(entry) = self.directory.get_mut(at) {
            *entry = slot.saturating_add(1);
        }
        let place = usize::try_from(slot).map_err(|_| NoMemory)?;
        let Some(page) = self.slots.get_mut(place) else {
            return Err(NoMemory);
        };
        page.number = number;
        page.counted.fill(T::default());
        page.stored.fill(T::default());
        page.messages = 0;
        Ok(Some(page))
    }

    /// A free place, a new one while the grant lasts, or `None`.
    fn new_slot(&mut self) -> Result<Option<u32>, NoMemory> {
        if let Some(slot) = self.free.pop() {
            return Ok(Some(slot));
        }
        if self.slots.len() >= self.capacity {
            return Ok(None);
        }
        let room = self.slots.try_reserve(1).is_ok()
            && self
                .free
                .try_reserve(self.slots.len().saturating_add(1))
                .is_ok();
        let (true, Some(counted), Some(stored)) = (room, boxed(), boxed()) else {
            self.capacity = self.slots.len();
            return if self.capacity == 0 {
                Err(NoMemory)
            } else {
                Ok(None)
            };
        };
        let slot = u32::try_from(self.slots.len()).map_err(|_| NoMemory)?;
        self.slots.push(Page {
            number: FREE,
            counted,
            stored,
            messages: 0,
        });
        Ok(Some(slot))
    }

    /// Frees the highest eighth of the pages; the window ends below them, and
    /// below `wanted` if that is higher than all pages kept.
    fn give_up_highest(&mut self, wanted: u64) {
        let mut order: Vec<(u64, u32)> = (0_u32..)
            .zip(&self.slots)
            .map(|(at, page)| (page.number, at))
            .collect();
        order.sort_unstable();
        let keep = order.len().saturating_sub(order.len().div_ceil(8));
        if order.last().is_none_or(|(highest, _)| wanted > *highest) {
            self.end = self.end.min(wanted);
            self.miss(wanted);
            return;
        }
        for (number, slot) in order.split_off(keep) {
            self.end = self.end.min(number);
            self.drop_page(number, slot);
        }
        self.missed = Some(self.end);
    }

    fn drop_page(&mut self, number: u64, slot: u32) {
        let place = usize::try_from(number.saturating_sub(self.first)).ok();
        if let Some(entry) = place.and_then(|at| self.directory.get_mut(at)) {
            *entry = 0;
        }
        let page = usize::try_from(slot)
            .ok()
            .and_then(|slot| self.slots.get_mut(slot));
        if let Some(page) = page {
            if page.messages > 0 {
                let told = self.told.entry(number).or_insert(0);
                *told = page.messages.max(*told);
            }
            page.number = FREE;
        }
        self.free.push(slot);
    }

    /// Counts a message that a page gives rise to. False if an earlier pass,
    /// which had to give the page up, has told it.
    pub fn tell(&mut self, number: u64) -> bool {
        let told = self.told.get(&number).copied().unwrap_or(0);
        let Some(page) = self.place(number).and_then(|at| self.slots.get_mut(at)) else {
            return false;
        };
        page.messages = page.messages.saturating_add(1);
        page.messages > told && !self.silent
    }

    /// No message is to be printed from now on: all of them have been.
    pub const fn be_silent(&mut self) {
        self.silent = true;
    }

    /// Makes what was counted so far what `stored` holds, and starts again at 0.
    pub fn put_counted_aside(&mut self) {
        for page in &mut self.slots {
            core::mem::swap(&mut page.counted, &mut page.stored);
            page.counted.fill(T::default());
        }
    }

    /// Numbers of the pages in use, ascending.
    pub fn numbers(&self) -> Vec<u64> {
        let mut numbers: Vec<u64> = self
            .slots
            .iter()
            .map(|page| page.number)
            .filter(|n| *n != FREE)
            .collect();
        numbers.sort_unstable();
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn highest_pages_are_given_up_and_missed() {
        let mut pages =
            Pages::<u16>::new(100 * PAGE_CLUSTERS as u64, 2 * Pages::<u16>::PAGE_BYTES).unwrap();
        for number in [50, 10, 30, 99, 10] {
            let _ = pages.get_or_make(number).unwrap();
        }
        assert_eq!(pages.numbers(), [10, 30]);
        assert_eq!(pages.next_window(), Some(50));
        assert!(pages.get_or_make(60).unwrap().is_none());
        assert!(pages.get_or_make(40).unwrap().is_none());
        assert_eq!(pages.next_window(), Some(40));
        assert!(pages.get_or_make(5).unwrap().is_some());
        assert_eq!(pages.next_window(), Some(30));
        pages.begin(30);
        assert!(pages.get_or_make(5).unwrap().is_none());
        assert!(pages.get_or_make(30).unwrap().is_some());
        assert_eq!(pages.next_window(), None);
    }

    #[test]
    fn message_of_a_page_given_up_is_told_once() {
        let mut pages = Pages::<u16>::new(100 * PAGE_CLUSTERS as u64, 1).unwrap();
        assert!(pages.get_or_make(7).unwrap().is_some());
        assert!(pages.tell(7));
        assert!(pages.get_or_make(3).unwrap().is_some());
        assert_eq!(pages.next_window(), Some(7));
        pages.begin(7);
        assert!(pages.get_or_make(7).unwrap().is_some());
        assert!(!pages.tell(7));
        assert!(pages.tell(7));
    }
}
