//! What the outputs of all operations share: lines and messages, progress,
//! failure sentences with a hint, and the last words of a run.

use crate::failure;
use crate::files::{FileTable, JobError};
use crate::persona;
use crate::progress::{Percent, ProgressLine};
use crate::sink::{Out, Sink};
use instar_shared::op::Outcome;
use instar_shared::record::{Failure, FailureKind, Progress, RecordKind};
use instar_shared::zerocopy::FromBytes;
use instar_vmm::operation::RunStats;
use std::os::unix::ffi::OsStrExt;

pub use crate::failure::JobKind;

/// Environment variable: if it is set, a run ends with a line on what it cost.
const STATS_VARIABLE: &str = "INSTAR_STATS";

/// Exit code of everything that is not a result.
const EXIT_FAILED: u8 = 1;

/// The two standard streams of one run, and the sentence with which it failed.
pub struct Console {
    stdout: Sink,
    stderr: Sink,
    progress: ProgressLine,
    job: JobKind,
    lines_to_stderr: bool,
    quiet: bool,
    failure: Option<Vec<u8>>,
    stats: bool,
    percent: Option<Percent>,
}

impl Console {
    /// Asks the system about its terminal, so call it before confinement. With
    /// `json`, lines of text go to standard error; with `quiet` they are dropped.
    #[must_use]
    pub fn new(job: JobKind, json: bool, quiet: bool) -> Self {
        let stderr = Sink::stderr();
        let bar = stderr.is_terminal() && !quiet && !persona::is_qemu_img();
        let progress = ProgressLine::new(bar);
        Self::from_parts(job, [Sink::stdout(), stderr], progress, json, quiet)
    }

    fn from_parts(
        job: JobKind,
        [stdout, stderr]: [Sink; 2],
        progress: ProgressLine,
        json: bool,
        quiet: bool,
    ) -> Self {
        Self {
            stdout,
            stderr,
            progress,
            job,
            lines_to_stderr: json,
            quiet,
            failure: None,
            stats: std::env::var_os(STATS_VARIABLE).is_some(),
            percent: None,
        }
    }

    /// Shows percentages on standard output instead of a bar.
    pub fn show_percent(&mut self) {
        self.progress = ProgressLine::new(false);
        self.percent = Some(Percent::default());
    }

    /// Shows no percentages after all.
    pub fn hide_percent(&mut self) {
        self.percent = None;
    }

    /// Shows that `done` of `total` is done, if percentages are shown.
    pub fn mark_percent(&mut self, done: u64, total: u64) {
        if let Some(percent) = &mut self.percent {
            percent.update(done, total, &mut self.stdout);
        }
    }

    /// Percentages have been shown by another process before.
    pub fn continue_percent(&mut self) {
        if let Some(percent) = &mut self.percent {
            percent.go_on();
        }
    }

    /// Says that all is done, if percentages are shown.
    pub fn end_percent(&mut self) {
        if let Some(mut percent) = self.percent.take() {
            percent.update(0, 1, &mut self.stdout);
            percent.update(1, 1, &mut self.stdout);
            self.stdout.end_line();
        }
    }

    /// Says on standard error what the run cost, if the user wants to know.
    pub fn ran(&mut self, stats: &RunStats) {
        if self.stats {
            let (exits, setup) = (stats.exits, stats.setup.as_micros());
            let line = format!(
                "stats: exits={exits} setup_us={setup} granted={}",
                stats.granted_bytes
            );
            self.stderr.put(line.as_bytes());
            self.stderr.end_line();
        }
    }

    /// Standard output.
    pub fn stdout(&mut self) -> &mut Sink {
        &mut self.stdout
    }

    /// Handles a record of an operation that sends only those that every operation may send.
    ///
    /// # Errors
    /// What is wrong with the record: it may be of another kind.
    pub fn record_only(
        &mut self,
        kind: RecordKind,
        payload: &[u8],
        files: &FileTable,
    ) -> Result<(), String> {
        if self.record(kind, payload, files)? {
            return Ok(());
        }
        Err(format!(
            "records of the kind {kind:?} do not belong to this operation"
        ))
    }

