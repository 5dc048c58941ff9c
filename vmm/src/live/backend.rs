//! A live disk as a block device: reads, writes and flushes of its guest, moved by the host to where the source says.
//!
//! What the map holds goes straight to the file; only what it does not hold, and writes that need clusters, are asked. A
//! request waits for nothing but what it asked itself, and for those before it that change where its clusters are.

mod answers;
mod data;
mod progress;

use super::check::{Checked, Window, Wrong};
use super::map::ExtentMap;
use super::request::{Do, Request, Requests};
use super::source::{DiskInfo, Question, SourceGone};
use super::stale::Stale;
use crate::block::{HostFile, IoPool};
use crate::memory::GuestSlot;
use instar_devices::blk::{BlockBackend, Completion, Errno, IoRequest, Submission, Token};
use instar_shared::blk::ID_BYTES;
use std::collections::VecDeque;
use std::sync::Arc;

pub use super::source::{Answered, Questions};

/// A file of a live disk.
#[derive(Clone, Debug)]
pub struct LiveFile {
    /// Its bytes.
    pub file: Arc<HostFile>,
    /// What it grants.
    pub window: Window,
    /// It is a block device.
    pub block_device: bool,
}

/// What a live disk is made of.
#[derive(Debug)]
pub struct LiveParts {
    /// The device's number.
    pub slot: u16,
    /// The disk.
    pub info: DiskInfo,
    /// Its files by slot; none where there is none.
    pub files: Vec<Option<LiveFile>>,
    /// The guest's memory.
    pub memory: Arc<GuestSlot>,
    /// Threads for what sleeps.
    pub pool: Arc<IoPool>,
    /// What the guest reads as its identifier.
    pub id: [u8; ID_BYTES],
}

/// A live disk.
#[derive(Debug)]
pub struct LiveBackend<Q> {
    parts: LiveParts,
    checked: Checked,
    questions: Q,
    map: ExtentMap,
    stale: Stale,
    requests: Requests,
    /// Completed, to be polled.
    finished: VecDeque<(Token, Completion)>,
    /// Questions that change the map, and how many of them the last flush has covered.
    changes: u64,
    flushed: u64,
    gone: Option<SourceGone>,
}

impl<Q: Questions> LiveBackend<Q> {
    /// A disk whose source answers `questions`.
    ///
    /// # Errors
    /// The source says what no disk is.
    pub fn new(parts: LiveParts, questions: Q) -> Result<Self, SourceGone> {
        let windows = parts.files.iter();
        let windows = windows.map(|file| file.as_ref().map(|file| file.window));
        let checked = Checked::new(parts.info, windows.collect()).map_err(wrong)?;
        Ok(Self {
            parts,
            checked,
            questions,
            map: ExtentMap::default(),
            stale: Stale::default(),
            requests: Requests::default(),
            finished: VecDeque::new(),
            changes: 0,
            flushed: 0,
            gone: None,
        })
    }

    /// Why there are no answers any more, once that is so.
    pub const fn gone(&self) -> Option<&SourceGone> {
        self.gone.as_ref()
    }

    /// Who is asked.
    pub const fn questions(&mut self) -> &mut Q {
        &mut self.questions
    }

    /// Whether [`Self::poll`] is to be called again after a while, though nothing is on its way.
    pub fn holds(&self) -> bool {
        self.gone.is_none() && self.questions.holds()
    }

    /// No answers will be taken any more: what the guest has been told to be written is linked.
    pub fn leave(&mut self) {
        if self.gone.is_none() {
            self.questions.end();
        }
    }

    /// With another guest's memory from now on; no request may be on its way.
    pub fn set_memory(&mut self, memory: Arc<GuestSlot>) {
        self.parts.memory = memory;
    }

    /// A thread has finished a part of a request.
    pub fn take_finished(&mut self, token: Token, completion: Completion) {
        let Some(mut request) = self.requests.remove(token) else {
            return;
        };
        request.part_ended(completion.result.err());
        self.go_on(token, request);
        self.wake();
    }

    fn ask(&mut self, id: u64, request: &mut Request, question: Question) {
        request.asked = request.asked.saturating_add(1);
        match question {
            Question::Lookup { .. } => self.stale.asked(),
            Question::Allocate { .. } | Question::Discard { .. } | Question::WriteZeroes { .. } => {
                self.changes = self.changes.saturating_add(1);
            }
            _ => {}
        }
        self.questions.ask(Some(id), question);
    }

    /// Goes on with a request as far as it can; keeps it, or says how it ended by a poll.
    fn go_on(&mut self, id: u64, request: Request) {
        let token = request.token;
        if let Some(completion) = self.run(id, request) {
            self.finished.push_back((token, completion));
        }
    }

    /// Has those go on that wait for others, as long as one of them does.
    fn wake(&mut self) {
        let mut waiting = self.requests.waiting();
        while !waiting.is_empty() {
            for id in &waiting {
                if let Some(request) = self.requests.remove(*id) {
                    self.go_on(*id, request);
                }
            }
            let before = waiting.len();
            waiting = self.requests.waiting();
            if waiting.len() == before {
                return;
            }
        }
    }

    /// Goes on with a request; keeps it unless it has ended.
    fn run(&mut self, id: u64, mut request: Request) -> Option<Completion> {
        if self.gone.is_some() && !request.has_parts() {
            request.fail(Errno::EIO);
        } else if !request.active {
            request.exclusive = self.changes_map(&request);
            request.active = !self.requests.conflict(id, &request);
        }
        if request.active {
            self.advance(id, &mut request);
        }
        let ended = request.active || request.error.is_some();
        if !ended || request.has_parts() || !request.is_placed() {
            self.requests.insert(id, request);
            return None;
        }
        Some(self.finish(request))
    }
}

impl<Q: Questions> BlockBackend for LiveBackend<Q> {
    fn submit(&mut self, token: Token, request: IoRequest) -> Submission {
        let failed = |errno| Submission::Done(Completion { result: Err(errno) });
        let request = match Request::new(token, request, &self.checked) {
            Ok(request) => request,
            Err(errno) => return failed(errno),
        };
        if self.checked.info.read_only {
            match request.what {
                Do::Read => {}
                Do::Flush => return Submission::Done(Completion { result: Ok(0) }),
                _ => return failed(Errno::EROFS),
            }
        }
        let id = self.requests.next_id();
        match self.run(id, request) {
            Some(completion) => Submission::Done(completion),
            None => Submission::Pending,
        }
    }

    fn poll(&mut self) -> Option<(Token, Completion)> {
        if let Some(finished) = self.finished.pop_front() {
            return Some(finished);
        }
        if self.gone.is_none()
            && let Err(gone) = self.questions.send()
        {
            self.end(gone);
        }
        self.finished.pop_front()
    }

    fn stop(&mut self) {
        self.parts.pool.stop(self.parts.slot);
        for (_, request) in self.requests.take() {
            for ticket in request.tickets {
                self.changes = self.changes.saturating_add(1);
                self.questions.ask(None, Question::Abandon { ticket });
            }
        }
        self.questions.forget();
        self.finished.clear();
        self.map.clear();
        self.stale = Stale::default();
    }

    fn len_bytes(&mut self) -> Result<u64, Errno> {
        Ok(self.checked.info.len_bytes)
    }

    fn id(&mut self) -> [u8; ID_BYTES] {
        self.parts.id
    }
}

fn wrong(wrong: Wrong) -> SourceGone {
    SourceGone(format!(
        "the program that reads the disk's format answered with {wrong}; the disk cannot be used any more"
    ))
}
