//! Disks whose images an operation reads for as long as a guest uses them: who runs it, and what its user gets.
//!
//! The parent opens and locks the image, which stays its own over all runs of the operation. [`LiveImage::start`] forks the
//! *reader*, a process that runs the operation as any job: a broker, and a confined worker with the microVM. Another process,
//! the *user*, serves the disk. It asks on a channel, and the broker sends it every file that it opens for the operation,
//! so that it moves the disk's bytes itself. The reader ends when the channel is closed.
//!
//! ```text
//!   parent --- image, locked ---> user ---- questions, answers ----> worker (KVM)
//!     '------- image, locked ---> broker --- files, SCM_RIGHTS ---> user
//! ```

use crate::confine;
use crate::input::Growth;
use crate::machine::{Child, MachineFailure, failed, forked, use_small_pages};
use crate::open::{self, Opened, Refusal};
use crate::output::{FileFacts, FileTable, JobError, Output};
use crate::rounds::{Resident, Rounds, refresh};
use crate::window::Window;
use crate::wire::{self, passing};
use crate::{Job, broker};
use instar_vmm::HostFile;
use instar_vmm::VmError;
use instar_vmm::live::backend::LiveFile;
use instar_vmm::live::channel::Asker;
use instar_vmm::live::check;
use instar_vmm::live::source::SourceGone;
use instar_vmm::machine::disk::store::LiveDisk;
use instar_vmm::machine::parts::RateLimit;
use instar_vmm::operation::Operation;
use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags, poll};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Exit code of a user whose reader has ended: that one has said why.
pub(crate) const EXIT_READER_ENDED: u8 = 66;
/// How long a reader may take to make durable what was written.
pub(crate) const GRACE: Duration = Duration::from_secs(30);

/// A disk whose image an operation reads; nothing is open yet.
#[derive(Clone, Debug)]
pub struct LiveImage {
    /// The resident operation, on the image alone.
    pub job: Job,
    /// What it says goes here.
    pub output: fn() -> Box<dyn Output>,
    /// The user has not said what format it has.
    pub guessed: bool,
    /// What the guest reads as the disk's identifier.
    pub serial: String,
    /// How much the disk may do.
    pub rate: Option<RateLimit>,
}

impl LiveImage {
    /// The image's name as typed.
    pub(crate) fn path(&self) -> PathBuf {
        let image = self.job.inputs.first();
        image.map(|image| image.path.clone()).unwrap_or_default()
    }

    /// Opens and locks the image.
    ///
    /// # Errors
    /// It cannot be opened, or is in use.
    pub(crate) fn open(&self) -> Result<Opened, MachineFailure> {
        let opened = open::open_inputs(&self.job.inputs).map_err(MachineFailure::Disk)?;
        let opened = opened.into_iter().next();
        let opened = opened.filter(|opened| !opened.facts.character_device);
        let opened = opened.ok_or_else(|| MachineFailure::NoDisk(self.path()))?;
        match opened.format_conflict {
            // Nobody waits for the end of the operation to hear of it.
            Some(conflict) => {
                let name = opened.facts.name.as_bytes();
                let failed = Refusal::in_use(conflict, name).of_typed(0, name, false);
                Err(MachineFailure::Disk(failed))
            }
            None => Ok(opened),
        }
    }

    /// Forks the reader of an image that is open; it, and what its user gets.
    ///
    /// # Errors
    /// There are no more processes or descriptors.
    pub(crate) fn start(&self, image: &Opened) -> Result<(Child, Unopened), MachineFailure> {
        let line = || wire::pair().map_err(failed("socketpair"));
        let ((channel, asked), (files, sent)) = (line()?, line()?);
        let read = copy(image)?;
        if let Some(child) = forked()? {
            let unopened = Unopened {
                channel,
                files,
                image: read,
                growth: self.growth(),
                guessed: self.guessed,
                name: self.path(),
                serial: self.serial.clone(),
                rate: self.rate,
            };
            return Ok((child, unopened));
        }
        use_small_pages();
        let kept = [asked.as_raw_fd(), sent.as_raw_fd(), read.file.as_raw_fd()];
        let output = (self.output)();
        let code = match confine::close_others(&kept) {
            Ok(()) => self.read(read, Resident::new(asked, sent), output),
            Err(error) => output.failed(&JobError::Jail(error), &FileTable::default()),
        };
        std::process::exit(code.into())
    }

    /// The reader's process. It ends when its user does, so that no signal of a terminal may end it before.
    fn read(&self, image: Opened, resident: Resident, output: Box<dyn Output>) -> u8 {
        let mask = SigSet::thread_get_mask().unwrap_or_else(|_| SigSet::all());
        let mut rounds = Rounds::new(self.job.clone(), vec![image], mask, Instant::now());
        rounds.resident = Some(resident);
        broker::run(rounds, output, Operation::prepare)
    }

    fn growth(&self) -> Growth {
        let image = self.job.inputs.first();
        image.map_or(Growth::AtMost { extra_bytes: 0 }, |image| image.growth)
    }
}

