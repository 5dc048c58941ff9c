//! A microVM that runs one operation binary to its end.
//!
//! [`Operation::prepare`] does everything that needs the host's permissions: it
//! opens the hypervisor, reserves memory, loads the image and makes the devices.
//! Between it and [`Operation::run`] the caller confines the process. While the
//! guest runs, what it asks for goes to an [`OperationHost`].

mod control;
mod crew;
mod devices;
mod limits;
mod machine;
mod records;
mod report;
mod resident;
mod secrets;

/// The parts that read what a guest writes, without a vCPU: for fuzzers.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod seam {
    pub use super::control::{
        Heap, announce_size, answer_memory, memory_wanted, open_file, take_record_bytes,
    };
    pub use super::devices::Devices;
    pub use super::records::RecordStream;
}

pub use crate::threads::{Confine, ThreadKind};
pub use machine::Operation;
pub use report::{CrashReport, RunError};
pub use resident::Resident;
pub use secrets::Secret;
pub use zeroize::Zeroizing;

use instar_shared::control::{FileRequest, FileResponse, SizeStatus};
use instar_shared::layout::MAX_VCPUS;
use instar_shared::record::RecordKind;
use std::fs::File;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Bytes of the result region that are handed over: the largest result struct fits.
pub const RESULT_BYTES: usize = 256;

/// A file that becomes a block device of the guest.
#[derive(Debug)]
pub struct OperationFile {
    /// The open file.
    pub file: File,
    /// Writes are refused by the device, whatever the descriptor allows.
    pub read_only: bool,
    /// A block device rather than a regular file.
    pub block_device: bool,
    /// Exact length in bytes when it was opened.
    pub len_bytes: u64,
    /// What the guest may make of it: a write, zeroes, reservation or length past this many bytes
    /// fails with EFBIG. Means nothing if the file is read-only.
    pub max_len_bytes: u64,
    /// It was opened with `O_DIRECT`, and takes multiples of so many bytes; 0: it goes through the page cache.
    pub direct_align: u32,
    /// What the user says about it beyond its name.
    pub said: Said,
}

/// What the user says about a file beyond its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Where in the file the image starts, in bytes; all other offsets and lengths count from there.
    pub start: u64,
    /// Where in the file the image ends, if not where the file does, in bytes.
    pub end: Option<u64>,
    /// `BELOW_*` and `DATA_FILE_*` of [`instar_shared::device`].
    pub below: u16,
    /// How it is encrypted, as qcow2 numbers it; 0: as it says.
    pub encryption: u16,
}

/// What an operation may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Size of the guest's heap in bytes; rounded down to 2 MiB.
    pub memory_bytes: u64,
    /// Longest guest CPU time without a completed request or a progress step.
    pub stall: Duration,
    /// Longest wall time of the whole run.
    pub timeout: Option<Duration>,
    /// What runs before this one have spent of it.
    pub spent: Duration,
    /// Threads beside the one that every run has.
    pub threads: Threads,
}

/// Threads that an operation asks for: none, unless it moves or computes a lot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Threads {
    /// I/O threads: long requests overlap with what the guest computes.
    pub io: u8,
    /// Further vCPUs, as many as the host has cores for: at most [`MAX_VCPUS`] - 1.
    pub vcpus: u8,
}

impl Threads {
    /// What this host can make of it. Further vCPUs need an I/O thread beside them.
    fn on_this_host(self) -> Self {
        if self.vcpus == 0 {
            return self;
        }
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let spare = u8::try_from(cores).unwrap_or(u8::MAX).saturating_sub(1);
        Self {
            io: self.io.max(1),
            vcpus: self.vcpus.min(spare).min(MAX_VCPUS.saturating_sub(1)),
        }
    }
}

/// What to run.
#[derive(Debug)]
pub struct OperationSpec {
    /// The operation binary.
    pub elf: &'static [u8],
    /// Bytes of the operation's config struct.
    pub config: Vec<u8>,
    /// Files by device slot.
    pub files: Vec<OperationFile>,
    /// Passwords for images that it opens or makes.
    pub secrets: Vec<Secret>,
    /// What it may use.
    pub limits: Limits,
    /// It is resident: it has the region for queries, which come from [`OperationHost::resident`].
    pub resident: bool,
    /// Set (by a signal handler) when the user cancels.
    pub cancel: &'static AtomicBool,
}

/// What the microVM asks of its owner while it runs.
pub trait OperationHost {
    /// Opens a file that an image names; the request's numbers have been validated.
    ///
    /// # Errors
    /// The answer that the guest gets instead.
    fn open_file(&mut self, request: &FileRequest) -> Result<OperationFile, FileResponse>;

    /// The guest is about to write the file in `slot`, which will hold `bytes` of content: the length
    /// past which the device now refuses a change ([`OperationFile::max_len_bytes`]).
    ///
    /// # Errors
    /// The answer that the guest gets instead.
    fn announce_size(&mut self, slot: u16, bytes: u64) -> Result<u64, (SizeStatus, u32)> {
        let _ = (slot, bytes);
        Err((SizeStatus::Invalid, 0))
    }

    /// Takes one record; the payload is untrusted.
    ///
    /// # Errors
    /// Why the record is malformed: the guest is stopped.
    fn record(&mut self, kind: RecordKind, payload: &[u8]) -> Result<(), String>;

    /// Who asks a resident guest.
    fn resident(&mut self) -> Option<&mut dyn Resident> {
        None
    }

    /// The run goes on: called a few times a second, whatever the guest does.
    fn tick(&mut self) {}
}

/// What a run cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunStats {
    /// VM exits, all kinds.
    pub exits: u64,
    /// From before the hypervisor was opened to the guest's first exit, less the time
    /// spent outside this module in between.
    pub setup: Duration,
    /// Memory granted on request, bytes.
    pub granted_bytes: u64,
}

/// The end of a run.
#[derive(Clone, Copy, Debug)]
pub struct Completed {
    /// Copy of the front of the result region; untrusted.
    pub result: [u8; RESULT_BYTES],
    /// What it cost.
    pub stats: RunStats,
}
