//! Why a LUKS header is refused, in `qemu-img`'s words.

use crate::header::STRIPES;
use crate::volume::MAX_ITERATIONS;
use alloc::vec::Vec;
use core::fmt;
use instar_crypt::CryptError;
use instar_storage::{Errno, StorageError};

/// Why a LUKS header is refused.
///
/// `Display` is the text that `qemu-img` 10.0 prints after `Could not open
/// 'FILE': `. Names come from the header, at most 32 bytes each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LuksError {
    /// The room for the header is smaller than a header.
    #[error("Request for data outside of extension header")]
    AreaTooSmall,
    /// The store failed, or the header lies past any file's end.
    #[error("Could not read encryption header: {}", errno_text(.0.errno))]
    Storage(#[source] StorageError),
    /// The magic differs.
    #[error("Volume is not in LUKS format")]
    NotLuks,
    /// A version other than 1.
    #[error("LUKS version {0} is not supported")]
    UnsupportedVersion(u16),
    /// 32 bytes without a NUL.
    #[error("LUKS header cipher name is not NUL terminated")]
    CipherNameNotTerminated,
    /// 32 bytes without a NUL.
    #[error("LUKS header cipher mode is not NUL terminated")]
    CipherModeNotTerminated,
    /// 32 bytes without a NUL.
    #[error("LUKS header hash spec is not NUL terminated")]
    HashSpecNotTerminated,
    /// The payload starts within the first 4 KiB.
    #[error("LUKS payload is overlapping with the header")]
    PayloadInHeader,
    /// No iterations for the master key digest.
    #[error("LUKS key iteration count is zero")]
    MasterKeyIterations,
    /// A key slot with another number of stripes than 4000.
    #[error("Keyslot {slot} is corrupted (stripes {stripes} != {})", STRIPES)]
    Stripes {
        /// 0..8.
        slot: usize,
        /// As in the header; QEMU prints it as signed.
        stripes: i32,
    },
    /// A key slot that is neither active nor disabled.
    #[error("Keyslot {slot} state (active/disable) is corrupted")]
    SlotState {
        /// 0..8.
        slot: usize,
    },
    /// An active key slot without iterations.
    #[error("Keyslot {slot} iteration count is zero")]
    SlotIterations {
        /// 0..8.
        slot: usize,
    },
    /// A key slot's material within the first 4 KiB.
    #[error("Keyslot {slot} is overlapping with the LUKS header")]
    SlotInHeader {
        /// 0..8.
        slot: usize,
    },
    /// A key slot's material reaches into the payload.
    #[error("Keyslot {slot} is overlapping with the encrypted payload")]
    SlotInPayload {
        /// 0..8.
        slot: usize,
    },
    /// The material of two key slots overlaps.
    #[error("Keyslots {first} and {second} are overlapping in the header")]
    SlotsOverlap {
        /// The lower slot, 0..7.
        first: usize,
        /// The higher slot, 1..8.
        second: usize,
    },
    /// No '-' in the cipher mode.
    #[error("Unexpected cipher mode string format '{}'", Lossy(.0))]
    CipherModeFormat(Vec<u8>),
    /// A hash that is not known.
    #[error("Hash algorithm '{}' not supported", Lossy(.0))]
    UnknownHash(Vec<u8>),
    /// A mode other than ecb, cbc, xts and ctr.
    #[error("Cipher mode '{}' not supported", Lossy(.0))]
    UnknownCipherMode(Vec<u8>),
    /// A cipher that is not known with this key size.
    #[error(
        "Algorithm '{}' with key size {key_bytes} bytes not supported",
        Lossy(name)
    )]
    UnknownCipher {
        /// As in the header.
        name: Vec<u8>,
        /// Half the master key for xts, else all of it.
        key_bytes: i32,
    },
    /// An IV generator other than plain, plain64 and essiv.
    #[error("IV generator '{}' not supported", Lossy(.0))]
    UnknownIvGenerator(Vec<u8>),
    /// essiv without a hash.
    #[error("Missing IV generator hash specification")]
    EssivHashMissing,
    /// essiv with a hash whose length is no key length of the cipher.
    #[error("No {family} cipher with key size {key_bytes} available")]
    EssivKeySize {
        /// "AES", "Serpent" or "Twofish".
        family: &'static str,
        /// Bytes of the hash.
        key_bytes: usize,
    },
    /// essiv with a cipher that has one key length only, and another hash length.
    #[error("Cipher {cipher} not supported with essiv")]
    EssivCipher {
        /// The cipher as `qemu-img` names it.
        cipher: &'static str,
    },
}

