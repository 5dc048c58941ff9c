//! `--object`: secrets, by the names that other options call them by.
//!
//! [`load`] decodes all of a command line before anything else happens. What a command needs it takes with
//! [`find`]; [`forget`] overwrites the rest before a job starts, so that none but the processes of that job has a copy.
//! A password that is typed as `data` is in the argument list all the same, where `ps` shows it: `file` is not.

mod decode;
#[cfg(test)]
mod tests;

use crate::opts::Scalar;
use crate::opts::json::{self, Value};
use crate::opts::keyval::{self, is_identifier};
use crate::opts::list::IDENTIFIER_LINE;
use decode::Source;
use instar_shared::secret::MAX_SECRET_BYTES;
use instar_vmm::operation::Zeroizing;
use rustix::process::DumpableBehavior;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Mutex, PoisonError};

/// The types that QEMU has and `qemu-img` has not.
const OF_MACHINES: [&str; 12] = [
    "can-bus",
    "cryptodev-backend",
    "cryptodev-backend-builtin",
    "cryptodev-backend-lkcf",
    "iommufd",
    "iothread",
    "pef-guest",
    "rng-builtin",
    "rng-random",
    "s390-pv-guest",
    "tls-cipher-suites",
    "igvm-cfg",
];

/// The types that `qemu-img` has besides `secret`.
const FOREIGN: [&str; 11] = [
    "authz-list",
    "authz-pam",
    "authz-simple",
    "main-loop",
    "pr-manager-helper",
    "secret_keyring",
    "thread-context",
    "throttle-group",
    "tls-creds-anon",
    "tls-creds-psk",
    "tls-creds-x509",
];

/// What `--object help` prints.
const TYPES: &str = "List of user creatable objects:\n  secret\n";

/// What `--object secret,help` prints.
const OPTIONS: &str = "\
secret options:
  data=<string>
  file=<string>
  format=<QCryptoSecretFormat>
  iv=<string>
  keyid=<string>
";

/// The options of a secret besides its name and type.
const NAMES: [&str; 5] = ["data", "file", "format", "iv", "keyid"];

static STORE: Mutex<Store> = Mutex::new(Store {
    secrets: Vec::new(),
});

/// Why there is nothing to run.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// Help was asked for and is printed here.
    Help(&'static str),
    /// An object is wrong.
    Wrong(String),
}

/// Decodes what `--object` was given, in order. From then on neither this process nor any that it forks is dumped: a
/// limit of 0 bytes alone would not hold for a core that the kernel pipes to a program.
///
/// # Errors
/// The first that is wrong, in `qemu-img`'s words, or help that was asked for.
pub fn load(objects: &[OsString]) -> Result<(), Stop> {
    if !objects.is_empty() {
        let done = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
        done.map_err(|errno| Stop::Wrong(format!("Could not turn core dumps off: {errno}")))?;
    }
    let mut store = STORE.lock().unwrap_or_else(PoisonError::into_inner);
    objects
        .iter()
        .try_for_each(|object| store.add(object.as_bytes()))
}

/// The secret named `id`, fit to be a password.
///
/// # Errors
/// The sentence of `qemu-img`: there is none, or it is no text.
pub fn find(id: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    let store = STORE.lock().unwrap_or_else(PoisonError::into_inner);
    store.password(id)
}

/// Overwrites and drops all secrets.
pub fn forget() {
    let mut store = STORE.lock().unwrap_or_else(PoisonError::into_inner);
    store.secrets.clear();
}

/// The secrets of a command line.
#[derive(Default)]
struct Store {
    /// Names and values, in order.
    secrets: Vec<(String, Zeroizing<Vec<u8>>)>,
}

impl Store {
    /// Takes one object more.
    fn add(&mut self, object: &[u8]) -> Result<(), Stop> {
        let values = values(object)?;
        let kind = text(&values, "qom-type").map_err(Stop::Wrong)?;
        let kind = kind.ok_or_else(|| missing("qom-type"))?;
        if FOREIGN.contains(&kind.as_str()) {
            return Err(Stop::Wrong(format!(
                "instar has no objects of the type '{kind}'; --object takes secrets"
            )));
        }
        if kind != "secret" {
            return Err(Stop::Wrong(if OF_MACHINES.contains(&kind.as_str()) {
                format!("invalid object type: {kind}")
            } else {
                format!("Parameter 'qom-type' does not accept value '{kind}'")
            }));
        }
        self.add_secret(&values).map_err(Stop::Wrong)
    }

