//! Questions to a resident guest in another process, and its answers: packets over a socket pair (`SOCK_SEQPACKET`).
//!
//! [`Asker`] is the end of whoever uses the disk, [`Port`] the end of the process that has the guest. A packet of
//! questions is a batch of [`LiveQuery`]s. A packet of answers is a word, [`ANSWERS_END`] in the last one of a batch,
//! and a piece of the guest's stream of answers.

use super::source::{
    Answer, DiskInfo, Extent, ExtentKind, ExtentSource, MAX_ALLOCATE_BYTES, MAX_BATCH, MAX_EXTENTS,
    MAX_FETCH_BYTES, Question, SourceGone,
};
use crate::operation::Resident;
use instar_devices::blk::Errno;
use instar_shared::live::{
    ANSWERS_END, AnswerHead, DISK_READ_ONLY, ExtentKind as Kind, LiveDisk, LiveExtent, LiveQuery,
    QUERY_UNMAP, QueryKind,
};
use instar_shared::op::ImageFormat;
use instar_shared::zerocopy::{FromBytes, IntoBytes};
use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, SendFlags};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use vmm_sys_util::signal::{block_signal, unblock_signal};

/// Bytes of a packet of answers at most: with what the kernel adds, a few of them fit a socket's buffer.
const PACKET_BYTES: usize = 48 << 10;
/// Bytes of the word before them.
const WORD_BYTES: usize = 4;

/// The contract's numbers are those of [`super::source`].
const _: () = {
    use instar_shared::live;
    assert!(live::MAX_BATCH == MAX_BATCH && live::MAX_EXTENTS == MAX_EXTENTS);
    assert!(live::MAX_FETCH_BYTES == MAX_FETCH_BYTES);
    assert!(live::MAX_ALLOCATE_BYTES == MAX_ALLOCATE_BYTES);
};

/// The end of whoever uses the disk.
#[derive(Debug)]
pub struct Asker {
    socket: Arc<OwnedFd>,
    packet: Vec<u8>,
    /// What has come of the answers to the batch that is on its way, and how long they can be.
    stream: Vec<u8>,
    most: usize,
    is_raw: bool,
    gone: Option<SourceGone>,
}

impl Asker {
    /// Over its end of a socket pair.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket: Arc::new(socket),
            packet: vec![0; PACKET_BYTES],
            stream: Vec::new(),
            most: 0,
            is_raw: false,
            gone: None,
        }
    }

    /// Readable when there is a part of an answer, or nobody to ask any more.
    #[must_use]
    pub fn socket(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.socket)
    }

    /// Whether the image turned out to be raw; false before it is open.
    #[must_use]
    pub const fn is_raw(&self) -> bool {
        self.is_raw
    }

    /// Sends a batch. It does not block: all before it has been taken, or it would not have been answered.
    fn send(&mut self, queries: &[LiveQuery], most: usize) -> Result<(), SourceGone> {
        self.most = most;
        self.stream.clear();
        let sent = retry_on_intr(|| {
            rustix::net::send(&self.socket, queries.as_bytes(), SendFlags::NOSIGNAL)
        });
        if sent.ok() == Some(queries.as_bytes().len()) {
            Ok(())
        } else {
            Err(SourceGone::ended())
        }
    }

    /// Takes a packet of the stream of answers: whether it ends the batch, or `None` if there is no packet yet.
    fn receive(&mut self, flags: RecvFlags) -> Result<Option<bool>, SourceGone> {
        let received = retry_on_intr(|| rustix::net::recv(&self.socket, &mut self.packet, flags));
        let len = match received {
            Ok((len, _)) => len,
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(_) => return Err(SourceGone::ended()),
        };
        let bytes = self.packet.get(..len).unwrap_or_default();
        let (word, bytes) = bytes
            .split_first_chunk::<WORD_BYTES>()
            .ok_or_else(SourceGone::ended)?;
        if self.stream.len().saturating_add(bytes.len()) > self.most {
            return Err(broken("its answers are longer than any can be"));
        }
        self.stream.extend_from_slice(bytes);
        match u32::from_le_bytes(*word) {
            0 => Ok(Some(false)),
            ANSWERS_END => Ok(Some(true)),
            _ => Err(broken("its answers have unknown flags")),
        }
    }

    /// Waits until a batch is answered.
    fn receive_all(&mut self) -> Result<(), SourceGone> {
        while self.receive(RecvFlags::empty())? != Some(true) {}
        Ok(())
    }

    /// Sends questions, at most [`MAX_BATCH`], whose answers [`Self::poll`] takes.
    ///
    /// # Errors
    /// There is nobody to ask any more.
    pub fn begin(&mut self, questions: &[Question]) -> Result<(), SourceGone> {
        if let Some(gone) = &self.gone {
            return Err(gone.clone());
        }
        let queries: Vec<LiveQuery> = questions.iter().map(query).collect();
        let most = questions.iter().map(longest_answer).sum();
        self.send(&queries, most)
            .inspect_err(|error| self.gone = Some(error.clone()))
    }

    /// The answers to the questions of [`Self::begin`], once all have come; never blocks.
    ///
    /// # Errors
    /// There are none, and nobody to ask any more. That holds if there was no question, too.
    pub fn poll(&mut self, questions: &[Question]) -> Result<Option<Vec<Answer>>, SourceGone> {
        if let Some(gone) = &self.gone {
            return Err(gone.clone());
        }
        let answers = loop {
            match self.receive(RecvFlags::DONTWAIT) {
                Ok(None) => return Ok(None),
                Ok(Some(false)) => {}
                Ok(Some(true)) => break parse_answers(questions, &self.stream),
                Err(error) => break Err(error),
            }
        };
        let answers = answers.inspect_err(|error| self.gone = Some(error.clone()));
        answers.map(Some)
    }

    /// Asks what the disk is, which [`Self::end_open`] then says.
    ///
    /// # Errors
    /// There is nobody to ask.
    pub fn begin_open(&mut self) -> Result<(), SourceGone> {
        let query = LiveQuery {
            kind: QueryKind::Open.raw().into(),
            ..LiveQuery::zeroed()
        };
        let most = size_of::<AnswerHead>().saturating_add(size_of::<LiveDisk>());
        self.send(&[query], most)
            .inspect_err(|error| self.gone = Some(error.clone()))
    }

    /// What the disk is; waits until it is known.
    ///
    /// # Errors
    /// It cannot be opened, or there is nobody to say what it is.
    pub fn end_open(&mut self) -> Result<DiskInfo, SourceGone> {
        let asked = self
            .receive_all()
            .and_then(|()| parse_disk(&self.stream))
            .inspect_err(|error| self.gone = Some(error.clone()));
        let (info, is_raw) = asked?;
        self.is_raw = is_raw;
        Ok(info)
    }

    /// Asks, and remembers that there is nobody to ask any more.
    fn questions(&mut self, questions: &[Question]) -> Result<Vec<Answer>, SourceGone> {
        self.begin(questions)?;
        self.receive_all()
            .and_then(|()| parse_answers(questions, &self.stream))
            .inspect_err(|error| self.gone = Some(error.clone()))
    }
}

