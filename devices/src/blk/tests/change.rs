//! The vendor requests that change the store.

use super::*;
use instar_shared::blk::RANGE_WRITE_ZEROS;

const KINDS: [RequestType; 6] = [
    RequestType::WriteBytes,
    RequestType::SetLength,
    RequestType::Allocate,
    RequestType::DiscardBytes,
    RequestType::ZeroBytes,
    RequestType::Sync,
];
const RANGES: [RequestType; 3] = [
    RequestType::Allocate,
    RequestType::DiscardBytes,
    RequestType::ZeroBytes,
];

/// What a sound request of `kind` has between header and footer.
fn data_of(kind: RequestType) -> &'static [Buf] {
    match kind {
        RequestType::SetLength | RequestType::Sync => &[],
        _ => &[(DATA, 16, false)],
    }
}

fn put_range(bed: &Bed, len: u64, flags: u64) {
    bed.mem
        .write_slice(
            &[len.to_le_bytes(), flags.to_le_bytes()].concat(),
            GuestAddress(DATA),
        )
        .unwrap();
}

/// Status and errno of a request.
fn answer(bed: &mut Bed, kind: RequestType, start: u64, data: &[Buf]) -> (u8, u32) {
    assert_eq!(bed.one(kind, start, data), FOOTER_BYTES);
    let footer = bed.vendor_footer(0);
    assert_eq!(footer.reserved, [0; 3]);
    (footer.status, footer.errno.get())
}

const OK: (u8, u32) = (0, 0);
const INVALID: (u8, u32) = (1, 22);

#[test]
fn write_bytes_is_exact_to_the_byte_and_grows_the_store() {
    let mut bed = Bed::new(1000);
    bed.mem.write_slice(b"abcdefg", GuestAddress(DATA)).unwrap();
    let buffers = [(DATA + 1, 4, false), (DATA, 1, false)];
    assert_eq!(answer(&mut bed, RequestType::WriteBytes, 998, &buffers), OK);
    assert_eq!(bed.backend.bytes[..998], content(1000)[..998]);
    assert_eq!(&bed.backend.bytes[998..], b"bcdea");
    let one = [(DATA, 1, false)];
    for start in [u64::MAX, MAX_OFFSET] {
        assert_eq!(
            answer(&mut bed, RequestType::WriteBytes, start, &one),
            INVALID
        );
    }
    assert_eq!(
        answer(&mut bed, RequestType::WriteBytes, MAX_OFFSET - 1, &one),
        (1, 27)
    );
    assert_eq!(bed.backend.bytes.len(), 1003);
}

#[test]
fn ranges_and_lengths_reach_the_backend() {
    let mut bed = Bed::new(8192);
    let (offset, len) = (3, 5000);
    for (kind, flags, expected) in [
        (
            RequestType::Allocate,
            0,
            IoKind::Allocate {
                offset,
                len,
                zeros: false,
            },
        ),
        (
            RequestType::Allocate,
            RANGE_WRITE_ZEROS,
            IoKind::Allocate {
                offset,
                len,
                zeros: true,
            },
        ),
        (
            RequestType::DiscardBytes,
            0,
            IoKind::Discard { offset, len },
        ),
        (
            RequestType::ZeroBytes,
            0,
            IoKind::WriteZeroes {
                offset,
                len,
                unmap: true,
            },
        ),
        (RequestType::SetLength, 0, IoKind::SetLength { len: 3 }),
        (RequestType::Sync, 0, IoKind::Flush),
    ] {
        put_range(&bed, len, flags);
        assert_eq!(
            answer(&mut bed, kind, offset, data_of(kind)),
            OK,
            "{kind:?}"
        );
        assert_eq!(bed.backend.log.pop(), Some(expected));
        assert!(bed.backend.log.is_empty());
    }
    assert_eq!(bed.backend.bytes, content(8192)[..3]);
    // A range may be framed in any way.
    put_range(&bed, 7, 0);
    let framed = [
        (DATA, 1, false),
        (DATA + 1, 14, false),
        (DATA + 15, 1, false),
    ];
    assert_eq!(answer(&mut bed, RequestType::ZeroBytes, 2, &framed), OK);
    assert_eq!(bed.backend.bytes, [&content(8)[..2], &[0; 7]].concat());
}

#[test]
fn ranges_that_cannot_be_are_refused() {
    let far = MAX_OFFSET;
    for kind in RANGES {
        let known = u64::from(kind == RequestType::Allocate);
        for (start, len, flags) in [
            (0, 0, 0),
            (u64::MAX, 1, 0),
            (1, u64::MAX, 0),
            (far, 1, 0),
            (1, far, 0),
            (0, 1, 2),
            (0, 1, u64::MAX),
            (0, 1, known + 1),
        ] {
            let mut bed = Bed::new(8192);
            put_range(&bed, len, flags);
            let told = answer(&mut bed, kind, start, data_of(kind));
            assert_eq!(told, INVALID, "{kind:?} {start:#x} {len:#x} {flags:#x}");
            assert!(bed.backend.log.is_empty());
        }
    }
    let mut bed = Bed::new(8192);
    for len in [far + 1, u64::MAX] {
        assert_eq!(answer(&mut bed, RequestType::SetLength, len, &[]), INVALID);
    }
    assert_eq!(answer(&mut bed, RequestType::SetLength, far, &[]), (1, 27));
}

