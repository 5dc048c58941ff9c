//! What the job's output code sees: files by slot, failed opens, errors.

use crate::confine::Confinement;
use crate::jail::JailError;
use instar_shared::control::FileRole;
use instar_shared::record::RecordKind;
use instar_vmm::VmError;
use instar_vmm::operation::{RESULT_BYTES, RunError, RunStats};
use std::collections::BTreeMap;
use std::ffi::OsString;

/// A file by device slot: what the host knows without parsing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// The name as qemu-img shows it: typed or combined with its parent's folder, without `file:`.
    pub name: OsString,
    /// The same as errors show it: with its prefix.
    pub given_name: OsString,
    /// Length in bytes when it was opened; 0 for a character device.
    pub len_bytes: u64,
    /// Disk space in use, bytes.
    pub disk_bytes: u64,
    /// A block device.
    pub block_device: bool,
    /// A character device: it counts as empty, and its own descriptor stays closed.
    pub character_device: bool,
    /// It is reached past the page cache, in multiples of so many bytes; 0: through it.
    pub direct_align: u32,
    /// Where in the file the image starts, in bytes.
    pub start_bytes: u64,
    /// Slot of the image that names this file; `None` for a file that the user typed.
    pub parent_slot: Option<u16>,
}

impl FileFacts {
    /// The protocol as qemu-img names it: `file` or `host_device`.
    #[must_use]
    pub const fn protocol(&self) -> &'static str {
        if self.block_device || self.character_device {
            "host_device"
        } else {
            "file"
        }
    }
}

/// An open that failed, with what its sentence is made of.
///
/// qemu-img's line is `Could not open '<given_name>': <reason>` for a chain that
/// is opened image by image, and `Could not open '<top>': Could not open backing
/// file: <reason>` (repeated for each image in between) for one opened at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedOpen {
    /// Slot that the file should have got.
    pub slot: u16,
    /// Slot of the image that names it; `None` for a file that the user typed.
    pub parent_slot: Option<u16>,
    /// What it is to that image; `None` for a file that the user typed.
    pub role: Option<FileRole>,
    /// It is about a file that the job makes: qemu-img's line is `<given_name>: <reason>`, with what it was
    /// doing in between. The name is that of the job's target, for its external data file too.
    pub output: bool,
    /// What went wrong.
    pub kind: OpenFailure,
    /// The name as typed, or as resolved, with its prefix.
    pub given_name: OsString,
    /// The reason in qemu-img's words; holds the name, so any bytes, and newlines.
    pub reason: OsString,
}

/// What kind of failure an open was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenFailure {
    /// The operating system refused, or the file is of the wrong type; the errno, Linux numbering.
    Failed(i32),
    /// The path policy refused.
    Refused,
    /// The file is in the chain already. qemu-img: `Backing file '<given_name>' creates an infinite loop.`
    Loop,
    /// Another process holds the image.
    InUse,
}

/// The files of a job, and the opens that failed.
#[derive(Clone, Debug, Default)]
pub struct FileTable {
    files: BTreeMap<u16, FileFacts>,
    failed: Vec<FailedOpen>,
}

impl FileTable {
    /// A table with nothing but a failure.
    pub(crate) fn with_failure(failed: FailedOpen) -> Self {
        Self {
            files: BTreeMap::new(),
            failed: vec![failed],
        }
    }

    /// A table with the files that the user typed, from slot 0 on.
    pub(crate) fn with_inputs(facts: impl IntoIterator<Item = FileFacts>) -> Self {
        Self {
            files: (0..).zip(facts).collect(),
            failed: Vec::new(),
        }
    }

    pub(crate) fn insert(&mut self, slot: u16, facts: FileFacts) {
        self.files.insert(slot, facts);
    }

    pub(crate) fn push_failure(&mut self, failed: FailedOpen) {
        self.failed.push(failed);
    }

    /// The file in `slot`.
    #[must_use]
    pub fn get(&self, slot: u16) -> Option<&FileFacts> {
        self.files.get(&slot)
    }

    /// All files, by slot.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &FileFacts)> {
        self.files.iter().map(|(slot, facts)| (*slot, facts))
    }

    /// Opens that failed, oldest first.
    #[must_use]
    pub fn failures(&self) -> &[FailedOpen] {
        &self.failed
    }

    /// The newest failure of a file for `slot`.
    #[must_use]
    pub fn failure(&self, slot: u16) -> Option<&FailedOpen> {
        self.failed.iter().rev().find(|failed| failed.slot == slot)
    }

    /// How many images lie between `slot` and the typed one that it hangs on; `None` if the slot is empty.
    #[must_use]
    pub fn depth(&self, slot: u16) -> Option<usize> {
        let mut at = self.get(slot)?;
        for depth in 0..=self.files.len() {
            match at.parent_slot {
                None => return Some(depth),
                Some(parent) => at = self.get(parent)?,
            }
        }
        None
    }
}

