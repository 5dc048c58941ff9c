//! From options to a running operation.

use crate::check::{self, CheckOutput};
use crate::cli::{self, CheckOptions, Cli, Command, InfoOptions, LimitOptions, UsageError};
use crate::files::{
    self, Access, Base, Growth, InputFile, Job, Layout, Limits, Output, Policy, Reads, Repair,
};
use crate::image::{self, Image, Use};
use crate::info::InfoOutput;
use crate::{
    amend, bench, bitmap, compare, convert, create, map, measure, papers, resize, secret, snapshot,
};
use instar_shared::check::{CheckConfig, RepairMode};
use instar_shared::info::{INFO_BACKING_CHAIN, InfoConfig};
use instar_shared::op::ImageFormat;
use instar_shared::zerocopy::IntoBytes;
use instar_vmm::operation::{Secret, Threads};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

/// Guest run time without a completed request or progress after which a run is stopped.
const STALL_LIMIT: Duration = Duration::from_secs(60);

/// Runs a command; returns the exit code.
///
/// # Errors
/// The options do not go together, or ask for what is not there.
pub fn run(cli: &Cli) -> Result<u8, UsageError> {
    match secret::load(&cli.objects) {
        Ok(()) => {}
        Err(secret::Stop::Help(text)) => return Ok(crate::print(text)),
        Err(secret::Stop::Wrong(sentence)) => return Err(UsageError::plain(sentence)),
    }
    match &cli.command {
        Command::Info(options) => info(options, &cli.limits),
        Command::Check(options) => check(options, &cli.limits),
        Command::Compare(options) => compare::run(options, &cli.limits),
        Command::Map(options) => map::run(options, &cli.limits),
        Command::Snapshot(options) => snapshot::run(options, &cli.limits),
        Command::Resize(options) => resize::run(options, &cli.limits),
        Command::Amend(options) => amend::run(options, &cli.limits),
        Command::Bitmap(options) => bitmap::run(options, &cli.limits),
        Command::Commit(options) => crate::commit::run(options, &cli.limits),
        Command::Convert(options) => convert::run(options, &cli.limits),
        Command::Dd(options) => crate::dd::run(options, &cli.limits),
        Command::Bench(options) => bench::run(options, &cli.limits),
        Command::Rebase(options) => crate::rebase::run(options, &cli.limits),
        Command::Create(options) => create::run(options, &cli.limits),
        Command::Measure(options) => measure::run(options, &cli.limits),
        #[cfg(target_arch = "x86_64")]
        Command::Run(options) => crate::run::run(options, &cli.limits),
        #[cfg(target_arch = "x86_64")]
        Command::Serve(options) => crate::serve::run(options, &cli.limits),
        Command::Bootscan(options) => crate::bootscan::run(options, &cli.limits),
        Command::Completions(options) => papers::completions(options),
        Command::Manual(options) => papers::manual(options),
    }
}

fn info(options: &InfoOptions, limits: &LimitOptions) -> Result<u8, UsageError> {
    let format = cli::output_format(&options.output)?;
    let name = image::only_name(&options.image.files)?;
    let image = Image::for_use(Use::Description, name, &options.image.how)?;
    let mut config = InfoConfig::zeroed();
    config.format.set(image.format.raw());
    config.flags.set(if options.backing_chain {
        INFO_BACKING_CHAIN
    } else {
        0
    });
    let output = InfoOutput::new(format, options.backing_chain).with_name(image.shown.clone());
    let input = to_read(image, Reads::Metadata, options.image.force_share);
    start(files::INFO, config.as_bytes(), vec![input], limits, output)
}

