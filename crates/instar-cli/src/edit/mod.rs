//! The output of the commands that change an image: nothing, a line, or JSON on how it went.

use crate::console::{Console, JobKind};
use crate::create::encryption::reworded;
use crate::files::{FileTable, JobError, Output, RESULT_BYTES};
use crate::info::Format;
use crate::json::Json;
use instar_shared::edit::EditResult;
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::record::RecordKind;
use instar_shared::zerocopy::FromBytes;
use instar_vmm::operation::RunStats;
use std::os::unix::ffi::OsStrExt;

/// Largest size of an image: sizes are signed 64-bit numbers to other programs.
const MAX_SIZE: u64 = i64::MAX.unsigned_abs();
/// How a size is refused that would cut something off.
const SHRINK_REFUSAL: &[u8] = b"Use the --shrink option to perform a shrink operation.";
/// What follows on that.
const SHRINK_WARNING: &[u8] =
    b"warning: Shrinking an image will delete all data beyond the shrunken image's end. \
      Before performing such an operation, make sure there is no important data there.";

/// What is printed at the end of a run that went well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nothing.
    Silent,
    /// A line.
    Line(&'static str),
    /// The whole text that was asked for; the image was only looked at.
    Text(&'static str),
    /// Why nothing was done: the options do not fit, which counts only for an image that opens.
    Refusal {
        /// The sentence.
        sentence: String,
        /// QEMU finds it out only after it has shown that it started and ended.
        started: bool,
    },
}

/// A key and a value of the JSON that tells how it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// A text.
    Text(&'static str, Vec<u8>),
    /// Texts in order.
    List(&'static str, Vec<&'static str>),
}

/// How the run is shown.
#[derive(Clone, Debug)]
pub struct Shown {
    /// For people or for programs.
    pub format: Format,
    /// Errors only.
    pub quiet: bool,
    /// Percentages on standard output, as `qemu-img -p` has them.
    pub percent: bool,
    /// How often QEMU would have warned of an image that it took for raw: once for each time it
    /// opens one for writing whose format was not given.
    pub raw_warnings: usize,
    /// What is printed at the end.
    pub ending: Ending,
    /// What the JSON says besides names and sizes.
    pub fields: Vec<Field>,
    /// What the operation's sentence about a missing password means.
    pub no_secret: Option<String>,
}

/// Passes messages on while an image is changed, and says how it ended.
pub struct EditOutput {
    console: Console,
    shown: Shown,
}

impl EditOutput {
    /// Asks about the terminal: call it before confinement.
    #[must_use]
    pub fn new(shown: Shown) -> Self {
        let json = shown.format == Format::Json;
        let mut console = Console::new(JobKind::Check, json, shown.quiet);
        let asked = shown.percent && !matches!(shown.ending, Ending::Text(_));
        if asked && !shown.quiet && !json {
            console.show_percent();
        }
        Self { console, shown }
    }

    fn done(mut self, result: &EditResult, files: &FileTable) -> u8 {
        if let Err(reason) = validate(result) {
            return self.console.end_malformed(&reason);
        }
        match &self.shown.ending {
            Ending::Refusal { sentence, started } => {
                if *started {
                    self.console.end_percent();
                }
                let sentence = sentence.clone();
                return self.console.end_wrong(sentence.as_bytes());
            }
            Ending::Text(text) => self.console.say(text),
            _ if self.shown.quiet => self.console.end_percent(),
            ending => {
                self.console.end_percent();
                match (self.shown.format, ending) {
                    (Format::Json, _) => self.json(result, files),
                    (Format::Human, Ending::Line(line)) => {
                        self.console.say(line);
                        self.console.say("\n");
                    }
                    _ => {}
                }
            }
        }
        self.console.end(0)
    }

    fn json(&mut self, result: &EditResult, files: &FileTable) {
        let name = files.get(0).map(|facts| facts.given_name.as_bytes());
        let mut json = Json::new(self.console.stdout());
        json.begin_object();
        json.field_string("filename", name.unwrap_or_default());
        let format = format_name(result).unwrap_or_default();
        json.field_string("format", format.as_bytes());
        json.field_number("old-virtual-size", result.old_size.get());
        json.field_number("virtual-size", result.size.get());
        for field in &self.shown.fields {
            match field {
                Field::Text(key, text) => json.field_string(key, text),
                Field::List(key, items) => {
                    json.key(key);
                    json.begin_array();
                    for item in items {
                        json.string(item.as_bytes());
                    }
                    json.end_array();
                }
            }
        }
        json.end_object();
        json.finish();
    }

    /// Ends a run that failed; some refusals have a second sentence.
    fn end_refused(mut self, outcome: Outcome) -> u8 {
        if self.console.failure() == Some(SHRINK_REFUSAL) {
            self.console.complain(SHRINK_REFUSAL);
            return self.console.end_wrong(SHRINK_WARNING);
        }
        self.console.end_without_result(outcome)
    }
}

/// The name of the image's format.
fn format_name(result: &EditResult) -> Option<&'static str> {
    match ImageFormat::try_from(result.format.get()) {
        Ok(ImageFormat::Raw) => Some("raw"),
        Ok(ImageFormat::Qcow2) => Some("qcow2"),
        _ => None,
    }
}

/// Checks the numbers of a result.
fn validate(result: &EditResult) -> Result<(), String> {
    if format_name(result).is_none() {
        return Err(format!("the image's format is {}", result.format.get()));
    }
    if result.reserved.iter().any(|byte| *byte != 0) {
        return Err("its reserved bytes are not zero".into());
    }
    for size in [result.old_size.get(), result.size.get()] {
        if size > MAX_SIZE {
            return Err(format!("a size is {size}, which cannot be"));
        }
    }
    Ok(())
}

impl Output for EditOutput {
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
        self.console.record_only(kind, payload, files)
    }

    fn pause(&mut self) {
        self.console.pause();
    }

    fn ran(&mut self, stats: &RunStats) {
        self.console.ran(stats);
    }

    fn finish(mut self: Box<Self>, result: &[u8; RESULT_BYTES], files: &FileTable) -> u8 {
        let Ok((result, _)) = EditResult::read_from_prefix(result.as_slice()) else {
            return self.console.end_malformed("the result is too short");
        };
        if ImageFormat::try_from(result.format.get()) == Ok(ImageFormat::Raw) {
            for _ in 0..self.shown.raw_warnings {
                self.console.warn_guessed_raw(files);
            }
        }
        match Outcome::try_from(result.outcome.get()) {
            Ok(Outcome::Done) => self.done(&result, files),
            Ok(outcome) => {
                if ImageFormat::try_from(result.format.get()) == Ok(ImageFormat::Qcow2) {
                    self.console.end_percent();
                }
                self.end_refused(outcome)
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
