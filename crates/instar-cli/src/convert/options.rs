//! The options of `convert`, and the values that need no image to be judged.

use crate::cli::UsageError;
use crate::quantity::{self, QuantityError};
use clap::{ArgAction, Args};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// Largest value of options that are signed 64-bit numbers elsewhere.
const MAX_NUMBER: u64 = i64::MAX.unsigned_abs();
/// Largest `-S`, in bytes.
const MAX_SPARSE_BYTES: u64 = 16 << 20;
/// `-S` where it is not given, in bytes.
const DEFAULT_SPARSE_BYTES: u64 = 4096;
/// `-m` where it is not given.
const DEFAULT_PARALLEL: u32 = 8;
/// Largest `-m`.
const MAX_PARALLEL: u64 = 16;

/// Options of `convert`.
#[derive(Args, Clone, Debug, Default)]
pub struct ConvertOptions {
    /// Format of the source: raw or qcow2 (default: look at its first bytes)
    #[arg(
        short = 'f',
        long,
        value_name = "FMT",
        allow_hyphen_values = true,
        help_heading = "Source"
    )]
    pub source_format: Option<OsString>,
    /// SOURCE is a list of image options rather than a name
    #[arg(long, visible_alias = "image-opts", help_heading = "Source")]
    pub source_image_opts: bool,
    /// Copy this internal snapshot: its name or ID, or snapshot.id=ID,snapshot.name=NAME
    #[arg(
        short = 'l',
        long,
        visible_alias = "snapshot",
        value_name = "SNAPSHOT",
        allow_hyphen_values = true,
        help_heading = "Source"
    )]
    pub source_snapshot: Option<OsString>,
    /// Cache mode as in qemu-img: none, writeback, writethrough, directsync or unsafe
    #[arg(
        short = 'T',
        long,
        value_name = "MODE",
        allow_hyphen_values = true,
        help_heading = "Source"
    )]
    pub source_cache: Option<OsString>,
    /// Read the source even while another program writes to it
    #[arg(short = 'U', long, help_heading = "Source")]
    pub force_share: bool,
    /// Copy zeros where the source cannot be read
    #[arg(long, help_heading = "Source")]
    pub salvage: bool,
    /// Format of the target: raw or qcow2
    #[arg(
        short = 'O',
        long,
        visible_alias = "output-format",
        value_name = "FMT",
        allow_hyphen_values = true,
        default_value = "raw",
        help_heading = "Target"
    )]
    pub target_format: OsString,
    /// TARGET is a list of image options rather than a name
    #[arg(long, help_heading = "Target")]
    pub target_image_opts: bool,
    /// How the target is made, as NAME=VALUE,...; '-o help' lists the names
    #[arg(
        short = 'o',
        long,
        visible_alias = "options",
        value_name = "OPTIONS",
        allow_hyphen_values = true,
        help_heading = "Target"
    )]
    pub target_options: Vec<OsString>,
    /// Compress the target
    #[arg(short, long, help_heading = "Target")]
    pub compress: bool,
    /// Cache mode as in qemu-img; the target is durable at the end, unless it is unsafe, the default
    #[arg(
        short = 't',
        long,
        visible_alias = "output-cache",
        value_name = "MODE",
        allow_hyphen_values = true,
        help_heading = "Target"
    )]
    pub target_cache: Option<OsString>,
    /// Backing file of the target: only what the source itself holds is copied
    #[arg(
        short = 'B',
        long,
        value_name = "FILE",
        allow_hyphen_values = true,
        help_heading = "Target"
    )]
    pub backing: Option<OsString>,
    /// Format of that backing file
    #[arg(
        short = 'F',
        long,
        value_name = "FMT",
        allow_hyphen_values = true,
        help_heading = "Target"
    )]
    pub backing_format: Option<OsString>,
    /// Write into the target, which exists, instead of making it
    #[arg(short, long, help_heading = "Target")]
    pub no_create: bool,
    /// With -n: the target reads as zeros
    #[arg(long, help_heading = "Target")]
    pub target_is_zero: bool,
    /// Copy the bitmaps that record changes, too
    #[arg(long, help_heading = "Target")]
    pub bitmaps: bool,
    /// With --bitmaps: leave out those that are inconsistent
    #[arg(long, help_heading = "Target")]
    pub skip_broken_bitmaps: bool,
    /// Leave out zeros from this length on (default: 4k); 0: write everything
    #[arg(
        short = 'S',
        long,
        value_name = "SIZE",
        allow_hyphen_values = true,
        help_heading = "Copying"
    )]
    pub sparse_size: Option<OsString>,
    /// Have the system copy data from file to file, without looking for zeros in it
    #[arg(short = 'C', long = "copy-range-offloading", help_heading = "Copying")]
    pub copy_range: bool,
    /// Share the data's blocks where the file system can, else as -C
    #[arg(long, help_heading = "Copying")]
    pub reflink: bool,
    /// Write in any order
    #[arg(short = 'W', long, help_heading = "Copying")]
    pub oob_writes: bool,
    /// How many parts are copied at once: 1 to 16
    #[arg(
        short = 'm',
        long,
        value_name = "NUMBER",
        allow_hyphen_values = true,
        help_heading = "Copying"
    )]
    pub parallel: Option<OsString>,
    /// Copy at most this many bytes in a second
    #[arg(
        short = 'r',
        long,
        value_name = "RATE",
        allow_hyphen_values = true,
        help_heading = "Copying"
    )]
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
    /// An object such as a secret, as TYPE,id=NAME,...
    #[arg(long, value_name = "OBJECT", action = ArgAction::Append)]
    pub object: Vec<OsString>,
    /// The images to copy, one after the other, and the image to make
    #[arg(value_name = "SOURCE... TARGET")]
    pub files: Vec<OsString>,
}

