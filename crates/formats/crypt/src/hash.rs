//! Digests and PBKDF2, by the hash's name.

use crate::names::HashAlgorithm;
use zeroize::Zeroize;

/// Bytes of the longest digest.
const MAX_DIGEST_BYTES: usize = 64;

/// A digest; overwritten when dropped, since digests of keys are keys.
#[derive(Clone)]
pub struct Digest {
    bytes: [u8; MAX_DIGEST_BYTES],
    len: usize,
}

impl Digest {
    /// The bytes, as many as the hash gives.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn of<H: hmac::digest::Digest>(parts: &[&[u8]]) -> Self {
        let mut hash = H::new();
        for part in parts {
            hash.update(part);
        }
        let mut bytes = [0; MAX_DIGEST_BYTES];
        let mut out = hash.finalize();
        let len = out.len().min(MAX_DIGEST_BYTES);
        for (to, from) in bytes.iter_mut().zip(out.iter()) {
            *to = *from;
        }
        out.as_mut_slice().zeroize();
        Self { bytes, len }
    }
}

impl Drop for Digest {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

/// Calls a generic function with the type of a hash.
macro_rules! with_hash {
    ($hash:expr, $H:ident => $call:expr) => {
        match $hash {
            HashAlgorithm::Md5 => {
                type $H = md5::Md5;
                $call
            }
            HashAlgorithm::Sha1 => {
                type $H = sha1::Sha1;
                $call
            }
            HashAlgorithm::Sha224 => {
                type $H = sha2::Sha224;
                $call
            }
            HashAlgorithm::Sha256 => {
                type $H = sha2::Sha256;
                $call
            }
            HashAlgorithm::Sha384 => {
                type $H = sha2::Sha384;
                $call
            }
            HashAlgorithm::Sha512 => {
                type $H = sha2::Sha512;
                $call
            }
            HashAlgorithm::Ripemd160 => {
                type $H = ripemd::Ripemd160;
                $call
            }
            HashAlgorithm::Sm3 => {
                type $H = sm3::Sm3;
                $call
            }
        }
    };
}

/// The digest of the parts, one after the other.
#[must_use]
pub fn digest(hash: HashAlgorithm, parts: &[&[u8]]) -> Digest {
    with_hash!(hash, H => Digest::of::<H>(parts))
}

/// PBKDF2 with HMAC of that hash; `out` may have any length.
pub fn pbkdf2(hash: HashAlgorithm, password: &[u8], salt: &[u8], iterations: u32, out: &mut [u8]) {
    with_hash!(hash, H => pbkdf2::pbkdf2_hmac::<H>(password, salt, iterations, out));
}

#[cfg(test)]
mod tests;
