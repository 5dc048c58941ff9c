use super::*;
use crate::{
    CipherAlgorithm, CipherMode, HashAlgorithm, IvGenerator, NewVolume, create, payload_offset,
};
use instar_crypt::{Random, SEED_BYTES};
use instar_storage::MemStorage;
use std::string::ToString;
use zerocopy::big_endian::U32;

extern crate std;

const OFFSET: u64 = 3 * 65536;

pub(crate) fn small(cipher: CipherAlgorithm, mode: CipherMode, hash: HashAlgorithm) -> NewVolume {
    NewVolume {
        spec: CipherSpec {
            cipher,
            mode,
            iv_generator: IvGenerator::Plain64,
            iv_generator_hash: None,
        },
        hash,
        master_key_iterations: 3,
        slot_iterations: 5,
    }
}

fn made(new: &NewVolume) -> (MemStorage, LuksVolume, MasterKey) {
    let store = MemStorage::default();
    let mut random = Random::from_seed(&[7; SEED_BYTES]);
    let (volume, key) = create(&store, OFFSET, new, b"secret", &mut random).unwrap();
    (store, volume, key)
}

#[test]
fn created_volume_opens_with_its_password_only() {
    for hash in HashAlgorithm::ALL {
        for (cipher, mode) in [
            (CipherAlgorithm::Aes256, CipherMode::Xts),
            (CipherAlgorithm::Aes192, CipherMode::Cbc),
            (CipherAlgorithm::Cast5, CipherMode::Ctr),
        ] {
            let new = small(cipher, mode, *hash);
            let (store, volume, key) = made(&new);
            assert_eq!(store.len_bytes(), OFFSET + payload_offset(&new.spec));
            let again = LuksVolume::read(&store, OFFSET, payload_offset(&new.spec)).unwrap();
            assert_eq!(again.raw.as_bytes(), volume.raw.as_bytes());
            assert_eq!((again.spec(), again.info().hash), (new.spec, *hash));
            let opened = again.unlock(&store, b"secret").unwrap();
            assert_eq!(opened.as_bytes(), key.as_bytes());
            assert_eq!(
                again.unlock(&store, b"secre").unwrap_err(),
                KeyError::InvalidPassword
            );
        }
    }
}

#[test]
fn uuid_is_a_random_one() {
    let new = small(
        CipherAlgorithm::Aes128,
        CipherMode::Xts,
        HashAlgorithm::Sha1,
    );
    let (_, volume, _) = made(&new);
    let uuid = volume.info().uuid().to_vec();
    assert_eq!(uuid.len(), 36);
    let digits = |b: &u8| b.is_ascii_hexdigit() && !b.is_ascii_uppercase();
    assert_eq!(uuid.iter().filter(|b| digits(b)).count(), 32);
    for at in [8, 13, 18, 23] {
        assert_eq!(uuid[at], b'-');
    }
    assert_eq!(uuid[14], b'4');
    assert!(b"89ab".contains(&uuid[19]));
}

/// The header says four billion iterations: that slot is not tried, another one that opens still does.
#[test]
fn hostile_iterations_are_refused_in_a_sentence() {
    let new = small(
        CipherAlgorithm::Aes128,
        CipherMode::Xts,
        HashAlgorithm::Sha1,
    );
    let (store, volume, _) = made(&new);
    let room = payload_offset(&new.spec);
    let with = |change: &dyn Fn(&mut RawLuksHeader)| {
        let mut raw = volume.raw;
        change(&mut raw);
        let store = store.clone();
        instar_storage::StorageMut::write_at(&store, OFFSET, raw.as_bytes()).unwrap();
        let volume = LuksVolume::read(&store, OFFSET, room).unwrap();
        volume.unlock(&store, b"secret")
    };
    let refused = with(&|raw| raw.key_slots[0].iterations = U32::MAX_VALUE).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Keyslot 0 asks for 4294967295 PBKDF2 iterations, and instar does 100000000 at most"
    );
    let other = with(&|raw| {
        raw.key_slots[1] = raw.key_slots[0];
        raw.key_slots[1].key_material_offset = raw.key_slots[0].key_material_offset;
        raw.key_slots[0].key_material_offset = (raw.payload_offset.get() - 256).into();
        raw.key_slots[7].key_material_offset = volume.raw.key_slots[1].key_material_offset;
        raw.key_slots[0].iterations = U32::MAX_VALUE;
    });
    assert!(other.is_ok(), "{other:?}");
    let refused = with(&|raw| raw.mk_digest_iterations = U32::MAX_VALUE).unwrap_err();
    assert_eq!(
        refused,
        KeyError::DigestIterations {
            iterations: u32::MAX
        }
    );
}

#[test]
fn key_material_outside_the_room_is_refused() {
    let new = small(
        CipherAlgorithm::Aes256,
        CipherMode::Xts,
        HashAlgorithm::Sha256,
    );
    let (store, volume, _) = made(&new);
    let slot_end = 4096 + 256_000;
    let opened = |room| {
        LuksVolume {
            room,
            ..volume.clone()
        }
        .unlock(&store, b"secret")
        .map(drop)
    };
    assert_eq!(opened(slot_end), Ok(()));
    assert_eq!(opened(slot_end - 1), Err(KeyError::OutsideArea));
    assert_eq!(
        opened(592).unwrap_err().to_string(),
        "Request for data outside of extension header"
    );
    // An offset near 2^32 sectors passes the header's checks, as in QEMU.
    let mut raw = volume.raw;
    raw.key_slots[0].key_material_offset = U32::MAX_VALUE;
    let wrapped = LuksVolume {
        info: LuksInfo::parse(&raw).unwrap(),
        raw,
        ..volume
    };
    assert_eq!(
        wrapped.unlock(&store, b"secret").unwrap_err(),
        KeyError::OutsideArea
    );
}

#[test]
fn nothing_secret_is_shown() {
    let new = small(
        CipherAlgorithm::Aes128,
        CipherMode::Xts,
        HashAlgorithm::Sha1,
    );
    let (_, volume, key) = made(&new);
    let cipher = volume.cipher(&key).unwrap();
    assert_eq!(
        std::format!("{key:?} {cipher:?}"),
        "MasterKey { .. } SectorCipher { .. }"
    );
}
