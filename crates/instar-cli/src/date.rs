//! Dates in the user's time zone, as the C library would print them.
//!
//! The zone is loaded once, before the process gives up its right to open files.
//! `TZ` is read as glibc reads it: unset means `/etc/localtime`, a leading colon
//! is skipped, a name is a file below the zone folder, anything else is a POSIX
//! rule such as `EST5EDT,M3.2.0,M11.1.0`, and what cannot be read is UTC.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Zone of a machine whose user chose none.
const LOCAL_TIME: &str = "/etc/localtime";
/// Where the zone files are, unless `TZDIR` says otherwise.
const ZONE_FOLDER: &str = "/usr/share/zoneinfo";
/// Largest zone file that is read; real ones are below 4 KiB.
const MAX_ZONE_BYTES: u64 = 1 << 20;

/// The time zone that dates are printed in.
pub struct Zone(TimeZone);

impl Zone {
    /// The zone of this process's environment.
    #[must_use]
    pub fn load() -> Self {
        Self::from_variable(std::env::var_os("TZ").as_deref())
    }

    /// The zone that a value of `TZ` means.
    #[must_use]
    pub fn from_variable(variable: Option<&OsStr>) -> Self {
        let Some(variable) = variable else {
            return Self(read_zone(Path::new(LOCAL_TIME)).unwrap_or(TimeZone::UTC));
        };
        let value = variable.as_bytes();
        let value = value.strip_prefix(b":").unwrap_or(value);
        if value.is_empty() {
            return Self(TimeZone::UTC);
        }
        let zone = read_zone(&zone_path(value)).or_else(|| posix_rule(value));
        Self(zone.unwrap_or(TimeZone::UTC))
    }

    /// `2026-11-21 07:08:45` for seconds since 1970-01-01 UTC.
    #[must_use]
    pub fn format(&self, seconds: u32) -> String {
        let Ok(timestamp) = Timestamp::from_second(i64::from(seconds)) else {
            return String::new();
        };
        let local = timestamp.to_zoned(self.0.clone());
        format!(
            "{:04}-{:02}-{:02} {:02}:{:02}:{:02}",
            local.year(),
            local.month(),
            local.day(),
            local.hour(),
            local.minute(),
            local.second()
        )
    }
}

/// Where the file of a zone name is.
fn zone_path(name: &[u8]) -> PathBuf {
    let folder = std::env::var_os("TZDIR")
        .filter(|folder| !folder.is_empty())
        .unwrap_or_else(|| ZONE_FOLDER.into());
    // An absolute name replaces the folder.
    Path::new(&folder).join(OsStr::from_bytes(name))
}

/// The zone in a compiled zone file.
fn read_zone(path: &Path) -> Option<TimeZone> {
    let metadata = std::fs::metadata(path).ok()?;
    if !metadata.is_file() || metadata.len() > MAX_ZONE_BYTES {
        return None;
    }
    TimeZone::tzif("", &std::fs::read(path).ok()?).ok()
}

/// The zone of a POSIX rule. A rule with summer time but without its dates counts as UTC.
fn posix_rule(value: &[u8]) -> Option<TimeZone> {
    TimeZone::posix(std::str::from_utf8(value).ok()?).ok()
}

#[cfg(test)]
mod tests;
