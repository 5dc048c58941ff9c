use super::*;
use crate::live::source::{Extent, ExtentKind, MAX_FETCH_BYTES};
use crate::operation::Resident;
use instar_devices::blk::Errno;
use instar_shared::live::{DISK_READ_ONLY, LiveExtent, QUERY_UNMAP};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::thread;

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap()
}

fn head(errno: u32, ticket: u32, extents: u32, bytes: u32) -> Vec<u8> {
    let head = AnswerHead {
        errno: errno.into(),
        start: if extents > 0 { 0x1_0000 } else { 0 }.into(),
        ticket: ticket.into(),
        extents: extents.into(),
        bytes: bytes.into(),
    };
    head.as_bytes().to_vec()
}

fn extent(len: u64, offset: u64, kind: u16, slot: u16) -> Vec<u8> {
    let extent = LiveExtent {
        len: len.into(),
        offset: offset.into(),
        kind: kind.into(),
        slot: slot.into(),
        reserved: 0.into(),
    };
    extent.as_bytes().to_vec()
}

const LOOKUP: Question = Question::Lookup {
    start: 0x1_2345,
    len: 512,
};

#[test]
fn answers_come_through_whole_and_in_order_whatever_their_length() {
    let (here, there) = pair();
    let fetched: Vec<u8> = (0..MAX_FETCH_BYTES).map(|n| (n % 251) as u8).collect();
    let disk = LiveDisk {
        len_bytes: (1 << 40).into(),
        cluster_bytes: 65536.into(),
        format: 2.into(),
        flags: DISK_READ_ONLY.into(),
        reserved: [0; 12],
    };
    let guest = {
        let fetched = fetched.clone();
        thread::spawn(move || {
            let mut port = Port::new(there);
            assert!(port.answered(&[1], true).is_err());
            // It is ready.
            port.answered(&[], true).unwrap();
            assert_eq!(port.queries().unwrap().len(), 1);
            let open = [head(0, 0, 0, 32), disk.as_bytes().to_vec()].concat();
            port.answered(&open, true).unwrap();
            let queries = port.queries().unwrap();
            let kinds: Vec<u32> = queries.iter().map(|query| query.kind.get()).collect();
            assert_eq!(kinds, [8, 2, 7, 9]);
            assert_eq!(queries[2].flags.get(), QUERY_UNMAP);
            port.answered(&head(0, 0, 0, 2 << 20), false).unwrap();
            for piece in fetched.chunks(262_144) {
                port.answered(piece, false).unwrap();
            }
            let rest = [
                head(0, 0, 2, 0),
                extent(65536, 0x5000, 2, 3),
                extent(512, 0, 3, 0),
                head(28, 0, 0, 0),
                head(0, 0, 0, 0),
            ];
            port.answered(&rest.concat(), false).unwrap();
            port.answered(&[], true).unwrap();
            assert_eq!(port.queries().unwrap()[0].kind.get(), 10);
            port.answered(&head(0, 0, 0, 0), true).unwrap();
            // The other end is closed.
            assert_eq!(port.queries().unwrap()[0].kind.get(), 10);
            port.answered(&head(0, 0, 0, 0), true).unwrap();
            assert_eq!(port.queries().unwrap().len(), 1);
        })
    };
    let mut asker = Asker::new(here);
    let info = asker.open().unwrap();
    assert_eq!((info.len_bytes, info.cluster_bytes), (1 << 40, 65536));
    assert!(info.read_only);
    let questions = [
        Question::Fetch {
            start: 0,
            len: MAX_FETCH_BYTES,
        },
        LOOKUP,
        Question::WriteZeroes {
            start: 0,
            len: 512,
            unmap: true,
        },
        Question::Flush,
    ];
    let answers = asker.ask(&questions).unwrap();
    let extents = vec![
        Extent {
            start: 0x1_0000,
            len: 65536,
            kind: ExtentKind::Data {
                file: 3,
                offset: 0x5000,
                in_place: true,
            },
        },
        Extent {
            start: 0x2_0000,
            len: 512,
            kind: ExtentKind::Zero,
        },
    ];
    let expected = [
        Answer::Bytes(fetched),
        Answer::Extents(extents),
        Answer::Refused(Errno(28)),
        Answer::Done,
    ];
    assert_eq!(answers, expected);
    assert_eq!(asker.ask(&[Question::Close]).unwrap(), [Answer::Done]);
    drop(asker);
    guest.join().unwrap();
}

