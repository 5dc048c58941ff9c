//! The options `encrypt.*` of a new image, as QEMU judges them.

use super::options::NewOptions;
use instar_shared::encrypt::{
    ENCRYPT_HAS_SECRET, EncryptMethod, MAX_ALGORITHM_BYTES, NO_SECRET, NewEncryption,
};
use instar_shared::record::{Failure, FailureKind};
use instar_shared::zerocopy::FromBytes;

/// Time for a password's key where it is not given, in milliseconds.
const ITER_TIME_MS: u64 = 2000;
/// What begins the names of these options.
const PREFIX: &str = "encrypt.";

/// Options with names of algorithms, in the order in which QEMU looks at them, and the names that it knows.
const ALGORITHMS: [(&str, &[&str]); 5] = [
    ("cipher-alg", &CIPHERS),
    ("cipher-mode", &["ecb", "cbc", "xts", "ctr"]),
    ("ivgen-alg", &["plain", "plain64", "essiv"]),
    ("ivgen-hash-alg", &HASHES),
    ("hash-alg", &HASHES),
];
/// Some of them it has no code for, which is said by the operation.
const CIPHERS: [&str; 13] = [
    "aes-128",
    "aes-192",
    "aes-256",
    "des",
    "3des",
    "cast5-128",
    "serpent-128",
    "serpent-192",
    "serpent-256",
    "twofish-128",
    "twofish-192",
    "twofish-256",
    "sm4",
];
const HASHES: [&str; 8] = [
    "md5",
    "sha1",
    "sha224",
    "sha256",
    "sha384",
    "sha512",
    "ripemd160",
    "sm3",
];
/// What the older AES method does not take, in the order in which QEMU says so.
const NOT_OF_AES: [&str; 6] = [
    "cipher-alg",
    "iter-time",
    "cipher-mode",
    "ivgen-alg",
    "hash-alg",
    "ivgen-hash-alg",
];

/// How the data of a new image is to be encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encryption {
    wire: NewEncryption,
    /// The secret that it is named to have.
    pub key_secret: Option<Vec<u8>>,
}

impl Encryption {
    /// What the options of a new image ask for; nothing if it is not to be encrypted.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn of_new(options: &NewOptions) -> Result<Option<Self>, String> {
        match text(options, "format") {
            Some(b"aes" | b"qcow") => aes(options).map(Some),
            Some(b"luks") => Self::luks(options, PREFIX).map(Some),
            Some(other) => Err(refused("format", other)),
            None if options.number("encryption") == Some(1) => aes(options).map(Some),
            None if given(options) => Err("Parameter 'encrypt.format' is missing".into()),
            None => Ok(None),
        }
    }

    /// Why the options name the method twice, if they do.
    #[must_use]
    pub fn named_twice(options: &NewOptions) -> Option<String> {
        let twice = options.number("encryption") == Some(1) && text(options, "format").is_some();
        twice.then(|| {
            "'encrypt.format' and its alias 'encryption' can't be used at the same time".into()
        })
    }

    /// Whether the options name a method, whatever it is.
    #[must_use]
    pub fn is_named(options: &NewOptions) -> bool {
        options.number("encryption") == Some(1) || text(options, "format").is_some()
    }

    /// What counts of the options for the length of a new image: only LUKS does.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn of_measured(options: &NewOptions) -> Result<Option<Self>, String> {
        match text(options, "format") {
            Some(b"luks") => Self::luks(options, "").map(Some),
            _ => Ok(None),
        }
    }

    /// LUKS; `prefix` stands before the names of numbers that are none.
    fn luks(options: &NewOptions, prefix: &str) -> Result<Self, String> {
        let mut wire = NewEncryption::zeroed();
        wire.method.set(EncryptMethod::Luks.raw());
        for (name, known) in ALGORITHMS {
            let Some(value) = text(options, name) else {
                continue;
            };
            if !known.iter().any(|known| known.as_bytes() == value) {
                return Err(refused(name, value));
            }
            let field = match name {
                "cipher-alg" => &mut wire.cipher,
                "cipher-mode" => &mut wire.mode,
                "ivgen-alg" => &mut wire.iv_generator,
                "ivgen-hash-alg" => &mut wire.iv_generator_hash,
                _ => &mut wire.hash,
            };
            fill(field, value);
        }
        let time = options.number("encrypt.iter-time");
        if time.is_some() && !text(options, "iter-time").is_some_and(is_signed) {
            return Err(format!("Parameter '{prefix}iter-time' expects integer"));
        }
        wire.iter_time_ms.set(time.unwrap_or(ITER_TIME_MS));
        Ok(Self {
            wire,
            key_secret: text(options, "key-secret").map(<[u8]>::to_vec),
        })
    }

    /// The encryption for an operation, with a secret or without.
    #[must_use]
    pub fn wire(&self, has_secret: bool) -> NewEncryption {
        let mut wire = self.wire;
        wire.flags
            .set(if has_secret { ENCRYPT_HAS_SECRET } else { 0 });
        wire
    }
}

fn aes(options: &NewOptions) -> Result<Encryption, String> {
    let unexpected = NOT_OF_AES.iter().find(|name| text(options, name).is_some());
    if let Some(name) = unexpected {
        return Err(format!("Parameter '{PREFIX}{name}' is unexpected"));
    }
    let mut wire = NewEncryption::zeroed();
    wire.method.set(EncryptMethod::Aes.raw());
    Ok(Encryption {
        wire,
        key_secret: text(options, "key-secret").map(<[u8]>::to_vec),
    })
}

/// The text of an option, by its name after the prefix.
fn text<'o>(options: &'o NewOptions, name: &str) -> Option<&'o [u8]> {
    options.text(&[PREFIX, name].concat())
}

/// Whether any of them is given.
fn given(options: &NewOptions) -> bool {
    let others = ["key-secret", "iter-time"];
    let names = ALGORITHMS.iter().map(|known| known.0).chain(others);
    names.into_iter().any(|name| text(options, name).is_some())
}

fn refused(name: &str, value: &[u8]) -> String {
    let value = String::from_utf8_lossy(value);
    format!("Parameter '{name}' does not accept value '{value}'")
}

/// Whether a number that was read is one of 63 bits and a sign.
#[must_use]
pub fn is_signed(text: &[u8]) -> bool {
    let minus = text.trim_ascii_start().starts_with(b"-");
    let number = crate::quantity::number(text).unwrap_or(u64::MAX);
    let magnitude = if minus { number.wrapping_neg() } else { number };
    magnitude <= i64::MAX.unsigned_abs() + u64::from(minus)
}

fn fill(field: &mut [u8; MAX_ALGORITHM_BYTES], value: &[u8]) {
    for (to, from) in field.iter_mut().zip(value) {
        *to = *from;
    }
}

/// A failure record whose sentence says that there is no password, reworded: one was named, or what it is for cannot
/// be. The guest cannot tell.
#[must_use]
pub fn reworded(payload: &[u8], sentence: Option<&str>) -> Option<Vec<u8>> {
    let (head, text) = Failure::read_from_prefix(payload).ok()?;
    if head.kind.get() != FailureKind::Operation.raw() {
        return None;
    }
    let before = text.strip_suffix(NO_SECRET.as_bytes())?;
    let head = payload.get(..payload.len().checked_sub(text.len())?)?;
    Some([head, before, sentence?.as_bytes()].concat())
}