/// What the options say about copying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manner {
    /// Zeros from this length on are left out, in bytes; 0: none are.
    pub sparse_bytes: u64,
    /// Parts copied at once, 1 to 16.
    pub parallel: u32,
    /// Bytes in a second; 0: as fast as it goes.
    pub rate: u64,
    /// The system copies.
    pub copy_range: bool,
}

impl ConvertOptions {
    /// What the options say about copying.
    ///
    /// # Errors
    /// A value is wrong, or two options do not go together.
    pub fn manner(&self) -> Result<Manner, UsageError> {
        let parallel = self.parallel.as_deref().map(parallel).transpose()?;
        let rate = self.rate.as_deref().map(rate).transpose()?;
        let sparse = self.sparse_size.as_deref().map(sparse_size).transpose()?;
        let copy_range = self.copy_range || self.reflink;
        Ok(Manner {
            // With -C, of what passes through the guest after all.
            sparse_bytes: sparse.unwrap_or(DEFAULT_SPARSE_BYTES),
            parallel: parallel.unwrap_or(DEFAULT_PARALLEL),
            rate: rate.unwrap_or(0),
            copy_range,
        })
    }

    /// Finds out whether the options go together, as far as no image has to be looked at.
    ///
    /// # Errors
    /// They do not.
    pub fn check_combination(&self) -> Result<(), UsageError> {
        let copies = self.copy_range || self.reflink;
        let wrong = if self.skip_broken_bitmaps && !self.bitmaps {
            "Use of --skip-broken-bitmaps requires --bitmaps"
        } else if self.target_image_opts && !self.no_create {
            "--target-image-opts requires use of -n flag"
        } else if self.target_is_zero && !self.no_create {
            "--target-is-zero requires use of -n flag"
        } else if copies && self.compress {
            "Cannot enable copy offloading when -c is used"
        } else if copies && self.sparse_size.is_some() {
            "Cannot enable copy offloading when -S is used"
        } else if copies && self.salvage {
            "Cannot use copy offloading in salvaging mode"
        } else {
            return Ok(());
        };
        Err(UsageError::plain(wrong))
    }
}

/// Reads the value of `-m`.
fn parallel(text: &OsStr) -> Result<u32, UsageError> {
    match whole_number(text.as_bytes()) {
        Ok(number @ 1..=MAX_PARALLEL) => Ok(u32::try_from(number).unwrap_or(DEFAULT_PARALLEL)),
        Err(QuantityError::Syntax) => Err(UsageError::plain(format!(
            "Invalid number of coroutines specified: '{}'.",
            text.display()
        ))),
        _ => Err(UsageError::plain(format!(
            "Invalid number of coroutines specified. Must be between 1 and {MAX_PARALLEL}."
        ))),
    }
}

/// Reads the value of `-r`, in bytes per second.
///
/// # Errors
/// The sentence of `qemu-img`.
pub fn rate(text: &OsStr) -> Result<u64, UsageError> {
    signed_size("rate limit", text)
}

/// Reads the value of `-S`.
fn sparse_size(text: &OsStr) -> Result<u64, UsageError> {
    let bytes = signed_size("buffer size for sparse output", text)?;
    if bytes % 512 != 0 || bytes > MAX_SPARSE_BYTES {
        return Err(UsageError::plain(format!(
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to \
             {MAX_SPARSE_BYTES}. Select 0 to disable sparse detection (fully allocates output)."
        )));
    }
    Ok(bytes)
}

/// Reads a size that fits a signed number.
fn signed_size(what: &str, text: &OsStr) -> Result<u64, UsageError> {
    match quantity::size(text.as_bytes()) {
        Ok(bytes) if bytes <= MAX_NUMBER => Ok(bytes),
        Err(QuantityError::Syntax) => Err(UsageError::plain(format!(
            "Invalid {what} specified: '{}'.",
            text.display()
        ))),
        _ => Err(UsageError::plain(format!(
            "Invalid {what} specified. Must be between 0 and {MAX_NUMBER}."
        ))),
    }
}

/// Reads a plain number; what C's `strtol` takes.
fn whole_number(text: &[u8]) -> Result<u64, QuantityError> {
    let number = quantity::number(text)?;
    if number > MAX_NUMBER {
        return Err(QuantityError::Range);
    }
    Ok(number)
}
