//! The output of `commit`: a line, percentages, or JSON on how it went.

use crate::console::{Console, JobKind};
use crate::files::{FileTable, JobError, Output, RESULT_BYTES};
use crate::info::Format;
use crate::json::Json;
use crate::pace::Pace;
use instar_shared::commit::CommitResult;
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::record::RecordKind;
use instar_shared::zerocopy::FromBytes;
use instar_vmm::operation::RunStats;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

/// What is said when it is done.
const DONE: &str = "Image committed.\n";
/// Largest size of an image: sizes are signed 64-bit numbers to other programs.
const MAX_SIZE: u64 = i64::MAX.unsigned_abs();

/// How the run is shown.
#[derive(Clone, Debug)]
pub struct Shown {
    /// For people or for programs.
    pub format: Format,
    /// Errors only.
    pub quiet: bool,
    /// Percentages on standard output, as `qemu-img -p` has them.
    pub percent: bool,
    /// Bytes that may be copied in a second; 0: as many as can be.
    pub rate: u64,
    /// QEMU would warn if the image turned out to be raw: its format was not given.
    pub raw_warning: bool,
    /// The base, as typed.
    pub base: Option<OsString>,
    /// The image is emptied in the end.
    pub emptied: bool,
}

/// Passes messages on while an image is committed, and says how it ended.
pub struct CommitOutput {
    console: Console,
    shown: Shown,
    pace: Pace,
}

impl CommitOutput {
    /// Asks about the terminal: call it before confinement.
    #[must_use]
    pub fn new(shown: Shown) -> Self {
        let json = shown.format == Format::Json;
        let mut console = Console::new(JobKind::Commit, json, shown.quiet);
        if shown.percent && !shown.quiet && !json {
            console.show_percent();
        }
        let pace = Pace::new(shown.rate);
        Self {
            console,
            shown,
            pace,
        }
    }

    fn done(mut self, result: &CommitResult, files: &FileTable) -> u8 {
        self.console.end_percent();
        if self.shown.quiet {
            return self.console.end(0);
        }
        match self.shown.format {
            Format::Human => self.console.say(DONE),
            Format::Json => self.json(result, files),
        }
        self.console.end(0)
    }

    fn json(&mut self, result: &CommitResult, files: &FileTable) {
        let name = |slot: u32| {
            let facts = u16::try_from(slot).ok().and_then(|slot| files.get(slot));
            facts.map(|facts| facts.given_name.as_bytes())
        };
        let mut json = Json::new(self.console.stdout());
        json.begin_object();
        json.field_string("filename", name(0).unwrap_or_default());
        json.field_string("base", name(result.base_slot.get()).unwrap_or_default());
        json.field_number("base-virtual-size", result.base_size.get());
        json.field_bool("emptied", self.shown.emptied);
        json.end_object();
        json.finish();
    }

    /// Ends a run without a result.
    fn end_refused(mut self, result: &CommitResult, outcome: Outcome, files: &FileTable) -> u8 {
        if is_open(result, files) {
            self.console.mark_percent(0, 1);
        } else {
            self.console.hide_percent();
        }
        if result.not_found.get() == 0 {
            return self.console.end_without_result(outcome);
        }
        let facts = files.get(0).map(|facts| facts.given_name.as_bytes());
        let base = self.shown.base.as_deref().map(OsStrExt::as_bytes);
        let sentence = [
            b"Did not find '",
            base.unwrap_or_default(),
            b"' in the backing chain of '",
            facts.unwrap_or_default(),
            b"'",
        ];
        let sentence = sentence.concat();
        self.console.end_wrong(&sentence)
    }
}

/// Whether QEMU would have opened the whole chain before it failed.
fn is_open(result: &CommitResult, files: &FileTable) -> bool {
    let known = [ImageFormat::Raw, ImageFormat::Qcow2].map(ImageFormat::raw);
    // The base can be read, but not be written.
    let mut failed = files.failures().iter();
    known.contains(&result.format.get())
        || failed.any(|failed| failed.slot > 0 && failed.role.is_none())
}

/// Checks the numbers of a result.
fn validate(result: &CommitResult) -> Result<(), String> {
    if result.reserved.iter().any(|byte| *byte != 0) {
        return Err("its reserved bytes are not zero".into());
    }
    let size = result.base_size.get();
    if size > MAX_SIZE {
        return Err(format!("a size is {size}, which cannot be"));
    }
    Ok(())
}

impl Output for CommitOutput {
    fn record(
        &mut self,
        kind: RecordKind,
        payload: &[u8],
        files: &FileTable,
    ) -> Result<(), String> {
        self.console.record_only(kind, payload, files)?;
        if kind == RecordKind::Progress {
            self.pace.keep(payload);
        }
        Ok(())
    }

    fn pause(&mut self) {
        self.console.pause();
    }

    fn ran(&mut self, stats: &RunStats) {
        self.console.ran(stats);
    }

    fn finish(mut self: Box<Self>, result: &[u8; RESULT_BYTES], files: &FileTable) -> u8 {
        let Ok((result, _)) = CommitResult::read_from_prefix(result.as_slice()) else {
            return self.console.end_malformed("the result is too short");
        };
        if let Err(reason) = validate(&result) {
            return self.console.end_malformed(&reason);
        }
        let format = ImageFormat::try_from(result.format.get());
        if self.shown.raw_warning && format == Ok(ImageFormat::Raw) {
            self.console.warn_guessed_raw(files);
        }
        match Outcome::try_from(result.outcome.get()) {
            Ok(Outcome::Done) => self.done(&result, files),
            Ok(outcome) => self.end_refused(&result, outcome, files),
            Err(raw) => self.console.end_malformed(&format!("its outcome is {raw}")),
        }
    }

    fn failed(mut self: Box<Self>, error: &JobError, files: &FileTable) -> u8 {
        if matches!(error, JobError::Open(_)) {
            self.console.hide_percent();
        }
        self.console.end_failed(error, files)
    }
}
