//! What is made of the sources.

use super::ConvertOptions;
use crate::amend::OptionList;
use crate::cli::{self, LimitOptions, UsageError};
use crate::create::{
    self,
    encryption::Encryption,
    options::{NewFormat, NewOptions},
};
use crate::files::{Growth, InputFile, Reads, path_of_backing};
use crate::image::{self, Image, Use};
use crate::launch::{self, NewFile};
use instar_shared::convert::{CONVERT_DURABLE, ConvertConfig};
use instar_shared::op::ImageFormat;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Both `-B` and `-o` can name a backing file.
const BACKING_OF_SEVERAL: &str =
    "Having a backing file for the target makes no sense when concatenating multiple input images";

/// A target and what belongs to it.
#[derive(Debug)]
pub struct Target {
    image: Image,
    format: NewFormat,
    create: bool,
    durable: bool,
    options: NewOptions,
    /// If its data is encrypted.
    encryption: Option<Encryption>,
    /// Format of the backing file, if there is one.
    backing: Option<ImageFormat>,
}

/// What stands between the target's name and the reason why it cannot be made.
#[must_use]
pub const fn doing(format: NewFormat) -> &'static str {
    match format {
        NewFormat::Raw => "error while converting raw: ",
        NewFormat::Qcow2 => "error while converting qcow2: ",
    }
}

/// The text that `-o help` asks for.
///
/// # Errors
/// There is no such format, or the options are no list.
pub fn help(options: &ConvertOptions) -> Result<Option<&'static str>, UsageError> {
    let list = option_list(options)?;
    if !list.is_some_and(|list| list.wants_help()) {
        return Ok(None);
    }
    let format = NewFormat::named(&options.target_format);
    let format =
        format.ok_or_else(|| UsageError::plain(create::unknown_format(&options.target_format)))?;
    Ok(Some(create::help_text(format, !options.files.is_empty())))
}

/// What all `-o` list.
///
/// # Errors
/// One is no list.
pub fn option_list(options: &ConvertOptions) -> Result<Option<OptionList>, UsageError> {
    create::options::list(&options.target_options).map_err(UsageError::plain)
}

impl Target {
    /// What the options make of so many sources.
    ///
    /// # Errors
    /// Why they make nothing; it counts after the sources have been opened.
    pub fn new(typed: &ConvertOptions, sources: usize) -> Result<Self, String> {
        check_sources(typed, sources)?;
        let format = NewFormat::named(&typed.target_format);
        let format = format.ok_or_else(|| create::unknown_format(&typed.target_format))?;
        let list = option_list(typed).map_err(|error| error.sentence)?;
        let mut options = NewOptions::new_for(super::target_name(typed), format, list.as_ref())?;
        if !typed.no_create {
            set_backing(typed, format, &mut options)?;
            check_backing(&options, sources)?;
        }
        check_ways(typed, format, &options, sources)?;
        cli::cache_mode("", typed.target_cache.as_ref()).map_err(|error| error.sentence)?;
        let name = super::target_name(typed);
        let fails = |sentence: String| {
            let (name, doing) = (name.display(), doing(format));
            format!("{name}: {doing}{sentence}")
        };
        if let Some(sentence) = options.refusal() {
            return Err(fails(sentence));
        }
        if let Some(sentence) = image::unknown_protocol(name).filter(|_| !typed.no_create) {
            return Err(sentence);
        }
        let image = if typed.target_image_opts {
            Image::from_options(Use::Content, name)
        } else if typed.no_create {
            Image::with_format(name, Some(&typed.target_format))
        } else {
            Image::local(name, None)
        };
        let image = image.map_err(|error| error.sentence)?;
        let cache = typed.target_cache.as_deref();
        Ok(Self {
            image,
            format,
            create: !typed.no_create,
            durable: cache.is_some_and(|mode| mode != "unsafe"),
            backing: backing_format(&options)?,
            encryption: Encryption::of_new(&options).map_err(fails)?,
            options,
        })
    }

    /// Name of the secret that is to open it.
    pub fn key_secret(&self) -> Option<&Vec<u8>> {
        self.encryption.as_ref()?.key_secret.as_ref()
    }

