//! A disk's end of a channel, against a guest's end on another thread.

use super::*;
use crate::live::channel::Port;
use crate::live::source::ExtentSource;
use crate::operation::Resident;
use instar_shared::live::{AnswerHead, ExtentKind, LiveDisk, LiveExtent, LiveQuery, QueryKind};
use instar_shared::zerocopy::IntoBytes;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::thread::JoinHandle;

const CLUSTER: u64 = 65_536;

/// Answers as long as it is asked: allocations with their range's number as the ticket. What it was asked, batch by batch.
fn guest(mut port: Port) -> Vec<Vec<LiveQuery>> {
    let mut seen = Vec::new();
    port.answered(&[], true).unwrap();
    loop {
        let batch = port.queries().unwrap();
        if batch.is_empty() {
            continue;
        }
        let mut answers = Vec::new();
        for query in &batch {
            let mut head = AnswerHead::zeroed();
            match QueryKind::try_from(query.kind.get()).unwrap() {
                QueryKind::Open => {
                    head.bytes = 32.into();
                    answers.extend_from_slice(head.as_bytes());
                    let disk = LiveDisk {
                        len_bytes: (1 << 30).into(),
                        cluster_bytes: 65_536.into(),
                        format: 2.into(),
                        flags: 0.into(),
                        reserved: [0; 12],
                    };
                    answers.extend_from_slice(disk.as_bytes());
                }
                QueryKind::Allocate => {
                    head.start = query.start;
                    head.extents = 1.into();
                    head.ticket = u32::try_from(query.start.get() / CLUSTER + 1)
                        .unwrap()
                        .into();
                    answers.extend_from_slice(head.as_bytes());
                    let extent = LiveExtent {
                        len: query.len,
                        offset: query.start,
                        kind: ExtentKind::InPlace.raw().into(),
                        slot: 0.into(),
                        reserved: 0.into(),
                    };
                    answers.extend_from_slice(extent.as_bytes());
                }
                _ => answers.extend_from_slice(head.as_bytes()),
            }
        }
        let close = batch
            .iter()
            .any(|query| query.kind.get() == QueryKind::Close.raw());
        seen.push(batch);
        port.answered(&answers, true).unwrap();
        if close {
            return seen;
        }
    }
}

fn open() -> (Asking, JoinHandle<Vec<Vec<LiveQuery>>>) {
    let flags = SocketFlags::CLOEXEC;
    let (here, there) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let guest = std::thread::spawn(move || guest(Port::new(there)));
    let mut asker = Asker::new(here);
    asker.open().unwrap();
    assert!(!asker.is_raw());
    (Asking::new(asker), guest)
}

/// Waits for answers as a disk's thread does.
fn next(asking: &mut Asking) -> Vec<Answered> {
    loop {
        let answers = asking.answers().unwrap();
        if !answers.is_empty() {
            return answers;
        }
        let socket = asking.socket();
        poll(&mut [PollFd::new(&*socket, PollFlags::IN)], None).unwrap();
    }
}

fn allocate(at: u64) -> Question {
    Question::Allocate {
        start: at * CLUSTER,
        len: CLUSTER,
    }
}

fn tickets(batch: &[LiveQuery], kind: QueryKind) -> Vec<u32> {
    let of_kind = batch.iter().filter(|query| query.kind.get() == kind.raw());
    of_kind.map(|query| query.ticket.get()).collect()
}

#[test]
fn one_batch_is_on_its_way_and_answers_know_who_asked() {
    let (mut asking, guest) = open();
    assert!(asking.answers().unwrap().is_empty());
    for by in 0..100 {
        asking.ask(Some(by), allocate(by));
    }
    asking.send().unwrap();
    asking.ask(None, Question::Flush);
    asking.send().unwrap();
    let first = next(&mut asking);
    assert_eq!(first.len(), MAX_BATCH);
    assert!(asking.answers().unwrap().is_empty(), "the rest is not sent");
    asking.send().unwrap();
    let rest = next(&mut asking);
    assert_eq!(rest.len(), 37);
    for (by, answered) in (0..).zip(first.iter().chain(&rest[..36])) {
        assert_eq!(answered.by, Some(by));
        assert_eq!(answered.question, allocate(by));
        let Answer::Allocated { ticket, .. } = answered.answer else {
            panic!("{answered:?}");
        };
        assert_eq!(u64::from(ticket), by + 1);
    }
    assert_eq!(rest[36].answer, Answer::Done);
    drop(asking);
    assert_eq!(guest.join().unwrap().len(), 4, "the disk, twice, the end");
}