/// Why a volume cannot be opened, made or changed.
///
/// `Display` is `qemu-img` 10.0's text where it has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No active key slot opens with the password.
    #[error("Invalid password, cannot unlock any keyslot")]
    InvalidPassword,
    /// Key material outside the room that the image sets aside.
    #[error("Request for data outside of extension header")]
    OutsideArea,
    /// A slot that would take too long to try; no other one opened.
    #[error(
        "Keyslot {slot} asks for {iterations} PBKDF2 iterations, and instar does {} at most",
        MAX_ITERATIONS
    )]
    Iterations {
        /// 0..8.
        slot: usize,
        /// As in the header.
        iterations: u32,
    },
    /// A master key digest that would take too long to compare.
    #[error(
        "The master key's digest asks for {iterations} PBKDF2 iterations, and instar does {} at most",
        MAX_ITERATIONS
    )]
    DigestIterations {
        /// As in the header.
        iterations: u32,
    },
    /// A time that is worth more iterations than are ever done.
    #[error("{}", TooLong(*iterations))]
    TooLong {
        /// What the time is worth.
        iterations: u128,
    },
    /// A time that is worth more iterations than can be counted.
    #[error("PBKDF iterations {per_second} too large to scale: Numerical result out of range")]
    TooLargeToScale {
        /// Those of a second.
        per_second: u128,
    },
    /// No such key slot.
    #[error("Invalid keyslot {slot} specified, must be between 0 and 7")]
    SlotNumber {
        /// As given.
        slot: usize,
    },
    /// A slot that holds a key is to get another one.
    #[error("Refusing to overwrite active keyslot {slot} - please erase it first")]
    SlotActive {
        /// 0..8.
        slot: usize,
    },
    /// A slot to be erased holds no key.
    #[error("Given keyslot {slot} is already erased (inactive) ")]
    SlotErased {
        /// 0..8.
        slot: usize,
    },
    /// The last key is to be erased, by its slot.
    #[error(
        "Attempt to erase the only active keyslot {slot} which will erase all the data in the image irreversibly - refusing operation"
    )]
    LastSlot {
        /// 0..8.
        slot: usize,
    },
    /// All keys are to be erased, by their password.
    #[error(
        "All the active keyslots match the (old) password that was given and erasing them will erase all the data in the image irreversibly - refusing operation"
    )]
    LastPassword,
    /// A slot to be erased by number opens with another password than the one given.
    #[error("Given keyslot {slot} doesn't contain the given old password for erase operation")]
    OtherPassword {
        /// 0..8.
        slot: usize,
    },
    /// No slot opens with the password whose slots are to be erased.
    #[error("No keyslots match given (old) password for erase operation")]
    NoSlotMatches,
    /// Every slot holds a key.
    #[error("Can't add a keyslot - all keyslots are in use")]
    SlotsInUse,
    /// The header.
    #[error(transparent)]
    Header(#[from] LuksError),
    /// The cipher.
    #[error(transparent)]
    Cipher(#[from] CryptError),
    /// The store failed.
    #[error("{}", Errno(.0.errno))]
    Storage(#[from] StorageError),
    /// No memory for key material.
    #[error("Cannot allocate memory")]
    OutOfMemory,
}

/// Iterations past QEMU's limit, or past ours.
struct TooLong(u128);

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(iterations) = self;
        if *iterations > u128::from(u32::MAX) {
            let limit = u32::MAX;
            return write!(
                f,
                "PBKDF iterations {iterations} larger than {limit}: Numerical result out of range"
            );
        }
        write!(
            f,
            "That time is worth {iterations} PBKDF2 iterations, and instar does {MAX_ITERATIONS} at most"
        )
    }
}

const fn errno_text(errno: u32) -> &'static str {
    match errno {
        12 => "Cannot allocate memory",
        22 => "Invalid argument",
        27 => "File too large",
        _ => "Input/output error",
    }
}

/// Bytes shown as text; what is not UTF-8 becomes U+FFFD.
struct Lossy<'a>(&'a [u8]);

impl fmt::Display for Lossy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            f.write_str(chunk.valid())?;
            if !chunk.invalid().is_empty() {
                f.write_str("\u{fffd}")?;
            }
        }
        Ok(())
    }
}
