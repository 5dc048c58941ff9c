//! Cipher, mode, IV generator and hash names as a header has them.

use crate::error::LuksError;
use instar_crypt::{CipherAlgorithm, CipherMode, HashAlgorithm, IvGenerator};

pub(crate) fn parse_hash(name: &[u8]) -> Result<HashAlgorithm, LuksError> {
    HashAlgorithm::parse(name).ok_or_else(|| LuksError::UnknownHash(name.to_vec()))
}

pub(crate) fn parse_mode(name: &[u8]) -> Result<CipherMode, LuksError> {
    CipherMode::parse(name).ok_or_else(|| LuksError::UnknownCipherMode(name.to_vec()))
}

pub(crate) fn parse_iv_generator(name: &[u8]) -> Result<IvGenerator, LuksError> {
    IvGenerator::parse(name).ok_or_else(|| LuksError::UnknownIvGenerator(name.to_vec()))
}

/// The cipher's name as LUKS writes it, without its key size.
pub(crate) const fn family(cipher: CipherAlgorithm) -> &'static str {
    match cipher {
        CipherAlgorithm::Aes128 | CipherAlgorithm::Aes192 | CipherAlgorithm::Aes256 => "aes",
        CipherAlgorithm::Cast5 => "cast5",
        CipherAlgorithm::Serpent128 | CipherAlgorithm::Serpent192 | CipherAlgorithm::Serpent256 => {
            "serpent"
        }
        CipherAlgorithm::Twofish128 | CipherAlgorithm::Twofish192 | CipherAlgorithm::Twofish256 => {
            "twofish"
        }
    }
}

/// The cipher of a name as LUKS writes it and a key of `key_bytes` bytes.
pub(crate) fn parse_cipher(name: &[u8], key_bytes: u32) -> Result<CipherAlgorithm, LuksError> {
    CipherAlgorithm::ALL
        .iter()
        .copied()
        .find(|one| {
            family(*one).as_bytes() == name && u32::try_from(one.key_bytes()) == Ok(key_bytes)
        })
        .ok_or_else(|| LuksError::UnknownCipher {
            name: name.to_vec(),
            key_bytes: key_bytes.cast_signed(),
        })
}

/// essiv encrypts the sector number with a key that is a digest: the cipher
/// must take a key of that length.
pub(crate) const fn check_essiv(
    cipher: CipherAlgorithm,
    hash: HashAlgorithm,
) -> Result<(), LuksError> {
    let key_bytes = hash.digest_bytes();
    if cipher.with_key_bytes(key_bytes).is_some() {
        return Ok(());
    }
    let family = match cipher {
        CipherAlgorithm::Aes128 | CipherAlgorithm::Aes192 | CipherAlgorithm::Aes256 => "AES",
        CipherAlgorithm::Serpent128 | CipherAlgorithm::Serpent192 | CipherAlgorithm::Serpent256 => {
            "Serpent"
        }
        CipherAlgorithm::Twofish128 | CipherAlgorithm::Twofish192 | CipherAlgorithm::Twofish256 => {
            "Twofish"
        }
        CipherAlgorithm::Cast5 => {
            return Err(LuksError::EssivCipher {
                cipher: cipher.name(),
            });
        }
    };
    Err(LuksError::EssivKeySize { family, key_bytes })
}
