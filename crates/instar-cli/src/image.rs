//! From a typed name and format to an image that a job can open.

use crate::cli::{FormatOptions, UsageError};
use crate::files::Described;
use crate::info::has_protocol;
use crate::opts::{Options, json, list, node};
use crate::sink::{Out, Sink};
use crate::{persona, secret};
use instar_shared::op::ImageFormat;
use instar_shared::secret::SecretRole;
use instar_vmm::operation::Secret;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Formats and drivers that exist elsewhere: a clear answer instead of "unknown".
const FOREIGN_FORMATS: [&str; 43] = [
    "blkdebug",
    "blklogwrites",
    "blkverify",
    "bochs",
    "cloop",
    "compress",
    "copy-before-write",
    "copy-on-read",
    "dmg",
    "file",
    "ftp",
    "ftps",
    "gluster",
    "host_cdrom",
    "host_device",
    "http",
    "https",
    "iscsi",
    "iser",
    "luks",
    "nbd",
    "nfs",
    "null-aio",
    "null-co",
    "nvme",
    "parallels",
    "preallocate",
    "qcow",
    "qed",
    "quorum",
    "rbd",
    "replication",
    "snapshot-access",
    "ssh",
    "throttle",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "vvfat",
    "blkreplay",
    "null",
    "io_uring",
];

/// Protocols that exist elsewhere, by the name before the colon.
const FOREIGN_PROTOCOLS: [&str; 18] = [
    "nbd",
    "nbd+tcp",
    "nbd+unix",
    "http",
    "https",
    "ftp",
    "ftps",
    "ssh",
    "iscsi",
    "nfs",
    "rbd",
    "gluster",
    "nvme",
    "fat",
    "host_device",
    "host_cdrom",
    "blkdebug",
    "null-co",
];

/// An image that the user names.
#[derive(Debug)]
pub struct Image {
    /// The file's name as typed, with a protocol if it has one.
    pub path: PathBuf,
    /// The format as typed, or `Probe`.
    pub format: ImageFormat,
    /// What the user typed, if that is more than the file's name.
    pub described: Option<Described>,
    /// Its name as `info` shows it, if the file's name is not all.
    pub shown: Option<String>,
    /// Passwords for it and the images below it.
    pub secrets: Vec<Secret>,
    /// Options say that others may write to it meanwhile.
    pub share: bool,
}

/// How an image is meant where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Its content counts, and the images below it are opened.
    Content,
    /// It is only described: without keys, and what is below it is another image.
    Description,
}

impl Image {
    /// The image in a file.
    #[must_use]
    pub const fn file(path: PathBuf, format: ImageFormat) -> Self {
        Self {
            path,
            format,
            described: None,
            shown: None,
            secrets: Vec::new(),
            share: false,
        }
    }

    /// The image of this name, opened as the options say.
    ///
    /// # Errors
    /// The options ask for what is not there, or the name is no local file's.
    pub fn new(name: &OsStr, how: &FormatOptions) -> Result<Self, UsageError> {
        Self::for_use(Use::Content, name, how)
    }

    /// As [`Self::new`], for a certain use.
    ///
    /// # Errors
    /// As there.
    pub fn for_use(what: Use, name: &OsStr, how: &FormatOptions) -> Result<Self, UsageError> {
        if !how.image_opts {
            return Self::named(what, name, how.format.as_ref());
        }
        if how.format.is_some() {
            return Err(UsageError::plain(
                "--image-opts and --format are mutually exclusive",
            ));
        }
        Self::from_options(what, name)
    }

    /// The image that a list of options describes.
    ///
    /// # Errors
    /// They describe none.
    pub fn from_options(what: Use, list: &OsStr) -> Result<Self, UsageError> {
        let read = list::parse(list.as_bytes()).map_err(UsageError::plain)?;
        read.warnings.iter().for_each(|warning| warn(warning));
        Self::from_node(what, list, read.options, None)
    }

    /// The image of this name and format.
    ///
    /// # Errors
    /// There is no such format, or the name is no local file's.
    pub fn with_format(name: &OsStr, option: Option<&OsString>) -> Result<Self, UsageError> {
        Self::named(Use::Content, name, option)
    }

    /// The image in the file of this name, which is no JSON: where an image is made, or an image names it.
    ///
    /// # Errors
    /// As of [`Image::with_format`].
    pub fn local(name: &OsStr, option: Option<&OsString>) -> Result<Self, UsageError> {
        let format = format(name, option)?;
        Ok(Self::file(local_path(name)?, format))
    }

    fn named(what: Use, name: &OsStr, option: Option<&OsString>) -> Result<Self, UsageError> {
        let Some(json) = name.as_bytes().strip_prefix(b"json:") else {
            return Self::local(name, option);
        };
        let text = String::from_utf8_lossy(json);
        let value = json::parse(&text).map_err(|error| {
            could_not_open(name, &format!("Could not parse the JSON options: {error}"))
        })?;
        let json::Value::Object(pairs) = value else {
            return Err(could_not_open(name, "Invalid JSON object given"));
        };
        let forced = option.map(|option| option.to_string_lossy());
        Self::from_node(what, name, json::flatten(&pairs), forced.as_deref())
    }

