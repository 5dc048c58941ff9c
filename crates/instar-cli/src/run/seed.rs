//! The disk for cloud-init: reads the files that the user names, and has it made.

use super::config::CloudInit;
use crate::failure::system_text;
use instar_cloud_seed::{MAX_FILE, Seed, is_key, keys_in};
use std::io::Read;
use std::path::Path;

/// The disk, if there is anything to say.
///
/// # Errors
/// One sentence: a file cannot be read, or is not what it should be.
pub fn disk(config: &CloudInit) -> Result<Option<Vec<u8>>, String> {
    let file = |path: &Option<std::path::PathBuf>| path.as_deref().map(read).transpose();
    let mut keys = Vec::new();
    for key in &config.ssh_key {
        keys.extend(keys_of(key)?);
    }
    let seed = Seed {
        user_data: file(&config.user_data)?,
        meta_data: file(&config.meta_data)?,
        network_config: file(&config.network_config)?,
        keys,
        hostname: config.hostname.clone(),
    };
    if seed.is_empty() {
        return Ok(None);
    }
    seed.disk().map(Some).map_err(|error| error.to_string())
}

/// The keys that are meant by a key, or by the name of a file.
fn keys_of(text: &str) -> Result<Vec<String>, String> {
    if is_key(text) {
        return keys_in(text).map_err(|error| format!("--ssh-key: {error}"));
    }
    let bytes = read(Path::new(text))?;
    let keys = String::from_utf8_lossy(&bytes);
    keys_in(&keys).map_err(|error| format!("'{text}': {error}"))
}

/// A file, up to one byte more than may be in one.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error| format!("cannot read '{}': {}", path.display(), system_text(&error));
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    let most = u64::try_from(MAX_FILE).unwrap_or(u64::MAX);
    file.take(most.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn keys_are_typed_or_in_files() {
        assert_eq!(keys_of("ssh-rsa AAAA x").unwrap(), ["ssh-rsa AAAA x"]);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"ssh-rsa AAAA x\nssh-rsa BBBB y\n").unwrap();
        let name = file.path().to_str().unwrap().to_owned();
        let name = name.as_str();
        assert_eq!(keys_of(name).unwrap().len(), 2);
        file.write_all(b"nonsense\n").unwrap();
        let said = keys_of(name).unwrap_err();
        assert!(said.contains("line 3 is not a public key"), "{said}");
        let said = keys_of("/nowhere/key.pub").unwrap_err();
        assert!(said.contains("cannot read '/nowhere/key.pub'"), "{said}");
    }

    #[test]
    fn nothing_to_say_is_no_disk() {
        assert!(disk(&CloudInit::default()).unwrap().is_none());
        let named = CloudInit {
            hostname: Some("a".to_owned()),
            ..CloudInit::default()
        };
        assert!(disk(&named).unwrap().is_some());
    }

    #[test]
    fn a_long_file_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 40).unwrap();
        let config = CloudInit {
            user_data: Some(file.path().to_owned()),
            ..CloudInit::default()
        };
        let said = disk(&config).unwrap_err();
        assert!(said.contains("is longer than 1024 KiB"), "{said}");
    }
}
