//! JSON as QEMU takes it: strings may stand in single quotes, and no key twice.
//!
//! `serde_json` reads it; what is wrong is said in `qemu-img`'s words as far as the kind of mistake is known.

use super::{Options, Scalar};
use serde_json::de::Deserializer;
use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};

/// Deepest nesting; `serde_json` gives up there, too.
const MAX_DEPTH: usize = 100;
/// Longest text that is read, in bytes.
const MAX_BYTES: usize = 1 << 20;
/// What the visitor says about a key that is there twice.
const DUPLICATE: &str = "duplicate key";

/// A JSON value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A value without parts.
    Scalar(Scalar),
    /// A list.
    List(Vec<Self>),
    /// An object, in the order of the text.
    Object(Vec<(String, Self)>),
}

/// Reads `text`.
///
/// # Errors
/// The sentence of `qemu-img`.
pub fn parse(text: &str) -> Result<Value, String> {
    if text.len() > MAX_BYTES {
        return Err("JSON token size limit exceeded".to_owned());
    }
    if depth(text) > MAX_DEPTH {
        return Err("JSON nesting depth limit exceeded".to_owned());
    }
    if text.trim().is_empty() {
        return Err("Expecting a JSON value".to_owned());
    }
    let text = with_double_quotes(text);
    let mut deserializer = Deserializer::from_str(&text);
    let value = Tree
        .deserialize(&mut deserializer)
        .map_err(|error| sentence(&text, &error))?;
    match deserializer.end() {
        Ok(()) => Ok(value),
        Err(_) => Err("Expecting at most one JSON value".to_owned()),
    }
}

/// The names and values in `object`, flat.
#[must_use]
pub fn flatten(object: &[(String, Value)]) -> Options {
    let mut flat = Options::new();
    for (key, value) in object {
        flatten_into(key, value, &mut flat);
    }
    flat
}

fn flatten_into(key: &str, value: &Value, flat: &mut Options) {
    match value {
        Value::Scalar(scalar) => {
            flat.insert(key.to_owned(), scalar.clone());
        }
        Value::List(parts) => {
            for (index, part) in parts.iter().enumerate() {
                flatten_into(&format!("{key}.{index}"), part, flat);
            }
        }
        Value::Object(parts) => {
            for (name, part) in parts {
                flatten_into(&format!("{key}.{name}"), part, flat);
            }
        }
    }
    let empty = matches!(value, Value::List(parts) if parts.is_empty())
        || matches!(value, Value::Object(parts) if parts.is_empty());
    if empty {
        flat.insert(key.to_owned(), Scalar::Empty);
    }
}

/// How deep brackets nest, strings apart.
fn depth(text: &str) -> usize {
    let mut quote = None;
    let (mut at, mut deepest): (usize, usize) = (0, 0);
    let mut escaped = false;
    for byte in text.bytes() {
        match (quote, byte) {
            _ if escaped => escaped = false,
            (Some(_), b'\\') => escaped = true,
            (Some(open), _) if open == byte => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'{' | b'[') => {
                at = at.saturating_add(1);
                deepest = deepest.max(at);
            }
            (None, b'}' | b']') => at = at.saturating_sub(1),
            (None, _) => {}
        }
    }
    deepest
}

/// `text` with `"` around the strings that stand in `'`.
fn with_double_quotes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut quote = None;
    let mut escaped = false;
    for char in text.chars() {
        match (quote, char) {
            (Some(_), _) if escaped => {
                escaped = false;
                if char == '\'' {
                    // JSON has no such escape, and needs none.
                    out.pop();
                }
                out.push(char);
            }
            (Some(_), '\\') => {
                escaped = true;
                out.push(char);
            }
            (Some('\''), '"') => out.push_str("\\\""),
            (Some(open), _) if open == char => {
                quote = None;
                out.push('"');
            }
            (None, '"' | '\'') => {
                quote = Some(char);
                out.push('"');
            }
            _ => out.push(char),
        }
    }
    out
}

/// What is wrong with `text`, in `qemu-img`'s words.
fn sentence(text: &str, error: &serde_json::Error) -> String {
    let said = error.to_string();
    let fault = if error.is_eof() {
        "premature EOI".to_owned()
    } else if said.starts_with(DUPLICATE) {
        DUPLICATE.to_owned()
    } else if said.starts_with("expected `,` or `}`") {
        "expected separator in dict".to_owned()
    } else if said.starts_with("expected `,` or `]`") {
        "expected separator in list".to_owned()
    } else if said.starts_with("expected `:`") {
        "missing : in object pair".to_owned()
    } else if said.starts_with("invalid escape") {
        "invalid escape sequence in string".to_owned()
    } else if let Some(word) = keyword_at(text, error) {
        format!("invalid keyword '{word}'")
    } else if said.starts_with("key must be a string") {
        "key is not a string in object".to_owned()
    } else {
        "expecting value".to_owned()
    };
    format!("JSON parse error, {fault}")
}

/// The word without quotes at the place of `error`.
fn keyword_at<'a>(text: &'a str, error: &serde_json::Error) -> Option<&'a str> {
    let line = text.split('\n').nth(error.line().checked_sub(1)?)?;
    let at = error.column().checked_sub(1)?;
    let is_word = |byte: &u8| byte.is_ascii_lowercase();
    let bytes = line.as_bytes();
    if !bytes.get(at).is_some_and(is_word) {
        return None;
    }
    let before = bytes
        .get(..at)?
        .iter()
        .rev()
        .take_while(|byte| is_word(byte));
    let start = at.checked_sub(before.count())?;
    let len = bytes
        .get(start..)?
        .iter()
        .take_while(|byte| is_word(byte))
        .count();
    let quoted = start > 0 && bytes.get(start.checked_sub(1)?) == Some(&b'"');
    line.get(start..start.checked_add(len)?).filter(|_| !quoted)
}

/// Makes a [`Value`].
struct Tree;

impl<'de> DeserializeSeed<'de> for Tree {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Scalar(Scalar::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Scalar(Scalar::Number(value.to_string())))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Scalar(Scalar::Number(value.to_string())))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Scalar(Scalar::Number(value.to_string())))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Scalar(Scalar::Text(value.as_bytes().to_vec())))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Scalar(Scalar::Null))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(part) = parts.next_element_seed(Self)? {
            list.push(part);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut parts: A) -> Result<Value, A::Error> {
        let mut seen = std::collections::BTreeSet::new();
        let mut object = Vec::new();
        while let Some(key) = parts.next_key::<String>()? {
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(DUPLICATE));
            }
            object.push((key, parts.next_value_seed(Self)?));
        }
        Ok(Value::Object(object))
    }
}
