//! `instar commit`: what an image holds becomes that of an image below it.

mod output;
#[cfg(test)]
mod tests;

use crate::cli::{self, FormatOptions, LimitOptions, UsageError};
use crate::convert::{IO_THREADS, rate};
use crate::files::{Base, COMMIT, Growth};
use crate::image::Image;
use crate::launch::{self, How};
use clap::Args;
use instar_shared::commit::{COMMIT_KEEP, COMMIT_NAMED, COMMIT_PACED, CommitConfig};
use instar_shared::zerocopy::IntoBytes;
use instar_vmm::operation::Threads;
use output::{CommitOutput, Shown};
use std::ffi::OsString;

/// Options of `commit`.
#[derive(Args, Debug, Default)]
pub struct CommitOptions {
    /// The image of the backing chain to commit to (default: the nearest); FILE then keeps its content
    #[arg(short, long, value_name = "FILE", allow_hyphen_values = true)]
    pub base: Option<OsString>,
    /// Keep FILE's content: otherwise it is emptied in the end
    #[arg(short, long)]
    pub drop: bool,
    /// Cache mode as in qemu-img: none, writeback, writethrough, directsync or unsafe
    #[arg(short = 't', long, value_name = "MODE", allow_hyphen_values = true)]
    pub cache: Option<OsString>,
    /// Copy at most this many bytes in a second
    #[arg(short, long, value_name = "RATE", allow_hyphen_values = true)]
    pub rate: Option<OsString>,
    /// Show how far it is
    #[arg(short, long)]
    pub progress: bool,
    /// Print errors only
    #[arg(short, long)]
    pub quiet: bool,
    /// human or json
    #[arg(long, value_name = "FORM", default_value = "human")]
    pub output: OsString,
    /// How the image is opened.
    #[command(flatten)]
    pub how: FormatOptions,
    /// The image whose content is committed
    #[arg(value_name = "FILE", help_heading = "Image")]
    pub files: Vec<OsString>,
}

/// What a command line asks for.
#[derive(Debug)]
struct Request {
    image: Image,
    config: CommitConfig,
    rate: u64,
}

/// Runs the command; returns the exit code.
///
/// # Errors
/// The options do not go together, or ask for what is not there.
pub fn run(options: &CommitOptions, limits: &LimitOptions) -> Result<u8, UsageError> {
    let format = cli::output_format(&options.output)?;
    let Request {
        image,
        config,
        rate,
    } = request(options)?;
    let output = CommitOutput::new(Shown {
        format,
        quiet: options.quiet,
        percent: options.progress,
        rate,
        raw_warning: image.format == instar_shared::op::ImageFormat::Probe,
        base: options.base.clone(),
        emptied: config.flags.get() & COMMIT_KEEP == 0,
    });
    let base = options.base.clone().map_or(Base::Nearest, Base::Named);
    let how = How {
        threads: Threads {
            io: IO_THREADS,
            vcpus: 0,
        },
        base: Some(base),
        ..How::default()
    };
    let mut input = launch::to_change(image, Growth::default(), limits);
    input.direct = cli::past_cache(options.cache.as_ref());
    launch::start_as(how, COMMIT, config.as_bytes(), vec![input], limits, output)
}

fn request(options: &CommitOptions) -> Result<Request, UsageError> {
    let rate = options.rate.as_deref().map(rate).transpose()?.unwrap_or(0);
    let [file] = options.files.as_slice() else {
        return Err(UsageError::with_help("Expecting one image file name"));
    };
    cli::cache_mode("", options.cache.as_ref())?;
    let image = Image::new(file, &options.how)?;
    let mut config = CommitConfig::zeroed();
    config.format.set(image.format.raw());
    let named = options.base.is_some();
    let flags = [
        (options.drop || named, COMMIT_KEEP),
        (rate > 0, COMMIT_PACED),
        (named, COMMIT_NAMED),
    ];
    let flags = flags
        .into_iter()
        .filter_map(|(set, bit)| set.then_some(bit));
    config.flags.set(flags.fold(0, |all, bit| all | bit));
    Ok(Request {
        image,
        config,
        rate,
    })
}
