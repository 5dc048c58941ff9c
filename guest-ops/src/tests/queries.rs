//! A resident operation's answers.

use super::machine;
use instar_devices::blk::CompletionOrder;
use instar_shared::live::{ANSWERS_END, AnswerHead, LiveQuery, QueryKind, WINDOW_BYTES};
use instar_shared::zerocopy::IntoBytes;

fn asked(kind: QueryKind, start: u64) -> LiveQuery {
    LiveQuery {
        kind: kind.raw().into(),
        start: start.into(),
        ..LiveQuery::zeroed()
    }
}

#[test]
fn answers_longer_than_the_window_come_in_pieces_and_the_last_one_ends_the_batch() {
    let (machine, ctx, _disk) = machine(512, CompletionOrder::AtOnce);
    let first = vec![asked(QueryKind::Lookup, 7), asked(QueryKind::Flush, 0)];
    let second = vec![asked(QueryKind::Close, 0)];
    *machine.0.queries.borrow_mut() = vec![second.clone(), first.clone()];
    let mut queries = ctx.queries();
    let mut batch = Vec::new();
    queries.next(&mut batch);
    assert_eq!(batch, first);
    let window = WINDOW_BYTES as usize;
    let bytes: Vec<u8> = (0..2 * window).map(|n| (n % 253) as u8).collect();
    let head = AnswerHead {
        errno: 0.into(),
        ticket: 0.into(),
        start: 0.into(),
        extents: 0.into(),
        bytes: (2 * WINDOW_BYTES).into(),
    };
    queries.answer(&head);
    queries.put(&bytes);
    queries.next(&mut batch);
    assert_eq!(batch, second);
    let answers = machine.0.answers.borrow();
    let shape: Vec<_> = answers.iter().map(|(b, flags)| (b.len(), *flags)).collect();
    let rest = head.as_bytes().len();
    let ends = [
        (0, ANSWERS_END),
        (window, 0),
        (window, 0),
        (rest, ANSWERS_END),
    ];
    assert_eq!(shape, ends);
    let stream: Vec<u8> = answers.iter().flat_map(|(b, _)| b.clone()).collect();
    assert!(stream == [head.as_bytes(), &bytes].concat());
}
