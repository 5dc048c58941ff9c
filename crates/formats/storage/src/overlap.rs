//! Requests that overlap, and work that runs beside its caller.
//!
//! [`Storage`](crate::Storage) answers before it returns. Copying a whole image that way leaves
//! the host idle while the guest thinks, and the guest while the host copies. An
//! [`Overlap`] takes requests with the buffers that they own and gives both back
//! when they are done, in any order. A [`Crew`] does the same with work for the
//! CPU.
//!
//! What overlaps has no order: of two requests in flight that touch the same bytes, either may be
//! first. [`Work::Flush`] makes durable what had completed before it was submitted.

use crate::StorageError;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;

#[cfg(feature = "std")]
mod mem;
#[cfg(feature = "std")]
pub use mem::MemOverlap;

/// What a [`Transfer`] does. Offsets and lengths are in bytes, of any alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Fills the first `len` bytes of the buffer; zeros past the file's end.
    Read {
        /// First byte.
        offset: u64,
        /// At most the buffer's length.
        len: usize,
    },
    /// Writes the first `len` bytes of the buffer; past the end the file grows.
    Write {
        /// First byte.
        offset: u64,
        /// At most the buffer's length.
        len: usize,
    },
    /// Makes the range read as zeros; past the end the file grows.
    Zero {
        /// First byte.
        offset: u64,
        /// Length.
        len: u64,
    },
    /// Gives the range back to the host if it can: a hint.
    Discard {
        /// First byte.
        offset: u64,
        /// Length.
        len: u64,
    },
    /// Reserves blocks for the range; the file grows if it is shorter.
    Allocate {
        /// First byte.
        offset: u64,
        /// Length.
        len: u64,
    },
    /// Copies from another file, or from a range of this one that does not overlap: the bytes
    /// do not pass through the guest, and where the host can share blocks it does.
    Copy {
        /// The file that is read, numbered as [`Transfer::file`].
        from: u16,
        /// First byte read; zeros past that file's end.
        from_offset: u64,
        /// First byte written; past the end the file grows.
        offset: u64,
        /// Length.
        len: u64,
    },
    /// Makes durable what had completed before this was submitted.
    Flush,
}

impl Work {
    /// First byte that it is about; 0 for a flush.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        match *self {
            Self::Read { offset, .. }
            | Self::Write { offset, .. }
            | Self::Zero { offset, .. }
            | Self::Discard { offset, .. }
            | Self::Allocate { offset, .. }
            | Self::Copy { offset, .. } => offset,
            Self::Flush => 0,
        }
    }
}

/// A request with the buffer that it needs.
#[derive(Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The file; in a guest its device slot.
    pub file: u16,
    /// Comes back in [`Done`]; means nothing to the store.
    pub token: u64,
    /// What to do.
    pub work: Work,
    /// Of [`Work::Read`] and [`Work::Write`]; for the rest it only travels along. Comes back.
    pub buf: Vec<u8>,
}

/// A request that has ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Done {
    /// As it was submitted.
    pub file: u16,
    /// As it was submitted.
    pub token: u64,
    /// As it was submitted; a read has filled it. After an error of a read its contents are unspecified.
    pub buf: Vec<u8>,
    /// How it ended.
    pub result: Result<(), StorageError>,
}

/// Files that take requests before earlier ones are done.
pub trait Overlap {
    /// Starts a request. The host may hear of it only at the next [`Self::poll`], [`Self::wait`] or
    /// [`Self::kick`], so that several go together. One that cannot be started at all (no such file, a
    /// length past the buffer) comes back as [`Done`] with an error.
    ///
    /// # Errors
    /// The request itself, if there is no room for it before another one is done.
    fn submit(&self, transfer: Transfer) -> Result<(), Transfer>;

    /// Lets the host begin with what was submitted.
    fn kick(&self);

    /// A request that has ended, without blocking.
    fn poll(&self) -> Option<Done>;

    /// A request that has ended; blocks until there is one. `None` if none is in flight.
    fn wait(&self) -> Option<Done>;

    /// Blocks until a request has ended or a job of a [`Crew`] beside it has, whichever is first; may
    /// return early. To be called only if one of them is in flight.
    fn idle(&self);

    /// Requests that were submitted and not given back.
    fn in_flight(&self) -> usize;
}

/// Work for the CPU that runs beside its caller, on other cores if there are any.
///
/// A job computes on what it owns: it neither allocates nor asks the host for anything. How it went is
/// a field of it.
pub trait Crew<J> {
    /// Jobs that are taken before [`Self::submit`] says no.
    fn room(&self) -> usize;

    /// Cores besides the caller's; 0 if jobs run on the caller's, inside [`Self::submit`].
    fn cores(&self) -> usize;

    /// Starts a job.
    ///
    /// # Errors
    /// The job itself, if there is no room for it before another one is done.
    fn submit(&self, job: Box<J>) -> Result<(), Box<J>>;

    /// A job that is done, without blocking; in any order.
    fn poll(&self) -> Option<Box<J>>;

    /// A job that is done; blocks until there is one. `None` if none is in flight.
    fn wait(&self) -> Option<Box<J>>;

    /// Jobs that were submitted and not given back.
    fn in_flight(&self) -> usize;

    /// Jobs are done, and nothing that waits will be told so, since they were collected with others.
    fn any_done(&self) -> bool {
        false
    }
}

/// A crew of none: the caller runs each job when it submits it.
pub struct Inline<J> {
    run: fn(&mut J),
    done: RefCell<VecDeque<Box<J>>>,
}

/// Jobs that [`Inline`] keeps before it says no, as a crew does.
const INLINE_ROOM: usize = 1;

impl<J> Inline<J> {
    /// Runs jobs by `run`.
    #[must_use]
    pub const fn new(run: fn(&mut J)) -> Self {
        Self {
            run,
            done: RefCell::new(VecDeque::new()),
        }
    }
}

impl<J> fmt::Debug for Inline<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inline")
    }
}

impl<J> Crew<J> for Inline<J> {
    fn room(&self) -> usize {
        INLINE_ROOM
    }

    fn cores(&self) -> usize {
        0
    }

    fn submit(&self, mut job: Box<J>) -> Result<(), Box<J>> {
        if self.in_flight() >= INLINE_ROOM {
            return Err(job);
        }
        (self.run)(&mut job);
        self.done.borrow_mut().push_back(job);
        Ok(())
    }

    fn poll(&self) -> Option<Box<J>> {
        self.done.borrow_mut().pop_front()
    }

    fn wait(&self) -> Option<Box<J>> {
        self.poll()
    }

    fn in_flight(&self) -> usize {
        self.done.borrow().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inline_crew_has_done_a_job_when_it_took_it() {
        let crew = Inline::new(|job: &mut u32| *job = job.wrapping_mul(2));
        assert_eq!((crew.cores(), crew.room()), (0, 1));
        assert!(crew.wait().is_none());
        crew.submit(Box::new(21)).unwrap();
        assert_eq!(crew.submit(Box::new(1)), Err(Box::new(1)));
        assert_eq!(crew.in_flight(), 1);
        assert_eq!(crew.wait(), Some(Box::new(42)));
    }
}
