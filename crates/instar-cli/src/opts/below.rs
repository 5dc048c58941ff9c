//! What options say of the images below the one that they describe, and of its data file.
//!
//! `backing.…` describes another backing file than the one that the image names, or how that is opened if no file is
//! given; a `backing` that is empty or null says that there is none. `data-file.…` describes another data file.

use super::node::{self, Node, generic, keys, protocol};
use super::value::{state_of, take_child, take_text, text_of};
use super::{Options, Scalar};
use crate::files::{FileOptions, ImageOptions};
use crate::image::is_foreign_format;
use instar_shared::op::ImageFormat;

/// Deepest image of a chain that options may describe.
const MAX_DEPTH: u32 = 200;
/// A file that is not described as such.
const REFERENCE: &str =
    "Cannot reference an existing block device with additional options or a new filename";
/// Options without the one that counts.
const NO_FILE: &str = "Must specify either driver or file";

/// The first option that is about an image below, other than that there is none.
pub fn first(options: &Options) -> Option<&String> {
    let is_below = |(key, value): &(&String, &Scalar)| match value {
        Scalar::Null => key.starts_with("backing."),
        Scalar::Text(name) if name.is_empty() => key.starts_with("backing."),
        _ => key.as_str() == "backing" || key.starts_with("backing."),
    };
    options.iter().find(is_below).map(|(key, _)| key)
}

/// Takes what is said of the data file of `image`, which is the described one, and of the images below it.
///
/// # Errors
/// The sentence of `qemu-img`, where it has one.
pub fn read(
    options: &mut Options,
    image: &mut ImageOptions,
    node: &mut Node,
) -> Result<(), String> {
    let data = data_file(options);
    let alone = backing(options, image.direct, 1, node);
    image.data = data?;
    image.alone = alone?;
    Ok(())
}

/// What is said of a data file, if anything is.
fn data_file(options: &mut Options) -> Result<Option<FileOptions>, String> {
    let reference = options.remove("data-file");
    let mut child = take_child(options, "data-file");
    if let Some(Scalar::Text(name)) = reference {
        return Err(no_such_node(&name));
    }
    if child.is_empty() {
        return Ok(None);
    }
    match take_text(&mut child, "driver").as_deref() {
        None if !child.contains_key("filename") => Err(NO_FILE.to_owned()),
        Some("raw") => {
            let file = take_child(&mut child, "file");
            if file.is_empty() {
                return Err("A block device must be specified for \"file\"".to_owned());
            }
            generic(&mut child)?;
            if !node::raw(&mut child)?.is_whole() {
                return Err(
                    "instar takes a whole file as data file, without 'data-file.offset' and 'data-file.size'"
                        .to_owned(),
                );
            }
            none_left(&child, "raw")?;
            Ok(Some(protocol(file)?.2))
        }
        Some("qcow2") => {
            Err("instar takes a data file as it is ('data-file.driver' is 'qcow2')".to_owned())
        }
        driver => {
            let driver = driver.unwrap_or("file");
            child.insert("driver".to_owned(), text_of(driver));
            Ok(Some(protocol(child)?.2))
        }
    }
}

/// Takes what is said of the image `depth` below the described one; whether it says that there is none.
fn backing(
    options: &mut Options,
    direct: Option<bool>,
    depth: u32,
    node: &mut Node,
) -> Result<bool, String> {
    match options.remove("backing") {
        Some(Scalar::Text(name)) if name.is_empty() => {
            return Ok(true);
        }
        Some(Scalar::Null) => return Ok(true),
        Some(Scalar::Text(name)) => return Err(below(&no_such_node(&name))),
        Some(_) | None => {}
    }
    let child = take_child(options, "backing");
    if child.is_empty() {
        return Ok(false);
    }
    if depth > MAX_DEPTH {
        return Err("the options describe too long a chain".to_owned());
    }
    // Before those that are further down.
    let at = node.images.len();
    let image = image(child, direct, depth, node).map_err(|reason| below(&reason))?;
    node.images.insert(at, image);
    Ok(false)
}

/// What is said of an image by the options that are about it.
fn image(
    mut options: Options,
    above: Option<bool>,
    depth: u32,
    node: &mut Node,
) -> Result<ImageOptions, String> {
    let mut image = ImageOptions {
        told: true,
        direct: state_of(&options, "cache.direct").or(above),
        ..ImageOptions::default()
    };
    match take_text(&mut options, "driver").as_deref() {
        None => {}
        Some("qcow2") => image.format = Some(ImageFormat::Qcow2),
        Some("raw") => image.format = Some(ImageFormat::Raw),
        Some(driver @ ("file" | "host_device")) => {
            options.insert("driver".to_owned(), text_of(driver));
            image.format = Some(ImageFormat::Raw);
            image.file = protocol(options)?.2;
            return Ok(image);
        }
        Some(name) if is_foreign_format(name) => {
            return Err(format!("instar does not read the format '{name}'"));
        }
        Some(name) => return Err(format!("Unknown driver '{name}'")),
    }
    image.file = match take_file(&mut options)? {
        Some(file) => file,
        None => file_options(&mut options)?,
    };
    generic(&mut options)?;
    if image.format == Some(ImageFormat::Raw) {
        image.file.part = node::raw(&mut options)?;
        if first(&options).is_some() {
            return Err("Driver doesn't support backing files".to_owned());
        }
        none_left(&options, "raw")?;
        return Ok(image);
    }
    node::qcow2(&mut options)?;
    image.data = data_file(&mut options)?;
    image.encryption = keys(&mut options, &mut node.keys, depth)?;
    image.alone = backing(&mut options, image.direct, depth.saturating_add(1), node)?;
    none_left(&options, "qcow2")?;
    Ok(image)
}

/// The file that is described, if one is.
fn take_file(options: &mut Options) -> Result<Option<FileOptions>, String> {
    if matches!(options.remove("file"), Some(Scalar::Text(_))) {
        return Err(REFERENCE.to_owned());
    }
    let names_one = ["file.filename", "file.driver"]
        .iter()
        .any(|key| options.contains_key(*key));
    if !names_one {
        return Ok(None);
    }
    let file = take_child(options, "file");
    protocol(file).map(|(_, _, file)| Some(file))
}

/// What is said of a file that the image above names.
fn file_options(options: &mut Options) -> Result<FileOptions, String> {
    let mut file = take_child(options, "file");
    // Whatever it is called.
    file.insert("filename".to_owned(), text_of("-"));
    let options = protocol(file)?.2;
    Ok(FileOptions {
        path: None,
        ..options
    })
}

/// Refuses options that nobody has taken.
fn none_left(options: &Options, format: &str) -> Result<(), String> {
    match options.keys().next() {
        None => Ok(()),
        Some(key) => Err(format!(
            "Block format '{format}' does not support the option '{key}'"
        )),
    }
}

fn no_such_node(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    format!("Cannot find device='{name}' nor node-name='{name}'")
}

fn below(reason: &str) -> String {
    format!("Could not open backing file: {reason}")
}
