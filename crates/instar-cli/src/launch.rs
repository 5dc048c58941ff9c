//! From options to a running operation.

use crate::check::CheckOutput;
use crate::cli::{
    self, CheckOptions, Cli, Command, ImageOptions, InfoOptions, LimitOptions, UsageError,
};
use crate::files::{InputFile, Job, Limits, Policy, Reads};
use crate::info::{InfoOutput, has_protocol};
use instar_shared::check::CheckConfig;
use instar_shared::info::{INFO_BACKING_CHAIN, InfoConfig};
use instar_shared::op::ImageFormat;
use instar_shared::zerocopy::IntoBytes;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

/// Guest run time without a completed request or progress after which a run is stopped.
const STALL_LIMIT: Duration = Duration::from_secs(60);

/// Formats and drivers that exist elsewhere: a clear answer instead of "unknown".
const FOREIGN_FORMATS: [&str; 43] = [
    "blkdebug",
    "blklogwrites",
    "blkverify",
    "bochs",
    "cloop",
    "compress",
    "copy-before-write",
    "copy-on-read",
    "dmg",
    "file",
    "ftp",
    "ftps",
    "gluster",
    "host_cdrom",
    "host_device",
    "http",
    "https",
    "iscsi",
    "iser",
    "luks",
    "nbd",
    "nfs",
    "null-aio",
    "null-co",
    "nvme",
    "parallels",
    "preallocate",
    "qcow",
    "qed",
    "quorum",
    "rbd",
    "replication",
    "snapshot-access",
    "ssh",
    "throttle",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "vvfat",
    "blkreplay",
    "null",
    "io_uring",
];

/// Protocols that exist elsewhere, by the name before the colon.
const FOREIGN_PROTOCOLS: [&str; 19] = [
    "json",
    "nbd",
    "nbd+tcp",
    "nbd+unix",
    "http",
    "https",
    "ftp",
    "ftps",
    "ssh",
    "iscsi",
    "nfs",
    "rbd",
    "gluster",
    "nvme",
    "fat",
    "host_device",
    "host_cdrom",
    "blkdebug",
    "null-co",
];

/// The name and command of a run that is to start.
struct Image {
    path: PathBuf,
    format: ImageFormat,
}

/// Runs a command; returns the exit code.
///
/// # Errors
/// The options do not go together, or ask for what is not there.
pub fn run(cli: &Cli) -> Result<u8, UsageError> {
    match &cli.command {
        Command::Info(options) => info(options, &cli.limits),
        Command::Check(options) => check(options, &cli.limits),
    }
}

fn info(options: &InfoOptions, limits: &LimitOptions) -> Result<u8, UsageError> {
    let format = cli::output_format(&options.output)?;
    let image = image(&options.image)?;
    let mut config = InfoConfig::zeroed();
    config.format.set(image.format.raw());
    config.flags.set(if options.backing_chain {
        INFO_BACKING_CHAIN
    } else {
        0
    });
    let output = InfoOutput::new(format, options.backing_chain);
    let elf = crate::files::INFO;
    let job = job(
        elf,
        config.as_bytes(),
        Reads::Metadata,
        image,
        &options.image,
        limits,
    )?;
    Ok(crate::files::run_job(job, Box::new(output)))
}

fn check(options: &CheckOptions, limits: &LimitOptions) -> Result<u8, UsageError> {
    let format = cli::output_format(&options.output)?;
    cli::repair_mode(options.repair.as_ref())?;
    let image = image(&options.image)?;
    cli::cache_mode(options.cache.as_ref())?;
    let mut config = CheckConfig::zeroed();
    config.format.set(image.format.raw());
    let output = CheckOutput::new(format, options.quiet);
    let elf = crate::files::CHECK;
    let job = job(
        elf,
        config.as_bytes(),
        Reads::Contents,
        image,
        &options.image,
        limits,
    )?;
    Ok(crate::files::run_job(job, Box::new(output)))
}

fn job(
    elf: &'static [u8],
    config: &[u8],
    reads: Reads,
    image: Image,
    options: &ImageOptions,
    limits: &LimitOptions,
) -> Result<Job, UsageError> {
    let memory_bytes = match limits.memory {
        Some(bytes) => bytes,
        None => cli::default_memory()?,
    };
    let variable = std::env::var_os(cli::ALLOW_PATH_VARIABLE);
    Ok(Job {
        elf,
        config: config.to_vec(),
        input: InputFile {
            path: image.path,
            share: options.force_share,
        },
        reads,
        limits: Limits {
            memory_bytes,
            stall: STALL_LIMIT,
            timeout: limits.timeout,
        },
        policy: Policy {
            allowed: cli::allowed_folders(&limits.allow_path, variable),
        },
    })
}

/// The image that the options name.
fn image(options: &ImageOptions) -> Result<Image, UsageError> {
    let [name] = options.files.as_slice() else {
        return Err(UsageError::with_help("Expecting one image file name"));
    };
    if options.image_opts {
        return Err(UsageError::plain(if options.format.is_some() {
            "--image-opts and --format are mutually exclusive"
        } else {
            "--image-opts is not there yet; name the image file instead"
        }));
    }
    if !options.object.is_empty() {
        return Err(UsageError::plain(
            "--object is not there yet; 'instar info' describes encrypted images without a key",
        ));
    }
    let format = format(name, options.format.as_ref())?;
    Ok(Image {
        path: local_path(name)?,
        format,
    })
}

fn could_not_open(name: &OsStr, reason: &str) -> UsageError {
    UsageError::plain(format!("Could not open '{}': {reason}", name.display()))
}

/// The format that `-f` names.
fn format(name: &OsStr, option: Option<&OsString>) -> Result<ImageFormat, UsageError> {
    let Some(option) = option else {
        return Ok(ImageFormat::Probe);
    };
    let format = option.display();
    match option.to_str() {
        Some("raw") => Ok(ImageFormat::Raw),
        Some("qcow2") => Ok(ImageFormat::Qcow2),
        Some(known) if FOREIGN_FORMATS.contains(&known) => Err(could_not_open(
            name,
            &format!("instar does not read the format '{known}'"),
        )),
        _ => Err(could_not_open(name, &format!("Unknown driver '{format}'"))),
    }
}

/// The name as typed, if it is a local file's; `file:` may stand before it.
fn local_path(name: &OsStr) -> Result<PathBuf, UsageError> {
    let bytes = name.as_bytes();
    let path = match bytes.strip_prefix(b"file:") {
        Some(rest) => rest,
        None if has_protocol(bytes) => return Err(foreign_protocol(name)),
        None => bytes,
    };
    if path.is_empty() {
        return Err(could_not_open(
            name,
            "The 'file' block driver requires a file name",
        ));
    }
    Ok(PathBuf::from(name))
}

fn foreign_protocol(name: &OsStr) -> UsageError {
    let text = name.to_string_lossy();
    let protocol = text.split(':').next().unwrap_or_default();
    if FOREIGN_PROTOCOLS.contains(&protocol) {
        could_not_open(
            name,
            &format!("instar does not read over the protocol '{protocol}'"),
        )
    } else {
        could_not_open(name, &format!("Unknown protocol '{protocol}'"))
    }
}

#[cfg(test)]
mod tests;
