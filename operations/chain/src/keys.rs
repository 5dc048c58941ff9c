//! Keys of encrypted images, for operations that have them.
//!
//! An operation without cryptography opens images with [`NO_KEYS`]; what unlocks is linked into those alone that name
//! it.

use crate::{Reported, fail, read_header, with_data_file};
use core::fmt;
use instar_guest_ops::{Context, Disk};
use instar_qcow2::header::{CryptMethod, OpenError};
use instar_qcow2::{Header, OpenMode};
use instar_shared::control::FileAccess;
use instar_storage::Cipher;

/// A qcow2 image that is being opened.
#[derive(Debug)]
pub struct Image<'a> {
    /// Its file.
    pub disk: &'a Disk,
    /// Its header.
    pub header: &'a Header,
}

/// The user says of an image that it is encrypted in another way than it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OtherEncryption {
    /// It is encrypted.
    #[error("Header reported '{0}' encryption format but options specify '{1}'")]
    Reported(&'static str, &'static str),
    /// It is not.
    #[error("No encryption in image header, but options specified format '{0}'")]
    None(&'static str),
}

/// Compares how an image is encrypted with what the user says, as qcow2 numbers it; 0: nothing.
///
/// # Errors
/// It is not so.
pub const fn judge_encryption(said: u16, found: CryptMethod) -> Result<(), OtherEncryption> {
    let said = match (said, found) {
        (1, CryptMethod::Luks) => return Err(OtherEncryption::Reported("luks", "aes")),
        (2, CryptMethod::Aes) => return Err(OtherEncryption::Reported("aes", "luks")),
        (1, CryptMethod::None) => "aes",
        (2, CryptMethod::None) => "luks",
        _ => return Ok(()),
    };
    Err(OtherEncryption::None(said))
}

/// Whatever has keys.
pub trait Keys {
    /// Reads the header of an image whose data is read or written. Without keys no LUKS header is looked at, so that
    /// what judges one is not linked.
    ///
    /// # Errors
    /// The image cannot be opened: the record that says so has been sent.
    fn header(&self, ctx: &mut Context, disk: &Disk) -> Result<Header, Reported>;

    /// The cipher of the data of an image, which is `depth` below the one that the user named for slot
    /// `input`. `None`: it is not encrypted, or the data is not needed.
    ///
    /// # Errors
    /// There is no key, or it does not fit: the record that says so has been sent.
    fn cipher(
        &self,
        ctx: &mut Context,
        image: &Image<'_>,
        input: u16,
        depth: u16,
    ) -> Result<Option<&'static dyn Cipher>, Reported>;
}

/// Of no use in an operation: it would be linked into those without keys.
impl fmt::Debug for dyn Keys + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

/// No keys: encrypted images are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoKeys;

impl Keys for NoKeys {
    fn header(&self, ctx: &mut Context, disk: &Disk) -> Result<Header, Reported> {
        read_header(ctx, disk, OpenMode::Keyless)
    }

    fn cipher(
        &self,
        ctx: &mut Context,
        image: &Image<'_>,
        _input: u16,
        _depth: u16,
    ) -> Result<Option<&'static dyn Cipher>, Reported> {
        if image.header.crypt_method == CryptMethod::None {
            return Ok(None);
        }
        let reason = format_args!("{}", OpenError::KeyRequired);
        Err(fail(ctx, image.disk.slot(), reason))
    }
}

/// Whose keys are asked for: those of an image of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Unlock<'k> {
    keys: &'k dyn Keys,
    input: u16,
    depth: u16,
}

/// No image of any chain has a key.
pub const NO_KEYS: Unlock<'static> = Unlock::of(&NoKeys, 0);

impl<'k> Unlock<'k> {
    /// The keys of the image that the user named for slot `input`.
    #[must_use]
    pub const fn of(keys: &'k dyn Keys, input: u16) -> Self {
        Self {
            keys,
            input,
            depth: 0,
        }
    }

    /// The slot of the image that the user named.
    #[must_use]
    pub const fn input(&self) -> u16 {
        self.input
    }

    /// Opens a qcow2 image for its data: its header, and its external data file if it has one.
    ///
    /// # Errors
    /// The image's damage, or the host's refusal of the data file.
    pub fn open_qcow2(
        &self,
        ctx: &mut Context,
        disk: &Disk,
        access: FileAccess,
    ) -> Result<(Header, Option<Disk>), Reported> {
        let header = self.keys.header(ctx, disk)?;
        with_data_file(ctx, disk, header, access)
    }

    /// Goes on to the keys of the image below.
    pub const fn descend(&mut self) {
        self.depth = self.depth.saturating_add(1);
    }

    /// The cipher of the image's data, if that is encrypted and is needed.
    ///
    /// # Errors
    /// There is no key, or it does not fit: the record that says so has been sent.
    pub fn cipher(
        &self,
        ctx: &mut Context,
        image: &Image<'_>,
    ) -> Result<Option<&'static dyn Cipher>, Reported> {
        self.keys.cipher(ctx, image, self.input, self.depth)
    }
}
