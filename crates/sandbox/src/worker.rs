//! The worker: makes the microVM, gives up everything else, runs, prints.

mod again;

use self::again::{Lines, Needs};
use crate::confine;
use crate::input::{Access, Growth, InputFile};
use crate::jail::Filter;
use crate::locks::{Conflict, Reads};
use crate::open::{Opened, os_text};
use crate::output::{FailedOpen, FileFacts, FileTable, JobError, OpenFailure, Output};
use crate::rounds::Program;
use crate::signals;
use crate::window::Window;
use crate::wire::{self, Reply};
use instar_shared::control::{FileRequest, FileResponse, FileRole, FileStatus, SizeStatus};
use instar_shared::info::ImageRecord;
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::record::{Progress, RecordKind};
use instar_shared::zerocopy::{FromBytes, IntoBytes};
use instar_vmm::VmError;
use instar_vmm::operation::{
    Completed, Confine, Operation, OperationFile, OperationHost, OperationSpec, RESULT_BYTES,
    Resident, RunError, Said, ThreadKind,
};
use nix::sys::signal::SigSet;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendFlags,
};
use rustix::process::Pid;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

/// Something that runs an operation; prepared with all permissions, run without.
pub trait Machine {
    /// Runs to the end.
    ///
    /// # Errors
    /// Everything but a result.
    fn run(self, host: &mut dyn OperationHost) -> Result<Completed, RunError>;

    /// Starts the threads that the operation asks for; each calls `confine` before it does anything.
    ///
    /// # Errors
    /// A thread could not be made, or not be confined.
    fn start_threads(&mut self, confine: &Confine) -> Result<(), VmError> {
        let _ = confine;
        Ok(())
    }
}

impl Machine for Operation {
    fn run(self, host: &mut dyn OperationHost) -> Result<Completed, RunError> {
        Self::run(self, host)
    }

    fn start_threads(&mut self, confine: &Confine) -> Result<(), VmError> {
        Self::start_threads(self, confine)
    }
}

/// What the worker starts with.
pub struct Start {
    /// What is run.
    pub program: Program,
    /// To the broker.
    pub socket: OwnedFd,
    /// The broker.
    pub parent: Pid,
    /// Signal mask to run with.
    pub mask: SigSet,
}

/// Runs the job in this process, the worker; its exit code.
pub fn run<M: Machine>(
    start: Start,
    mut output: Box<dyn Output>,
    prepare: impl FnOnce(OperationSpec) -> Result<M, VmError>,
) -> u8 {
    let mut program = start.program;
    let channel = program.channel.take();
    let asked_at = channel.as_ref().map(AsRawFd::as_raw_fd);
    let mut host = host(&program, start.socket, &mut *output);
    host.asked_by = channel.and_then(asked_by);
    let spec = OperationSpec {
        elf: program.elf,
        config: program.config,
        files: program.inputs.into_iter().map(typed_file).collect(),
        secrets: program.secrets,
        limits: program.limits,
        resident: asked_at.is_some(),
        cancel: &signals::CANCEL,
    };
    let ended = confined_machine(
        spec,
        prepare,
        (start.parent, &start.mask),
        asked_at,
        &mut host,
    )
    .and_then(|machine| machine.run(&mut host).map_err(JobError::Run))
    .and_then(|completed| host.accept(completed));
    let ended = match host.in_use.take() {
        Some(failed) => Err(JobError::Open(failed)),
        None => ended.and_then(|completed| host.last(completed)),
    };
    let files = std::mem::take(&mut host.files);
    // The broker sees this, and lets go of what the next round would need.
    drop(host);
    let ended = match ended {
        Ok(Some(completed)) => Ok(completed),
        Ok(None) => {
            output.pause();
            return 0;
        }
        Err(error) => Err(error),
    };
    match ended {
        Ok(completed) => {
            output.ran(&completed.stats);
            let code = output.finish(&completed.result, &files);
            let cancelled = outcome(&completed.result) == Some(Outcome::Cancelled);
            signals::received()
                .filter(|_| cancelled)
                .map_or(code, signals::exit_code)
        }
        Err(error) => output.failed(&error, &files),
    }
}

