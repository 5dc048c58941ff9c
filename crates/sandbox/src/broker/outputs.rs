//! The files that a job makes, from their first write to their name.
//!
//! ```text
//!   Waiting --begin--> Begun --the job ended well--> it has its name
//!      |                 |
//!      '----------- anything else -----> not there; an older file: as it was, or
//!                                        empty if it had begun
//! ```

use crate::input::{Access, InputFile};
use crate::layout::Layout;
use crate::open::{self, Opened, Refusal};
use crate::output::JobError;
use crate::target::Target;
use crate::wire::Reply;
use rustix::io::Errno;
use std::fs::File;
use std::os::fd::AsFd;

/// A file that the job makes.
#[derive(Debug)]
struct OutputFile {
    slot: u16,
    file: File,
    target: Target,
    durable: bool,
    layout: Layout,
    /// The guest may write it now; what it held is gone.
    begun: bool,
    /// It has its name.
    named: bool,
}

/// All files that the job makes. Dropped before the job has ended well, they are abandoned.
#[derive(Debug)]
pub struct Outputs {
    files: Vec<OutputFile>,
    /// The name that errors show.
    name: Vec<u8>,
}

impl Outputs {
    /// Of the files that the user typed; `opened` are the same ones, which give up their targets.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn new(inputs: &[InputFile], opened: &mut [Opened]) -> std::io::Result<Self> {
        let mut outputs = Self {
            files: Vec::new(),
            name: open::name_of_target(inputs).to_vec(),
        };
        for (slot, (input, opened)) in (0..).zip(inputs.iter().zip(opened)) {
            let Some(target) = opened.target.take() else {
                continue;
            };
            let (durable, layout) = match input.access {
                Access::Create {
                    durable, layout, ..
                } => (durable, layout),
                _ => (false, Layout::USUAL),
            };
            outputs.files.push(OutputFile {
                slot,
                file: opened.file.try_clone()?,
                target,
                durable,
                layout,
                begun: false,
                named: false,
            });
        }
        Ok(outputs)
    }

    /// Whether the job makes no files.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The guest has all that it reads and is about to write the output in `slot`.
    pub fn begin(&mut self, slot: u16) -> Reply {
        let output = self.files.iter_mut().find(|output| output.slot == slot);
        match output.filter(|output| !output.begun) {
            None => Reply::Invalid,
            Some(output) => Reply::Begun(output.begin().map_err(Errno::raw_os_error)),
        }
    }

    /// Ends the outputs as the job ended: exit code 0 gives them their names, all else takes them away.
    ///
    /// # Errors
    /// `ended`, or why an output did not get its name.
    pub fn settle(&mut self, ended: Result<u8, JobError>) -> Result<u8, JobError> {
        let ended = match ended {
            Ok(0) => self.commit().map(|()| 0),
            other => other,
        };
        match ended {
            Ok(0) => self.files.clear(),
            _ => self.abandon(),
        }
        ended
    }

    fn commit(&mut self) -> Result<(), JobError> {
        if self.files.iter().any(|output| !output.begun) {
            return Err(JobError::WorkerProtocol("it wrote none of its output"));
        }
        for output in self.files.iter().filter(|output| output.durable) {
            let synced = rustix::fs::fsync(&output.file);
            synced
                .map_err(|errno| self.failed(output.slot, b"Could not flush the file: ", errno))?;
        }
        // The target names the others, so it comes last.
        for at in (0..self.files.len()).rev() {
            let named = self.files.get_mut(at).map_or(Ok(()), OutputFile::name_it);
            named.map_err(|errno| {
                let slot = self.files.get(at).map_or(0, |output| output.slot);
                let what = [b"Could not create '", self.name.as_slice(), b"': "].concat();
                self.failed(slot, &what, errno)
            })?;
        }
        Ok(())
    }

    fn failed(&self, slot: u16, what: &[u8], errno: Errno) -> JobError {
        let reason = [what, open::os_text(errno).as_bytes()].concat();
        let refusal = Refusal::failed(errno, reason);
        JobError::Open(refusal.of_typed(slot, &self.name, true))
    }

    /// Leaves nothing of what was not finished.
    fn abandon(&mut self) {
        for output in self.files.drain(..) {
            output.abandon();
        }
    }
}

impl Drop for Outputs {
    fn drop(&mut self) {
        self.abandon();
    }
}

impl OutputFile {
    /// Gives the errno that kept the file from the layout that the user wants, if one did; 0 if none.
    fn begin(&mut self) -> Result<i32, Errno> {
        if matches!(self.target, Target::Existing) {
            rustix::fs::ftruncate(&self.file, 0)?;
        }
        self.begun = true;
        let refused = match self.target {
            Target::New(_) | Target::Existing => self.layout.apply(self.file.as_fd()),
            Target::Device => None,
        };
        Ok(refused.map_or(0, Errno::raw_os_error))
    }

    /// Names a new file; others have their name.
    fn name_it(&mut self) -> Result<(), Errno> {
        let Target::New(new) = &mut self.target else {
            return Ok(());
        };
        new.name_it(self.file.as_fd())?;
        self.named = true;
        if self.durable {
            new.sync_name()
        } else {
            Ok(())
        }
    }

    fn abandon(self) {
        match &self.target {
            Target::New(new) if self.named => new.unname(),
            Target::Existing if self.begun => {
                // All that can be done; an error leaves what a power cut would.
                let _ = rustix::fs::ftruncate(&self.file, 0);
            }
            Target::New(_) | Target::Existing | Target::Device => {}
        }
    }
}
