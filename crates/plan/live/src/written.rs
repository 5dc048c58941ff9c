//! An image that is written to.

use crate::below::Backing;
use crate::extents::{ExtentKind, Extents};
use crate::image::Place;
use crate::{LiveError, MAX_TICKETS};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use instar_layers::Decompress;
use instar_plan_write::{Pending, TopKind, WriteError, WriteImage};
use instar_storage::StorageMut;

/// Bytes of tables, and of refcounts, in memory.
const CACHE_BYTES: u64 = 1 << 20;

/// What is being written.
#[derive(Debug)]
struct Ticket {
    number: u32,
    /// The clusters' bytes: start and end.
    clusters: (u64, u64),
    places: Vec<Pending>,
}

/// The last cluster that was decompressed.
#[derive(Debug, Default)]
struct Unpacked {
    /// First byte of the disk in it.
    guest: u64,
    /// Empty: there is none.
    bytes: Vec<u8>,
}

/// An image that is written to.
pub struct Written<'a, S, D> {
    image: WriteImage<'a, S>,
    below: Option<Rc<RefCell<Backing<S, D>>>>,
    files: Place,
    tickets: Vec<Ticket>,
    last_number: u32,
    unpacked: Unpacked,
}

impl<'a, S: StorageMut, D: Decompress> Written<'a, S, D> {
    /// An image over what lies below it.
    pub fn new(
        mut image: WriteImage<'a, S>,
        below: Option<Rc<RefCell<Backing<S, D>>>>,
        files: Place,
    ) -> Self {
        image.set_cache(CACHE_BYTES);
        image.punch();
        Self {
            image,
            below,
            files,
            tickets: Vec::new(),
            last_number: 0,
            unpacked: Unpacked::default(),
        }
    }

    pub const fn len_bytes(&self) -> u64 {
        self.image.len_bytes()
    }

    pub const fn cluster_bytes(&self) -> u64 {
        self.image.cluster_bytes()
    }

    /// The run from `guest` on: its length, and where it is.
    pub fn run_at(&mut self, guest: u64, most: u64) -> Result<(u64, ExtentKind), LiveError> {
        let run = self.image.run_at(guest, most)?;
        let kind = match run.kind {
            TopKind::Data {
                in_data_file,
                offset,
                in_place,
            } => ExtentKind::Data {
                file: self.file(in_data_file),
                offset,
                in_place,
            },
            TopKind::Zero => ExtentKind::Zero,
            TopKind::Packed => ExtentKind::Fetch,
            TopKind::Below => match &self.below {
                Some(below) => return below.borrow().run_at(guest, run.len),
                None => ExtentKind::Zero,
            },
        };
        Ok((run.len, kind))
    }

    const fn file(&self, in_data_file: bool) -> u16 {
        if in_data_file {
            self.files.data
        } else {
            self.files.image
        }
    }

    /// The clusters that hold a range: start and end in bytes.
    const fn clusters(&self, start: u64, end: u64) -> (u64, u64) {
        let mask = self.cluster_bytes().saturating_sub(1);
        (start & !mask, end.saturating_add(mask) & !mask)
    }

    /// The clusters that hold a range, of which no ticket has a part.
    fn idle(&self, start: u64, end: u64) -> Result<(u64, u64), LiveError> {
        let (start, end) = self.clusters(start, end);
        let busy = |ticket: &Ticket| ticket.clusters.0 < end && start < ticket.clusters.1;
        if self.tickets.iter().any(busy) {
            return Err(LiveError::Busy);
        }
        Ok((start, end))
    }

    pub fn allocate(
        &mut self,
        start: u64,
        end: u64,
        found: &mut Extents,
    ) -> Result<u32, LiveError> {
        let clusters = self.idle(start, end)?;
        if self.tickets.len() >= MAX_TICKETS {
            return Err(LiveError::Busy);
        }
        let mut places = Vec::new();
        if let Err(error) = self.places(start, end, found, &mut places) {
            for place in &places {
                self.image.give_up(place)?;
            }
            return Err(error);
        }
        places.retain(|place| self.image.needs_link(place));
        if places.is_empty() {
            return Ok(0);
        }
        let number = self.next_number();
        self.tickets.push(Ticket {
            number,
            clusters,
            places,
        });
        Ok(number)
    }

    /// A number that no ticket has; not 0.
    fn next_number(&mut self) -> u32 {
        loop {
            self.last_number = self.last_number.wrapping_add(1).max(1);
            let number = self.last_number;
            if self.tickets.iter().all(|ticket| ticket.number != number) {
                return number;
            }
        }
    }

