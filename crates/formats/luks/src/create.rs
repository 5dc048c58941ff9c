//! A new volume.

use crate::cipher::{check_essiv, family};
use crate::error::KeyError;
use crate::header::{
    ALIGN_SECTORS, HEADER_BYTES, LuksInfo, MAGIC, RawLuksHeader, SECTOR_BYTES, SLOT_DISABLED,
    STRIPES, material_sectors,
};
use crate::slots::{NewKey, add_key};
use crate::volume::{LuksVolume, MasterKey};
use instar_crypt::{
    CipherAlgorithm, CipherMode, CipherSpec, CryptError, HashAlgorithm, IvGenerator, Random, pbkdf2,
};
use instar_storage::StorageMut;
use zerocopy::FromZeros;

/// What a new volume is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewVolume {
    /// How payload and key material are encrypted.
    pub spec: CipherSpec,
    /// Hash of key derivation and stripes.
    pub hash: HashAlgorithm,
    /// Iterations of the master key's digest; `qemu-img` spends an eighth of the time that it spends on a slot.
    pub master_key_iterations: u32,
    /// Iterations of the first key slot.
    pub slot_iterations: u32,
}

/// Bytes from the header's start to the payload: the header and eight slots' key material, each from a
/// multiple of 4 KiB.
#[must_use]
pub const fn payload_offset(spec: &CipherSpec) -> u64 {
    (payload_sectors(spec) as u64).saturating_mul(SECTOR_BYTES)
}

const fn payload_sectors(spec: &CipherSpec) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "8")]
    let slots = crate::KEY_SLOTS as u32;
    ALIGN_SECTORS.saturating_add(slot_sectors(spec).saturating_mul(slots))
}

const fn slot_sectors(spec: &CipherSpec) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "at most 64")]
    let key_bytes = spec.cipher.master_key_bytes(spec.mode) as u32;
    material_sectors(key_bytes)
}

/// Refuses a cipher whose parts do not fit each other.
///
/// # Errors
/// What does not fit.
pub fn check_spec(spec: &CipherSpec) -> Result<(), KeyError> {
    if let (IvGenerator::Essiv, Some(hash)) = (spec.iv_generator, spec.iv_generator_hash) {
        check_essiv(spec.cipher, hash)?;
    }
    if (spec.cipher, spec.mode) == (CipherAlgorithm::Cast5, CipherMode::Xts) {
        // Blocks of 8 bytes.
        return Err(CryptError::Mode(spec.mode).into());
    }
    Ok(())
}

/// Makes a volume at byte `offset` of the store: a new master key, which the password opens by slot 0.
/// [`payload_offset`] bytes are overwritten there, zeros first and the header last; nothing is flushed.
///
/// # Errors
/// The parts of the cipher do not fit each other; the store's.
pub fn create<S: StorageMut>(
    storage: &S,
    offset: u64,
    new: &NewVolume,
    password: &[u8],
    random: &mut Random,
) -> Result<(LuksVolume, MasterKey), KeyError> {
    check_spec(&new.spec)?;
    let mut key = MasterKey::zeros(new.spec.cipher.master_key_bytes(new.spec.mode));
    random.fill(key.bytes_mut());
    let raw = header(new, &key, random);
    let mut volume = LuksVolume {
        info: LuksInfo::parse(&raw)?,
        raw,
        offset,
        room: payload_offset(&new.spec),
    };
    storage.write_zeroes(offset, volume.room)?;
    let first = NewKey {
        slot: 0,
        password,
        iterations: new.slot_iterations,
    };
    add_key(storage, &mut volume, &key, &first, random)?;
    Ok((volume, key))
}

/// A header without active key slots.
fn header(new: &NewVolume, key: &MasterKey, random: &mut Random) -> RawLuksHeader {
    let mut raw = RawLuksHeader::new_zeroed();
    raw.magic = MAGIC;
    raw.version = 1.into();
    put(&mut raw.cipher_name, &[family(new.spec.cipher)]);
    let (mode, iv) = (new.spec.mode.name(), new.spec.iv_generator.name());
    // QEMU notes a hash that is given though the generator has none.
    match new.spec.iv_generator_hash {
        Some(hash) => put(&mut raw.cipher_mode, &[mode, "-", iv, ":", hash.name()]),
        None => put(&mut raw.cipher_mode, &[mode, "-", iv]),
    }
    put(&mut raw.hash_spec, &[new.hash.name()]);
    raw.payload_offset = payload_sectors(&new.spec).into();
    raw.key_bytes = u32::try_from(key.as_bytes().len()).unwrap_or(0).into();
    raw.mk_digest_iterations = new.master_key_iterations.into();
    random.fill(&mut raw.mk_digest_salt);
    let mut digest = [0; 20];
    let (iterations, salt) = (new.master_key_iterations, &raw.mk_digest_salt);
    pbkdf2(new.hash, key.as_bytes(), salt, iterations, &mut digest);
    raw.mk_digest = digest;
    put_uuid(&mut raw.uuid, random);
    let step = slot_sectors(&new.spec);
    let mut place = ALIGN_SECTORS;
    for slot in &mut raw.key_slots {
        slot.state = SLOT_DISABLED.into();
        slot.stripes = STRIPES.into();
        slot.key_material_offset = place.into();
        place = place.saturating_add(step);
    }
    raw
}

/// Fills a field with text; the rest stays zeros.
fn put(field: &mut [u8], parts: &[&str]) {
    let text = parts.iter().flat_map(|part| part.bytes());
    for (to, from) in field.iter_mut().zip(text) {
        *to = from;
    }
}

/// A random UUID (RFC 9562 "5.4. UUID Version 4") as text.
fn put_uuid(field: &mut [u8; 40], random: &mut Random) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut bytes = [0; 16];
    random.fill(&mut bytes);
    let number = u128::from_be_bytes(bytes);
    let number = (number & !(0xf << 76 | 0x3 << 62)) | 0x4 << 76 | 0x2 << 62;
    let mut nibbles = (0..32_u32).rev().map(|index| {
        let nibble = (number >> index.saturating_mul(4)) & 0xf;
        usize::try_from(nibble)
            .ok()
            .and_then(|n| DIGITS.get(n))
            .copied()
    });
    for (index, to) in field.iter_mut().take(36).enumerate() {
        *to = match index {
            8 | 13 | 18 | 23 => b'-',
            _ => nibbles.next().flatten().unwrap_or(b'0'),
        };
    }
}

const _: () = assert!(HEADER_BYTES as u64 <= ALIGN_SECTORS as u64 * SECTOR_BYTES);
