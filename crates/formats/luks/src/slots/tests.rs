use super::*;
use crate::volume::tests::small;
use crate::{CipherAlgorithm, CipherMode, HashAlgorithm, create, payload_offset};
use instar_crypt::SEED_BYTES;
use instar_storage::crash::{CrashStorage, states};
use instar_storage::{MemStorage, Storage};

extern crate std;

fn random(seed: u8) -> Random {
    Random::from_seed(&[seed; SEED_BYTES])
}

fn new_key(slot: usize, password: &[u8]) -> NewKey<'_> {
    NewKey {
        slot,
        password,
        iterations: 5,
    }
}

fn opens(store: &impl Storage, room: u64, password: &[u8]) -> bool {
    let volume = LuksVolume::read(store, 0, room).unwrap();
    volume.unlock(store, password).is_ok()
}

/// Slot 6 lies across a sector's edge.
#[test]
fn power_cut_leaves_a_slot_as_it_was_or_as_it_will_be() {
    let new = small(
        CipherAlgorithm::Aes128,
        CipherMode::Cbc,
        HashAlgorithm::Sha1,
    );
    let room = payload_offset(&new.spec);
    for slot in [1, 6] {
        let base = MemStorage::default();
        let (mut volume, key) = create(&base, 0, &new, b"first", &mut random(1)).unwrap();
        let store = CrashStorage::new(base);
        add_key(
            &store,
            &mut volume,
            &key,
            &new_key(slot, b"second"),
            &mut random(2),
        )
        .unwrap();
        let added = store.image();
        assert!(opens(&added, room, b"second"));
        check(store, slot, room, |store| {
            opens(store, room, b"second") || !active(store, slot, room)
        });

        let store = CrashStorage::new(added);
        erase_slot(&store, &mut volume, slot, &mut random(3)).unwrap();
        assert!(!opens(&store.image(), room, b"second"));
        assert_eq!(volume.raw.key_slots[slot].iterations.get(), 0);
        check(store, slot, room, |store| {
            opens(store, room, b"second") || !active(store, slot, room)
        });
    }
}

/// Of the only key, and of one beside others.
#[test]
fn power_cut_leaves_the_old_password_or_the_new_one() {
    let new = small(
        CipherAlgorithm::Aes128,
        CipherMode::Cbc,
        HashAlgorithm::Sha1,
    );
    let room = payload_offset(&new.spec);
    let store = MemStorage::default();
    let (mut volume, key) = create(&store, 0, &new, b"first", &mut random(1)).unwrap();
    let store = CrashStorage::new(store);
    let second = new_key(0, b"second");
    replace_key(&store, &mut volume, &key, &second, &mut random(2)).unwrap();
    let done = store.image();
    assert!(opens(&done, room, b"second") && !opens(&done, room, b"first"));
    assert!((1..8).all(|slot| !active(&done, slot, room)));
    let recording = store.finish();
    let mut seen = 0;
    for (label, state) in states(&recording, 12, 20) {
        let both = [&b"first"[..], b"second"];
        assert!(both.iter().any(|word| opens(&state, room, word)), "{label}");
        seen += 1;
    }
    assert!(seen > 12, "only {seen} states");
}

fn active(store: &MemStorage, slot: usize, room: u64) -> bool {
    LuksVolume::read(store, 0, room).unwrap().info.slots[slot].active
}

fn check(store: CrashStorage, slot: usize, room: u64, sound: impl Fn(&MemStorage) -> bool) {
    let recording = store.finish();
    let mut seen = 0;
    for (label, state) in states(&recording, 11, 20) {
        assert!(opens(&state, room, b"first"), "slot {slot}: {label}");
        assert!(sound(&state), "slot {slot}: {label}");
        seen += 1;
    }
    assert!(seen > 4, "only {seen} states");
}

#[test]
fn active_slot_is_not_overwritten_and_none_is_past_the_eighth() {
    let new = small(
        CipherAlgorithm::Aes128,
        CipherMode::Cbc,
        HashAlgorithm::Sha1,
    );
    let store = MemStorage::default();
    let (mut volume, key) = create(&store, 0, &new, b"first", &mut random(1)).unwrap();
    let mut add = |slot| {
        add_key(
            &store,
            &mut volume,
            &key,
            &new_key(slot, b"x"),
            &mut random(2),
        )
    };
    assert_eq!(add(0), Err(KeyError::SlotActive { slot: 0 }));
    assert_eq!(add(8), Err(KeyError::SlotNumber { slot: 8 }));
}

#[test]
fn erased_material_is_gone() {
    let new = small(
        CipherAlgorithm::Aes128,
        CipherMode::Cbc,
        HashAlgorithm::Sha1,
    );
    let store = MemStorage::default();
    let (mut volume, _) = create(&store, 0, &new, b"first", &mut random(1)).unwrap();
    let before = store.to_vec();
    erase_slot(&store, &mut volume, 0, &mut random(2)).unwrap();
    let after = store.to_vec();
    let same = (4096..4096 + 64_000)
        .filter(|at| before[*at] == after[*at])
        .count();
    assert!(same < 1000, "{same} bytes are as they were");
}

/// As `qemu-img amend` was seen to choose and refuse.
#[test]
fn last_key_is_erased_by_force_only() {
    let new = small(
        CipherAlgorithm::Aes128,
        CipherMode::Cbc,
        HashAlgorithm::Sha1,
    );
    let store = MemStorage::default();
    let (mut volume, key) = create(&store, 0, &new, b"first", &mut random(1)).unwrap();
    let chosen = |volume: &LuksVolume, erase, force| {
        let slots = slots_to_erase(&store, volume, erase, force)?;
        Ok(slots.iter().position(|slot| *slot).unwrap())
    };
    let first = Erase::Password(b"first");
    assert_eq!(chosen(&volume, first, false), Err(KeyError::LastPassword));
    assert_eq!(
        chosen(&volume, Erase::Slot(0, None), false),
        Err(KeyError::LastSlot { slot: 0 })
    );
    assert_eq!(chosen(&volume, first, true), Ok(0));
    assert_eq!(volume.free_slot(), Ok(1));
    add_key(
        &store,
        &mut volume,
        &key,
        &new_key(1, b"second"),
        &mut random(2),
    )
    .unwrap();
    assert_eq!(chosen(&volume, Erase::Password(b"second"), false), Ok(1));
    assert_eq!(
        chosen(&volume, Erase::Slot(1, Some(b"second")), false),
        Ok(1)
    );
    for (erase, refusal) in [
        (Erase::Password(b"third"), KeyError::NoSlotMatches),
        (
            Erase::Slot(1, Some(b"first")),
            KeyError::OtherPassword { slot: 1 },
        ),
        (Erase::Slot(5, None), KeyError::SlotErased { slot: 5 }),
        (Erase::Slot(8, None), KeyError::SlotNumber { slot: 8 }),
    ] {
        assert_eq!(chosen(&volume, erase, false), Err(refusal));
    }
    assert_eq!(chosen(&volume, Erase::Slot(5, None), true), Ok(5));
    for slot in 2..8 {
        add_key(
            &store,
            &mut volume,
            &key,
            &new_key(slot, b"more"),
            &mut random(3),
        )
        .unwrap();
    }
    assert_eq!(volume.free_slot(), Err(KeyError::SlotsInUse));
}
