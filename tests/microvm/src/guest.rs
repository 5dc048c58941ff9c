//! Runs the test guest, or any operation, in a microVM.

use anyhow::{Context, Result, bail, ensure};
use instar_shared::control::{FileRequest, FileResponse, FileStatus};
use instar_shared::info::ImageRecord;
use instar_shared::record::{Failure, Progress, RecordKind};
use instar_shared::zerocopy::{FromBytes, IntoBytes};
use instar_test_guests::{Case, DONE_MAGIC, GuestConfig, GuestResult, Step};
use instar_vmm::memory::GuestSlot;
use instar_vmm::operation::{
    Completed, Limits, Operation, OperationFile, OperationHost, OperationSpec, RunError, Said,
    Secret, Threads,
};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Bytes at an address that is a multiple of 8, so that ELF headers can be read in place.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static GUEST_ELF: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(
    env!("OUT_DIR"),
    "/instar-test-guests.elf"
)));

/// The ELF file of the guest that misbehaves.
pub static TEST_GUEST: &[u8] = &GUEST_ELF.0;

/// Most records that [`Host`] keeps; a guest that floods the stream sends on.
const KEPT_RECORDS: usize = 1000;

/// What became of a guest.
pub type Outcome = Result<Completed, RunError>;

type Opener = Box<dyn FnMut(&FileRequest) -> Result<OperationFile, FileResponse>>;
type Before = Box<dyn FnOnce(&Arc<GuestSlot>)>;
type OnRecord = Box<dyn FnMut(RecordKind, &[u8])>;

/// Limits of a second or so: 64 MiB, `stall` and `timeout` in milliseconds.
#[must_use]
pub const fn limits(stall: u64, timeout: u64) -> Limits {
    Limits {
        memory_bytes: 64 << 20,
        stall: Duration::from_millis(stall),
        timeout: Some(Duration::from_millis(timeout)),
        spent: Duration::ZERO,
        threads: Threads { io: 0, vcpus: 0 },
    }
}

/// `file` as a read-only device of its present length.
///
/// # Errors
/// What `fstat` says.
pub fn operation_file(file: File) -> Result<OperationFile> {
    let len_bytes = file.metadata()?.len();
    Ok(OperationFile {
        direct_align: 0,
        said: Said::default(),
        file,
        read_only: true,
        block_device: false,
        len_bytes,
        max_len_bytes: len_bytes,
    })
}

/// `file` as a device that may be written and made `max_len_bytes` long.
///
/// # Errors
/// What `fstat` says.
pub fn writable_file(file: File, max_len_bytes: u64) -> Result<OperationFile> {
    Ok(OperationFile {
        direct_align: 0,
        said: Said::default(),
        read_only: false,
        max_len_bytes,
        ..operation_file(file)?
    })
}

/// The owner of the microVM: validates records as far as the contract fixes their length.
pub struct Host {
    /// The first records.
    pub records: Vec<(RecordKind, Vec<u8>)>,
    /// Open requests, answered or not.
    pub opens: usize,
    opener: Option<Opener>,
    on_record: Option<OnRecord>,
}

impl OperationHost for Host {
    fn open_file(&mut self, request: &FileRequest) -> Result<OperationFile, FileResponse> {
        self.opens = self.opens.saturating_add(1);
        match &mut self.opener {
            Some(open) => open(request),
            None => Err(FileResponse {
                status: FileStatus::Refused.raw().into(),
                errno: 0.into(),
            }),
        }
    }

    fn record(&mut self, kind: RecordKind, payload: &[u8]) -> Result<(), String> {
        if !well_formed(kind, payload) {
            return Err(format!("malformed {kind:?} record"));
        }
        if let Some(look) = &mut self.on_record {
            look(kind, payload);
        }
        if self.records.len() < KEPT_RECORDS {
            self.records.push((kind, payload.to_vec()));
        }
        Ok(())
    }
}

fn well_formed(kind: RecordKind, payload: &[u8]) -> bool {
    match kind {
        RecordKind::Failure => Failure::read_from_prefix(payload).is_ok(),
        RecordKind::Progress => Progress::read_from_bytes(payload).is_ok(),
        RecordKind::Image => ImageRecord::read_from_prefix(payload).is_ok_and(|(image, names)| {
            let lens = [
                image.backing_len,
                image.backing_format_len,
                image.data_file_len,
            ];
            lens.iter().map(|len| u64::from(len.get())).sum::<u64>() == names.len() as u64
        }),
        _ => true,
    }
}

/// One run of the test guest.
pub struct Guest {
    case: Case,
    config: Vec<u8>,
    files: Vec<OperationFile>,
    secrets: Vec<Secret>,
    limits: Limits,
    cancel: &'static AtomicBool,
    host: Host,
    before: Option<Before>,
}

