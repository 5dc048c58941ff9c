//! Volumes judged by `qemu-io` and `cryptsetup`, and volumes that `qemu-img` made.
//!
//! `LUKS_COMBINATIONS=all` decrypts an image of `qemu-img` for every combination of cipher, mode and IV generator,
//! and for every hash, instead of one for each name: `qemu-img` takes seconds of CPU for each of its key slots.

// Test code may end in a panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod images;
mod made_by_qemu;
mod made_by_us;

use instar_crypt::{CipherAlgorithm, CipherMode, CipherSpec, HashAlgorithm, IvGenerator};

/// Whether `qemu-img` 10.0 takes the combination. With a master key of 24 bytes, whose stripes do not fill their last
/// sector, it aborts; `cryptsetup` fills that sector with zeros, as we do.
pub fn qemu_takes(spec: &CipherSpec) -> bool {
    let essiv = spec.iv_generator == IvGenerator::Essiv;
    match spec.cipher {
        CipherAlgorithm::Cast5 => {
            let hash = spec.iv_generator_hash == Some(HashAlgorithm::Md5);
            spec.mode != CipherMode::Xts && (!essiv || hash)
        }
        _ => spec.cipher.master_key_bytes(spec.mode) != 24,
    }
}

/// Every combination that `qemu-img` takes, essiv with each hash that fits.
pub fn combinations() -> Vec<CipherSpec> {
    let mut out = Vec::new();
    for cipher in CipherAlgorithm::ALL {
        for mode in CipherMode::ALL {
            for iv_generator in IvGenerator::ALL {
                let hashes: &[Option<HashAlgorithm>] = match iv_generator {
                    IvGenerator::Essiv => &[
                        Some(HashAlgorithm::Md5),
                        Some(HashAlgorithm::Sha256),
                        Some(HashAlgorithm::Sm3),
                    ],
                    _ => &[None],
                };
                for iv_generator_hash in hashes {
                    out.push(CipherSpec {
                        cipher: *cipher,
                        mode: *mode,
                        iv_generator: *iv_generator,
                        iv_generator_hash: *iv_generator_hash,
                    });
                }
            }
        }
    }
    out.retain(qemu_takes);
    // Nine ciphers of which three lose three modes, and CAST5, which has no xts.
    assert_eq!(out.len(), (9 * 4 - 3 * 3) * 5 + 3 * 3);
    out
}
