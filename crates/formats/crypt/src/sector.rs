//! Ciphers over whole sectors.

use crate::CryptError;
use crate::iv::IvMaker;
use crate::modes::{SECTOR, Sectors, sectors};
use crate::names::{CipherAlgorithm, CipherMode, HashAlgorithm, IvGenerator};
use alloc::boxed::Box;
use core::fmt;

/// Bytes of a sector: the unit that has a number and an IV, in LUKS1 and in qcow2.
pub const SECTOR_BYTES: u64 = SECTOR as u64;
/// Bytes of the password that the older AES method uses, which are its key.
const LEGACY_KEY_BYTES: usize = 16;

/// How sectors are encrypted, without a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CipherSpec {
    /// Cipher and key size.
    pub cipher: CipherAlgorithm,
    /// Cipher mode.
    pub mode: CipherMode,
    /// IV generator.
    pub iv_generator: IvGenerator,
    /// The IV generator's hash, which essiv has and the others do without.
    pub iv_generator_hash: Option<HashAlgorithm>,
}

/// Enciphers and deciphers sectors with a key, which is overwritten when this is dropped.
pub struct SectorCipher {
    sectors: Box<dyn Sectors>,
    iv: IvMaker,
}

impl SectorCipher {
    /// The cipher with a key: the master key of LUKS, both halves for xts.
    ///
    /// # Errors
    /// [`CryptError`]: the parts do not fit each other.
    pub fn new(spec: &CipherSpec, key: &[u8]) -> Result<Self, CryptError> {
        let sectors = sectors(spec.cipher, spec.mode, key)?;
        let (generator, hash) = (spec.iv_generator, spec.iv_generator_hash);
        let iv = IvMaker::new(generator, hash, spec.cipher, key)?;
        Ok(Self { sectors, iv })
    }

    /// The older AES method of qcow2: AES-128 in CBC mode with plain64 IVs. The key is the password itself, cut or
    /// filled up with zeros to 16 bytes.
    ///
    /// # Errors
    /// None in fact; those of [`SectorCipher::new`].
    pub fn legacy_aes(password: &[u8]) -> Result<Self, CryptError> {
        let mut key = zeroize::Zeroizing::new([0; LEGACY_KEY_BYTES]);
        for (to, from) in key.iter_mut().zip(password) {
            *to = *from;
        }
        let spec = CipherSpec {
            cipher: CipherAlgorithm::Aes128,
            mode: CipherMode::Cbc,
            iv_generator: IvGenerator::Plain64,
            iv_generator_hash: None,
        };
        Self::new(&spec, &*key)
    }

    /// Enciphers `buf` in place; its first 512 bytes are sector number `first`.
    ///
    /// # Errors
    /// [`CryptError::NotWholeSectors`], before anything is done.
    pub fn encrypt(&self, first: u64, buf: &mut [u8]) -> Result<(), CryptError> {
        for (sector, number) in whole(buf)?.iter_mut().zip(first..) {
            self.sectors.encrypt(&self.iv.make(number), sector);
        }
        Ok(())
    }

    /// Deciphers `buf` in place; its first 512 bytes are sector number `first`.
    ///
    /// # Errors
    /// [`CryptError::NotWholeSectors`], before anything is done.
    pub fn decrypt(&self, first: u64, buf: &mut [u8]) -> Result<(), CryptError> {
        for (sector, number) in whole(buf)?.iter_mut().zip(first..) {
            self.sectors.decrypt(&self.iv.make(number), sector);
        }
        Ok(())
    }
}

fn whole(buf: &mut [u8]) -> Result<&mut [[u8; SECTOR]], CryptError> {
    let len = buf.len();
    match buf.as_chunks_mut() {
        (sectors, []) => Ok(sectors),
        _ => Err(CryptError::NotWholeSectors(len)),
    }
}

/// Shows no key.
impl fmt::Debug for SectorCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SectorCipher").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
