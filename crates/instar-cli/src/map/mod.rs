//! `instar map`: where the parts of a disk lie, equal to `qemu-img map`'s output.
//!
//! Text is printed while it comes. JSON is kept in few bytes per extent and printed when all of it is there.

mod packed;
mod print;

use crate::cli::{self, LimitOptions, MapOptions, UsageError};
use crate::console::{Console, JobKind};
use crate::files::{FileTable, JobError, MAP, Output, RESULT_BYTES, Reads};
use crate::image::Image;
use crate::info::Format;
use crate::launch;
use crate::quantity::{self, QuantityError};
use crate::sink::Out;
use instar_shared::map::{
    EXTENT_COMPRESSED, EXTENT_DATA, EXTENT_FLAGS, EXTENT_PLACED, EXTENT_PRESENT, EXTENT_ZERO,
    MAP_ONLY_PLACED, MapConfig, MapExtent, MapResult,
};
use instar_shared::op::Outcome;
use instar_shared::record::RecordKind;
use instar_shared::zerocopy::{FromBytes, IntoBytes};
use instar_vmm::operation::RunStats;
use packed::Packed;
use print::Line;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Largest number of an option, and largest end of an extent: they are signed to other programs.
const MAX_NUMBER: u64 = i64::MAX.unsigned_abs();
/// Exit code where the text form cannot say where data lies.
const EXIT_UNPLACED: u8 = 1;

/// An extent, validated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// First byte of the disk.
    start: u64,
    /// Length in bytes.
    len: u64,
    /// Image of the chain, 0 for the top.
    depth: u16,
    /// `EXTENT_*`.
    flags: u32,
    /// Place in the file, where it has one.
    offset: Option<u64>,
    /// Slot of that file.
    slot: u16,
}

impl Extent {
    const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Takes over an extent that begins at `start`.
    fn read(raw: &MapExtent, start: u64) -> Result<Self, String> {
        let (len, flags, offset) = (raw.len.get(), raw.flags.get(), raw.offset.get());
        let end = start.checked_add(len).filter(|end| *end <= MAX_NUMBER);
        if len == 0 || end.is_none() || offset > MAX_NUMBER {
            return Err(format!(
                "an extent at {start} is {len} bytes long and lies at {offset}"
            ));
        }
        if flags & !EXTENT_FLAGS != 0 || (flags & EXTENT_PLACED == 0 && offset != 0) {
            return Err(format!("the flags of the extent at {start} are {flags:#x}"));
        }
        Ok(Self {
            start,
            len,
            depth: raw.depth.get(),
            flags,
            offset: (flags & EXTENT_PLACED != 0).then_some(offset),
            slot: raw.slot.get(),
        })
    }

    /// Data as the text form lists it.
    const fn is_listed(&self) -> bool {
        self.has(EXTENT_DATA) && !self.has(EXTENT_ZERO)
    }
}

/// Runs the command; returns the exit code.
///
/// # Errors
/// The options do not go together, or ask for what is not there.
pub fn run(options: &MapOptions, limits: &LimitOptions) -> Result<u8, UsageError> {
    let start = number("start offset", options.start_offset.as_deref())?.unwrap_or(0);
    let most = number("max length", options.max_length.as_deref())?;
    let format = cli::output_format(&options.output)?;
    let image = Image::only(&options.image.files, &options.image.how)?;
    let mut config = MapConfig::zeroed();
    config.format.set(image.format.raw());
    config.start.set(start);
    config.end.set(end(start, most));
    config.flags.set(match format {
        Format::Human => MAP_ONLY_PLACED,
        Format::Json => 0,
    });
    let output = MapOutput::new(format, start);
    let input = launch::to_read(image, Reads::Contents, options.image.force_share);
    launch::start(MAP, config.as_bytes(), vec![input], limits, output)
}

/// Where a part of `most` bytes ends. A sum past the largest number means nothing at all, as to `qemu-img`.
fn end(start: u64, most: Option<u64>) -> u64 {
    match most.map(|most| start.checked_add(most)) {
        None => u64::MAX,
        Some(Some(end)) if end <= MAX_NUMBER => end,
        Some(_) => 0,
    }
}

/// Reads the value of an option that is a number of bytes.
fn number(what: &str, value: Option<&OsStr>) -> Result<Option<u64>, UsageError> {
    let Some(text) = value else {
        return Ok(None);
    };
    match quantity::size(text.as_bytes()) {
        Ok(bytes) if bytes <= MAX_NUMBER => Ok(Some(bytes)),
        Err(QuantityError::Syntax) => Err(UsageError::plain(format!(
            "Invalid {what} specified: '{}'.",
            text.display()
        ))),
        _ => Err(UsageError::plain(format!(
            "Invalid {what} specified. Must be between 0 and {MAX_NUMBER}."
        ))),
    }
}

