//! `instar create`: a new, empty image.
//!
//! QEMU looks at the options in an order of its own: those that do not read as what they are; then the
//! backing file; then it shows all of them; then it makes the image, and judges values and combinations.

pub mod encryption;
mod help;
pub mod options;
mod output;
#[cfg(test)]
mod tests;

pub use help::text as help_text;

use crate::cli::{self, CreateOptions, LimitOptions, UsageError};
use crate::files::{CREATE, InputFile, Reads, SecretRole, path_of_backing};
use crate::image::{self, Image};
use crate::keyring;
use crate::launch::{self, How, NewFile};
use crate::quantity::{self, QuantityError};
use encryption::Encryption;
use instar_shared::create::{
    CREATE_BACKING_STATED, CREATE_HAS_BACKING, CREATE_LOOK_ONLY, CREATE_SIZE_GIVEN, CreateConfig,
};
use instar_shared::op::ImageFormat;
use instar_shared::zerocopy::IntoBytes;
use options::{NewFormat, NewOptions};
use output::{CreateOutput, Shown};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Largest size of an image: sizes are signed 64-bit numbers to other programs.
pub const MAX_SIZE: u64 = i64::MAX.unsigned_abs();
/// What QEMU adds if the backing file does not open.
pub const NO_BACKING: &str = "\nCould not open backing image.";

/// Runs the command; returns the exit code.
///
/// # Errors
/// The options do not go together, or ask for what is not there.
pub fn run(options: &CreateOptions, limits: &LimitOptions) -> Result<u8, UsageError> {
    let shown_as = cli::output_format(&options.output)?;
    let list = options::list(&options.options).map_err(UsageError::plain)?;
    if list.as_ref().is_some_and(|list| list.wants_help()) {
        let named = !options.words.is_empty();
        return Ok(crate::print(help::text(format(options, None)?, named)));
    }
    let (file, typed_size) = words(&options.words)?;
    let format = format(options, Some(file))?;
    let request = Request::new(options, file, format, list.as_ref(), typed_size)
        .map_err(|sentence| UsageError::plain(format!("{}: {sentence}", file.display())))?;
    if let (Some(sentence), None) = (&request.refusal, &request.backing) {
        return Ok(refuse(options, file, &request, sentence));
    }
    let key = request.encryption.as_ref().map(|e| e.key_secret.as_ref());
    let no_secret = keyring::missing(key.flatten());
    let target_slot = request.target_slot();
    let secret = keyring::named(key.flatten(), target_slot, SecretRole::New);
    let mut config = request.config();
    if let Some(encryption) = &request.encryption {
        config.options.encryption = encryption.wire(secret.is_some());
    }
    let shown = Shown {
        format: shown_as,
        quiet: options.quiet > 0,
        target: file.as_bytes().to_vec(),
        options: request.options.clone(),
        size: request.size,
        backing_slot: request.backing.as_ref().map(|_| 0),
        refusal: request.refusal.clone(),
        no_secret,
        format_name: format.name(),
    };
    let inputs = request.inputs(limits);
    let output = CreateOutput::new(shown);
    let how = How {
        secrets: secret.into_iter().collect(),
        ..How::default()
    };
    launch::start_as(how, CREATE, config.as_bytes(), inputs, limits, output)
}

/// Shows the options, and says why nothing is made.
fn refuse(options: &CreateOptions, file: &OsStr, request: &Request, sentence: &str) -> u8 {
    if let Some(size) = request.size.filter(|_| options.quiet == 0) {
        let mut text = [b"Formatting '", file.as_bytes(), b"', "].concat();
        text.extend_from_slice(&request.options.line(size));
        text.push(b'\n');
        crate::print_bytes(&text);
    }
    crate::complain(&UsageError::plain(format!(
        "{}: {sentence}",
        file.display()
    )))
}

