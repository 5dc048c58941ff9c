//! Public keys for SSH, as lines of `authorized_keys`. sshd(8), "AUTHORIZED_KEYS FILE FORMAT".

/// Beginnings of the names of kinds of keys.
const KINDS: [&str; 4] = ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"];

/// Why a text has no keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is a private key.
    #[error(
        "it is a private key, which no guest must see; give the public one, whose name ends in .pub"
    )]
    Private,
    /// A line is no key.
    #[error("line {0} is not a public key such as `ssh-ed25519 AAAA... name`")]
    NoKey(usize),
    /// There is none in it.
    #[error("there is no key in it")]
    Empty,
}

/// Whether a text is a key itself, rather than the name of a file.
#[must_use]
pub fn is_key(text: &str) -> bool {
    let mut words = text.split_whitespace();
    let kind = words.next().unwrap_or_default();
    KINDS.iter().any(|known| kind.starts_with(known)) && words.next().is_some()
}

/// The keys in a text of lines; empty ones, and those that begin with `#`, are passed over.
///
/// # Errors
/// [`KeyError`].
pub fn keys_in(text: &str) -> Result<Vec<String>, KeyError> {
    if text.contains("PRIVATE KEY-----") {
        return Err(KeyError::Private);
    }
    let mut keys = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let is_text = line.chars().all(|c| !c.is_control() || c == '\t');
        if !is_text || !is_key(line) {
            return Err(KeyError::NoKey(number));
        }
        keys.push(line.to_owned());
    }
    if keys.is_empty() {
        return Err(KeyError::Empty);
    }
    Ok(keys)
}
