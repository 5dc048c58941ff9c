//! The options of a new image: `-o` lists, as `create`, `measure` and `convert` take them.

use super::encryption::Encryption;
use crate::amend::{Kind, OptionList, Value};
use crate::files::Layout;
use crate::image::is_foreign_format;
use crate::launch::fill;
use instar_shared::convert::{
    TARGET_DATA_FILE_RAW, TARGET_EXTENDED_L2, TARGET_LAZY_REFCOUNTS, TARGET_ZSTD, TargetOptions,
};
use instar_shared::edit::Preallocation;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;

/// Cluster size where it is not given, in bytes.
const CLUSTER_BYTES: u64 = 64 << 10;
/// Width of a refcount where it is not given, in bits.
const REFCOUNT_BITS: u64 = 16;

/// A format that images are made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewFormat {
    /// Raw.
    Raw,
    /// qcow2.
    Qcow2,
}

/// Options of qcow2 images: name, kind, and the value where it is not given. In the order in which they are shown.
const QCOW2: [(&str, Kind, Option<&str>); 23] = [
    ("encryption", Kind::Switch, None),
    ("encrypt.format", Kind::Text, None),
    ("encrypt.key-secret", Kind::Text, None),
    ("encrypt.cipher-alg", Kind::Text, None),
    ("encrypt.cipher-mode", Kind::Text, None),
    ("encrypt.ivgen-alg", Kind::Text, None),
    ("encrypt.ivgen-hash-alg", Kind::Text, None),
    ("encrypt.hash-alg", Kind::Text, None),
    ("encrypt.iter-time", Kind::Number, None),
    ("cluster_size", Kind::Size, Some("65536")),
    ("extended_l2", Kind::Switch, Some("off")),
    ("preallocation", Kind::Text, None),
    ("compression_type", Kind::Text, Some("zlib")),
    ("size", Kind::Size, None),
    ("compat", Kind::Text, None),
    ("backing_file", Kind::Text, None),
    ("backing_fmt", Kind::Text, None),
    ("data_file", Kind::Text, None),
    ("data_file_raw", Kind::Switch, None),
    ("lazy_refcounts", Kind::Switch, Some("off")),
    ("refcount_bits", Kind::Number, Some("16")),
    ("nocow", Kind::Switch, None),
    ("extent_size_hint", Kind::Size, None),
];

/// Options of raw images, likewise.
const RAW: [(&str, Kind, Option<&str>); 4] = [
    ("size", Kind::Size, None),
    ("nocow", Kind::Switch, None),
    ("preallocation", Kind::Text, None),
    ("extent_size_hint", Kind::Size, None),
];

/// Options that say how a file lies in its file system.
const OF_FILES: [&[u8]; 2] = [b"nocow", b"extent_size_hint"];

impl NewFormat {
    /// The format of this name, if images are made in it.
    #[must_use]
    pub fn named(name: &OsStr) -> Option<Self> {
        match name.to_str() {
            Some("raw") => Some(Self::Raw),
            Some("qcow2") => Some(Self::Qcow2),
            _ => None,
        }
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    const fn known(self) -> &'static [(&'static str, Kind, Option<&'static str>)] {
        match self {
            Self::Raw => &RAW,
            Self::Qcow2 => &QCOW2,
        }
    }
}

/// One option: how it was typed, and what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Given {
    text: Vec<u8>,
    value: Value,
}

/// The options of a new image.
#[derive(Clone, Debug)]
pub struct NewOptions {
    format: NewFormat,
    /// By index in the format's list of names.
    given: Vec<Option<Given>>,
}

impl NewOptions {
    /// Reads the options of all `-o`; none if there are none.
    ///
    /// # Errors
    /// What is wrong with the first that is.
    pub fn new(format: NewFormat, list: Option<&OptionList>) -> Result<Self, String> {
        let mut options = Self {
            format,
            given: vec![None; format.known().len()],
        };
        for (name, text) in list.into_iter().flat_map(OptionList::meanings) {
            // The list itself may have a name, which says nothing here.
            if name != b"id" {
                options.set(name, text)?;
            }
        }
        Ok(options)
    }

