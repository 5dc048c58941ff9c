//! What the guest asks for: files, their sizes, and records taken over.

use super::again::{Lines, Needs};
use super::broker::Broker;
use super::files::{operation_file, part, typed_window};
use super::outcome;
use crate::input::{Access, InputFile};
use crate::locks::{Conflict, Reads};
use crate::open::os_text;
use crate::output::{FailedOpen, FileFacts, FileTable, OpenFailure, Output};
use crate::rounds::Program;
use crate::window::Window;
use crate::wire::{self, Reply};
use instar_shared::control::{FileRequest, FileResponse, FileRole, FileStatus, SizeStatus};
use instar_shared::info::ImageRecord;
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::record::{Progress, RecordKind};
use instar_shared::zerocopy::{FromBytes, IntoBytes};
use instar_vmm::operation::{Completed, OperationFile, OperationHost, Resident, Said};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;

/// The worker's end of what the guest asks for.
pub struct Host<'a> {
    pub files: FileTable,
    /// Conflicts that count unless the image is raw, by slot.
    conflicts: BTreeMap<u16, Conflict>,
    /// What of the first image is read.
    reads: Reads,
    /// The typed images, by slot.
    inputs: Vec<InputFile>,
    /// How many images are above a backing file in its chain, by slot.
    depths: BTreeMap<u16, usize>,
    /// Of the files that may be written and whose size is not announced yet, by slot.
    windows: BTreeMap<u16, Window>,
    /// The conflict that ended the run.
    pub in_use: Option<FailedOpen>,
    pub output: &'a mut dyn Output,
    pub broker: Broker,
    pub lines: Lines,
    /// The guest has said how far it is.
    has_progressed: bool,
    /// Another program ends what the guest has begun.
    pub has_sequel: bool,
    /// What the guest has ended for.
    pub needs: Option<Needs>,
    /// Why the repair failed.
    pub complaint: Option<Vec<u8>>,
    /// Who asks a guest that is resident.
    pub asked_by: Option<Box<dyn Resident>>,
}

impl<'a> Host<'a> {
    /// For the guest of `program`; `socket` leads to the broker.
    pub fn new(program: &Program, socket: OwnedFd, output: &'a mut dyn Output) -> Self {
        let facts = program.inputs.iter().map(|(input, opened)| FileFacts {
            start_bytes: input.options(0).file.part.offset,
            ..opened.facts.clone()
        });
        let conflicts = (0..).zip(&program.inputs);
        let conflicts =
            conflicts.filter_map(|(slot, (_, opened))| Some((slot, opened.format_conflict?)));
        let first = program.inputs.first().map(|(input, _)| input.access);
        Self {
            files: FileTable::with_inputs(facts),
            conflicts: conflicts.collect(),
            reads: first.map_or(Reads::Contents, Access::reads),
            inputs: program
                .inputs
                .iter()
                .map(|(input, _)| input.clone())
                .collect(),
            depths: BTreeMap::new(),
            windows: (0..)
                .zip(&program.inputs)
                .filter_map(typed_window)
                .collect(),
            in_use: None,
            output,
            broker: Broker::new(socket),
            lines: Lines {
                seen: 0,
                shown: program.shown,
                silent: program.silent,
            },
            has_progressed: false,
            has_sequel: program.has_sequel,
            needs: None,
            complaint: None,
            asked_by: None,
        }
    }
}

impl Host<'_> {
    /// A result counts unless the image that it is about is in use: then [`Host::in_use`] has the error.
    pub fn accept(&mut self, completed: Completed) -> Completed {
        let ended = outcome(&completed.result);
        let of_raw = ended == Some(Outcome::Unsupported) || ended == Some(Outcome::Cancelled);
        if self.reads == Reads::Contents && !of_raw {
            let _ = self.not_in_use(0);
        }
        completed
    }

    /// The image in `slot` turned out not to be raw.
    fn not_in_use(&mut self, slot: u16) -> Result<(), String> {
        let Some(conflict) = self.conflicts.get(&slot) else {
            return Ok(());
        };
        let facts = self.files.get(slot);
        let name = facts
            .map(|facts| facts.name.clone().into_vec())
            .unwrap_or_default();
        let failed = FailedOpen {
            slot,
            parent_slot: facts.and_then(|facts| facts.parent_slot),
            role: None,
            output: false,
            kind: OpenFailure::InUse,
            given_name: facts
                .map(|facts| facts.given_name.clone())
                .unwrap_or_default(),
            reason: OsString::from_vec(conflict.reason(&name)),
        };
        self.files.push_failure(failed.clone());
        self.in_use = Some(failed);
        Err("the image is in use".into())
    }

    /// The typed image that a file hangs on.
    fn input_of(&self, facts: &FileFacts) -> Option<&InputFile> {
        let mut at = facts.parent_slot?;
        for _ in 0..=self.files.iter().count() {
            match self.files.get(at)?.parent_slot {
                Some(parent) => at = parent,
                None => return self.inputs.get(usize::from(at)),
            }
        }
        None
    }

    /// The device of a file that an image names.
    fn take(
        &mut self,
        (slot, role): (u16, FileRole),
        facts: FileFacts,
        descriptor: OwnedFd,
        writable: bool,
    ) -> OperationFile {
        let above = facts.parent_slot.and_then(|slot| self.depths.get(&slot));
        let above = above.copied().unwrap_or(0);
        let input = self.input_of(&facts);
        let growth = input.map(|input| input.growth).filter(|_| writable);
        let said = match (input, role) {
            (None, _) => Said::default(),
            (Some(input), FileRole::Backing) => input.said(above.saturating_add(1), &facts),
            (Some(input), FileRole::Data) => {
                let data = input.options(above).data.unwrap_or_default();
                data.part.said(&facts)
            }
        };
        if role == FileRole::Backing {
            self.depths.insert(slot, above.saturating_add(1));
        }
        if let Some(growth) = growth {
            let window = Window::of(growth, &part(&facts, said), false);
            self.windows.insert(slot, window.fixed(said.end.is_some()));
        }
        let file = operation_file(File::from(descriptor), &facts, growth, said);
        let start_bytes = said.start;
        self.files.insert(
            slot,
            FileFacts {
                start_bytes,
                ..facts
            },
        );
        file
    }
}

