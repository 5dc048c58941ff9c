//! A job whose machine is no machine: the sandbox's tests run it, and look.
//!
//! `fake_job SCENARIO IMAGE [ARGUMENT...]`; lines go to standard output, the
//! error to standard error.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, missing_docs)]

use instar_sandbox::{
    Confinement, FileTable, InputFile, Job, JobError, Machine, Output, Policy, Reads, run_job_on,
};
use instar_shared::control::{FileAccess, FileRequest, FileRole};
use instar_shared::info::ImageRecord;
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::record::RecordKind;
use instar_shared::zerocopy::{FromZeros, IntoBytes};
use instar_vmm::operation::{
    Completed, Limits, OperationHost, OperationSpec, RESULT_BYTES, RunError, RunStats,
};
use std::fs::File;
use std::io::Write;
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

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
    cancel: &'static AtomicBool,
    socket: RawFd,
    files: Vec<instar_vmm::operation::OperationFile>,
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
        pause(60_000);
        ended(Outcome::Done, 0)
    }
}

impl Machine for Fake {
    fn run(self, host: &mut dyn OperationHost) -> Result<Completed, RunError> {
        let argument = self.arguments.first().cloned().unwrap_or_default();
        say("running");
        match self.scenario.as_str() {
            "open" => return Ok(self.open(host)),
            "qcow2" => return Self::image_record(host, ImageFormat::Qcow2),
            "raw" => return Self::image_record(host, ImageFormat::Raw),
            "unsupported" => return Ok(ended(Outcome::Unsupported, 63)),
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
            "stubborn" => pause(60_000),
            "hostile" => return Ok(self.hostile(&argument)),
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

fn main() {
    let started = Instant::now();
    let mut arguments = std::env::args_os().skip(1).map(OsStringExt::into_vec);
    let mut next = || String::from_utf8(arguments.next().expect("an argument")).unwrap();
    let (scenario, image) = (next(), next());
    let arguments: Vec<Vec<u8>> = arguments.collect();
    let reads = if scenario == "unsupported" || scenario == "result" {
        Reads::Contents
    } else {
        Reads::Metadata
    };
    let share = std::env::var_os("SHARE").is_some();
    let job = Job {
        elf: &[],
        config: Vec::new(),
        input: InputFile {
            path: image.into(),
            share,
        },
        reads,
        limits: Limits {
            memory_bytes: 0,
            stall: Duration::from_secs(60),
            timeout: None,
        },
        policy: Policy::new(Vec::new(), std::env::var_os(Policy::VARIABLE).as_deref()),
    };
    // Descriptors that a worker must not have.
    // SAFETY: a fresh duplicate is owned by nobody else.
    let leak = unsafe { File::from_raw_fd(libc::dup2(2, 40)) };
    let prepare = |spec: OperationSpec| {
        Ok(Fake {
            scenario,
            arguments,
            cancel: spec.cancel,
            socket: find_socket(),
            files: spec.files,
        })
    };
    let code = run_job_on(job, Box::new(Lines { started }), prepare);
    drop(leak);
    std::process::exit(code.into())
}
