//! The output of `instar check`, equal to `qemu-img check`'s: what was found as
//! lines on standard error while it runs, the summary on standard output.

use crate::console::{Console, JobKind};
use crate::files::{FileTable, JobError, Output, RESULT_BYTES};
use crate::info::Format;
use crate::json::Json;
use crate::sink::Out;
use instar_shared::check::CheckResult;
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::record::RecordKind;
use instar_shared::zerocopy::FromBytes;
use instar_vmm::operation::RunStats;
use std::os::unix::ffi::OsStrExt;

/// Exit code: the check itself did not work.
const EXIT_FAILED: u8 = 1;
/// Exit code: errors that endanger data.
const EXIT_CORRUPT: u8 = 2;
/// Exit code: only leaked clusters.
const EXIT_LEAKS: u8 = 3;
/// Exit code: the format has nothing to check.
const EXIT_NO_CHECK: u8 = 63;
/// Largest number of a result: they are signed 64-bit numbers to other programs.
const MAX_NUMBER: u64 = i64::MAX.unsigned_abs();

/// The numbers of a finished check, validated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Errors that endanger data.
    pub corruptions: u64,
    /// Clusters counted higher than they are used.
    pub leaks: u64,
    /// Errors that kept the check from looking.
    pub check_errors: u64,
    /// Offset just past the last cluster in use, bytes.
    pub image_end_offset: u64,
    /// Guest clusters.
    pub total_clusters: u64,
    /// Guest clusters that are allocated.
    pub allocated_clusters: u64,
    /// Allocated clusters that do not follow their predecessor.
    pub fragmented_clusters: u64,
    /// Allocated clusters that are compressed.
    pub compressed_clusters: u64,
    /// Errors that were there and are gone; the numbers above are of what is left.
    pub corruptions_fixed: u64,
    /// Leaked clusters that were there and are free now.
    pub leaks_fixed: u64,
}

impl Summary {
    /// Takes over the numbers of a result.
    ///
    /// # Errors
    /// Which number cannot be.
    pub fn from_result(result: &CheckResult) -> Result<Self, String> {
        if ImageFormat::try_from(result.format.get()) != Ok(ImageFormat::Qcow2) {
            return Err(format!("the checked format is {}", result.format.get()));
        }
        if result.reserved.iter().any(|byte| *byte != 0) {
            return Err("its reserved bytes are not zero".into());
        }
        let number = |field: &str, raw: instar_shared::zerocopy::little_endian::U64| {
            let value = raw.get();
            if value > MAX_NUMBER {
                return Err(format!("{field} is {value}, which cannot be"));
            }
            Ok(value)
        };
        let summary = Self {
            corruptions: number("the number of corruptions", result.corruptions)?,
            leaks: number("the number of leaks", result.leaks)?,
            check_errors: number("the number of check errors", result.check_errors)?,
            image_end_offset: number("the image's end", result.image_end_offset)?,
            total_clusters: number("the number of clusters", result.total_clusters)?,
            allocated_clusters: number(
                "the number of allocated clusters",
                result.allocated_clusters,
            )?,
            fragmented_clusters: number(
                "the number of fragmented clusters",
                result.fragmented_clusters,
            )?,
            compressed_clusters: number(
                "the number of compressed clusters",
                result.compressed_clusters,
            )?,
            corruptions_fixed: number("the number of repairs", result.corruptions_fixed)?,
            leaks_fixed: number("the number of freed clusters", result.leaks_fixed)?,
        };
        Ok(summary)
    }

