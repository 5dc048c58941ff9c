//! Option lists: `NAME=VALUE,NAME,noNAME,…`, where two commas in a value stand for one.

use crate::cli;
use crate::launch::fill;
use crate::quantity::{self, QuantityError};
use instar_shared::edit::{
    AMEND_BACKING_FILE, AMEND_BACKING_FORMAT, AMEND_COMPAT, AMEND_DATA_FILE, AMEND_DATA_FILE_RAW,
    AMEND_ENCRYPT, AMEND_LAZY_REFCOUNTS, AMEND_REFCOUNT_BITS, AMEND_SIZE, AmendConfig,
    MAX_BACKING_NAME_BYTES,
};
use instar_shared::encrypt::KeyChange;
use instar_shared::op::ImageFormat;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// What `qemu-img` adds when an option exists, but not here.
pub const CREATION_ONLY_LINE: &str = "\nThis option is only supported for image creation";

/// What a value has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// On or off.
    Switch,
    /// A number.
    Number,
    /// A size, with or without a unit.
    Size,
}

/// The options of an image that can be amended: name, kind, and the bit of [`AmendConfig::given`].
const AMENDABLE: [(&str, Kind, u32); 13] = [
    ("backing_file", Kind::Text, AMEND_BACKING_FILE),
    ("backing_fmt", Kind::Text, AMEND_BACKING_FORMAT),
    ("compat", Kind::Text, AMEND_COMPAT),
    ("data_file", Kind::Text, AMEND_DATA_FILE),
    ("data_file_raw", Kind::Switch, AMEND_DATA_FILE_RAW),
    ("encrypt.iter-time", Kind::Number, AMEND_ENCRYPT),
    ("encrypt.keyslot", Kind::Number, AMEND_ENCRYPT),
    ("encrypt.new-secret", Kind::Text, AMEND_ENCRYPT),
    ("encrypt.old-secret", Kind::Text, AMEND_ENCRYPT),
    ("encrypt.state", Kind::Text, AMEND_ENCRYPT),
    ("lazy_refcounts", Kind::Switch, AMEND_LAZY_REFCOUNTS),
    ("refcount_bits", Kind::Number, AMEND_REFCOUNT_BITS),
    ("size", Kind::Size, AMEND_SIZE),
];

/// The options with which an image is made, where they differ.
const CREATION_ONLY: [(&str, Kind); 12] = [
    ("cluster_size", Kind::Size),
    ("compression_type", Kind::Text),
    ("encrypt.cipher-alg", Kind::Text),
    ("encrypt.cipher-mode", Kind::Text),
    ("encrypt.format", Kind::Text),
    ("encrypt.hash-alg", Kind::Text),
    ("encrypt.ivgen-alg", Kind::Text),
    ("encrypt.ivgen-hash-alg", Kind::Text),
    ("encrypt.key-secret", Kind::Text),
    ("encryption", Kind::Switch),
    ("extended_l2", Kind::Switch),
    ("preallocation", Kind::Text),
];
/// One option as it stands in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Word {
    name: Vec<u8>,
    /// The value behind `=`, two commas as one.
    value: Option<Vec<u8>>,
}

/// A value that reads as it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(Vec<u8>),
    /// A number or size; 1 for on, 0 for off.
    Number(u64),
}

/// The options of all `-o`.
#[derive(Debug)]
pub struct OptionList {
    words: Vec<Word>,
}

impl OptionList {
    /// Joins the lists; nothing if there are none.
    ///
    /// # Errors
    /// A list is empty, begins with a comma, or ends with one that stands for itself.
    pub fn new(lists: &[OsString]) -> Result<Option<Self>, String> {
        for list in lists {
            let bytes = list.as_bytes();
            let commas = bytes.iter().rev().take_while(|byte| **byte == b',').count();
            if bytes.is_empty() || bytes.starts_with(b",") || commas % 2 == 1 {
                return Err(format!("Invalid option list: {}", list.display()));
            }
        }
        let bytes: Vec<&[u8]> = lists.iter().map(|list| list.as_bytes()).collect();
        Ok((!bytes.is_empty()).then(|| Self {
            words: split(&bytes.join(&b',')),
        }))
    }

    /// The options of one list, whatever it is.
    #[must_use]
    pub fn of(list: &[u8]) -> Self {
        let words = split(list);
        Self { words }
    }

