//! Questions and answers as they are on the way, and which bytes are an answer at all.

use crate::live::source::{
    Answer, DiskInfo, Extent, ExtentKind, MAX_EXTENTS, Question, SourceGone,
};
use instar_devices::blk::Errno;
use instar_shared::live::{
    AnswerHead, DISK_READ_ONLY, ExtentKind as Kind, LiveDisk, LiveExtent, LiveQuery, QUERY_UNMAP,
    QueryKind,
};
use instar_shared::op::ImageFormat;
use instar_shared::zerocopy::FromBytes;

pub(super) fn broken(what: &str) -> SourceGone {
    SourceGone(format!(
        "the disk's image cannot be used any more: blockd broke its contract with the host: {what}"
    ))
}

pub(super) fn query(question: &Question) -> LiveQuery {
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
pub(super) fn longest_answer(question: &Question) -> usize {
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
pub(super) fn parse_disk(stream: &[u8]) -> Result<(DiskInfo, bool), SourceGone> {
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
