//! Why a run failed, as `qemu-img` says it, and what the user can do about it.

mod errno;

use crate::cli::{self, UsageError};
use crate::files::{FailedOpen, FileTable, OpenFailure, Policy};
use crate::persona;
use crate::sink::{Out, Sink};
use instar_shared::control::FileRole;
use instar_shared::record::FailureKind;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// What the run was to do; chains of errors read differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobKind {
    /// Each image of a chain is opened on its own, so its error stands alone.
    Info,
    /// The chain is opened as one, so errors nest from the top image down.
    Check,
    /// As `Check`; and a file of the chain is opened again to be written, whose error stands alone.
    Commit,
    /// As `Check`; and a file is made: what stands between its name and the reason why it cannot be,
    /// such as `error while converting raw: `.
    Make(&'static str),
    /// As `Check`; the format of each disk comes from its name, or from an option that is not `-f` alone.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // Machines are x86-64's.
    Run,
}

/// What `qemu-img` adds on a line of its own when an image is in use.
const IN_USE_LINE: &[u8] = b"\nIs another process using the image [";
/// Lines that end a sentence of more than one.
const MORE_LINES: [&[u8]; 4] = [
    crate::amend::CREATION_ONLY_LINE.as_bytes(),
    crate::cli::SIZE_LINES.as_bytes(),
    b"\nYou can use 'qemu-img rebase' instead.",
    b"\nTry --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it",
];

/// What to do about a format that is not the image's.
const FORMAT_HINT: &str = "without -f, instar looks for the format itself";
/// The same for `run`, where a guest could have written a header that looks like another format's.
const RUN_FORMAT_HINT: &str = "a name that ends in .qcow2 means qcow2 and any other raw, unless -f, or format= of a disk, says otherwise";
/// What to do after a wrong use.
const USAGE_HINT: &[u8] = b"'instar --help' and 'instar COMMAND --help' show the options";

/// The sentence of a failure record.
#[must_use]
pub fn sentence(
    job: JobKind,
    kind: FailureKind,
    slot: u32,
    text: &[u8],
    files: &FileTable,
) -> Vec<u8> {
    match kind {
        FailureKind::OpenImage | FailureKind::Unsupported => image(job, slot, text, files),
        FailureKind::Operation | FailureKind::Memory | FailureKind::Cancelled => text.to_vec(),
    }
}

/// Why the image in `slot` was not opened: the host's own reason where it
/// opened no file, else the guest's.
fn image(job: JobKind, slot: u32, text: &[u8], files: &FileTable) -> Vec<u8> {
    let slot = u16::try_from(slot).unwrap_or(u16::MAX);
    if let Some(failed) = files.failure(slot) {
        return open(job, failed, files);
    }
    let place = Place {
        top: typed_name(files, Some(slot)),
        named: files.get(slot).map(|facts| facts.given_name.as_os_str()),
        levels: files.depth(slot).unwrap_or(0),
    };
    place.sentence(job, text)
}

/// Why a file was not opened.
#[must_use]
pub fn open(job: JobKind, failed: &FailedOpen, files: &FileTable) -> Vec<u8> {
    if failed.kind == OpenFailure::Loop {
        let name = failed.given_name.as_bytes();
        return [b"Backing file '", name, b"' creates an infinite loop."].concat();
    }
    if job == JobKind::Commit && failed.slot > 0 && failed.role.is_none() {
        return failed.reason.as_bytes().to_vec();
    }
    if failed.output {
        return output(job, failed);
    }
    let above = failed.parent_slot.and_then(|parent| files.depth(parent));
    let place = Place {
        top: typed_name(files, failed.parent_slot),
        named: Some(&failed.given_name),
        levels: above.unwrap_or(0) + usize::from(failed.role == Some(FileRole::Backing)),
    };
    place.sentence(job, failed.reason.as_bytes())
}

/// Why a file is not made.
fn output(job: JobKind, failed: &FailedOpen) -> Vec<u8> {
    let doing = match job {
        JobKind::Make(doing) => doing,
        JobKind::Info | JobKind::Check | JobKind::Commit | JobKind::Run => "",
    };
    [
        failed.given_name.as_bytes(),
        b": ",
        doing.as_bytes(),
        failed.reason.as_bytes(),
    ]
    .concat()
}

