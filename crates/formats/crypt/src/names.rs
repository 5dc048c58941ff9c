//! Cipher, mode, IV generator and hash names.

macro_rules! named {
    ($(#[$m:meta])* $name:ident { $($(#[$vm:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$vm])* $variant),+ }

        impl $name {
            /// Every variant.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// As `qemu-img` names it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// The one of that name.
            #[must_use]
            pub fn parse(name: &[u8]) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.name().as_bytes() == name)
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
    #[must_use]
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
}

impl CipherAlgorithm {
    /// Bytes of the cipher's key; a mode may need two of them ([`Self::master_key_bytes`]).
    #[must_use]
    pub const fn key_bytes(self) -> usize {
        match self {
            Self::Aes128 | Self::Cast5 | Self::Serpent128 | Self::Twofish128 => 16,
            Self::Aes192 | Self::Serpent192 | Self::Twofish192 => 24,
            Self::Aes256 | Self::Serpent256 | Self::Twofish256 => 32,
        }
    }

    /// Bytes of the key that encrypts sectors: two keys for xts, else one.
    #[must_use]
    pub const fn master_key_bytes(self, mode: CipherMode) -> usize {
        match mode {
            CipherMode::Xts => self.key_bytes().saturating_mul(2),
            _ => self.key_bytes(),
        }
    }

    /// The cipher of the same family that takes a key of that many bytes.
    #[must_use]
    pub const fn with_key_bytes(self, bytes: usize) -> Option<Self> {
        Some(match (self, bytes) {
            (Self::Aes128 | Self::Aes192 | Self::Aes256, 16) => Self::Aes128,
            (Self::Aes128 | Self::Aes192 | Self::Aes256, 24) => Self::Aes192,
            (Self::Aes128 | Self::Aes192 | Self::Aes256, 32) => Self::Aes256,
            (Self::Serpent128 | Self::Serpent192 | Self::Serpent256, 16) => Self::Serpent128,
            (Self::Serpent128 | Self::Serpent192 | Self::Serpent256, 24) => Self::Serpent192,
            (Self::Serpent128 | Self::Serpent192 | Self::Serpent256, 32) => Self::Serpent256,
            (Self::Twofish128 | Self::Twofish192 | Self::Twofish256, 16) => Self::Twofish128,
            (Self::Twofish128 | Self::Twofish192 | Self::Twofish256, 24) => Self::Twofish192,
            (Self::Twofish128 | Self::Twofish192 | Self::Twofish256, 32) => Self::Twofish256,
            (Self::Cast5, 16) => Self::Cast5,
            _ => return None,
        })
    }
}