/// The worker's end of what the guest of `program` asks for.
fn host<'a>(program: &Program, socket: OwnedFd, output: &'a mut dyn Output) -> Host<'a> {
    let facts = program.inputs.iter().map(|(input, opened)| FileFacts {
        start_bytes: input.options(0).file.part.offset,
        ..opened.facts.clone()
    });
    let conflicts = (0..).zip(&program.inputs);
    let conflicts =
        conflicts.filter_map(|(slot, (_, opened))| Some((slot, opened.format_conflict?)));
    let first = program.inputs.first().map(|(input, _)| input.access);
    Host {
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
        socket,
        reply: vec![0; wire::MAX_REPLY],
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

/// Who asks a resident guest on a channel.
#[cfg(target_arch = "x86_64")]
fn asked_by(channel: OwnedFd) -> Option<Box<dyn Resident>> {
    Some(Box::new(instar_vmm::live::channel::Port::new(channel)))
}

/// Nobody: there are no machines here whose disks it could answer for.
#[cfg(not(target_arch = "x86_64"))]
fn asked_by(_channel: OwnedFd) -> Option<Box<dyn Resident>> {
    None
}

/// Prepares the machine, then leaves this process nothing but it.
fn confined_machine<M: Machine>(
    spec: OperationSpec,
    prepare: impl FnOnce(OperationSpec) -> Result<M, VmError>,
    (parent, mask): (Pid, &SigSet),
    channel: Option<i32>,
    host: &mut Host<'_>,
) -> Result<M, JobError> {
    confine::bind_to(parent)?;
    let socket = host.socket.as_raw_fd();
    let kept: Vec<i32> = spec
        .files
        .iter()
        .map(|file| file.file.as_raw_fd())
        .chain([socket])
        .chain(channel)
        .collect();
    confine::close_others(&kept)?;
    signals::set_mask(mask).map_err(|e| JobError::Start {
        step: "sigprocmask",
        source: e.into(),
    })?;
    let writes = spec.files.iter().any(|file| !file.read_only);
    let mut machine = prepare(spec).map_err(JobError::Vm)?;
    // The first use of the clock looks for the vDSO, with calls (and a file, on old kernels)
    // that are gone after this.
    let _ = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let confinement = confine::give_up_files()?;
    host.output.confined(&confinement);
    // They inherit what was given up so far.
    let threads = machine.start_threads(&thread_filter(writes));
    threads.map_err(JobError::Vm)?;
    let filter = Filter::Vcpu {
        socket,
        channel,
        writes,
    };
    filter.install()?;
    Ok(machine)
}

/// Installs the filter of a thread.
fn thread_filter(writes: bool) -> Confine {
    Arc::new(move |kind| {
        let filter = match kind {
            ThreadKind::Io => Filter::Io { writes },
            ThreadKind::Vcpu => Filter::FurtherVcpu,
            kind => Filter::Machine {
                kind,
                own_pid: std::process::id(),
            },
        };
        filter.install().map_err(std::io::Error::other)
    })
}

fn typed_file((input, opened): (InputFile, Opened)) -> OperationFile {
    let growth = opened.writable.then_some(input.growth);
    let made = input.access.creates() && !opened.facts.block_device;
    let said = input.said(0, &opened.facts);
    let file = operation_file(opened.file, &opened.facts, growth, said);
    if made {
        // Empty, and closed to writes, until its size is announced.
        return OperationFile {
            len_bytes: 0,
            max_len_bytes: 0,
            ..file
        };
    }
    file
}

fn typed_window((slot, (input, opened)): (u16, &(InputFile, Opened))) -> Option<(u16, Window)> {
    let made = input.access.creates();
    let said = input.said(0, &opened.facts);
    let window = Window::of(input.growth, &part(&opened.facts, said), made);
    let window = window.fixed(said.end.is_some());
    opened.writable.then_some((slot, window))
}

/// The device of a file; `growth` if it is written.
fn operation_file(
    file: File,
    facts: &FileFacts,
    growth: Option<Growth>,
    said: Said,
) -> OperationFile {
    let facts = &part(facts, said);
    // A device keeps its length. A character device has no bytes to write either.
    let growth = growth.filter(|_| !facts.character_device);
    let max_len_bytes = match growth {
        Some(growth) if !facts.block_device && said.end.is_none() => {
            growth.max_len_bytes(facts.len_bytes)
        }
        _ => facts.len_bytes,
    };
    OperationFile {
        file,
        read_only: growth.is_none(),
        block_device: facts.block_device || facts.character_device,
        len_bytes: facts.len_bytes,
        max_len_bytes,
        direct_align: facts.direct_align,
        said,
    }
}

/// What is known about the part of a file that is meant.
fn part(facts: &FileFacts, said: Said) -> FileFacts {
    let end = said.end.unwrap_or(facts.len_bytes);
    FileFacts {
        len_bytes: end.saturating_sub(said.start),
        ..facts.clone()
    }
}

/// Every result starts with how the operation ended.
fn outcome(result: &[u8; RESULT_BYTES]) -> Option<Outcome> {
    let (head, _) = result.split_first_chunk::<4>()?;
    Outcome::try_from(u32::from_le_bytes(*head)).ok()
}

/// The worker's end of what the guest asks for.
struct Host<'a> {
    files: FileTable,
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
    in_use: Option<FailedOpen>,
    output: &'a mut dyn Output,
    socket: OwnedFd,
    reply: Vec<u8>,
    lines: Lines,
    /// The guest has said how far it is.
    has_progressed: bool,
    /// Another program ends what the guest has begun.
    has_sequel: bool,
    /// What the guest has ended for.
    needs: Option<Needs>,
    /// Why the repair failed.
    complaint: Option<Vec<u8>>,
    /// Who asks a guest that is resident.
    asked_by: Option<Box<dyn Resident>>,
}

