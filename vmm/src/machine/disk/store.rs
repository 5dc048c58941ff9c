//! What a disk's requests go to: a file of the host, or an image whose format a microVM knows.

use super::{Disk, SlotFinished};
use crate::block::FileBackend;
use crate::live::asking::Asking;
use crate::live::backend::{LiveBackend, LiveFile};
use crate::live::channel::Asker;
use crate::live::source::{DiskInfo, SourceGone};
use crate::machine::parts::RateLimit;
use crate::memory::GuestSlot;
use instar_devices::blk::{BlockBackend, Completion, Errno, IoRequest, Submission, Token};
use instar_shared::blk::ID_BYTES;
use std::path::PathBuf;
use std::sync::Arc;

/// A disk's image.
#[derive(Debug)]
pub enum Served {
    /// Its bytes are the disk's.
    Raw(Disk),
    /// A microVM says where the disk's bytes are.
    Live(Box<LiveDisk>),
}

/// A disk whose image a microVM in another process has open.
#[derive(Debug)]
pub struct LiveDisk {
    /// To that process, which has said what the disk is.
    pub asker: Asker,
    /// What it has said.
    pub info: DiskInfo,
    /// The files of the image and of what is below it, by slot: the image itself is the first one.
    pub files: Vec<Option<LiveFile>>,
    /// For messages.
    pub name: PathBuf,
    /// What the guest reads as its identifier, at most 20 bytes.
    pub serial: String,
    /// How much it may do; none for no limit.
    pub rate: Option<RateLimit>,
}

impl Served {
    /// How much it may do.
    pub(super) const fn rate(&self) -> Option<RateLimit> {
        match self {
            Self::Raw(disk) => disk.rate,
            Self::Live(disk) => disk.rate,
        }
    }
}

/// Where a disk's requests go.
#[derive(Debug)]
pub enum Store {
    /// To a file.
    File(FileBackend),
    /// To wherever a microVM says.
    Live(Box<LiveBackend<Asking>>),
}

impl Store {
    /// With another guest's memory from now on; no request may be on its way.
    pub fn set_memory(&mut self, memory: Arc<GuestSlot>) {
        match self {
            Self::File(backend) => backend.set_memory(memory),
            Self::Live(backend) => backend.set_memory(memory),
        }
    }

    /// Takes what threads have done and, if it has `answered`, what the microVM says.
    pub(in crate::machine) fn take_news(&mut self, finished: &SlotFinished, answered: bool) {
        for done in finished.take() {
            match self {
                Self::File(backend) => backend.take_finished(done.token, done.completion),
                Self::Live(backend) => backend.take_finished(done.token, done.completion),
            }
        }
        if let Self::Live(backend) = self
            && answered
        {
            backend.take_answers();
        }
    }

    /// Whether it is to be polled again after [`crate::live::asking::HOLD`], though nothing is on its way.
    pub fn holds(&self) -> bool {
        match self {
            Self::File(_) => false,
            Self::Live(backend) => backend.holds(),
        }
    }

    /// Nobody will take news any more.
    pub fn leave(&mut self) {
        match self {
            Self::File(_) => {}
            Self::Live(backend) => backend.leave(),
        }
    }

    /// Why nothing of the disk can be reached any more, once that is so.
    pub fn gone(&self) -> Option<&SourceGone> {
        match self {
            Self::File(_) => None,
            Self::Live(backend) => backend.gone(),
        }
    }

    fn backend(&mut self) -> &mut dyn BlockBackend {
        match self {
            Self::File(backend) => backend,
            Self::Live(backend) => &mut **backend,
        }
    }
}

impl BlockBackend for Store {
    fn submit(&mut self, token: Token, request: IoRequest) -> Submission {
        self.backend().submit(token, request)
    }

    fn poll(&mut self) -> Option<(Token, Completion)> {
        self.backend().poll()
    }

    fn stop(&mut self) {
        self.backend().stop();
    }

    fn len_bytes(&mut self) -> Result<u64, Errno> {
        self.backend().len_bytes()
    }

    fn id(&mut self) -> [u8; ID_BYTES] {
        self.backend().id()
    }
}
