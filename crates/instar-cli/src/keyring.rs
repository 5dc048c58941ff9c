//! Secrets of images that are made, and of key slots: by the names that options have for them.

use crate::files::{Secret, SecretRole};
use crate::secret;

/// The secret of that name, for the image that the user names for `slot`.
#[must_use]
pub fn named(id: Option<&Vec<u8>>, slot: u32, role: SecretRole) -> Option<Secret> {
    Some(Secret {
        slot: u16::try_from(slot).ok()?,
        depth: 0,
        role,
        bytes: secret::find(&String::from_utf8_lossy(id?)).ok()?,
    })
}

/// Why there is no secret of that name.
#[must_use]
pub fn missing(id: Option<&Vec<u8>>) -> Option<String> {
    secret::find(&String::from_utf8_lossy(id?)).err()
}
