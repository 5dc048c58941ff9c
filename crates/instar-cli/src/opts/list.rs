//! The list of `--image-opts`: `key=value,…`, where keys have dots.
//!
//! A first word alone is the value of `file`, which names a node. A later word alone is an option that is
//! on, or off if it starts with `no`: QEMU says that it would rather not be asked so.

use super::keyval::{is_identifier, value};
use super::{Options, Scalar};

/// What follows on an identifier that is none.
pub const IDENTIFIER_LINE: &str =
    "\nIdentifiers consist of letters, digits, '-', '.', '_', starting with a letter.";

/// What a list says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct List {
    /// The options.
    pub options: Options,
    /// Warnings, each of two lines, to be printed in any case.
    pub warnings: Vec<String>,
}

/// Reads `text`.
///
/// # Errors
/// The sentence of `qemu-img`, which names no image.
pub fn parse(text: &[u8]) -> Result<List, String> {
    let mut list = List::default();
    let mut rest = text;
    let mut first = true;
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| matches!(byte, b'=' | b','));
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        let key = String::from_utf8_lossy(word).into_owned();
        let (key, value, next) = if after.first() == Some(&b'=') {
            let (value, next) = value(after.get(1..).unwrap_or_default());
            (key, value, next)
        } else if first {
            let (value, next) = value(rest);
            ("file".to_owned(), value, next)
        } else {
            let (name, state) = key
                .strip_prefix("no")
                .map_or((&*key, "on"), |name| (name, "off"));
            list.warnings.push(format!(
                "short-form boolean option '{key}' deprecated\nPlease use {name}={state} instead"
            ));
            let next = after.get(1..).unwrap_or_default();
            (name.to_owned(), state.as_bytes().to_vec(), next)
        };
        if key == "id" && !is_identifier(&value) {
            return Err(format!(
                "Parameter 'id' expects an identifier{IDENTIFIER_LINE}"
            ));
        }
        list.options.insert(key, Scalar::Text(value));
        rest = next;
        first = false;
    }
    Ok(list)
}
