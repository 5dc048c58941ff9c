//! The guest's connections to programs of the host: the worker asks, the parent connects.
//!
//! A request is the port, four bytes; the answer is an errno, four bytes, with the connected socket if that is 0.

use instar_vmm::machine::control::Connector;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Bytes of a request, and of an answer.
const PACKET_BYTES: usize = 4;

/// The worker's end.
#[derive(Debug)]
pub struct Asking {
    line: OwnedFd,
}

impl Asking {
    /// On this line.
    pub const fn new(line: OwnedFd) -> Self {
        Self { line }
    }
}

impl Connector for Asking {
    fn connect(&mut self, port: u32) -> io::Result<UnixStream> {
        let mut nothing = SendAncillaryBuffer::default();
        let packet = port.to_le_bytes();
        rustix::io::retry_on_intr(|| {
            let flags = SendFlags::NOSIGNAL;
            rustix::net::sendmsg(&self.line, &[IoSlice::new(&packet)], &mut nothing, flags)
        })?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut answer = [0; PACKET_BYTES];
        let received = rustix::io::retry_on_intr(|| {
            let mut buffers = [IoSliceMut::new(&mut answer)];
            rustix::net::recvmsg(
                &self.line,
                &mut buffers,
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
        })?;
        let stream = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        match (received.bytes, i32::from_le_bytes(answer), stream) {
            (PACKET_BYTES, 0, Some(stream)) => Ok(UnixStream::from(stream)),
            (PACKET_BYTES, errno, None) if errno > 0 => Err(io::Error::from_raw_os_error(errno)),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// What the parent got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A request, which is answered.
    Answered,
    /// Nothing after all.
    Nothing,
    /// The worker has closed its end.
    Closed,
    /// The worker sent what is no request, or takes no answers.
    Wrong(&'static str),
}

/// Answers one request for a connection to a socket beside `base`, if the machine has a vsock device.
pub fn answer(line: BorrowedFd<'_>, base: Option<&Path>) -> Asked {
    let mut packet = [0; PACKET_BYTES + 1];
    let mut nothing = RecvAncillaryBuffer::default();
    let mut buffers = [IoSliceMut::new(&mut packet)];
    let received = rustix::net::recvmsg(line, &mut buffers, &mut nothing, RecvFlags::DONTWAIT);
    let received = match received {
        Ok(received) => received,
        Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return Asked::Nothing,
        Err(_) => return Asked::Closed,
    };
    if received.bytes == 0 {
        return Asked::Closed;
    }
    let [a, b, c, d, _] = packet;
    let whole = !received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    let (Some(base), true, PACKET_BYTES) = (base, whole, received.bytes) else {
        return Asked::Wrong("a malformed request");
    };
    let stream = connect(&beside(base, u32::from_le_bytes([a, b, c, d])));
    match send(line, stream) {
        // A worker that is gone is found by the wait.
        Ok(()) | Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Asked::Answered,
        Err(_) => Asked::Wrong("requests without taking the answers"),
    }
}

fn send(line: BorrowedFd<'_>, stream: rustix::io::Result<OwnedFd>) -> rustix::io::Result<()> {
    let errno = stream
        .as_ref()
        .err()
        .map_or(0, |errno| errno.raw_os_error());
    let packet = errno.to_le_bytes();
    let descriptors: Vec<BorrowedFd<'_>> = stream.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(line, &[IoSlice::new(&packet)], &mut control, flags).map(|_| ())
}

/// The socket that stands for a port: the machine's own, an underscore and the port.
pub fn beside(base: &Path, port: u32) -> PathBuf {
    let mut name = base.as_os_str().as_bytes().to_vec();
    name.extend_from_slice(format!("_{port}").as_bytes());
    OsString::from_vec(name).into()
}

/// Connects without waiting: a listener whose queue is full counts as none.
fn connect(path: &Path) -> rustix::io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_port_is_reached_if_someone_listens_there() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("vm.sock");
        let listener = UnixListener::bind(beside(&base, 1234)).unwrap();
        let (own, other) = crate::wire::pair().unwrap();
        let mut asking = Asking::new(other);
        let worker = std::thread::spawn(move || {
            let refused = asking.connect(99).map(|_| ()).map_err(|e| e.kind());
            let mut stream = asking.connect(1234).unwrap();
            stream.set_nonblocking(false).unwrap();
            stream.write_all(b"ping").unwrap();
            refused
        });
        for _ in 0..2 {
            let mut polled = [rustix::event::PollFd::new(
                &own,
                rustix::event::PollFlags::IN,
            )];
            rustix::event::poll(&mut polled, None).unwrap();
            assert_eq!(answer(own.as_fd(), Some(&base)), Asked::Answered);
        }
        let mut got = [0; 4];
        listener.accept().unwrap().0.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"ping");
        assert_eq!(worker.join().unwrap(), Err(io::ErrorKind::NotFound));
        assert_eq!(answer(own.as_fd(), Some(&base)), Asked::Closed);
    }

    #[test]
    fn what_is_no_request_ends_it() {
        let base = Path::new("/nowhere/vm.sock");
        for (packet, base) in [
            (&[1_u8, 2, 3][..], Some(base)),
            (&[0; 5], Some(base)),
            (&[0; 4], None),
        ] {
            let (own, other) = crate::wire::pair().unwrap();
            rustix::net::send(&other, packet, SendFlags::empty()).unwrap();
            assert!(
                matches!(answer(own.as_fd(), base), Asked::Wrong(_)),
                "{packet:?}"
            );
        }
    }
}
