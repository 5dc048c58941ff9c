//! Which files a job has open, and opening more of them under its policy.

use crate::Job;
use crate::input::{Access, InputFile, Part};
use crate::locks::{Conflict, Reads, Wanted};
use crate::names::{self, Name};
use crate::open::{self, FileId, Opened, Refusal};
use crate::output::{FailedOpen, FileFacts, OpenFailure};
use crate::policy::{Base, Passed, Rules};
use crate::wire::{Reply, Request};
use instar_shared::control::FileRole;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Arc;

/// A file that the worker has.
#[derive(Debug)]
struct Held {
    id: FileId,
    facts: FileFacts,
    /// Its descriptor, if an image names it and it is written: its locks must not be lost between two rounds.
    file: Option<Arc<File>>,
    parent: Option<u16>,
    /// What it is to its parent.
    role: Option<FileRole>,
    /// How many images are above it in the chain of the typed one.
    depth: usize,
    /// Slot of the typed image that it hangs on: its own, if it is one.
    root: u16,
    writable: bool,
    /// It is made, and has its slot for all else.
    output: bool,
}

/// An image that the user typed, and what that lets it name.
#[derive(Debug)]
struct Root {
    rules: Rules,
    input: InputFile,
}

/// A file that an image names, after all that the user says of it.
struct Asked {
    /// Its name.
    given: Vec<u8>,
    /// The user names no file, and the image neither.
    nameless: bool,
    /// The user says its format.
    has_format: bool,
    /// How many images are above its image in the chain.
    depth: usize,
    /// Slot of the typed image that it hangs on.
    root: u16,
    direct: bool,
    unlocked: bool,
    part: Part,
}

/// The files that the user names for images of a chain.
fn typed(input: &InputFile) -> Vec<PathBuf> {
    let described = input.described.iter();
    let images = described.flat_map(|described| described.images.iter().enumerate());
    let files = images.flat_map(|(depth, image)| {
        let own = (depth > 0).then_some(&image.file);
        own.into_iter().chain(&image.data)
    });
    files.filter_map(|file| file.path.clone()).collect()
}

/// Why a file that an image names is not opened.
enum Denied {
    /// For its own sake.
    Named(Refusal),
    /// The job makes this file, so it must not be made.
    Output(Refusal),
    /// It can be read, but not be opened again to be written.
    Again(Refusal),
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        Self::Named(refusal)
    }
}

/// The files of a job, and the policies that they were opened under.
#[derive(Debug)]
pub struct Files {
    /// By slot.
    roots: Vec<Root>,
    held: BTreeMap<u16, Held>,
    /// The target of the job, as typed, if it makes one.
    target: Vec<u8>,
    /// Which backing file may be written.
    base: Option<Base>,
    /// Files that an earlier round wrote, open and locked, until this one asks for them.
    kept: Vec<Kept>,
}

/// A file that stays open from one round to the next.
#[derive(Debug)]
pub struct Kept {
    /// Which file it is.
    pub id: FileId,
    /// Its descriptor, which has its locks.
    pub file: File,
}

/// An image that the worker may write.
#[derive(Debug)]
pub struct Written<'a> {
    /// Which file it is.
    pub id: FileId,
    /// What is known about it.
    pub facts: &'a FileFacts,
    /// Slot of the typed image that it hangs on.
    pub root: u16,
    /// Its descriptor, if the user did not type it.
    pub file: Option<&'a Arc<File>>,
}

impl Files {
    /// Of a round that opens none.
    pub const fn none() -> Self {
        Self {
            roots: Vec::new(),
            held: BTreeMap::new(),
            target: Vec::new(),
            base: None,
            kept: Vec::new(),
        }
    }

