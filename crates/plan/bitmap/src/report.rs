//! How a command ended, in `qemu-img`'s words.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use instar_plan_txn::TxnError;

/// QEMU numbers its nodes with two random digits at the end; the image's own is the second one.
const NODE: &str = "#block100";

/// How the actions of a command ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The action that could not be done; those before it were, those after it were not.
    pub failed: Option<ActionError>,
    /// The bitmap could not be stored in the image: what was removed is removed, and nothing else was done.
    pub lost: Option<Lost>,
}

impl Report {
    /// True if all was done.
    #[must_use]
    pub const fn is_success(&self) -> bool {
        self.failed.is_none() && self.lost.is_none()
    }

    /// What `qemu-img` prints: each of them follows the program's name, a colon and a space. One of them may
    /// have a second line.
    #[must_use]
    pub fn sentences(&self) -> Vec<String> {
        let mut sentences = Vec::new();
        sentences.extend(self.failed.as_ref().map(ToString::to_string));
        if let Some(lost) = &self.lost {
            sentences.push(lost.to_string());
            sentences.push("Error while closing the image: Invalid argument".to_string());
            sentences.push(lost.to_string());
        }
        sentences
    }
}

/// Why an image cannot hold the bitmap after all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The disk has no sectors.
    #[error("Lost persistent bitmaps during inactivation of node '{NODE}': No memory")]
    NoTable,
    /// The header's cluster has no room for the bitmaps extension.
    #[error(
        "Lost persistent bitmaps during inactivation of node '{NODE}': \
         Failed to update bitmap extension: No space left on device"
    )]
    HeaderFull,
}

/// An action that could not be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Operation {verb} on bitmap {} failed: {reason}", Lossy(name))]
pub struct ActionError {
    /// The action's word: `add`, `remove`, `clear`, `enable`, `disable` or `merge`.
    pub verb: &'static str,
    /// The bitmap that the command names.
    pub name: Vec<u8>,
    /// Why.
    pub reason: Reason,
}

/// Why an action cannot be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// `add` without a name.
    #[error("Bitmap name cannot be empty")]
    EmptyName,
    /// `add` with a granularity that is none.
    #[error("Granularity must be power of 2 and at least 512")]
    Granularity,
    /// `add` of one that is there.
    #[error("Bitmap already exists: {}", Lossy(name))]
    Exists {
        /// The bitmap's name.
        name: Vec<u8>,
    },
    /// `add` of one that the image cannot hold.
    #[error("Can't make bitmap '{}' persistent in '{NODE}': {why}", Lossy(name))]
    NotPersistent {
        /// The bitmap's name.
        name: Vec<u8>,
        /// Why.
        why: NotPersistent,
    },
    /// `add` to a format without bitmaps.
    #[error("Can't store persistent bitmaps to {NODE}: Operation not supported")]
    NoBitmaps,
    /// There is none of that name.
    #[error("Dirty bitmap '{}' not found", Lossy(name))]
    NotFound {
        /// The name that was looked for.
        name: Vec<u8>,
    },
    /// It is in use: it was not saved properly.
    #[error(
        "Bitmap '{}' is inconsistent and cannot be used\n\
         Try block-dirty-bitmap-remove to delete this bitmap from disk",
        Lossy(name)
    )]
    Inconsistent {
        /// The bitmap's name.
        name: Vec<u8>,
    },
    /// `merge` of a bitmap of another disk size.
    #[error(
        "Bitmaps are of different sizes (destination size is {destination}, source size is {origin}) \
         and can't be merged"
    )]
    Sizes {
        /// Bytes of the image.
        destination: u64,
        /// Bytes of the source's image.
        origin: u64,
    },
}

/// Why an image cannot hold one bitmap more, in the order of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotPersistent {
    /// Version 2 has no bitmaps.
    #[error("Cannot store dirty bitmaps in qcow2 v2 files")]
    Version2,
    /// More than QEMU takes for one bitmap.
    #[error("Too much space will be occupied by the bitmap. Use larger granularity")]
    TooLarge,
    /// The name is longer than 1023 bytes.
    #[error("Name length exceeds maximum (1023 characters)")]
    NameTooLong,
    /// There are 65535 already.
    #[error("Maximum number of persistent bitmaps is already reached")]
    TooMany,
    /// The directory is as long as QEMU takes it.
    #[error("Not enough space in the bitmap directory")]
    DirectoryFull,
}

/// Why nothing was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeError {
    name: Vec<u8>,
    /// What failed.
    pub cause: TxnError,
}

impl ChangeError {
    pub(crate) fn new(name: &[u8], cause: TxnError) -> Self {
        let name = name.to_vec();
        Self { name, cause }
    }
}

impl fmt::Display for ChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, cause) = (Lossy(&self.name), &self.cause);
        write!(f, "Failed to write bitmap '{name}' to file: {cause}")
    }
}

impl core::error::Error for ChangeError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        Some(&self.cause)
    }
}

/// A name of any bytes; what is not UTF-8 shows as U+FFFD.
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
