//! From a typed name and format to an image that a job can open.

use crate::cli::{FormatOptions, UsageError};
use crate::info::has_protocol;
use instar_shared::op::ImageFormat;
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
const FOREIGN_PROTOCOLS: [&str; 19] = [
    "json",
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
    /// The name as typed.
    pub path: PathBuf,
    /// The format as typed, or `Probe`.
    pub format: ImageFormat,
}

impl Image {
    /// The image of this name, opened as the options say.
    ///
    /// # Errors
    /// The options ask for what is not there, or the name is no local file's.
    pub fn new(name: &OsStr, how: &FormatOptions) -> Result<Self, UsageError> {
        if how.image_opts {
            return Err(UsageError::plain(if how.format.is_some() {
                "--image-opts and --format are mutually exclusive"
            } else {
                "--image-opts is not there yet; name the image file instead"
            }));
        }
        if !how.object.is_empty() {
            return Err(UsageError::plain(
                "--object is not there yet; 'instar info' describes encrypted images without a key",
            ));
        }
        Self::with_format(name, how.format.as_ref())
    }

    /// The image of this name and format.
    ///
    /// # Errors
    /// There is no such format, or the name is no local file's.
    pub fn with_format(name: &OsStr, option: Option<&OsString>) -> Result<Self, UsageError> {
        Ok(Self {
            format: format(name, option)?,
            path: local_path(name)?,
        })
    }

    /// The only image among `names`.
    ///
    /// # Errors
    /// As of [`Image::new`]; or there are more or fewer.
    pub fn only(names: &[OsString], how: &FormatOptions) -> Result<Self, UsageError> {
        let [name] = names else {
            return Err(UsageError::with_help("Expecting one image file name"));
        };
        Self::new(name, how)
    }
}

/// Whether some other program has a format of this name.
#[must_use]
pub fn is_foreign_format(name: &str) -> bool {
    FOREIGN_FORMATS.contains(&name)
}

fn could_not_open(name: &OsStr, reason: &str) -> UsageError {
    UsageError::plain(format!("Could not open '{}': {reason}", name.display()))
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