/// The name that the user typed, of the chain that the file in `slot` belongs to.
fn typed_name(files: &FileTable, slot: Option<u16>) -> Option<&OsStr> {
    let mut at = files.get(slot?)?;
    for _ in 0..=files.iter().count() {
        match at.parent_slot {
            None => return Some(&at.given_name),
            Some(parent) => at = files.get(parent)?,
        }
    }
    None
}

/// Where in the chain something failed.
struct Place<'a> {
    /// The image that the user named, if it was opened.
    top: Option<&'a OsStr>,
    /// The file that failed.
    named: Option<&'a OsStr>,
    /// Backing files from the top down to it.
    levels: usize,
}

impl Place<'_> {
    fn sentence(&self, job: JobKind, reason: &[u8]) -> Vec<u8> {
        let (name, levels) = match (job, self.top) {
            (JobKind::Check | JobKind::Commit | JobKind::Make(_) | JobKind::Run, Some(top)) => {
                (Some(top), self.levels)
            }
            _ => (self.named.or(self.top), 0),
        };
        let mut sentence = b"Could not open '".to_vec();
        sentence.extend_from_slice(name.unwrap_or_default().as_bytes());
        sentence.extend_from_slice(b"': ");
        for _ in 0..levels {
            sentence.extend_from_slice(b"Could not open backing file: ");
        }
        sentence.extend_from_slice(reason);
        sentence
    }
}

/// Writes `instar: SENTENCE` and, if there is one, the line `hint: …`; as `qemu-img` only its own sentence.
pub fn write(out: &mut Sink, job: JobKind, sentence: &[u8]) {
    // The policy's own advice names the folder; it stands last, so no name can pose as it.
    let advice = format!("; add {} ", Policy::FLAG);
    let (sentence, advice) = cut(
        sentence,
        sentence
            .windows(advice.len())
            .rposition(|bytes| bytes == advice.as_bytes()),
    );
    let advice = match (job, advice) {
        (JobKind::Run, Some(advice)) if advice == FORMAT_HINT.as_bytes() => {
            Some(RUN_FORMAT_HINT.as_bytes())
        }
        (_, advice) => advice,
    };
    write_parts(out, (sentence, advice));
}

/// Writes what is wrong with the command line, and where the right way stands.
pub fn write_usage(out: &mut Sink, error: &UsageError) {
    let sentence = error.sentence.as_bytes();
    if !persona::is_qemu_img() && !error.help {
        return write(out, JobKind::Check, sentence);
    }
    match error.of_command.as_deref() {
        Some(command) => {
            out.name(persona::typed_name().as_bytes());
            out.put(if command.is_empty() { b"" } else { b" " });
            out.put(command.as_bytes());
        }
        None => out.put(persona::name().as_bytes()),
    }
    out.put(b": ");
    out.name(sentence);
    out.put(b"\n");
    match (error.help, persona::is_qemu_img()) {
        (false, _) => {}
        (true, false) => out.put(&[b"hint: ", USAGE_HINT, b"\n"].concat()),
        (true, true) => {
            let words: Vec<_> = std::env::args_os().collect();
            out.put(b"Try '");
            out.name(persona::typed_name().as_bytes());
            if let Some(command) = cli::command_name(&words) {
                out.put(b" ");
                out.put(command.as_bytes());
            }
            out.put(b" --help' for more info\n");
        }
    }
}

/// Writes the sentence of a run that came to no end; what to do follows its first semicolon.
pub fn write_ended(out: &mut Sink, sentence: &[u8]) {
    write_parts(
        out,
        cut(
            sentence,
            sentence.windows(2).position(|bytes| bytes == b"; "),
        ),
    );
}

/// Parts a sentence from the advice that follows the semicolon at `position`.
fn cut(sentence: &[u8], position: Option<usize>) -> (&[u8], Option<&[u8]>) {
    match position.and_then(|position| sentence.split_at_checked(position)) {
        Some((first, advice)) => (first, advice.get(2..)),
        None => (sentence, hint(sentence).map(str::as_bytes)),
    }
}

