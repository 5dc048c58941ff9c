//! The IV of each sector.

use crate::CryptError;
use crate::hash::digest;
use crate::modes::{OneBlock, one_block};
use crate::names::{CipherAlgorithm, HashAlgorithm, IvGenerator};
use alloc::boxed::Box;

/// Room for an IV; ciphers with shorter blocks use its beginning.
pub(crate) type Iv = [u8; 16];

/// Makes IVs of sector numbers.
pub(crate) enum IvMaker {
    /// The low 32 bits, little-endian.
    Plain,
    /// 64 bits, little-endian.
    Plain64,
    /// 64 bits, little-endian, enciphered with a digest of the key.
    Essiv(Box<dyn OneBlock>),
}

impl IvMaker {
    /// The maker for a key.
    pub(crate) fn new(
        generator: IvGenerator,
        hash: Option<HashAlgorithm>,
        cipher: CipherAlgorithm,
        key: &[u8],
    ) -> Result<Self, CryptError> {
        Ok(match generator {
            IvGenerator::Plain => Self::Plain,
            IvGenerator::Plain64 => Self::Plain64,
            IvGenerator::Essiv => {
                let hash = hash.ok_or(CryptError::EssivHashMissing)?;
                let refused = CryptError::Essiv { cipher, hash };
                let cipher = cipher.with_key_bytes(hash.digest_bytes()).ok_or(refused)?;
                Self::Essiv(one_block(cipher, digest(hash, &[key]).as_bytes())?)
            }
        })
    }

    /// The IV of a sector.
    pub(crate) fn make(&self, sector: u64) -> Iv {
        let number = match self {
            Self::Plain => sector & u64::from(u32::MAX),
            Self::Plain64 | Self::Essiv(_) => sector,
        };
        let mut iv = u128::from(number).to_le_bytes();
        if let Self::Essiv(cipher) = self {
            cipher.encrypt(&mut iv);
        }
        iv
    }
}
