//! The output of `measure`: two or three numbers.

use crate::console::{Console, JobKind};
use crate::create::encryption::reworded;
use crate::files::{FileTable, JobError, Output, RESULT_BYTES};
use crate::info::Format;
use crate::json::Json;
use instar_shared::create::{MEASURED_BITMAPS, MeasureResult};
use instar_shared::op::Outcome;
use instar_shared::record::RecordKind;
use instar_shared::zerocopy::FromBytes;
use instar_vmm::operation::RunStats;

/// How the run is shown.
#[derive(Clone, Debug)]
pub struct Shown {
    /// For people or for programs.
    pub format: Format,
    /// Why nothing is measured after the image was opened.
    pub refusal: Option<String>,
    /// What the operation's sentence about a missing password means.
    pub no_secret: Option<String>,
}

/// Says what was measured.
pub struct MeasureOutput {
    console: Console,
    shown: Shown,
}

impl MeasureOutput {
    /// Asks about the terminal: call it before confinement.
    #[must_use]
    pub fn new(shown: Shown) -> Self {
        let json = shown.format == Format::Json;
        let console = Console::new(JobKind::Check, json, false);
        Self { console, shown }
    }

    fn done(mut self, result: &MeasureResult) -> u8 {
        if let Some(sentence) = self.shown.refusal.take() {
            return self.console.end_wrong(sentence.as_bytes());
        }
        let known = result.flags.get() & !MEASURED_BITMAPS == 0;
        if !known || result.reserved.iter().any(|byte| *byte != 0) {
            return self.console.end_malformed("its flags cannot be");
        }
        let bitmaps = result.flags.get() & MEASURED_BITMAPS != 0;
        let bitmaps = bitmaps.then_some(result.bitmaps.get());
        let (required, full) = (result.required.get(), result.fully_allocated.get());
        match self.shown.format {
            Format::Human => {
                let mut text = format!("required size: {required}\nfully allocated size: {full}\n");
                if let Some(bitmaps) = bitmaps {
                    text.push_str(&format!("bitmaps size: {bitmaps}\n"));
                }
                self.console.say(&text);
            }
            Format::Json => self.json(required, full, bitmaps),
        }
        self.console.end(0)
    }

    fn json(&mut self, required: u64, full: u64, bitmaps: Option<u64>) {
        let mut json = Json::new(self.console.stdout());
        json.begin_object();
        if let Some(bitmaps) = bitmaps {
            json.field_number("bitmaps", bitmaps);
        }
        json.field_number("required", required);
        json.field_number("fully-allocated", full);
        json.end_object();
        json.finish();
    }
}

impl Output for MeasureOutput {
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

    fn ran(&mut self, stats: &RunStats) {
        self.console.ran(stats);
    }

    fn finish(self: Box<Self>, result: &[u8; RESULT_BYTES], _files: &FileTable) -> u8 {
        let Ok((result, _)) = MeasureResult::read_from_prefix(result.as_slice()) else {
            return self.console.end_malformed("the result is too short");
        };
        match Outcome::try_from(result.outcome.get()) {
            Ok(Outcome::Done) => self.done(&result),
            ended => self.console.end_undone(ended),
        }
    }

    fn failed(self: Box<Self>, error: &JobError, files: &FileTable) -> u8 {
        self.console.end_failed(error, files)
    }
}
