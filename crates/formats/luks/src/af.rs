//! Anti-forensic stripes. LUKS1 "2.4 Anti-forensic splitter".
//!
//! A key is stored as 4000 stripes of its own length, all of which are needed to have it back, so that losing a
//! few bytes of them loses the key.

use crate::header::STRIPES;
use crate::volume::MasterKey;
use instar_crypt::{HashAlgorithm, Random, digest};

/// The key that the stripes hold; each has `key_bytes` bytes.
pub(crate) fn merge(hash: HashAlgorithm, key_bytes: usize, stripes: &[u8]) -> MasterKey {
    let mut key = MasterKey::zeros(key_bytes);
    let last = (STRIPES as usize).saturating_sub(1);
    for (index, stripe) in stripes
        .chunks_exact(key_bytes.max(1))
        .take(STRIPES as usize)
        .enumerate()
    {
        add(key.bytes_mut(), stripe);
        if index < last {
            diffuse(hash, key.bytes_mut());
        }
    }
    key
}

/// Fills `stripes`, 4000 times the key's length, so that they hold the key.
pub(crate) fn split(hash: HashAlgorithm, key: &MasterKey, random: &mut Random, stripes: &mut [u8]) {
    let mut sum = MasterKey::zeros(key.as_bytes().len());
    let last = (STRIPES as usize).saturating_sub(1);
    let stripes = stripes.chunks_exact_mut(key.as_bytes().len().max(1));
    for (index, stripe) in stripes.take(STRIPES as usize).enumerate() {
        if index < last {
            random.fill(stripe);
            add(sum.bytes_mut(), stripe);
            diffuse(hash, sum.bytes_mut());
        } else {
            stripe.copy_from_slice(sum.as_bytes());
            add(stripe, key.as_bytes());
        }
    }
}

fn add(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to ^= from;
    }
}

/// Each digest-sized piece becomes the digest of its number and itself.
fn diffuse(hash: HashAlgorithm, block: &mut [u8]) {
    for (piece, number) in block.chunks_mut(hash.digest_bytes()).zip(0_u32..) {
        let digest = digest(hash, &[&number.to_be_bytes(), piece]);
        for (to, from) in piece.iter_mut().zip(digest.as_bytes()) {
            *to = *from;
        }
    }
}
