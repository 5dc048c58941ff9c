//! What a run of `rebase` says: percentages, and why it failed.

use crate::console::{Console, JobKind};
use crate::failure;
use crate::files::{FileTable, JobError, Output, RESULT_BYTES};
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::rebase::RebaseResult;
use instar_shared::record::{Failure, FailureKind, RecordKind};
use instar_shared::zerocopy::FromBytes;
use instar_vmm::operation::RunStats;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

/// Largest size of an image: sizes are signed 64-bit numbers to other programs.
const MAX_SIZE: u64 = i64::MAX.unsigned_abs();
/// How the sentence begins that comes after everything was copied.
const NOT_NAMED: &[u8] = b"Could not change the backing file to '";
/// The slot of the new backing file.
const NEW_SLOT: u16 = 1;

/// The new backing file.
#[derive(Clone, Debug)]
pub struct NewBacking {
    /// Its name as the user typed it.
    pub typed: OsString,
    /// Where that is, from the current folder.
    pub path: OsString,
}

/// Passes messages on, and says how it ended.
pub struct RebaseOutput {
    console: Console,
    warns: bool,
    new: Option<NewBacking>,
    /// The failure is one of the new backing file or of what lies below it.
    of_new: bool,
}

impl RebaseOutput {
    /// Asks about the terminal: call it before confinement. `warns`: of an image that was taken for raw.
    #[must_use]
    pub fn new(percent: bool, quiet: bool, warns: bool, new: Option<NewBacking>) -> Self {
        let console = Console::new(JobKind::Check, false, quiet);
        Self::with_console(console, percent, warns, new)
    }

    /// As [`Self::new`], for a new backing file that has slot 0 as well.
    #[cfg(test)]
    pub fn for_tests(console: Console, percent: bool, new: NewBacking) -> Self {
        Self::with_console(console, percent, false, Some(new))
    }

    fn with_console(
        mut console: Console,
        percent: bool,
        warns: bool,
        new: Option<NewBacking>,
    ) -> Self {
        if percent {
            console.show_percent();
            console.mark_percent(0, 1);
        }
        Self {
            console,
            warns,
            new,
            of_new: false,
        }
    }

    fn done(mut self, result: &RebaseResult) -> u8 {
        let (size, compared) = (result.size.get(), result.compared.get());
        if size > MAX_SIZE || compared > size || result.reserved.iter().any(|byte| *byte != 0) {
            let what = format!("a size of {size} and {compared} bytes compared cannot be");
            return self.console.end_malformed(&what);
        }
        if compared > 0 {
            self.console.mark_percent(compared, size);
        }
        self.console.end_percent();
        self.console.end(0)
    }

    /// Ends a run that came to no result, for the reason that was reported.
    fn refused(mut self, outcome: Outcome) -> u8 {
        let Some(sentence) = self.console.failure().map(<[u8]>::to_vec) else {
            return self.console.end_without_result(outcome);
        };
        if sentence.starts_with(NOT_NAMED) {
            self.console.mark_percent(1, 1);
        }
        let sentence = self.reworded(sentence);
        self.console.end_wrong(&sentence)
    }

    /// QEMU's words for what it cannot open of the new chain.
    fn reworded(&self, sentence: Vec<u8>) -> Vec<u8> {
        let Some(new) = self.new.as_ref().filter(|_| self.of_new) else {
            return sentence;
        };
        let begin = [b"Could not open '", new.path.as_bytes(), b"': "].concat();
        match sentence.strip_prefix(begin.as_slice()) {
            Some(reason) => {
                let typed = new.typed.as_bytes();
                [b"Could not open new backing file '", typed, b"': ", reason].concat()
            }
            None => sentence,
        }
    }
}

/// Whether the file that was to have `slot` belongs to the new chain.
fn is_of_new(slot: u16, files: &FileTable) -> bool {
    let failed = files.failure(slot).map(|failed| failed.parent_slot);
    let mut at = failed.flatten().unwrap_or(slot);
    for _ in 0..=files.iter().count() {
        match files.get(at).and_then(|facts| facts.parent_slot) {
            Some(parent) => at = parent,
            None => break,
        }
    }
    at == NEW_SLOT
}

impl Output for RebaseOutput {
    fn record(
        &mut self,
        kind: RecordKind,
        payload: &[u8],
        files: &FileTable,
    ) -> Result<(), String> {
        if kind == RecordKind::Failure
            && self.console.failure().is_none()
            && let Ok((head, _)) = Failure::read_from_prefix(payload)
            && head.kind.get() == FailureKind::OpenImage.raw()
        {
            let slot = u16::try_from(head.slot.get()).unwrap_or(u16::MAX);
            self.of_new = is_of_new(slot, files);
        }
        self.console.record_only(kind, payload, files)
    }

    fn pause(&mut self) {
        self.console.pause();
    }

    fn ran(&mut self, stats: &RunStats) {
        self.console.ran(stats);
    }

    fn finish(mut self: Box<Self>, result: &[u8; RESULT_BYTES], files: &FileTable) -> u8 {
        let Ok((result, _)) = RebaseResult::read_from_prefix(result.as_slice()) else {
            return self.console.end_malformed("the result is too short");
        };
        if self.warns && ImageFormat::try_from(result.format.get()) == Ok(ImageFormat::Raw) {
            self.console.warn_guessed_raw(files);
        }
        match Outcome::try_from(result.outcome.get()) {
            Ok(Outcome::Done) => self.done(&result),
            Ok(outcome) => self.refused(outcome),
            Err(raw) => self.console.end_malformed(&format!("its outcome is {raw}")),
        }
    }

    fn failed(mut self: Box<Self>, error: &JobError, files: &FileTable) -> u8 {
        match error {
            JobError::Open(failed) if is_of_new(failed.slot, files) => {
                self.of_new = true;
                let sentence = self.reworded(failure::open(JobKind::Check, failed, files));
                self.console.end_wrong(&sentence)
            }
            _ => self.console.end_failed(error, files),
        }
    }
}
