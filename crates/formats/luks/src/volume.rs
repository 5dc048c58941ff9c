//! A header with its place, and how a password opens it.

use crate::af;
use crate::error::{KeyError, LuksError};
use crate::header::{HEADER_BYTES, LuksInfo, MAX_FILE_BYTES, RawLuksHeader, STRIPES};
use alloc::vec::Vec;
use core::fmt;
use ctutils::CtEq;
use instar_crypt::{CipherSpec, SectorCipher, Zeroize, Zeroizing, pbkdf2};
use instar_storage::{Storage, StorageError};
use zerocopy::{FromZeros, IntoBytes};

/// Most PBKDF2 iterations that are done for one key, about 20 s of a fast core. `qemu-img` makes headers that take
/// 2 s unless it is told otherwise.
pub const MAX_ITERATIONS: u32 = 100_000_000;
/// Key material is encrypted in sectors of this many bytes; the end of the last one is zeros.
const SECTOR: usize = 512;
/// Bytes of the longest master key: two keys of 32.
const MAX_KEY_BYTES: usize = 64;

/// The key that encrypts sectors; overwritten when dropped.
pub struct MasterKey {
    bytes: [u8; MAX_KEY_BYTES],
    len: usize,
}

impl MasterKey {
    /// A key of zeros, 64 bytes at most.
    pub(crate) fn zeros(len: usize) -> Self {
        Self {
            bytes: [0; MAX_KEY_BYTES],
            len: len.min(MAX_KEY_BYTES),
        }
    }

    /// The key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.len).unwrap_or_default()
    }
}

impl Drop for MasterKey {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

/// Shows no key.
impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MasterKey").finish_non_exhaustive()
    }
}

/// A LUKS1 header that passed the checks, and where it is.
#[derive(Clone, Debug)]
pub struct LuksVolume {
    pub(crate) raw: RawLuksHeader,
    pub(crate) info: LuksInfo,
    /// Where the header starts in the store.
    pub(crate) offset: u64,
    /// Bytes from there that belong to it.
    pub(crate) room: u64,
}

impl LuksVolume {
    /// Reads and checks the header at byte `offset` of the store, where `room` bytes are set aside for it and its
    /// key slots.
    ///
    /// # Errors
    /// [`LuksError`]: the first thing wrong, in QEMU's order.
    pub fn read<S: Storage>(storage: &S, offset: u64, room: u64) -> Result<Self, LuksError> {
        let bytes = HEADER_BYTES as u64;
        if room < bytes {
            return Err(LuksError::AreaTooSmall);
        }
        if offset.saturating_add(bytes) > MAX_FILE_BYTES {
            return Err(LuksError::Storage(StorageError { errno: 5, offset }));
        }
        let mut raw = RawLuksHeader::new_zeroed();
        storage
            .read_at(offset, raw.as_mut_bytes())
            .map_err(LuksError::Storage)?;
        let info = LuksInfo::parse(&raw)?;
        Ok(Self {
            raw,
            info,
            offset,
            room,
        })
    }

    /// What is shown of the header.
    #[must_use]
    pub const fn info(&self) -> &LuksInfo {
        &self.info
    }

    /// The master key, from the first key slot that the password opens.
    ///
    /// # Errors
    /// [`KeyError::InvalidPassword`] if it opens none; [`KeyError::Iterations`] if it opens none of those that can
    /// be tried; key material outside the header's room; the store's.
    pub fn unlock<S: Storage>(&self, storage: &S, password: &[u8]) -> Result<MasterKey, KeyError> {
        let mut refusal = KeyError::InvalidPassword;
        for slot in 0..self.info.slots.len() {
            match self.open_slot(storage, slot, password) {
                Ok(Some(key)) => return Ok(key),
                Ok(None) => {}
                Err(e @ KeyError::Iterations { .. }) => refusal = e,
                Err(e) => return Err(e),
            }
        }
        Err(refusal)
    }

