//! Questions to an image.

use crate::below::{Backing, SharedBacking};
use crate::extents::{ExtentKind, Extents};
use crate::written::Written;
use crate::{LiveError, SECTOR_BYTES};
use alloc::boxed::Box;
use alloc::rc::Rc;
use core::cell::RefCell;
use core::fmt;
use instar_layers::Decompress;
use instar_plan_write::{Below, NothingBelow, WriteError, WriteImage};
use instar_storage::{Storage, StorageMut};

/// Extents that an answer has beyond what was asked, so that less is asked.
const MORE_EXTENTS: usize = 16;
/// How far an answer goes beyond what was asked, in bytes.
const AHEAD_BYTES: u64 = 32 << 20;

/// Numbers of an image's files in answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Of the image file.
    pub image: u16,
    /// Of its data file; of the image file if there is none.
    pub data: u16,
}

/// A disk that is in use.
pub struct LiveImage<'a, S, D> {
    kind: Kind<'a, S, D>,
    /// A file was written to, which no table says.
    wrote: bool,
}

enum Kind<'a, S, D> {
    /// All of it is where it is.
    Raw { file: &'a S, number: u16 },
    /// Nothing is written.
    Read(Backing<S, D>),
    /// Boxed: it is much larger than the others.
    Written(Box<Written<'a, S, D>>),
}

impl<S, D> fmt::Debug for LiveImage<'_, S, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveImage").finish_non_exhaustive()
    }
}

