//! `instar measure`: how long the file of a new image would become.

mod output;
#[cfg(test)]
mod tests;

use crate::amend::OptionList;
use crate::cli::{self, LimitOptions, MeasureOptions, UsageError};
use crate::convert::snapshot::{Choice, choice};
use crate::create::encryption::Encryption;
use crate::create::options::{self, NewFormat, NewOptions};
use crate::create::{typed_size, unknown_format};
use crate::files::{InputFile, MEASURE, Reads};
use crate::image::Image;
use crate::keyring;
use crate::launch;
use crate::persona;
use instar_shared::convert::{SnapshotChoice, TargetOptions};
use instar_shared::create::{MEASURE_IMAGE, MeasureConfig};
use instar_shared::encrypt::EncryptMethod;
use instar_shared::op::ImageFormat;
use instar_shared::zerocopy::IntoBytes;
use output::{MeasureOutput, Shown};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;

/// Runs the command; returns the exit code.
///
/// # Errors
/// The options do not go together, or ask for what is not there.
pub fn run(options: &MeasureOptions, limits: &LimitOptions) -> Result<u8, UsageError> {
    let format = cli::output_format(&options.output)?;
    let list = options::list(&options.options).map_err(UsageError::plain)?;
    let size = options.size.as_deref().map(typed_size).transpose()?;
    check_combination(options, size.is_some())?;
    let mut config = MeasureConfig::zeroed();
    let target = target_of(options, list.as_ref(), &mut config);
    let input = match options.files.first() {
        None => {
            // Without an image there is nothing that would be wrong before the options.
            if let Err(sentence) = &target {
                return Err(UsageError::plain(sentence.clone()));
            }
            config.size.set(size.unwrap_or(0));
            launch::nothing()
        }
        Some(name) => image(options, name, &mut config)?,
    };
    let (no_secret, refusal) = match target {
        Ok(no_secret) => (no_secret, None),
        Err(sentence) => (None, Some(sentence)),
    };
    let shown = Shown {
        format,
        refusal,
        no_secret,
    };
    let output = MeasureOutput::new(shown);
    launch::start(MEASURE, config.as_bytes(), vec![input], limits, output)
}

/// Finds out whether there is a size or an image, and nothing that only the other has.
fn check_combination(options: &MeasureOptions, sized: bool) -> Result<(), UsageError> {
    let how = &options.how;
    let of_image = how.image_opts || how.format.is_some() || options.snapshot.is_some();
    let wrong = match (options.files.as_slice(), sized) {
        ([_, _, ..], _) => "At most one filename argument is allowed.",
        ([], _) if of_image => "--image-opts, -f, and -l require a filename argument.",
        ([], false) => "Either --size N or one filename must be specified.",
        ([_], true) => "--size N cannot be used together with a filename.",
        _ => return Ok(()),
    };
    Err(UsageError::plain(wrong))
}

/// Opens the image as the options say.
fn image(
    options: &MeasureOptions,
    name: &OsStr,
    config: &mut MeasureConfig,
) -> Result<InputFile, UsageError> {
    put_snapshot(&choice(options.snapshot.as_deref())?, config);
    let image = Image::new(name, &options.how)?;
    config.flags.set(MEASURE_IMAGE);
    config.source_format.set(image.format.raw());
    Ok(launch::to_read(image, Reads::Contents, options.force_share))
}

/// Puts the snapshot that is measured into the config.
fn put_snapshot(chosen: &Choice, config: &mut MeasureConfig) {
    let (choice, id, name) = match chosen {
        Choice::Active => (SnapshotChoice::None, None, None),
        Choice::IdOrName(text) => (SnapshotChoice::IdOrName, None, Some(text)),
        Choice::Both { id, name } => {
            let choice = match (id, name) {
                (Some(_), Some(_)) => SnapshotChoice::IdAndName,
                (Some(_), None) => SnapshotChoice::Id,
                _ => SnapshotChoice::Name,
            };
            (choice, id.as_ref(), name.as_ref())
        }
    };
    config.snapshot.set(choice.raw());
    let bytes = |text: Option<&Vec<u8>>| OsString::from_vec(text.cloned().unwrap_or_default());
    let length = launch::fill(&mut config.snapshot_id, &bytes(id));
    config.snapshot_id_len.set(length);
    let length = launch::fill(&mut config.snapshot_name, &bytes(name));
    config.snapshot_name_len.set(length);
}

/// Puts the options of the new image into the config; gives what [`encryption`] does.
///
/// # Errors
/// They are wrong, which counts only for an image that opens.
fn target_of(
    options: &MeasureOptions,
    list: Option<&OptionList>,
    config: &mut MeasureConfig,
) -> Result<Option<String>, String> {
    let Some(format) = NewFormat::named(&options.target_format) else {
        return Err(unknown_format(&options.target_format));
    };
    let given = NewOptions::new(format, list).map_err(|sentence| {
        format!(
            "{sentence}\n{}: Invalid options for file format '{}'",
            persona::name(),
            format.name()
        )
    })?;
    if format == NewFormat::Qcow2 {
        if let Some(level) = given
            .text("compat")
            .filter(|level| !matches!(*level, b"0.10" | b"1.1"))
        {
            let level = String::from_utf8_lossy(level);
            return Err(format!("Invalid compatibility level: '{level}'"));
        }
        if given.preallocation().is_none() {
            let mode = given.text("preallocation").unwrap_or_default();
            let mode = String::from_utf8_lossy(mode);
            return Err(format!("invalid parameter value: {mode}"));
        }
    }
    given.put(&mut config.options);
    let key = encryption(&given, &mut config.options);
    config.target_format.set(
        match format {
            NewFormat::Raw => ImageFormat::Raw,
            NewFormat::Qcow2 => ImageFormat::Qcow2,
        }
        .raw(),
    );
    Ok(key)
}

/// Puts the new image's encryption into the config; gives what the operation's sentence about a missing password
/// means: QEMU looks at these options late.
fn encryption(given: &NewOptions, options: &mut TargetOptions) -> Option<String> {
    match Encryption::of_measured(given) {
        Ok(None) => None,
        Ok(Some(encryption)) => {
            let key = encryption.key_secret.as_ref();
            let no_secret = keyring::missing(key);
            options.encryption = encryption.wire(key.is_some() && no_secret.is_none());
            no_secret
        }
        Err(sentence) => {
            options.encryption.method.set(EncryptMethod::Luks.raw());
            Some(sentence)
        }
    }
}
