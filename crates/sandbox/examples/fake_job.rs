//! A job whose machine is no machine: the sandbox's tests run it, and look.
//!
//! `fake_job SCENARIO IMAGE [ARGUMENT...]`; lines go to standard output, the
//! error to standard error. `ACCESS` (`change`, `raw`), `SHARE`, `UNLIMITED` and
//! `SECOND` (another image, which is read) `SEQUEL` and `FULLER` in the environment shape the job.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, missing_docs)]

use instar_sandbox::{
    Access, Confinement, FileTable, Growth, InputFile, Job, JobError, Machine, Output, Policy,
    Reads, Repair, run_job_on,
};
use instar_shared::control::{FileAccess, FileRequest, FileRole};
use instar_shared::info::ImageRecord;
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::record::{FailureKind, NeedsRepair, RecordKind};
use instar_shared::zerocopy::{FromZeros, IntoBytes};
use instar_vmm::operation::{
    Completed, Limits, OperationFile, OperationHost, OperationSpec, RESULT_BYTES, RunError,
    RunStats,
};
use rustix::fs::FallocateFlags;
use rustix::io::ReadWriteFlags;
use std::fs::File;
use std::io::{IoSlice, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// The program of a sequel.
const SEQUEL: &[u8] = b"sequel";
/// The fuller program of an operation.
const FULLER: &[u8] = b"fuller";

struct Lines {
    started: Instant,
}

impl Output for Lines {
    fn confined(&mut self, confinement: &Confinement) {
        say(&format!("landlock {:?}", confinement.landlock));
    }

    fn record(
        &mut self,
        kind: RecordKind,
        payload: &[u8],
        files: &FileTable,
    ) -> Result<(), String> {
        if kind == RecordKind::Line {
            say(&format!(
                "{} ({} files)",
                String::from_utf8_lossy(payload),
                files.iter().count()
            ));
        }
        if kind == RecordKind::Diagnostic {
            say(&String::from_utf8_lossy(payload));
        }
        if kind == RecordKind::Failure {
            say(&format!(
                "failed: {}",
                String::from_utf8_lossy(&payload[8..])
            ));
        }
        Ok(())
    }

    fn finish(self: Box<Self>, result: &[u8; RESULT_BYTES], files: &FileTable) -> u8 {
        for failed in files.failures() {
            say(&format!(
                "failure {:?}: {}",
                failed.kind,
                failed.reason.display()
            ));
        }
        say(&format!("finished after {:?}", self.started.elapsed()));
        result[4]
    }

    fn failed(self: Box<Self>, error: &JobError, _files: &FileTable) -> u8 {
        eprintln!("fake: {error}");
        1
    }
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

struct Fake {
    scenario: String,
    arguments: Vec<Vec<u8>>,
    config: Vec<u8>,
    is_sequel: bool,
    is_fuller: bool,
    cancel: &'static AtomicBool,
    socket: RawFd,
    files: Vec<OperationFile>,
}

/// The one socket among the descriptors that are left.
fn find_socket() -> RawFd {
    let is_socket = |fd: &RawFd| {
        // SAFETY: an all-zero stat is valid, and a closed descriptor is an error.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: as above; the pointer is valid for one stat.
        unsafe {
            libc::fstat(*fd, &raw mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFSOCK
        }
    };
    (3..64).find(is_socket).expect("the broker's socket")
}

fn send_raw(socket: RawFd, bytes: &[u8]) {
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: an all-zero header is valid; it then points to one valid buffer, which is only read.
    unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        libc::sendmsg(socket, &raw const header, libc::MSG_NOSIGNAL);
    }
}

/// More milliseconds than any test takes.
const FOR_EVER: u64 = 3_600_000;

fn pause(milliseconds: u64) {
    let (lock, never) = (Mutex::new(()), Condvar::new());
    let _ = never
        .wait_timeout(lock.lock().unwrap(), Duration::from_millis(milliseconds))
        .unwrap();
}

fn forbidden() {
    // SAFETY: opening a file for reading harms nothing.
    let fd = unsafe { libc::open(c"/etc/passwd".as_ptr(), libc::O_RDONLY) };
    say(&format!("opened {fd}"));
}

/// One of the calls that change a file; what it answered.
fn change(file: &File, call: &[u8]) -> String {
    let outcome = match call {
        b"pwritev2" => {
            rustix::io::pwritev2(file, &[IoSlice::new(b"new")], 0, ReadWriteFlags::empty())
                .map(|count| assert_eq!(count, 3))
        }
        b"fallocate" => rustix::fs::fallocate(file, FallocateFlags::empty(), 0, 8192),
        b"ftruncate" => rustix::fs::ftruncate(file, 100),
        b"fdatasync" => rustix::fs::fdatasync(file),
        b"discard" => {
            let range = [0_u64; 2];
            // SAFETY: the request reads two integers.
            let result = unsafe { libc::ioctl(file.as_raw_fd(), 0x1277, range.as_ptr()) };
            assert_eq!(result, -1, "a file is no device");
            Err(rustix::io::Errno::from_io_error(&std::io::Error::last_os_error()).unwrap())
        }
        _ => panic!("no such call"),
    };
    let call = String::from_utf8_lossy(call);
    format!("{call} {outcome:?}")
}

/// What no worker may do, whatever its job changes.
fn meddle(call: &[u8]) {
    let (name, other) = (c"top", c"other");
    // SAFETY: both names are literals; the calls touch no memory else.
    let result = unsafe {
        match call {
            b"create" => libc::open(other.as_ptr(), libc::O_CREAT | libc::O_WRONLY, 0o600),
            b"unlink" => libc::unlink(name.as_ptr()),
            b"rename" => libc::rename(name.as_ptr(), other.as_ptr()),
            b"link" => libc::link(name.as_ptr(), other.as_ptr()),
            b"truncate" => libc::truncate(name.as_ptr(), 0),
            b"chmod" => libc::chmod(name.as_ptr(), 0),
            b"mkdir" => libc::mkdir(other.as_ptr(), 0o700),
            b"socket" => libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0),
            _ => panic!("no such call"),
        }
    };
    say(&format!("meddled {result}"));
}

fn describe(file: &OperationFile) -> String {
    format!(
        "read-only {} device {} length {} most {}",
        file.read_only, file.block_device, file.len_bytes, file.max_len_bytes
    )
}

fn ended(outcome: Outcome, code: u8) -> Completed {
    let mut result = [0; RESULT_BYTES];
    result[..4].copy_from_slice(&outcome.raw().to_le_bytes());
    result[4] = code;
    Completed {
        result,
        stats: RunStats::default(),
    }
}

fn request(slot: u16, name: &[u8]) -> FileRequest {
    let mut request = FileRequest::new_zeroed();
    request.slot = u32::from(slot).into();
    request.role = FileRole::Backing.raw().into();
    request.access = FileAccess::Read.raw().into();
    request.parent_slot = u32::from(slot - 1).into();
    request.name_len = u32::try_from(name.len()).unwrap().into();
    request.name[..name.len()].copy_from_slice(name);
    request
}

impl Fake {
    /// Opens a chain: each name stands in the image before it.
    fn open(&self, host: &mut dyn OperationHost) -> Completed {
        for (slot, name) in (1..).zip(&self.arguments) {
            let line = match host.open_file(&request(slot, name)) {
                Ok(opened) => {
                    let mut content = vec![0; usize::try_from(opened.len_bytes).unwrap().min(64)];
                    // The filter knows no pread64: this is preadv2 with one buffer.
                    let read = rustix::io::preadv2(
                        &opened.file,
                        &mut [std::io::IoSliceMut::new(&mut content)],
                        0,
                        rustix::io::ReadWriteFlags::empty(),
                    );
                    format!(
                        "opened {} {:?} {}",
                        opened.len_bytes,
                        read,
                        String::from_utf8_lossy(&content)
                    )
                }
                Err(answer) => format!("answer {} {}", answer.status.get(), answer.errno.get()),
            };
            host.record(RecordKind::Line, line.as_bytes()).unwrap();
        }
        ended(Outcome::Done, 7)
    }

    /// Asks for each `ROLE ACCESS SLOT PARENT NAME`, and writes to what it may.
    fn open_each(&self, host: &mut dyn OperationHost) -> Completed {
        for one in self.arguments.chunks(5) {
            Self::open_one(one, host);
        }
        ended(Outcome::Done, 0)
    }

    fn open_one(arguments: &[Vec<u8>], host: &mut dyn OperationHost) {
        let text: Vec<&str> = arguments
            .iter()
            .map(|a| std::str::from_utf8(a).unwrap())
            .collect();
        let [role, access, slot, parent, name] = text[..] else {
            panic!("five arguments");
        };
        let mut request = request(slot.parse().unwrap(), name.as_bytes());
        request.parent_slot = parent.parse::<u32>().unwrap().into();
        if role == "data" {
            request.role = FileRole::Data.raw().into();
        }
        if access == "write" {
            request.access = FileAccess::ReadWrite.raw().into();
        }
        match host.open_file(&request) {
            Ok(opened) => {
                say(&describe(&opened));
                if access == "write" {
                    say(&change(&opened.file, b"pwritev2"));
                }
                if std::env::var_os("HOLD").is_some() {
                    say("running");
                    pause(FOR_EVER);
                }
            }
            Err(answer) => say(&format!(
                "answer {} {}",
                answer.status.get(),
                answer.errno.get()
            )),
        }
    }

    fn image_record(
        host: &mut dyn OperationHost,
        format: ImageFormat,
    ) -> Result<Completed, RunError> {
        let mut record = ImageRecord::new_zeroed();
        record.format = format.raw().into();
        host.record(RecordKind::Image, record.as_bytes())
            .map_err(RunError::Protocol)?;
        say("image accepted");
        Ok(ended(Outcome::Done, 0))
    }

    /// Asks again and again for a file that there is not, and says how often it had an answer.
    fn tireless(host: &mut dyn OperationHost) -> Completed {
        for answers in 1.. {
            let answer = host.open_file(&request(1, b"missing")).map(drop);
            if answer.is_err_and(|answer| answer.errno.get() != libc::ENOENT.unsigned_abs()) {
                break;
            }
            say(&format!("{answers} answers"));
        }
        // Its end comes from outside.
        pause(FOR_EVER);
        ended(Outcome::Done, 0)
    }

    fn hostile(&self, kind: &[u8]) -> Completed {
        match kind {
            b"garbage" => send_raw(self.socket, &[0xff; 100]),
            b"huge" => send_raw(self.socket, &[0; 8000]),
            b"short" => send_raw(self.socket, b"x"),
            b"flood" => (0..100_000).for_each(|_| {
                let mut empty = request(1, b"missing");
                empty.parent_slot = 0.into();
                send_raw(self.socket, &empty.as_bytes()[..24 + 7]);
            }),
            _ => panic!("no such scenario"),
        }
        pause(FOR_EVER);
        ended(Outcome::Done, 0)
    }
}

/// The first bytes of a file.
fn head(file: &File) -> Vec<u8> {
    let mut content = vec![0; 5];
    let mut parts = [std::io::IoSliceMut::new(&mut content)];
    let read = rustix::io::preadv2(file, &mut parts, 0, ReadWriteFlags::empty());
    content.truncate(read.unwrap());
    content
}

/// An operation that changes nothing that begins with "dirty", and its repair. The first argument says how that goes,
/// a second one names a data file that is written, too, and is the dirty one.
impl Fake {
    fn change_clean(self, host: &mut dyn OperationHost) -> Result<Completed, RunError> {
        host.record(RecordKind::Line, b"before").unwrap();
        let mut slot = 0;
        let mut named = None;
        if let Some(name) = self.arguments.get(1) {
            let mut request = request(1, name);
            request.role = FileRole::Data.raw().into();
            request.access = FileAccess::ReadWrite.raw().into();
            named =
                Some(host.open_file(&request).map_err(|answer| {
                    RunError::Protocol(format!("answer {}", answer.status.get()))
                })?);
            slot = 1;
        }
        if self.arguments[0] == b"elsewhere" {
            slot = 7;
        }
        let file = named.as_ref().unwrap_or(&self.files[0]);
        if head(&file.file) == b"dirty" {
            let needs = NeedsRepair {
                slot: slot.into(),
                flags: 0.into(),
            };
            host.record(RecordKind::NeedsRepair, needs.as_bytes())
                .unwrap();
            return Ok(ended(Outcome::Failed, 1));
        }
        let lacks = match self.arguments[0].as_slice() {
            b"lacking" => !self.is_fuller,
            b"insatiable" => true,
            _ => false,
        };
        if lacks {
            host.record(RecordKind::NeedsFuller, &[]).unwrap();
            return Ok(ended(Outcome::Failed, 1));
        }
        host.record(RecordKind::Line, describe(file).as_bytes())
            .unwrap();
        Ok(ended(Outcome::Done, 0))
    }

    fn repair(self, host: &mut dyn OperationHost) -> Completed {
        let opened = host.open_file(&request(1, b"sub/base"));
        host.record(
            RecordKind::Diagnostic,
            format!("repairs, may open: {}", opened.is_ok()).as_bytes(),
        )
        .unwrap();
        match self.arguments[0].as_slice() {
            b"well" | b"lacking" => {
                let file = &self.files[0].file;
                let parts = [IoSlice::new(b"clean, and longer")];
                rustix::io::pwritev2(file, &parts, 0, ReadWriteFlags::empty()).unwrap();
            }
            b"badly" => {
                let kind = FailureKind::OpenImage.raw().to_le_bytes();
                let record = [&kind[..], &[0; 4], b"no luck"].concat();
                host.record(RecordKind::Failure, &record).unwrap();
                return ended(Outcome::Failed, 1);
            }
            b"cancelled" => {
                say("running");
                while !self.cancel.load(Ordering::Relaxed) {
                    pause(10);
                }
                return ended(Outcome::Cancelled, 1);
            }
            b"stubborn" => {
                say("running");
                pause(FOR_EVER);
            }
            b"crash" => std::process::abort(),
            _ => {}
        }
        ended(Outcome::Done, 0)
    }
}

/// What follows an operation.
impl Fake {
    fn follow(self, host: &mut dyn OperationHost) -> Completed {
        if self.arguments.iter().any(|word| word == b"stubborn-sequel") {
            say("running");
            pause(FOR_EVER);
        }
        let text = format!("follows on {}", describe(&self.files[0]));
        host.record(RecordKind::Line, text.as_bytes()).unwrap();
        ended(Outcome::Done, 7)
    }
}

impl Machine for Fake {
    fn run(self, host: &mut dyn OperationHost) -> Result<Completed, RunError> {
        let argument = self.arguments.first().cloned().unwrap_or_default();
        if self.config == b"repair" {
            return Ok(self.repair(host));
        }
        if self.is_sequel {
            return Ok(self.follow(host));
        }
        if std::env::var_os("HOLD").is_none() {
            say("running");
        }
        match self.scenario.as_str() {
            "open" => return Ok(self.open(host)),
            "dirty" => return self.change_clean(host),
            "qcow2" => return Self::image_record(host, ImageFormat::Qcow2),
            "raw" => return Self::image_record(host, ImageFormat::Raw),
            "unsupported" => return Ok(ended(Outcome::Unsupported, 63)),
            "open-one" => return Ok(self.open_each(host)),
            "describe" => self.files.iter().for_each(|file| say(&describe(file))),
            "change" => {
                for call in &self.arguments {
                    say(&change(&self.files[0].file, call));
                }
            }
            "meddle" => meddle(&argument),
            "forbidden" => forbidden(),
            "executable" => {
                // SAFETY: a fresh mapping touches no memory that exists.
                unsafe {
                    let rwx = libc::PROT_READ | libc::PROT_EXEC;
                    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                    libc::mmap(std::ptr::null_mut(), 4096, rwx, flags, -1, 0);
                }
            }
            "write-file" => {
                // SAFETY: the descriptor is open and stays so; the buffer is a literal.
                unsafe { libc::write(self.socket, c"x".as_ptr().cast(), 1) };
            }
            "crash" => std::process::abort(),
            "cancel" => {
                while !self.cancel.load(Ordering::Relaxed) {
                    pause(10);
                }
                return Ok(ended(Outcome::Cancelled, 1));
            }
            "stubborn" => pause(FOR_EVER),
            "hostile" => return Ok(self.hostile(&argument)),
            "tireless" => return Ok(Self::tireless(host)),
            "protocol" => return Err(RunError::Protocol("as it was told to".into())),
            "result" => {
                // As the microVM's limits do.
                let _ = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            }
            _ => panic!("no such scenario"),
        }
        if !self.files.is_empty() && self.scenario == "never" {
            // Keeps the file alive.
            let _ = self.files[0].file.read_at(&mut [0], 0);
        }
        Ok(ended(Outcome::Done, 3))
    }
}

/// A file that nobody else may change.
fn input(path: String, access: Access) -> InputFile {
    InputFile {
        path: path.into(),
        described: None,
        direct: false,
        secrets: Vec::new(),
        share: false,
        access,
        growth: Growth::default(),
    }
}

/// The operation that repairs.
fn repairing() -> Repair {
    Repair {
        elf: &[],
        config: b"repair".to_vec(),
    }
}

fn main() {
    let started = Instant::now();
    let mut arguments = std::env::args_os().skip(1).map(OsStringExt::into_vec);
    let mut next = || String::from_utf8(arguments.next().expect("an argument")).unwrap();
    let (scenario, image) = (next(), next());
    let arguments: Vec<Vec<u8>> = arguments.collect();
    let reads = if ["unsupported", "result"].contains(&scenario.as_str()) {
        Reads::Contents
    } else {
        Reads::Metadata
    };
    let variable = |name: &str| std::env::var(name).ok();
    let access = match variable("ACCESS").as_deref() {
        None => Access::Read(reads),
        Some("change") => Access::Change,
        Some("raw") => Access::ChangeRaw,
        Some(other) => panic!("no such access: {other}"),
    };
    let growth = match variable("UNLIMITED") {
        None => Growth::default(),
        Some(_) => Growth::Unlimited,
    };
    let first = InputFile {
        share: variable("SHARE").is_some(),
        growth,
        ..input(image, access)
    };
    let second = variable("SECOND").map(|path| input(path, Access::Read(Reads::Contents)));
    let job = Job {
        elf: &[],
        config: Vec::new(),
        inputs: [first].into_iter().chain(second).collect(),
        secrets: Vec::new(),
        limits: Limits {
            memory_bytes: 0,
            stall: Duration::from_secs(60),
            timeout: None,
            spent: Duration::ZERO,
            threads: instar_vmm::operation::Threads::default(),
        },
        policy: Policy::new(Vec::new(), std::env::var_os(Policy::VARIABLE).as_deref()),
        repair: Some(repairing()),
        fuller: variable("FULLER").map(|_| FULLER),
        sequel: variable("SEQUEL").map(|_| SEQUEL),
    };
    // Descriptors that a worker must not have.
    // SAFETY: a fresh duplicate is owned by nobody else.
    let leak = unsafe { File::from_raw_fd(libc::dup2(2, 40)) };
    let prepare = |spec: OperationSpec| {
        Ok(Fake {
            scenario,
            arguments,
            is_sequel: spec.elf == SEQUEL,
            is_fuller: spec.elf == FULLER,
            config: spec.config,
            cancel: spec.cancel,
            socket: find_socket(),
            files: spec.files,
        })
    };
    let code = run_job_on(job, Box::new(Lines { started }), prepare);
    drop(leak);
    std::process::exit(code.into())
}