impl<'a, S: StorageMut, D: Decompress + 'a> LiveImage<'a, S, D> {
    /// A raw image that may be written; `number` is its file's number in answers.
    pub const fn raw(file: &'a S, number: u16) -> Self {
        Self::of(Kind::Raw { file, number })
    }

    /// A chain of images that are only read.
    pub const fn read_only(chain: Backing<S, D>) -> Self {
        Self::of(Kind::Read(chain))
    }

    /// An image that may be written, over what lies below it; `open` opens it over that, and `files` are its files'
    /// numbers in answers.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn written(
        below: Option<Backing<S, D>>,
        files: Place,
        open: impl FnOnce(Box<dyn Below + 'a>) -> Result<WriteImage<'a, S>, WriteError>,
    ) -> Result<Self, WriteError>
    where
        S: 'a,
    {
        let below = below.map(|below| Rc::new(RefCell::new(below)));
        let under: Box<dyn Below + 'a> = match &below {
            Some(below) => Box::new(SharedBacking(Rc::clone(below))),
            None => Box::new(NothingBelow),
        };
        let image = Written::new(open(under)?, below, files);
        Ok(Self::of(Kind::Written(Box::new(image))))
    }

    const fn of(kind: Kind<'a, S, D>) -> Self {
        Self { kind, wrote: false }
    }

    /// Virtual size in bytes, whole sectors.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        let len = match &self.kind {
            Kind::Raw { file, .. } => file.len_bytes(),
            Kind::Read(chain) => chain.len_bytes(),
            Kind::Written(image) => image.len_bytes(),
        };
        len.checked_next_multiple_of(SECTOR_BYTES).unwrap_or(0)
    }

    /// What is allocated at once, in bytes: no two tickets stand for parts of one such cluster.
    #[must_use]
    pub fn cluster_bytes(&self) -> u64 {
        match &self.kind {
            Kind::Raw { .. } | Kind::Read(_) => SECTOR_BYTES,
            Kind::Written(image) => image.cluster_bytes(),
        }
    }

    /// Nothing can be written.
    #[must_use]
    pub const fn is_read_only(&self) -> bool {
        matches!(self.kind, Kind::Read(_))
    }

    fn check(&self, start: u64, len: u64) -> Result<u64, LiveError> {
        let end = start.checked_add(len);
        end.filter(|end| len > 0 && *end <= self.len_bytes())
            .ok_or(LiveError::Range)
    }

    /// Says where the `len` bytes at `start` are, as far as `found` has room, and more where that is known.
    ///
    /// # Errors
    /// What is wrong at `start`.
    pub fn lookup(&mut self, start: u64, len: u64, found: &mut Extents) -> Result<(), LiveError> {
        let end = self.check(start, len)?;
        let disk_end = self.len_bytes();
        let start = start & !SECTOR_BYTES.saturating_sub(1);
        found.begin(start);
        let horizon = end.saturating_add(AHEAD_BYTES).min(disk_end);
        let mut at = start;
        while at < end || (at < horizon && found.list.len() <= MORE_EXTENTS) {
            let run = match &mut self.kind {
                Kind::Raw { number, .. } => Ok((
                    disk_end.saturating_sub(at),
                    ExtentKind::Data {
                        file: *number,
                        offset: at,
                        in_place: true,
                    },
                )),
                Kind::Read(chain) => chain.run_at(at, horizon.saturating_sub(at)),
                Kind::Written(image) => image.run_at(at, horizon.saturating_sub(at)),
            };
            let (len, kind) = match run {
                Ok(run) => run,
                Err(error) if at == start => return Err(error),
                Err(_) => break,
            };
            if !found.push(len, kind) {
                break;
            }
            at = found.end();
        }
        Ok(())
    }

    /// Gives the `len` bytes at `start` a place that may be written, and says which ticket stands for it; 0 if nothing is to
    /// be linked. What surrounds the range in `found` is there already.
    ///
    /// # Errors
    /// There is no place; nothing has changed.
    pub fn allocate(
        &mut self,
        start: u64,
        len: u64,
        found: &mut Extents,
    ) -> Result<u32, LiveError> {
        let end = self.check(start, len)?;
        match &mut self.kind {
            Kind::Raw { number, .. } => {
                found.begin(start);
                let kind = ExtentKind::Data {
                    file: *number,
                    offset: start,
                    in_place: true,
                };
                found.push(len, kind);
                Ok(0)
            }
            Kind::Read(_) => Err(LiveError::ReadOnly),
            Kind::Written(image) => image.allocate(start, end, found),
        }
    }

    /// The data for a ticket is written: from now on [`Self::lookup`] shows it, and a [`Self::flush`] makes that durable.
    ///
    /// # Errors
    /// A part of it may be shown.
    pub fn link(&mut self, ticket: u32) -> Result<(), LiveError> {
        match &mut self.kind {
            Kind::Written(image) => image.link(ticket),
            _ => Err(LiveError::NoTicket),
        }
    }

    /// The data for a ticket will not be written.
    ///
    /// # Errors
    /// Its clusters may be leaked.
    pub fn abandon(&mut self, ticket: u32) -> Result<(), LiveError> {
        match &mut self.kind {
            Kind::Written(image) => image.abandon(ticket),
            _ => Err(LiveError::NoTicket),
        }
    }

    /// The range is not needed any more. What is given back reads as zeros; the rest stays.
    ///
    /// # Errors
    /// A part may have been given back.
    pub fn discard(&mut self, start: u64, len: u64) -> Result<(), LiveError> {
        let end = self.check(start, len)?;
        self.wrote = true;
        match &mut self.kind {
            Kind::Raw { file, .. } => {
                // Nothing is made longer.
                let end = end.min(file.len_bytes());
                let len = end.saturating_sub(start);
                if len > 0 {
                    file.discard(start, len)?;
                }
                Ok(())
            }
            Kind::Read(_) => Err(LiveError::ReadOnly),
            Kind::Written(image) => image.discard(start, end),
        }
    }

    /// The range is zeros; `unmap`: and may be given back.
    ///
    /// # Errors
    /// A part may be zeros.
    pub fn write_zeroes(&mut self, start: u64, len: u64, unmap: bool) -> Result<(), LiveError> {
        let end = self.check(start, len)?;
        self.wrote = true;
        match &mut self.kind {
            Kind::Raw { file, .. } => Ok(file.write_zeroes(start, len)?),
            Kind::Read(_) => Err(LiveError::ReadOnly),
            Kind::Written(image) => image.write_zeroes(start, end, unmap),
        }
    }

    /// Fills `buf` with what is at `start`.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn fetch(&mut self, start: u64, buf: &mut [u8]) -> Result<(), LiveError> {
        self.check(start, buf.len() as u64)?;
        match &mut self.kind {
            Kind::Raw { file, .. } => Ok(file.read_at(start, buf)?),
            Kind::Read(chain) => chain.read(start, buf),
            Kind::Written(image) => image.fetch(start, buf),
        }
    }

    /// Makes what was linked, given back and zeroed durable.
    ///
    /// # Errors
    /// The file's.
    pub fn flush(&mut self) -> Result<(), LiveError> {
        let wrote = self.wrote;
        match &mut self.kind {
            Kind::Raw { file, .. } if wrote => file.flush()?,
            Kind::Raw { .. } | Kind::Read(_) => {}
            Kind::Written(image) => image.flush(wrote)?,
        }
        self.wrote = false;
        Ok(())
    }

    /// As [`Self::flush`], and leaves the image as one that nobody has open. What has a ticket is abandoned.
    ///
    /// # Errors
    /// The file's.
    pub fn close(&mut self) -> Result<(), LiveError> {
        match &mut self.kind {
            Kind::Written(image) => image.close(),
            _ => self.flush(),
        }
    }
}
