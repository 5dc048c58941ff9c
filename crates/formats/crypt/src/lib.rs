//! Encryption of an image's sectors, as `qemu-img` has it in qcow2 images: LUKS and the older AES method.
//!
//! Modules:
//! - `names`: ciphers, modes, IV generators and hashes, by the names that `qemu-img` has for them.
//! - `modes`: a cipher in a mode, over one sector; `iv`: each sector's IV.
//! - `sector`: [`SectorCipher`], the three together with a key.
//! - `twofish`: that cipher.
//! - `hash`: digests and PBKDF2 (RFC 8018 "5.2. PBKDF2") by name.
//! - `random`: [`Random`], keys and salts from a seed.
//! - `image`: [`ImageCipher`], an image's data as [`instar_storage::Cipher`] has it.
//! - `store`: [`Deciphered`], the view of a store that deciphers what it reads and enciphers what it writes.
//!
//! Ciphers and hashes but Twofish are the RustCrypto project's. They find AES-NI, VAES and the SHA extensions by CPUID when
//! they are first used, in a guest as on the host. Serpent, Twofish and CAST5 have tables, whose use shows in the
//! timing of caches; what runs beside a microVM on the same machine could see it, as with every program that
//! has them. Keys are overwritten when their owner is dropped.
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod hash;
mod image;
mod iv;
mod modes;
mod names;
mod random;
mod sector;
mod store;
mod twofish;

pub use hash::{Digest, digest, pbkdf2};
pub use image::{Counted, ImageCipher};
pub use names::{CipherAlgorithm, CipherMode, HashAlgorithm, IvGenerator};
pub use random::{Random, SEED_BYTES};
pub use sector::{CipherSpec, SECTOR_BYTES, SectorCipher};
pub use store::Deciphered;
pub use zeroize::{Zeroize, Zeroizing};

/// Why a cipher cannot be made or used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CryptError {
    /// A key of another length than the cipher in its mode takes.
    #[error("Cipher {} in mode {} takes a key of {wanted} bytes, not {given}", cipher.name(), mode.name())]
    KeyLength {
        /// The cipher.
        cipher: CipherAlgorithm,
        /// The mode.
        mode: CipherMode,
        /// Bytes that it takes.
        wanted: usize,
        /// Bytes that were given.
        given: usize,
    },
    /// xts with a cipher whose blocks are not 16 bytes.
    #[error("Unsupported cipher mode {}", .0.name())]
    Mode(CipherMode),
    /// essiv with a hash whose digest is no key of the cipher.
    #[error("Cipher {} has no essiv with {}", cipher.name(), hash.name())]
    Essiv {
        /// The cipher.
        cipher: CipherAlgorithm,
        /// The hash.
        hash: HashAlgorithm,
    },
    /// essiv without a hash.
    #[error("Missing IV generator hash specification")]
    EssivHashMissing,
    /// A buffer that is not whole sectors of 512 bytes.
    #[error("{0} bytes are not whole sectors")]
    NotWholeSectors(usize),
}