#[test]
fn malformed_answers_are_refused() {
    let lookup: &[Question] = &[LOOKUP];
    let fetch: &[Question] = &[Question::Fetch { start: 0, len: 4 }];
    let flush: &[Question] = &[Question::Flush];
    let good = [head(0, 0, 1, 0), extent(512, 0, 3, 0)].concat();
    assert!(parse_answers(lookup, &good).is_ok());
    let cases: &[(&[Question], Vec<u8>)] = &[
        (lookup, vec![]),
        (lookup, good[..30].to_vec()),
        (lookup, [good.clone(), vec![0]].concat()),
        (lookup, head(0, 0, 0, 0)),
        (lookup, head(0, 0, 257, 0)),
        (lookup, head(0, 0, u32::MAX, 0)),
        (lookup, head(5, 0, 1, 0)),
        (lookup, [head(0, 7, 1, 0), extent(512, 0, 3, 0)].concat()),
        (lookup, [head(0, 0, 1, 0), extent(0, 0, 3, 0)].concat()),
        (
            lookup,
            [head(0, 0, 1, 0), extent(u64::MAX, 0, 3, 0)].concat(),
        ),
        (lookup, [head(0, 0, 1, 0), extent(512, 1, 3, 0)].concat()),
        (lookup, [head(0, 0, 1, 0), extent(512, 0, 4, 1)].concat()),
        (lookup, [head(0, 0, 1, 0), extent(512, 0, 0, 0)].concat()),
        (lookup, [head(0, 0, 1, 0), extent(512, 0, 5, 0)].concat()),
        (fetch, [head(0, 0, 0, 3), vec![0; 3]].concat()),
        (fetch, [head(0, 0, 0, 4), vec![0; 3]].concat()),
        (fetch, [head(0, 0, 0, 5), vec![0; 5]].concat()),
        (fetch, good.clone()),
        (flush, good),
        (flush, head(0, 1, 0, 0)),
    ];
    for (index, (questions, stream)) in cases.iter().enumerate() {
        let parsed = parse_answers(questions, stream);
        assert!(parsed.is_err(), "case {index}: {parsed:?}");
    }
}

#[test]
fn impossible_disks_are_refused() {
    let good = LiveDisk {
        len_bytes: 512.into(),
        cluster_bytes: 512.into(),
        format: 1.into(),
        flags: 0.into(),
        reserved: [0; 12],
    };
    let parse =
        |disk: LiveDisk| parse_disk(&[head(0, 0, 0, 32), disk.as_bytes().to_vec()].concat());
    assert!(parse(good).is_ok());
    let mut bad = [good; 6];
    bad[0].len_bytes = 513.into();
    bad[1].len_bytes = (1 << 63).into();
    bad[2].cluster_bytes = 0.into();
    bad[3].cluster_bytes = 768.into();
    bad[4].cluster_bytes = (4 << 20).into();
    bad[5].flags = 2.into();
    for (index, disk) in bad.into_iter().enumerate() {
        assert!(parse(disk).is_err(), "case {index}");
    }
}

#[test]
fn endless_answers_end_the_exchange_and_nothing_is_asked_after() {
    let (here, there) = pair();
    let guest = thread::spawn(move || {
        let mut port = Port::new(there);
        port.queries().unwrap();
        while !port.orphaned {
            port.answered(&[0; 40_000], false).unwrap();
        }
    });
    let mut asker = Asker::new(here);
    let error = asker.ask(&[LOOKUP]).unwrap_err();
    assert!(error.0.contains("longer than any"), "{error}");
    assert_eq!(asker.ask(&[LOOKUP]).unwrap_err(), error);
    drop(asker);
    guest.join().unwrap();
}
