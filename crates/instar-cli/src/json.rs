//! A JSON writer in the shape that `qemu-img` prints: four spaces per level, one
//! item per line, the caller's key order, and nothing but ASCII.
//!
//! serde_json cannot escape broken UTF-8 or write non-ASCII characters as
//! `\uXXXX`, and would need the whole document as a tree.

use crate::sink::Out;
use crate::text::take_char;

/// Writes one document, value by value.
///
/// Arrays and objects are opened and closed by the caller, who must balance them.
pub struct Json<'a> {
    out: &'a mut dyn Out,
    depth: usize,
    /// No item stands in the innermost container yet.
    empty: bool,
    /// A key was just written, so the value follows on its line.
    after_key: bool,
}

impl<'a> Json<'a> {
    /// A writer that has written nothing.
    pub fn new(out: &'a mut dyn Out) -> Self {
        Self {
            out,
            depth: 0,
            empty: true,
            after_key: false,
        }
    }

    /// Starts an object.
    pub fn begin_object(&mut self) {
        self.begin(b"{");
    }

    /// Ends the object that was started last.
    pub fn end_object(&mut self) {
        self.end(b"}");
    }

    /// Starts an array.
    pub fn begin_array(&mut self) {
        self.begin(b"[");
    }

    /// Ends the array that was started last.
    pub fn end_array(&mut self) {
        self.end(b"]");
    }

    /// The key of the next value.
    pub fn key(&mut self, name: &str) {
        self.item();
        self.quote(name.as_bytes());
        self.out.put(b": ");
        self.after_key = true;
    }

    /// A string of any bytes.
    pub fn string(&mut self, bytes: &[u8]) {
        self.item();
        self.quote(bytes);
    }

    /// A whole number.
    pub fn number(&mut self, value: impl Into<i128>) {
        self.item();
        self.out.put(value.into().to_string().as_bytes());
    }

    /// `true` or `false`.
    pub fn bool(&mut self, value: bool) {
        self.item();
        self.out.put(if value { b"true" } else { b"false" });
    }

    /// A key and a string.
    pub fn field_string(&mut self, key: &str, bytes: &[u8]) {
        self.key(key);
        self.string(bytes);
    }

    /// A key and a number.
    pub fn field_number(&mut self, key: &str, value: impl Into<i128>) {
        self.key(key);
        self.number(value);
    }

    /// A key and a truth value.
    pub fn field_bool(&mut self, key: &str, value: bool) {
        self.key(key);
        self.bool(value);
    }

    /// The newline after the whole document.
    pub fn finish(self) {
        self.out.put(b"\n");
    }

    fn begin(&mut self, bracket: &[u8]) {
        self.item();
        self.out.put(bracket);
        self.depth += 1;
        self.empty = true;
    }

    fn end(&mut self, bracket: &[u8]) {
        self.depth = self.depth.saturating_sub(1);
        self.new_line();
        self.out.put(bracket);
        self.empty = false;
    }

    /// What stands before a value or key: a comma for the one before, and a new line.
    fn item(&mut self) {
        if self.after_key {
            self.after_key = false;
            return;
        }
        if !self.empty {
            self.out.put(b",");
        }
        if self.depth > 0 {
            self.new_line();
        }
        self.empty = false;
    }

    fn new_line(&mut self) {
        self.out.put(b"\n");
        for _ in 0..self.depth {
            self.out.put(b"    ");
        }
    }

    fn quote(&mut self, bytes: &[u8]) {
        self.out.put(b"\"");
        let mut rest = bytes;
        while let Some((character, after)) = take_char(rest) {
            self.escape(character.unwrap_or(char::REPLACEMENT_CHARACTER));
            rest = after;
        }
        self.out.put(b"\"");
    }

    fn escape(&mut self, character: char) {
        let short: &[u8] = match character {
            '"' => b"\\\"",
            '\\' => b"\\\\",
            '\u{8}' => b"\\b",
            '\u{c}' => b"\\f",
            '\n' => b"\\n",
            '\r' => b"\\r",
            '\t' => b"\\t",
            ' '..='~' => {
                self.out.put(character.encode_utf8(&mut [0; 4]).as_bytes());
                return;
            }
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    self.out.put(format!("\\u{unit:04X}").as_bytes());
                }
                return;
            }
        };
        self.out.put(short);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_values_have_the_shape() {
        let mut out = Vec::new();
        let mut json = Json::new(&mut out);
        json.begin_array();
        json.begin_object();
        json.field_string("a", b"\x01\x1b\x7f\"\\/\n\xff\xc3\xa9\xf0\x9f\x98\x80");
        json.key("empty");
        json.begin_array();
        json.end_array();
        json.field_number("n", -1_i64);
        json.field_bool("b", true);
        json.end_object();
        json.begin_object();
        json.end_object();
        json.end_array();
        json.finish();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            concat!(
                "[\n    {\n        \"a\": \"\\u0001\\u001B\\u007F\\\"\\\\/\\n\\uFFFD\\u00E9\\uD83D\\uDE00\",\n",
                "        \"empty\": [\n        ],\n        \"n\": -1,\n        \"b\": true\n    },\n    {\n    }\n]\n",
            )
        );
    }
}