    /// The process's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.check_errors > 0 {
            EXIT_FAILED
        } else if self.corruptions > 0 {
            EXIT_CORRUPT
        } else if self.leaks > 0 {
            EXIT_LEAKS
        } else {
            0
        }
    }

    /// Prints the summary as text.
    pub fn human(&self, out: &mut dyn Out) {
        if self.corruptions_fixed > 0 || self.leaks_fixed > 0 {
            let (leaks, corruptions) = (self.leaks_fixed, self.corruptions_fixed);
            let repaired = format!(
                "The following inconsistencies were found and repaired:\n\n    \
                 {leaks} leaked clusters\n    {corruptions} corruptions\n\n\
                 Double checking the fixed image now...\n"
            );
            out.put(repaired.as_bytes());
        }
        if self.exit_code() == 0 {
            out.put(b"No errors were found on the image.\n");
        }
        let mut block = |count: u64, text: &str| {
            if count > 0 {
                out.put(format!("\n{count} {text}\n").as_bytes());
            }
        };
        block(
            self.corruptions,
            "errors were found on the image.\n\
             Data may be corrupted, or further writes to the image may corrupt it.",
        );
        block(
            self.leaks,
            "leaked clusters were found on the image.\n\
             This means waste of disk space, but no harm to data.",
        );
        block(
            self.check_errors,
            "internal errors have occurred during the check.",
        );
        if self.total_clusters > 0 && self.allocated_clusters > 0 {
            out.put(self.cluster_line().as_bytes());
        }
        if self.image_end_offset > 0 {
            out.put(format!("Image end offset: {}\n", self.image_end_offset).as_bytes());
        }
    }

    fn cluster_line(&self) -> String {
        format!(
            "{}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters\n",
            self.allocated_clusters,
            self.total_clusters,
            percent(self.allocated_clusters, self.total_clusters),
            percent(self.fragmented_clusters, self.allocated_clusters),
            percent(self.compressed_clusters, self.allocated_clusters),
        )
    }

    /// Prints the summary as JSON. Most numbers appear only when they are not zero.
    pub fn json(&self, out: &mut dyn Out, name: &[u8]) {
        let mut json = Json::new(out);
        json.begin_object();
        let unless_zero = |json: &mut Json<'_>, key: &str, number: u64| {
            if number > 0 {
                json.field_number(key, number);
            }
        };
        unless_zero(&mut json, "image-end-offset", self.image_end_offset);
        unless_zero(&mut json, "compressed-clusters", self.compressed_clusters);
        unless_zero(&mut json, "total-clusters", self.total_clusters);
        unless_zero(&mut json, "corruptions", self.corruptions);
        unless_zero(&mut json, "corruptions-fixed", self.corruptions_fixed);
        json.field_number("check-errors", self.check_errors);
        unless_zero(&mut json, "leaks-fixed", self.leaks_fixed);
        unless_zero(&mut json, "leaks", self.leaks);
        unless_zero(&mut json, "allocated-clusters", self.allocated_clusters);
        json.field_string("filename", name);
        json.field_string("format", b"qcow2");
        unless_zero(&mut json, "fragmented-clusters", self.fragmented_clusters);
        json.end_object();
        json.finish();
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    #[allow(clippy::cast_precision_loss)]
    let (part, whole) = (part as f64, whole as f64);
    part * 100.0 / whole
}

/// What is done besides looking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Nothing.
    Check,
    /// Damage is repaired.
    Repair {
        /// No format was given.
        probed: bool,
    },
}

impl Work {
    /// The repair of an image of a typed format.
    #[must_use]
    pub fn repair(typed: ImageFormat) -> Self {
        let probed = typed == ImageFormat::Probe;
        Self::Repair { probed }
    }
}

/// Passes messages on while a check runs, and prints its summary.
pub struct CheckOutput {
    console: Console,
    format: Format,
    quiet: bool,
    work: Work,
}

impl CheckOutput {
    /// Asks about the terminal: call it before confinement.
    #[must_use]
    pub fn new(format: Format, quiet: bool, work: Work) -> Self {
        Self {
            console: Console::new(JobKind::Check, format == Format::Json, quiet),
            format,
            quiet,
            work,
        }
    }

    fn print(mut self, summary: &Summary, files: &FileTable) -> u8 {
        if !self.quiet {
            let out = self.console.stdout();
            match self.format {
                Format::Human => summary.human(out),
                Format::Json => {
                    let name = files.get(0).map(|facts| facts.given_name.as_bytes());
                    summary.json(out, name.unwrap_or_default());
                }
            }
        }
        if summary.check_errors > 0 {
            self.console.complain(b"Check failed");
        }
        self.console.end(summary.exit_code())
    }
}

impl Output for CheckOutput {
    fn record(
        &mut self,
        kind: RecordKind,
        payload: &[u8],
        files: &FileTable,
    ) -> Result<(), String> {
        if self.console.record(kind, payload, files)? {
            Ok(())
        } else {
            Err(format!(
                "records of the kind {kind:?} do not belong to a check"
            ))
        }
    }

    fn ran(&mut self, stats: &RunStats) {
        self.console.ran(stats);
    }

    fn finish(mut self: Box<Self>, result: &[u8; RESULT_BYTES], files: &FileTable) -> u8 {
        let Ok((result, _)) = CheckResult::read_from_prefix(result.as_slice()) else {
            return self.console.end_malformed("the result is too short");
        };
        let format = ImageFormat::try_from(result.format.get());
        if self.work == (Work::Repair { probed: true }) && format == Ok(ImageFormat::Raw) {
            self.console.warn_guessed_raw(files);
        }
        match Outcome::try_from(result.outcome.get()) {
            Ok(Outcome::Done) => match Summary::from_result(&result) {
                Ok(summary) => self.print(&summary, files),
                Err(reason) => self.console.end_malformed(&reason),
            },
            Ok(Outcome::Unsupported) => {
                self.console
                    .complain(b"This image format does not support checks");
                self.console.end(EXIT_NO_CHECK)
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