/// The file's name, and its size.
fn words(words: &[OsString]) -> Result<(&OsStr, Option<u64>), UsageError> {
    let (file, size) = match words {
        [] => return Err(UsageError::with_help("Expecting image file name")),
        [file] => (file, None),
        [file, size] => (file, Some(typed_size(size)?)),
        [_, size, extra, ..] => {
            typed_size(size)?;
            return Err(UsageError::with_help(format!(
                "Unexpected argument: {}",
                extra.display()
            )));
        }
    };
    Ok((file, size))
}

/// Reads an image size.
///
/// # Errors
/// It is not one.
pub fn typed_size(text: &OsStr) -> Result<u64, UsageError> {
    match quantity::size(text.as_bytes()) {
        Ok(size) if size <= MAX_SIZE => Ok(size),
        Err(QuantityError::Syntax) => Err(UsageError::plain(format!(
            "Invalid image size specified: '{}'.",
            text.display()
        ))),
        _ => Err(UsageError::plain(format!(
            "Invalid image size specified. Must be between 0 and {MAX_SIZE}."
        ))),
    }
}

/// The format that `-f` names.
fn format(options: &CreateOptions, file: Option<&OsStr>) -> Result<NewFormat, UsageError> {
    let Some(name) = &options.format else {
        return Ok(NewFormat::Raw);
    };
    NewFormat::named(name).ok_or_else(|| {
        let sentence = unknown_format(name);
        UsageError::plain(match file {
            Some(file) => format!("{}: {sentence}", file.display()),
            None => sentence,
        })
    })
}

/// What is said of a format that no images are made in.
#[must_use]
pub fn unknown_format(name: &OsStr) -> String {
    match name.to_str() {
        Some(known) if image::is_foreign_format(known) => {
            format!("instar does not write the format '{known}'")
        }
        _ => format!("Unknown file format '{}'", name.display()),
    }
}

/// A backing file that has to open.
#[derive(Debug)]
struct Backing {
    image: Image,
    stated: bool,
}

/// What is to be made.
#[derive(Debug)]
struct Request {
    format: NewFormat,
    path: PathBuf,
    options: NewOptions,
    /// If it is not the backing file's.
    size: Option<u64>,
    backing: Option<Backing>,
    data: Option<PathBuf>,
    /// If its data is encrypted.
    encryption: Option<Encryption>,
    /// Why it is not made, if that comes to light after the backing file has been opened.
    refusal: Option<String>,
}

impl Request {
    /// What stands before "NAME: " is the caller's.
    fn new(
        typed: &CreateOptions,
        file: &OsStr,
        format: NewFormat,
        list: Option<&crate::amend::OptionList>,
        typed_size: Option<u64>,
    ) -> Result<Self, String> {
        if let Some(sentence) = image::unknown_protocol(file) {
            return Err(sentence);
        }
        let mut options = NewOptions::new_for(file, format, list)?;
        let size = one_size(&options, typed_size)?;
        set_backing(typed, format, &mut options)?;
        let name = options.text("backing_file").map(OsStr::from_bytes);
        if name == Some(file) {
            return Err(
                "Error: Trying to create an image with the same filename as the backing file"
                    .into(),
            );
        }
        let backing = backing(typed, file, &options)?;
        if size.is_none() && backing.is_none() {
            return Err("Image creation needs a size parameter".into());
        }
        let image = Image::local(file, None);
        let refusal = options.refusal().or_else(|| refusal_of_files(&options));
        let refusal = refusal.or_else(|| image.as_ref().err().map(|e| create_failed(file, e)));
        let data = options.text("data_file").map(OsStr::from_bytes);
        Ok(Self {
            format,
            path: image.map_or_else(|_| PathBuf::from(file), |image| image.path),
            size,
            backing,
            data: data.map(PathBuf::from),
            refusal,
            // What is wrong with it is in the refusal.
            encryption: Encryption::of_new(&options).unwrap_or_default(),
            options,
        })
    }

    fn target_slot(&self) -> u32 {
        u32::from(self.backing.is_some())
    }

