//! What answers for the map of a live disk: where its bytes are, where new ones go.
//!
//! Behind it is a microVM that owns the image's metadata. Questions go to it in batches, and each batch is answered whole
//! and in order, so that one entry into the microVM serves all that has come together meanwhile. Whoever asks never
//! believes an answer.
//!
//! What the order of questions promises:
//! - A write that needs clusters asks [`Question::Allocate`], writes its data into what it got, and asks
//!   [`Question::Link`]. Nobody waits for the link: what is asked later finds the clusters in the map.
//! - [`Question::Flush`] comes when all that the guest had been told of before its flush is durable in the host's files. Links
//!   of later writes may come before it as well, so the source, if it has anything to link, first makes its files durable:
//!   data, its own copies (the rest of new clusters) and refcounts; then tables that refer to them.
//! - No two questions about one cluster are open at a time, and none about one whose data is on its way.

use instar_devices::blk::Errno;
use std::fmt::Debug;

/// Most extents of an answer.
pub const MAX_EXTENTS: usize = 256;
/// Most questions of a batch.
pub const MAX_BATCH: usize = 64;
/// Longest range of [`Question::Fetch`], in bytes: the largest cluster.
pub const MAX_FETCH_BYTES: u64 = 2 << 20;
/// Longest range of [`Question::Allocate`], in bytes. A longer write asks several times.
pub const MAX_ALLOCATE_BYTES: u64 = 64 << 20;

/// What a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    /// What the guest sees, in bytes.
    pub len_bytes: u64,
    /// What is allocated at once, in bytes: a power of two from 512 to 2 MiB; 512 for a raw image. No two questions are open
    /// about one such cluster.
    pub cluster_bytes: u32,
    /// Nothing can be written.
    pub read_only: bool,
}

/// A run of the disk's bytes: whole sectors of 512, but for the disk's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte of the disk.
    pub start: u64,
    /// Length in bytes, not 0.
    pub len: u64,
    /// What is there.
    pub kind: ExtentKind,
}

impl Extent {
    /// First byte after it.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// Where the bytes of a run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// In a file, in one piece, as the guest is to see them; zeros past the file's end.
    Data {
        /// The file's slot.
        file: u16,
        /// Where the run starts in it, in bytes.
        offset: u64,
        /// They may be overwritten there: they are the disk's own, and in no snapshot.
        in_place: bool,
    },
    /// Zeros.
    Zero,
    /// The source has to make them: they are compressed or encrypted.
    Fetch,
}

/// A question to the source. Ranges are bytes of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Where is `start..start + len`? The answer, [`Answer::Extents`], holds `start` in its first extent and goes on without
    /// gaps. It may say less or more than asked: best all that one table says.
    Lookup {
        /// First byte.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Where may `start..start + len` be written? [`Answer::Allocated`] covers the range and nothing outside of the clusters
    /// that hold it, all [`ExtentKind::Data`] that may be written in place. What is new in it has its bytes outside the range
    /// copied or zeroed already, and is in the map when its ticket is linked. All that the link needs is allocated, too: a
    /// link is never refused for want of space.
    Allocate {
        /// First byte.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The data for this ticket is written: the map shows it.
    Link {
        /// Of [`Answer::Allocated`].
        ticket: u32,
    },
    /// The data for this ticket is not written: its clusters are free again.
    Abandon {
        /// Of [`Answer::Allocated`].
        ticket: u32,
    },
    /// The range is not needed any more: a hint. Whole clusters are given back, the rest stays.
    Discard {
        /// First byte.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The range is zeros; the source writes what of it is no whole cluster.
    WriteZeroes {
        /// First byte.
        start: u64,
        /// Length in bytes.
        len: u64,
        /// Clusters may be given back.
        unmap: bool,
    },
    /// What are the bytes of a range that is [`ExtentKind::Fetch`]?
    Fetch {
        /// First byte.
        start: u64,
        /// Length in bytes, at most [`MAX_FETCH_BYTES`].
        len: u64,
    },
    /// Make all that was linked, discarded and zeroed durable.
    Flush,
    /// As [`Self::Flush`], and leave the image as one that nobody has open. The last question.
    Close,
}

/// An answer; not yet believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Question::Lookup`].
    Extents(Vec<Extent>),
    /// To [`Question::Allocate`].
    Allocated {
        /// Names the allocation; 0 if there is nothing to link.
        ticket: u32,
        /// Where the range is to be written.
        extents: Vec<Extent>,
    },
    /// To [`Question::Fetch`].
    Bytes(Vec<u8>),
    /// To all others.
    Done,
    /// It could not be done, e.g. ENOSPC; nothing has changed.
    Refused(Errno),
}

/// Why there are no answers any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SourceGone(pub String);

impl SourceGone {
    /// The process that answers has ended; why is for that one to say.
    #[must_use]
    pub fn ended() -> Self {
        Self("the disk's image cannot be used any more: the process that reads it has ended".into())
    }
}

/// What answers for the map of a live disk.
pub trait ExtentSource: Debug + Send {
    /// Opens the disk; comes first, once.
    ///
    /// # Errors
    /// One sentence: why it cannot be opened.
    fn open(&mut self) -> Result<DiskInfo, SourceGone>;

    /// Answers all `questions`, at most [`MAX_BATCH`], in order.
    ///
    /// # Errors
    /// One sentence; no question is answered any more, and nobody knows which of these was.
    fn ask(&mut self, questions: &[Question]) -> Result<Vec<Answer>, SourceGone>;
}

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
