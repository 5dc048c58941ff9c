//! The header's wire layout, its checks, and what is shown of it.

use crate::cipher::{check_essiv, parse_cipher, parse_hash, parse_iv_generator, parse_mode};
use crate::error::LuksError;
use crate::volume::LuksVolume;
use core::mem::{offset_of, size_of};
use instar_crypt::{CipherAlgorithm, CipherMode, HashAlgorithm, IvGenerator};
use instar_storage::Storage;
use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 592;
/// Key slots of a header.
pub const KEY_SLOTS: usize = 8;
/// Anti-forensic stripes of a key slot: the only number that QEMU takes.
pub const STRIPES: u32 = 4000;

pub(crate) const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
pub(crate) const SLOT_ACTIVE: u32 = 0x00ac_71f3;
pub(crate) const SLOT_DISABLED: u32 = 0x0000_dead;
pub(crate) const SECTOR_BYTES: u64 = 512;
/// Key material is aligned to 4 KiB; the first 4 KiB are the header's.
pub(crate) const ALIGN_SECTORS: u32 = 8;
/// QEMU: no file it reads ends past this offset.
pub(crate) const MAX_FILE_BYTES: u64 = 0x7fff_ffff_c000_0000;

/// A key slot as it lies in the header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RawKeySlot {
    /// 0x00ac71f3 active, 0x0000dead disabled.
    pub state: U32,
    /// PBKDF2 iterations.
    pub iterations: U32,
    /// PBKDF2 salt.
    pub salt: [u8; 32],
    /// Where the key material is, in sectors.
    pub key_material_offset: U32,
    /// Anti-forensic stripes.
    pub stripes: U32,
}

/// The header as it lies in the image.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RawLuksHeader {
    /// `LUKS\xba\xbe`.
    pub magic: [u8; 6],
    /// 1.
    pub version: U16,
    /// Cipher name, NUL-terminated.
    pub cipher_name: [u8; 32],
    /// Cipher mode, NUL-terminated: mode, '-', IV generator, and ':' with a hash.
    pub cipher_mode: [u8; 32],
    /// Hash of the key derivation, NUL-terminated.
    pub hash_spec: [u8; 32],
    /// Where the payload starts, in sectors.
    pub payload_offset: U32,
    /// Bytes of the master key.
    pub key_bytes: U32,
    /// Digest of the master key.
    pub mk_digest: [u8; 20],
    /// Salt of that digest.
    pub mk_digest_salt: [u8; 32],
    /// Iterations of that digest.
    pub mk_digest_iterations: U32,
    /// UUID as text.
    pub uuid: [u8; 40],
    /// The key slots.
    pub key_slots: [RawKeySlot; KEY_SLOTS],
}

const _: () = {
    assert!(size_of::<RawKeySlot>() == 48);
    assert!(offset_of!(RawKeySlot, key_material_offset) == 40);
    assert!(size_of::<RawLuksHeader>() == HEADER_BYTES);
    assert!(offset_of!(RawLuksHeader, cipher_name) == 8);
    assert!(offset_of!(RawLuksHeader, cipher_mode) == 40);
    assert!(offset_of!(RawLuksHeader, hash_spec) == 72);
    assert!(offset_of!(RawLuksHeader, payload_offset) == 104);
    assert!(offset_of!(RawLuksHeader, key_bytes) == 108);
    assert!(offset_of!(RawLuksHeader, mk_digest_iterations) == 164);
    assert!(offset_of!(RawLuksHeader, uuid) == 168);
    assert!(offset_of!(RawLuksHeader, key_slots) == 208);
};

/// A key slot that passed the checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeySlot {
    /// Holds a key.
    pub active: bool,
    /// PBKDF2 iterations; shown for active slots only.
    pub iterations: u32,
    /// Stripes, always [`STRIPES`]; shown for active slots only.
    pub stripes: u32,
    /// Where the key material is, in bytes from the header's start.
    pub key_offset: u64,
}

/// What `qemu-img info` shows of a LUKS header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LuksInfo {
    /// Cipher and key size.
    pub cipher: CipherAlgorithm,
    /// Cipher mode.
    pub mode: CipherMode,
    /// IV generator.
    pub iv_generator: IvGenerator,
    /// The IV generator's hash; shown for essiv only, and `Some` for it only.
    pub iv_generator_hash: Option<HashAlgorithm>,
    /// Hash of the key derivation.
    pub hash: HashAlgorithm,
    /// The header stands apart from the payload; never so inside qcow2.
    pub detached_header: bool,
    /// Bytes from the header's start to the payload.
    pub payload_offset: u64,
    /// Iterations of the master key's digest.
    pub master_key_iterations: u32,
    /// The key slots.
    pub slots: [KeySlot; KEY_SLOTS],
    uuid: [u8; 40],
}

impl LuksInfo {
    /// Reads and checks the header at byte `offset` of the store, where `room`
    /// bytes are set aside for it.
    ///
    /// # Errors
    /// [`LuksError`]: the first thing wrong, in QEMU's order.
    pub fn read<S: Storage>(storage: &S, offset: u64, room: u64) -> Result<Self, LuksError> {
        LuksVolume::read(storage, offset, room).map(|volume| volume.info)
    }

