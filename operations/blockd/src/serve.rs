//! Queries and their answers.

use crate::failed;
use alloc::vec;
use alloc::vec::Vec;
use instar_codec::Decoder;
use instar_guest_ops::{Context, Disk, Queries};
use instar_plan_live::{ExtentKind, Extents, LiveError, LiveImage};
use instar_shared::live::{
    AnswerHead, DISK_READ_ONLY, ExtentKind as Kind, LiveDisk, LiveExtent, LiveQuery,
    MAX_ALLOCATE_BYTES, MAX_BATCH, MAX_FETCH_BYTES, QUERY_UNMAP, QueryKind,
};
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::zerocopy::IntoBytes;

/// Pieces that a fetch is read in, in bytes.
const PIECE_BYTES: usize = 256 << 10;

type Image<'a> = LiveImage<'a, Disk, Decoder>;

/// Answers queries until the image is closed.
pub fn serve(ctx: &mut Context, mut image: Image<'_>, format: ImageFormat) -> Outcome {
    // What was found out while it was opened goes out before anybody waits.
    ctx.records().drain();
    let mut queries = ctx.queries();
    let mut batch = Vec::with_capacity(MAX_BATCH);
    let mut found = Extents::default();
    let mut closed = None;
    loop {
        queries.next(&mut batch);
        if let Some(outcome) = closed {
            return outcome;
        }
        for query in &batch {
            if query.kind.get() == QueryKind::Close.raw() && closed.is_none() {
                let answer = image.close();
                closed = Some(match &answer {
                    Ok(()) => Outcome::Done,
                    Err(error) => failed(ctx, format_args!("Could not close the image: {error}")),
                });
                finish(&mut queries, answer);
            } else if closed.is_some() {
                refuse(&mut queries, &LiveError::NoTicket);
            } else {
                answer(&mut queries, &mut image, &mut found, query, format);
            }
        }
    }
}

fn answer(
    queries: &mut Queries,
    image: &mut Image<'_>,
    found: &mut Extents,
    query: &LiveQuery,
    format: ImageFormat,
) {
    let (start, len) = (query.start.get(), query.len.get());
    let ticket = query.ticket.get();
    let Ok(kind) = QueryKind::try_from(query.kind.get()) else {
        return refuse(queries, &LiveError::Range);
    };
    match kind {
        QueryKind::Open => describe(queries, image, format),
        QueryKind::Lookup => match image.lookup(start, len, found) {
            Ok(()) => extents(queries, 0, found),
            Err(error) => refuse(queries, &error),
        },
        QueryKind::Allocate if len > MAX_ALLOCATE_BYTES => refuse(queries, &LiveError::Range),
        QueryKind::Allocate => match image.allocate(start, len, found) {
            Ok(ticket) => extents(queries, ticket, found),
            Err(error) => refuse(queries, &error),
        },
        QueryKind::Link => finish(queries, image.link(ticket)),
        QueryKind::Abandon => finish(queries, image.abandon(ticket)),
        QueryKind::Discard => finish(queries, image.discard(start, len)),
        QueryKind::WriteZeroes => {
            let unmap = query.flags.get() & QUERY_UNMAP != 0;
            finish(queries, image.write_zeroes(start, len, unmap));
        }
        QueryKind::Fetch => fetch(queries, image, start, len),
        QueryKind::Flush => finish(queries, image.flush()),
        // The caller's.
        QueryKind::Close => finish(queries, image.close()),
    }
}

fn describe(queries: &mut Queries, image: &Image<'_>, format: ImageFormat) {
    let flags = if image.is_read_only() {
        DISK_READ_ONLY
    } else {
        0
    };
    let cluster = u32::try_from(image.cluster_bytes()).unwrap_or(0);
    let disk = LiveDisk {
        len_bytes: image.len_bytes().into(),
        cluster_bytes: cluster.into(),
        format: format.raw().into(),
        flags: flags.into(),
        reserved: [0; 12],
    };
    let bytes = u32::try_from(size_of::<LiveDisk>()).unwrap_or(0);
    queries.answer(&AnswerHead {
        bytes: bytes.into(),
        ..AnswerHead::zeroed()
    });
    queries.put(disk.as_bytes());
}

fn extents(queries: &mut Queries, ticket: u32, found: &Extents) {
    let count = u32::try_from(found.list.len()).unwrap_or(0);
    queries.answer(&AnswerHead {
        ticket: ticket.into(),
        start: found.start.into(),
        extents: count.into(),
        ..AnswerHead::zeroed()
    });
    for extent in &found.list {
        let (kind, slot, offset) = match extent.kind {
            ExtentKind::Data {
                file,
                offset,
                in_place,
            } => {
                let kind = if in_place { Kind::InPlace } else { Kind::Data };
                (kind, file, offset)
            }
            ExtentKind::Zero => (Kind::Zero, 0, 0),
            ExtentKind::Fetch => (Kind::Fetch, 0, 0),
        };
        let raw = LiveExtent {
            len: extent.len.into(),
            offset: offset.into(),
            kind: kind.raw().into(),
            slot: slot.into(),
            reserved: 0.into(),
        };
        queries.put(raw.as_bytes());
    }
}

/// Reads all of it before the answer begins, as that says whether it could be read.
fn fetch(queries: &mut Queries, image: &mut Image<'_>, start: u64, len: u64) {
    let whole = usize::try_from(len).unwrap_or(usize::MAX);
    if len == 0 || len > MAX_FETCH_BYTES {
        return refuse(queries, &LiveError::Range);
    }
    let mut bytes = vec![0; whole];
    let mut at = start;
    for piece in bytes.chunks_mut(PIECE_BYTES) {
        if let Err(error) = image.fetch(at, piece) {
            return refuse(queries, &error);
        }
        at = at.saturating_add(piece.len() as u64);
    }
    queries.answer(&AnswerHead {
        bytes: u32::try_from(len).unwrap_or(0).into(),
        ..AnswerHead::zeroed()
    });
    queries.put(&bytes);
}

fn finish(queries: &mut Queries, done: Result<(), LiveError>) {
    match done {
        Ok(()) => queries.answer(&AnswerHead::zeroed()),
        Err(error) => refuse(queries, &error),
    }
}

fn refuse(queries: &mut Queries, error: &LiveError) {
    queries.answer(&AnswerHead {
        errno: error.errno().into(),
        ..AnswerHead::zeroed()
    });
}