/// The same open file once more, with the same locks, as an earlier reader may have left it.
fn copy(image: &Opened) -> Result<Opened, MachineFailure> {
    let step = |step| move |source| MachineFailure::Start { step, source };
    let file = image.file.try_clone().map_err(step("dup"))?;
    let mut facts = image.facts.clone();
    refresh(&mut facts, &file).map_err(step("lseek"))?;
    Ok(Opened {
        file,
        facts,
        id: image.id,
        writable: image.writable,
        format_conflict: None,
        target: None,
    })
}

impl MachineFailure {
    /// Whether a disk's reader has ended, and said why.
    pub(crate) fn is_readers_end(&self) -> bool {
        match self {
            Self::Source(gone) | Self::Vm(VmError::Source(gone)) => *gone == SourceGone::ended(),
            _ => false,
        }
    }
}

/// Waits for the end of readers whose user has ended with `code`; the exit code of all of them: a reader that ends with
/// another one than 0 has told the user why.
///
/// # Errors
/// One was ended by a signal, or they ended as if nothing was wrong and their user knows better.
pub(crate) fn end(code: u8, readers: &[Child]) -> Result<u8, MachineFailure> {
    let ended = readers.iter().map(|reader| reader.end(GRACE));
    let codes: Vec<u8> = ended.collect::<Result<_, _>>()?;
    match (code, codes.into_iter().find(|code| *code != 0)) {
        (EXIT_READER_ENDED, None) => Err(SourceGone::ended().into()),
        (0 | EXIT_READER_ENDED, Some(code)) => Ok(code),
        _ => Ok(code),
    }
}

/// A disk whose reader has begun, in the process that is to use it.
#[derive(Debug)]
pub(crate) struct Unopened {
    channel: OwnedFd,
    /// Where the files come from that the reader opens.
    files: OwnedFd,
    image: Opened,
    growth: Growth,
    guessed: bool,
    name: PathBuf,
    serial: String,
    rate: Option<RateLimit>,
}

impl Unopened {
    /// Its descriptors.
    pub fn descriptors(&self) -> [RawFd; 3] {
        [
            self.channel.as_raw_fd(),
            self.files.as_raw_fd(),
            self.image.file.as_raw_fd(),
        ]
    }

    /// Waits until the reader says what the disk is, and takes the files that it opens before.
    ///
    /// # Errors
    /// [`SourceGone::ended`]: the reader has said why. Or what it says cannot be.
    pub fn open(self) -> Result<LiveDisk, MachineFailure> {
        let mut asker = Asker::new(self.channel);
        asker.begin_open()?;
        let named = named_files(asker.socket().as_fd(), self.files)?;
        let info = asker.end_open()?;
        let writable = self.image.writable;
        if self.guessed && asker.is_raw() && writable {
            // Its first bytes would be the guest's to write, and the format that they say then is another one.
            return Err(MachineFailure::Guessed(self.name));
        }
        let mut files = Vec::new();
        let image = (0, self.image.facts, writable, self.image.file);
        for (slot, facts, writable, file) in std::iter::once(image).chain(named) {
            let window = check::Window {
                writable,
                max_len_bytes: Window::of(self.growth, &facts, false).max_len_bytes(info.len_bytes),
            };
            let slot = usize::from(slot);
            if files.len() <= slot {
                files.resize(slot.saturating_add(1), None);
            }
            if let Some(place) = files.get_mut(slot) {
                *place = Some(LiveFile {
                    file: Arc::new(HostFile::new(file, facts.direct_align)),
                    window,
                    block_device: facts.block_device,
                });
            }
        }
        Ok(LiveDisk {
            asker,
            info,
            files,
            name: self.name,
            serial: self.serial,
            rate: self.rate,
        })
    }
}

/// A file that was opened for the reader: its slot, what is known about it, whether it may be written.
type Named = (u16, FileFacts, bool, File);

/// Takes files until the channel has an answer: all of them were sent before it.
fn named_files(channel: BorrowedFd<'_>, line: OwnedFd) -> Result<Vec<Named>, MachineFailure> {
    let mut named = Vec::new();
    loop {
        let mut polled = [
            PollFd::new(&line, PollFlags::IN),
            PollFd::from_borrowed_fd(channel, PollFlags::IN),
        ];
        match poll(&mut polled, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(failed("poll")(errno)),
        }
        let [sent, answered] = polled.map(|polled| !polled.revents().is_empty());
        if sent {
            let (packet, files) = passing::receive(&line).map_err(failed("recvmsg"))?;
            if packet.is_empty() {
                return Err(SourceGone::ended().into());
            }
            let unknown = MachineFailure::Protocol("a file that nobody asked for");
            let (slot, facts, writable) = wire::decode_shared(&packet).ok_or(unknown)?;
            let file = files.into_iter().next().ok_or(SourceGone::ended())?;
            named.push((slot, facts, writable, File::from(file)));
        } else if answered {
            return Ok(named);
        }
    }
}