    fn from_node(
        what: Use,
        given: &OsStr,
        options: Options,
        forced: Option<&str>,
    ) -> Result<Self, UsageError> {
        let wrong = |reason: &str| could_not_open(given, reason);
        if node::says_alone_in_old_words(what == Use::Content, &options) {
            warn("Use of \"backing\": \"\" is deprecated; use \"backing\": null instead");
        }
        let node = node::read(options, forced).map_err(|reason| wrong(&reason))?;
        let mut secrets = Vec::new();
        if what == Use::Description {
            if let Some(key) = node.below {
                let reason = format!("Block format 'qcow2' does not support the option '{key}'");
                return Err(wrong(&reason));
            }
            if node.bare {
                return Err(wrong(
                    "instar describes images; add driver=raw above the file",
                ));
            }
        } else {
            if let Some(reason) = &node.refused {
                return Err(wrong(reason));
            }
            for (depth, id) in &node.keys {
                let bytes = secret::find(id).map_err(|reason| {
                    let levels = "Could not open backing file: ".repeat(*depth as usize);
                    wrong(&format!("{levels}{reason}"))
                })?;
                secrets.push(Secret {
                    slot: 0,
                    depth: *depth,
                    role: SecretRole::Open,
                    bytes,
                });
            }
        }
        Ok(Self {
            path: node.path,
            format: node.format,
            described: Some(Described {
                given: given.to_owned(),
                read_only: node.read_only,
                images: node.images,
            }),
            shown: node.shown,
            secrets,
            share: node.share,
        })
    }

    /// Whether options say how long a raw image is.
    #[must_use]
    pub fn is_sized(&self) -> bool {
        let images = self.described.as_ref().map(|described| &described.images);
        let image = images.and_then(|images| images.first());
        image.is_some_and(|image| image.file.part.size.is_some())
    }

    /// The only image among `names`.
    ///
    /// # Errors
    /// As of [`Image::new`]; or there are more or fewer.
    pub fn only(names: &[OsString], how: &FormatOptions) -> Result<Self, UsageError> {
        Self::new(only_name(names)?, how)
    }
}

/// The only one of `names`.
///
/// # Errors
/// There are more or fewer.
pub fn only_name(names: &[OsString]) -> Result<&OsStr, UsageError> {
    match names {
        [name] => Ok(name),
        _ => Err(UsageError::with_help("Expecting one image file name")),
    }
}

/// Prints a warning at once.
fn warn(warning: &str) {
    let mut stderr = Sink::stderr();
    stderr.put(persona::name().as_bytes());
    stderr.put(b": warning: ");
    for (index, line) in warning.split('\n').enumerate() {
        if index > 0 {
            stderr.put(b"\n");
        }
        stderr.name(line.as_bytes());
    }
    stderr.put(b"\n");
    // Nobody is left to tell if standard error itself cannot be written.
    let _ = stderr.finish();
}

/// Whether some other program has a format of this name.
#[must_use]
pub fn is_foreign_format(name: &str) -> bool {
    FOREIGN_FORMATS.contains(&name)
}

fn could_not_open(name: &OsStr, reason: &str) -> UsageError {
    UsageError::plain(format!("Could not open '{}': {reason}", name.display()))
}

/// What is wrong with the image `name`, without the words that say that it is that image.
#[must_use]
pub fn reason(name: &OsStr, error: &UsageError) -> String {
    let opening = could_not_open(name, "").sentence;
    let sentence = &error.sentence;
    sentence
        .strip_prefix(&opening)
        .unwrap_or(sentence)
        .to_owned()
}

/// The format that `-f` names.
fn format(name: &OsStr, option: Option<&OsString>) -> Result<ImageFormat, UsageError> {
    let Some(option) = option else {
        return Ok(ImageFormat::Probe);
    };
    let format = option.display();
    match option.to_str() {
        Some("raw") => Ok(ImageFormat::Raw),
        Some("qcow2") => Ok(ImageFormat::Qcow2),
        Some(known) if is_foreign_format(known) => Err(could_not_open(
            name,
            &format!("instar does not read the format '{known}'"),
        )),
        _ => Err(could_not_open(name, &format!("Unknown driver '{format}'"))),
    }
}

/// The name as typed, if it is a local file's; `file:` may stand before it.
fn local_path(name: &OsStr) -> Result<PathBuf, UsageError> {
    let bytes = name.as_bytes();
    let path = match bytes.strip_prefix(b"file:") {
        Some(rest) => rest,
        None if has_protocol(bytes) => return Err(foreign_protocol(name)),
        None => bytes,
    };
    if path.is_empty() {
        return Err(could_not_open(
            name,
            "The 'file' block driver requires a file name",
        ));
    }
    Ok(PathBuf::from(name))
}

/// Why no file of this name can be made, if its protocol is one that nobody knows.
#[must_use]
pub fn unknown_protocol(name: &OsStr) -> Option<String> {
    let bytes = name.as_bytes();
    if !has_protocol(bytes) || bytes.starts_with(b"file:") {
        return None;
    }
    let text = name.to_string_lossy();
    let protocol = text.split(':').next().unwrap_or_default();
    (!FOREIGN_PROTOCOLS.contains(&protocol)).then(|| format!("Unknown protocol '{protocol}'"))
}

fn foreign_protocol(name: &OsStr) -> UsageError {
    let text = name.to_string_lossy();
    let protocol = text.split(':').next().unwrap_or_default();
    if FOREIGN_PROTOCOLS.contains(&protocol) {
        could_not_open(
            name,
            &format!("instar does not read over the protocol '{protocol}'"),
        )
    } else {
        could_not_open(name, &format!("Unknown protocol '{protocol}'"))
    }
}

#[cfg(test)]
mod tests;