fn check(options: &CheckOptions, limits: &LimitOptions) -> Result<u8, UsageError> {
    let format = cli::output_format(&options.output)?;
    let repair = cli::repair_mode(options.repair.as_ref())?;
    let image = Image::only(&options.image.files, &options.image.how)?;
    cli::cache_mode("source ", options.cache.as_ref())?;
    let mut config = CheckConfig::zeroed();
    config.format.set(image.format.raw());
    config.repair.set(repair.map_or(0, |mode| mode.raw()));
    let share = options.image.force_share;
    let (elf, work, mut input) = if repair.is_some() {
        let work = check::Work::repair(image.format);
        let mut input = to_change(image, Growth::default(), limits);
        input.share |= share;
        (files::REPAIR, work, input)
    } else {
        let input = to_read(image, Reads::Contents, share);
        (files::CHECK, check::Work::Check, input)
    };
    input.direct = cli::past_cache(options.cache.as_ref());
    let output = CheckOutput::new(format, options.quiet, work);
    start(elf, config.as_bytes(), vec![input], limits, output)
}

/// An image that is read.
#[must_use]
pub fn to_read(image: Image, reads: Reads, share: bool) -> InputFile {
    InputFile {
        direct: false,
        path: image.path,
        described: image.described,
        secrets: image.secrets,
        share: share || image.share,
        // Like QEMU, an image that is raw by name may change meanwhile, unless it is a source.
        access: if reads == Reads::Contents && image.format == ImageFormat::Raw {
            Access::ReadRaw
        } else {
            Access::Read(reads)
        },
        growth: Growth::default(),
    }
}

/// A file without content, for a job that needs none.
#[must_use]
pub fn nothing() -> InputFile {
    let image = Image::file(PathBuf::from("/dev/null"), ImageFormat::Raw);
    to_read(image, Reads::Metadata, true)
}

/// A file that is made: the user names it, so that every path is trusted, and reads relative to it.
#[derive(Clone, Debug)]
pub struct NewFile {
    /// The name as typed, with a protocol if it has one.
    pub path: PathBuf,
    /// It is a raw image, or an external data file.
    pub raw: bool,
    /// What was written is flushed before the file gets its name.
    pub durable: bool,
    /// How it is to lie in its file system.
    pub layout: Layout,
}

impl NewFile {
    /// The external data file of this image.
    #[must_use]
    pub const fn data(&self, path: PathBuf) -> Self {
        Self {
            path,
            raw: true,
            durable: self.durable,
            layout: self.layout,
        }
    }
}

/// A file that is made. The guest announces its size before it writes (`Context::announce_size`), and may
/// then write a tenth and 64 MiB more, or what the user says more.
#[must_use]
pub fn to_create(file: NewFile, limits: &LimitOptions) -> InputFile {
    let NewFile {
        path,
        raw,
        durable,
        layout,
    } = file;
    let typed = limits.max_growth;
    InputFile {
        direct: false,
        path,
        described: None,
        secrets: Vec::new(),
        share: false,
        access: Access::Create {
            raw,
            durable,
            layout,
        },
        growth: typed.map_or(Growth::default(), |extra_bytes| Growth::AtMost {
            extra_bytes,
        }),
    }
}

/// An image that is changed, and may grow that much unless the user says how much.
#[must_use]
pub fn to_change(image: Image, growth: Growth, limits: &LimitOptions) -> InputFile {
    let typed = limits.max_growth;
    InputFile {
        direct: false,
        path: image.path,
        described: image.described,
        secrets: image.secrets,
        share: image.share,
        access: if image.format == ImageFormat::Raw {
            Access::ChangeRaw
        } else {
            Access::Change
        },
        growth: typed.map_or(growth, |extra_bytes| Growth::AtMost { extra_bytes }),
    }
}

