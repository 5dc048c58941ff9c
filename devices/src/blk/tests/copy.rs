//! Copies between devices.

use super::*;
use instar_shared::blk::CopyArg;
use instar_shared::device::{FEATURE_COPY, MAX_DEVICES};

const DATA_BUFFERS: [Buf; 1] = [(DATA, 24, false)];
const OK: (u8, u32) = (0, 0);
const INVALID: (u8, u32) = (1, 22);

fn bed(features: u64, read_only: bool) -> Bed {
    let mut bed = Bed::with(BlkConfig {
        virtio_features: 0,
        vendor_features: features,
        read_only,
        len_bytes: 1000,
        write_through: false,
    });
    bed.backend.bytes = content(1000);
    bed.backend.others.insert(7, vec![0x77; 100]);
    bed
}

fn copying() -> Bed {
    bed(FEATURE_BYTE_IO | FEATURE_BYTE_WRITE | FEATURE_COPY, false)
}

/// Status and errno of a copy.
fn copy(bed: &mut Bed, offset: u64, arg: &CopyArg) -> (u8, u32) {
    bed.mem
        .write_slice(arg.as_bytes(), GuestAddress(DATA))
        .unwrap();
    assert_eq!(bed.one(RequestType::CopyRange, offset, &DATA_BUFFERS), 8);
    let footer = bed.vendor_footer(0);
    (footer.status, footer.errno.get())
}

fn arg(len: u64, from_offset: u64, from_slot: u32) -> CopyArg {
    CopyArg {
        len: len.into(),
        from_offset: from_offset.into(),
        from_slot: from_slot.into(),
        reserved: 0.into(),
    }
}

#[test]
fn a_copy_reaches_the_backend_whole() {
    let mut bed = copying();
    assert_eq!(copy(&mut bed, 990, &arg(50, 80, 7)), OK);
    let expected = IoKind::Copy {
        from_slot: 7,
        from_offset: 80,
        offset: 990,
        len: 50,
    };
    assert_eq!(bed.backend.log, [expected]);
    let expected = [&content(990)[..], &[0x77; 20], &[0; 30]].concat();
    assert_eq!(bed.backend.bytes, expected);
}

#[test]
fn copies_that_cannot_be_are_refused() {
    let far = MAX_OFFSET;
    let mut reserved = arg(1, 0, 7);
    reserved.reserved = 1.into();
    for (offset, arg) in [
        (0, arg(0, 0, 7)),
        (u64::MAX, arg(1, 0, 7)),
        (far, arg(1, 0, 7)),
        (0, arg(1, far, 7)),
        (0, arg(u64::MAX, 0, 7)),
        (0, arg(1, u64::MAX, 7)),
        (0, arg(1, 0, u32::from(MAX_DEVICES))),
        (0, arg(1, 0, u32::MAX)),
        (0, arg(1, 0, 65_543)),
        (0, reserved),
    ] {
        let mut bed = copying();
        assert_eq!(copy(&mut bed, offset, &arg), INVALID, "{offset} {arg:?}");
        assert!(bed.backend.log.is_empty());
    }
    for len in [1, 16, 23, 25, 48] {
        let mut bed = copying();
        bed.one(RequestType::CopyRange, 0, &[(DATA, len, false)]);
        let footer = bed.vendor_footer(0);
        assert_eq!((footer.status, footer.errno.get()), INVALID, "{len} bytes");
    }
}

#[test]
fn a_device_without_the_feature_or_that_is_read_only_refuses() {
    for (features, read_only, expected) in [
        (FEATURE_BYTE_IO | FEATURE_BYTE_WRITE, false, (2, 95)),
        (FEATURE_BYTE_IO, true, (1, 30)),
        (FEATURE_BYTE_IO | FEATURE_COPY, true, (1, 30)),
    ] {
        let mut bed = bed(features, read_only);
        assert_eq!(copy(&mut bed, 0, &arg(1, 0, 7)), expected);
        assert!(bed.backend.log.is_empty());
    }
}

#[test]
fn a_copy_that_the_device_would_write_is_a_fault() {
    let mut bed = copying();
    bed.request(0, RequestType::CopyRange, 0, &[(DATA, 24, true)]);
    assert_eq!(bed.kick(), Err(DeviceFault::DataDirection { head: 0 }));
}

#[test]
fn a_copy_in_flight_is_done_again_after_a_restore() {
    let mut bed = copying();
    bed.backend.order = CompletionOrder::Held;
    bed.mem
        .write_slice(arg(10, 0, 7).as_bytes(), GuestAddress(DATA))
        .unwrap();
    bed.request(0, RequestType::CopyRange, 5, &DATA_BUFFERS);
    assert_eq!(bed.kick(), Ok(0));
    let state = bed.device.save();
    assert_eq!(state.queue.in_flight, [0]);
    bed.backend.stop();
    bed.device = BlkDevice::restore(*bed.device.config(), queue(), &state).unwrap();
    assert_eq!(bed.kick(), Ok(0));
    bed.backend.release(1);
    assert_eq!(bed.complete(), Ok(1));
    assert_eq!(
        bed.backend.bytes[..16],
        [&content(5)[..], &[0x77; 10], &content(16)[15..]].concat()
    );
}