    /// Whether `help` is among the options.
    #[must_use]
    pub fn wants_help(&self) -> bool {
        let mut names = self.words.iter().filter(|word| word.value.is_none());
        names.any(|word| word.name == b"help" || word.name == b"?")
    }

    /// Names and values in order; a name alone is a switch.
    pub fn meanings(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.words.iter().map(Word::meaning)
    }

    /// Reads the values.
    ///
    /// # Errors
    /// What is wrong with the first option that is.
    pub fn read(&self) -> Result<Amendment, String> {
        match self.values(amendable_kind) {
            Ok(values) => Amendment::new(values),
            Err(sentence) if self.values(any_kind).is_ok() => Err(sentence + CREATION_ONLY_LINE),
            Err(sentence) => Err(sentence),
        }
    }

    fn values(
        &self,
        kind: impl Fn(&[u8]) -> Option<Kind>,
    ) -> Result<Vec<(Vec<u8>, Value)>, String> {
        let mut values = Vec::new();
        for word in &self.words {
            let (name, value) = word.meaning();
            // The list itself may have a name, which says nothing here.
            if name == b"id" {
                continue;
            }
            let shown = String::from_utf8_lossy(name);
            let kind = kind(name).ok_or_else(|| format!("Invalid parameter '{shown}'"))?;
            values.push((name.to_vec(), kind.read(&shown, value)?));
        }
        Ok(values)
    }
}

/// What an option that can be amended has to be.
fn amendable_kind(name: &[u8]) -> Option<Kind> {
    let known = AMENDABLE.iter().find(|known| known.0.as_bytes() == name);
    known.map(|known| known.1)
}

/// What any option has to be.
fn any_kind(name: &[u8]) -> Option<Kind> {
    let known = CREATION_ONLY
        .iter()
        .find(|known| known.0.as_bytes() == name);
    known.map(|known| known.1).or_else(|| amendable_kind(name))
}

/// Takes a list apart.
fn split(list: &[u8]) -> Vec<Word> {
    let mut words = Vec::new();
    let mut rest = list;
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| matches!(byte, b'=' | b','));
        let (name, after) = rest.split_at(end.unwrap_or(rest.len()));
        let value = match after.strip_prefix(b"=") {
            Some(after) => {
                let (value, after) = split_value(after);
                rest = after;
                Some(value)
            }
            None => {
                rest = after.strip_prefix(b",").unwrap_or(after);
                None
            }
        };
        words.push(Word {
            name: name.to_vec(),
            value,
        });
    }
    words
}

/// Reads a value to the comma that ends it.
fn split_value(text: &[u8]) -> (Vec<u8>, &[u8]) {
    let mut value = Vec::new();
    let mut rest = text;
    loop {
        match rest {
            [] => return (value, rest),
            [b',', b',', after @ ..] => {
                value.push(b',');
                rest = after;
            }
            [b',', after @ ..] => return (value, after),
            [byte, after @ ..] => {
                value.push(*byte);
                rest = after;
            }
        }
    }
}

impl Word {
    /// Name and value; a name alone switches on, or off with `no` before it.
    fn meaning(&self) -> (&[u8], &[u8]) {
        match (&self.value, self.name.strip_prefix(b"no")) {
            (Some(value), _) => (&self.name, value),
            (None, Some(name)) => (name, b"off"),
            (None, None) => (&self.name, b"on"),
        }
    }
}

impl Kind {
    /// Reads the value of the option `name`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(self, name: &str, text: &[u8]) -> Result<Value, String> {
        match self {
            Self::Text => Ok(Value::Text(text.to_vec())),
            Self::Switch => match text {
                b"on" | b"yes" | b"true" | b"y" => Ok(Value::Number(1)),
                b"off" | b"no" | b"false" | b"n" => Ok(Value::Number(0)),
                _ => Err(format!("Parameter '{name}' expects 'on' or 'off'")),
            },
            Self::Number => match quantity::number(text) {
                Ok(number) => Ok(Value::Number(number)),
                Err(QuantityError::Syntax) => Err(format!("Parameter '{name}' expects a number")),
                Err(QuantityError::Range) => Err(format!(
                    "Value '{}' is too large for parameter '{name}'",
                    String::from_utf8_lossy(text)
                )),
            },
            Self::Size => cli::size_option(name, text).map(Value::Number),
        }
    }
}

