//! The output of `convert` and `dd`: nothing, percentages, or JSON on what was made.

use crate::console::{Console, JobKind};
use crate::create::encryption::reworded;
use crate::files::{FileTable, JobError, Output, RESULT_BYTES};
use crate::info::Format;
use crate::json::Json;
use crate::pace::Pace;
use instar_shared::convert::ConvertResult;
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::record::{Failure, FailureKind, RecordKind};
use instar_shared::zerocopy::{FromBytes, IntoBytes};
use instar_vmm::operation::RunStats;
use std::os::unix::ffi::OsStrExt;

/// Largest size of an image: sizes are signed 64-bit numbers to other programs.
const MAX_SIZE: u64 = i64::MAX.unsigned_abs();

/// The guest's word about a target that does not hold the sources.
const TOO_SMALL: &[u8] = b"output file is smaller than input file";

/// How the run is shown.
#[derive(Clone, Debug)]
pub struct Shown {
    /// For people or for programs.
    pub format: Format,
    /// Errors only.
    pub quiet: bool,
    /// Percentages on standard output, as `qemu-img -p` has them.
    pub percent: bool,
    /// The target, as typed.
    pub target: Vec<u8>,
    /// The target's format.
    pub target_format: &'static str,
    /// What stands between the target's name and why it cannot be made.
    pub doing: &'static str,
    /// Bytes that may be copied in a second; 0: as many as can be.
    pub rate: u64,
    /// Slot of the target's backing file, if it has one.
    pub backing_slot: Option<u32>,
    /// Why nothing is done after the sources were opened.
    pub refusal: Option<String>,
    /// What the operation's sentence about a missing password means.
    pub no_secret: Option<String>,
}

/// Passes messages on while a copy runs, and says how it ended.
pub struct ConvertOutput {
    console: Console,
    shown: Shown,
    pace: Pace,
}

impl ConvertOutput {
    /// Asks about the terminal: call it before confinement.
    #[must_use]
    pub fn new(shown: Shown) -> Self {
        let json = shown.format == Format::Json;
        let mut console = Console::new(JobKind::Make(shown.doing), json, shown.quiet);
        if shown.percent && !shown.quiet && !json && shown.refusal.is_none() {
            console.show_percent();
        }
        let pace = Pace::new(shown.rate);
        Self {
            console,
            shown,
            pace,
        }
    }

    /// The failure record of the target, if `payload` is that of its backing file.
    fn backing_failed(&self, payload: &[u8]) -> Option<Vec<u8>> {
        let (head, text) = Failure::read_from_prefix(payload).ok()?;
        let opening = head.kind.get() == FailureKind::OpenImage.raw();
        if !opening || self.shown.backing_slot != Some(head.slot.get()) {
            return None;
        }
        let mut head = head;
        head.kind.set(FailureKind::Operation.raw());
        Some([head.as_bytes(), &self.backing_sentence(text)].concat())
    }

    /// What is said of the target whose backing file does not open.
    fn backing_sentence(&self, reason: &[u8]) -> Vec<u8> {
        let name = self.shown.target.as_slice();
        let between = b"': Could not open backing file: ".as_slice();
        [b"Could not open '".as_slice(), name, between, reason].concat()
    }

    fn done(mut self, result: &ConvertResult) -> u8 {
        if let Some(sentence) = self.shown.refusal.take() {
            return self.console.end_wrong(sentence.as_bytes());
        }
        if result.size.get() > MAX_SIZE || result.reserved.iter().any(|byte| *byte != 0) {
            return self.console.end_malformed("its numbers cannot be");
        }
        self.console.end_percent();
        if self.shown.format == Format::Json && !self.shown.quiet {
            self.json(result);
        }
        self.console.end(0)
    }

    fn json(&mut self, result: &ConvertResult) {
        let mut json = Json::new(self.console.stdout());
        json.begin_object();
        json.field_string("filename", &self.shown.target);
        json.field_string("format", self.shown.target_format.as_bytes());
        json.field_number("virtual-size", result.size.get());
        let source = match ImageFormat::try_from(result.source_format.get()) {
            Ok(ImageFormat::Qcow2) => "qcow2",
            _ => "raw",
        };
        json.field_string("source-format", source.as_bytes());
        json.end_object();
        json.finish();
    }
}

impl Output for ConvertOutput {
    fn record(
        &mut self,
        kind: RecordKind,
        payload: &[u8],
        files: &FileTable,
    ) -> Result<(), String> {
        let reworded = match kind {
            RecordKind::Failure => reworded(payload, self.shown.no_secret.as_deref()),
            _ => None,
        };
        let payload = reworded.as_deref().unwrap_or(payload);
        if kind == RecordKind::Failure
            && let Some(sentence) = self.backing_failed(payload)
        {
            let known = self.console.record(kind, &sentence, files)?;
            debug_assert!(known, "a failure is a record of every operation");
            return Ok(());
        }
        if kind == RecordKind::Failure && payload.ends_with(TOO_SMALL) {
            // It was about to begin.
            self.console.mark_percent(0, 1);
        }
        if self.console.record(kind, payload, files)? {
            if kind == RecordKind::Progress {
                self.pace.keep(payload);
            }
            Ok(())
        } else {
            Err(format!(
                "records of the kind {kind:?} do not belong to this operation"
            ))
        }
    }

    fn pause(&mut self) {
        self.console.pause();
    }

    fn hand_on(&mut self) {
        // As at the end of the copy of nothing, which is the first and last that is heard of it.
        self.console.mark_percent(0, 1);
    }

    fn go_on(&mut self) {
        self.console.continue_percent();
    }

    fn ran(&mut self, stats: &RunStats) {
        self.console.ran(stats);
    }

    fn finish(self: Box<Self>, result: &[u8; RESULT_BYTES], _files: &FileTable) -> u8 {
        let Ok((result, _)) = ConvertResult::read_from_prefix(result.as_slice()) else {
            return self.console.end_malformed("the result is too short");
        };
        match Outcome::try_from(result.outcome.get()) {
            Ok(Outcome::Done) => self.done(&result),
            ended => self.console.end_undone(ended),
        }
    }

    fn failed(self: Box<Self>, error: &JobError, files: &FileTable) -> u8 {
        if let JobError::Open(failed) = error
            && Some(u32::from(failed.slot)) == self.shown.backing_slot
            && !failed.output
        {
            let sentence = self.backing_sentence(failed.reason.as_bytes());
            return self.console.end_wrong(&sentence);
        }
        self.console.end_failed(error, files)
    }
}
