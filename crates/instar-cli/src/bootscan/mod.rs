//! `instar bootscan`: what a disk boots, and why. `qemu-img` has no such command.
//!
//! - `model`: records, validated; `text` and `json`: what is printed of them.

mod json;
pub mod model;
mod text;

use crate::cli::{self, ImageOptions, LimitOptions, UsageError};
use crate::console::{Console, JobKind};
use crate::files::{BOOTSCAN, FileTable, InputFile, JobError, Layout, Output, RESULT_BYTES, Reads};
use crate::image::Image;
use crate::info::Format;
use crate::launch::{self, NewFile};
use clap::Args;
use instar_shared::bootscan::{BOOTSCAN_WANTED, BootscanConfig, BootscanResult};
use instar_shared::op::Outcome;
use instar_shared::record::RecordKind;
use instar_shared::zerocopy::{FromBytes, IntoBytes};
use instar_vmm::operation::RunStats;
use model::Found;
use std::ffi::OsString;
use std::path::PathBuf;

/// Exit code where nothing can be booted.
const EXIT_NOTHING: u8 = 1;

/// Options of `bootscan`.
#[derive(Args, Clone, Debug, Default)]
pub struct BootscanOptions {
    /// The entry that is meant: its index, ID or title (default: the boot loader's default)
    #[arg(long, value_name = "ENTRY", allow_hyphen_values = true)]
    pub entry: Option<OsString>,
    /// Copy the entry's kernel into a new file
    #[arg(long, value_name = "FILE")]
    pub extract_kernel: Option<OsString>,
    /// Copy the entry's initial RAM disks into a new file, one after the other
    #[arg(long, value_name = "FILE")]
    pub extract_initrd: Option<OsString>,
    /// human or json
    #[arg(long, value_name = "FORM", default_value = "human")]
    pub output: OsString,
    /// The image.
    #[command(flatten)]
    pub image: ImageOptions,
}

/// Runs the command; returns the exit code.
///
/// # Errors
/// The options do not go together, or ask for what is not there.
pub fn run(options: &BootscanOptions, limits: &LimitOptions) -> Result<u8, UsageError> {
    let format = cli::output_format(&options.output)?;
    let image = Image::only(&options.image.files, &options.image.how)?;
    let mut config = BootscanConfig::zeroed();
    config.format.set(image.format.raw());
    if let Some(entry) = &options.entry {
        if entry.len() > config.wanted.len() {
            return Err(UsageError::plain("The name of the entry is too long"));
        }
        config.flags.set(BOOTSCAN_WANTED);
        config
            .wanted_len
            .set(launch::fill(&mut config.wanted, entry));
    }
    let mut inputs = vec![launch::to_read(
        image,
        Reads::Contents,
        options.image.force_share,
    )];
    config.kernel_slot.set(add_file(
        &mut inputs,
        options.extract_kernel.as_ref(),
        limits,
    ));
    config.initrd_slot.set(add_file(
        &mut inputs,
        options.extract_initrd.as_ref(),
        limits,
    ));
    let output = BootscanOutput::new(format);
    launch::start(BOOTSCAN, config.as_bytes(), inputs, limits, output)
}

/// Adds a file that is made; returns its slot, 0 for none.
fn add_file(inputs: &mut Vec<InputFile>, name: Option<&OsString>, limits: &LimitOptions) -> u16 {
    let Some(name) = name else {
        return 0;
    };
    let file = NewFile {
        path: PathBuf::from(name),
        raw: true,
        durable: false,
        layout: Layout::USUAL,
    };
    inputs.push(launch::to_create(file, limits));
    u16::try_from(inputs.len().saturating_sub(1)).unwrap_or(0)
}

/// Collects what is found, and prints it at the end.
struct BootscanOutput {
    console: Console,
    format: Format,
    found: Found,
}

impl BootscanOutput {
    /// Asks about the terminal: call it before confinement.
    fn new(format: Format) -> Self {
        Self {
            console: Console::new(JobKind::Check, format == Format::Json, false),
            format,
            found: Found::default(),
        }
    }

    fn print(&mut self) {
        match self.format {
            Format::Human => text::print(self.console.stdout(), &self.found),
            Format::Json => json::print(self.console.stdout(), &self.found),
        }
    }

    fn done(mut self: Box<Self>, result: &BootscanResult) -> u8 {
        if let Err(what) = self.found.finish(result) {
            return self.console.end_malformed(&what);
        }
        self.print();
        let chosen = self.found.chosen();
        let bootable = chosen.is_some_and(|entry| entry.problem.is_empty());
        let code = if bootable { 0 } else { EXIT_NOTHING };
        self.console.end(code)
    }
}

impl Output for BootscanOutput {
    fn record(
        &mut self,
        kind: RecordKind,
        payload: &[u8],
        files: &FileTable,
    ) -> Result<(), String> {
        if self.console.record(kind, payload, files)? {
            return Ok(());
        }
        self.found.record(kind, payload)
    }

    fn ran(&mut self, stats: &RunStats) {
        self.console.ran(stats);
    }

    fn finish(mut self: Box<Self>, result: &[u8; RESULT_BYTES], _files: &FileTable) -> u8 {
        let Ok((result, _)) = BootscanResult::read_from_prefix(result.as_slice()) else {
            return self.console.end_malformed("the result is too short");
        };
        match Outcome::try_from(result.outcome.get()) {
            Ok(Outcome::Done) => self.done(&result),
            Ok(outcome) => {
                if self.format == Format::Human && self.found.finish(&result).is_ok() {
                    self.print();
                }
                self.console.end_without_result(outcome)
            }
            Err(raw) => self.console.end_malformed(&format!("its outcome is {raw}")),
        }
    }

    fn failed(self: Box<Self>, error: &JobError, files: &FileTable) -> u8 {
        self.console.end_failed(error, files)
    }
}

#[cfg(test)]
mod tests;