/// What is to be amended: the last value of each option.
#[derive(Debug)]
pub struct Amendment {
    given: u32,
    size: u64,
    level: Vec<u8>,
    refcount_bits: u64,
    lazy_refcounts: u64,
    data_file_raw: u64,
    backing_file: Vec<u8>,
    backing_format: Vec<u8>,
    data_file: Vec<u8>,
    /// What becomes of key slots.
    pub keys: KeyChange,
}

impl Default for Amendment {
    fn default() -> Self {
        Self {
            given: 0,
            size: 0,
            level: Vec::new(),
            refcount_bits: 0,
            lazy_refcounts: 0,
            data_file_raw: 0,
            backing_file: Vec::new(),
            backing_format: Vec::new(),
            data_file: Vec::new(),
            keys: KeyChange::zeroed(),
        }
    }
}

impl Amendment {
    fn new(values: Vec<(Vec<u8>, Value)>) -> Result<Self, String> {
        let mut amendment = Self::default();
        for (name, value) in values {
            let known = AMENDABLE.iter().find(|known| known.0.as_bytes() == name);
            amendment.given |= known.map_or(0, |known| known.2);
            amendment.set(&name, value);
        }
        if amendment.data_file.len() > MAX_BACKING_NAME_BYTES {
            return Err("The data file's name is too long".into());
        }
        Ok(amendment)
    }

    fn set(&mut self, name: &[u8], value: Value) {
        match (name, value) {
            (b"size", Value::Number(number)) => self.size = number,
            (b"refcount_bits", Value::Number(number)) => self.refcount_bits = number,
            (b"lazy_refcounts", Value::Number(number)) => self.lazy_refcounts = number,
            (b"data_file_raw", Value::Number(number)) => self.data_file_raw = number,
            (b"compat", Value::Text(text)) => self.level = text,
            (b"backing_file", Value::Text(text)) => self.backing_file = text,
            (b"backing_fmt", Value::Text(text)) => self.backing_format = text,
            (b"data_file", Value::Text(text)) => self.data_file = text,
            _ => {}
        }
    }

    /// The qcow2 version that `compat` means.
    fn version(&self) -> Option<u32> {
        match self.level.as_slice() {
            b"0.10" | b"v2" => Some(2),
            b"1.1" | b"v3" => Some(3),
            _ => None,
        }
    }

    /// Whether an option is about key slots.
    #[must_use]
    pub const fn changes_keys(&self) -> bool {
        self.given & AMEND_ENCRYPT != 0
    }

    /// Nothing but that key slots were to change.
    #[must_use]
    pub fn keys_alone(&self) -> Self {
        Self {
            given: self.given & AMEND_ENCRYPT,
            ..Self::default()
        }
    }

    /// Why `compat` is refused: that is the first thing that is wrong for an image with keys, if they were to change.
    #[must_use]
    pub fn wrong_level(&self) -> Option<String> {
        let given = self.given & AMEND_COMPAT != 0;
        (given && self.version().is_none()).then(|| {
            let level = String::from_utf8_lossy(&self.level);
            format!("Unknown compatibility level {level}")
        })
    }

    /// The operation's config for an image of this format.
    #[must_use]
    pub fn config(&self, format: ImageFormat) -> AmendConfig {
        let mut config = AmendConfig::zeroed();
        config.format.set(format.raw());
        config.given.set(self.given);
        config.size.set(self.size);
        config.version.set(self.version().unwrap_or(0));
        // QEMU looks at the low half as well.
        config.refcount_bits.set(low_half(self.refcount_bits));
        config.lazy_refcounts.set(low_half(self.lazy_refcounts));
        config.data_file_raw.set(low_half(self.data_file_raw));
        let name = |field: &mut [u8], bytes: &[u8]| fill(field, OsStr::from_bytes(bytes));
        let length = name(&mut config.backing_file, &self.backing_file);
        config.backing_file_len.set(length);
        let length = name(&mut config.backing_format, &self.backing_format);
        config.backing_format_len.set(length);
        let length = name(&mut config.data_file, &self.data_file);
        config.data_file_len.set(length);
        config.keys = self.keys;
        config
    }
}

#[allow(clippy::cast_possible_truncation)]
pub const fn low_half(number: u64) -> u32 {
    number as u32
}