    /// Checks a header.
    ///
    /// # Errors
    /// [`LuksError`]: the first thing wrong, in QEMU's order.
    pub fn parse(raw: &RawLuksHeader) -> Result<Self, LuksError> {
        check_header(raw)?;
        let mode_text = c_string(&raw.cipher_mode);
        let mut parts = mode_text.splitn(2, |b| *b == b'-');
        let (Some(mode_name), Some(iv)) = (parts.next(), parts.next()) else {
            return Err(LuksError::CipherModeFormat(mode_text.to_vec()));
        };
        let mut iv_parts = iv.splitn(2, |b| *b == b':');
        let iv_name = iv_parts.next().unwrap_or_default();
        let iv_hash = iv_parts.next().map(parse_hash).transpose()?;
        let mode = parse_mode(mode_name)?;
        let key_bytes = match mode {
            CipherMode::Xts => raw.key_bytes.get() >> 1,
            _ => raw.key_bytes.get(),
        };
        let cipher = parse_cipher(c_string(&raw.cipher_name), key_bytes)?;
        let hash = parse_hash(c_string(&raw.hash_spec))?;
        let iv_generator = parse_iv_generator(iv_name)?;
        let iv_generator_hash = match iv_generator {
            IvGenerator::Essiv => Some(iv_hash.ok_or(LuksError::EssivHashMissing)?),
            _ => None,
        };
        if let Some(iv_hash) = iv_generator_hash {
            check_essiv(cipher, iv_hash)?;
        }
        Ok(Self {
            cipher,
            mode,
            iv_generator,
            iv_generator_hash,
            hash,
            detached_header: false,
            payload_offset: u64::from(raw.payload_offset.get()).saturating_mul(SECTOR_BYTES),
            master_key_iterations: raw.mk_digest_iterations.get(),
            slots: raw.key_slots.map(|slot| KeySlot {
                active: slot.state.get() == SLOT_ACTIVE,
                iterations: slot.iterations.get(),
                stripes: slot.stripes.get(),
                key_offset: u64::from(slot.key_material_offset.get()).saturating_mul(SECTOR_BYTES),
            }),
            uuid: raw.uuid,
        })
    }

    /// The UUID, up to its first NUL; any bytes, at most 40.
    pub fn uuid(&self) -> &[u8] {
        c_string(&self.uuid)
    }
}

fn c_string(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

fn check_header(raw: &RawLuksHeader) -> Result<(), LuksError> {
    if raw.magic != MAGIC {
        return Err(LuksError::NotLuks);
    }
    if raw.version.get() != 1 {
        return Err(LuksError::UnsupportedVersion(raw.version.get()));
    }
    if !raw.cipher_name.contains(&0) {
        return Err(LuksError::CipherNameNotTerminated);
    }
    if !raw.cipher_mode.contains(&0) {
        return Err(LuksError::CipherModeNotTerminated);
    }
    if !raw.hash_spec.contains(&0) {
        return Err(LuksError::HashSpecNotTerminated);
    }
    if raw.payload_offset.get() < ALIGN_SECTORS {
        return Err(LuksError::PayloadInHeader);
    }
    if raw.mk_digest_iterations.get() == 0 {
        return Err(LuksError::MasterKeyIterations);
    }
    for index in 0..KEY_SLOTS {
        check_slot(raw, index)?;
    }
    Ok(())
}

fn check_slot(raw: &RawLuksHeader, slot: usize) -> Result<(), LuksError> {
    let Some(this) = raw.key_slots.get(slot) else {
        return Ok(());
    };
    if this.stripes.get() != STRIPES {
        let stripes = this.stripes.get().cast_signed();
        return Err(LuksError::Stripes { slot, stripes });
    }
    if !matches!(this.state.get(), SLOT_ACTIVE | SLOT_DISABLED) {
        return Err(LuksError::SlotState { slot });
    }
    if this.state.get() == SLOT_ACTIVE && this.iterations.get() == 0 {
        return Err(LuksError::SlotIterations { slot });
    }
    let start = this.key_material_offset.get();
    if start < ALIGN_SECTORS {
        return Err(LuksError::SlotInHeader { slot });
    }
    // QEMU adds these as 32-bit numbers, so a material offset just below 2^32
    // sectors passes.
    let sectors = material_sectors(raw.key_bytes.get());
    if start.wrapping_add(sectors) > raw.payload_offset.get() {
        return Err(LuksError::SlotInPayload { slot });
    }
    for (second, other) in raw
        .key_slots
        .iter()
        .enumerate()
        .skip(slot.saturating_add(1))
    {
        if overlap(start, other.key_material_offset.get(), sectors) {
            return Err(LuksError::SlotsOverlap {
                first: slot,
                second,
            });
        }
    }
    Ok(())
}

/// Sectors of a slot's key material, rounded up to 4 KiB. QEMU counts the bytes
/// in 32 bits, so that a master key of 2 GiB takes no room at all.
pub(crate) const fn material_sectors(key_bytes: u32) -> u32 {
    let bytes = key_bytes.wrapping_mul(STRIPES) as u64;
    let aligned = bytes
        .div_ceil(SECTOR_BYTES)
        .next_multiple_of(ALIGN_SECTORS as u64);
    #[expect(clippy::cast_possible_truncation, reason = "at most 2^23 sectors")]
    {
        aligned as u32
    }
}

/// True if two runs of `sectors` sectors share one.
fn overlap(a: u32, b: u32, sectors: u32) -> bool {
    a.abs_diff(b) < sectors
}

#[cfg(test)]
mod tests;