    /// The operation's config.
    fn config(&self) -> CreateConfig {
        let mut config = CreateConfig::zeroed();
        let format = match self.format {
            NewFormat::Raw => ImageFormat::Raw,
            NewFormat::Qcow2 => ImageFormat::Qcow2,
        };
        config.target_format.set(format.raw());
        let target_slot = self.target_slot();
        config.target_slot.set(target_slot);
        let data_slot = self.data.as_ref().map(|_| target_slot.saturating_add(1));
        config.data_slot.set(data_slot.unwrap_or(0));
        config.size.set(self.size.unwrap_or(0));
        let mut flags = 0;
        if self.size.is_some() {
            flags |= CREATE_SIZE_GIVEN;
        }
        if let Some(backing) = &self.backing {
            flags |= CREATE_HAS_BACKING;
            config.backing_format.set(backing.image.format.raw());
            if backing.stated {
                flags |= CREATE_BACKING_STATED;
            }
        }
        if self.refusal.is_some() {
            flags |= CREATE_LOOK_ONLY;
        }
        config.flags.set(flags);
        self.options.put(&mut config.options);
        config
    }

    /// The files that the job opens. What is refused anyway makes none.
    fn inputs(self, limits: &LimitOptions) -> Vec<InputFile> {
        let mut inputs = Vec::new();
        if let Some(backing) = self.backing {
            inputs.push(launch::to_read(backing.image, Reads::Metadata, false));
        }
        if self.refusal.is_some() {
            return inputs;
        }
        let image = NewFile {
            path: self.path,
            raw: self.format == NewFormat::Raw,
            durable: true,
            layout: self.options.layout(),
        };
        let data = self.data.map(|path| image.data(path));
        let files = [Some(image), data].into_iter().flatten();
        inputs.extend(files.map(|file| launch::to_create(file, limits)));
        inputs
    }
}

fn one_size(options: &NewOptions, typed: Option<u64>) -> Result<Option<u64>, String> {
    match (options.number("size"), typed) {
        (Some(_), Some(_)) => Err("The image size must be specified only once".into()),
        (given, typed) => Ok(given.or(typed)),
    }
}

/// Takes `-b` and `-F` in, which count more than `-o`.
fn set_backing(
    typed: &CreateOptions,
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
    if options.text("backing_file") == Some(b"") {
        return Err("Expected backing file name, got empty string".into());
    }
    Ok(())
}

/// The backing file, if it has to open.
fn backing(
    typed: &CreateOptions,
    file: &OsStr,
    options: &NewOptions,
) -> Result<Option<Backing>, String> {
    let Some(name) = options.text("backing_file").map(OsStr::from_bytes) else {
        return Ok(None);
    };
    let stated = options.text("backing_fmt").map(OsStr::from_bytes);
    if typed.backing_unsafe {
        return match stated {
            Some(_) => Ok(None),
            None => Err("Backing file specified without backing format".into()),
        };
    }
    let format = match stated.map(OsStr::to_str) {
        None => ImageFormat::Probe,
        Some(Some("raw")) => ImageFormat::Raw,
        Some(Some("qcow2")) => ImageFormat::Qcow2,
        Some(Some(known)) if image::is_foreign_format(known) => {
            return Err(format!(
                "instar does not read the format '{known}'{NO_BACKING}"
            ));
        }
        Some(_) => {
            let name = stated.unwrap_or_default().display();
            return Err(format!("Unknown driver '{name}'{NO_BACKING}"));
        }
    };
    let image = if name.as_bytes().starts_with(b"json:") {
        let format = stated.map(OsStr::to_owned);
        let image = Image::with_format(name, format.as_ref());
        image.map_err(|error| image::reason(name, &error) + NO_BACKING)?
    } else {
        Image::file(path_of_backing(file, name), format)
    };
    Ok(Some(Backing {
        image,
        stated: stated.is_some(),
    }))
}

/// Why files that the options name are not made.
fn refusal_of_files(options: &NewOptions) -> Option<String> {
    (options.text("data_file") == Some(b""))
        .then(|| "Could not create '': No such file or directory".into())
}

/// Why a name is no file's.
fn create_failed(file: &OsStr, error: &UsageError) -> String {
    if file.is_empty() {
        return "Could not create '': No such file or directory".into();
    }
    error.sentence.clone()
}
