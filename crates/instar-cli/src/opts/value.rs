//! Values of options, taken out of the map one after the other: what is left at the end is unknown.

use super::{Options, Scalar};
use crate::quantity::{self, QuantityError};

/// Takes all of `options` that start with `name` and a dot, without these.
pub fn take_child(options: &mut Options, name: &str) -> Options {
    let prefix = format!("{name}.");
    let all = std::mem::take(options);
    let mut child = Options::new();
    for (key, value) in all {
        match key.strip_prefix(&prefix) {
            Some(rest) => child.insert(rest.to_owned(), value),
            None => options.insert(key, value),
        };
    }
    child
}

/// Takes an option if it is a string; another value is as good as none.
pub fn take_text(options: &mut Options, key: &str) -> Option<String> {
    match options.remove(key)? {
        Scalar::Text(text) => Some(String::from_utf8_lossy(&text).into_owned()),
        _ => None,
    }
}

/// A string as a value.
pub fn text_of(text: &str) -> Scalar {
    Scalar::Text(text.as_bytes().to_vec())
}

/// A value as `key=value` lists would write it.
pub fn as_text(value: Scalar) -> Vec<u8> {
    match value {
        Scalar::Text(text) => text,
        Scalar::Number(number) => number.into_bytes(),
        Scalar::Bool(true) => b"on".to_vec(),
        Scalar::Bool(false) => b"off".to_vec(),
        Scalar::Null | Scalar::Empty => Vec::new(),
    }
}

/// Whether an option is there and on.
pub fn is_on(options: &Options, key: &str) -> bool {
    match options.get(key) {
        Some(Scalar::Bool(on)) => *on,
        Some(Scalar::Text(text)) => state(text) == Some(true),
        _ => false,
    }
}

/// Whether an option that may be there is on.
pub fn state_of(options: &Options, key: &str) -> Option<bool> {
    options.contains_key(key).then(|| is_on(options, key))
}

/// A value as JSON shows it.
pub fn shown(value: &Scalar) -> String {
    match value {
        Scalar::Number(number) => number.clone(),
        Scalar::Bool(state) => state.to_string(),
        Scalar::Text(text) => quoted(&String::from_utf8_lossy(text)),
        Scalar::Null | Scalar::Empty => "null".to_owned(),
    }
}

/// What a word says that is on or off.
fn state(word: &[u8]) -> Option<bool> {
    match word {
        b"on" | b"yes" | b"true" | b"y" => Some(true),
        b"off" | b"no" | b"false" | b"n" => Some(false),
        _ => None,
    }
}

/// Checks a value that is on or off.
///
/// # Errors
/// It is neither.
pub fn switch_value(key: &str, value: &Scalar) -> Result<(), String> {
    match value {
        Scalar::Bool(_) => Ok(()),
        Scalar::Text(text) if state(text).is_some() => Ok(()),
        _ => Err(format!("Parameter '{key}' expects 'on' or 'off'")),
    }
}

/// Takes an option that is on or off.
///
/// # Errors
/// It is neither.
pub fn switch(options: &mut Options, key: &str) -> Result<(), String> {
    options
        .remove(key)
        .map_or(Ok(()), |value| switch_value(key, &value))
}

/// Takes an option that has one of `values`.
///
/// # Errors
/// It has another.
pub fn one_of(options: &mut Options, key: &str, values: &[&str]) -> Result<(), String> {
    let Some(value) = options.remove(key).map(as_text) else {
        return Ok(());
    };
    if values.iter().any(|known| known.as_bytes() == value) {
        return Ok(());
    }
    let value = String::from_utf8_lossy(&value);
    Err(format!("invalid parameter value: {value}"))
}

/// Takes a size in bytes.
///
/// # Errors
/// It is none.
pub fn size(options: &mut Options, key: &str) -> Result<Option<u64>, String> {
    let Some(value) = options.remove(key) else {
        return Ok(None);
    };
    let text = as_text(value);
    match quantity::size(&text) {
        Ok(size) => Ok(Some(size)),
        Err(QuantityError::Range) => {
            let text = String::from_utf8_lossy(&text);
            Err(format!(
                "Value '{text}' is out of range for parameter '{key}'"
            ))
        }
        Err(QuantityError::Syntax) => Err(format!(
            "Parameter '{key}' expects a non-negative number below 2^64{}",
            crate::cli::SIZE_LINES
        )),
    }
}

/// A string of JSON, in ASCII.
pub fn quoted(text: &str) -> String {
    let mut out = String::new();
    for char in serde_json::Value::from(text).to_string().chars() {
        if char.is_ascii() {
            out.push(char);
            continue;
        }
        let mut units = [0; 2];
        for unit in char.encode_utf16(&mut units) {
            out.push_str(&format!("\\u{unit:04x}"));
        }
    }
    out
}
