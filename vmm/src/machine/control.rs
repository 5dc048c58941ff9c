//! How a machine is held from outside, and how it ends.
//!
//! ```text
//!   caller:  Machine::build(parts, control) -> gives up files, privileges -> run(confine) -> Ended
//!                                                                             |  each thread, the caller's last: confine(kind)
//!                                                                             '- then the guest's first instruction
//! ```
//!
//! Nothing is started again in place: after [`Outcome::Reset`] the caller's parent makes a new process.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// What the machine listens to while it runs.
#[derive(Debug)]
pub struct Control {
    /// An eventfd, not blocking: each time it is readable, the power button is pressed.
    pub power_button: OwnedFd,
    /// Saves, resets and restores all devices again and again, after each of these times: a test.
    pub recycle: Option<Duration>,
    /// From when on the times of the report count.
    pub began: Instant,
    /// From then until it was known what to start, if that had to be looked for.
    pub scanned: Option<Duration>,
}

/// How a machine ended, and what it cost.
#[derive(Clone, Debug)]
pub struct Ended {
    /// How.
    pub outcome: Outcome,
    /// Times and exits.
    pub report: Report,
}

/// What happened when, and what the vCPUs did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What was done and when it was, from [`Control::began`] on, in order; the last is `first instruction`.
    pub phases: Vec<(&'static str, Duration)>,
    /// What the guest wrote to the port for marks, such as that its init has begun; at most [`MAX_MARKS`].
    pub marks: Vec<Mark>,
    /// VM exits that reached this process, by reason.
    pub exits: BTreeMap<&'static str, u64>,
    /// How often all devices were saved, reset and restored.
    pub recycled: u64,
}

/// The guest wrote to [`super::layout::MARK_PORT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The byte.
    pub value: u8,
    /// When, from [`Control::began`] on.
    pub at: Duration,
    /// Exits until then.
    pub exits: u64,
}

/// Marks that are kept.
pub const MAX_MARKS: usize = 16;

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest switched it off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The user typed the escape key and then the one that ends.
    Quit,
    /// It cannot go on: a triple fault, a vCPU that KVM cannot run. One sentence.
    Failed(String),
}

/// Connects to programs of the host for the guest: the process that runs the guest can name no file.
pub trait Connector: fmt::Debug + Send {
    /// Connects to the Unix socket that stands for `port` of the host; the stream is not blocking.
    ///
    /// # Errors
    /// Nobody listens there.
    fn connect(&mut self, port: u32) -> io::Result<UnixStream>;
}
