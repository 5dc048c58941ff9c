//! Keys of encrypted images from the secrets that the user gives, for the operations that decipher.
//!
//! An operation that names [`SecretKeys`] carries all ciphers. The others open images with `op_chain::NoKeys`.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

use alloc::boxed::Box;
use instar_crypt::{Counted, ImageCipher, SectorCipher};
use instar_guest_ops::{Context, Disk};
use instar_luks::{KeyError, LuksVolume};
use instar_qcow2::header::CryptMethod;
use instar_qcow2::{Header, OpenMode};
use instar_shared::secret::SecretRole;
use instar_storage::Cipher;
use op_chain::{Image, Keys, NoKeys, Reported, fail, judge_encryption, read_header};

/// The secrets in the secret region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecretKeys;

impl Keys for SecretKeys {
    fn header(&self, ctx: &mut Context, disk: &Disk) -> Result<Header, Reported> {
        read_header(ctx, disk, OpenMode::Change)
    }

    fn cipher(
        &self,
        ctx: &mut Context,
        image: &Image<'_>,
        input: u16,
        depth: u16,
    ) -> Result<Option<&'static dyn Cipher>, Reported> {
        let method = image.header.crypt_method;
        let said = judge_encryption(image.disk.said_encryption(), method);
        said.map_err(|error| fail(ctx, image.disk.slot(), format_args!("{error}")))?;
        if method == CryptMethod::None {
            return Ok(None);
        }
        let Some(secret) = ctx.secret(input, depth.into(), SecretRole::Open) else {
            return NoKeys.cipher(ctx, image, input, depth);
        };
        match unlock(image, &secret) {
            Ok(cipher) => Ok(Some(Box::leak(Box::new(cipher)))),
            Err(error) => Err(fail(ctx, image.disk.slot(), format_args!("{error}"))),
        }
    }
}

/// The cipher of the image's data. Of LUKS, this takes as long as whoever made the password wanted it to.
///
/// # Errors
/// The password opens no key slot, or the LUKS header is damaged.
pub fn unlock(image: &Image<'_>, password: &[u8]) -> Result<ImageCipher, KeyError> {
    if image.header.crypt_method == CryptMethod::Aes {
        let cipher = SectorCipher::legacy_aes(password)?;
        return Ok(ImageCipher::new(cipher, Counted::ByGuest));
    }
    let volume = read_volume(image)?;
    let key = volume.unlock(image.disk, password)?;
    let cipher = volume.cipher(&key)?;
    Ok(ImageCipher::new(cipher, Counted::ByHost))
}

/// The LUKS header of an image.
///
/// # Errors
/// It is damaged, or there is none.
pub fn read_volume(image: &Image<'_>) -> Result<LuksVolume, KeyError> {
    // An image without the extension has no room for the header either.
    let place = image.header.extensions.crypto_header;
    let (offset, room) = place.map_or((0, 0), |place| (place.offset.get(), place.length));
    Ok(LuksVolume::read(image.disk, offset, room)?)
}