impl Guest {
    /// A guest that does `case`, without files, and may spend 1 s of the processor without progress and a minute in
    /// all.
    #[must_use]
    pub fn new(case: Case) -> Self {
        let (io, vcpus) = case.threads();
        let threads = Threads { io, vcpus };
        static NEVER: AtomicBool = AtomicBool::new(false);
        Self {
            case,
            config: GuestConfig::new(case).as_bytes().to_vec(),
            files: Vec::new(),
            secrets: Vec::new(),
            limits: Limits {
                threads,
                ..limits(1000, 60_000)
            },
            cancel: &NEVER,
            host: Host {
                records: Vec::new(),
                opens: 0,
                opener: None,
                on_record: None,
            },
            before: None,
        }
    }

    /// Sets the case's argument.
    #[must_use]
    pub fn argument(mut self, argument: u64) -> Self {
        let mut config = GuestConfig::new(self.case);
        config.argument.set(argument);
        self.config = config.as_bytes().to_vec();
        self
    }

    /// Sets the steps of [`Case::Script`].
    #[must_use]
    pub fn steps(mut self, steps: &[Step]) -> Self {
        self.config.extend(steps.as_bytes());
        self
    }

    /// Adds a file in the next slot.
    #[must_use]
    pub fn file(mut self, file: OperationFile) -> Self {
        self.files.push(file);
        self
    }

    /// Gives it a password.
    #[must_use]
    pub fn secret(mut self, secret: Secret) -> Self {
        self.secrets.push(secret);
        self
    }

    /// Sets other limits; the threads stay those of the case.
    #[must_use]
    pub const fn limits(mut self, limits: Limits) -> Self {
        let threads = self.limits.threads;
        self.limits = limits;
        self.limits.threads = threads;
        self
    }

    /// Sets the flag that a user's signal would set.
    #[must_use]
    pub const fn cancel(mut self, cancel: &'static AtomicBool) -> Self {
        self.cancel = cancel;
        self
    }

    /// Answers open requests.
    #[must_use]
    pub fn opener(
        mut self,
        open: impl FnMut(&FileRequest) -> Result<OperationFile, FileResponse> + 'static,
    ) -> Self {
        self.host.opener = Some(Box::new(open));
        self
    }

    /// Is called for each record.
    #[must_use]
    pub fn on_record(mut self, look: impl FnMut(RecordKind, &[u8]) + 'static) -> Self {
        self.host.on_record = Some(Box::new(look));
        self
    }

    /// Is shown the memory before the first instruction; it may keep it.
    #[must_use]
    pub fn before(mut self, look: impl FnOnce(&Arc<GuestSlot>) + 'static) -> Self {
        self.before = Some(Box::new(look));
        self
    }

    /// Gives it other threads than the case needs.
    #[must_use]
    pub const fn threads(mut self, io: u8, vcpus: u8) -> Self {
        self.limits.threads = Threads { io, vcpus };
        self
    }

    /// Runs it.
    ///
    /// # Errors
    /// The machine could not be made: this host lacks something. How the run ended is in the outcome.
    pub fn run(self) -> Result<(Outcome, Host)> {
        let mut host = self.host;
        let spec = OperationSpec {
            elf: TEST_GUEST,
            config: self.config,
            files: self.files,
            secrets: self.secrets,
            limits: self.limits,
            resident: false,
            cancel: self.cancel,
        };
        let operation = Operation::prepare(spec).context("preparing the microVM")?;
        if let Some(look) = self.before {
            look(&operation.memory());
        }
        Ok((operation.run(&mut host), host))
    }

    /// Runs it to its end; its answer, what it cost, and what it said.
    ///
    /// # Errors
    /// It came to no end, or its result is not the case's.
    pub fn finish(self) -> Result<(u64, Completed, Host)> {
        let case = self.case;
        let (outcome, host) = self.run()?;
        let completed = match outcome {
            Ok(completed) => completed,
            Err(error) => bail!("{}: {error}", case.name()),
        };
        Ok((answer(case, &completed)?, completed, host))
    }
}

/// The answer in the result of a guest that came to its end.
fn answer(case: Case, completed: &Completed) -> Result<u64> {
    let result = GuestResult::read_from_prefix(&completed.result);
    let Ok((result, _)) = result else {
        bail!("the result is too short");
    };
    ensure!(
        (result.magic.get(), result.case.get()) == (DONE_MAGIC, case.raw()),
        "{}: another result: {result:?}",
        case.name()
    );
    Ok(result.answer.get())
}
