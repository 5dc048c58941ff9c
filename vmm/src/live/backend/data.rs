//! The bytes of a request, moved between the guest's memory and a file.

use super::{LiveBackend, LiveFile};
use crate::block::{Handover, HostFile, Job, Step, Transfer, Work};
use crate::live::request::{Do, Request};
use instar_devices::blk::{Errno, GuestBuffer};
use std::sync::Arc;

impl<Q> LiveBackend<Q> {
    pub(super) fn zero(&self, request: &mut Request, at: u64, len: u64) {
        let buffers = request.buffers_at(at, len);
        let mut transfer = whole(0, buffers);
        if let Step::Failed(errno) = transfer.zero_rest(&self.parts.memory) {
            request.fail(errno);
        }
    }

    /// Moves a part of a request from or to a file: at once if the page cache does it, else on a thread.
    pub(super) fn transfer(
        &mut self,
        id: u64,
        request: &mut Request,
        (at, len): (u64, u64),
        (slot, offset): (u16, u64),
    ) {
        let file = self.parts.files.get(usize::from(slot));
        let Some(LiveFile {
            file, block_device, ..
        }) = file.and_then(Option::as_ref)
        else {
            request.fail(Errno::EIO);
            return;
        };
        let (file, block_device) = (Arc::clone(file), *block_device);
        let transfer = whole(offset, request.buffers_at(at, len));
        let writes = matches!(request.what, Do::Write);
        let mut work = if writes {
            Work::Write(transfer)
        } else {
            Work::Read(transfer)
        };
        let sleeps = writes && file.is_direct();
        let alone = writes && !block_device && !file.is_direct();
        if sleeps || work.is_long(Handover::Machine.long_bytes()) {
            self.hand_over(id, request, file, work, alone);
            return;
        }
        match work.go_on(&file, &self.parts.memory, true) {
            Step::Finished => {}
            Step::Failed(errno) => request.fail(errno),
            Step::WouldBlock => self.hand_over(id, request, file, work, alone),
        }
    }

    pub(super) fn hand_over(
        &self,
        id: u64,
        request: &mut Request,
        file: Arc<HostFile>,
        work: Work,
        alone: bool,
    ) {
        request.parts = request.parts.saturating_add(1);
        self.parts.pool.submit(Job {
            slot: self.parts.slot,
            token: id,
            alone,
            work,
            file,
            memory: Arc::clone(&self.parts.memory),
        });
    }
}

const fn whole(offset: u64, buffers: Vec<GuestBuffer>) -> Transfer {
    Transfer {
        offset,
        buffers,
        done: 0,
    }
}
