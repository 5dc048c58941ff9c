//! The names of a new image's cipher.

use alloc::format;
use instar_luks::{
    CipherAlgorithm, CipherMode, CipherSpec, HashAlgorithm, IvGenerator, payload_offset,
};
use instar_plan_create::{CreateError, Encryption};
use instar_shared::encrypt::{EncryptMethod, NewEncryption};

/// What a LUKS volume is made with.
#[derive(Clone, Copy, Debug)]
pub struct Algorithms {
    /// How its payload is encrypted.
    pub spec: CipherSpec,
    /// Hash of key derivation and stripes.
    pub hash: HashAlgorithm,
}

impl Algorithms {
    /// From their names; QEMU's defaults for those that are left out.
    ///
    /// # Errors
    /// A name that QEMU knows and has no code for.
    pub fn new(given: &NewEncryption) -> Result<Self, CreateError> {
        let hash = |name| named(name, HashAlgorithm::parse, HashAlgorithm::Sha256);
        let cipher = named(
            &given.cipher,
            CipherAlgorithm::parse,
            CipherAlgorithm::Aes256,
        )?;
        let mode = named(&given.mode, CipherMode::parse, CipherMode::Xts)?;
        let generator = named(
            &given.iv_generator,
            IvGenerator::parse,
            IvGenerator::Plain64,
        )?;
        // Only essiv has a hash that it is not given; QEMU notes one in any case.
        let has_hash =
            generator == IvGenerator::Essiv || !text(&given.iv_generator_hash).is_empty();
        let spec = CipherSpec {
            cipher,
            mode,
            iv_generator: generator,
            iv_generator_hash: has_hash
                .then(|| hash(&given.iv_generator_hash))
                .transpose()?,
        };
        let hash = hash(&given.hash)?;
        Ok(Self { spec, hash })
    }
}

/// What the header of a new image says of its encryption. Of a cipher that there is not, that it takes no room.
#[must_use]
pub fn encryption(given: &NewEncryption) -> Encryption {
    match EncryptMethod::try_from(given.method.get()) {
        Ok(EncryptMethod::None) | Err(_) => Encryption::None,
        Ok(EncryptMethod::Aes) => Encryption::Aes,
        Ok(EncryptMethod::Luks) => Encryption::Luks {
            header_bytes: Algorithms::new(given).map_or(0, |these| payload_offset(&these.spec)),
        },
    }
}

/// The part of a field that is in use.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0);
    field.get(..end.unwrap_or(field.len())).unwrap_or(field)
}

/// The one of that name.
fn named<T>(field: &[u8], parse: fn(&[u8]) -> Option<T>, default: T) -> Result<T, CreateError> {
    let name = text(field);
    if name.is_empty() {
        return Ok(default);
    }
    parse(name).ok_or_else(|| {
        let name = str::from_utf8(name).unwrap_or_default();
        CreateError::Encryption(format!("Algorithm '{name}' not supported"))
    })
}
