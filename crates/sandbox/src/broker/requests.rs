//! What a worker asks for, answered.

use super::Broker;
use crate::wire::{self, Dirty, Message, Next, Reply};
use rustix::net::{RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

/// Requests of one job: more than slots, as opens may fail.
const MAX_REQUESTS: u32 = 4096;

/// What ended the serving early.
pub struct Breach(pub &'static str);

impl Broker {
    /// Answers one request; false if the worker closed its end.
    pub fn answer(&mut self, socket: BorrowedFd<'_>) -> Result<bool, Breach> {
        let mut packet = [0; wire::MAX_REQUEST + 1];
        let mut no_control = rustix::net::RecvAncillaryBuffer::default();
        let mut buffers = [IoSliceMut::new(&mut packet)];
        let received = match rustix::net::recvmsg(
            socket,
            &mut buffers,
            &mut no_control,
            RecvFlags::DONTWAIT,
        ) {
            Ok(received) => received,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return Ok(true),
            Err(_) => return Ok(false),
        };
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(Breach("a request that is too long"));
        }
        if received.bytes == 0 {
            return Ok(false);
        }
        let message = packet.get(..received.bytes).and_then(wire::decode_message);
        let message = message.ok_or(Breach("a malformed request"))?;
        self.requests = self.requests.saturating_add(1);
        if self.requests > MAX_REQUESTS {
            return Err(Breach("too many requests"));
        }
        let (reply, file) = match message {
            Message::Open(request) => {
                let (reply, file) = self.files.open(&request);
                if let (Some(user), Some(file)) = (&self.user, &file) {
                    let packet = wire::encode_shared(request.slot, &reply);
                    // One that has gone needs none, and the operation hears of that by its channel.
                    let _ = wire::passing::send(user.as_fd(), &packet, &[file.as_fd()]);
                }
                (reply, file)
            }
            Message::Begin(slot) => {
                if self.next.is_none() && !self.has_sequel {
                    // All that is changed has been found sound, so no round follows. Who waits need not keep passwords any
                    // longer.
                    self.dismiss();
                }
                (self.outputs.begin(slot), None)
            }
            Message::Repair(dirty) => (self.repair(dirty), None),
            Message::Repaired(complaint) if self.repairs => {
                (self.follow(Next::Again(complaint)), None)
            }
            Message::Done if self.has_sequel => (self.follow(Next::Sequel), None),
            Message::Fuller(shown) if self.has_fuller => (self.follow(Next::Fuller(shown)), None),
            Message::Repaired(_) | Message::Done | Message::Fuller(_) => (Reply::Invalid, None),
        };
        send(
            socket,
            &wire::encode_reply(&reply),
            file.as_ref().map(|file| file.as_fd()),
        )?;
        Ok(true)
    }

    /// Notes what the next round does.
    fn repair(&mut self, dirty: Dirty) -> Reply {
        let Some(written) = self.files.written(dirty.slot) else {
            return Reply::Invalid;
        };
        if let Some((_, complaint)) = self.tried.iter().find(|(id, _)| *id == written.id) {
            return Reply::Tried(complaint.clone());
        }
        let next = Next::Repair {
            dirty,
            root: written.root,
            facts: written.facts.clone(),
        };
        self.follow(next)
    }

    fn follow(&mut self, next: Next) -> Reply {
        let waits = self
            .spare
            .as_ref()
            .is_some_and(|spare| spare.line.is_some());
        if !waits || self.next.is_some() {
            return Reply::Invalid;
        }
        self.next = Some(next);
        Reply::Noted
    }
}

/// Sends a reply without ever waiting for the worker.
fn send(socket: BorrowedFd<'_>, packet: &[u8], file: Option<BorrowedFd<'_>>) -> Result<(), Breach> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = file.into_iter().collect();
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    match rustix::net::sendmsg(socket, &[IoSlice::new(packet)], &mut control, flags) {
        // A worker that is gone is found by the wait.
        Ok(_) | Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Ok(()),
        Err(_) => Err(Breach("it does not take its answers")),
    }
}