    /// As [`Self::new`], for the image `name`: a device lies in no file system.
    ///
    /// # Errors
    /// As there.
    pub fn new_for(
        name: &OsStr,
        format: NewFormat,
        list: Option<&OptionList>,
    ) -> Result<Self, String> {
        let names = list.into_iter().flat_map(OptionList::meanings);
        let wrong = names
            .map(|(name, _)| name)
            .find(|name| OF_FILES.contains(name));
        match wrong.filter(|_| is_device(name)) {
            None => Self::new(format, list),
            Some(wrong) => {
                let shown = String::from_utf8_lossy(wrong);
                Err(format!("Invalid parameter '{shown}'"))
            }
        }
    }

    /// How the files are to lie in their file system.
    #[must_use]
    pub fn layout(&self) -> Layout {
        // What is too large is refused.
        let extent_bytes = self.number("extent_size_hint");
        let extent_bytes = extent_bytes.and_then(|bytes| u32::try_from(bytes).ok());
        Layout {
            no_cow: self.number("nocow") == Some(1),
            extent_bytes: extent_bytes.unwrap_or(Layout::USUAL.extent_bytes),
            asked: extent_bytes.is_some_and(|bytes| bytes > 0),
        }
    }

    fn layout_refusal(&self) -> Option<String> {
        let bytes = self.number("extent_size_hint")?;
        let large = u32::try_from(bytes).is_err();
        large.then(|| "Extent size hint is too large".into())
    }

    /// Gives the option `name` a value, whatever it had.
    ///
    /// # Errors
    /// There is no such option, or it cannot have this value.
    pub fn set(&mut self, name: &[u8], text: &[u8]) -> Result<(), String> {
        let shown = String::from_utf8_lossy(name);
        let known = self.format.known();
        let index = known.iter().position(|known| known.0.as_bytes() == name);
        let (index, (_, kind, _)) = index
            .and_then(|index| Some((index, known.get(index)?)))
            .ok_or_else(|| format!("Invalid parameter '{shown}'"))?;
        let value = kind.read(&shown, text)?;
        if let Some(slot) = self.given.get_mut(index) {
            let text = text.to_vec();
            *slot = Some(Given { text, value });
        }
        Ok(())
    }

    fn given(&self, name: &str) -> Option<&Given> {
        let index = self.format.known().iter().position(|k| k.0 == name)?;
        self.given.get(index)?.as_ref()
    }

