//! File names as QEMU reads them: protocol prefixes, and names relative to another image.
//!
//! A name is a sequence of any bytes. What stands before a colon is a protocol,
//! unless a slash comes first. Observed with qemu-img 10.0.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Longest name that is looked at, with its folder: Linux `PATH_MAX` less the NUL.
pub const MAX_PATH_BYTES: usize = 4095;

/// Protocols of QEMU that are neither a file nor a device of this host.
const REMOTE: [&str; 24] = [
    "blkdebug",
    "blklogwrites",
    "blkverify",
    "fat",
    "ftp",
    "ftps",
    "gluster",
    "gluster+rdma",
    "gluster+tcp",
    "gluster+unix",
    "http",
    "https",
    "iscsi",
    "iser",
    "nbd",
    "nbd+tcp",
    "nbd+unix",
    "nfs",
    "null-aio",
    "null-co",
    "nvme",
    "quorum",
    "rbd",
    "ssh",
];

/// What the driver in front of a name demands of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// No prefix: regular files and devices.
    Any,
    /// `file:`: a regular file.
    File,
    /// `host_device:`: a block or character device.
    HostDevice,
}

/// A name that is a path of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// What is opened, and shown as the image's name.
    pub path: Vec<u8>,
    /// What it must be.
    pub driver: Driver,
}

/// Why a name is no path of this host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing where the path should be.
    #[error("The 'file' block driver requires a file name")]
    Empty,
    /// QEMU's options as JSON.
    #[error("json: file names are not supported; name the file itself")]
    Json,
    /// A protocol that reaches other hosts or wraps other drivers.
    #[error("the '{0}' protocol is not supported; only files and devices of this host are opened")]
    Remote(&'static str),
    /// QEMU does not know it either; the bytes before the colon.
    #[error("Unknown protocol '{}'", String::from_utf8_lossy(.0))]
    UnknownProtocol(Vec<u8>),
}

/// The protocol prefix of `name`, without its colon.
fn protocol(name: &[u8]) -> Option<&[u8]> {
    let end = name.iter().position(|b| matches!(b, b':' | b'/'))?;
    (name.get(end) == Some(&b':'))
        .then(|| name.get(..end))
        .flatten()
}

/// `rest`, marked as a path where its own colon would make it a protocol.
fn plain_path(rest: &[u8]) -> Vec<u8> {
    let dot: &[u8] = if protocol(rest).is_some() { b"./" } else { b"" };
    [dot, rest].concat()
}

/// Takes `name` apart.
///
/// # Errors
/// [`NameError`]: it is no path of this host.
pub fn parse(name: &[u8]) -> Result<Name, NameError> {
    let (driver, rest) = match protocol(name) {
        None => (Driver::Any, name),
        Some(b"file") => (Driver::File, name.get(5..).unwrap_or_default()),
        Some(prefix @ (b"host_device" | b"host_cdrom")) => (
            Driver::HostDevice,
            name.get(prefix.len().saturating_add(1)..)
                .unwrap_or_default(),
        ),
        Some(b"json") => return Err(NameError::Json),
        Some(prefix) => {
            let known = REMOTE
                .into_iter()
                .find(|remote| remote.as_bytes() == prefix);
            return Err(known.map_or_else(
                || NameError::UnknownProtocol(prefix.to_vec()),
                NameError::Remote,
            ));
        }
    };
    if rest.is_empty() {
        return Err(NameError::Empty);
    }
    let path = if driver == Driver::Any {
        rest.to_vec()
    } else {
        plain_path(rest)
    };
    Ok(Name { path, driver })
}

/// `name` as it stands in the image at `parent`: relative to the folder of that path as given.
pub fn combine(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if name.is_empty() || name.first() == Some(&b'/') || protocol(name).is_some() {
        return name.to_vec();
    }
    [folder(parent), name].concat()
}

/// Where the backing file is that an image at `image` is to name as `name`: the user types it as it will
/// stand in the image, relative to the image's folder.
#[must_use]
pub fn path_of_backing(image: &OsStr, name: &OsStr) -> PathBuf {
    OsString::from_vec(combine(image.as_bytes(), name.as_bytes())).into()
}

/// The folder part of `path`, with its slash; empty for the current folder.
pub fn folder(path: &[u8]) -> &[u8] {
    let end = path
        .iter()
        .rposition(|b| *b == b'/')
        .map_or(0, |slash| slash.saturating_add(1));
    path.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_of(name: &str) -> Result<(String, Driver), NameError> {
        parse(name.as_bytes()).map(|n| (String::from_utf8(n.path).unwrap(), n.driver))
    }

    #[test]
    fn parse_plain_and_prefixed_names_as_qemu() {
        let cases = [
            ("a.qcow2", "a.qcow2", Driver::Any),
            ("./x:y", "./x:y", Driver::Any),
            ("sub/c:o", "sub/c:o", Driver::Any),
            ("file:a.qcow2", "a.qcow2", Driver::File),
            ("file:file:a", "./file:a", Driver::File),
            ("file:x:y", "./x:y", Driver::File),
            ("file://a", "//a", Driver::File),
            ("file:///a", "///a", Driver::File),
            ("host_device:/dev/null", "/dev/null", Driver::HostDevice),
            ("host_cdrom:/dev/sr0", "/dev/sr0", Driver::HostDevice),
        ];
        for (name, path, driver) in cases {
            assert_eq!(path_of(name), Ok((path.into(), driver)), "{name}");
        }
    }

    #[test]
    fn parse_what_is_no_path_is_refused_in_qemus_words() {
        let text = |name: &str| path_of(name).unwrap_err().to_string();
        assert_eq!(text(""), "The 'file' block driver requires a file name");
        assert_eq!(
            text("file:"),
            "The 'file' block driver requires a file name"
        );
        for (name, prefix) in [
            ("x:y", "x"),
            (":q", ""),
            ("FILE:a", "FILE"),
            ("d:d/i", "d"),
            ("a b:c", "a b"),
        ] {
            assert_eq!(text(name), format!("Unknown protocol '{prefix}'"));
        }
        assert_eq!(path_of("json:{}"), Err(NameError::Json));
        assert_eq!(path_of("nbd://host/x"), Err(NameError::Remote("nbd")));
    }

    #[test]
    fn combine_starts_at_the_folder_of_the_parent_as_given() {
        let cases = [
            ("sub/o", "base", "sub/base"),
            ("o", "base", "base"),
            ("./sub/o", "../base", "./sub/../base"),
            ("sub//o", "base", "sub//base"),
            ("/a/o", "b/c", "/a/b/c"),
            ("sub/o", "/abs", "/abs"),
            ("sub/o", "file:base", "file:base"),
            ("sub/o", "./a:b", "sub/./a:b"),
            ("sub/c:o", "deep/a:b", "sub/deep/a:b"),
            ("/o", "base", "/base"),
        ];
        for (parent, name, combined) in cases {
            assert_eq!(
                combine(parent.as_bytes(), name.as_bytes()),
                combined.as_bytes(),
                "{parent} {name}"
            );
        }
    }

    #[test]
    fn names_are_bytes() {
        let name = [b"\xff\x01".as_slice(), &[b'n'; 1021]].concat();
        assert_eq!(parse(&name).unwrap().path, name);
        assert_eq!(
            combine(b"d\n/o", &name),
            [b"d\n/".as_slice(), &name].concat()
        );
        assert_eq!(
            parse(b"\xff:x"),
            Err(NameError::UnknownProtocol(vec![0xff]))
        );
    }
}