    /// Of a job that has its typed images open, and in `kept` what it wrote before.
    pub fn new(job: &Job, inputs: &[Opened], kept: Vec<Kept>) -> Self {
        let root = |(input, opened): (&InputFile, &Opened)| Root {
            rules: Rules::new(opened.facts.name.as_bytes(), &job.policy).and(&typed(input)),
            input: input.clone(),
        };
        let held = |(slot, opened): (u16, &Opened)| {
            let held = Held {
                id: opened.id,
                facts: opened.facts.clone(),
                file: None,
                parent: None,
                role: None,
                depth: 0,
                root: slot,
                writable: opened.writable,
                output: opened.target.is_some(),
            };
            (slot, held)
        };
        Self {
            roots: job.inputs.iter().zip(inputs).map(root).collect(),
            held: (0..).zip(inputs).map(held).collect(),
            target: open::name_of_target(&job.inputs).to_vec(),
            base: job.policy.base.clone(),
            kept,
        }
    }

    /// The image in `slot`, if the worker may write it.
    pub fn written(&self, slot: u16) -> Option<Written<'_>> {
        let held = self.held.get(&slot)?;
        (held.writable && !held.output).then_some(Written {
            id: held.id,
            facts: &held.facts,
            root: held.root,
            file: held.file.as_ref(),
        })
    }

    /// All files that the worker may write and the user did not type.
    pub fn written_named(&self) -> impl Iterator<Item = &File> {
        let held = self.held.values().filter_map(|held| held.file.as_deref());
        held.chain(self.kept.iter().map(|kept| &kept.file))
    }

    /// What is kept and was not asked for.
    pub fn take_kept(&mut self) -> Vec<Kept> {
        std::mem::take(&mut self.kept)
    }

    /// Opens what the worker asks for: the answer, and the file if there is one.
    pub fn open(&mut self, request: &Request) -> (Reply, Option<Arc<File>>) {
        let Some(parent) = self.held.get(&request.parent_slot) else {
            return (Reply::Invalid, None);
        };
        let root = parent.root;
        // What is made names nothing: the user has typed all of it.
        let names_nothing = parent.output;
        if names_nothing || self.held.contains_key(&request.slot) || !self.may_write(request, root)
        {
            return (Reply::Invalid, None);
        }
        let asked = self.asked(request, parent);
        let given = asked.given.clone();
        let depth = asked.depth;
        let opened = match self.open_named(request, &asked) {
            Err(Denied::Output(refusal)) => {
                let failed = refusal.of_typed(request.slot, &self.target, true);
                return (Reply::Failed(failed), None);
            }
            Err(Denied::Again(refusal)) => {
                let failed = refusal.of_typed(request.slot, &given, false);
                return (Reply::Failed(failed), None);
            }
            Err(Denied::Named(refusal)) => Err(refusal),
            Ok(opened) => Ok(opened),
        };
        match opened {
            Ok(opened) => {
                let facts = FileFacts {
                    parent_slot: Some(request.parent_slot),
                    ..opened.facts
                };
                let file = Arc::new(opened.file);
                let held = Held {
                    id: opened.id,
                    facts: facts.clone(),
                    file: opened.writable.then(|| Arc::clone(&file)),
                    parent: Some(request.parent_slot),
                    role: Some(request.role),
                    depth,
                    root,
                    writable: opened.writable,
                    output: false,
                };
                self.held.insert(request.slot, held);
                let reply = if opened.writable {
                    Reply::OpenedToWrite(facts)
                } else {
                    Reply::Opened(facts, opened.format_conflict)
                };
                (reply, Some(file))
            }
            Err(refusal) => {
                let failed = FailedOpen {
                    slot: request.slot,
                    parent_slot: Some(request.parent_slot),
                    role: Some(request.role),
                    output: false,
                    kind: refusal.kind,
                    given_name: OsString::from_vec(given),
                    reason: OsString::from_vec(refusal.reason),
                };
                (Reply::Failed(failed), None)
            }
        }
    }

    /// What is opened for a request, after all that the user says of it.
    fn asked(&self, request: &Request, parent: &Held) -> Asked {
        let input = self.root(parent.root).map(|root| &root.input);
        let command = input.is_some_and(|input| input.direct);
        let options = |depth| input.map(|input| input.options(depth)).unwrap_or_default();
        let name = request.name.as_slice();
        let (depth, image, file, named) = match request.role {
            FileRole::Backing => {
                let depth = parent.depth.saturating_add(1);
                let image = options(depth);
                let named = names::combine(parent.facts.name.as_bytes(), name);
                (depth, image.clone(), image.file, named)
            }
            // QEMU takes this name as it stands: relative to the current folder. The policy judges
            // it as any other.
            FileRole::Data => {
                let image = options(parent.depth);
                let file = image.data.clone().unwrap_or_default();
                (parent.depth, image, file, name.to_vec())
            }
        };
        let typed = file.path.as_ref();
        Asked {
            given: typed.map_or(named, |path| path.as_os_str().as_bytes().to_vec()),
            nameless: name.is_empty() && (typed.is_none() || request.role == FileRole::Data),
            has_format: image.format.is_some(),
            depth,
            root: parent.root,
            direct: image.is_direct(&file, command),
            unlocked: file.unlocked,
            part: file.part,
        }
    }

    /// Only the data file of an image that is changed may be written, and it has but one, and a backing file where
    /// the job has a base; anything may be read.
    fn may_write(&self, request: &Request, root: u16) -> bool {
        let root_changes = self
            .root(root)
            .is_some_and(|root| root.input.access == Access::Change);
        let parent = request.parent_slot;
        let parent_changes = self.held.get(&parent).is_some_and(|held| held.writable);
        let may = match request.role {
            FileRole::Data => parent_changes && !self.has_writable(FileRole::Data, Some(parent)),
            FileRole::Backing => self.base.is_some() && root == 0,
        };
        !request.writable || (root_changes && may)
    }

    /// Whether a file with this role may be written, of this parent if one is given.
    fn has_writable(&self, role: FileRole, parent: Option<u16>) -> bool {
        self.held.values().any(|held| {
            held.writable
                && held.role == Some(role)
                && parent.is_none_or(|parent| held.parent == Some(parent))
        })
    }

    /// Whether a backing file, which has passed, is the one that the images above it are committed to.
    fn is_base(&self, request: &Request, passed: &Passed) -> bool {
        let Some(parent) = self.held.get(&request.parent_slot) else {
            return false;
        };
        let is_named = |name: &OsString| {
            let path = names::combine(parent.facts.name.as_bytes(), name.as_bytes());
            let is_it = || open::identity(&path) == Some(FileId::of(&passed.stat));
            name.as_bytes() == request.name || is_it()
        };
        let is_it = match &self.base {
            None => false,
            Some(Base::Nearest) => parent.parent.is_none(),
            Some(Base::Named(name)) => is_named(name),
        };
        is_it && !self.has_writable(FileRole::Backing, None)
    }

    fn root(&self, slot: u16) -> Option<&Root> {
        self.roots.get(usize::from(slot))
    }

    fn open_named(&mut self, request: &Request, asked: &Asked) -> Result<Opened, Denied> {
        let (root, given) = (asked.root, asked.given.as_slice());
        if asked.nameless {
            // The user says something of an image that nobody names.
            let reason: &[u8] = if request.role == FileRole::Data {
                b"'data-file' can only be set for images with an external data file"
            } else if asked.has_format {
                b"A block device must be specified for \"file\""
            } else {
                b"Must specify either driver or file"
            };
            return Err(Refusal::failed(rustix::io::Errno::INVAL, reason.to_vec()).into());
        }
        let name = names::parse(given).map_err(|e| Refusal {
            // QEMU would go there, if it is a protocol.
            kind: OpenFailure::Refused,
            reason: open::name_reason(&e),
        })?;
        let backing = request.role == FileRole::Backing;
        let Some(found) = self.roots.get_mut(usize::from(root)) else {
            return Err(Refusal::could_not_open(&name.path, rustix::io::Errno::BADF).into());
        };
        // A backing file is opened to be read first: nothing else of a chain is opened in another way.
        let passed = found.rules.open(&name, request.writable && !backing)?;
        let reads = found.input.access.reads();
        let reading = Wanted {
            access: Access::Read(reads),
            data_file: !backing,
            share: found.input.share,
            direct: asked.direct,
            unlocked: asked.unlocked,
        };
        let writing = Wanted {
            access: Access::Change,
            ..reading
        };
        let is_base = request.writable && backing && self.is_base(request, &passed);
        let writes = request.writable && (!backing || is_base);
        let id = FileId::of(&passed.stat);
        self.judge_identity(request, writes, id, given, &name)?;
        if writes && let Some(at) = self.kept.iter().position(|kept| kept.id == id) {
            let kept = self.kept.swap_remove(at);
            let mut opened = open::describe(kept.file.into(), &passed.stat, &name, given)?;
            opened.writable = true;
            if writing.direct {
                opened.facts.direct_align = open::pass_by_page_cache(&opened.file, &name)?;
            }
            return Ok(opened);
        }
        let wanted = if writes && !is_base { writing } else { reading };
        let opened = open::lock_and_describe(passed.fd, &passed.stat, &name, given, wanted)?;
        open::judge_part(&opened.facts, asked.part)?;
        match opened.format_conflict {
            // Nothing tells later whether it is raw.
            Some(conflict) if reads == Reads::Contents => {
                Err(Refusal::in_use(conflict, &name.path).into())
            }
            _ if is_base => {
                // Its locks would keep the next descriptor from its own.
                drop(opened);
                self.open_again(root, &name, given, writing)
            }
            _ => Ok(opened),
        }
    }

    /// Opens a file that could be read to be written, too.
    fn open_again(
        &mut self,
        root: u16,
        name: &Name,
        given: &[u8],
        wanted: Wanted,
    ) -> Result<Opened, Denied> {
        let root = self.roots.get_mut(usize::from(root));
        let root =
            root.ok_or_else(|| Refusal::could_not_open(&name.path, rustix::io::Errno::BADF))?;
        let passed = root.rules.open(name, true).map_err(Denied::Again)?;
        open::lock_and_describe(passed.fd, &passed.stat, name, given, wanted).map_err(Denied::Again)
    }

    /// Refuses a file that is written twice, or written and read, and a chain that comes back to itself.
    /// What is made is written where it would be read; QEMU finds that out when it makes it.
    ///
    /// The locks refuse the former too, in the same words, where the file system has them.
    fn judge_identity(
        &self,
        request: &Request,
        writes: bool,
        id: FileId,
        given: &[u8],
        name: &Name,
    ) -> Result<(), Denied> {
        let written = |held: &&Held| held.id == id && (held.writable || writes);
        if let Some(held) = self.held.values().find(written) {
            if held.output {
                return Err(Denied::Output(Refusal::in_use(
                    Conflict::OPEN,
                    held.facts.name.as_bytes(),
                )));
            }
            let conflict = match request.role {
                FileRole::Backing => Conflict::WRITTEN,
                FileRole::Data => Conflict::RESIZED,
            };
            return Err(Refusal::in_use(conflict, &name.path).into());
        }
        if request.role == FileRole::Backing && self.in_chain(request.parent_slot, id) {
            let reason = [b"Backing file '", given, b"' creates an infinite loop."].concat();
            return Err(Denied::Named(Refusal {
                kind: OpenFailure::Loop,
                reason,
            }));
        }
        Ok(())
    }

    /// Whether the image in `slot`, or one above it, is the file `id`.
    fn in_chain(&self, slot: u16, id: FileId) -> bool {
        let mut at = self.held.get(&slot);
        // Parents are older than their children, so this ends; the bound says so.
        for _ in 0..self.held.len() {
            match at {
                Some(held) if held.id == id => return true,
                Some(held) => at = held.parent.and_then(|parent| self.held.get(&parent)),
                None => return false,
            }
        }
        false
    }
}

#[cfg(test)]
mod tests;