impl ExtentSource for Asker {
    fn open(&mut self) -> Result<DiskInfo, SourceGone> {
        self.begin_open()?;
        self.end_open()
    }

    fn ask(&mut self, questions: &[Question]) -> Result<Vec<Answer>, SourceGone> {
        let mut answers = Vec::with_capacity(questions.len());
        for batch in questions.chunks(MAX_BATCH) {
            answers.extend(self.questions(batch)?);
        }
        Ok(answers)
    }
}

fn broken(what: &str) -> SourceGone {
    SourceGone(format!(
        "the disk's image cannot be used any more: blockd broke its contract with the host: {what}"
    ))
}

fn query(question: &Question) -> LiveQuery {
    let mut query = LiveQuery::zeroed();
    let (kind, range) = match *question {
        Question::Lookup { start, len } => (QueryKind::Lookup, (start, len)),
        Question::Allocate { start, len } => (QueryKind::Allocate, (start, len)),
        Question::Link { ticket } => {
            query.ticket = ticket.into();
            (QueryKind::Link, (0, 0))
        }
        Question::Abandon { ticket } => {
            query.ticket = ticket.into();
            (QueryKind::Abandon, (0, 0))
        }
        Question::Discard { start, len } => (QueryKind::Discard, (start, len)),
        Question::WriteZeroes { start, len, unmap } => {
            query.flags = if unmap { QUERY_UNMAP } else { 0 }.into();
            (QueryKind::WriteZeroes, (start, len))
        }
        Question::Fetch { start, len } => (QueryKind::Fetch, (start, len)),
        Question::Flush => (QueryKind::Flush, (0, 0)),
        Question::Close => (QueryKind::Close, (0, 0)),
    };
    query.kind = kind.raw().into();
    (query.start, query.len) = (range.0.into(), range.1.into());
    query
}

/// Bytes of the longest answer to a question.
fn longest_answer(question: &Question) -> usize {
    let extents = MAX_EXTENTS.saturating_mul(size_of::<LiveExtent>());
    let more = match question {
        Question::Lookup { .. } | Question::Allocate { .. } => extents,
        Question::Fetch { len, .. } => usize::try_from(*len).unwrap_or(usize::MAX),
        _ => 0,
    };
    more.saturating_add(size_of::<AnswerHead>())
}

/// The answers to a batch of questions. What extents say is not looked at beyond their form.
///
/// # Errors
/// They are no such answers.
pub fn parse_answers(questions: &[Question], stream: &[u8]) -> Result<Vec<Answer>, SourceGone> {
    let mut rest = stream;
    let answers: Result<Vec<Answer>, SourceGone> = questions
        .iter()
        .map(|question| parse_answer(question, &mut rest))
        .collect();
    if !rest.is_empty() {
        return Err(broken("it answers more than it was asked"));
    }
    answers
}

