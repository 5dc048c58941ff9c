//! Keys and salts from a seed.

use cipher::{KeyIvInit, StreamCipherCore};
use core::fmt;
use ctr::CtrCore;
use ctr::flavors::Ctr128BE;

/// Bytes of a seed.
pub const SEED_BYTES: usize = 48;

/// Random bytes: the key stream of AES-256 in counter mode, keyed with a seed that must be unpredictable and used
/// once. The key is overwritten when this is dropped.
pub struct Random(CtrCore<aes::Aes256, Ctr128BE>);

impl Random {
    /// From 48 bytes of the host's entropy: a key, and where the counter starts.
    #[must_use]
    pub fn from_seed(seed: &[u8; SEED_BYTES]) -> Self {
        let mut key = cipher::Key::<aes::Aes256>::default();
        let mut counter = cipher::Block::<aes::Aes256>::default();
        for (to, from) in key.iter_mut().chain(counter.iter_mut()).zip(seed) {
            *to = *from;
        }
        let made = Self(CtrCore::new(&key, &counter));
        zeroize::Zeroize::zeroize(key.as_mut_slice());
        made
    }

    /// Fills `out`; what is left of the last block of 16 bytes is thrown away.
    pub fn fill(&mut self, out: &mut [u8]) {
        for part in out.chunks_mut(16) {
            let mut block = cipher::Block::<aes::Aes256>::default();
            self.0.write_keystream_block(&mut block);
            for (to, from) in part.iter_mut().zip(&block) {
                *to = *from;
            }
        }
    }
}

/// Shows no state.
impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Random").finish_non_exhaustive()
    }
}
