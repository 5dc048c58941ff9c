//! One crew for compression and decompression.

use crate::squeeze::Squeeze;
use crate::unpack::Unpack;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use core::cell::{Cell, RefCell};
use core::fmt;
use instar_storage::overlap::Crew;

/// A job of either kind.
#[derive(Debug)]
pub enum Work {
    /// Compression.
    Squeeze(Box<Squeeze>),
    /// Decompression.
    Unpack(Box<Unpack>),
}

impl Work {
    /// Does it; allocates nothing.
    pub fn run(&mut self) {
        match self {
            Self::Squeeze(job) => job.run(),
            Self::Unpack(job) => job.run(),
        }
    }
}

/// Jobs of one kind that the crew has, and those that it is done with.
struct Share<J> {
    in_flight: Cell<usize>,
    done: RefCell<VecDeque<Box<J>>>,
}

impl<J> Share<J> {
    const fn new() -> Self {
        Self {
            in_flight: Cell::new(0),
            done: RefCell::new(VecDeque::new()),
        }
    }

    fn give_back(&self) -> Option<Box<J>> {
        let job = self.done.borrow_mut().pop_front()?;
        self.in_flight.set(self.in_flight.get().saturating_sub(1));
        Some(job)
    }
}

/// A crew of [`Work`], for either kind.
pub struct Both<'a> {
    crew: &'a dyn Crew<Work>,
    squeezes: Share<Squeeze>,
    unpacks: Share<Unpack>,
}

impl fmt::Debug for Both<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Both")
    }
}

impl<'a> Both<'a> {
    /// Over `crew`.
    pub const fn new(crew: &'a dyn Crew<Work>) -> Self {
        Self {
            crew,
            squeezes: Share::new(),
            unpacks: Share::new(),
        }
    }

    fn sort(&self, work: Work) {
        match work {
            Work::Squeeze(job) => self.squeezes.done.borrow_mut().push_back(job),
            Work::Unpack(job) => self.unpacks.done.borrow_mut().push_back(job),
        }
    }

    /// Hands a job on for which there is room, as all looked first.
    fn hand_on(&self, work: Work) {
        if let Err(mut work) = self.crew.submit(Box::new(work)) {
            work.run();
            self.sort(*work);
        }
    }

    fn has_room(&self) -> bool {
        self.crew.in_flight() < self.crew.room()
    }

    fn collect(&self) {
        while let Some(work) = self.crew.poll() {
            self.sort(*work);
        }
    }
}

/// The crew, for jobs of the kind `$job`.
macro_rules! share {
    ($job:ident, $share:ident) => {
        impl Crew<$job> for Both<'_> {
            fn room(&self) -> usize {
                self.crew.room()
            }

            fn cores(&self) -> usize {
                self.crew.cores()
            }

            fn submit(&self, job: Box<$job>) -> Result<(), Box<$job>> {
                if !self.has_room() {
                    return Err(job);
                }
                let in_flight = &self.$share.in_flight;
                in_flight.set(in_flight.get().saturating_add(1));
                self.hand_on(Work::$job(job));
                Ok(())
            }

            fn poll(&self) -> Option<Box<$job>> {
                self.collect();
                self.$share.give_back()
            }

            fn wait(&self) -> Option<Box<$job>> {
                while self.$share.in_flight.get() > 0 {
                    if let Some(job) = self.$share.give_back() {
                        return Some(job);
                    }
                    self.sort(*self.crew.wait()?);
                }
                None
            }

            fn in_flight(&self) -> usize {
                self.$share.in_flight.get()
            }

            fn any_done(&self) -> bool {
                !self.$share.done.borrow().is_empty()
            }
        }
    };
}

share!(Squeeze, squeezes);
share!(Unpack, unpacks);
