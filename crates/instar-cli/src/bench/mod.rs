//! `instar bench`: how fast an image takes requests, told as `qemu-img bench` tells it.

use crate::cli::{self, FormatOptions, LimitOptions, UsageError};
use crate::console::{Console, JobKind};
use crate::convert::IO_THREADS;
use crate::dd::within;
use crate::files::{BENCH, BENCH_WRITER, FileTable, Growth, JobError, Output, RESULT_BYTES, Reads};
use crate::image::Image;
use crate::info::Format;
use crate::json::Json;
use crate::launch;
use crate::quantity;
use clap::Args;
use instar_shared::bench::{BENCH_DRAIN, BENCH_WRITE, BenchConfig, BenchResult};
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::record::RecordKind;
use instar_shared::zerocopy::{FromBytes, IntoBytes};
use instar_vmm::operation::{RunStats, Threads};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

/// Largest number that is a count, a length or a step.
const MAX_INT: u64 = 0x7fff_ffff;
/// Largest offset.
const MAX_OFFSET: u64 = i64::MAX.unsigned_abs();
/// Requests where their number is not given.
const COUNT: u32 = 75_000;
/// Requests in flight where it is not said how many.
const DEPTH: u32 = 64;
/// Bytes of a request where they are not given.
const LEN: u32 = 4096;
/// What a request may add to a file besides its bytes: two clusters of the largest size.
const ROOM_PER_REQUEST: u64 = 4 << 20;

/// Options of `bench`.
#[derive(Args, Debug, Default)]
pub struct BenchOptions {
    /// Requests to send (default: 75000)
    #[arg(short, long, value_name = "COUNT", allow_hyphen_values = true)]
    pub count: Option<OsString>,
    /// Requests in flight at once (default: 64)
    #[arg(short, long, value_name = "DEPTH", allow_hyphen_values = true)]
    pub depth: Option<OsString>,
    /// Bytes of each request (default: 4096)
    #[arg(short = 's', long, value_name = "SIZE", allow_hyphen_values = true)]
    pub buffer_size: Option<OsString>,
    /// From the start of a request to that of the next one (default: the bytes of a request)
    #[arg(short = 'S', long, value_name = "SIZE", allow_hyphen_values = true)]
    pub step_size: Option<OsString>,
    /// Where the first request starts (default: 0)
    #[arg(short, long, value_name = "OFFSET", allow_hyphen_values = true)]
    pub offset: Option<OsString>,
    /// Write; else read
    #[arg(short, long)]
    pub write: bool,
    /// The byte to write (default: 0)
    #[arg(long, value_name = "BYTE", allow_hyphen_values = true)]
    pub pattern: Option<OsString>,
    /// Flush after every so many requests
    #[arg(long, value_name = "COUNT", allow_hyphen_values = true)]
    pub flush_interval: Option<OsString>,
    /// Go on while a flush is under way
    #[arg(long)]
    pub no_drain: bool,
    /// Cache mode as in qemu-img: none, writeback, writethrough, directsync or unsafe
    #[arg(short = 't', long, value_name = "MODE", allow_hyphen_values = true)]
    pub cache: Option<OsString>,
    /// As in qemu-img: threads, native or io_uring; it makes no difference
    #[arg(short = 'i', long, value_name = "AIO", allow_hyphen_values = true)]
    pub aio: Option<OsString>,
    /// The same as --aio native
    #[arg(short, long)]
    pub native: bool,
    /// Accepted; it makes no difference
    #[arg(short, long)]
    pub quiet: bool,
    /// human or json
    #[arg(long, value_name = "FORM", default_value = "human")]
    pub output: OsString,
    /// Format of the image: raw or qcow2 (default: look at its first bytes)
    #[arg(
        short = 'f',
        long = "format",
        value_name = "FMT",
        help_heading = "Image"
    )]
    pub format: Option<OsString>,
    /// FILE is a list of image options rather than a name
    #[arg(long, help_heading = "Image")]
    pub image_opts: bool,
    /// Open the image even while another program writes to it
    #[arg(short = 'U', long, help_heading = "Image")]
    pub force_share: bool,
    /// The image, a file or block device
    #[arg(value_name = "FILE", help_heading = "Image")]
    pub files: Vec<OsString>,
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    count: u32,
    depth: u32,
    len: u32,
    step: u32,
    start: u64,
    write: bool,
    pattern: u32,
    flush_interval: u32,
    drain: bool,
}

