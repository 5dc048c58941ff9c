//! Packets that files travel with, between processes that trust each other.

use super::MAX_REPLY;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Files that travel at most: an image and a data file that are written, twice over.
const MAX_FILES: usize = 16;

/// Sends a packet and files. The other end waits for it.
///
/// # Errors
/// Of `sendmsg`.
pub fn send(
    line: BorrowedFd<'_>,
    packet: &[u8],
    files: &[BorrowedFd<'_>],
) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(rustix::io::Errno::MSGSIZE);
    }
    let flags = SendFlags::NOSIGNAL;
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(line, &[IoSlice::new(packet)], &mut control, flags)
    })?;
    Ok(())
}

/// Waits for a packet and its files. It is empty if the other end is closed.
///
/// # Errors
/// Of `recvmsg`.
pub fn receive(line: &OwnedFd) -> rustix::io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut packet = vec![0; MAX_REPLY];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut buffers = [IoSliceMut::new(&mut packet)];
        rustix::net::recvmsg(line, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            files.extend(descriptors);
        }
    }
    packet.truncate(received.bytes);
    Ok((packet, files))
}
