//! Values of options.

use crate::cli::UsageError;
use crate::failure::system_text;
use crate::info::Format;
use crate::quantity::{self, QuantityError};
use crate::size;
use instar_shared::check::RepairMode;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

/// Shortest memory limit that an operation can start with, in bytes.
pub const MIN_MEMORY_BYTES: u64 = 1 << 20;

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

/// Checks a cache mode; `what` is what it is a mode of, with a space behind it. A change is durable when its
/// operation ends; what `convert` makes
/// is where a mode other than `unsafe` is given, what `dd` makes is not.
///
/// # Errors
/// There is no such mode.
pub fn cache_mode(what: &str, value: Option<&OsString>) -> Result<(), UsageError> {
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
            format!("Invalid {what}cache option: {}", mode.display()),
        )),
        _ => Ok(()),
    }
}

/// Whether a cache mode is one that passes by the page cache.
#[must_use]
pub fn past_cache(mode: Option<&OsString>) -> bool {
    mode.is_some_and(|mode| {
        ["none", "off", "directsync"]
            .iter()
            .any(|one| *one == *mode)
    })
}

/// The repair that `--repair` asks for.
///
/// # Errors
/// There is no such repair.
pub fn repair_mode(value: Option<&OsString>) -> Result<Option<RepairMode>, UsageError> {
    let Some(value) = value else {
        return Ok(None);
    };
    match value.to_str() {
        Some("leaks") => Ok(Some(RepairMode::Leaks)),
        Some("all") => Ok(Some(RepairMode::All)),
        _ => Err(UsageError::with_help(format!(
            "--repair (-r) expects 'leaks' or 'all' not '{}'",
            value.display()
        ))),
    }
}

/// Reads the value of `--memory`.
///
/// # Errors
/// It is no size, or too small to start with.
pub fn parse_memory(text: &str) -> Result<u64, String> {
    match size::parse(text)? {
        bytes if bytes < MIN_MEMORY_BYTES => Err("an operation needs at least 1M".to_owned()),
        bytes => Ok(bytes),
    }
}

/// Reads the value of `--max-growth`.
///
/// # Errors
/// It is no size.
pub fn parse_growth(text: &str) -> Result<u64, String> {
    size::parse(text)
}

/// Reads the value of `--timeout`.
///
/// # Errors
/// It is no time.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| format!("'{text}' is not a number of seconds"))?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(format!("'{text}' is not a number of seconds above 0")),
    }
}

/// Half of the memory that is free now, at most 8 GiB, and at most three quarters of the address space that this
/// process may have: Nova has `qemu-img` run in 1 GiB.
///
/// # Errors
/// The system does not say how much memory is free.
pub fn default_memory() -> Result<u64, UsageError> {
    const MOST: u64 = 8 << 30;
    let space = rustix::process::getrlimit(rustix::process::Resource::As).current;
    let most = space.map_or(MOST, |bytes| (bytes / 4).saturating_mul(3).min(MOST));
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
        Some(bytes) => Ok((bytes / 2).min(most).max(MIN_MEMORY_BYTES)),
        None => Ok(most.max(MIN_MEMORY_BYTES)),
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

/// What follows on a size that does not read as one.
pub const SIZE_LINES: &str = "\n\
    Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
    and exabytes, respectively.";

/// Reads the size that the option `name` has.
///
/// # Errors
/// It is not one.
pub fn size_option(name: &str, text: &[u8]) -> Result<u64, String> {
    quantity::size(text).map_err(|error| match error {
        QuantityError::Syntax => {
            format!("Parameter '{name}' expects a non-negative number below 2^64{SIZE_LINES}")
        }
        QuantityError::Range => format!(
            "Value '{}' is out of range for parameter '{name}'",
            String::from_utf8_lossy(text)
        ),
    })
}
