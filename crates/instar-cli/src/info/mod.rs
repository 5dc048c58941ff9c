//! The output of `instar info`: records become a chain, the chain becomes text
//! or JSON that equals `qemu-img info`'s.
//!
//! Nothing is printed before the operation has ended well: a chain that breaks
//! at its last image prints only the reason.

pub mod human;
pub mod json;
pub mod model;
pub mod specific;

use crate::console::{Console, JobKind};
use crate::date::Zone;
use crate::files::{FileFacts, FileTable, JobError, Output, RESULT_BYTES};
use instar_shared::info::InfoResult;
use instar_shared::op::Outcome;
use instar_shared::record::RecordKind;
use instar_shared::zerocopy::FromBytes;
use instar_vmm::operation::RunStats;
use model::{Backing, Chain, Image, whole_sectors};
use std::borrow::Cow;
use std::os::unix::ffi::OsStrExt;

/// Nanoseconds in a second.
const NANOSECONDS: u64 = 1_000_000_000;

/// How a result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Human,
    /// For programs.
    Json,
}

/// An image together with what the host knows about its file.
pub struct Described<'a> {
    /// What the records say.
    pub image: &'a Image,
    /// The file's name as typed or resolved.
    pub name: &'a [u8],
    /// The image's name: its file's, unless options describe it that a name does not say.
    pub shown: &'a [u8],
    /// Space that the file takes on its disk, in bytes.
    pub disk_bytes: u64,
    facts: &'a FileFacts,
}

impl<'a> Described<'a> {
    /// Joins an image with its file.
    #[must_use]
    pub fn new(image: &'a Image, facts: &'a FileFacts) -> Self {
        Self {
            image,
            name: facts.name.as_bytes(),
            shown: facts.name.as_bytes(),
            disk_bytes: facts.disk_bytes,
            facts,
        }
    }

    /// The name of the image format.
    #[must_use]
    pub fn format(&self) -> &'static str {
        if self.image.qcow2.is_some() {
            "qcow2"
        } else {
            "raw"
        }
    }

    /// The name of the way the file is reached.
    #[must_use]
    pub fn protocol(&self) -> &'static str {
        self.facts.protocol()
    }

    /// The file's length in bytes, rounded up to whole sectors.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        whole_sectors(self.facts.len_bytes)
    }

    /// The backing file's name, joined with this image's folder if it is relative.
    #[must_use]
    pub fn full_backing_name<'b>(&self, backing: &'b Backing) -> Cow<'b, [u8]> {
        let name = backing.name.as_slice();
        if name.starts_with(b"/") || has_protocol(name) {
            return Cow::Borrowed(name);
        }
        let folder = self.name.iter().rposition(|&byte| byte == b'/');
        let folder = folder.and_then(|slash| self.name.get(..=slash));
        match folder {
            Some(folder) => Cow::Owned([folder, name].concat()),
            None => Cow::Borrowed(name),
        }
    }
}

/// A slot's number as the table of files has it; numbers that it cannot have mean no file.
fn slot(number: u32) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

/// Whether a name starts like `nbd:` or `json:`, before any slash.
#[must_use]
pub fn has_protocol(name: &[u8]) -> bool {
    let mark = name.iter().find(|&&byte| byte == b':' || byte == b'/');
    mark == Some(&b':')
}

/// Collects the records of one `info` and prints them at the end.
pub struct InfoOutput {
    console: Console,
    zone: Zone,
    format: Format,
    whole_chain: bool,
    chain: Chain,
    shown: Option<String>,
}

impl InfoOutput {
    /// Loads the time zone and asks about the terminal: call it before confinement.
    #[must_use]
    pub fn new(format: Format, whole_chain: bool) -> Self {
        Self {
            console: Console::new(JobKind::Info, format == Format::Json, false),
            zone: Zone::load(),
            format,
            whole_chain,
            chain: Chain::default(),
            shown: None,
        }
    }

    /// Shows the first image under this name.
    #[must_use]
    pub fn with_name(self, shown: Option<String>) -> Self {
        Self { shown, ..self }
    }

    fn print(&mut self, files: &FileTable) -> Result<(), String> {
        let mut images = Vec::with_capacity(self.chain.images().len());
        for image in self.chain.images() {
            let facts = files
                .get(slot(image.slot))
                .ok_or("an image lost its file")?;
            let mut described = Described::new(image, facts);
            if let (true, Some(shown)) = (images.is_empty(), &self.shown) {
                described.shown = shown.as_bytes();
            }
            images.push(described);
        }
        if images.is_empty() || (images.len() > 1 && !self.whole_chain) {
            return Err(format!("it described {} images", images.len()));
        }
        let out = self.console.stdout();
        match self.format {
            Format::Human => human::print(out, &images, &self.zone),
            Format::Json => json::print(out, &images, self.whole_chain),
        }
        Ok(())
    }
}

impl Output for InfoOutput {
    fn record(
        &mut self,
        kind: RecordKind,
        payload: &[u8],
        files: &FileTable,
    ) -> Result<(), String> {
        if self.console.record(kind, payload, files)? {
            return Ok(());
        }
        let has_file = |number| files.get(slot(number)).is_some();
        self.chain
            .add(kind, payload, &has_file)
            .map_err(|error| error.to_string())
    }

    fn ran(&mut self, stats: &RunStats) {
        self.console.ran(stats);
    }

    fn finish(mut self: Box<Self>, result: &[u8; RESULT_BYTES], files: &FileTable) -> u8 {
        let Ok((result, _)) = InfoResult::read_from_prefix(result.as_slice()) else {
            return self.console.end_malformed("the result is too short");
        };
        match Outcome::try_from(result.outcome.get()) {
            Ok(Outcome::Done) => {
                if result.reserved.iter().any(|byte| *byte != 0) {
                    return self
                        .console
                        .end_malformed("its reserved bytes are not zero");
                }
                if usize::try_from(result.images.get()) != Ok(self.chain.images().len()) {
                    return self.console.end_malformed("it counts its images wrong");
                }
                match self.print(files) {
                    Ok(()) => self.console.end(0),
                    Err(reason) => self.console.end_malformed(&reason),
                }
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