/// Writes a sentence, and a hint if there is one.
pub fn write_parts(out: &mut Sink, (sentence, hint): (&[u8], Option<&[u8]>)) {
    out.put(persona::name().as_bytes());
    out.put(b": ");
    let more = MORE_LINES.iter().find(|more| sentence.ends_with(more));
    let sentence = more
        .and_then(|more| sentence.strip_suffix(*more))
        .unwrap_or(sentence);
    let tail = sentence
        .windows(IN_USE_LINE.len())
        .rposition(|bytes| bytes == IN_USE_LINE);
    let (first, tail) = sentence.split_at(tail.unwrap_or(sentence.len()));
    out.name(first);
    if let Some((newline, second)) = tail.split_first() {
        out.put(&[*newline]);
        out.name(second);
    }
    out.put(more.copied().unwrap_or_default());
    out.put(b"\n");
    if let Some(hint) = hint.filter(|_| !persona::is_qemu_img()) {
        out.put(b"hint: ");
        out.name(hint);
        out.put(b"\n");
    }
}

/// What a system error says, without the number behind it, in the words of the C library that `qemu-img` uses: the
/// static program has another one.
#[must_use]
pub fn system_text(error: &std::io::Error) -> String {
    if let Some(text) = error.raw_os_error().and_then(errno::text) {
        return text.to_owned();
    }
    let text = error.to_string();
    match text.split_once(" (os error ") {
        Some((message, _)) => message.to_owned(),
        None => text,
    }
}

/// Fragments of sentences and what to do about them; the first that fits counts.
///
/// Sentences end with the reason, and names stand in quotes before it, so a name
/// can at worst earn the wrong hint.
const HINTS: [(&str, &str); 24] = [
    (
        "Failed to get \"write\"",
        "another program uses this image, or this command itself reads it; close it there first",
    ),
    (
        "Failed to get",
        "another program uses this image; -U reads it all the same, but what it shows may be half-written",
    ),
    (
        "Could not open backing file: Could not open",
        "an image names this backing file relative to its own folder; 'instar info' on each image shows the names",
    ),
    (
        "force-share=on can only",
        "leave -U out: an image that is changed cannot be shared",
    ),
    (
        "Failed to grow the L1 table: File too large",
        "images with larger clusters can be larger",
    ),
    (
        "Invalid parameter '",
        "-o help, with the format, lists the options that there are",
    ),
    (
        "File too large",
        "--max-growth SIZE lets a change add more to the file, for example --max-growth 100G",
    ),
    (
        "warning: Shrinking an image",
        "with --shrink, everything beyond the new size is lost",
    ),
    (
        "Unknown compatibility level",
        "compat is 0.10 (version 2) or 1.1 (version 3)",
    ),
    (
        "': File exists",
        "something else made a file of this name meanwhile; it was left as it is",
    ),
    (
        "Cannot grow device files",
        "the device is smaller than the image",
    ),
    ("Is a directory", "name a disk image or a block device"),
    (
        "to be a regular file",
        "name a disk image or a block device",
    ),
    (
        "No such file or directory",
        "check the name: one that you type starts at the current folder, one that stands in an image at that image's folder",
    ),
    (
        "/dev/",
        "reading a device usually needs root or membership in the group that owns it",
    ),
    (
        "Permission denied",
        "your user may not read this file, or write here; 'ls -l' shows who may",
    ),
    ("not in qcow2 format", FORMAT_HINT),
    ("Unknown driver", "instar reads the formats raw and qcow2"),
    (
        "Unknown protocol",
        "instar reads local files; for a file with a colon in its name, write ./NAME",
    ),
    (
        "encrypt.key-secret",
        "--object secret,id=NAME,file=FILE takes a password from a file, and encrypt.key-secret=NAME uses it",
    ),
    (
        "instar does not read",
        "instar reads local files in the formats raw and qcow2; qemu-img convert makes a qcow2 image of many others",
    ),
    (
        "memory than it",
        "--memory SIZE raises the limit, for example --memory 4G",
    ),
    ("--timeout", "a larger --timeout SECS lets it run longer"),
    (
        "No space left on device",
        "make room on the file system or device that the file is on",
    ),
];

/// The hint for a sentence.
#[must_use]
pub fn hint(sentence: &[u8]) -> Option<&'static str> {
    let sentence = String::from_utf8_lossy(sentence);
    let fits = HINTS
        .iter()
        .find(|(fragment, _)| sentence.contains(fragment));
    fits.map(|(_, hint)| *hint)
}

#[cfg(test)]
mod tests;