    fn places(
        &mut self,
        start: u64,
        end: u64,
        found: &mut Extents,
        places: &mut Vec<Pending>,
    ) -> Result<(), LiveError> {
        let mut at = start;
        while at < end {
            if self.image.is_full() {
                self.image.commit()?;
            }
            let place = self.image.reserve(at, end.saturating_sub(at))?;
            places.push(place);
            if at == start {
                found.begin(place.guest);
            }
            let kind = ExtentKind::Data {
                file: self.file(place.placed.in_data_file),
                offset: place.placed.offset,
                in_place: true,
            };
            if !found.push(place.placed.len, kind) {
                return Err(LiveError::TooManyPieces);
            }
            at = place.guest.saturating_add(place.placed.len);
        }
        Ok(())
    }

    fn take(&mut self, number: u32) -> Result<Ticket, LiveError> {
        let found = self.tickets.iter().position(|t| t.number == number);
        let index = found.ok_or(LiveError::NoTicket)?;
        Ok(self.tickets.swap_remove(index))
    }

    pub fn link(&mut self, number: u32) -> Result<(), LiveError> {
        let ticket = self.take(number)?;
        self.unpacked.bytes.clear();
        for place in &ticket.places {
            self.image.link(place)?;
        }
        Ok(())
    }

    pub fn abandon(&mut self, number: u32) -> Result<(), LiveError> {
        let ticket = self.take(number)?;
        for place in &ticket.places {
            self.image.give_up(place)?;
        }
        Ok(())
    }

    pub fn discard(&mut self, start: u64, end: u64) -> Result<(), LiveError> {
        self.each_cluster_run((start, end), |image, start, len| image.forget(start, len))
    }

    pub fn write_zeroes(&mut self, start: u64, end: u64, unmap: bool) -> Result<(), LiveError> {
        self.each_cluster_run((start, end), |image, start, len| {
            if unmap {
                image.zeros(start, len)
            } else {
                image.zeros_in_place(start, len)
            }
        })
    }

    /// Has `change` make zeros of the range, table by table, but for what reads as zeros already.
    fn each_cluster_run(
        &mut self,
        (start, end): (u64, u64),
        change: impl Fn(&mut WriteImage<'a, S>, u64, u64) -> Result<(), WriteError>,
    ) -> Result<(), LiveError> {
        self.idle(start, end)?;
        self.unpacked.bytes.clear();
        let mask = self.cluster_bytes().saturating_sub(1);
        let mut at = start;
        while at < end {
            let run = self.image.run_at(at, end.saturating_sub(at))?;
            let until = at.saturating_add(run.len);
            let zero = match run.kind {
                TopKind::Zero => true,
                TopKind::Below => self.below.is_none(),
                _ => false,
            };
            let (_, last) = self.clusters(at, until);
            let skipped = if until == end { until } else { until & !mask };
            let next = if zero && skipped > at {
                skipped
            } else {
                let next = last.min(end);
                change(&mut self.image, at, next.saturating_sub(at))?;
                next
            };
            at = next;
            if self.image.is_full() {
                self.image.commit()?;
            }
        }
        Ok(())
    }

    pub fn fetch(&mut self, start: u64, buf: &mut [u8]) -> Result<(), LiveError> {
        let end = start.saturating_add(buf.len() as u64);
        let (first, last) = self.clusters(start, end);
        let single = last.saturating_sub(first) == self.cluster_bytes();
        let here = self.unpacked.guest == first && !self.unpacked.bytes.is_empty();
        if !single {
            return Ok(self.image.read_at(start, buf)?);
        }
        if !here {
            if !matches!(self.image.run_at(start, 1)?.kind, TopKind::Packed) {
                return Ok(self.image.read_at(start, buf)?);
            }
            self.unpack(first, last.min(self.len_bytes()))?;
        }
        let skip = usize::try_from(start.saturating_sub(first)).unwrap_or(usize::MAX);
        let part = self.unpacked.bytes.get(skip..).unwrap_or_default();
        buf.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
        Ok(())
    }

    /// Decompresses the cluster from `first` to `end`.
    fn unpack(&mut self, first: u64, end: u64) -> Result<(), LiveError> {
        let mut bytes = core::mem::take(&mut self.unpacked.bytes);
        let len = usize::try_from(end.saturating_sub(first)).unwrap_or(0);
        bytes.resize(len, 0);
        let read = self.image.read_at(first, &mut bytes);
        if read.is_err() {
            bytes.clear();
        }
        self.unpacked = Unpacked {
            guest: first,
            bytes,
        };
        Ok(read?)
    }

    /// `wrote`: data was written by this code as well.
    pub fn flush(&mut self, wrote: bool) -> Result<(), LiveError> {
        if wrote {
            self.image.flush()?;
        } else if self.image.is_changed() {
            self.image.commit()?;
        }
        Ok(())
    }

    pub fn close(&mut self) -> Result<(), LiveError> {
        for ticket in core::mem::take(&mut self.tickets) {
            for place in &ticket.places {
                self.image.give_up(place)?;
            }
        }
        Ok(self.image.finish()?)
    }
}
