//! `instar compare`: whether two disks have the same content, equal to `qemu-img compare`'s output.

use crate::cli::{self, CompareOptions, FormatOptions, LimitOptions, UsageError};
use crate::console::{Console, JobKind};
use crate::files::{COMPARE, FileTable, InputFile, JobError, Output, RESULT_BYTES, Reads};
use crate::image::Image;
use crate::info::Format;
use crate::json::Json;
use crate::launch;
use instar_shared::compare::{COMPARE_STRICT, CompareConfig, CompareResult, Verdict};
use instar_shared::op::Outcome;
use instar_shared::record::RecordKind;
use instar_shared::zerocopy::{FromBytes, IntoBytes};
use instar_vmm::operation::{RunStats, Threads};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

/// Exit code: they differ.
const EXIT_DIFFERENT: u8 = 1;
/// Exit code: an image could not be opened, or the comparison did not come to its end.
const EXIT_NOT_OPEN: u8 = 2;
/// Exit code: what an image has could not be found out.
const EXIT_NO_MAP: u8 = 3;
/// Exit code: data could not be read.
const EXIT_NO_DATA: u8 = 4;
/// Threads that read while the guest compares.
const IO_THREADS: u8 = 2;
/// Largest offset of a result: it is a signed 64-bit number to other programs.
const MAX_OFFSET: u64 = i64::MAX.unsigned_abs();

/// What a comparison came to, validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    verdict: Verdict,
    /// Byte of the disks.
    offset: u64,
    /// The image that could not be read.
    slot: u16,
    /// Why, in Linux numbering.
    errno: i32,
    /// The common part was equal and one is longer.
    longer: bool,
}

impl Found {
    /// Takes over a result.
    ///
    /// # Errors
    /// What in it cannot be.
    fn from_result(result: &CompareResult) -> Result<Self, String> {
        let verdict = match Verdict::try_from(result.verdict.get()) {
            Ok(Verdict::None) | Err(_) => {
                return Err(format!("its verdict is {}", result.verdict.get()));
            }
            Ok(verdict) => verdict,
        };
        let (offset, slot, longer) = (result.offset.get(), result.slot.get(), result.longer.get());
        if offset > MAX_OFFSET || slot > 1 || longer > 1 {
            return Err(format!(
                "offset {offset}, image {slot} and longer {longer} cannot be"
            ));
        }
        if result.reserved.iter().any(|byte| *byte != 0) {
            return Err("its reserved bytes are not zero".into());
        }
        Ok(Self {
            verdict,
            offset,
            slot: u16::from(slot == 1),
            errno: i32::try_from(result.errno.get()).unwrap_or(0),
            longer: longer == 1,
        })
    }

    const fn exit_code(&self) -> u8 {
        match self.verdict {
            Verdict::Identical => 0,
            Verdict::Content | Verdict::Allocation | Verdict::Size => EXIT_DIFFERENT,
            Verdict::MapFailed => EXIT_NO_MAP,
            Verdict::ReadFailed => EXIT_NO_DATA,
            Verdict::None => EXIT_NOT_OPEN,
        }
    }

    /// The line for standard output, if it is an answer to the question.
    fn answer(&self) -> Option<String> {
        let offset = self.offset;
        match self.verdict {
            Verdict::Identical => Some("Images are identical.\n".to_owned()),
            Verdict::Content => Some(format!("Content mismatch at offset {offset}!\n")),
            Verdict::Allocation => Some(format!(
                "Strict mode: Offset {offset} block status mismatch!\n"
            )),
            Verdict::Size => Some("Strict mode: Image size mismatch!\n".to_owned()),
            Verdict::None | Verdict::MapFailed | Verdict::ReadFailed => None,
        }
    }

    /// The sentence for standard error, if there is no answer.
    fn complaint(&self, files: &FileTable) -> Option<Vec<u8>> {
        let name = files
            .get(self.slot)
            .map(|facts| facts.given_name.as_bytes());
        let name = name.unwrap_or_default();
        match self.verdict {
            Verdict::MapFailed => Some([b"Sector allocation test failed for ", name].concat()),
            Verdict::ReadFailed => {
                let head = format!("Error while reading offset {} of ", self.offset);
                let error = std::io::Error::from_raw_os_error(self.errno);
                let reason = crate::failure::system_text(&error);
                Some([head.as_bytes(), name, b": ", reason.as_bytes()].concat())
            }
            _ => None,
        }
    }

    /// Prints the answer as JSON.
    fn json(&self, console: &mut Console) {
        let mut json = Json::new(console.stdout());
        json.begin_object();
        json.field_bool("identical", self.verdict == Verdict::Identical);
        if self.verdict != Verdict::Identical {
            json.field_string(
                "difference",
                match self.verdict {
                    Verdict::Allocation => b"allocation",
                    Verdict::Size => b"size",
                    _ => b"content",
                },
            );
        }
        if matches!(self.verdict, Verdict::Content | Verdict::Allocation) {
            json.field_number("offset", self.offset);
        }
        json.end_object();
        json.finish();
    }
}

