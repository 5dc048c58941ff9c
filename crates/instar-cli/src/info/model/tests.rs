//! Hostile records: each is refused by its field, and none panics.
#![allow(clippy::cast_possible_truncation)]

use super::*;
use instar_shared::zerocopy::IntoBytes;
use proptest::prelude::*;

fn image() -> wire::ImageRecord {
    let mut record = wire::ImageRecord::zeroed();
    record.format.set(ImageFormat::Qcow2.raw());
    record.version.set(3);
    record.virtual_size.set(1 << 30);
    record.cluster_size.set(65536);
    record.refcount_bits.set(16);
    record
}

fn add(chain: &mut Chain, kind: RecordKind, payload: &[u8]) -> Result<(), RecordError> {
    chain.add(kind, payload, &|slot| slot < 3)
}

fn refused(change: impl FnOnce(&mut wire::ImageRecord)) -> RecordError {
    let mut record = image();
    change(&mut record);
    let mut chain = Chain::default();
    let error = add(&mut chain, RecordKind::Image, record.as_bytes()).unwrap_err();
    assert!(chain.images().is_empty());
    error
}

/// Makes one field of a record wrong.
type Change = fn(&mut wire::ImageRecord);

#[test]
fn image_with_a_wrong_field_is_refused() {
    assert_eq!(refused(|r| r.slot.set(3)), RecordError::NoFile(3));
    let wrong: [(Change, u64); 15] = [
        (|r| r.format.set(0), 0),
        (|r| r.format.set(9), 9),
        (|r| r.version.set(1), 1),
        (|r| r.flags.set(1 << 10), 1 << 10),
        (|r| r.virtual_size.set(1 << 63), 1 << 63),
        (|r| r.cluster_size.set(0), 0),
        (|r| r.cluster_size.set(256), 256),
        (|r| r.cluster_size.set(4 << 20), 4 << 20),
        (|r| r.cluster_size.set(65535), 65535),
        (|r| r.refcount_bits.set(0), 0),
        (|r| r.refcount_bits.set(3), 3),
        (|r| r.refcount_bits.set(128), 128),
        (|r| r.compression.set(2), 2),
        (|r| r.encryption.set(3), 3),
        (
            |r| {
                r.format.set(ImageFormat::Raw.raw());
                r.version.set(0);
            },
            65536,
        ),
    ];
    for (change, number) in wrong {
        let error = refused(change);
        assert!(
            matches!(error, RecordError::Value { value, .. } if value == number),
            "{error}"
        );
    }
}

#[test]
fn image_with_a_wrong_length_is_refused() {
    assert_eq!(refused(|r| r.backing_len.set(1)), RecordError::Length);
    assert_eq!(
        refused(|r| r.data_file_len.set(u32::MAX)),
        RecordError::Length
    );
    let mut record = image();
    record.backing_len.set(1);
    let payload = [record.as_bytes(), b"x"].concat();
    let mut chain = Chain::default();
    // A name that no flag announces, then bytes that no length announces.
    assert_eq!(
        add(&mut chain, RecordKind::Image, &payload),
        Err(RecordError::Length)
    );
    record.backing_len.set(0);
    let payload = [record.as_bytes(), b"x"].concat();
    assert_eq!(
        add(&mut chain, RecordKind::Image, &payload),
        Err(RecordError::Length)
    );
}

#[test]
fn image_twice_or_too_often_is_refused() {
    let mut chain = Chain::default();
    add(&mut chain, RecordKind::Image, image().as_bytes()).unwrap();
    assert_eq!(
        add(&mut chain, RecordKind::Image, image().as_bytes()),
        Err(RecordError::Twice(0))
    );
    let mut chain = Chain::default();
    for slot in 0..1024 {
        let mut record = image();
        record.slot.set(slot);
        chain
            .add(RecordKind::Image, record.as_bytes(), &|_| true)
            .unwrap();
    }
    let mut record = image();
    record.slot.set(5000);
    let error = chain.add(RecordKind::Image, record.as_bytes(), &|_| true);
    assert_eq!(error, Err(RecordError::TooMany("images")));
}