    /// The master key, if slot `slot` is active and the password opens it.
    ///
    /// # Errors
    /// As [`LuksVolume::unlock`].
    pub fn open_slot<S: Storage>(
        &self,
        storage: &S,
        slot: usize,
        password: &[u8],
    ) -> Result<Option<MasterKey>, KeyError> {
        let (Some(shown), Some(raw)) = (self.info.slots.get(slot), self.raw.key_slots.get(slot))
        else {
            return Err(KeyError::SlotNumber { slot });
        };
        if !shown.active {
            return Ok(None);
        }
        if shown.iterations > MAX_ITERATIONS {
            return Err(KeyError::Iterations {
                slot,
                iterations: shown.iterations,
            });
        }
        let mut stripes = self.material_buffer()?;
        let place = self.material_place(slot, stripes.len() as u64)?;
        storage.read_at(place, &mut stripes)?;
        self.slot_cipher(password, &raw.salt, shown.iterations)?
            .decrypt(0, &mut stripes)?;
        let key = af::merge(self.info.hash, self.key_bytes(), &stripes);
        Ok(self.is_master_key(&key)?.then_some(key))
    }

    /// The cipher of the payload.
    ///
    /// # Errors
    /// The key is not of this volume.
    pub fn cipher(&self, key: &MasterKey) -> Result<SectorCipher, KeyError> {
        Ok(SectorCipher::new(&self.spec(), key.as_bytes())?)
    }

    /// How payload and key material are encrypted.
    #[must_use]
    pub const fn spec(&self) -> CipherSpec {
        CipherSpec {
            cipher: self.info.cipher,
            mode: self.info.mode,
            iv_generator: self.info.iv_generator,
            iv_generator_hash: self.info.iv_generator_hash,
        }
    }

    /// Bytes of the master key.
    pub(crate) const fn key_bytes(&self) -> usize {
        self.info.cipher.master_key_bytes(self.info.mode)
    }

    /// The cipher of a slot's key material.
    pub(crate) fn slot_cipher(
        &self,
        password: &[u8],
        salt: &[u8],
        iterations: u32,
    ) -> Result<SectorCipher, KeyError> {
        let mut derived = MasterKey::zeros(self.key_bytes());
        pbkdf2(
            self.info.hash,
            password,
            salt,
            iterations,
            derived.bytes_mut(),
        );
        self.cipher(&derived)
    }

    /// Zeros, as many as a slot's stripes take in whole sectors.
    pub(crate) fn material_buffer(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let bytes = self.key_bytes().saturating_mul(STRIPES as usize);
        let bytes = bytes.next_multiple_of(SECTOR);
        let mut buffer = Zeroizing::new(Vec::new());
        let room = buffer.try_reserve_exact(bytes);
        room.map_err(|_| KeyError::OutOfMemory)?;
        buffer.resize(bytes, 0);
        Ok(buffer)
    }

    /// Where a slot's key material of `bytes` bytes is in the store.
    pub(crate) fn material_place(&self, slot: usize, bytes: u64) -> Result<u64, KeyError> {
        let slot = self.info.slots.get(slot);
        let place = slot
            .map(|slot| slot.key_offset)
            .filter(|start| start.saturating_add(bytes) <= self.room)
            .and_then(|start| start.checked_add(self.offset));
        place.ok_or(KeyError::OutsideArea)
    }

    /// Whether a key has the digest that the header has.
    fn is_master_key(&self, key: &MasterKey) -> Result<bool, KeyError> {
        let iterations = self.info.master_key_iterations;
        if iterations > MAX_ITERATIONS {
            return Err(KeyError::DigestIterations { iterations });
        }
        let (hash, salt) = (self.info.hash, &self.raw.mk_digest_salt);
        let mut digest = [0; 20];
        pbkdf2(hash, key.as_bytes(), salt, iterations, &mut digest);
        Ok(bool::from(digest.ct_eq(&self.raw.mk_digest)))
    }
}

#[cfg(test)]
pub(crate) mod tests;
