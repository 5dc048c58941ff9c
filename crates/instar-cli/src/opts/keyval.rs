//! The `key=value` list of `--object`.
//!
//! Commas part the pairs; in a value two commas stand for one. The first word may be a value alone, that of
//! `qom-type`. A later pair counts more than an earlier one with the same key.

use std::collections::BTreeMap;

/// What a list says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// Values by key.
    pub values: BTreeMap<String, Vec<u8>>,
    /// `help` or `?` stands in it.
    pub help: bool,
}

/// Reads `text`; a first word without `=` is the value of `implied`.
///
/// # Errors
/// The sentence of `qemu-img`.
pub fn parse(text: &[u8], implied: &str) -> Result<List, String> {
    let mut list = List::default();
    let mut rest = text;
    let mut first = true;
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| matches!(byte, b'=' | b','));
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        let has_value = after.first() == Some(&b'=');
        if !has_value && matches!(word, b"help" | b"?") {
            list.help = true;
        } else if !has_value && first {
            list.values.insert(implied.to_owned(), word.to_vec());
        } else {
            let key = key(word)?;
            if !has_value {
                return Err(format!("Expected '=' after parameter '{key}'"));
            }
            let (value, after) = value(after.get(1..).unwrap_or_default());
            list.values.insert(key, value);
            rest = after;
            first = false;
            continue;
        }
        rest = after.get(1..).unwrap_or_default();
        first = false;
    }
    Ok(list)
}

/// Whether `word` is a name of the form that QEMU wants for identifiers.
#[must_use]
pub fn is_identifier(word: &[u8]) -> bool {
    let starts = word.first().is_some_and(u8::is_ascii_alphabetic);
    starts && word.iter().all(|byte| is_name_byte(*byte) || *byte == b'.')
}

const fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

fn key(word: &[u8]) -> Result<String, String> {
    let text = String::from_utf8_lossy(word).into_owned();
    let starts = word.first().is_some_and(u8::is_ascii_alphabetic);
    let sound = starts
        && word
            .split(|byte| *byte == b'.')
            .all(|part| !part.is_empty() && part.iter().all(|byte| is_name_byte(*byte)));
    if sound {
        Ok(text)
    } else {
        Err(format!("Invalid parameter '{text}'"))
    }
}

/// The value at the start of `rest`, and what follows its comma.
pub fn value(rest: &[u8]) -> (Vec<u8>, &[u8]) {
    let mut value = Vec::new();
    let mut at = rest;
    loop {
        let end = at.iter().position(|byte| *byte == b',');
        let (part, after) = at.split_at(end.unwrap_or(at.len()));
        value.extend_from_slice(part);
        match after {
            [_, b',', next @ ..] => {
                value.push(b',');
                at = next;
            }
            [_, next @ ..] => return (value, next),
            [] => return (value, after),
        }
    }
}