    /// Adds the target's files to those that the job opens, and says so in the config.
    pub fn add_to(
        self,
        inputs: &mut Vec<InputFile>,
        config: &mut ConvertConfig,
        limits: &LimitOptions,
    ) {
        let raw = self.format == NewFormat::Raw;
        let format = image_format(self.format);
        config.target_format.set(format.raw());
        self.options.put(&mut config.options);
        if let Some(encryption) = &self.encryption {
            config.options.encryption = encryption.wire(false);
        }
        if let Some(format) = self.backing {
            let name = OsStr::from_bytes(self.options.text("backing_file").unwrap_or_default());
            config.backing_format.set(format.raw());
            config.backing_slot.set(next_slot(inputs));
            let path = path_of_backing(self.image.path.as_os_str(), name);
            inputs.push(launch::to_read(
                Image::file(path, format),
                Reads::Contents,
                false,
            ));
        }
        config.target_slot.set(next_slot(inputs));
        if self.durable {
            config.flags.set(config.flags.get() | CONVERT_DURABLE);
        }
        let Self { image, durable, .. } = self;
        if !self.create {
            let image = Image { format, ..image };
            inputs.push(launch::to_change(image, Growth::default(), limits));
            return;
        }
        let image = NewFile {
            path: image.path,
            raw,
            durable,
            layout: self.options.layout(),
        };
        let data = self.options.text("data_file");
        let data = data.map(|name| image.data(PathBuf::from(OsStr::from_bytes(name))));
        inputs.push(launch::to_create(image, limits));
        if let Some(data) = data {
            config.data_slot.set(next_slot(inputs));
            inputs.push(launch::to_create(data, limits));
        }
    }
}

const fn image_format(format: NewFormat) -> ImageFormat {
    match format {
        NewFormat::Raw => ImageFormat::Raw,
        NewFormat::Qcow2 => ImageFormat::Qcow2,
    }
}

/// The slot that the next file gets.
fn next_slot(inputs: &[InputFile]) -> u32 {
    u32::try_from(inputs.len()).unwrap_or(u32::MAX)
}

/// Takes `-B` and `-F` in, which count more than `-o`.
fn set_backing(
    typed: &ConvertOptions,
    format: NewFormat,
    options: &mut NewOptions,
) -> Result<(), String> {
    let given = [
        ("backing_file", &typed.backing, "Backing file"),
        ("backing_fmt", &typed.backing_format, "Backing file format"),
    ];
    for (name, value, what) in given {
        let Some(value) = value else { continue };
        if format == NewFormat::Raw {
            return Err(format!("{what} not supported for file format 'raw'"));
        }
        options.set(name.as_bytes(), value.as_bytes())?;
    }
    Ok(())
}

/// What an image with a backing file cannot do without, or have.
fn check_backing(options: &NewOptions, sources: usize) -> Result<(), String> {
    if options.text("backing_file").is_none() {
        return Ok(());
    }
    if sources > 1 {
        return Err(BACKING_OF_SEVERAL.into());
    }
    match options.text("backing_fmt") {
        Some(_) => Ok(()),
        None => Err("Use of backing file requires explicit backing format".into()),
    }
}

/// The format of the backing file, if the options name one.
fn backing_format(options: &NewOptions) -> Result<Option<ImageFormat>, String> {
    if options.text("backing_file").is_none() {
        return Ok(None);
    }
    let format = OsStr::from_bytes(options.text("backing_fmt").unwrap_or_default());
    match NewFormat::named(format) {
        Some(format) => Ok(Some(image_format(format))),
        None => Err(format!(
            "instar does not read the format '{}'",
            format.display()
        )),
    }
}

/// What several sources cannot have, whatever the target is.
fn check_sources(typed: &ConvertOptions, sources: usize) -> Result<(), String> {
    let wrong = if sources < 2 {
        return Ok(());
    } else if typed.source_snapshot.is_some() {
        "No support for concatenating multiple snapshot"
    } else if typed.backing.is_some() {
        BACKING_OF_SEVERAL
    } else {
        return Ok(());
    };
    Err(wrong.into())
}

/// What the format, or so many sources, cannot have.
fn check_ways(
    typed: &ConvertOptions,
    format: NewFormat,
    options: &NewOptions,
    sources: usize,
) -> Result<(), String> {
    let reserves = options
        .text("preallocation")
        .is_some_and(|mode| mode != b"off");
    let wrong = if typed.compress && format == NewFormat::Raw {
        "Compression not supported for this file format"
    } else if typed.compress && Encryption::is_named(options) {
        "Compression and encryption not supported at the same time"
    } else if typed.compress && reserves {
        "Compression and preallocation not supported at the same time"
    } else if typed.bitmaps && sources > 1 {
        "Copying bitmaps only possible with single source"
    } else if typed.target_is_zero && typed.backing.is_some() {
        "Cannot use --target-is-zero when the destination image has a backing file"
    } else if typed.bitmaps && format == NewFormat::Raw {
        "Format driver 'raw' does not support bitmaps"
    } else if typed.bitmaps && matches!(options.text("compat"), Some(b"0.10" | b"v2")) {
        "Format driver 'qcow2' does not support bitmaps"
    } else {
        return Ok(());
    };
    Err(wrong.into())
}
