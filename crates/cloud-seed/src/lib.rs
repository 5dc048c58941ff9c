//! The disk that a guest's cloud-init is configured by: its data source "NoCloud".
//!
//! A file system of the name `cidata` has the files `user-data`, `meta-data` and, if the user gives it, `network-config`
//! (cloud-init, "Reference", "Datasources", "NoCloud"). It is made in memory as ISO 9660 with Joliet and Rock Ridge, so that
//! each of Linux's ways to read it finds these names. Nothing here reads an image.
//!
//! What the user gives as files is passed on byte for byte. Keys and the host's name go into `meta-data`, which `cloud-init`
//! merges by itself with whatever `user-data` says; JSON is YAML to it.

#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]
#![cfg_attr(
    test,
    allow(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

mod disk;
mod keys;

pub use keys::{KeyError, is_key, keys_in};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Longest of the files, in bytes.
pub const MAX_FILE: usize = 1 << 20;
/// Longest name of a host in bytes. RFC 1035 §2.3.4.
const MAX_HOSTNAME: usize = 253;
/// Longest part of one between dots.
const MAX_LABEL: usize = 63;
/// What `user-data` is where the user has none: a file that says nothing.
const NO_USER_DATA: &[u8] = b"#cloud-config\n{}\n";
/// Characters of the hash that tells one configuration from another.
const ID_CHARACTERS: usize = 16;

/// What a guest is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seed {
    /// `user-data`, as it is.
    pub user_data: Option<Vec<u8>>,
    /// `meta-data`, as it is; it stands for [`Self::keys`] and [`Self::hostname`], too.
    pub meta_data: Option<Vec<u8>>,
    /// `network-config`, as it is.
    pub network_config: Option<Vec<u8>>,
    /// Public keys of who may log in as the image's default user, each a line of `authorized_keys`.
    pub keys: Vec<String>,
    /// Name of the host.
    pub hostname: Option<String>,
}

/// Why there is no such disk.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// A file is too long.
    #[error("the {name} is longer than {} KiB", MAX_FILE >> 10)]
    TooLong {
        /// Its name on the disk.
        name: &'static str,
    },
    /// The user's own meta-data says such things.
    #[error(
        "--meta-data excludes --ssh-key and --hostname: write `public-keys` and `local-hostname` in its file instead"
    )]
    OwnMetaData,
    /// No host can have this name.
    #[error(
        "'{0}' is not the name of a host: letters, digits and '-', and dots between parts of at most {MAX_LABEL}"
    )]
    Hostname(String),
    /// The file system could not be written.
    #[error("the disk for cloud-init cannot be made: {0}")]
    Disk(String),
}

impl Seed {
    /// Whether anything is said at all: else there is no need of a disk.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The disk: whole sectors of 2048 bytes.
    ///
    /// # Errors
    /// [`SeedError`].
    pub fn disk(&self) -> Result<Vec<u8>, SeedError> {
        let user_data = self.user_data.as_deref().unwrap_or(NO_USER_DATA);
        let meta_data = self.meta_data()?;
        let mut files = vec![("user-data", user_data), ("meta-data", &meta_data)];
        let network = self.network_config.as_deref();
        files.extend(network.map(|network| ("network-config", network)));
        for (name, bytes) in &files {
            if bytes.len() > MAX_FILE {
                return Err(SeedError::TooLong { name });
            }
        }
        disk::write("cidata", &files)
    }

    /// The user's, or one that has the keys, the name, and an ID that changes with anything that is said: cloud-init
    /// applies a configuration once for each.
    fn meta_data(&self) -> Result<Vec<u8>, SeedError> {
        match &self.meta_data {
            Some(_) if !self.keys.is_empty() || self.hostname.is_some() => {
                return Err(SeedError::OwnMetaData);
            }
            Some(own) => return Ok(own.clone()),
            None => {}
        }
        let mut said = Map::new();
        said.insert("instance-id".to_owned(), Value::String(self.id()));
        if let Some(hostname) = &self.hostname {
            said.insert("local-hostname".to_owned(), json!(checked(hostname)?));
        }
        if !self.keys.is_empty() {
            said.insert("public-keys".to_owned(), json!(self.keys));
        }
        let mut text = Value::Object(said).to_string().into_bytes();
        text.push(b'\n');
        Ok(text)
    }

    /// Another one for each content.
    fn id(&self) -> String {
        let mut hash = Sha256::new();
        // Each part with its length, so that no bytes can move from one to the next.
        let mut part = |bytes: Option<&[u8]>| {
            let len = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
            hash.update(len.to_le_bytes());
            hash.update(bytes.unwrap_or_default());
        };
        part(self.user_data.as_deref());
        part(self.network_config.as_deref());
        part(self.hostname.as_deref().map(str::as_bytes));
        for key in &self.keys {
            part(Some(key.as_bytes()));
        }
        let digits = hash.finalize();
        let digits = digits.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
        let digits = digits.filter_map(|digit| char::from_digit(digit.into(), 16));
        let id: String = digits.take(ID_CHARACTERS).collect();
        format!("instar-{id}")
    }
}

/// A name that a host can have.
fn checked(name: &str) -> Result<&str, SeedError> {
    let is_label = |label: &str| {
        let inside = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(inside)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() <= MAX_HOSTNAME && name.split('.').all(is_label) {
        Ok(name)
    } else {
        Err(SeedError::Hostname(name.to_owned()))
    }
}

#[cfg(test)]
mod tests;
