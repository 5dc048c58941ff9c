//! A job in rounds: the operation, the repairs of what it is to change, and its sequel.
//!
//! An image that is marked dirty must be repaired before anything else changes it. The operation finds that out and ends
//! before it writes. The image is then repaired by an operation of its own, and the first one runs again from the start:
//! each round has a worker and a broker of its own, confined as ever.
//!
//! ```text
//!   round 1: broker -- forks --> worker (operation)
//!              |
//!              '----- forks --> spare, waits ---- told that an image is dirty ---> round 2: broker -- forks --> worker (repair)
//!                                '--- told nothing, the job has ended: ends                   |
//!                                                                                             '--- forks --> spare -> round 3
//! ```
//!
//! An operation may have a sequel: another program, for what is done when all else has been, with the same config on the
//! same files. It is run in a round of its own once the operation has ended well, and ends the job in its place.
//!
//! An operation may have a fuller program, with a part that few runs need. The operation that finds that it lacks this part
//! ends before it writes, as with an image that is dirty, and the fuller program runs from the start in its place.
//!
//! The spare process is forked while nothing is confined yet, and does nothing until its turn: a confined broker cannot
//! make a worker. It has inherited the files that the user named; those that images named come with its orders. So their
//! locks are never lost. The broker of an earlier round waits for it, and passes on signals and the exit code.

use crate::Job;
use crate::broker::{Files, Kept};
use crate::input::{Access, InputFile};
use crate::open::{FileId, Opened};
use crate::output::{FileFacts, FileTable};
use crate::wire::{Dirty, Next};
use instar_vmm::operation::{Limits, Secret, Threads};
use nix::sys::signal::SigSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Instant;

/// The operation that repairs an image before another one changes it.
#[derive(Clone, Debug)]
pub struct Repair {
    /// The operation binary. It reports failures as all do, and nothing but its outcome counts of its result.
    pub elf: &'static [u8],
    /// Bytes of its config struct: the image is in slot 0.
    pub config: Vec<u8>,
}

/// A job, and how far it is.
#[derive(Debug)]
pub struct Rounds {
    /// What the whole is about.
    pub job: Job,
    /// The files that the user typed, by slot.
    pub inputs: Vec<Opened>,
    /// Signal mask to run with.
    pub mask: SigSet,
    /// Files that an image named and an earlier round wrote.
    pub kept: Vec<Kept>,
    /// What this round does.
    pub turn: Turn,
    /// Hangs up if the whole job is to end, or has; `None` in the first round.
    pub boss: Option<OwnedFd>,
    /// Images that have been repaired, and the complaint about it if it is not empty.
    tried: Vec<(FileId, Vec<u8>)>,
    /// Lines of the operation that the user has seen.
    shown: u64,
    /// The operation's fuller program runs in its place.
    fuller: bool,
    started: Instant,
    /// Who asks an operation that is resident.
    pub resident: Option<Resident>,
}

/// What a resident operation is used by: one that stays, and answers.
#[derive(Debug)]
pub struct Resident {
    /// On which it is asked.
    channel: OwnedFd,
    /// Where the files go that are opened for it.
    files: Option<OwnedFd>,
}

impl Resident {
    /// Its ends of two lines.
    #[cfg(target_arch = "x86_64")]
    pub const fn new(channel: OwnedFd, files: OwnedFd) -> Self {
        Self {
            channel,
            files: Some(files),
        }
    }

    /// The line for files, which is the broker's.
    pub const fn take_files(&mut self) -> Option<OwnedFd> {
        self.files.take()
    }
}

/// What a round does.
#[derive(Debug)]
pub enum Turn {
    /// It runs the operation, whose first lines the user has seen already.
    Operation {
        /// How many.
        shown: u64,
    },
    /// It repairs an image.
    Repair {
        /// The image as a file that is changed.
        input: Box<(InputFile, Opened)>,
        /// What is found is not told.
        silent: bool,
    },
    /// It runs the operation's sequel.
    Sequel,
}

/// What is run in a round.
#[derive(Debug)]
pub struct Program {
    /// The operation binary.
    pub elf: &'static [u8],
    /// Its config.
    pub config: Vec<u8>,
    /// The files, by slot.
    pub inputs: Vec<(InputFile, Opened)>,
    /// Passwords for the images; a repair needs none.
    pub secrets: Vec<Secret>,
    /// What the guest may use.
    pub limits: Limits,
    /// Lines that are not shown again; `None`: it is a repair.
    pub shown: Option<u64>,
    /// Another program ends what it begins.
    pub has_sequel: bool,
    /// A repair says nothing.
    pub silent: bool,
    /// On which it is asked, if it is resident.
    pub channel: Option<OwnedFd>,
}

impl Rounds {
    /// The first round of a job.
    pub fn new(job: Job, inputs: Vec<Opened>, mask: SigSet, started: Instant) -> Self {
        Self {
            job,
            inputs,
            mask,
            kept: Vec::new(),
            turn: Turn::Operation { shown: 0 },
            boss: None,
            tried: Vec::new(),
            shown: 0,
            fuller: false,
            started,
            resident: None,
        }
    }

    /// Whether another round can follow on this one.
    pub fn may_go_on(&self) -> bool {
        match &self.turn {
            Turn::Operation { .. } => {
                self.job.repair.is_some() || self.has_sequel() || self.has_fuller()
            }
            Turn::Repair { .. } => true,
            Turn::Sequel => false,
        }
    }

    /// Whether this round is the operation's, and that has a sequel.
    pub fn has_sequel(&self) -> bool {
        matches!(self.turn, Turn::Operation { .. }) && self.job.sequel.is_some()
    }

