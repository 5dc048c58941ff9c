//! An image that is described by options: a format node over a file node.
//!
//! Taken are the drivers `qcow2` and `raw` over `file` and `host_device`, or one of the latter alone. Options
//! for speed and caching are checked and have no effect: `-t` and `-T` say how a file is reached, and guests keep
//! their own tables. What would change which bytes are read (`offset`, `size`, another backing file, another
//! data file, other drivers) is refused by name.

use super::{Options, Scalar};
use crate::image::is_foreign_format;
use crate::info::has_protocol;
use crate::opts::keyval::is_identifier;
use crate::opts::value::{
    as_text, is_on, one_of, quoted, size, switch, switch_value, take_child, take_text, text_of,
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
/// Deepest image of a chain that options may describe.
const MAX_DEPTH: u32 = 200;

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
    let (path, _) = protocol(options)?;
    Ok(Node {
        bare: true,
        share,
        read_only,
        ..Node::of(path, ImageFormat::Raw)
    })
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
    let (path, below) = protocol(file)?;
    let mut node = Node::of(path, format);
    node.share = is_on(&options, "force-share");
    node.read_only = is_on(&options, "read-only");
    generic(&mut options)?;
    let name = if format == ImageFormat::Raw {
        raw(&mut options)?;
        "raw"
    } else {
        qcow2(&mut options, &mut node)?;
        "qcow2"
    };
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
        }
    }
}

/// The file node: its path with its driver, and how a name in JSON shows it.
fn protocol(mut options: Options) -> Result<(PathBuf, String), String> {
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
    one_of(&mut options, "locking", &["auto", "on", "off"])?;
    let direct = is_on(&options, "cache.direct");
    match options.remove("aio") {
        Some(Scalar::Text(aio)) if aio == b"native" && !direct => {
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
    Ok((PathBuf::from(OsString::from_vec(path)), below))
}

/// Checks what every node has, and takes it out, but for [`SWITCHES`] of a file node.
fn generic(options: &mut Options) -> Result<(), String> {
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

/// Checks what a `raw` node has.
fn raw(options: &mut Options) -> Result<(), String> {
    options.retain(|key, _| !SWITCHES.contains(&key.as_str()));
    let offset = size(options, "offset")?;
    let size = size(options, "size")?;
    if offset.is_some_and(|offset| offset > 0) || size.is_some() {
        return Err(
            "instar reads a raw image from its first byte to its last, without 'offset' and 'size'"
                .to_owned(),
        );
    }
    Ok(())
}

/// Checks what a `qcow2` node has, and takes the names of secrets.
fn qcow2(options: &mut Options, node: &mut Node) -> Result<(), String> {
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
    if options
        .keys()
        .any(|key| key == "data-file" || key.starts_with("data-file."))
    {
        return Err(
            "instar takes the data file that the image names, without 'data-file'".to_owned(),
        );
    }
    node.below = options.keys().find(|key| is_below(key)).cloned();
    keys(options, &mut node.keys, 0)?;
    node.refused = below(options, 0, &mut node.keys).err();
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

fn is_below(key: &str) -> bool {
    key == "backing" || key.starts_with("backing.")
}

/// Takes the secrets of the image at `depth`.
fn keys(options: &mut Options, found: &mut Vec<(u32, String)>, depth: u32) -> Result<(), String> {
    if let Some(value) = options.remove("encrypt.format").map(as_text)
        && !matches!(value.as_slice(), b"luks" | b"aes")
    {
        let value = String::from_utf8_lossy(&value);
        return Err(format!(
            "Parameter 'encrypt.format' does not accept value '{value}'"
        ));
    }
    if let Some(id) = options.remove("encrypt.key-secret").map(as_text) {
        found.push((depth, String::from_utf8_lossy(&id).into_owned()));
    }
    match options.keys().find_map(|key| key.strip_prefix("encrypt.")) {
        Some(key) => Err(format!("Parameter '{key}' is unexpected")),
        None => Ok(()),
    }
}

/// Takes what is said of the images below the one at `depth`: their secrets, and nothing that makes them others.
fn below(options: &mut Options, depth: u32, found: &mut Vec<(u32, String)>) -> Result<(), String> {
    let reference = options.remove("backing");
    let mut child = take_child(options, "backing");
    if reference.is_some() {
        return Err(
            "instar takes the backing file that the image names, without 'backing'".to_owned(),
        );
    }
    if child.is_empty() {
        return Ok(());
    }
    let next = depth.checked_add(1).filter(|next| *next <= MAX_DEPTH);
    let next = next.ok_or("the options describe too long a chain")?;
    keys(&mut child, found, next)?;
    below(&mut child, next, found)?;
    generic(&mut child)?;
    child.retain(|key, _| !SWITCHES.contains(&key.as_str()));
    match child.keys().next() {
        None => Ok(()),
        Some(key) => Err(format!(
            "instar takes the backing file that the image names, without 'backing.{key}'"
        )),
    }
}
