use super::*;
use instar_storage::{FaultyStorage, MemStorage};
use proptest::prelude::*;
use std::string::ToString;
use zerocopy::FromZeros;

extern crate std;

/// A header as `qemu-img create` writes it: aes-256-xts-plain64, slot 0 active.
fn sound() -> RawLuksHeader {
    let mut raw = RawLuksHeader::new_zeroed();
    raw.magic = MAGIC;
    raw.version = U16::new(1);
    raw.cipher_name = name(b"aes");
    raw.cipher_mode = name(b"xts-plain64");
    raw.hash_spec = name(b"sha256");
    raw.payload_offset = U32::new(4040);
    raw.key_bytes = U32::new(64);
    raw.mk_digest_iterations = U32::new(1000);
    raw.uuid[..4].copy_from_slice(b"uuid");
    for (i, slot) in raw.key_slots.iter_mut().enumerate() {
        slot.state = U32::new(if i == 0 { SLOT_ACTIVE } else { SLOT_DISABLED });
        slot.iterations = U32::new(if i == 0 { 2000 } else { 0 });
        slot.key_material_offset = U32::new(8 + 504 * u32::try_from(i).unwrap());
        slot.stripes = U32::new(STRIPES);
    }
    raw
}

fn name(text: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out[..text.len()].copy_from_slice(text);
    out
}

fn refusal(change: impl FnOnce(&mut RawLuksHeader)) -> std::string::String {
    let mut raw = sound();
    change(&mut raw);
    LuksInfo::parse(&raw).unwrap_err().to_string()
}

#[test]
fn sound_header_is_shown_as_qemu_names_it() {
    let info = LuksInfo::parse(&sound()).unwrap();
    assert_eq!(info.cipher.name(), "aes-256");
    assert_eq!(info.mode.name(), "xts");
    assert_eq!(info.iv_generator.name(), "plain64");
    assert_eq!(info.iv_generator_hash, None);
    assert_eq!(info.hash.name(), "sha256");
    assert_eq!(info.payload_offset, 2_068_480);
    assert_eq!(info.uuid(), b"uuid");
    assert!(info.slots[0].active && !info.slots[7].active);
    assert_eq!(info.slots[7].key_offset, 1_810_432);
}

#[test]
fn essiv_hash_must_be_a_key_length() {
    let mut raw = sound();
    raw.key_bytes = U32::new(32);
    raw.cipher_mode = name(b"cbc-essiv:sha256");
    let info = LuksInfo::parse(&raw).unwrap();
    assert_eq!(info.iv_generator_hash, Some(HashAlgorithm::Sha256));
    let text = refusal(|raw| {
        raw.key_bytes = U32::new(32);
        raw.cipher_mode = name(b"cbc-essiv:sha1");
    });
    assert_eq!(text, "No AES cipher with key size 20 available");
}

#[test]
fn material_at_the_end_of_32_bits_wraps() {
    let mut raw = sound();
    raw.key_slots[3].key_material_offset = U32::new(u32::MAX);
    assert!(LuksInfo::parse(&raw).is_ok());
}

#[test]
fn first_damage_in_order_is_reported() {
    assert_eq!(
        refusal(|raw| raw.payload_offset = U32::ZERO),
        "LUKS payload is overlapping with the header"
    );
    assert_eq!(
        refusal(|raw| {
            raw.key_slots[0].state = U32::new(1);
            raw.key_slots[0].stripes = U32::new(u32::MAX);
        }),
        "Keyslot 0 is corrupted (stripes -1 != 4000)"
    );
    assert_eq!(
        refusal(|raw| raw.key_slots[1].key_material_offset = U32::new(9)),
        "Keyslots 0 and 1 are overlapping in the header"
    );
}

#[test]
fn read_reports_room_fault_and_limit() {
    let store = MemStorage::new(sound().as_bytes().to_vec());
    assert!(LuksInfo::read(&store, 0, 592).is_ok());
    assert_eq!(LuksInfo::read(&store, 0, 591), Err(LuksError::AreaTooSmall));
    let text = LuksInfo::read(&store, !0xffff, u64::MAX)
        .unwrap_err()
        .to_string();
    assert_eq!(text, "Could not read encryption header: Input/output error");
    let faulty = FaultyStorage::new(store, 0, 5);
    assert!(matches!(
        LuksInfo::read(&faulty, 0, 592),
        Err(LuksError::Storage(_))
    ));
}

proptest! {
    #[test]
    fn any_mutation_gives_a_value(at in 0..HEADER_BYTES, bytes in proptest::collection::vec(any::<u8>(), 1..64)) {
        let mut raw = sound();
        let image = raw.as_mut_bytes();
        let end = (at + bytes.len()).min(HEADER_BYTES);
        image[at..end].copy_from_slice(&bytes[..end - at]);
        if let Err(e) = LuksInfo::parse(&raw) {
            prop_assert!(!e.to_string().is_empty());
        }
    }
}