/// Runs the command; returns the exit code.
///
/// # Errors
/// The options do not go together. What `qemu-img` ends with 2 for is a code.
pub fn run(options: &CompareOptions, limits: &LimitOptions) -> Result<u8, UsageError> {
    let format = cli::output_format(&options.output)?;
    if options.files.len() != 2 {
        return Err(UsageError::with_help("Expecting two image file names"));
    }
    let [one, two] = match images(options) {
        Ok(images) => images,
        Err(error) => {
            let mut console = Console::new(JobKind::Check, false, false);
            if options.progress {
                console.show_percent();
            }
            console.complain(error.sentence.as_bytes());
            return Ok(console.end(EXIT_NOT_OPEN));
        }
    };
    let mut config = CompareConfig::zeroed();
    for (field, image) in config.formats.iter_mut().zip([&one, &two]) {
        field.set(image.format.raw());
    }
    config
        .flags
        .set(if options.strict { COMPARE_STRICT } else { 0 });
    let share = options.force_share;
    let inputs = [one, two].map(|image| InputFile {
        direct: cli::past_cache(options.cache.as_ref()),
        ..launch::to_read(image, Reads::Contents, share)
    });
    let output = CompareOutput::new(format, options.quiet, options.progress);
    let threads = Threads {
        io: IO_THREADS,
        vcpus: 0,
    };
    launch::start_on(
        threads,
        COMPARE,
        config.as_bytes(),
        inputs.into(),
        limits,
        output,
    )
}

/// The two images.
fn images(options: &CompareOptions) -> Result<[Image; 2], UsageError> {
    cli::cache_mode("source ", options.cache.as_ref())?;
    let image = |name: Option<&OsString>, format: &Option<OsString>| {
        let how = FormatOptions {
            format: format.clone(),
            image_opts: options.image_opts,
            object: options.object.clone(),
        };
        Image::new(name.map(OsString::as_os_str).unwrap_or_default(), &how)
    };
    let (one, two) = (options.files.first(), options.files.last());
    Ok([
        image(one, &options.a_format)?,
        image(two, &options.b_format)?,
    ])
}

/// Says what a comparison came to.
struct CompareOutput {
    console: Console,
    format: Format,
    quiet: bool,
}

impl CompareOutput {
    /// Asks about the terminal: call it before confinement.
    fn new(format: Format, quiet: bool, progress: bool) -> Self {
        let mut console = Console::new(JobKind::Check, format == Format::Json, quiet);
        if progress && !quiet && format == Format::Human {
            console.show_percent();
        }
        Self {
            console,
            format,
            quiet,
        }
    }

    fn end(mut self, found: &Found, files: &FileTable) -> u8 {
        self.console.mark_percent(0, 1);
        if found.longer && !self.quiet && self.format == Format::Human {
            self.console.say("Warning: Image size mismatch!\n");
        }
        if found.verdict == Verdict::Identical {
            self.console.mark_percent(1, 1);
        }
        match (found.answer(), found.complaint(files)) {
            (Some(_), _) if self.quiet => {}
            (Some(_), _) if self.format == Format::Json => found.json(&mut self.console),
            (Some(answer), _) => self.console.say(&answer),
            (None, complaint) => self.console.complain(&complaint.unwrap_or_default()),
        }
        self.console.end(found.exit_code())
    }
}

impl Output for CompareOutput {
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
                "records of the kind {kind:?} do not belong to a comparison"
            ))
        }
    }

    fn ran(&mut self, stats: &RunStats) {
        self.console.ran(stats);
    }

    fn finish(self: Box<Self>, result: &[u8; RESULT_BYTES], files: &FileTable) -> u8 {
        let Ok((result, _)) = CompareResult::read_from_prefix(result.as_slice()) else {
            let _ = self.console.end_malformed("the result is too short");
            return EXIT_NOT_OPEN;
        };
        let code = match Outcome::try_from(result.outcome.get()) {
            Ok(Outcome::Done) => match Found::from_result(&result) {
                Ok(found) => return self.end(&found, files),
                Err(reason) => self.console.end_malformed(&reason),
            },
            ended => self.console.end_undone(ended),
        };
        code.max(EXIT_NOT_OPEN)
    }

    /// That no comparison was made must not look like a difference.
    fn failed(self: Box<Self>, error: &JobError, files: &FileTable) -> u8 {
        self.console.end_failed(error, files).max(EXIT_NOT_OPEN)
    }
}

#[cfg(test)]
mod tests;
