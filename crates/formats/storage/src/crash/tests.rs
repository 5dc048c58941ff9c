use super::*;
use std::collections::BTreeSet;
use std::string::ToString;

fn sectors(image: &MemStorage) -> Vec<u8> {
    image.to_vec().chunks(512).map(|sector| sector[0]).collect()
}

fn run(start: usize, change: impl FnOnce(&CrashStorage)) -> Recording {
    let store = CrashStorage::new(MemStorage::new(std::vec![b'.'; start]));
    change(&store);
    store.finish()
}

fn seen(recording: &Recording, samples: usize) -> BTreeSet<Vec<u8>> {
    states(recording, 7, samples)
        .map(|(_, image)| sectors(&image))
        .collect()
}

#[test]
fn all_subsets_of_few_writes_come_and_nothing_else() {
    let recording = run(4 * 512, |store| {
        for (at, byte) in [(0, b'a'), (512, b'b'), (1024, b'c')] {
            store.write_at(at, &[byte; 512]).unwrap();
        }
        store.flush().unwrap();
        store.write_at(0, &[b'A'; 512]).unwrap();
    });
    let mut expected = BTreeSet::new();
    for mask in 0..8_u8 {
        let pick = |bit: u8, byte| if mask >> bit & 1 == 1 { byte } else { b'.' };
        expected.insert(std::vec![pick(0, b'a'), pick(1, b'b'), pick(2, b'c'), b'.']);
    }
    expected.insert(b"Abc.".to_vec());
    assert_eq!(seen(&recording, 100), expected);
    let count = states(&recording, 7, 100).count();
    assert_eq!(count, 7 + 2, "no state comes twice");
}

#[test]
fn what_was_flushed_is_in_every_later_state() {
    let recording = run(64 * 512, |store| {
        for n in 0..40 {
            store.write_at(n * 512, &[b'1'; 512]).unwrap();
        }
        store.flush().unwrap();
        for n in 0..40 {
            store.write_at(n * 512, &[b'2'; 512]).unwrap();
        }
    });
    let (mut dropped, mut applied, mut others) = (0, 0, BTreeSet::new());
    for (label, image) in states(&recording, 3, 500) {
        let seen = sectors(&image);
        if label.flushes == 1 {
            assert_eq!(label.durable, 40);
            assert!(seen[..40].iter().all(|byte| *byte != b'.'), "{label}");
        } else {
            assert!(seen.iter().all(|byte| *byte != b'2'), "{label}");
        }
        match label.shape {
            Shape::Dropped(_) => dropped += 1,
            Shape::Applied(_) => applied += 1,
            Shape::Random(_) => drop(others.insert(seen)),
            _ => {}
        }
    }
    assert_eq!((dropped, applied, others.len()), (80, 80, 1000));
}

#[test]
fn writes_tear_at_sectors_of_the_file() {
    let recording = run(4 * 512, |store| {
        store.write_at(256, &[b'n'; 1024]).unwrap();
    });
    let (mut tears, mut seen) = (0, BTreeSet::new());
    for (label, image) in states(&recording, 1, 100) {
        let bytes = image.to_vec();
        let part = |range: std::ops::Range<usize>| {
            assert!(
                bytes[range.clone()]
                    .iter()
                    .all(|b| *b == bytes[range.start]),
                "{label}"
            );
            bytes[range.start] == b'n'
        };
        seen.insert([part(256..512), part(512..1024), part(1024..1280)]);
        tears += u32::from(matches!(label.shape, Shape::Torn { .. }));
        assert!(!part(0..256) && !part(1280..2048), "{label}");
    }
    assert_eq!(seen.len(), 8);
    assert_eq!(tears, 4 + 4);
}

#[test]
fn lengths_are_steps_in_their_order() {
    let recording = run(1024, |store| {
        store.set_len(512).unwrap();
        store.write_at(1024, &[b'x'; 512]).unwrap();
    });
    let expected = [&b".."[..], b".", b"..x", b".\0x"];
    assert_eq!(seen(&recording, 0), expected.map(<[u8]>::to_vec).into());

    let grown = run(512, |store| {
        store.allocate(0, 1536, Reserve::Blocks).unwrap();
        assert_eq!(store.len_bytes(), 1536);
        store.flush().unwrap();
    });
    let expected = [&b"."[..], b".\0\0"];
    assert_eq!(seen(&grown, 0), expected.map(<[u8]>::to_vec).into());
}

#[test]
fn discarded_bytes_are_either_even_after_a_flush() {
    let recording = run(1024, |store| {
        store.discard(512, 512).unwrap();
        store.flush().unwrap();
        store.write_at(0, &[b'w'; 512]).unwrap();
        store.flush().unwrap();
    });
    let expected = [&b".."[..], b".\0", b"w.", b"w\0"];
    assert_eq!(seen(&recording, 10), expected.map(<[u8]>::to_vec).into());
}

#[test]
fn the_same_seed_gives_the_same_states_and_labels_tell_them_apart() {
    let recording = run(1 << 20, |store| {
        for n in 0..30_u64 {
            store.write_at(n * 30_000, &[b'z'; 20_000]).unwrap();
        }
        store.write_zeroes(5, 1 << 40).unwrap();
    });
    let all = |seed| states(&recording, seed, 50).collect::<Vec<_>>();
    let (one, two) = (all(9), all(9));
    assert!(one == two);
    assert!(one != all(10));
    let labels: BTreeSet<_> = one.iter().map(|(label, _)| label.to_string()).collect();
    assert_eq!(labels.len(), one.len());
    let tear = one
        .iter()
        .find(|(label, _)| matches!(label.shape, Shape::Torn { step: 30, .. }));
    assert!(tear.is_some_and(|(_, image)| image.len_bytes() > 1 << 20));
}

#[test]
fn failed_changes_are_not_recorded() {
    let recording = run(0, |store| {
        assert!(store.write_at(u64::MAX - 3, &[0; 8]).is_err());
        store.write_at(9, &[]).unwrap();
        store.write_zeroes(9, 0).unwrap();
        store.discard(9, 0).unwrap();
        store.allocate(9, 0, Reserve::Blocks).unwrap();
        assert_eq!(store.len_bytes(), 0);
        assert_eq!(store.steps(), 0);
    });
    assert_eq!(states(&recording, 0, 10).count(), 1);
    assert_eq!((recording.steps(), recording.flushes()), (0, 0));
}