/// Writes as much of a name into a config's field as it holds, and returns the length.
#[must_use]
pub fn fill(field: &mut [u8], name: &OsStr) -> u32 {
    let bytes = name.as_bytes();
    let length = bytes.len().min(field.len());
    if let (Some(field), Some(bytes)) = (field.get_mut(..length), bytes.get(..length)) {
        field.copy_from_slice(bytes);
    }
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// Runs an operation on images; returns the exit code.
///
/// # Errors
/// It cannot be said how much memory the operation may use.
pub fn start(
    elf: &'static [u8],
    config: &[u8],
    inputs: Vec<InputFile>,
    limits: &LimitOptions,
    output: impl Output + 'static,
) -> Result<u8, UsageError> {
    start_on(Threads::default(), elf, config, inputs, limits, output)
}

/// As [`start`], with more threads than one.
///
/// # Errors
/// As there.
pub fn start_on(
    threads: Threads,
    elf: &'static [u8],
    config: &[u8],
    inputs: Vec<InputFile>,
    limits: &LimitOptions,
    output: impl Output + 'static,
) -> Result<u8, UsageError> {
    let how = How {
        threads,
        ..How::default()
    };
    start_as(how, elf, config, inputs, limits, output)
}

/// How an operation runs.
#[derive(Clone, Debug, Default)]
pub struct How {
    /// Threads beside the first.
    pub threads: Threads,
    /// The backing file that may be written.
    pub base: Option<Base>,
    /// Passwords for the images, by slot of the inputs.
    pub secrets: Vec<Secret>,
    /// What runs after the operation, to end what it began.
    pub sequel: Option<&'static [u8]>,
}

/// As [`start`], in another way.
///
/// # Errors
/// As there.
pub fn start_as(
    how: How,
    elf: &'static [u8],
    config: &[u8],
    inputs: Vec<InputFile>,
    limits: &LimitOptions,
    output: impl Output + 'static,
) -> Result<u8, UsageError> {
    let job = job(how, elf, config, inputs, limits)?;
    Ok(files::run_job(job, Box::new(output)))
}

/// An operation on images, to be run.
///
/// # Errors
/// As [`start`].
pub fn job(
    how: How,
    elf: &'static [u8],
    config: &[u8],
    mut inputs: Vec<InputFile>,
    limits: &LimitOptions,
) -> Result<Job, UsageError> {
    let memory_bytes = match limits.memory {
        Some(bytes) => bytes,
        None => cli::default_memory()?,
    };
    let variable = std::env::var_os(cli::ALLOW_PATH_VARIABLE);
    secret::forget();
    let mut secrets = how.secrets;
    for (slot, input) in (0..).zip(&mut inputs) {
        let own = std::mem::take(&mut input.secrets);
        secrets.extend(own.into_iter().map(|secret| Secret { slot, ..secret }));
    }
    // Only who has a password needs the ciphers, or who says how an image is encrypted: their programs look.
    let is_said = inputs.iter().filter_map(|input| input.described.as_ref());
    let mut images = is_said.flat_map(|described| &described.images);
    let is_said = images.any(|image| image.encryption.is_some());
    let elf = if secrets.is_empty() && !is_said {
        elf
    } else {
        files::keyed(elf)
    };
    let repair = repair_of(elf, &inputs);
    let fuller = files::fuller(elf);
    Ok(Job {
        elf,
        config: config.to_vec(),
        inputs,
        secrets,
        limits: Limits {
            memory_bytes,
            stall: STALL_LIMIT,
            timeout: limits.timeout,
            spent: Duration::ZERO,
            threads: how.threads,
        },
        policy: Policy {
            allowed: cli::allowed_folders(&limits.allow_path, variable),
            base: how.base,
        },
        repair,
        fuller,
        sequel: how.sequel,
    })
}

/// What repairs images that turn out to be marked dirty, where an operation other than that changes one.
fn repair_of(elf: &'static [u8], inputs: &[InputFile]) -> Option<Repair> {
    let changes = inputs.iter().any(|input| input.access == Access::Change);
    let mut config = CheckConfig::zeroed();
    config.format.set(ImageFormat::Qcow2.raw());
    config.repair.set(RepairMode::Dirty.raw());
    (changes && !std::ptr::eq(elf, files::REPAIR)).then(|| Repair {
        elf: files::REPAIR,
        config: config.as_bytes().to_vec(),
    })
}