fn parse_answer(question: &Question, rest: &mut &[u8]) -> Result<Answer, SourceGone> {
    let head: AnswerHead = take(rest)?;
    let [errno, ticket, extents, bytes] =
        [head.errno, head.ticket, head.extents, head.bytes].map(|word| word.get());
    let start = head.start.get();
    if errno != 0 {
        if [ticket, extents, bytes] != [0; 3] || start != 0 {
            return Err(broken("it answers what it refuses"));
        }
        return Ok(Answer::Refused(Errno(errno)));
    }
    let plain = ticket == 0 && bytes == 0;
    let whole = plain && extents == 0 && start == 0;
    match *question {
        Question::Lookup { .. } if plain && extents > 0 => {
            Ok(Answer::Extents(parse_extents(rest, start, extents)?))
        }
        Question::Allocate { .. } if bytes == 0 && extents > 0 => {
            let extents = parse_extents(rest, start, extents)?;
            Ok(Answer::Allocated { ticket, extents })
        }
        Question::Fetch { len, .. }
            if (ticket, extents, start) == (0, 0, 0) && u64::from(bytes) == len =>
        {
            let len = usize::try_from(bytes).unwrap_or(usize::MAX);
            let (bytes, later) = rest.split_at_checked(len).ok_or_else(too_short)?;
            *rest = later;
            Ok(Answer::Bytes(bytes.to_vec()))
        }
        Question::Link { .. }
        | Question::Abandon { .. }
        | Question::Discard { .. }
        | Question::WriteZeroes { .. }
        | Question::Flush
        | Question::Close
            if whole =>
        {
            Ok(Answer::Done)
        }
        _ => Err(broken("it answers something that it was not asked")),
    }
}

/// Extents without gaps from `start` on.
fn parse_extents(rest: &mut &[u8], start: u64, count: u32) -> Result<Vec<Extent>, SourceGone> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if count > MAX_EXTENTS {
        return Err(broken("it answers with too many extents"));
    }
    let mut extents = Vec::with_capacity(count);
    let mut start = start;
    for _ in 0..count {
        let raw: LiveExtent = take(rest)?;
        let len = raw.len.get();
        let end = start.checked_add(len).filter(|end| *end > start);
        let end = end.ok_or_else(|| broken("an extent is empty or endless"))?;
        let kind = extent_kind(&raw).ok_or_else(|| broken("an extent makes no sense"))?;
        extents.push(Extent { start, len, kind });
        start = end;
    }
    Ok(extents)
}

fn extent_kind(raw: &LiveExtent) -> Option<ExtentKind> {
    let (file, offset) = (raw.slot.get(), raw.offset.get());
    let nowhere = file == 0 && offset == 0;
    if raw.reserved.get() != 0 {
        return None;
    }
    let data = |in_place| ExtentKind::Data {
        file,
        offset,
        in_place,
    };
    match Kind::try_from(raw.kind.get()).ok()? {
        Kind::Data => Some(data(false)),
        Kind::InPlace => Some(data(true)),
        Kind::Zero if nowhere => Some(ExtentKind::Zero),
        Kind::Fetch if nowhere => Some(ExtentKind::Fetch),
        Kind::Zero | Kind::Fetch => None,
    }
}

/// What a disk is, and whether its image is raw.
fn parse_disk(stream: &[u8]) -> Result<(DiskInfo, bool), SourceGone> {
    let mut rest = stream;
    let head: AnswerHead = take(&mut rest)?;
    if head.errno.get() != 0 {
        let text = format!(
            "the disk's image cannot be used: error {}",
            head.errno.get()
        );
        return Err(SourceGone(text));
    }
    let disk: LiveDisk = take(&mut rest)?;
    let (len_bytes, unit) = (disk.len_bytes.get(), disk.cluster_bytes.get());
    let flags = disk.flags.get();
    let known = unit.is_power_of_two()
        && (512..=2 << 20).contains(&unit)
        && len_bytes % 512 == 0
        && i64::try_from(len_bytes).is_ok()
        && flags & !DISK_READ_ONLY == 0
        && disk.reserved == [0; 12]
        && rest.is_empty();
    if !known {
        return Err(broken("it describes a disk that there cannot be"));
    }
    let info = DiskInfo {
        len_bytes,
        cluster_bytes: unit,
        read_only: flags & DISK_READ_ONLY != 0,
    };
    Ok((info, disk.format.get() == ImageFormat::Raw.raw()))
}

fn too_short() -> SourceGone {
    broken("its answers end too early")
}

fn take<T: FromBytes>(rest: &mut &[u8]) -> Result<T, SourceGone> {
    let (value, later) = T::read_from_prefix(rest).map_err(|_| too_short())?;
    *rest = later;
    Ok(value)
}

/// The end of the process that has the guest. When the other end is closed it asks the guest to close the image.
#[derive(Debug)]
pub struct Port {
    socket: OwnedFd,
    packet: Vec<u8>,
    /// Something was asked: before that the guest says that it is ready, and answers nothing.
    asked: bool,
    orphaned: bool,
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

#[cfg(test)]
#[path = "channel_tests.rs"]
mod tests;