/// Prints extents, or keeps them.
struct MapOutput {
    console: Console,
    format: Format,
    /// Where the part of the disk begins.
    start: u64,
    /// Where the next extent begins.
    next: u64,
    /// The heading of the text form is printed.
    headed: bool,
    /// Data was met that lies at no place.
    unplaced: bool,
    kept: Packed,
}

impl MapOutput {
    /// Asks about the terminal: call it before confinement.
    fn new(format: Format, start: u64) -> Self {
        Self {
            console: Console::new(JobKind::Check, format == Format::Json, false),
            format,
            start,
            next: start,
            headed: false,
            unplaced: false,
            kept: Packed::default(),
        }
    }

    fn extents(&mut self, payload: &[u8], files: &FileTable) -> Result<(), String> {
        let extents = <[MapExtent]>::ref_from_bytes(payload)
            .map_err(|_| "the record's length is wrong".to_owned())?;
        if self.format == Format::Human && !self.headed {
            self.headed = true;
            self.console.stdout().put(print::HEADING);
        }
        for raw in extents {
            let mut extent = Extent::read(raw, self.next)?;
            let file = files.get(extent.slot);
            let start = file.map_or(0, |file| file.start_bytes);
            extent.offset = extent.offset.map(|offset| offset.saturating_add(start));
            self.next = extent.start + extent.len;
            match self.format {
                Format::Human => self.list(&extent, files)?,
                Format::Json => self.kept.push(&extent),
            }
        }
        Ok(())
    }

    fn list(&mut self, extent: &Extent, files: &FileTable) -> Result<(), String> {
        if self.unplaced || !extent.is_listed() {
            return Ok(());
        }
        let Some(offset) = extent.offset else {
            self.unplaced = true;
            return Ok(());
        };
        let Some(file) = files.get(extent.slot) else {
            return Err(format!("there is no file in slot {}", extent.slot));
        };
        let mut line = Line::default();
        for number in [extent.start, extent.len, offset] {
            line.hexadecimal(number);
        }
        let out = self.console.stdout();
        out.put(line.bytes());
        out.name(file.name.as_bytes());
        out.put(b"\n");
        Ok(())
    }

    fn print_json(&mut self) {
        let out = self.console.stdout();
        out.put(b"[");
        let nothing = Extent {
            start: self.start,
            ..Extent::default()
        };
        let mut extents = self.kept.iter(self.start);
        let mut extent = extents.next().unwrap_or(nothing);
        let mut line = Line::default();
        loop {
            line.clear();
            line.json(&extent);
            let next = extents.next();
            line.text(if next.is_some() { b",\n" } else { b"]\n" });
            out.put(line.bytes());
            match next {
                Some(next) => extent = next,
                None => return,
            }
        }
    }

    fn end_done(mut self: Box<Self>) -> u8 {
        match self.format {
            Format::Human if self.unplaced => {
                self.console
                    .complain(b"File contains external, encrypted or compressed clusters.");
                self.console.end(EXIT_UNPLACED)
            }
            Format::Human => self.console.end(0),
            Format::Json => {
                self.print_json();
                self.console.end(0)
            }
        }
    }
}

impl Output for MapOutput {
    fn record(
        &mut self,
        kind: RecordKind,
        payload: &[u8],
        files: &FileTable,
    ) -> Result<(), String> {
        if self.console.record(kind, payload, files)? {
            return Ok(());
        }
        if kind != RecordKind::MapExtents {
            return Err(format!(
                "records of the kind {kind:?} do not belong to a map"
            ));
        }
        self.extents(payload, files)
    }

    fn ran(&mut self, stats: &RunStats) {
        self.console.ran(stats);
    }

    fn finish(self: Box<Self>, result: &[u8; RESULT_BYTES], _files: &FileTable) -> u8 {
        let Ok((result, _)) = MapResult::read_from_prefix(result.as_slice()) else {
            return self.console.end_malformed("the result is too short");
        };
        match Outcome::try_from(result.outcome.get()) {
            Ok(Outcome::Done) if result.reserved.iter().any(|byte| *byte != 0) => self
                .console
                .end_malformed("its reserved bytes are not zero"),
            Ok(Outcome::Done) => self.end_done(),
            ended => self.console.end_undone(ended),
        }
    }

    fn failed(self: Box<Self>, error: &JobError, files: &FileTable) -> u8 {
        self.console.end_failed(error, files)
    }
}

#[cfg(test)]
mod tests;
