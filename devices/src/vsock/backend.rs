//! What the device needs of the host: streams, and a way to get one.

use std::fmt::Debug;
use std::io;
use std::net::Shutdown;
use vm_memory::VolatileSlice;

/// Names a connection to the backend. No two that live have the same; one that is gone is not named again soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u32);

/// The host's end of a connection: bytes both ways. No call blocks; what would is [`io::ErrorKind::WouldBlock`], and
/// then the backend tells the device when it would not any more ([`super::VsockDevice::ready`]).
pub trait Stream: Debug + Send {
    /// Reads into guest memory, in order. 0: no more comes.
    ///
    /// # Errors
    /// The host's.
    fn read(&mut self, into: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// Writes from memory that the guest may change meanwhile, in order.
    ///
    /// # Errors
    /// The host's.
    fn write(&mut self, from: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// Ends one direction or both.
    fn shutdown(&mut self, how: Shutdown);

    /// The guest has accepted a connection that the host began; `port` is the host's.
    ///
    /// # Errors
    /// The host's: the connection ends.
    fn accepted(&mut self, port: u32) -> io::Result<()>;
}

/// Where streams to the host's programs come from.
pub trait Backend: Debug + Send {
    /// Starts to connect to whoever listens at `port`; [`super::VsockDevice::dialed`] says how it went.
    ///
    /// # Errors
    /// It could not even be tried.
    fn dial(&mut self, id: ConnectionId, port: u32) -> io::Result<()>;
}

/// What became possible with a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// There may be something to read, the end included.
    pub readable: bool,
    /// There may be room to write.
    pub writable: bool,
    /// Nobody is at the other end any more; what it sent before may still be read.
    pub hung_up: bool,
}