#[test]
fn what_is_forgotten_on_its_way_is_abandoned_before_anything_else() {
    let (mut asking, guest) = open();
    asking.ask(Some(1), allocate(6));
    asking.ask(Some(2), Question::Flush);
    asking.send().unwrap();
    asking.ask(Some(3), allocate(7));
    asking.ask(None, Question::Link { ticket: 40 });
    asking.ask(None, Question::Abandon { ticket: 41 });
    asking.forget();
    asking.ask(Some(4), allocate(6));
    let answers = next(&mut asking);
    assert!(answers.iter().all(|answered| answered.by.is_none()));
    asking.send().unwrap();
    let later = next(&mut asking);
    assert_eq!(later.last().unwrap().by, Some(4));
    drop(asking);
    let seen = guest.join().unwrap();
    let kinds: Vec<u32> = seen[2].iter().map(|query| query.kind.get()).collect();
    let expected = [
        QueryKind::Abandon,
        QueryKind::Link,
        QueryKind::Abandon,
        QueryKind::Allocate,
    ];
    assert_eq!(kinds, expected.map(QueryKind::raw));
    assert_eq!(tickets(&seen[2], QueryKind::Abandon), [7, 41]);
    assert_eq!(tickets(&seen[2], QueryKind::Link), [40]);
}

#[test]
fn links_go_with_the_next_question() {
    let (mut asking, guest) = open();
    let now = Instant::now();
    asking.ask(None, Question::Link { ticket: 5 });
    assert!(!asking.is_due(now) && asking.holds());
    asking.ask(Some(1), allocate(6));
    assert!(asking.is_due(now) && !asking.holds());
    asking.send().unwrap();
    // A batch is on its way: this one waits for it, however long it takes.
    asking.ask(None, Question::Link { ticket: 6 });
    assert!(!asking.is_due(now) && asking.holds());
    assert_eq!(next(&mut asking).len(), 2);
    // And for company, but not for ever.
    for ticket in 7..6 + u32::try_from(MOST_HELD).unwrap() {
        asking.ask(None, Question::Link { ticket });
    }
    assert!(asking.is_due(now), "so many do not wait");
    asking.send().unwrap();
    assert_eq!(next(&mut asking).len(), MOST_HELD);
    asking.ask(None, Question::Link { ticket: 99 });
    assert!(!asking.is_due(now));
    assert!(!asking.is_due(now + HOLD / 2));
    assert!(asking.is_due(now + HOLD));
    drop(asking);
    let seen = guest.join().unwrap();
    let kinds: Vec<u32> = seen[1].iter().map(|query| query.kind.get()).collect();
    let expected = [QueryKind::Link, QueryKind::Allocate];
    assert_eq!(kinds, expected.map(QueryKind::raw));
}

#[test]
fn links_are_sent_at_the_end_while_a_batch_is_on_its_way() {
    let (mut asking, guest) = open();
    asking.ask(Some(1), allocate(6));
    asking.send().unwrap();
    for ticket in 1..=100 {
        asking.ask(None, Question::Link { ticket });
    }
    asking.ask(Some(2), Question::Flush);
    asking.end();
    // Nobody takes the answers.
    drop(asking);
    let seen = guest.join().unwrap();
    let links: Vec<u32> = seen
        .iter()
        .flat_map(|batch| tickets(batch, QueryKind::Link))
        .collect();
    assert_eq!(links, (1..=100).collect::<Vec<u32>>());
    let last = seen.last().unwrap();
    assert_eq!(last[0].kind.get(), QueryKind::Close.raw());
}

#[test]
fn an_end_without_a_word_is_noticed_and_stays() {
    let (here, there) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let mut asking = Asking::new(Asker::new(here));
    assert!(asking.answers().unwrap().is_empty());
    drop(there);
    for _ in 0..2 {
        assert_eq!(asking.answers(), Err(SourceGone::ended()));
    }
    asking.ask(None, Question::Flush);
    assert_eq!(asking.send(), Err(SourceGone::ended()));
}
