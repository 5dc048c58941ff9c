//! Who encrypts new images, if anybody does.
//!
//! The operations come in two forms, with ciphers and without. What they have in common is given an [`Encrypt`], so
//! that the form without carries none.

use alloc::string::String;
use instar_guest_ops::Context;
use instar_plan_create::{CreateError, Encryption};
use instar_shared::encrypt::{NO_SECRET, NewEncryption};
use instar_storage::{Cipher, StorageMut};

/// Encrypts new images.
pub trait Encrypt {
    /// What the header says of it.
    fn encryption(&self, given: &NewEncryption) -> Encryption;

    /// Refuses what cannot be made for the image in `slot`, before anything is written.
    ///
    /// # Errors
    /// [`CreateError::Encryption`].
    fn check(&self, ctx: &mut Context, given: &NewEncryption, slot: u16)
    -> Result<(), CreateError>;

    /// Makes the key of the image in `slot`, and writes it to `area` of the file if it is stored there: first byte
    /// and bytes. Gives the cipher of the image's data if that is encrypted.
    ///
    /// # Errors
    /// [`CreateError::Encryption`]; the store's.
    fn key(
        &self,
        ctx: &mut Context,
        given: &NewEncryption,
        slot: u16,
        image: &dyn StorageMut,
        area: Option<(u64, u64)>,
    ) -> Result<Option<&'static dyn Cipher>, CreateError>;
}

/// Encrypts nothing: the host starts programs with ciphers where there are secrets.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

impl Encrypt for Plain {
    fn encryption(&self, _given: &NewEncryption) -> Encryption {
        Encryption::None
    }

    fn check(
        &self,
        _ctx: &mut Context,
        given: &NewEncryption,
        _slot: u16,
    ) -> Result<(), CreateError> {
        if given.method.get() == 0 {
            return Ok(());
        }
        Err(CreateError::Encryption(String::from(NO_SECRET)))
    }

    fn key(
        &self,
        _ctx: &mut Context,
        _given: &NewEncryption,
        _slot: u16,
        _image: &dyn StorageMut,
        _area: Option<(u64, u64)>,
    ) -> Result<Option<&'static dyn Cipher>, CreateError> {
        Ok(None)
    }
}