/// Why a job has no result.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// A file could not be opened, or is in use.
    #[error("Could not open '{}': {}", .0.given_name.to_string_lossy(), .0.reason.to_string_lossy())]
    Open(FailedOpen),
    /// Broker or worker could not be started.
    #[error("cannot start the worker process: {step}: {source}")]
    Start {
        /// The system call.
        step: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The worker could not be confined, so nothing was run.
    #[error("the worker could not be confined: {0}")]
    Jail(#[from] JailError),
    /// The microVM could not be made.
    #[error(transparent)]
    Vm(VmError),
    /// The guest did not end well.
    #[error(transparent)]
    Run(RunError),
    /// A signal ended the worker.
    #[error("{}", death(*.signal))]
    WorkerDied {
        /// The signal.
        signal: i32,
    },
    /// The worker said what no worker says.
    #[error(
        "the worker broke its contract with the broker ({0}) and was killed; please report this"
    )]
    WorkerProtocol(&'static str),
    /// SIGINT or SIGTERM came, and the worker had to be killed.
    #[error("the operation was killed before it came to an end")]
    Killed,
}

/// How `signal` ended the worker, as a sentence.
pub(crate) fn death(signal: i32) -> String {
    let name = match signal {
        libc::SIGSYS => {
            return "the worker was stopped by its seccomp filter (SIGSYS); please report this"
                .into();
        }
        libc::SIGKILL => {
            return "the worker was killed (SIGKILL); the system may be out of memory".into();
        }
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGBUS => "SIGBUS",
        libc::SIGABRT => "SIGABRT",
        libc::SIGILL => "SIGILL",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        _ => return format!("the worker was ended by signal {signal}"),
    };
    format!("the worker was ended by signal {signal} ({name})")
}

/// Turns records and the result into output; lives in the confined worker.
///
/// The broker keeps a copy as it was when the worker was forked, and calls
/// [`Output::failed`] on it when the worker died. So nothing may wait in a
/// buffer that both would print when a job is started.
pub trait Output {
    /// What holds the worker; called once, before the guest's first instruction.
    fn confined(&mut self, _confinement: &Confinement) {}

    /// Takes one record; the payload is untrusted.
    ///
    /// # Errors
    /// Why the record is malformed: the guest is stopped.
    fn record(&mut self, kind: RecordKind, payload: &[u8], files: &FileTable)
    -> Result<(), String>;

    /// The worker ends, and another one goes on with a copy of this as it was at the start: what waits in a buffer is
    /// to be written. For outputs of jobs that have a [`crate::Repair`].
    fn pause(&mut self) {}

    /// The operation has ended well, and its sequel goes on, with a copy of this on which [`Output::go_on`] is called.
    /// Called before [`Output::pause`].
    fn hand_on(&mut self) {}

    /// This is the output of a sequel.
    fn go_on(&mut self) {}

    /// What the run cost; called when the guest ended well, before [`Output::finish`].
    fn ran(&mut self, _stats: &RunStats) {}

    /// After the guest ended well; returns the process's exit code.
    fn finish(self: Box<Self>, result: &[u8; RESULT_BYTES], files: &FileTable) -> u8;

    /// After anything else; prints one sentence; returns the exit code.
    fn failed(self: Box<Self>, error: &JobError, files: &FileTable) -> u8;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(parent_slot: Option<u16>) -> FileFacts {
        FileFacts {
            direct_align: 0,
            start_bytes: 0,
            name: "n".into(),
            given_name: "n".into(),
            len_bytes: 0,
            disk_bytes: 0,
            block_device: false,
            character_device: false,
            parent_slot,
        }
    }

    #[test]
    fn depth_counts_the_images_above() {
        let mut table = FileTable::with_inputs([facts(None)]);
        table.insert(1, facts(Some(0)));
        table.insert(7, facts(Some(1)));
        assert_eq!(
            [0, 1, 7, 2].map(|slot| table.depth(slot)),
            [Some(0), Some(1), Some(2), None]
        );
    }

    #[test]
    fn depth_of_a_ring_is_none() {
        let mut table = FileTable::with_inputs([facts(Some(1))]);
        table.insert(1, facts(Some(0)));
        assert_eq!(table.depth(1), None);
    }

    #[test]
    fn worker_death_by_filter_says_so() {
        let text = JobError::WorkerDied { signal: 31 }.to_string();
        assert!(text.contains("stopped by its seccomp filter"), "{text}");
    }
}
