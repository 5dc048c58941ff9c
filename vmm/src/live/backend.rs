//! A live disk as a block device: reads, writes and flushes of its guest, moved by the host to where the source says.
//!
//! What the map holds goes straight to the file; only what it does not hold, and writes that need clusters, are asked. A
//! request waits for nothing but what it asked itself, and for those before it that change where its clusters are.

use super::check::{Checked, Window, Wrong};
use super::map::{ExtentMap, part};
use super::request::{Do, Request, Requests};
use super::source::{
    Answer, DiskInfo, Extent, ExtentKind, MAX_ALLOCATE_BYTES, MAX_FETCH_BYTES, Question, SourceGone,
};
use super::stale::Stale;
use crate::block::{Handover, HostFile, IoPool, Job, Step, Transfer, Work};
use crate::memory::GuestSlot;
use instar_devices::blk::{
    BlockBackend, Completion, Errno, GuestBuffer, IoKind, IoRequest, Submission, Token,
};
use instar_shared::blk::ID_BYTES;
use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::Arc;

/// Who is asked. Answers come in the order of the questions.
pub trait Questions: Debug + Send {
    /// Takes a question; `by` comes back with its answer.
    fn ask(&mut self, by: Option<u64>, question: Question);

    /// Sends what was taken, as far as it can be sent now and is worth it: what nobody waits for may go later.
    ///
    /// # Errors
    /// There will be no more answers.
    fn send(&mut self) -> Result<(), SourceGone>;

    /// Answers that have come since.
    ///
    /// # Errors
    /// There will be no more answers.
    fn answers(&mut self) -> Result<Vec<Answered>, SourceGone>;

    /// Has those who asked forgotten; on return nothing of theirs is asked any more but links and what abandons
    /// allocations.
    fn forget(&mut self);

    /// Whether something waits that is sent later without another question: [`Self::send`] is to be called again.
    fn holds(&self) -> bool;

    /// Sends links and what abandons allocations, as no more answers will be taken.
    fn end(&mut self);
}

