//! `instar rebase`: another backing file for an image, with what it shows kept as it is.
//!
//! QEMU opens the image, and in the safe mode its backing chain, before it looks at the format of the new backing
//! file; so a format that does not exist runs the operation, which refuses it in its turn.

mod options;
mod output;
#[cfg(test)]
mod tests;

pub use options::RebaseOptions;

use crate::cli::{self, LimitOptions, UsageError};
use crate::console::{Console, JobKind};
use crate::files::{Growth, InputFile, REBASE, Reads, path_of_backing};
use crate::image::{self, Image};
use crate::launch;
use instar_shared::op::ImageFormat;
use instar_shared::rebase::{
    REBASE_COMPRESS, REBASE_FORMAT, REBASE_NEW, REBASE_UNKNOWN_FORMAT, REBASE_UNSAFE, RebaseConfig,
};
use instar_shared::zerocopy::IntoBytes;
use instar_vmm::operation::Threads;
use output::{NewBacking, RebaseOutput};
use std::ffi::{OsStr, OsString};

/// Exit code: it was not done.
const EXIT_FAILED: u8 = 1;
/// Threads that read and write while the guest compares.
const IO_THREADS: u8 = 2;

/// Runs the command; returns the exit code.
///
/// # Errors
/// The options do not go together.
pub fn run(options: &RebaseOptions, limits: &LimitOptions) -> Result<u8, UsageError> {
    let [file] = options.files.as_slice() else {
        return Err(UsageError::with_help("Expecting one image file name"));
    };
    if !options.backing_unsafe && options.backing.is_none() {
        let sentence = "Must specify backing file (-b) or use unsafe mode (-u)";
        return Err(UsageError::with_help(sentence));
    }
    let percent = options.progress && !options.quiet;
    let Request {
        image,
        new,
        mut config,
    } = match Request::new(options, file) {
        Ok(request) => request,
        Err(error) => {
            let mut console = Console::new(JobKind::Check, false, options.quiet);
            if percent {
                console.show_percent();
                console.mark_percent(0, 1);
            }
            console.complain(error.sentence.as_bytes());
            return Ok(console.end(EXIT_FAILED));
        }
    };
    let warns = image.format == ImageFormat::Probe;
    let mut inputs = vec![launch::to_change(image, Growth::default(), limits)];
    for input in &mut inputs {
        input.direct = cli::past_cache(options.cache.as_ref());
    }
    let mut named = None;
    if let Some(image) = new {
        config.flags.set(config.flags.get() | REBASE_NEW);
        config.new_format.set(image.format.raw());
        named = Some(NewBacking {
            typed: options.backing.clone().unwrap_or_default(),
            path: image.path.clone().into(),
        });
        let mut input = to_read(image, options.force_share);
        input.direct = cli::past_cache(options.backing_cache.as_ref());
        inputs.push(input);
    }
    let output = RebaseOutput::new(percent, options.quiet, warns, named);
    let threads = Threads {
        io: if options.backing_unsafe {
            0
        } else {
            IO_THREADS
        },
        vcpus: 0,
    };
    launch::start_on(threads, REBASE, config.as_bytes(), inputs, limits, output)
}

fn to_read(image: Image, share: bool) -> InputFile {
    launch::to_read(image, Reads::Contents, share)
}

/// What is asked for.
struct Request {
    image: Image,
    /// The new backing file, if it is looked at.
    new: Option<Image>,
    config: Box<RebaseConfig>,
}

impl Request {
    fn new(options: &RebaseOptions, file: &OsStr) -> Result<Self, UsageError> {
        cli::cache_mode("", options.cache.as_ref())?;
        cli::cache_mode("source ", options.backing_cache.as_ref())?;
        let image = Image::new(file, &options.how)?;
        let name = options.backing.as_deref().unwrap_or_default();
        let mut config = Box::new(RebaseConfig::zeroed());
        config.format.set(image.format.raw());
        config.name_len.set(launch::fill(&mut config.name, name));
        let mut flags = 0;
        if options.backing_unsafe {
            flags |= REBASE_UNSAFE;
        }
        if options.compress {
            flags |= REBASE_COMPRESS;
        }
        let mut known = true;
        if let Some(format) = &options.backing_format {
            flags |= REBASE_FORMAT;
            let len = launch::fill(&mut config.format_name, format);
            config.format_name_len.set(len);
            known = is_known(format);
        }
        if !known {
            flags |= REBASE_UNKNOWN_FORMAT;
        }
        config.flags.set(flags);
        let looks = known && !options.backing_unsafe && !name.is_empty();
        let new = if looks {
            Some(new_backing(file, name, options.backing_format.as_ref())?)
        } else {
            None
        };
        Ok(Self { image, new, config })
    }
}

fn is_known(format: &OsStr) -> bool {
    let name = format.to_str().unwrap_or_default();
    matches!(name, "raw" | "qcow2") || image::is_foreign_format(name)
}

/// The new backing file; its name is relative to the folder of `file`.
fn new_backing(file: &OsStr, name: &OsStr, format: Option<&OsString>) -> Result<Image, UsageError> {
    let new = Image::local(name, format).map_err(|error| {
        let sentence = error.sentence.strip_prefix("Could not open '");
        match sentence {
            Some(rest) => UsageError::plain(format!("Could not open new backing file '{rest}")),
            None => error,
        }
    })?;
    Ok(Image::file(path_of_backing(file, name), new.format))
}
