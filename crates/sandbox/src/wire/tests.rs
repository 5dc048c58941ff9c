use super::*;

fn request(name: &[u8]) -> FileRequest {
    let mut request = FileRequest::new_zeroed();
    request.slot = 3.into();
    request.role = FileRole::Data.raw().into();
    request.access = FileAccess::Read.raw().into();
    request.parent_slot = 2.into();
    request.name_len = u32::try_from(name.len()).unwrap().into();
    request.name[..name.len()].copy_from_slice(name);
    request
}

#[test]
fn request_of_every_length_comes_back() {
    for len in [0, 1, 1023, MAX_NAME_BYTES] {
        let name = vec![0xfe; len];
        let raw = request(&name);
        let expected = Request {
            slot: 3,
            parent_slot: 2,
            role: FileRole::Data,
            writable: false,
            name,
        };
        assert_eq!(
            decode_request(encode_request(&raw).unwrap()),
            Some(expected)
        );
    }
}

#[test]
fn request_for_writing_comes_back() {
    let mut raw = request(b"name");
    raw.access = FileAccess::ReadWrite.raw().into();
    let decoded = decode_request(encode_request(&raw).unwrap()).unwrap();
    assert!(decoded.writable);
}

#[test]
fn request_with_any_wrong_field_is_refused() {
    type Damage = fn(&mut FileRequest);
    let damages: [Damage; 8] = [
        |r| r.slot = u32::from(MAX_DEVICES).into(),
        |r| r.slot = u32::MAX.into(),
        |r| r.parent_slot = 0x1_0000.into(),
        |r| r.role = 0.into(),
        |r| r.role = 99.into(),
        |r| r.access = 0.into(),
        |r| r.access = 7.into(),
        |r| r.reserved = 1.into(),
    ];
    for (index, damage) in damages.into_iter().enumerate() {
        let mut raw = request(b"name");
        damage(&mut raw);
        assert_eq!(
            decode_request(encode_request(&raw).unwrap()),
            None,
            "damage {index}"
        );
    }
}

#[test]
fn request_of_another_length_than_it_says_is_refused() {
    let raw = request(b"name");
    let packet = encode_request(&raw).unwrap().to_vec();
    for len in 0..packet.len() {
        assert_eq!(decode_request(&packet[..len]), None, "cut to {len}");
    }
    assert_eq!(decode_request(&[packet.as_slice(), b"x"].concat()), None);
    assert_eq!(decode_request(&vec![0; MAX_REQUEST + 1]), None);
    assert_eq!(decode_request(&vec![0xff; MAX_REQUEST]), None);
}

#[test]
fn beginning_of_an_output_is_told_from_every_request() {
    for slot in [0, 1, 0x1234, u16::MAX] {
        let packet = encode_begin(slot);
        assert_eq!(decode_message(&packet), Some(Message::Begin(slot)));
        for len in 0..packet.len() {
            assert_eq!(decode_message(&packet[..len]), None);
        }
        assert_eq!(decode_message(&[&packet[..], b"x"].concat()), None);
    }
    let raw = request(b"name");
    let packet = encode_request(&raw).unwrap();
    assert!(matches!(decode_message(packet), Some(Message::Open(_))));
}

fn replies() -> Vec<Reply> {
    let facts = FileFacts {
        direct_align: 4096,
        start_bytes: 0,
        name: os_string(b"a\xff\n"),
        given_name: os_string(b"file:a\xff\n"),
        len_bytes: u64::MAX,
        disk_bytes: 512,
        block_device: true,
        character_device: false,
        parent_slot: Some(7),
    };
    let failed = FailedOpen {
        slot: 9,
        parent_slot: None,
        role: Some(FileRole::Backing),
        output: true,
        kind: OpenFailure::Failed(libc::ENOENT),
        given_name: os_string(b"x"),
        reason: os_string(b"Could not open"),
    };
    let conflicts = [
        None,
        Some(Conflict::Byte(201)),
        Some(Conflict::InUse("write")),
        Some(Conflict::NotShared("resize")),
    ];
    let kinds = [OpenFailure::Refused, OpenFailure::Loop, OpenFailure::InUse];
    let opened = conflicts.map(|conflict| Reply::Opened(facts.clone(), conflict));
    let failures = kinds.map(|kind| {
        Reply::Failed(FailedOpen {
            kind,
            ..failed.clone()
        })
    });
    opened
        .into_iter()
        .chain(failures)
        .chain([Reply::Failed(failed), Reply::Invalid])
        .chain([Reply::OpenedToWrite(facts)])
        .chain([Ok(0), Ok(libc::EINVAL), Err(libc::EPERM)].map(Reply::Begun))
        .collect()
}

#[test]
fn replies_come_back_whole_and_never_cut() {
    for reply in replies() {
        let packet = encode_reply(&reply);
        assert_eq!(decode_reply(&packet).as_ref(), Some(&reply));
        for len in 0..packet.len() {
            assert_eq!(decode_reply(&packet[..len]), None, "{reply:?} cut to {len}");
        }
    }
}

#[test]
fn largest_reply_fits() {
    let long = os_string(&[b'n'; 2 * MAX_NAME_BYTES]);
    let failed = FailedOpen {
        slot: 1,
        parent_slot: Some(0),
        role: None,
        output: false,
        kind: OpenFailure::Refused,
        given_name: long.clone(),
        // A refusal holds the place and its folder twice.
        reason: os_string(&[b'n'; 3 * 2 * MAX_NAME_BYTES + 256]),
    };
    assert!(encode_reply(&Reply::Failed(failed)).len() <= MAX_REPLY);
}

#[test]
fn end_of_an_operation_and_what_follows_come_back() {
    assert_eq!(decode_message(&DONE), Some(Message::Done));
    assert_eq!(decode_message(&[DONE.as_slice(), b"x"].concat()), None);
    let fuller = encode_fuller(3);
    assert_eq!(decode_message(&fuller), Some(Message::Fuller(3)));
    assert_eq!(decode_message(&fuller[..fuller.len() - 1]), None);
    for next in [Next::Sequel, Next::Again(b"why".to_vec()), Next::Fuller(3)] {
        let packet = encode_next(&next);
        assert_eq!(decode_next(&packet), Some(next));
        assert_eq!(decode_next(&[packet.as_slice(), b"x"].concat()), None);
    }
}
