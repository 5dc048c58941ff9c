//! The value of `-l`.

use crate::amend::OptionList;
use crate::cli::UsageError;
use crate::launch::fill;
use crate::persona;
use instar_shared::convert::{ConvertConfig, SnapshotChoice};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// What a list of properties begins with.
const PREFIX: &[u8] = b"snapshot.";

/// Which internal snapshot is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// None.
    Active,
    /// The one with this ID, or else with this name.
    IdOrName(Vec<u8>),
    /// The one with these.
    Both {
        /// Its ID.
        id: Option<Vec<u8>>,
        /// Its name.
        name: Option<Vec<u8>>,
    },
}

/// Reads the value of `-l`.
///
/// # Errors
/// It lists properties that snapshots do not have.
pub fn choice(value: Option<&OsStr>) -> Result<Choice, UsageError> {
    let Some(value) = value else {
        return Ok(Choice::Active);
    };
    if !value.as_bytes().starts_with(PREFIX) {
        return Ok(Choice::IdOrName(value.as_bytes().to_vec()));
    }
    let (mut id, mut name) = (None, None);
    for (key, text) in OptionList::of(value.as_bytes()).meanings() {
        match key {
            b"snapshot.id" => id = Some(text.to_vec()),
            b"snapshot.name" => name = Some(text.to_vec()),
            other => {
                return Err(UsageError::plain(format!(
                    "Invalid parameter '{}'\n{}: Failed in parsing snapshot param '{}'",
                    String::from_utf8_lossy(other),
                    persona::name(),
                    value.display()
                )));
            }
        }
    }
    Ok(Choice::Both { id, name })
}

impl Choice {
    /// Puts it into the operation's config.
    pub fn put(&self, config: &mut ConvertConfig) {
        let (choice, id, name) = match self {
            Self::Active => (SnapshotChoice::None, None, None),
            Self::IdOrName(text) => (SnapshotChoice::IdOrName, None, Some(text)),
            Self::Both { id, name } => {
                let choice = match (id, name) {
                    (Some(_), Some(_)) => SnapshotChoice::IdAndName,
                    (Some(_), None) => SnapshotChoice::Id,
                    _ => SnapshotChoice::Name,
                };
                (choice, id.as_ref(), name.as_ref())
            }
        };
        config.snapshot.set(choice.raw());
        if let Some(id) = id {
            let length = fill(&mut config.snapshot_id, OsStr::from_bytes(id));
            config.snapshot_id_len.set(length);
        }
        if let Some(name) = name {
            let length = fill(&mut config.snapshot_name, OsStr::from_bytes(name));
            config.snapshot_name_len.set(length);
        }
    }
}