impl Host<'_> {
    /// A result counts unless the image that it is about is in use.
    fn accept(&mut self, completed: Completed) -> Result<Completed, JobError> {
        let ended = outcome(&completed.result);
        let of_raw = ended == Some(Outcome::Unsupported) || ended == Some(Outcome::Cancelled);
        if self.reads == Reads::Contents && !of_raw {
            // `run` turns this into the error.
            let _ = self.not_in_use(0);
        }
        Ok(completed)
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

    fn ask_broker(
        &mut self,
        request: &FileRequest,
    ) -> Result<(Reply, Option<OwnedFd>), rustix::io::Errno> {
        self.ask(wire::encode_request(request).ok_or(rustix::io::Errno::INVAL)?)
    }

    /// Sends one packet to the broker and waits for the answer.
    fn ask(&mut self, packet: &[u8]) -> Result<(Reply, Option<OwnedFd>), rustix::io::Errno> {
        let mut no_control = SendAncillaryBuffer::default();
        rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(
                &self.socket,
                &[IoSlice::new(packet)],
                &mut no_control,
                SendFlags::NOSIGNAL,
            )
        })?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut buffers = [IoSliceMut::new(&mut self.reply)];
            match rustix::net::recvmsg(
                &self.socket,
                &mut buffers,
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Err(rustix::io::Errno::INTR) => {}
                outcome => break outcome?,
            }
        };
        let descriptor = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let whole = !received.flags.contains(ReturnFlags::TRUNC);
        let packet = self
            .reply
            .get(..received.bytes)
            .filter(|_| whole)
            .unwrap_or_default();
        let reply = wire::decode_reply(packet).ok_or(rustix::io::Errno::PROTO)?;
        Ok((reply, descriptor))
    }
}

impl OperationHost for Host<'_> {
    fn open_file(&mut self, request: &FileRequest) -> Result<OperationFile, FileResponse> {
        let slot =
            u16::try_from(request.slot.get()).map_err(|_| response(FileStatus::Invalid, 0))?;
        let role = FileRole::try_from(request.role.get());
        let role = role.map_err(|_| response(FileStatus::Invalid, 0))?;
        match self.ask_broker(request) {
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
        let begun = match self.ask(&wire::encode_begin(slot)) {
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
