//! A resident operation: it answers queries about a live disk for as long as a machine uses it.
//!
//! The host writes a batch of queries to the front of [`crate::layout::LIVE`], and the guest answers each of them in
//! order. Answers are a stream of bytes through the window behind: an [`AnswerHead`] and what it announces, without
//! padding. When the window is full, and when the batch is answered, the guest writes how much of the window is filled and
//! kicks [`crate::doorbell::Control::Serve`]. The host copies it once. If that was the whole batch, the kick returns
//! with the next one; the guest does not run before there is one. The first kick says that the guest is ready and
//! answers nothing.
//!
//! Ranges are bytes of the disk as its user sees it.

use zerocopy::little_endian::{U16, U32, U64};

/// Most queries of a batch.
pub const MAX_BATCH: usize = 64;
/// Most extents of an answer.
pub const MAX_EXTENTS: usize = 256;
/// Longest range of [`QueryKind::Fetch`] in bytes: the largest cluster.
pub const MAX_FETCH_BYTES: u64 = 2 << 20;
/// Longest range of [`QueryKind::Allocate`] in bytes.
pub const MAX_ALLOCATE_BYTES: u64 = 64 << 20;
/// Where the window for answers starts in the region, in bytes.
pub const ANSWERS_AT: u64 = 0x4000;
/// Bytes of the window.
pub const WINDOW_BYTES: u32 = 0x4_0000;

/// [`BlockdConfig::flags`]: nothing will be written.
pub const BLOCKD_READ_ONLY: u32 = 1 << 0;

wire_struct! {
    /// What `blockd` is to open.
    pub struct BlockdConfig {
        /// A [`crate::op::ImageFormat`].
        pub format: U32,
        /// `BLOCKD_*`.
        pub flags: U32,
        /// Zero.
        pub reserved: [u8; 24],
    }
}
wire_layout!(BlockdConfig, size = 32, { format @ 0, flags @ 4, reserved @ 8 });

wire_struct! {
    /// How `blockd` ended.
    pub struct BlockdResult {
        /// An [`crate::op::Outcome`].
        pub outcome: U32,
        /// Zero.
        pub reserved: [u8; 28],
    }
}
wire_layout!(BlockdResult, size = 32, { outcome @ 0, reserved @ 4 });

wire_enum! {
    /// What is asked.
    pub enum QueryKind: u32 {
        /// What is the disk? A [`LiveDisk`].
        Open = 1,
        /// Where is the range? Extents, the first of which holds the range's start; they may say less or more than asked.
        Lookup = 2,
        /// Where may the range be written? Extents for all of it, and nothing outside of its clusters, all
        /// [`ExtentKind::InPlace`]; a ticket if a [`Self::Link`] is to follow. What is new has its bytes outside the range
        /// already.
        Allocate = 3,
        /// What was to be written to the ticket's extents is there: the map shows it.
        Link = 4,
        /// It is not: the ticket's extents are free again.
        Abandon = 5,
        /// The range is not needed any more: a hint.
        Discard = 6,
        /// The range is zeros.
        WriteZeroes = 7,
        /// What are the bytes of the range?
        Fetch = 8,
        /// What was linked, discarded and zeroed becomes durable; the data of links is, already.
        Flush = 9,
        /// As [`Self::Flush`], and the image is left as one that nobody has open. What is asked later gets no answer.
        Close = 10,
    }
}

/// [`LiveQuery::flags`] of [`QueryKind::WriteZeroes`]: space may be given back.
pub const QUERY_UNMAP: u32 = 1 << 0;

wire_struct! {
    /// A query.
    pub struct LiveQuery {
        /// A [`QueryKind`].
        pub kind: U32,
        /// Of [`QueryKind::Link`] and [`QueryKind::Abandon`]: [`AnswerHead::ticket`].
        pub ticket: U32,
        /// First byte of the range.
        pub start: U64,
        /// Bytes of the range.
        pub len: U64,
        /// `QUERY_*`.
        pub flags: U32,
        /// Zero.
        pub reserved: U32,
    }
}
wire_layout!(LiveQuery, size = 32, { kind @ 0, ticket @ 4, start @ 8, len @ 16, flags @ 24, reserved @ 28 });

/// [`LivePage::flags`]: the batch is answered.
pub const ANSWERS_END: u32 = 1 << 0;

wire_struct! {
    /// The front of [`crate::layout::LIVE`].
    pub struct LivePage {
        /// Guest: bytes of the window that are filled.
        pub filled: U32,
        /// Guest: `ANSWERS_*`.
        pub flags: U32,
        /// Host: queries of the batch, at least 1.
        pub count: U32,
        /// Zero.
        pub reserved: U32,
        /// Host: the queries.
        pub queries: [LiveQuery; MAX_BATCH],
    }
}
wire_layout!(LivePage, size = 2064, { filled @ 0, flags @ 4, count @ 8, reserved @ 12, queries @ 16 });

wire_struct! {
    /// Begins an answer.
    pub struct AnswerHead {
        /// An errno (Linux numbering), and nothing else follows and nothing has changed; 0 if it is done.
        pub errno: U32,
        /// Of [`QueryKind::Allocate`]: names what is to be linked; 0 if nothing is.
        pub ticket: U32,
        /// First byte of the first extent.
        pub start: U64,
        /// [`LiveExtent`]s that follow.
        pub extents: U32,
        /// Bytes that follow: of [`QueryKind::Fetch`] and [`QueryKind::Open`].
        pub bytes: U32,
    }
}
wire_layout!(AnswerHead, size = 24, { errno @ 0, ticket @ 4, start @ 8, extents @ 16, bytes @ 20 });

wire_enum! {
    /// Where the bytes of an extent are.
    pub enum ExtentKind: u16 {
        /// In a file, not to be written there.
        Data = 1,
        /// In a file, and to be overwritten there.
        InPlace = 2,
        /// Nowhere: they are zeros.
        Zero = 3,
        /// The guest has to make them: [`QueryKind::Fetch`].
        Fetch = 4,
    }
}

wire_struct! {
    /// A run of the disk's bytes, whole sectors of 512; it starts where the one before it ends.
    pub struct LiveExtent {
        /// Length in bytes, not 0.
        pub len: U64,
        /// Where it starts in its file, in bytes; 0 if it is in none.
        pub offset: U64,
        /// An [`ExtentKind`].
        pub kind: U16,
        /// Slot of its file; 0 if it is in none.
        pub slot: U16,
        /// Zero.
        pub reserved: U32,
    }
}
wire_layout!(LiveExtent, size = 24, { len @ 0, offset @ 8, kind @ 16, slot @ 18, reserved @ 20 });

/// [`LiveDisk::flags`]: nothing can be written.
pub const DISK_READ_ONLY: u32 = 1 << 0;

wire_struct! {
    /// What a disk is.
    pub struct LiveDisk {
        /// Its length in bytes, a multiple of 512.
        pub len_bytes: U64,
        /// What is allocated at once, in bytes: a power of two, 512 to 2 MiB.
        pub cluster_bytes: U32,
        /// An [`crate::op::ImageFormat`], never a guess.
        pub format: U32,
        /// `DISK_*`.
        pub flags: U32,
        /// Zero.
        pub reserved: [u8; 12],
    }
}
wire_layout!(LiveDisk, size = 32, { len_bytes @ 0, cluster_bytes @ 8, format @ 12, flags @ 16, reserved @ 20 });
