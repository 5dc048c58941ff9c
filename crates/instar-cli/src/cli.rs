//! The command line: options, their help, and the sentences for wrong use.

use crate::failure::system_text;
use crate::info::Format;
use crate::size;
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

/// Environment variable with folders that backing files may lie in, separated by colons.
pub const ALLOW_PATH_VARIABLE: &str = "INSTAR_ALLOW_PATH";
/// Shortest memory limit that an operation can start with, in bytes.
const MIN_MEMORY_BYTES: u64 = 1 << 20;

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    it did not work: wrong use, an unreadable image, a limit
  2    check: the image is damaged
  3    check: clusters are leaked, the data is intact
  63   check: the format has nothing to check
  130  interrupted (143: terminated)

Examples:
  instar info disk.qcow2
  instar info --backing-chain --output json overlay.qcow2
  instar check disk.qcow2";

/// Inspects disk images without trusting them: each command reads the image in a
/// small virtual machine of its own, and nothing on the host parses it.
#[derive(Debug, Parser)]
#[command(name = "instar", version, after_help = EXIT_CODES, infer_long_args = true, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Limits.
    #[command(flatten)]
    pub limits: LimitOptions,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what an image is: format, sizes, backing file, snapshots
    #[command(after_help = EXIT_CODES, override_usage = "instar info [OPTIONS] FILE")]
    Info(InfoOptions),
    /// Look for damage in an image's tables, without changing it
    #[command(after_help = EXIT_CODES, override_usage = "instar check [OPTIONS] FILE")]
    Check(CheckOptions),
}

/// Limits and permissions of the virtual machine.
#[derive(Args, Debug)]
#[command(next_help_heading = "Limits")]
pub struct LimitOptions {
    /// Most memory the operation may use, such as 512M (default: half of what is free, at most 8G)
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_memory)]
    pub memory: Option<u64>,
    /// Stop after this many seconds (default: no limit)
    #[arg(long, global = true, value_name = "SECS", value_parser = parse_seconds)]
    pub timeout: Option<Duration>,
    /// Also allow backing files in this folder (also INSTAR_ALLOW_PATH=DIR:DIR)
    #[arg(long, global = true, value_name = "DIR")]
    pub allow_path: Vec<PathBuf>,
}

/// Options that name and open the image.
#[derive(Args, Debug)]
#[command(next_help_heading = "Image")]
pub struct ImageOptions {
    /// Format of the image: raw or qcow2 (default: look at its first bytes)
    #[arg(short = 'f', long = "format", value_name = "FMT")]
    pub format: Option<OsString>,
    /// FILE is a list of image options rather than a name
    #[arg(long)]
    pub image_opts: bool,
    /// Open the image even while another program writes to it
    #[arg(short = 'U', long)]
    pub force_share: bool,
    /// An object such as a secret, as TYPE,id=NAME,...
    #[arg(long, value_name = "OBJECT")]
    pub object: Vec<OsString>,
    /// The image, a file or block device
    #[arg(value_name = "FILE")]
    pub files: Vec<OsString>,
}

/// Options of `info`.
#[derive(Args, Debug)]
pub struct InfoOptions {
    /// Show each image of the backing chain
    #[arg(short = 'b', long)]
    pub backing_chain: bool,
    /// human or json
    #[arg(long, value_name = "FORM", default_value = "human")]
    pub output: OsString,
    /// The image.
    #[command(flatten)]
    pub image: ImageOptions,
}

/// Options of `check`.
#[derive(Args, Debug)]
pub struct CheckOptions {
    /// Print errors only
    #[arg(short, long)]
    pub quiet: bool,
    /// human or json
    #[arg(long, value_name = "FORM", default_value = "human")]
    pub output: OsString,
    /// Cache mode as in qemu-img: none, writeback, writethrough, directsync or unsafe
    #[arg(short = 'T', long, value_name = "MODE")]
    pub cache: Option<OsString>,
    /// Repair leaks or all (not there yet)
    #[arg(short, long, value_name = "WHAT")]
    pub repair: Option<OsString>,
    /// The image.
    #[command(flatten)]
    pub image: ImageOptions,
}

/// A wrong use of the command line.
#[derive(Debug, PartialEq, Eq)]
pub struct UsageError {
    /// What is wrong.
    pub sentence: String,
    /// Whether the command's help would make it clear.
    pub help: bool,
}

impl UsageError {
    /// An error that the help would have prevented.
    #[must_use]
    pub fn with_help(sentence: impl Into<String>) -> Self {
        Self {
            sentence: sentence.into(),
            help: true,
        }
    }

    /// An error that says everything itself.
    #[must_use]
    pub fn plain(sentence: impl Into<String>) -> Self {
        Self {
            sentence: sentence.into(),
            help: false,
        }
    }
}

