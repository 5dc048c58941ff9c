//! The output of `create`: the options as they were understood, then nothing, or why it was not made.

use super::encryption::reworded;
use super::options::NewOptions;
use super::{MAX_SIZE, NO_BACKING};
use crate::console::{Console, JobKind};
use crate::failure;
use crate::files::{FileTable, JobError, Output, RESULT_BYTES};
use crate::info::Format;
use crate::json::Json;
use instar_shared::create::CreateResult;
use instar_shared::op::Outcome;
use instar_shared::record::{Failure, FailureKind, RecordKind};
use instar_shared::zerocopy::FromBytes;
use instar_vmm::operation::RunStats;
use std::os::unix::ffi::OsStrExt;

/// How the run is shown.
#[derive(Clone, Debug)]
pub struct Shown {
    /// For people or for programs.
    pub format: Format,
    /// Errors only.
    pub quiet: bool,
    /// The image, as typed.
    pub target: Vec<u8>,
    /// What it is made with.
    pub options: NewOptions,
    /// Its size, if that is known beforehand.
    pub size: Option<u64>,
    /// Slot of the backing file.
    pub backing_slot: Option<u16>,
    /// Why nothing is made after the backing file was opened.
    pub refusal: Option<String>,
    /// What the operation's sentence about a missing password means.
    pub no_secret: Option<String>,
    /// Name of the image's format.
    pub format_name: &'static str,
}

/// Says what is made, and how it ended.
pub struct CreateOutput {
    console: Console,
    shown: Shown,
    said: bool,
    failure: Option<Vec<u8>>,
}

impl CreateOutput {
    /// Asks about the terminal: call it before confinement.
    #[must_use]
    pub fn new(shown: Shown) -> Self {
        let json = shown.format == Format::Json;
        let console = Console::new(JobKind::Make(""), json, shown.quiet);
        Self {
            console,
            shown,
            said: false,
            failure: None,
        }
    }

    /// Shows the options, once, if the size is known.
    fn say_options(&mut self) {
        let Some(size) = self.shown.size.filter(|_| !self.said) else {
            return;
        };
        self.said = true;
        if self.shown.quiet || self.shown.format == Format::Json {
            return;
        }
        let line = self.shown.options.line(size);
        let stdout = self.console.stdout();
        crate::sink::Out::put(stdout, b"Formatting '");
        crate::sink::Out::name(stdout, &self.shown.target);
        crate::sink::Out::put(stdout, b"', ");
        crate::sink::Out::name(stdout, &line);
        crate::sink::Out::put(stdout, b"\n");
    }

    /// A sentence about the image.
    fn about_image(&self, sentence: &[u8]) -> Vec<u8> {
        [self.shown.target.as_slice(), b": ", sentence].concat()
    }

    /// Takes the size that the guest found.
    fn take_size(&mut self, text: &[u8]) -> Result<(), String> {
        let size = str::from_utf8(text).ok().and_then(|text| text.parse().ok());
        match size {
            Some(size) if size <= MAX_SIZE && self.shown.size.is_none() => {
                self.shown.size = Some(size);
                self.say_options();
                Ok(())
            }
            _ => Err("a size that cannot be".into()),
        }
    }

    /// Keeps the first failure that has a sentence of this command's own; false if it has none.
    fn take_failure(&mut self, payload: &[u8], files: &FileTable) -> Result<bool, String> {
        let reworded = reworded(payload, self.shown.no_secret.as_deref());
        let payload = reworded.as_deref().unwrap_or(payload);
        let (head, text) =
            Failure::read_from_prefix(payload).map_err(|_| "the record's length is wrong")?;
        let kind = FailureKind::try_from(head.kind.get());
        let sentence = match kind {
            Ok(FailureKind::Operation) => text.to_vec(),
            Ok(FailureKind::OpenImage) => {
                let slot = head.slot.get();
                let kind = FailureKind::OpenImage;
                let nested = failure::sentence(JobKind::Check, kind, slot, text, files);
                let top = files.get(0).map(|facts| facts.given_name.as_bytes());
                let before = [b"Could not open '", top.unwrap_or_default(), b"': "].concat();
                let inner = nested.strip_prefix(before.as_slice()).unwrap_or(&nested);
                [inner, NO_BACKING.as_bytes()].concat()
            }
            _ => return Ok(false),
        };
        let sentence = self.about_image(&sentence);
        self.failure.get_or_insert(sentence);
        Ok(true)
    }

    fn done(mut self, result: &CreateResult) -> u8 {
        let sound = result.size.get() <= MAX_SIZE && result.reserved.get() == 0;
        if !sound || result.reserved2.iter().any(|byte| *byte != 0) {
            return self.console.end_malformed("its numbers cannot be");
        }
        self.say_options();
        if let Some(sentence) = self.shown.refusal.take() {
            let sentence = self.about_image(sentence.as_bytes());
            return self.console.end_wrong(&sentence);
        }
        if self.shown.format == Format::Json && !self.shown.quiet {
            let mut json = Json::new(self.console.stdout());
            json.begin_object();
            json.field_string("filename", &self.shown.target);
            json.field_string("format", self.shown.format_name.as_bytes());
            json.field_number("virtual-size", result.size.get());
            json.end_object();
            json.finish();
        }
        self.console.end(0)
    }

    fn ended(mut self, outcome: Outcome) -> u8 {
        match self.failure.take() {
            Some(sentence) => self.console.end_wrong(&sentence),
            None => self.console.end_without_result(outcome),
        }
    }
}

impl Output for CreateOutput {
    fn record(
        &mut self,
        kind: RecordKind,
        payload: &[u8],
        files: &FileTable,
    ) -> Result<(), String> {
        match kind {
            RecordKind::Line => return self.take_size(payload),
            RecordKind::Failure => {
                // The options were understood, whatever came then.
                if self.shown.backing_slot.is_none() {
                    self.say_options();
                }
                if self.take_failure(payload, files)? {
                    return Ok(());
                }
            }
            _ => {}
        }
        self.console.record_only(kind, payload, files)
    }

    fn ran(&mut self, stats: &RunStats) {
        self.console.ran(stats);
    }

    fn finish(self: Box<Self>, result: &[u8; RESULT_BYTES], _files: &FileTable) -> u8 {
        let Ok((result, _)) = CreateResult::read_from_prefix(result.as_slice()) else {
            return self.console.end_malformed("the result is too short");
        };
        match Outcome::try_from(result.outcome.get()) {
            Ok(Outcome::Done) => self.done(&result),
            Ok(outcome) => self.ended(outcome),
            Err(raw) => self.console.end_malformed(&format!("its outcome is {raw}")),
        }
    }

    fn failed(mut self: Box<Self>, error: &JobError, files: &FileTable) -> u8 {
        if let JobError::Open(failed) = error {
            if failed.output {
                self.say_options();
            } else {
                let reason = [failed.reason.as_bytes(), NO_BACKING.as_bytes()].concat();
                let sentence = self.about_image(&reason);
                return self.console.end_wrong(&sentence);
            }
        }
        if let Some(sentence) = self.failure.take() {
            return self.console.end_wrong(&sentence);
        }
        self.console.end_failed(error, files)
    }
}
