//! What a front end has said, and the device that it thereby has.

mod messages;
mod ring;

use super::memory::SharedMemory;
use crate::live::source::SourceGone;
use crate::machine::disk::store::Store;
use crate::machine::disk::{Made, SlotFinished};
use crate::memory::GuestSlot;
use instar_devices::blk::{BlockBackend, Errno, IoKind, IoRequest, Submission, VirtioBlk};
use instar_devices::virtio::VirtioDevice;
use ring::Ring;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use vm_memory::GuestMemoryMmap;

/// The feature bit for what the protocol has beyond its beginnings.
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// The device, and how far the front end has come with it.
#[derive(Debug)]
pub struct Front {
    device: VirtioBlk<Store>,
    finished: Arc<SlotFinished>,
    /// Readable when a microVM has answered, if the disk asks one.
    answers: Option<Arc<OwnedFd>>,
    accepted: u64,
    memory: Option<SharedMemory>,
    ring: Ring,
}

impl Front {
    /// Of nobody yet.
    pub fn new(made: Made) -> Self {
        Self {
            device: made.device,
            finished: made.finished,
            answers: made.answers,
            accepted: 0,
            memory: None,
            ring: Ring::default(),
        }
    }

    /// What threads have done.
    pub fn finished(&self) -> Arc<SlotFinished> {
        Arc::clone(&self.finished)
    }

    /// What a microVM answers at.
    pub fn answers(&self) -> Option<Arc<OwnedFd>> {
        self.answers.clone()
    }

    /// Why the disk cannot be used any more, once that is so.
    pub fn gone(&mut self) -> Option<SourceGone> {
        self.device.backend().gone().cloned()
    }

    /// Whether [`Self::complete`] is to be called after a while, though nothing has happened.
    pub fn holds(&mut self) -> bool {
        self.device.backend().holds()
    }

    /// What the driver notifies.
    pub fn kick_event(&self) -> Option<Arc<File>> {
        self.ring.kick.clone()
    }

    /// The driver has notified the ring.
    pub fn kicked(&mut self) {
        let mut read = false;
        if let Some(kick) = &self.ring.kick {
            let count = (&**kick).read(&mut [0; 8]);
            read = match count {
                Ok(bytes) => bytes > 0,
                Err(error) => error.kind() == io::ErrorKind::WouldBlock,
            };
        }
        if !read {
            // It is no event: it would be ready for ever.
            self.ring.kick = None;
        }
        self.device.kick(0);
    }

    /// Threads have finished something, or a microVM has `answered`.
    pub fn complete(&mut self, answered: bool) {
        let finished = Arc::clone(&self.finished);
        let take = |store: &mut Store| store.take_news(&finished, answered);
        self.device.complete(take);
    }

    /// The front end has gone.
    pub fn hang_up(&mut self) {
        self.stop_ring();
        self.ring = Ring::default();
        self.accepted = 0;
        self.forget_memory();
    }

    /// Makes all that was written durable.
    ///
    /// # Errors
    /// The host's.
    pub fn sync(&mut self) -> io::Result<()> {
        let request = IoRequest {
            kind: IoKind::Flush,
            buffers: Vec::new(),
        };
        let (finished, answers) = (Arc::clone(&self.finished), self.answers());
        let backend = self.device.backend();
        let result = match backend.submit(0, request) {
            Submission::Done(completion) => completion.result,
            Submission::Pending => loop {
                if let Some((_, completion)) = backend.poll() {
                    break completion.result;
                }
                let answered = await_news(&finished, answers.as_deref())?;
                backend.take_news(&finished, answered);
            },
        };
        result.map(drop).map_err(|Errno(errno)| {
            io::Error::from_raw_os_error(i32::try_from(errno).unwrap_or(libc::EIO))
        })
    }

    fn forget_memory(&mut self) {
        let nothing = GuestSlot::shared(GuestMemoryMmap::default());
        self.device.backend().set_memory(nothing);
        self.memory = None;
    }
}

/// Sleeps until threads have finished something, or there are answers; whether there are.
fn await_news(finished: &SlotFinished, answers: Option<&OwnedFd>) -> io::Result<bool> {
    // SAFETY: the event is open as long as it is borrowed.
    let event = unsafe { BorrowedFd::borrow_raw(finished.event().as_raw_fd()) };
    let [done, answered] = super::wait([Some(event), answers.map(AsFd::as_fd)], None)?;
    if done {
        let _ = finished.event().read();
    }
    Ok(answered)
}
