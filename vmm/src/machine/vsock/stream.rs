//! A Unix socket as the host's end of a connection.

use super::super::vectors;
use instar_devices::vsock::Stream;
use rustix::net::SendFlags;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use vm_memory::VolatileSlice;

/// A socket that does not block.
#[derive(Debug)]
pub(super) struct SocketStream(UnixStream);

impl From<UnixStream> for SocketStream {
    fn from(socket: UnixStream) -> Self {
        Self(socket)
    }
}

impl AsRawFd for SocketStream {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Stream for SocketStream {
    fn read(&mut self, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        vectors::read(&self.0, into)
    }

    fn write(&mut self, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
        vectors::send(&self.0, from.iter().copied())
    }

    fn shutdown(&mut self, how: Shutdown) {
        // The peer may be gone, which its next read or write tells.
        let _ = self.0.shutdown(how);
    }

    fn accepted(&mut self, port: u32) -> io::Result<()> {
        let line = format!("OK {port}\n");
        let sent = rustix::net::send(&self.0, line.as_bytes(), SendFlags::NOSIGNAL)?;
        // The first bytes of a socket have room.
        if sent == line.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }
}