    fn add_secret(&mut self, values: &Values) -> Result<(), String> {
        let id = text(values, "id")?.ok_or("Parameter 'id' is missing")?;
        let known = |name: &&String| NAMES.contains(&name.as_str()) || is_own(name);
        let mut source = Source::default();
        for name in NAMES {
            source.set(name, bytes(values, name)?)?;
        }
        if let Some(name) = values.keys().find(|name| !known(name)) {
            return Err(format!("Parameter '{name}' is unexpected"));
        }
        if !is_identifier(id.as_bytes()) {
            return Err(format!(
                "Parameter 'id' expects an identifier{IDENTIFIER_LINE}"
            ));
        }
        if self.get(&id).is_some() {
            return Err(format!(
                "attempt to add duplicate property '{id}' to object (type 'container')"
            ));
        }
        let secret = source.decode(|key| {
            if key == id {
                return Err(format!("Secret with id '{key}' has no data"));
            }
            self.get(key)
                .ok_or_else(|| format!("No secret with id '{key}'"))
        })?;
        self.secrets.push((id, secret));
        Ok(())
    }

    fn get(&self, id: &str) -> Option<&Zeroizing<Vec<u8>>> {
        let mut secrets = self.secrets.iter();
        secrets
            .find(|(name, _)| name == id)
            .map(|(_, secret)| secret)
    }

    fn password(&self, id: &str) -> Result<Zeroizing<Vec<u8>>, String> {
        let secret = self
            .get(id)
            .ok_or_else(|| format!("No secret with id '{id}'"))?;
        if std::str::from_utf8(secret).is_err() || secret.contains(&0) {
            return Err(format!("Data from secret {id} is not valid UTF-8"));
        }
        if secret.len() > MAX_SECRET_BYTES {
            return Err(format!(
                "the secret '{id}' is longer than {MAX_SECRET_BYTES} bytes"
            ));
        }
        Ok(secret.clone())
    }
}

/// The options of an object.
type Values = BTreeMap<String, Scalar>;

/// Reads the list or the JSON of `object`.
fn values(object: &[u8]) -> Result<Values, Stop> {
    if object.first() == Some(&b'{') {
        let text = String::from_utf8_lossy(object);
        return match json::parse(&text).map_err(Stop::Wrong)? {
            Value::Object(pairs) => Ok(pairs.into_iter().map(direct).collect()),
            _ => Err(Stop::Wrong("Invalid JSON object given".to_owned())),
        };
    }
    let list = keyval::parse(object, "qom-type").map_err(Stop::Wrong)?;
    if list.help {
        let of_secret = list
            .values
            .get("qom-type")
            .is_some_and(|kind| kind == b"secret");
        return Err(Stop::Help(if of_secret { OPTIONS } else { TYPES }));
    }
    let mut values = Values::new();
    for (key, value) in list.values {
        if let Some((base, _)) = key.split_once('.') {
            return Err(Stop::Wrong(dotted(base, &values)));
        }
        values.insert(key, Scalar::Text(value));
    }
    Ok(values)
}

/// What is wrong with a key that starts with `base` and a dot.
fn dotted(base: &str, values: &Values) -> String {
    if values.contains_key(base) {
        format!("Parameters '{base}.*' used inconsistently")
    } else if NAMES.contains(&base) || is_own(base) {
        format!("Parameters '{base}.*' are unexpected")
    } else {
        format!("Parameter '{base}' is unexpected")
    }
}

fn is_own(name: &str) -> bool {
    matches!(name, "id" | "qom-type")
}

/// A value of JSON; what has parts is as wrong as a number.
fn direct((key, value): (String, Value)) -> (String, Scalar) {
    match value {
        Value::Scalar(scalar) => (key, scalar),
        Value::List(_) | Value::Object(_) => (key, Scalar::Empty),
    }
}

fn missing(name: &str) -> Stop {
    Stop::Wrong(format!("Parameter '{name}' is missing"))
}

/// The string `name`, if it is there.
fn bytes<'a>(values: &'a Values, name: &str) -> Result<Option<&'a [u8]>, String> {
    match values.get(name) {
        None => Ok(None),
        Some(Scalar::Text(text)) => Ok(Some(text)),
        Some(_) => Err(format!(
            "Invalid parameter type for '{name}', expected: string"
        )),
    }
}

fn text(values: &Values, name: &str) -> Result<Option<String>, String> {
    let bytes = bytes(values, name)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
}
