//! Why a LUKS header is refused, in `qemu-img`'s words.

use crate::header::STRIPES;
use alloc::vec::Vec;
use core::fmt;
use instar_storage::StorageError;

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