    /// Whether this round is the operation's, and that has a fuller program which does not run yet.
    pub fn has_fuller(&self) -> bool {
        let operates = matches!(self.turn, Turn::Operation { .. });
        operates && !self.fuller && self.job.fuller.is_some()
    }

    /// What the broker of this round may open. What is kept is its from now on.
    pub fn files(&mut self) -> Files {
        match &self.turn {
            Turn::Operation { .. } | Turn::Sequel => {
                Files::new(&self.job, &self.inputs, std::mem::take(&mut self.kept))
            }
            Turn::Repair { .. } => Files::none(),
        }
    }

    /// The files of this round, as its errors name them.
    pub fn table(&self) -> FileTable {
        match &self.turn {
            Turn::Operation { .. } | Turn::Sequel => {
                FileTable::with_inputs(self.inputs.iter().map(|input| input.facts.clone()))
            }
            Turn::Repair { input, .. } => FileTable::with_inputs([input.1.facts.clone()]),
        }
    }

    /// Images that have been repaired.
    pub fn tried(&self) -> Vec<(FileId, Vec<u8>)> {
        self.tried.clone()
    }

    /// What this round's worker runs.
    pub fn into_program(self) -> Program {
        let has_sequel = self.has_sequel();
        let job = self.job;
        let mut limits = job.limits;
        limits.spent = self.started.elapsed();
        let channel = self.resident.map(|resident| resident.channel);
        let operation = |limits, elf, secrets, shown| Program {
            elf,
            config: job.config,
            inputs: job.inputs.into_iter().zip(self.inputs).collect(),
            secrets,
            limits,
            shown: Some(shown),
            has_sequel,
            silent: false,
            channel,
        };
        match self.turn {
            Turn::Operation { shown } => {
                let fuller = job.fuller.filter(|_| self.fuller);
                operation(limits, fuller.unwrap_or(job.elf), job.secrets, shown)
            }
            Turn::Sequel => {
                limits.threads = Threads::default();
                let elf = job.sequel.unwrap_or_default();
                operation(limits, elf, Vec::new(), 0)
            }
            Turn::Repair { input, silent } => {
                limits.threads = Threads::default();
                let (elf, config) = job
                    .repair
                    .map_or((&[][..], Vec::new()), |repair| (repair.elf, repair.config));
                Program {
                    elf,
                    config,
                    inputs: vec![*input],
                    secrets: Vec::new(),
                    limits,
                    shown: None,
                    has_sequel,
                    silent,
                    channel: None,
                }
            }
        }
    }

    /// The round that follows on this one, with the files that the order came with.
    ///
    /// # Errors
    /// A descriptor could not be had, or the order makes no sense.
    pub fn next(mut self, next: Next, files: Vec<OwnedFd>) -> std::io::Result<Self> {
        for file in files.into_iter().map(File::from) {
            let id = FileId::of(&rustix::fs::fstat(&file)?);
            self.kept.retain(|kept| kept.id != id);
            self.kept.push(Kept { id, file });
        }
        self.turn = match next {
            Next::Repair { dirty, root, facts } => self.repair(dirty, root, facts)?,
            Next::Again(complaint) => {
                if let Some((_, last)) = self.tried.last_mut() {
                    *last = complaint;
                }
                self.refresh_all()?;
                Turn::Operation { shown: self.shown }
            }
            Next::Sequel => {
                self.refresh_all()?;
                Turn::Sequel
            }
            Next::Fuller(shown) => {
                self.refresh_all()?;
                self.fuller = true;
                self.shown = shown;
                Turn::Operation { shown }
            }
        };
        Ok(self)
    }

    fn refresh_all(&mut self) -> std::io::Result<()> {
        let mut inputs = self.inputs.iter_mut();
        inputs.try_for_each(|input| refresh(&mut input.facts, &input.file))
    }

    fn repair(&mut self, dirty: Dirty, root: u16, facts: FileFacts) -> std::io::Result<Turn> {
        let unknown = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let typed = self.inputs.get(usize::from(dirty.slot));
        let file = match (typed, self.kept.last()) {
            (Some(typed), _) => typed.file.try_clone()?,
            // The broker sends it last.
            (None, Some(kept)) => kept.file.try_clone()?,
            (None, None) => return Err(unknown()),
        };
        let root = self.job.inputs.get(usize::from(root)).ok_or_else(unknown)?;
        // Of what it hangs on the user may have said something, too; the repair needs it for a typed image alone.
        let described = typed.and(root.described.clone());
        let input = InputFile {
            direct: root.direct,
            path: facts.name.clone().into(),
            described,
            secrets: Vec::new(),
            share: false,
            access: Access::Change,
            growth: root.growth,
        };
        let mut opened = Opened {
            id: FileId::of(&rustix::fs::fstat(&file)?),
            file,
            facts,
            writable: true,
            format_conflict: None,
            target: None,
        };
        opened.facts.parent_slot = None;
        refresh(&mut opened.facts, &opened.file)?;
        self.tried.push((opened.id, Vec::new()));
        self.shown = dirty.shown;
        Ok(Turn::Repair {
            input: Box::new((input, opened)),
            silent: dirty.silent,
        })
    }
}

/// What others have made of the file's length since it was opened.
///
/// # Errors
/// The system's.
pub fn refresh(facts: &mut FileFacts, file: &File) -> std::io::Result<()> {
    if !facts.character_device {
        facts.len_bytes = rustix::fs::seek(file, rustix::fs::SeekFrom::End(0))?;
        let blocks = rustix::fs::fstat(file)?.st_blocks;
        facts.disk_bytes = u64::try_from(blocks).unwrap_or(0).saturating_mul(512);
    }
    Ok(())
}
