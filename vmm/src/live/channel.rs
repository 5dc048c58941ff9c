//! Questions to a resident guest in another process, and its answers: packets over a socket pair (`SOCK_SEQPACKET`).
//!
//! [`Asker`] is the end of whoever uses the disk, [`Port`] the end of the process that has the guest. A packet of
//! questions is a batch of [`LiveQuery`]s. A packet of answers is a word, [`ANSWERS_END`] in the last one of a batch,
//! and a piece of the guest's stream of answers.

mod port;
mod wire;

use super::source::{Answer, DiskInfo, ExtentSource, MAX_BATCH, Question, SourceGone};
use instar_shared::live::{ANSWERS_END, AnswerHead, LiveDisk, LiveQuery, QueryKind};
use instar_shared::zerocopy::IntoBytes;
use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, SendFlags};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use wire::{broken, longest_answer, parse_disk, query};

pub use port::Port;
pub use wire::parse_answers;

/// Bytes of a packet of answers at most: with what the kernel adds, a few of them fit a socket's buffer.
const PACKET_BYTES: usize = 48 << 10;
/// Bytes of the word before them.
const WORD_BYTES: usize = 4;

/// The contract's numbers are those of [`super::source`].
const _: () = {
    use super::source::{MAX_ALLOCATE_BYTES, MAX_EXTENTS, MAX_FETCH_BYTES};
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

#[cfg(test)]
#[path = "channel_tests.rs"]
mod tests;
