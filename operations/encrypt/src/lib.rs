//! Keys of new images: the operations that encrypt pass [`Keyed`] to the libraries that they share with those that
//! do not.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod clock;
mod names;

pub use clock::Ticks;
pub use names::{Algorithms, encryption};

use alloc::boxed::Box;
use alloc::string::ToString;
use instar_crypt::{Counted, ImageCipher, Random, SEED_BYTES, SectorCipher};
use instar_guest_ops::Context;
use instar_luks::{KeyError, NewVolume, check_spec, create, iterations};
use instar_plan_create::{CreateError, Encryption};
use instar_shared::encrypt::{NO_SECRET, NewEncryption};
use instar_shared::secret::SecretRole;
use instar_storage::{Cipher, StorageMut};
use op_output::Encrypt;

/// Microseconds in a millisecond.
const US_PER_MS: u64 = 1000;
/// Bytes of the master key's digest: LUKS1 "PHDR".
const DIGEST_BYTES: usize = 20;
/// QEMU: the master key's digest takes an eighth of the time that a key slot takes.
const DIGEST_PART: u64 = 8;

/// Encrypts new images with the secrets that the host gives.
#[derive(Clone, Copy, Debug)]
pub struct Keyed;

impl Encrypt for Keyed {
    fn encryption(&self, given: &NewEncryption) -> Encryption {
        encryption(given)
    }

    fn check(
        &self,
        ctx: &mut Context,
        given: &NewEncryption,
        slot: u16,
    ) -> Result<(), CreateError> {
        let encryption = encryption(given);
        if encryption == Encryption::None {
            return Ok(());
        }
        if !ctx.has_secret(slot, 0, SecretRole::New) {
            return Err(no_secret());
        }
        match encryption {
            Encryption::Luks { .. } => check(given),
            Encryption::Aes | Encryption::None => Ok(()),
        }
    }

    fn key(
        &self,
        ctx: &mut Context,
        given: &NewEncryption,
        slot: u16,
        image: &dyn StorageMut,
        area: Option<(u64, u64)>,
    ) -> Result<Option<&'static dyn Cipher>, CreateError> {
        if encryption(given) == Encryption::None {
            return Ok(None);
        }
        let secret = ctx.secret(slot, 0, SecretRole::New);
        let secret = secret.ok_or_else(no_secret)?;
        let cipher = match area {
            None => {
                let cipher = SectorCipher::legacy_aes(&secret);
                let cipher = cipher.map_err(|e| CreateError::Encryption(e.to_string()))?;
                ImageCipher::new(cipher, Counted::ByGuest)
            }
            Some((offset, _)) => {
                let cipher = luks(ctx, given, image, offset, &secret).map_err(worded)?;
                ImageCipher::new(cipher, Counted::ByHost)
            }
        };
        // It is of use until the machine ends, whose memory nobody else gets.
        Ok(Some(Box::leak(Box::new(cipher))))
    }
}

/// Refuses a LUKS volume that cannot be made.
///
/// # Errors
/// Names without an algorithm, or algorithms that do not fit each other.
pub fn check(given: &NewEncryption) -> Result<(), CreateError> {
    let algorithms = Algorithms::new(given)?;
    check_spec(&algorithms.spec).map_err(worded)
}

/// What is said where there is no password. The host knows whether one was named.
#[must_use]
pub fn no_secret() -> CreateError {
    CreateError::Encryption(NO_SECRET.into())
}

/// Makes a LUKS volume; gives the cipher of its payload.
fn luks(
    ctx: &mut Context,
    given: &NewEncryption,
    image: &dyn StorageMut,
    offset: u64,
    password: &[u8],
) -> Result<SectorCipher, KeyError> {
    let Algorithms { spec, hash } = Algorithms::new(given).map_err(|_| KeyError::OutOfMemory)?;
    let time_us = given.iter_time_ms.get().saturating_mul(US_PER_MS);
    let clock = Ticks(ctx);
    let key_bytes = spec.cipher.master_key_bytes(spec.mode);
    let new = NewVolume {
        spec,
        hash,
        slot_iterations: iterations(hash, key_bytes, time_us, &clock)?,
        master_key_iterations: iterations(hash, DIGEST_BYTES, time_us / DIGEST_PART, &clock)?,
    };
    let mut random = random(ctx);
    let (volume, key) = create(&image, offset, &new, password, &mut random)?;
    volume.cipher(&key)
}

/// Random bytes of this run: the host refuses to start without entropy.
#[must_use]
pub fn random(ctx: &Context) -> Random {
    let entropy = &ctx.boot().entropy;
    let mut seed = [0; SEED_BYTES];
    for (to, from) in seed.iter_mut().zip(entropy) {
        *to = *from;
    }
    Random::from_seed(&seed)
}

fn worded(error: KeyError) -> CreateError {
    match error {
        KeyError::Storage(e) => CreateError::Storage(e),
        KeyError::OutOfMemory => CreateError::OutOfMemory,
        e => CreateError::Encryption(e.to_string()),
    }
}