/// A question and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Who asked; nobody if the answer is of no interest.
    pub by: Option<u64>,
    /// What was asked.
    pub question: Question,
    /// The answer.
    pub answer: Answer,
}

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

    /// Takes the answers that have come.
    pub fn take_answers(&mut self) {
        if self.gone.is_some() {
            return;
        }
        let taken = self.questions.answers().and_then(|answers| {
            let mut answers = answers.into_iter();
            answers.try_for_each(|answered| self.take_answer(answered))
        });
        if let Err(gone) = taken {
            self.end(gone);
        }
        self.wake();
    }

    fn take_answer(&mut self, answered: Answered) -> Result<(), SourceGone> {
        let Answered {
            by,
            question,
            answer,
        } = answered;
        let request = by.and_then(|id| Some((id, self.requests.remove(id)?)));
        let Some((id, mut request)) = request else {
            return match (question, answer) {
                (Question::Link { .. } | Question::Abandon { .. }, Answer::Refused(errno)) => {
                    Err(wrong(Wrong::Refused(errno)))
                }
                _ => Ok(()),
            };
        };
        request.asked = request.asked.saturating_sub(1);
        let took = self.apply(id, &mut request, question, answer);
        if took.is_err() {
            request.fail(Errno::EIO);
        }
        self.go_on(id, request);
        took.map_err(wrong)
    }

    /// What an answer changes.
    fn apply(
        &mut self,
        id: u64,
        request: &mut Request,
        question: Question,
        answer: Answer,
    ) -> Result<(), Wrong> {
        if let Question::Lookup { .. } = question {
            self.stale.answered();
            request.looking = false;
        }
        match (question, answer) {
            (Question::Lookup { start, .. }, Answer::Extents(extents)) => {
                self.checked.lookup(start, &extents)?;
                let own = request.clusters;
                for extent in extents {
                    if let Some(fresh) = self.stale.fresh(extent, own) {
                        self.map.insert(fresh);
                    }
                }
            }
            (Question::Allocate { start, len }, Answer::Allocated { ticket, extents }) => {
                let end = start.saturating_add(len);
                self.checked.allocated(start, end, &extents)?;
                if ticket != 0 {
                    request.tickets.push(ticket);
                }
                self.place(id, request, (start, end), &extents);
                request.placed.extend(extents);
            }
            (Question::Fetch { start, len }, Answer::Bytes(bytes)) => {
                if bytes.len() as u64 != len {
                    return Err(Wrong::Length((bytes.len() as u64).abs_diff(len)));
                }
                let buffers = request.buffers_at(start, len);
                let kind = IoKind::Read { offset: start };
                let filled = IoRequest { kind, buffers }.fill(self.parts.memory.dma(), &bytes);
                if let Err(errno) = filled {
                    request.fail(errno);
                }
            }
            (Question::Discard { .. } | Question::WriteZeroes { .. }, Answer::Done) => {
                let (start, end) = request.clusters;
                self.map.remove(start, end);
            }
            (Question::Flush, Answer::Done) => self.flushed = request.flushes,
            // A hint that cannot be taken.
            (Question::Discard { .. }, Answer::Refused(Errno::EOPNOTSUPP)) => {}
            (Question::Link { .. } | Question::Abandon { .. } | Question::Close, _) => {}
            (_, Answer::Refused(errno)) => request.fail(errno),
            _ => return Err(Wrong::Kind),
        }
        Ok(())
    }

    /// There are no answers any more: whatever waits for one has failed.
    fn end(&mut self, gone: SourceGone) {
        self.gone = Some(gone);
        for id in self.requests.ids() {
            if let Some(mut request) = self.requests.remove(id) {
                request.asked = 0;
                request.fail(Errno::EIO);
                self.go_on(id, request);
            }
        }
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

    /// Whether where the request's clusters are is another place when it is done.
    fn changes_map(&mut self, request: &Request) -> bool {
        match request.what {
            Do::Read | Do::Flush => false,
            Do::Discard | Do::WriteZeroes { .. } => true,
            Do::Write => {
                let mut at = request.start;
                while at < request.end {
                    match self.map.get(at) {
                        Some(extent) if is_in_place(&extent) => at = extent.end(),
                        _ => return true,
                    }
                }
                false
            }
        }
    }

    fn advance(&mut self, id: u64, request: &mut Request) {
        if request.error.is_some() {
            return;
        }
        match request.what {
            Do::Read => self.read(id, request),
            Do::Write if request.exclusive => self.write_new(id, request),
            Do::Write => self.overwrite(id, request),
            Do::Discard | Do::WriteZeroes { .. } => self.change(id, request),
            Do::Flush => self.flush(id, request),
        }
    }

    fn read(&mut self, id: u64, request: &mut Request) {
        while request.cursor < request.end && request.error.is_none() {
            let (at, rest) = (request.cursor, request.rest());
            let Some(extent) = self.map.get(at).and_then(|e| part(e, at, request.end)) else {
                if !std::mem::replace(&mut request.looking, true) {
                    let question = Question::Lookup {
                        start: at,
                        len: rest,
                    };
                    self.ask(id, request, question);
                }
                return;
            };
            let len = match extent.kind {
                ExtentKind::Fetch => extent.len.min(MAX_FETCH_BYTES),
                _ => extent.len,
            };
            match extent.kind {
                ExtentKind::Fetch => self.ask(id, request, Question::Fetch { start: at, len }),
                ExtentKind::Zero => self.zero(request, at, len),
                ExtentKind::Data { file, offset, .. } => {
                    self.transfer(id, request, (at, len), (file, offset));
                }
            }
            request.cursor = at.saturating_add(len);
        }
    }

    /// All of it is known to be written in place.
    fn overwrite(&mut self, id: u64, request: &mut Request) {
        while request.cursor < request.end && request.error.is_none() {
            let at = request.cursor;
            let extent = self.map.get(at).and_then(|e| part(e, at, request.end));
            let Some(extent) = extent.filter(is_in_place) else {
                request.fail(Errno::EIO);
                return;
            };
            if let ExtentKind::Data { file, offset, .. } = extent.kind {
                self.transfer(id, request, (at, extent.len), (file, offset));
            }
            request.cursor = extent.end();
        }
    }

    /// Asks for clusters, for one stretch after the other.
    fn write_new(&mut self, id: u64, request: &mut Request) {
        if request.cursor < request.end && request.asked == 0 {
            let (start, len) = (request.cursor, request.rest().min(MAX_ALLOCATE_BYTES));
            request.cursor = start.saturating_add(len);
            self.ask(id, request, Question::Allocate { start, len });
        }
    }

    /// Writes `start..end` of a request where the source said.
    fn place(
        &mut self,
        id: u64,
        request: &mut Request,
        (start, end): (u64, u64),
        extents: &[Extent],
    ) {
        for extent in extents
            .iter()
            .filter_map(|extent| part(*extent, start, end))
        {
            if let ExtentKind::Data { file, offset, .. } = extent.kind {
                self.transfer(id, request, (extent.start, extent.len), (file, offset));
            }
        }
    }

    fn change(&mut self, id: u64, request: &mut Request) {
        if request.cursor < request.end {
            let (start, len) = (request.cursor, request.rest());
            request.cursor = request.end;
            let question = match request.what {
                Do::WriteZeroes { unmap } => Question::WriteZeroes { start, len, unmap },
                _ => Question::Discard { start, len },
            };
            self.ask(id, request, question);
        }
    }

    /// Data first, then, if anything has changed in the map, what the source has.
    fn flush(&mut self, id: u64, request: &mut Request) {
        if request.stage == 0 {
            request.stage = 1;
            let writable = |file: &&LiveFile| file.window.writable;
            let files = self.parts.files.iter().flatten().filter(writable);
            let files: Vec<Arc<HostFile>> = files.map(|file| Arc::clone(&file.file)).collect();
            for file in files {
                self.hand_over(id, request, file, Work::Sync, false);
            }
        }
        if request.stage == 1 && !request.has_parts() && self.changes != self.flushed {
            request.stage = 2;
            request.flushes = self.changes;
            self.ask(id, request, Question::Flush);
        }
    }

    /// Links what was written, or gives it back.
    fn finish(&mut self, request: Request) -> Completion {
        let failed = request.error.is_some();
        for ticket in &request.tickets {
            self.changes = self.changes.saturating_add(1);
            let question = if failed {
                Question::Abandon { ticket: *ticket }
            } else {
                Question::Link { ticket: *ticket }
            };
            self.questions.ask(None, question);
        }
        if !failed {
            for extent in &request.placed {
                self.stale.changed(extent.start, extent.end());
                self.map.insert(*extent);
            }
        }
        let filled = match request.what {
            Do::Read => u32::try_from(request.end.saturating_sub(request.start)),
            _ => Ok(0),
        };
        Completion {
            result: request
                .error
                .map_or_else(|| filled.map_err(|_| Errno::EIO), Err),
        }
    }

    fn zero(&self, request: &mut Request, at: u64, len: u64) {
        let buffers = request.buffers_at(at, len);
        let mut transfer = whole(0, buffers);
        if let Step::Failed(errno) = transfer.zero_rest(&self.parts.memory) {
            request.fail(errno);
        }
    }

    /// Moves a part of a request from or to a file: at once if the page cache does it, else on a thread.
    fn transfer(
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

    fn hand_over(
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

const fn is_in_place(extent: &Extent) -> bool {
    matches!(extent.kind, ExtentKind::Data { in_place: true, .. })
}

const fn whole(offset: u64, buffers: Vec<GuestBuffer>) -> Transfer {
    Transfer {
        offset,
        buffers,
        done: 0,
    }
}

fn wrong(wrong: Wrong) -> SourceGone {
    SourceGone(format!(
        "the program that reads the disk's format answered with {wrong}; the disk cannot be used any more"
    ))
}
