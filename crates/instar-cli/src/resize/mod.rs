//! `instar resize`: a new size, absolute or as a difference.

use crate::cli::{self, LimitOptions, ResizeOptions, UsageError};
use crate::edit::{EditOutput, Ending, Shown};
use crate::files::{Growth, RESIZE};
use crate::image::Image;
use crate::launch;
use instar_shared::edit::{Preallocation, RESIZE_SHRINK, ResizeConfig, SizeForm};
use instar_shared::op::ImageFormat;
use instar_shared::zerocopy::IntoBytes;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// What is said when it is done.
const DONE: &str = "Image resized.";

/// Runs the command; returns the exit code.
///
/// # Errors
/// The options do not go together, or ask for what is not there.
pub fn run(options: &ResizeOptions, limits: &LimitOptions) -> Result<u8, UsageError> {
    let format = cli::output_format(&options.output)?;
    let (image, config) = config(options)?;
    let shown = Shown {
        format,
        quiet: options.quiet,
        percent: false,
        raw_warnings: usize::from(image.format == ImageFormat::Probe),
        ending: Ending::Line(DONE),
        fields: Vec::new(),
        no_secret: None,
    };
    let input = launch::to_change(image, Growth::Unlimited, limits);
    let output = EditOutput::new(shown);
    launch::start(RESIZE, config.as_bytes(), vec![input], limits, output)
}

/// The image, and what is to be done with it.
fn config(options: &ResizeOptions) -> Result<(Image, ResizeConfig), UsageError> {
    let preallocation = preallocation(options.preallocation.as_deref())?;
    let (name, size) = match options.words.as_slice() {
        [name, size] => (name, size),
        [_, _, _, ..] => {
            return Err(UsageError::with_help("Extra argument(s) in command line"));
        }
        _ => return Err(UsageError::with_help("Expecting image file name and size")),
    };
    let (form, bytes) = size_change(size)?;
    let image = Image::new(name, &options.how)?;
    if image.is_sized() {
        return Err(UsageError::plain("Cannot resize fixed-size raw disks"));
    }
    let mut config = ResizeConfig::zeroed();
    config.format.set(image.format.raw());
    config.form.set(form.raw());
    config.size.set(bytes);
    config.preallocation.set(preallocation.raw());
    config
        .flags
        .set(if options.shrink { RESIZE_SHRINK } else { 0 });
    Ok((image, config))
}

/// What is reserved of the part that is new.
fn preallocation(value: Option<&OsStr>) -> Result<Preallocation, UsageError> {
    match value.map(OsStr::as_bytes) {
        None | Some(b"off") => Ok(Preallocation::Off),
        Some(b"metadata") => Ok(Preallocation::Metadata),
        Some(b"falloc") => Ok(Preallocation::Falloc),
        Some(b"full") => Ok(Preallocation::Full),
        Some(_) => Err(UsageError::plain(format!(
            "Invalid preallocation mode '{}'",
            value.unwrap_or_default().display()
        ))),
    }
}

/// Reads a size such as `10G`, `+512M` or `-5M`.
fn size_change(word: &OsString) -> Result<(SizeForm, u64), UsageError> {
    let (form, size) = match word.as_bytes() {
        [b'+', rest @ ..] => (SizeForm::Grow, rest),
        [b'-', rest @ ..] => (SizeForm::Shrink, rest),
        all => (SizeForm::Absolute, all),
    };
    let bytes = cli::size_option("size", size).map_err(UsageError::plain)?;
    Ok((form, bytes))
}

#[cfg(test)]
mod tests;