    /// A text as it is typed.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&[u8]> {
        self.given(name).map(|given| given.text.as_slice())
    }

    /// A number or size; 1 or 0 for a switch.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.given(name)?.value {
            Value::Number(number) => Some(number),
            Value::Text(_) => None,
        }
    }

    /// What `qemu-img create` says of the options: all of them, in its order, with `size` in bytes.
    #[must_use]
    pub fn line(&self, size: u64) -> Vec<u8> {
        let mut line = format!("fmt={}", self.format.name()).into_bytes();
        for ((name, kind, default), given) in self.format.known().iter().zip(&self.given) {
            let value = match (*name, given, default) {
                ("size", ..) => size.to_string().into_bytes(),
                (_, Some(given), _) => shown(*kind, given),
                (_, None, Some(default)) => default.as_bytes().to_vec(),
                (_, None, None) => continue,
            };
            line.extend_from_slice(format!(" {name}=").as_bytes());
            line.extend_from_slice(&value);
        }
        line
    }

    /// Why a value that reads as one is refused when the image is made: the first in QEMU's order.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        let wrong = |shown: &str, name: &str, good: &dyn Fn(&[u8]) -> bool| {
            let text = self.text(name).filter(|text| !good(text))?;
            let text = String::from_utf8_lossy(text);
            Some(format!(
                "Parameter '{shown}' does not accept value '{text}'"
            ))
        };
        if self.format == NewFormat::Raw {
            return self.raw_refusal().or_else(|| self.layout_refusal());
        }
        let level: &[&[u8]] = &[b"0.10", b"1.1", b"v2", b"v3"];
        let kinds: &[&[u8]] = &[b"zlib", b"zstd"];
        if let Some(sentence) = Encryption::named_twice(self) {
            return Some(sentence);
        }
        wrong("version", "compat", &|text| level.contains(&text))
            .or_else(|| wrong("backing-fmt", "backing_fmt", &is_format))
            .or_else(|| Encryption::of_new(self).err())
            .or_else(|| wrong("preallocation", "preallocation", &is_mode))
            .or_else(|| {
                wrong("compression-type", "compression_type", &|text| {
                    kinds.contains(&text)
                })
            })
            .or_else(|| self.layout_refusal())
    }

    fn raw_refusal(&self) -> Option<String> {
        let mode = self.text("preallocation").filter(|mode| !is_mode(mode))?;
        let mode = String::from_utf8_lossy(mode);
        Some(format!("invalid parameter value: {mode}"))
    }

    /// What is reserved; nothing if there is no such mode.
    #[must_use]
    pub fn preallocation(&self) -> Option<Preallocation> {
        match self.text("preallocation") {
            None | Some(b"off") => Some(Preallocation::Off),
            Some(b"metadata") => Some(Preallocation::Metadata),
            Some(b"falloc") => Some(Preallocation::Falloc),
            Some(b"full") => Some(Preallocation::Full),
            Some(_) => None,
        }
    }

    /// The options for an operation. Values that are refused count as not given.
    pub fn put(&self, target: &mut TargetOptions) {
        let old = matches!(self.text("compat"), Some(b"0.10" | b"v2"));
        target.version.set(if old { 2 } else { 3 });
        let mode = self.preallocation().unwrap_or(Preallocation::Off);
        target.preallocation.set(mode.raw());
        let cluster = self.number("cluster_size");
        target.cluster_bytes.set(cluster.unwrap_or(CLUSTER_BYTES));
        let bits = self.number("refcount_bits");
        target.refcount_bits.set(bits.unwrap_or(REFCOUNT_BITS));
        let on = |name| self.number(name) == Some(1);
        let zstd = self.text("compression_type") == Some(b"zstd");
        let flags = [
            (on("extended_l2"), TARGET_EXTENDED_L2),
            (on("lazy_refcounts"), TARGET_LAZY_REFCOUNTS),
            (on("data_file_raw"), TARGET_DATA_FILE_RAW),
            (zstd, TARGET_ZSTD),
        ];
        let flags = flags.into_iter().filter(|(on, _)| *on);
        target.flags.set(flags.fold(0, |all, (_, bit)| all | bit));
        let name = |name| OsStr::from_bytes(self.text(name).unwrap_or_default());
        let length = fill(&mut target.backing_file, name("backing_file"));
        target.backing_file_len.set(length);
        let length = fill(&mut target.backing_format, name("backing_fmt"));
        target.backing_format_len.set(length);
        let length = fill(&mut target.data_file, name("data_file"));
        target.data_file_len.set(length);
    }
}

/// Whether some program has a format of this name.
fn is_format(name: &[u8]) -> bool {
    let name = str::from_utf8(name).unwrap_or_default();
    matches!(name, "raw" | "qcow2") || is_foreign_format(name)
}

/// Whether a file of this name is a device.
fn is_device(name: &OsStr) -> bool {
    let name = name.as_bytes();
    let path = name.strip_prefix(b"host_device:").unwrap_or(name);
    let found = std::fs::metadata(OsStr::from_bytes(path));
    found.is_ok_and(|found| found.file_type().is_block_device())
}

/// Whether there is such a preallocation mode.
fn is_mode(text: &[u8]) -> bool {
    matches!(text, b"off" | b"metadata" | b"falloc" | b"full")
}

/// A value as `qemu-img create` shows it.
fn shown(kind: Kind, given: &Given) -> Vec<u8> {
    match (kind, &given.value) {
        (Kind::Number | Kind::Size, Value::Number(number)) => {
            // QEMU shows them as signed.
            number.cast_signed().to_string().into_bytes()
        }
        _ => {
            let mut shown = Vec::with_capacity(given.text.len());
            for byte in &given.text {
                shown.extend(std::iter::repeat_n(
                    *byte,
                    if *byte == b',' { 2 } else { 1 },
                ));
            }
            shown
        }
    }
}

/// The option list of all `-o`.
///
/// # Errors
/// One of them is no list.
pub fn list(typed: &[OsString]) -> Result<Option<OptionList>, String> {
    OptionList::new(typed)
}