#[test]
fn detail_without_its_image_is_refused() {
    let mut chain = Chain::default();
    let details = [
        (
            RecordKind::Snapshot,
            wire::SnapshotRecord::zeroed().as_bytes().to_vec(),
        ),
        (
            RecordKind::Bitmap,
            wire::BitmapRecord::zeroed().as_bytes().to_vec(),
        ),
        (
            RecordKind::Luks,
            wire::LuksRecord::zeroed().as_bytes().to_vec(),
        ),
    ];
    for (kind, payload) in &details {
        assert_eq!(
            add(&mut chain, *kind, payload),
            Err(RecordError::NoImage),
            "{kind:?}"
        );
    }
    // Neither bitmaps nor LUKS were announced by the image.
    add(&mut chain, RecordKind::Image, image().as_bytes()).unwrap();
    assert_eq!(
        add(&mut chain, details[1].0, &details[1].1),
        Err(RecordError::NoImage)
    );
    assert_eq!(
        add(&mut chain, details[2].0, &details[2].1),
        Err(RecordError::NoImage)
    );
    assert_eq!(
        add(&mut chain, RecordKind::Line, b"x"),
        Err(RecordError::Kind)
    );
}

#[test]
fn luks_name_with_control_characters_is_refused() {
    let mut record = image();
    record.encryption.set(2);
    let mut chain = Chain::default();
    add(&mut chain, RecordKind::Image, record.as_bytes()).unwrap();
    let mut luks = wire::LuksRecord::zeroed();
    luks.cipher_mode[0] = 0x1b;
    let error = add(&mut chain, RecordKind::Luks, luks.as_bytes());
    assert_eq!(error, Err(RecordError::Name("the cipher mode")));
}

#[test]
fn flood_of_names_is_bounded() {
    let mut record = image();
    record.flags.set(wire::IMAGE_BITMAPS);
    let mut chain = Chain::default();
    add(&mut chain, RecordKind::Image, record.as_bytes()).unwrap();
    let mut bitmap = wire::BitmapRecord::zeroed();
    bitmap.name_len.set(32000);
    let payload = [bitmap.as_bytes(), &[b'n'; 32000]].concat();
    let count = (0..10_000)
        .take_while(|_| add(&mut chain, RecordKind::Bitmap, &payload).is_ok())
        .count();
    assert!(count < 4500, "{count} names of 32 kB were kept");
}

#[test]
fn snapshots_at_the_limit_are_kept() {
    let mut chain = Chain::default();
    add(&mut chain, RecordKind::Image, image().as_bytes()).unwrap();
    let mut record = wire::SnapshotRecord::zeroed();
    record.name_len.set(255);
    let payload = [record.as_bytes(), &[b'n'; 255]].concat();
    for _ in 0..MAX_SNAPSHOTS {
        add(&mut chain, RecordKind::Snapshot, &payload).unwrap();
    }
    let error = add(&mut chain, RecordKind::Snapshot, &payload);
    assert_eq!(error, Err(RecordError::TooMany("snapshots")));
}

proptest! {
    #[test]
    fn any_payload_is_refused_or_kept(kind in 0_usize..9, mut payload in proptest::collection::vec(any::<u8>(), 0..600), plausible: bool) {
        let mut chain = Chain::default();
        let mut first = image();
        first.flags.set(wire::IMAGE_BITMAPS);
        first.encryption.set(2);
        first.slot.set(1);
        add(&mut chain, RecordKind::Image, first.as_bytes()).unwrap();
        if plausible {
            // Right numbers at the front, so that the names behind them are reached.
            let length = payload.len().min(56);
            payload[..length].copy_from_slice(&image().as_bytes()[..length]);
        }
        let _ = add(&mut chain, RecordKind::ALL[kind], &payload);
    }
}
