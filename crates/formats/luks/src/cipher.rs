//! Cipher, mode, IV generator and hash names.

use crate::error::LuksError;

macro_rules! named {
    ($(#[$m:meta])* $name:ident { $($(#[$vm:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$vm])* $variant),+ }

        impl $name {
            /// Every variant.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// As `qemu-img` names it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
    };
}

named! {
    /// A block cipher with its key size.
    CipherAlgorithm {
        /// AES, 128-bit key.
        Aes128 = "aes-128",
        /// AES, 192-bit key.
        Aes192 = "aes-192",
        /// AES, 256-bit key.
        Aes256 = "aes-256",
        /// CAST5, 128-bit key.
        Cast5 = "cast5-128",
        /// Serpent, 128-bit key.
        Serpent128 = "serpent-128",
        /// Serpent, 192-bit key.
        Serpent192 = "serpent-192",
        /// Serpent, 256-bit key.
        Serpent256 = "serpent-256",
        /// Twofish, 128-bit key.
        Twofish128 = "twofish-128",
        /// Twofish, 192-bit key.
        Twofish192 = "twofish-192",
        /// Twofish, 256-bit key.
        Twofish256 = "twofish-256",
    }
}
named! {
    /// How the cipher is applied to a sector.
    CipherMode {
        /// Electronic code book.
        Ecb = "ecb",
        /// Cipher block chaining.
        Cbc = "cbc",
        /// XEX with ciphertext stealing; the master key is two keys.
        Xts = "xts",
        /// Counter.
        Ctr = "ctr",
    }
}
named! {
    /// How a sector's IV is made.
    IvGenerator {
        /// The sector number, 32 bits.
        Plain = "plain",
        /// The sector number, 64 bits.
        Plain64 = "plain64",
        /// The sector number, encrypted with a hash of the key.
        Essiv = "essiv",
    }
}
named! {
    /// A hash.
    HashAlgorithm {
        /// MD5.
        Md5 = "md5",
        /// SHA-1.
        Sha1 = "sha1",
        /// SHA-224.
        Sha224 = "sha224",
        /// SHA-256.
        Sha256 = "sha256",
        /// SHA-384.
        Sha384 = "sha384",
        /// SHA-512.
        Sha512 = "sha512",
        /// RIPEMD-160.
        Ripemd160 = "ripemd160",
        /// SM3.
        Sm3 = "sm3",
    }
}

impl HashAlgorithm {
    /// Bytes of the digest.
    pub const fn digest_bytes(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 | Self::Ripemd160 => 20,
            Self::Sha224 => 28,
            Self::Sha256 | Self::Sm3 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    pub(crate) fn parse(name: &[u8]) -> Result<Self, LuksError> {
        Self::ALL
            .iter()
            .copied()
            .find(|hash| hash.name().as_bytes() == name)
            .ok_or_else(|| LuksError::UnknownHash(name.to_vec()))
    }
}

impl CipherMode {
    pub(crate) fn parse(name: &[u8]) -> Result<Self, LuksError> {
        Self::ALL
            .iter()
            .copied()
            .find(|mode| mode.name().as_bytes() == name)
            .ok_or_else(|| LuksError::UnknownCipherMode(name.to_vec()))
    }
}

impl IvGenerator {
    pub(crate) fn parse(name: &[u8]) -> Result<Self, LuksError> {
        Self::ALL
            .iter()
            .copied()
            .find(|generator| generator.name().as_bytes() == name)
            .ok_or_else(|| LuksError::UnknownIvGenerator(name.to_vec()))
    }
}

impl CipherAlgorithm {
    /// The cipher of a name as LUKS writes it and a key of `key_bytes` bytes.
    pub(crate) fn parse(name: &[u8], key_bytes: u32) -> Result<Self, LuksError> {
        Ok(match (name, key_bytes) {
            (b"aes", 16) => Self::Aes128,
            (b"aes", 24) => Self::Aes192,
            (b"aes", 32) => Self::Aes256,
            (b"cast5", 16) => Self::Cast5,
            (b"serpent", 16) => Self::Serpent128,
            (b"serpent", 24) => Self::Serpent192,
            (b"serpent", 32) => Self::Serpent256,
            (b"twofish", 16) => Self::Twofish128,
            (b"twofish", 24) => Self::Twofish192,
            (b"twofish", 32) => Self::Twofish256,
            _ => {
                let key_bytes = key_bytes.cast_signed();
                return Err(LuksError::UnknownCipher {
                    name: name.to_vec(),
                    key_bytes,
                });
            }
        })
    }

    /// essiv encrypts the sector number with a key that is a digest: the cipher
    /// must take a key of that length.
    pub(crate) const fn check_essiv(self, hash: HashAlgorithm) -> Result<(), LuksError> {
        let key_bytes = hash.digest_bytes();
        let family = match self {
            Self::Aes128 | Self::Aes192 | Self::Aes256 => "AES",
            Self::Serpent128 | Self::Serpent192 | Self::Serpent256 => "Serpent",
            Self::Twofish128 | Self::Twofish192 | Self::Twofish256 => "Twofish",
            Self::Cast5 if key_bytes == 16 => return Ok(()),
            Self::Cast5 => {
                return Err(LuksError::EssivCipher {
                    cipher: self.name(),
                });
            }
        };
        match key_bytes {
            16 | 24 | 32 => Ok(()),
            _ => Err(LuksError::EssivKeySize { family, key_bytes }),
        }
    }
}