/// Why there is nothing to run.
#[derive(Debug)]
pub enum Stop {
    /// Help or version was asked for and is printed here.
    Print(String),
    /// The command line is wrong.
    Wrong(UsageError),
}

/// Reads the command line.
///
/// # Errors
/// Text to print instead, or what is wrong.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, Stop> {
    Cli::try_parse_from(arguments).map_err(|error| {
        use clap::error::ErrorKind;
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Stop::Print(error.to_string()),
            ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                Stop::Wrong(UsageError::with_help("Not enough arguments"))
            }
            ErrorKind::InvalidSubcommand => Stop::Wrong(UsageError::with_help(format!(
                "Command not found: {}",
                invalid_subcommand(&error)
            ))),
            _ => Stop::Wrong(UsageError::with_help(first_line(&error))),
        }
    })
}

fn invalid_subcommand(error: &clap::Error) -> String {
    use clap::error::{ContextKind, ContextValue};
    match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(name)) => name.clone(),
        _ => String::new(),
    }
}

/// The sentence of a clap error without its label and usage.
fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

/// Reads the value of `--output`.
///
/// # Errors
/// It is neither `human` nor `json`.
pub fn output_format(value: &OsString) -> Result<Format, UsageError> {
    match value.to_str() {
        Some("human") => Ok(Format::Human),
        Some("json") => Ok(Format::Json),
        _ => Err(UsageError::with_help(format!(
            "--output expects 'human' or 'json' not '{}'",
            value.display()
        ))),
    }
}

/// Checks a cache mode. Reading goes through the page cache in any case.
///
/// # Errors
/// There is no such mode.
pub fn cache_mode(value: Option<&OsString>) -> Result<(), UsageError> {
    const MODES: [&str; 6] = [
        "none",
        "off",
        "writeback",
        "writethrough",
        "directsync",
        "unsafe",
    ];
    match value {
        Some(mode) if !MODES.iter().any(|known| *known == *mode) => Err(UsageError::plain(
            format!("Invalid source cache option: {}", mode.display()),
        )),
        _ => Ok(()),
    }
}

/// Refuses a repair.
///
/// # Errors
/// Always, if one is asked for.
pub fn repair_mode(value: Option<&OsString>) -> Result<(), UsageError> {
    match value.map(|mode| mode.to_str()) {
        None => Ok(()),
        Some(Some("leaks" | "all")) => Err(UsageError::plain(
            "instar check only reports damage in this version; it cannot repair yet",
        )),
        Some(_) => Err(UsageError::with_help(format!(
            "--repair (-r) expects 'leaks' or 'all' not '{}'",
            value
                .map(|mode| mode.display().to_string())
                .unwrap_or_default()
        ))),
    }
}

fn parse_memory(text: &str) -> Result<u64, String> {
    match size::parse(text)? {
        bytes if bytes < MIN_MEMORY_BYTES => Err("an operation needs at least 1M".to_owned()),
        bytes => Ok(bytes),
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| format!("'{text}' is not a number of seconds"))?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(format!("'{text}' is not a number of seconds above 0")),
    }
}

/// Half of the memory that is free now, at most 8 GiB.
///
/// # Errors
/// The system does not say how much memory is free.
pub fn default_memory() -> Result<u64, UsageError> {
    const MOST: u64 = 8 << 30;
    let mut head = [0; 512];
    let read = File::open("/proc/meminfo").and_then(|mut file| file.read(&mut head));
    let length = read.map_err(|error| {
        UsageError::plain(format!(
            "Cannot read /proc/meminfo: {}; give a limit with --memory",
            system_text(&error)
        ))
    })?;
    let text = String::from_utf8_lossy(head.get(..length).unwrap_or_default());
    let available = text.lines().find_map(|line| {
        let number = line.strip_prefix("MemAvailable:")?.trim();
        let number = number.strip_suffix(" kB")?;
        number.parse::<u64>().ok()?.checked_mul(1024)
    });
    match available {
        Some(bytes) => Ok((bytes / 2).clamp(MIN_MEMORY_BYTES, MOST)),
        None => Ok(MOST),
    }
}

/// The folders of `--allow-path` and of [`ALLOW_PATH_VARIABLE`].
#[must_use]
pub fn allowed_folders(options: &[PathBuf], variable: Option<OsString>) -> Vec<PathBuf> {
    let from_variable = variable.as_deref().map(std::env::split_paths);
    options
        .iter()
        .cloned()
        .chain(from_variable.into_iter().flatten())
        .filter(|folder| !folder.as_os_str().is_empty())
        .collect()
}

#[cfg(test)]
mod tests;