impl OperationHost for Host<'_> {
    fn open_file(&mut self, request: &FileRequest) -> Result<OperationFile, FileResponse> {
        let slot =
            u16::try_from(request.slot.get()).map_err(|_| response(FileStatus::Invalid, 0))?;
        let role = FileRole::try_from(request.role.get());
        let role = role.map_err(|_| response(FileStatus::Invalid, 0))?;
        match self.broker.ask_for_file(request) {
            Ok((Reply::Opened(facts, conflict), Some(descriptor))) => {
                if let Some(conflict) = conflict {
                    self.conflicts.insert(slot, conflict);
                }
                Ok(self.take((slot, role), facts, descriptor, false))
            }
            Ok((Reply::OpenedToWrite(facts), Some(descriptor))) => {
                Ok(self.take((slot, role), facts, descriptor, true))
            }
            Ok((Reply::Failed(failed), _)) => {
                let answer = match failed.kind {
                    OpenFailure::Failed(errno) => response(FileStatus::Failed, errno),
                    OpenFailure::InUse => response(FileStatus::Failed, libc::EAGAIN),
                    OpenFailure::Refused => response(FileStatus::Refused, 0),
                    OpenFailure::Loop => response(FileStatus::Loop, 0),
                };
                self.files.push_failure(failed);
                Err(answer)
            }
            Ok(_) => Err(response(FileStatus::Invalid, 0)),
            Err(errno) => Err(response(FileStatus::Failed, errno.raw_os_error())),
        }
    }

    fn announce_size(&mut self, slot: u16, bytes: u64) -> Result<u64, (SizeStatus, u32)> {
        let invalid = (SizeStatus::Invalid, 0);
        let window = self.windows.remove(&slot).ok_or(invalid)?;
        let begun = match self.broker.ask(&wire::encode_begin(slot)) {
            Ok((reply, _)) if window.is_made() => Ok(reply),
            // It is told, and has nothing to begin.
            Ok(_) => Ok(Reply::Begun(Ok(0))),
            Err(errno) => Err(errno),
        };
        match begun {
            Ok(Reply::Begun(Ok(refused))) => {
                if refused != 0 {
                    let reason = os_text(rustix::io::Errno::from_raw_os_error(refused));
                    let text = format!("warning: Failed to set extent size hint: {reason}");
                    // An output that cannot say it is for a job that asks for nothing.
                    let _ = self.show(RecordKind::Prefixed, text.as_bytes());
                }
                Ok(window.max_len_bytes(bytes))
            }
            Ok(Reply::Begun(Err(errno))) => Err((SizeStatus::Failed, errno.unsigned_abs())),
            Ok(_) => Err(invalid),
            Err(errno) => Err((SizeStatus::Failed, errno.raw_os_error().unsigned_abs())),
        }
    }

    fn resident(&mut self) -> Option<&mut dyn Resident> {
        match &mut self.asked_by {
            Some(asked_by) => Some(&mut **asked_by),
            None => None,
        }
    }

    fn tick(&mut self) {
        // A guest that derives a key says nothing for as long as that takes; one that is asked by a disk's user has no
        // progress, and its terminal is another guest's.
        if !self.has_progressed && self.asked_by.is_none() {
            let unknown = Progress::zeroed();
            let payload = unknown.as_bytes();
            // An output that shows no progress needs none of this either.
            let _ = self
                .output
                .record(RecordKind::Preparing, payload, &self.files);
        }
    }

    fn record(&mut self, kind: RecordKind, payload: &[u8]) -> Result<(), String> {
        self.has_progressed |= kind == RecordKind::Progress;
        match self.reads {
            Reads::Metadata if kind == RecordKind::Image => {
                let record = ImageRecord::read_from_prefix(payload).map(|(record, _)| record);
                let format = record
                    .as_ref()
                    .map(|record| ImageFormat::try_from(record.format.get()));
                if let (Ok(record), Ok(Ok(ImageFormat::Qcow2))) = (&record, format) {
                    let slot =
                        u16::try_from(record.slot.get()).map_err(|_| "an image in no slot")?;
                    self.not_in_use(slot)?;
                }
            }
            Reads::Contents | Reads::Source => self.not_in_use(0)?,
            Reads::Metadata => {}
        }
        self.show(kind, payload)
    }
}

fn response(status: FileStatus, errno: i32) -> FileResponse {
    FileResponse {
        status: status.raw().into(),
        errno: errno.unsigned_abs().into(),
    }
}