/// Runs the command; returns the exit code.
///
/// # Errors
/// The options do not go together, or ask for what is not there.
pub fn run(options: &BenchOptions, limits: &LimitOptions) -> Result<u8, UsageError> {
    let format = cli::output_format(&options.output)?;
    let plan = Plan::read(options)?;
    let image = image(options)?;
    plan.validate()?;
    let probed = image.format == ImageFormat::Probe;
    let config = plan.config(image.format);
    let mut input = if plan.write {
        let each = u64::from(plan.len).saturating_add(ROOM_PER_REQUEST);
        let extra_bytes = each.saturating_mul(u64::from(plan.count));
        launch::to_change(image, Growth::Window { extra_bytes }, limits)
    } else {
        launch::to_read(image, Reads::Contents, options.force_share)
    };
    input.direct = cli::past_cache(options.cache.as_ref());
    let output = BenchOutput {
        console: Console::new(JobKind::Check, format == Format::Json, true),
        format,
        plan,
        warns: plan.write && probed,
        begun: false,
    };
    let threads = Threads {
        io: IO_THREADS,
        vcpus: 0,
    };
    let elf = if plan.write { BENCH_WRITER } else { BENCH };
    launch::start_on(threads, elf, config.as_bytes(), vec![input], limits, output)
}

/// The image, if it can be opened so.
fn image(options: &BenchOptions) -> Result<Image, UsageError> {
    if cli::cache_mode("", options.cache.as_ref()).is_err() {
        return Err(UsageError::plain("Invalid cache mode"));
    }
    if let Some(aio) = &options.aio
        && !["threads", "native", "io_uring"]
            .iter()
            .any(|known| *known == *aio)
    {
        let sentence = format!("Invalid aio option: {}", aio.display());
        return Err(UsageError::plain(sentence));
    }
    let how = FormatOptions {
        format: options.format.clone(),
        image_opts: options.image_opts,
        object: Vec::new(),
    };
    let image = Image::only(&options.files, &how)?;
    let refusal = |reason: &str| {
        let name = image.path.display();
        UsageError::plain(format!("Could not open '{name}': {reason}"))
    };
    if options.write && options.force_share {
        return Err(refusal(
            "force-share=on can only be used with read-only images",
        ));
    }
    let native = options.native || options.aio.as_ref().is_some_and(|aio| *aio == "native");
    let direct = cli::past_cache(options.cache.as_ref());
    if native && !direct && image.path.exists() {
        return Err(refusal(
            "aio=native was specified, but it requires cache.direct=on, which was not specified.",
        ));
    }
    Ok(image)
}

impl Plan {
    fn read(options: &BenchOptions) -> Result<Self, UsageError> {
        let len = size("buffer size", options.buffer_size.as_ref(), 1, LEN)?;
        let step = size("step size", options.step_size.as_ref(), 0, 0)?;
        let start = match &options.offset {
            Some(text) => within(
                "offset",
                text,
                quantity::size(text.as_bytes()),
                0..=MAX_OFFSET,
            )?,
            None => 0,
        };
        let pattern = match &options.pattern {
            Some(text) => within(
                "pattern byte",
                text,
                quantity::number(text.as_bytes()),
                0..=255,
            )?,
            None => 0,
        };
        Ok(Self {
            count: number("request count", options.count.as_ref(), 1, COUNT)?,
            depth: number("queue depth", options.depth.as_ref(), 1, DEPTH)?,
            len,
            step: if step == 0 { len } else { step },
            start,
            write: options.write,
            pattern: u32::try_from(pattern).unwrap_or(0),
            flush_interval: number("flush interval", options.flush_interval.as_ref(), 0, 0)?,
            drain: !options.no_drain,
        })
    }

    /// Whether the options go together.
    fn validate(&self) -> Result<(), UsageError> {
        if self.flush_interval == 0 {
            return Ok(());
        }
        if !self.write {
            let sentence = "--flush-interval is only available in write tests";
            return Err(UsageError::plain(sentence));
        }
        if self.flush_interval < self.depth {
            let sentence = "Flush interval can't be smaller than depth";
            return Err(UsageError::plain(sentence));
        }
        Ok(())
    }

    fn config(&self, format: ImageFormat) -> BenchConfig {
        let mut config = BenchConfig::zeroed();
        let write = if self.write { BENCH_WRITE } else { 0 };
        let drain = if self.drain { BENCH_DRAIN } else { 0 };
        config.format.set(format.raw());
        config.flags.set(write | drain);
        config.count.set(self.count);
        config.depth.set(self.depth);
        config.len.set(self.len);
        config.step.set(self.step);
        config.start.set(self.start);
        config.pattern.set(self.pattern);
        config.flush_interval.set(self.flush_interval);
        config
    }

