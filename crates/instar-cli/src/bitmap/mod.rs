//! `instar bitmap`: actions on one of an image's bitmaps, in the order in which they were typed.

use crate::cli::{self, Action, BitmapOptions, LimitOptions, UsageError};
use crate::edit::{EditOutput, Ending, Field, Shown};
use crate::files::{BITMAP, Growth, Reads};
use crate::image::Image;
use crate::launch;
use crate::quantity::{self, QuantityError};
use instar_shared::edit::{BitmapAction, BitmapActionHeader, BitmapConfig, MAX_ACTION_BYTES};
use instar_shared::op::ImageFormat;
use instar_shared::zerocopy::IntoBytes;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Largest granularity that is passed on, in bytes.
const MAX_GRANULARITY: u64 = i64::MAX.unsigned_abs();
/// Bytes that bitmaps may take: one of the finest granularity on a large disk is that long.
const GROWTH: Growth = Growth::Window {
    extra_bytes: 1 << 30,
};
/// Longest name that is passed on: one byte more than a bitmap's can be, so that it is refused.
const MAX_NAME_BYTES: usize = 1024;

/// What a command line asks for.
#[derive(Debug)]
struct Request {
    image: Image,
    source: Option<Image>,
    config: BitmapConfig,
}

/// Runs the command; returns the exit code.
///
/// # Errors
/// The options do not go together, or ask for what is not there.
pub fn run(options: &BitmapOptions, limits: &LimitOptions) -> Result<u8, UsageError> {
    let format = cli::output_format(&options.output)?;
    let Request {
        image,
        source,
        config,
    } = request(options)?;
    let name = options.words.last().map(|name| name.as_bytes().to_vec());
    let actions = options.actions.iter().map(Action::name).collect();
    let shown = Shown {
        format,
        quiet: false,
        percent: false,
        raw_warnings: usize::from(image.format == ImageFormat::Probe),
        ending: Ending::Silent,
        no_secret: None,
        fields: vec![
            Field::Text("bitmap", name.unwrap_or_default()),
            Field::List("actions", actions),
        ],
    };
    let mut inputs = vec![launch::to_change(image, GROWTH, limits)];
    inputs.extend(source.map(|source| launch::to_read(source, Reads::Contents, false)));
    let output = EditOutput::new(shown);
    launch::start(BITMAP, config.as_bytes(), inputs, limits, output)
}

fn request(options: &BitmapOptions) -> Result<Request, UsageError> {
    let granularity = granularity(options)?;
    check_combination(options)?;
    let [file, name] = options.words.as_slice() else {
        return Err(UsageError::plain("Expecting filename and bitmap name"));
    };
    let image = Image::new(file, &options.how)?;
    let source = match &options.source_file {
        Some(file) => Some(Image::with_format(file, options.source_format.as_ref())?),
        None => None,
    };
    let mut config = BitmapConfig::zeroed();
    config.format.set(image.format.raw());
    if let Some(source) = &source {
        config.source_format.set(source.format.raw());
        config.has_source.set(1);
    }
    config.granularity.set(granularity);
    config.name_len.set(launch::fill(&mut config.name, name));
    let actions = encode(&options.actions);
    let Some(space) = config.actions.get_mut(..actions.len()) else {
        return Err(UsageError::plain(format!(
            "The actions take {} bytes, and {MAX_ACTION_BYTES} are the most; use more than one command",
            actions.len()
        )));
    };
    space.copy_from_slice(&actions);
    config
        .actions_len
        .set(u32::try_from(actions.len()).unwrap_or(u32::MAX));
    Ok(Request {
        image,
        source,
        config,
    })
}

/// Finds out whether the options go together.
fn check_combination(options: &BitmapOptions) -> Result<(), UsageError> {
    let adds = options.actions.contains(&Action::Add);
    let merges = !options.merge.is_empty();
    let wrong = if options.actions.is_empty() {
        "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge"
    } else if options.granularity.is_some() && !adds {
        "granularity only supported with --add"
    } else if options.source_file.is_some() && !merges {
        "Merge bitmap source file only supported with --merge"
    } else if options.source_format.is_some() && options.source_file.is_none() {
        "-F only supported with -b"
    } else {
        return Ok(());
    };
    Err(UsageError::plain(wrong))
}

/// Bytes per bit; 0 for the default.
fn granularity(options: &BitmapOptions) -> Result<u64, UsageError> {
    let Some(text) = &options.granularity else {
        return Ok(0);
    };
    match quantity::size(text.as_bytes()) {
        Ok(bytes) if bytes <= MAX_GRANULARITY => Ok(bytes),
        Err(QuantityError::Syntax) => Err(UsageError::plain(format!(
            "Invalid granularity specified: '{}'.",
            text.display()
        ))),
        _ => Err(UsageError::plain(format!(
            "Invalid granularity specified. Must be between 0 and {MAX_GRANULARITY}."
        ))),
    }
}

/// The actions as the operation reads them.
fn encode(actions: &[Action]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for action in actions {
        let (kind, source) = match action {
            Action::Add => (BitmapAction::Add, OsStr::new("")),
            Action::Remove => (BitmapAction::Remove, OsStr::new("")),
            Action::Clear => (BitmapAction::Clear, OsStr::new("")),
            Action::Enable => (BitmapAction::Enable, OsStr::new("")),
            Action::Disable => (BitmapAction::Disable, OsStr::new("")),
            Action::Merge(source) => (BitmapAction::Merge, source.as_os_str()),
        };
        let name = source.as_bytes();
        let name = name.get(..MAX_NAME_BYTES).unwrap_or(name);
        let mut head = BitmapActionHeader::zeroed();
        head.action.set(kind.raw());
        head.name_len
            .set(u32::try_from(name.len()).unwrap_or(u32::MAX));
        bytes.extend_from_slice(head.as_bytes());
        bytes.extend_from_slice(name);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes
}

#[cfg(test)]
mod tests;
