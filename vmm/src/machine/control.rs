//! How a machine is held from outside, and how it ends.
//!
//! ```text
//!   caller:  parts -> Machine::build -> (gives up files, privileges) -> Machine::run -> Ended
//!                                                                        |  each thread, the caller's last: confine(kind)
//!                                                                        '- then the guest's first instruction
//! ```
//!
//! Nothing is started again in place: after [`Outcome::Reset`] the caller's parent makes a new process.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// What the machine listens to while it runs.
#[derive(Debug)]
pub struct Control {
    /// An eventfd, not blocking: each time it is readable, the power button is pressed.
    pub power_button: OwnedFd,
    /// Saves, resets and restores all devices again and again, after each of these times: a test.
    pub recycle: Option<Duration>,
}

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