    const fn verb(&self) -> &'static str {
        if self.write { "write" } else { "read" }
    }

    /// What is said before the first request.
    fn announcement(&self) -> String {
        let Self {
            count,
            depth,
            len,
            step,
            start,
            ..
        } = self;
        let verb = self.verb();
        let mut text = format!(
            "Sending {count} {verb} requests, {len} bytes each, {depth} in parallel \
             (starting at offset {start}, step size {step})\n"
        );
        if self.flush_interval > 0 {
            let interval = self.flush_interval;
            text.push_str(&format!("Sending flush every {interval} requests\n"));
        }
        text
    }
}

fn size(name: &str, text: Option<&OsString>, least: u64, default: u32) -> Result<u32, UsageError> {
    let Some(text) = text else {
        return Ok(default);
    };
    let value = within(name, text, quantity::size(text.as_bytes()), least..=MAX_INT)?;
    Ok(u32::try_from(value).unwrap_or(default))
}

fn number(
    name: &str,
    text: Option<&OsString>,
    least: u64,
    default: u32,
) -> Result<u32, UsageError> {
    let Some(text) = text else {
        return Ok(default);
    };
    let value = within(
        name,
        text,
        quantity::number(text.as_bytes()),
        least..=MAX_INT,
    )?;
    Ok(u32::try_from(value).unwrap_or(default))
}

/// Says what is sent, and how long it took.
struct BenchOutput {
    console: Console,
    format: Format,
    plan: Plan,
    /// An image that turns out to be raw was not called so.
    warns: bool,
    /// Requests are on their way.
    begun: bool,
}

impl BenchOutput {
    /// Says what is sent, once.
    fn begin(&mut self) {
        let before = std::mem::replace(&mut self.begun, true);
        if !before && self.format == Format::Human {
            let text = self.plan.announcement();
            self.console.say(&text);
        }
    }

    fn done(mut self, result: &BenchResult) -> u8 {
        let ns = result.elapsed_ns.get();
        match self.format {
            Format::Human => {
                let ms = ns / 1_000_000;
                let (seconds, ms) = (ms / 1000, ms % 1000);
                let line = format!("Run completed in {seconds}.{ms:03} seconds.\n");
                self.console.say(&line);
            }
            Format::Json => self.json(ns),
        }
        self.console.end(0)
    }

    fn json(&mut self, ns: u64) {
        let plan = self.plan;
        let mut json = Json::new(self.console.stdout());
        json.begin_object();
        json.field_string("request", plan.verb().as_bytes());
        for (key, value) in [
            ("count", plan.count),
            ("buffer-size", plan.len),
            ("depth", plan.depth),
            ("step-size", plan.step),
            ("flush-interval", plan.flush_interval),
        ] {
            json.field_number(key, u64::from(value));
        }
        json.field_number("offset", plan.start);
        json.field_number("elapsed-ns", ns);
        json.end_object();
        json.finish();
    }
}

impl Output for BenchOutput {
    fn record(
        &mut self,
        kind: RecordKind,
        payload: &[u8],
        files: &FileTable,
    ) -> Result<(), String> {
        if kind == RecordKind::Progress {
            self.begin();
        }
        if self.console.record(kind, payload, files)? {
            Ok(())
        } else {
            Err(format!(
                "records of the kind {kind:?} do not belong to a benchmark"
            ))
        }
    }

    fn pause(&mut self) {
        self.console.pause();
    }

    fn ran(&mut self, stats: &RunStats) {
        self.console.ran(stats);
    }

    fn finish(mut self: Box<Self>, result: &[u8; RESULT_BYTES], files: &FileTable) -> u8 {
        let Ok((result, _)) = BenchResult::read_from_prefix(result.as_slice()) else {
            return self.console.end_malformed("the result is too short");
        };
        if result.reserved.iter().any(|byte| *byte != 0) {
            return self
                .console
                .end_malformed("its reserved bytes are not zero");
        }
        if self.warns && ImageFormat::try_from(result.format.get()) == Ok(ImageFormat::Raw) {
            self.console.warn_guessed_raw(files);
        }
        match Outcome::try_from(result.outcome.get()) {
            Ok(Outcome::Done) => self.done(&result),
            ended => self.console.end_undone(ended),
        }
    }

    fn failed(self: Box<Self>, error: &JobError, files: &FileTable) -> u8 {
        self.console.end_failed(error, files)
    }
}

#[cfg(test)]
mod tests;
