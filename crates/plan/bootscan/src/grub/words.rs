//! Words of a script, and what they become when it runs.

use super::{MAX_TEXT, ScriptError};
use alloc::vec::Vec;

/// A part of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// These bytes.
    Text(Vec<u8>),
    /// The value of a variable.
    Variable {
        /// Its name.
        name: Vec<u8>,
        /// In double quotes: it is not taken apart at spaces.
        quoted: bool,
    },
}

/// A word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word(pub Vec<Piece>);

impl Word {
    /// Its bytes, if it has no variable.
    pub fn literal(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for piece in &self.0 {
            let Piece::Text(text) = piece else {
                return None;
            };
            bytes.extend_from_slice(text);
        }
        Some(bytes)
    }

    /// Adds a byte.
    pub fn push(&mut self, byte: u8) {
        match self.0.last_mut() {
            Some(Piece::Text(text)) => text.push(byte),
            _ => self.0.push(Piece::Text([byte].into())),
        }
    }

    /// Adds nothing, so that `''` is a word.
    pub fn touch(&mut self) {
        if self.0.is_empty() {
            self.0.push(Piece::Text(Vec::new()));
        }
    }
}

/// What variables are worth.
pub trait Values {
    /// The values of a variable: one, or of `$@` any number.
    fn values(&self, name: &[u8]) -> Vec<Vec<u8>>;
}

/// What the words become: a variable that is not quoted gives as many words as its value has.
///
/// # Errors
/// They are too long.
pub fn expand(words: &[Word], values: &dyn Values) -> Result<Vec<Vec<u8>>, ScriptError> {
    let mut out: Vec<Vec<u8>> = Vec::new();
    let mut total = 0_usize;
    for word in words {
        // `None`: no word has begun.
        let mut at: Option<Vec<u8>> = None;
        for piece in &word.0 {
            match piece {
                Piece::Text(text) => at.get_or_insert_default().extend_from_slice(text),
                Piece::Variable { name, quoted } => {
                    let found = values.values(name);
                    for (index, value) in found.iter().enumerate() {
                        if index > 0 {
                            out.extend(at.take());
                        }
                        if *quoted {
                            at.get_or_insert_default().extend_from_slice(value);
                        } else {
                            split(value, &mut at, &mut out);
                        }
                        total = total.saturating_add(value.len());
                        if total > MAX_TEXT {
                            return Err(ScriptError::TooLarge);
                        }
                    }
                    if *quoted && name != b"@" {
                        at.get_or_insert_default();
                    }
                }
            }
        }
        out.extend(at);
    }
    Ok(out)
}

/// Adds a value to the word that has begun, and begins a new one at each space.
fn split(value: &[u8], at: &mut Option<Vec<u8>>, out: &mut Vec<Vec<u8>>) {
    for byte in value {
        if byte.is_ascii_whitespace() {
            out.extend(at.take());
        } else {
            at.get_or_insert_default().push(*byte);
        }
    }
}

/// The words of a value that variables count in, and quotes do not.
pub fn value(text: &[u8]) -> Vec<Word> {
    let mut words = Vec::new();
    for part in text
        .split(u8::is_ascii_whitespace)
        .filter(|p| !p.is_empty())
    {
        words.push(one_word(part));
    }
    words
}

fn one_word(text: &[u8]) -> Word {
    let mut word = Word::default();
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| *byte == b'$') {
        let (before, after) = rest.split_at(at);
        before.iter().for_each(|byte| word.push(*byte));
        let after = after.get(1..).unwrap_or(&[]);
        let braces = after.first() == Some(&b'{');
        let name = after.get(usize::from(braces)..).unwrap_or(&[]);
        let part = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
        let end = name.iter().position(|b| !part(b)).unwrap_or(name.len());
        let (name, behind) = name.split_at(end);
        if name.is_empty() {
            word.push(b'$');
            rest = after;
            continue;
        }
        word.0.push(Piece::Variable {
            name: name.to_vec(),
            quoted: false,
        });
        rest = if braces {
            behind.strip_prefix(b"}").unwrap_or(behind)
        } else {
            behind
        };
    }
    rest.iter().for_each(|byte| word.push(*byte));
    word
}