#[test]
fn changes_of_another_length_are_refused() {
    for kind in KINDS {
        for len in [0, 1, 8, 15, 17, 32] {
            if kind == RequestType::WriteBytes && len > 0
                || data_of(kind).is_empty() && len == 0
                || kind == RequestType::Sync
            {
                continue;
            }
            let mut bed = Bed::new(8192);
            let data = [(DATA, len, false)];
            let data = if len == 0 { &[][..] } else { &data };
            assert_eq!(answer(&mut bed, kind, 0, data), INVALID, "{kind:?} {len}");
            assert!(bed.backend.log.is_empty());
        }
    }
    let mut bed = Bed::new(8192);
    assert_eq!(
        answer(&mut bed, RequestType::Sync, 0, &[(DATA, 1, true)]),
        INVALID
    );
}

#[test]
fn reserved_bytes_of_a_change_are_checked() {
    for kind in KINDS {
        let mut bed = Bed::new(8192);
        put_range(&bed, 1, 0);
        bed.request(0, kind, 0, data_of(kind));
        bed.mem.write_obj(1_u32, GuestAddress(HEADERS + 4)).unwrap();
        assert_eq!(bed.kick(), Ok(1));
        let footer = bed.vendor_footer(0);
        assert_eq!((footer.status, footer.errno.get()), INVALID, "{kind:?}");
    }
}

#[test]
fn data_in_the_wrong_direction_is_a_fault() {
    for kind in KINDS {
        let mut bed = Bed::new(8192);
        let wrong = (DATA, 16, kind != RequestType::Sync);
        bed.request(0, kind, 0, &[wrong]);
        assert_eq!(
            bed.kick(),
            Err(DeviceFault::DataDirection { head: 0 }),
            "{kind:?}"
        );
    }
}

#[test]
fn a_read_only_device_says_why_and_one_without_the_feature_that_it_has_none() {
    let offered = FEATURE_BYTE_IO | FEATURE_BYTE_WRITE;
    for (vendor_features, read_only) in [
        (offered, true),
        (FEATURE_BYTE_IO, true),
        (FEATURE_BYTE_IO, false),
        (FEATURE_BLOCK_STATUS, false),
    ] {
        let expected = if read_only { (1, 30) } else { (2, 95) };
        for kind in KINDS {
            let mut bed = Bed::with(BlkConfig {
                virtio_features: 0,
                vendor_features,
                read_only,
                len_bytes: 8192,
                write_through: false,
            });
            put_range(&bed, 1, 0);
            let told = answer(&mut bed, kind, 0, data_of(kind));
            if kind == RequestType::Sync {
                let has = vendor_features & FEATURE_BYTE_WRITE != 0;
                assert_eq!(told, if has { OK } else { (2, 95) });
            } else {
                assert_eq!(told, expected, "{kind:?}");
                assert!(bed.backend.log.is_empty());
            }
            assert_eq!(bed.backend.bytes, content(8192));
        }
    }
    // To a Linux guest they are foreign types with a one-byte status.
    for kind in KINDS {
        let mut bed = Bed::with(BlkConfig {
            virtio_features: u64::MAX,
            vendor_features: 0,
            read_only: false,
            len_bytes: 8192,
            write_through: false,
        });
        assert_eq!(bed.one(kind, 0, data_of(kind)), 1);
        assert_eq!(
            bed.read(Bed::footer_at(0) + 7, 1),
            [Status::Unsupported.raw()]
        );
    }
}

#[test]
fn errors_of_the_backend_reach_the_footer_of_every_change() {
    for kind in KINDS {
        for errno in [5, 28, 122] {
            let mut bed = Bed::new(8192);
            put_range(&bed, 1, 0);
            bed.backend.fail_next = Some(Errno(errno));
            assert_eq!(
                answer(&mut bed, kind, 0, data_of(kind)),
                (1, errno),
                "{kind:?}"
            );
        }
    }
}

#[test]
fn changes_in_flight_are_done_again_after_a_restore() {
    let mut bed = Bed::new(8192);
    bed.backend.order = CompletionOrder::Held;
    bed.mem
        .write_slice(&[0x77; 512], GuestAddress(DATA + 512))
        .unwrap();
    put_range(&bed, 100, 0);
    bed.request(0, RequestType::WriteBytes, 10, &[(DATA + 512, 300, false)]);
    bed.request(3, RequestType::ZeroBytes, 50, &[(DATA, 16, false)]);
    bed.request(6, RequestType::SetLength, 200, &[]);
    bed.request(9, RequestType::Sync, 0, &[]);
    assert_eq!(bed.kick(), Ok(0));
    bed.backend.release(1);
    assert_eq!(bed.complete(), Ok(1));
    let state = bed.device.save();
    assert_eq!(state.queue.in_flight, [3, 6, 9]);
    bed.backend.stop();
    bed.device = BlkDevice::restore(*bed.device.config(), queue(), &state).unwrap();
    assert_eq!(bed.kick(), Ok(0));
    bed.backend.release(3);
    assert_eq!(bed.complete(), Ok(3));
    let mut expected = content(8192)[..200].to_vec();
    expected[10..].fill(0x77);
    expected[50..150].fill(0);
    assert_eq!(bed.backend.bytes, expected);
    for head in [0, 3, 6, 9] {
        assert_eq!(bed.vendor_footer(head), VendorFooter::zeroed());
    }
}
