//! An image that is described by options: a format node over a file node.
//!
//! Taken are the drivers `qcow2` and `raw` over `file` and `host_device`, or one of the latter alone; what is said of
//! the images below is in [`below`](super::below). Of the options for speed and caching `cache.direct` has its effect,
//! which goes before that of `-t` and `-T`; the others are checked and have none: guests keep their own tables. Other
//! drivers are refused by name.

use super::{Options, Scalar, below};
use crate::files::{Encryption, FileOptions, ImageOptions, Part};
use crate::image::is_foreign_format;
use crate::info::has_protocol;
use crate::opts::keyval::is_identifier;
use crate::opts::value::{
    as_text, is_on, one_of, quoted, shown, size, state_of, switch, switch_value, take_child,
    take_text, text_of,
};
use crate::quantity;
use instar_shared::op::ImageFormat;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Options of every node that are on or off.
const SWITCHES: [&str; 5] = [
    "auto-read-only",
    "cache.direct",
    "cache.no-flush",
    "force-share",
    "read-only",
];
/// Options of `qcow2` that are on or off.
const QCOW2_SWITCHES: [&str; 14] = [
    "discard-no-unref",
    "lazy-refcounts",
    "overlap-check.active-l1",
    "overlap-check.active-l2",
    "overlap-check.bitmap-directory",
    "overlap-check.inactive-l1",
    "overlap-check.inactive-l2",
    "overlap-check.main-header",
    "overlap-check.refcount-block",
    "overlap-check.refcount-table",
    "overlap-check.snapshot-table",
    "pass-discard-other",
    "pass-discard-request",
    "pass-discard-snapshot",
];
/// Options of `qcow2` that are sizes.
const QCOW2_SIZES: [&str; 4] = [
    "cache-size",
    "l2-cache-entry-size",
    "l2-cache-size",
    "refcount-cache-size",
];

/// What options say about an image.
#[derive(Debug, PartialEq, Eq)]
pub struct Node {
    /// Its file, with the driver before it if there is one.
    pub path: PathBuf,
    /// Its format.
    pub format: ImageFormat,
    /// Its name as `info` shows it, if the file's name is not all.
    pub shown: Option<String>,
    /// Names of secrets, and which image of the chain each opens: 0 is this one.
    pub keys: Vec<(u32, String)>,
    /// The first option that is about the image below.
    pub below: Option<String>,
    /// Why such options cannot be followed.
    pub refused: Option<String>,
    /// Others may write meanwhile.
    pub share: bool,
    /// It must not be written.
    pub read_only: bool,
    /// There is no format, only a file.
    pub bare: bool,
    /// What is said of the image beyond that, then of the one below it, and so on.
    pub images: Vec<ImageOptions>,
}

/// The image that `options` describe, of the format `forced` if there is one.
///
/// # Errors
/// The reason in `qemu-img`'s words, where it has some.
pub fn read(mut options: Options, forced: Option<&str>) -> Result<Node, String> {
    let named = take_text(&mut options, "driver");
    let driver = forced.map(str::to_owned).or(named);
    let file = take_child(&mut options, "file");
    let reference = options.remove("file");
    let format = match driver.as_deref() {
        Some(driver @ ("file" | "host_device")) => return bare(options, driver),
        Some("qcow2") => ImageFormat::Qcow2,
        Some("raw") => ImageFormat::Raw,
        Some(name) if is_foreign_format(name) => {
            return Err(format!("instar does not read the format '{name}'"));
        }
        Some(name) => return Err(format!("Unknown driver '{name}'")),
        None if file.is_empty() && reference.is_none() => {
            return Err("Must specify either driver or file".to_owned());
        }
        None => ImageFormat::Probe,
    };
    over(options, format, file, reference)
}

/// A file node without a format above it.
fn bare(mut options: Options, driver: &str) -> Result<Node, String> {
    let (share, read_only) = (is_on(&options, "force-share"), is_on(&options, "read-only"));
    options.insert("driver".to_owned(), text_of(driver));
    let (path, _, file) = protocol(options)?;
    let image = ImageOptions {
        file,
        ..ImageOptions::default()
    };
    Ok(Node {
        bare: true,
        share,
        read_only,
        images: vec![image],
        ..Node::of(path, ImageFormat::Raw)
    })
}

/// Whether the options say, in words that `qemu-img` would rather not read, that there is no backing file: of the image,
/// or of one below it if that counts.
#[must_use]
pub fn says_alone_in_old_words(below_counts: bool, options: &Options) -> bool {
    let is_empty = |value: &Scalar| matches!(value, Scalar::Text(name) if name.is_empty());
    let is_backing = |key: &str| key.split('.').all(|part| part == "backing");
    let mut said = options.iter().filter(|(_, value)| is_empty(value));
    said.any(|(key, _)| key == "backing" || (below_counts && is_backing(key)))
}