    /// Handles a record that every operation may send; false if it is of another kind.
    ///
    /// # Errors
    /// What is wrong with the record.
    pub fn record(
        &mut self,
        kind: RecordKind,
        payload: &[u8],
        files: &FileTable,
    ) -> Result<bool, String> {
        match kind {
            RecordKind::Line => self.line(payload),
            RecordKind::Diagnostic => self.diagnostic(payload),
            RecordKind::Prefixed => self.prefixed(payload),
            RecordKind::Progress => {
                let progress = Progress::read_from_bytes(payload)
                    .map_err(|_| "the record's length is wrong".to_owned())?;
                let (done, total) = (progress.done.get(), progress.total.get());
                match &mut self.percent {
                    // That all is done is said once, at the end, however late a guest says so.
                    Some(percent) if done < total => percent.update(done, total, &mut self.stdout),
                    Some(_) => {}
                    None => self.progress.update(done, total),
                }
            }
            RecordKind::Preparing => {
                let progress = Progress::read_from_bytes(payload)
                    .map_err(|_| "the record's length is wrong".to_owned())?;
                if self.percent.is_none() {
                    self.progress
                        .update(progress.done.get(), progress.total.get());
                }
            }
            RecordKind::Failure => {
                let sentence = self.failure_sentence(payload, files)?;
                self.failure.get_or_insert(sentence);
            }
            // The owner of the microVM reports panics itself.
            RecordKind::Panic => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Says that the image in slot 0 was taken for raw, and what follows from it.
    pub fn warn_guessed_raw(&mut self, files: &FileTable) {
        self.progress.clear();
        let name = files.get(0).map(|facts| facts.given_name.as_bytes());
        self.stderr
            .put(b"WARNING: Image format was not specified for '");
        self.stderr.name(name.unwrap_or_default());
        self.stderr.put(
            b"' and probing guessed raw.\n         Automatically detecting the format is dangerous for raw images, \
              write operations on block 0 will be restricted.\n         \
              Specify the 'raw' format explicitly to remove the restrictions.",
        );
        self.stderr.end_line();
    }

    /// The sentence of a failure that was reported, if there was one.
    #[must_use]
    pub fn failure(&self) -> Option<&[u8]> {
        self.failure.as_deref()
    }

    fn line(&mut self, text: &[u8]) {
        if self.quiet {
            return;
        }
        self.progress.clear();
        let sink = if self.lines_to_stderr {
            &mut self.stderr
        } else {
            &mut self.stdout
        };
        sink.name(text);
        sink.end_line();
    }

    fn diagnostic(&mut self, text: &[u8]) {
        self.progress.clear();
        self.stderr.name(text);
        self.stderr.end_line();
    }

    fn failure_sentence(&self, payload: &[u8], files: &FileTable) -> Result<Vec<u8>, String> {
        let (head, text) = Failure::read_from_prefix(payload)
            .map_err(|_| "the record's length is wrong".to_owned())?;
        let kind = FailureKind::try_from(head.kind.get())
            .map_err(|raw| format!("a failure's kind is {raw}, which does not exist"))?;
        Ok(failure::sentence(
            self.job,
            kind,
            head.slot.get(),
            text,
            files,
        ))
    }

    /// Puts text on standard output.
    pub fn say(&mut self, text: &str) {
        self.progress.clear();
        self.stdout.put(text.as_bytes());
    }

    /// Writes one error sentence, with a hint if there is one for it.
    pub fn complain(&mut self, sentence: &[u8]) {
        self.progress.clear();
        if self.stdout.is_terminal() {
            self.stdout.flush();
        }
        failure::write(&mut self.stderr, self.job, sentence);
        self.stderr.flush();
    }

    /// Writes a line that says what is wrong, but not what to do: the end of the run says that.
    fn prefixed(&mut self, sentence: &[u8]) {
        self.progress.clear();
        failure::write_parts(&mut self.stderr, (sentence, None));
        self.stderr.flush();
    }

    /// Writes out what waits: another process goes on.
    pub fn pause(&mut self) {
        self.progress.clear();
        self.stderr.flush();
        self.stdout.flush();
    }

    /// Writes out everything and returns the exit code, or 1 if the output could not be written.
    #[must_use]
    pub fn end(mut self, code: u8) -> u8 {
        self.progress.clear();
        if self.percent.take().is_some() {
            self.stdout.end_line();
        }
        // Messages come first, as from a program whose standard error is not buffered.
        let _ = self.stderr.finish();
        match self.stdout.finish() {
            Ok(()) => code,
            Err(error) => {
                let sentence = format!("Cannot write the output: {}", failure::system_text(&error));
                failure::write(&mut self.stderr, self.job, sentence.as_bytes());
                let _ = self.stderr.finish();
                EXIT_FAILED
            }
        }
    }

    /// Ends a run whose options turned out to be wrong.
    #[must_use]
    pub fn end_wrong(mut self, sentence: &[u8]) -> u8 {
        self.complain(sentence);
        self.end(EXIT_FAILED)
    }

    /// Ends a run whose operation said something that cannot be.
    #[must_use]
    pub fn end_malformed(mut self, what: &str) -> u8 {
        let sentence = format!("The operation sent a malformed result: {what}");
        self.complain(sentence.as_bytes());
        self.end(EXIT_FAILED)
    }

    /// Ends a run that was not done, as its result says it, or whose result says something that cannot be.
    #[must_use]
    pub fn end_undone(self, ended: Result<Outcome, u32>) -> u8 {
        match ended {
            Ok(outcome) => self.end_without_result(outcome),
            Err(raw) => self.end_malformed(&format!("its outcome is {raw}")),
        }
    }

    /// Ends a run whose operation ended in order but without a result.
    #[must_use]
    pub fn end_without_result(mut self, outcome: Outcome) -> u8 {
        let sentence = match (self.failure.take(), outcome) {
            (Some(sentence), _) => sentence,
            (None, Outcome::Cancelled) => b"The operation was cancelled".to_vec(),
            (None, Outcome::Unsupported) => {
                b"This image format does not support the operation".to_vec()
            }
            (None, _) => b"The operation failed and did not say why".to_vec(),
        };
        self.complain(&sentence);
        self.end(EXIT_FAILED)
    }

    /// Ends a run that did not come to its end.
    #[must_use]
    pub fn end_failed(mut self, error: &JobError, files: &FileTable) -> u8 {
        if let Some(sentence) = self.failure.take() {
            self.complain(&sentence);
        }
        match error {
            JobError::Open(failed) => self.complain(&failure::open(self.job, failed, files)),
            other => {
                self.progress.clear();
                failure::write_ended(&mut self.stderr, other.to_string().as_bytes());
            }
        }
        self.end(EXIT_FAILED)
    }
}

#[cfg(test)]
pub mod tests;
