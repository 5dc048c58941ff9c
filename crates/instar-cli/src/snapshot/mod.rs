//! `instar snapshot`: the list of an image's snapshots, or one action on one of them.

use crate::cli::{self, LimitOptions, SnapshotOptions, UsageError};
use crate::console::{Console, JobKind};
use crate::date::Zone;
use crate::edit::{EditOutput, Ending, Field, Shown};
use crate::files::{FileTable, Growth, JobError, Output, RESULT_BYTES, Reads, SNAPSHOT};
use crate::image::Image;
use crate::info::{Format, human, json, model};
use crate::launch;
use instar_shared::edit::{EditResult, SnapshotAction, SnapshotConfig};
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::record::RecordKind;
use instar_shared::zerocopy::{FromBytes, IntoBytes};
use instar_vmm::operation::RunStats;
use model::Snapshots;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// Runs the command; returns the exit code.
///
/// # Errors
/// The options do not go together, or ask for what is not there.
pub fn run(options: &SnapshotOptions, limits: &LimitOptions) -> Result<u8, UsageError> {
    let format = cli::output_format(&options.output)?;
    let (action, name) = action(options)?;
    let image = Image::only(&options.image.files, &options.image.how)?;
    let share = options.image.force_share;
    let config = config(&image, action, name);
    let config = config.as_bytes();
    if action == SnapshotAction::List {
        let output = ListOutput::new(format);
        let input = launch::to_read(image, Reads::Contents, share);
        return launch::start(SNAPSHOT, config, vec![input], limits, output);
    }
    let output = EditOutput::new(shown(options, format, &image, (action, name)));
    let mut input = launch::to_change(image, Growth::default(), limits);
    input.share |= share;
    launch::start(SNAPSHOT, config, vec![input], limits, output)
}

/// The only action of the options, and the snapshot that it is about.
fn action(options: &SnapshotOptions) -> Result<(SnapshotAction, &OsStr), UsageError> {
    fn all(names: &[OsString], action: SnapshotAction) -> Vec<(SnapshotAction, &OsStr)> {
        names
            .iter()
            .map(|name| (action, name.as_os_str()))
            .collect()
    }
    let listings = (0..options.list).map(|_| (SnapshotAction::List, OsStr::new("")));
    let actions = [
        all(&options.create, SnapshotAction::Create),
        all(&options.apply, SnapshotAction::Apply),
        all(&options.delete, SnapshotAction::Delete),
        listings.collect(),
    ]
    .concat();
    match actions.as_slice() {
        [] => Ok((SnapshotAction::List, OsStr::new(""))),
        [only] => Ok(*only),
        _ => Err(UsageError::with_help("Cannot mix '-l', '-a', '-c', '-d'")),
    }
}

fn config(image: &Image, action: SnapshotAction, name: &OsStr) -> SnapshotConfig {
    let mut config = SnapshotConfig::zeroed();
    config.format.set(image.format.raw());
    config.action.set(action.raw());
    config.name_len.set(launch::fill(&mut config.name, name));
    config
}

fn shown(
    options: &SnapshotOptions,
    format: Format,
    image: &Image,
    (action, name): (SnapshotAction, &OsStr),
) -> Shown {
    let (verb, opens) = match action {
        SnapshotAction::Create => ("create", 1),
        // QEMU opens the image once more when it has applied a snapshot.
        SnapshotAction::Apply => ("apply", 2),
        SnapshotAction::Delete => ("delete", 1),
        SnapshotAction::List => ("list", 0),
    };
    Shown {
        format,
        quiet: options.quiet,
        percent: false,
        raw_warnings: if image.format == ImageFormat::Probe {
            opens
        } else {
            0
        },
        ending: Ending::Silent,
        no_secret: None,
        fields: vec![
            Field::Text("action", verb.into()),
            Field::Text("snapshot", name.as_bytes().to_vec()),
        ],
    }
}

/// Collects snapshots and prints them at the end.
struct ListOutput {
    console: Console,
    zone: Zone,
    format: Format,
    snapshots: Snapshots,
}

impl ListOutput {
    /// Loads the time zone and asks about the terminal: call it before confinement.
    fn new(format: Format) -> Self {
        Self {
            console: Console::new(JobKind::Check, format == Format::Json, false),
            zone: Zone::load(),
            format,
            snapshots: Snapshots::default(),
        }
    }
}

impl Output for ListOutput {
    fn record(
        &mut self,
        kind: RecordKind,
        payload: &[u8],
        files: &FileTable,
    ) -> Result<(), String> {
        if self.console.record(kind, payload, files)? {
            return Ok(());
        }
        if kind != RecordKind::Snapshot {
            return Err(format!(
                "records of the kind {kind:?} do not belong to a list of snapshots"
            ));
        }
        self.snapshots
            .add(payload)
            .map_err(|error| error.to_string())
    }

    fn ran(&mut self, stats: &RunStats) {
        self.console.ran(stats);
    }

    fn finish(mut self: Box<Self>, result: &[u8; RESULT_BYTES], _files: &FileTable) -> u8 {
        let Ok((result, _)) = EditResult::read_from_prefix(result.as_slice()) else {
            return self.console.end_malformed("the result is too short");
        };
        match Outcome::try_from(result.outcome.get()) {
            Ok(Outcome::Done) => {
                let (out, snapshots) = (self.console.stdout(), self.snapshots.all());
                match self.format {
                    Format::Human => human::print_snapshots(out, snapshots, &self.zone),
                    Format::Json => json::print_snapshots(out, snapshots),
                }
                self.console.end(0)
            }
            ended => self.console.end_undone(ended),
        }
    }

    fn failed(self: Box<Self>, error: &JobError, files: &FileTable) -> u8 {
        self.console.end_failed(error, files)
    }
}

#[cfg(test)]
mod tests;