/// A node of `format` over the node that `file` describes, or `reference` names.
fn over(
    mut options: Options,
    format: ImageFormat,
    file: Options,
    reference: Option<Scalar>,
) -> Result<Node, String> {
    if let Some(Scalar::Text(name)) = reference {
        let name = String::from_utf8_lossy(&name);
        return Err(if file.is_empty() {
            format!("Cannot find device='{name}' nor node-name='{name}'")
        } else {
            "Cannot reference an existing block device with additional options or a new filename"
                .to_owned()
        });
    }
    if file.is_empty() {
        return Err("A block device must be specified for \"file\"".to_owned());
    }
    let (path, below, file) = protocol(file)?;
    let mut node = Node::of(path, format);
    let mut image = ImageOptions {
        file,
        direct: state_of(&options, "cache.direct"),
        ..ImageOptions::default()
    };
    node.share = is_on(&options, "force-share");
    node.read_only = is_on(&options, "read-only");
    generic(&mut options)?;
    let name = if format == ImageFormat::Raw {
        let values = ["offset", "size"].map(|key| options.get(key).map(shown));
        image.file.part = raw(&mut options)?;
        if let [Some(_), _] | [_, Some(_)] = &values {
            let [offset, size] = values.map(|value| value.unwrap_or_default());
            node.shown = Some(json_of_raw(&offset, &size, &below));
        }
        "raw"
    } else {
        node.below = below::first(&options).cloned();
        qcow2(&mut options)?;
        keys(&mut options, &mut node.keys, 0).map(|found| image.encryption = found)?;
        node.refused = below::read(&mut options, &mut image, &mut node).err();
        "qcow2"
    };
    node.images.insert(0, image);
    if let Some(key) = options.keys().next() {
        return Err(format!(
            "Block format '{name}' does not support the option '{key}'"
        ));
    }
    if let Some((0, id)) = node.keys.first() {
        let id = quoted(id);
        node.shown = Some(format!(
            "json:{{\"encrypt.key-secret\": {id}, \"driver\": \"qcow2\", \"file\": {below}}}"
        ));
    }
    Ok(node)
}

impl Node {
    const fn of(path: PathBuf, format: ImageFormat) -> Self {
        Self {
            path,
            format,
            shown: None,
            keys: Vec::new(),
            below: None,
            refused: None,
            share: false,
            read_only: false,
            bare: false,
            images: Vec::new(),
        }
    }
}

/// The name of a part of a raw file, in JSON; `offset` and `size` are empty if they are not given.
fn json_of_raw(offset: &str, size: &str, file: &str) -> String {
    let pair = |key, value: &str| match value {
        "" => String::new(),
        value => format!("\"{key}\": {value}, "),
    };
    let (offset, size) = (pair("offset", offset), pair("size", size));
    format!("json:{{{offset}\"driver\": \"raw\", {size}\"file\": {file}}}")
}

/// The file node: its path with its driver, how a name in JSON shows it, and what else is said of it.
///
/// # Errors
/// The sentence of `qemu-img`.
pub fn protocol(mut options: Options) -> Result<(PathBuf, String, FileOptions), String> {
    let driver = take_text(&mut options, "driver");
    if driver.is_none() && !options.contains_key("filename") {
        return Err("Must specify either driver or file".to_owned());
    }
    let name = driver.as_deref().unwrap_or("file");
    match name {
        "file" | "host_device" => {}
        "qcow2" | "raw" => {
            return Err(format!(
                "instar reads images from files, not from within another image ('file.driver' is '{name}')"
            ));
        }
        _ if is_foreign_format(name) => {
            return Err(format!("instar does not read over the protocol '{name}'"));
        }
        _ => return Err(format!("Unknown driver '{name}'")),
    }
    let file = match options.remove("filename") {
        Some(Scalar::Text(file)) if !file.is_empty() => file,
        _ => return Err(format!("The '{name}' block driver requires a file name")),
    };
    generic(&mut options)?;
    let unlocked = options.get("locking").cloned().map(as_text) == Some(b"off".to_vec());
    one_of(&mut options, "locking", &["auto", "on", "off"])?;
    let direct = state_of(&options, "cache.direct");
    match options.remove("aio") {
        Some(Scalar::Text(aio)) if aio == b"native" && direct != Some(true) => {
            return Err("aio=native was specified, but it requires cache.direct=on, which was not specified.".to_owned());
        }
        Some(aio) => {
            options.insert("aio".to_owned(), aio);
        }
        None => {}
    }
    one_of(&mut options, "aio", &["threads", "native", "io_uring"])?;
    for key in ["drop-cache", "x-check-cache-dropped"] {
        switch(&mut options, key)?;
    }
    options.retain(|key, _| !SWITCHES.contains(&key.as_str()));
    if let Some(key) = options.keys().next() {
        return Err(format!(
            "Block protocol '{name}' doesn't support the option '{key}'"
        ));
    }
    let shown = String::from_utf8_lossy(&file);
    let below = format!(
        "{{\"driver\": {}, \"filename\": {}}}",
        quoted(name),
        quoted(&shown)
    );
    let prefix = match driver.as_deref() {
        None if !has_protocol(&file) => String::new(),
        _ => format!("{name}:"),
    };
    let path = [prefix.into_bytes(), file].concat();
    let path = PathBuf::from(OsString::from_vec(path));
    let file = FileOptions {
        path: Some(path.clone()),
        unlocked,
        direct,
        part: Part::default(),
    };
    Ok((path, below, file))
}

