//! The worker's line to the broker.

use crate::wire::{self, Reply};
use instar_shared::control::FileRequest;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendFlags,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

/// The worker's end of the socket.
pub struct Broker {
    socket: OwnedFd,
    reply: Vec<u8>,
}

impl Broker {
    /// On `socket`, whose other end the broker has.
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            reply: vec![0; wire::MAX_REPLY],
        }
    }

    /// The socket's number.
    pub fn number(&self) -> i32 {
        self.socket.as_raw_fd()
    }

    /// Asks for a file that an image names.
    ///
    /// # Errors
    /// As [`Broker::ask`]; `INVAL` for a name that no packet holds.
    pub fn ask_for_file(
        &mut self,
        request: &FileRequest,
    ) -> Result<(Reply, Option<OwnedFd>), rustix::io::Errno> {
        self.ask(wire::encode_request(request).ok_or(rustix::io::Errno::INVAL)?)
    }

    /// Sends one packet and waits for the answer, and the file that may come with it.
    ///
    /// # Errors
    /// The socket's; `PROTO` for what is no answer.
    pub fn ask(&mut self, packet: &[u8]) -> Result<(Reply, Option<OwnedFd>), rustix::io::Errno> {
        let mut no_control = SendAncillaryBuffer::default();
        rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(
                &self.socket,
                &[IoSlice::new(packet)],
                &mut no_control,
                SendFlags::NOSIGNAL,
            )
        })?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut buffers = [IoSliceMut::new(&mut self.reply)];
            match rustix::net::recvmsg(
                &self.socket,
                &mut buffers,
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Err(rustix::io::Errno::INTR) => {}
                outcome => break outcome?,
            }
        };
        let descriptor = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let whole = !received.flags.contains(ReturnFlags::TRUNC);
        let packet = self
            .reply
            .get(..received.bytes)
            .filter(|_| whole)
            .unwrap_or_default();
        let reply = wire::decode_reply(packet).ok_or(rustix::io::Errno::PROTO)?;
        Ok((reply, descriptor))
    }
}
