//! The end of the process that has the guest.

use super::wire::query;
use super::{PACKET_BYTES, WORD_BYTES};
use crate::live::source::{MAX_BATCH, Question};
use crate::operation::Resident;
use instar_shared::live::{ANSWERS_END, LiveQuery};
use instar_shared::zerocopy::IntoBytes;
use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, SendFlags};
use std::io;
use std::os::fd::OwnedFd;
use vmm_sys_util::signal::{block_signal, unblock_signal};

/// The end of the process that has the guest. When the other end is closed it asks the guest to close the image.
#[derive(Debug)]
pub struct Port {
    socket: OwnedFd,
    packet: Vec<u8>,
    /// Something was asked: before that the guest says that it is ready, and answers nothing.
    asked: bool,
    pub(super) orphaned: bool,
    /// It ticked while nobody asked: until somebody does, the vCPU's timer wakes nobody.
    idle: bool,
}

impl Port {
    /// Over its end of a socket pair.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            packet: Vec::new(),
            asked: false,
            orphaned: false,
            idle: false,
        }
    }

    fn send(&mut self, word: u32, bytes: &[u8]) -> io::Result<()> {
        if self.orphaned {
            return Ok(());
        }
        self.packet.clear();
        self.packet.extend_from_slice(&word.to_le_bytes());
        self.packet.extend_from_slice(bytes);
        match retry_on_intr(|| rustix::net::send(&self.socket, &self.packet, SendFlags::NOSIGNAL)) {
            Ok(_) => Ok(()),
            // Who asked has ended: the guest hears of it by the next batch.
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => {
                self.orphaned = true;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What the guest is asked when nobody is there to ask.
    fn last(&mut self) -> Vec<LiveQuery> {
        (self.asked, self.orphaned) = (true, true);
        vec![query(&Question::Close)]
    }
}

impl Resident for Port {
    fn answered(&mut self, bytes: &[u8], end: bool) -> io::Result<()> {
        if !self.asked {
            let ready = bytes.is_empty() && end;
            let early = || io::Error::new(io::ErrorKind::InvalidData, "nobody asked yet");
            return ready.then_some(()).ok_or_else(early);
        }
        let most = PACKET_BYTES.saturating_sub(WORD_BYTES);
        let whole = bytes.len().saturating_sub(1).checked_div(most).unwrap_or(0);
        let (before, last) = bytes.split_at(whole.saturating_mul(most));
        for piece in before.chunks(most) {
            self.send(0, piece)?;
        }
        if end || !last.is_empty() {
            self.send(if end { ANSWERS_END } else { 0 }, last)?;
        }
        Ok(())
    }

    fn queries(&mut self) -> io::Result<Vec<LiveQuery>> {
        let mut queries = [LiveQuery::zeroed(); MAX_BATCH];
        let bytes = queries.as_mut_bytes();
        // A machine at rest would be woken ten times a second by each of its images. While the guest is not entered,
        // there is nothing to be limited.
        let quiet = self.idle && block_signal(libc::SIGALRM).is_ok();
        let received = rustix::net::recv(&self.socket, bytes, RecvFlags::empty());
        if quiet {
            unblock_signal(libc::SIGALRM).map_err(|_| io::Error::other("the timer is lost"))?;
        }
        self.idle = received == Err(rustix::io::Errno::INTR);
        let len = match received {
            Ok((len, _)) => len,
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            // It ended before it took all answers. What it had asked is still to come.
            Err(rustix::io::Errno::CONNRESET) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let count = len.checked_div(size_of::<LiveQuery>()).unwrap_or(0);
        if count == 0 {
            return Ok(self.last());
        }
        self.asked = true;
        Ok(queries.into_iter().take(count).collect())
    }
}