/// Checks what every node has, and takes it out, but for [`SWITCHES`].
///
/// # Errors
/// The sentence of `qemu-img`.
pub fn generic(options: &mut Options) -> Result<(), String> {
    for key in SWITCHES {
        if let Some(value) = options.get(key) {
            switch_value(key, value)?;
        }
    }
    if let Some(value) = options.remove("node-name") {
        match value {
            Scalar::Text(name) if !is_identifier(&name) => {
                let name = String::from_utf8_lossy(&name);
                return Err(format!("Invalid node-name: '{name}'"));
            }
            _ => {}
        }
    }
    let discard = options.remove("discard");
    let discard = discard.map_or_else(Vec::new, as_text);
    if !matches!(
        discard.as_slice(),
        b"" | b"ignore" | b"off" | b"unmap" | b"on"
    ) {
        return Err("Invalid discard option".to_owned());
    }
    let unmaps = matches!(discard.as_slice(), b"unmap" | b"on");
    let zeroes = options.get("detect-zeroes").cloned().map(as_text);
    one_of(options, "detect-zeroes", &["off", "on", "unmap"])?;
    if zeroes.as_deref() == Some(b"unmap") && !unmaps {
        return Err("setting detect-zeroes to unmap is not allowed without setting discard operation to unmap".to_owned());
    }
    Ok(())
}

/// Checks what a `raw` node has; which part of its file it is.
///
/// # Errors
/// The sentence of `qemu-img`.
pub fn raw(options: &mut Options) -> Result<Part, String> {
    options.retain(|key, _| !SWITCHES.contains(&key.as_str()));
    Ok(Part {
        offset: size(options, "offset")?.unwrap_or(0),
        size: size(options, "size")?,
    })
}

/// Checks what a `qcow2` node has, but for secrets and what lies below it.
///
/// # Errors
/// The sentence of `qemu-img`.
pub fn qcow2(options: &mut Options) -> Result<(), String> {
    options.retain(|key, _| !SWITCHES.contains(&key.as_str()));
    for key in QCOW2_SWITCHES {
        switch(options, key)?;
    }
    caches(options)?;
    for key in ["overlap-check", "overlap-check.template"] {
        let Some(value) = options.remove(key).map(as_text) else {
            continue;
        };
        if !matches!(value.as_slice(), b"none" | b"constant" | b"cached" | b"all") {
            let value = String::from_utf8_lossy(&value);
            return Err(format!(
                "Unsupported value '{value}' for qcow2 option 'overlap-check'. Allowed are any of the \
                 following: none, constant, cached, all"
            ));
        }
    }
    Ok(())
}

/// Checks the sizes of caches.
fn caches(options: &mut Options) -> Result<(), String> {
    let mut given = [None; 4];
    for (key, size_of) in QCOW2_SIZES.iter().zip(&mut given) {
        *size_of = size(options, key)?;
    }
    if let Some(value) = options.remove("cache-clean-interval") {
        let text = as_text(value);
        if quantity::number(&text).is_err() {
            return Err("Parameter 'cache-clean-interval' expects a number".to_owned());
        }
    }
    let [all, _, tables, refcounts] = given;
    match (all, tables, refcounts) {
        (Some(_), Some(_), Some(_)) => Err(
            "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time"
                .to_owned(),
        ),
        (Some(all), Some(tables), _) if tables > all => {
            Err("l2-cache-size may not exceed cache-size".to_owned())
        }
        (Some(all), _, Some(refcounts)) if refcounts > all => {
            Err("refcount-cache-size may not exceed cache-size".to_owned())
        }
        _ => Ok(()),
    }
}

/// Takes the secrets of the image at `depth`, and how it is encrypted.
///
/// # Errors
/// The sentence of `qemu-img`, where it has one.
pub fn keys(
    options: &mut Options,
    found: &mut Vec<(u32, String)>,
    depth: u32,
) -> Result<Option<Encryption>, String> {
    let format = options.remove("encrypt.format").map(as_text);
    let encryption = match format.as_deref() {
        None => None,
        Some(b"aes") => Some(Encryption::Aes),
        Some(b"luks") => Some(Encryption::Luks),
        Some(value) => {
            let value = String::from_utf8_lossy(value);
            return Err(format!(
                "Parameter 'encrypt.format' does not accept value '{value}'"
            ));
        }
    };
    if let Some(id) = options.remove("encrypt.key-secret").map(as_text) {
        found.push((depth, String::from_utf8_lossy(&id).into_owned()));
    }
    match options.keys().find_map(|key| key.strip_prefix("encrypt.")) {
        Some(key) => Err(format!("Parameter '{key}' is unexpected")),
        None => Ok(encryption),
    }
}
