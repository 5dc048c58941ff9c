//! A job that makes files, on a machine that is none: the sandbox's tests run it, and look.
//!
//! `make_job KIND=PATH... -- STEP...`. A `KIND` is `read`, `create`, `raw`, `durable` or `change`, by device
//! slot; a `STEP` is what the worker does, one of those in [`Fake::step`]. `FAIL` in the environment makes
//! system calls of both processes fail from the start: `NAME=ERRNO`, with commas between.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, missing_docs)]

use instar_sandbox::{
    Access, FileTable, Growth, InputFile, Job, JobError, Layout, Machine, Output, Policy, Reads,
    run_job_on,
};
use instar_shared::control::{FileAccess, FileRequest, FileRole};
use instar_shared::op::Outcome;
use instar_shared::record::RecordKind;
use instar_shared::zerocopy::FromZeros;
use instar_vmm::operation::{
    Completed, Limits, OperationFile, OperationHost, OperationSpec, RESULT_BYTES, RunError,
    RunStats,
};
use rustix::io::ReadWriteFlags;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

struct Words;

impl Output for Words {
    fn record(&mut self, _: RecordKind, _: &[u8], _: &FileTable) -> Result<(), String> {
        Ok(())
    }

    fn finish(self: Box<Self>, result: &[u8; RESULT_BYTES], files: &FileTable) -> u8 {
        for failed in files.failures().iter().filter(|failed| failed.output) {
            let (name, reason) = (failed.given_name.display(), failed.reason.display());
            eprintln!("make: {name}: {reason}");
        }
        result[4]
    }

    fn failed(self: Box<Self>, error: &JobError, _: &FileTable) -> u8 {
        match error {
            JobError::Open(failed) if failed.output => {
                let (name, reason) = (failed.given_name.display(), failed.reason.display());
                eprintln!("make: {name}: {reason}");
            }
            other => eprintln!("make: {other}"),
        }
        1
    }
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

/// More milliseconds than any test takes.
const FOR_EVER: u64 = 3_600_000;

fn pause(milliseconds: u64) {
    let (lock, never) = (Mutex::new(()), Condvar::new());
    let _ = never
        .wait_timeout(lock.lock().unwrap(), Duration::from_millis(milliseconds))
        .unwrap();
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

fn begins_with(file: &File, text: &[u8]) -> bool {
    let mut content = vec![0; text.len()];
    let mut parts = [IoSliceMut::new(&mut content)];
    let read = rustix::io::preadv2(file, &mut parts, 0, ReadWriteFlags::empty());
    read == Ok(text.len()) && content == text
}

struct Fake {
    steps: Vec<String>,
    cancel: &'static AtomicBool,
    files: Vec<OperationFile>,
}

impl Fake {
    fn step(&self, step: &str, host: &mut dyn OperationHost) -> Option<Completed> {
        let (name, arguments) = step.split_once('=').unwrap_or((step, ""));
        let (first, second) = arguments.split_once(',').unwrap_or((arguments, ""));
        match name {
            "announce" => {
                let answer = host.announce_size(first.parse().unwrap(), second.parse().unwrap());
                say(&format!("announce {answer:?}"));
            }
            "write" => {
                let file = &self.files[first.parse::<usize>().unwrap()].file;
                let text = [IoSlice::new(second.as_bytes())];
                match rustix::io::pwritev2(file, &text, 0, ReadWriteFlags::empty()) {
                    Ok(count) => assert_eq!(count, second.len()),
                    Err(errno) => {
                        say(&format!("write {}", errno.raw_os_error()));
                        return Some(ended(Outcome::Failed, 1));
                    }
                }
            }
            "open" => open(first, second, host),
            "describe" => self.files.iter().for_each(|file| {
                let (length, most) = (file.len_bytes, file.max_len_bytes);
                let read_only = file.read_only;
                say(&format!(
                    "read-only {read_only} length {length} most {most}"
                ));
            }),
            "hold" => {
                say("running");
                pause(FOR_EVER);
            }
            "until" => {
                say("running");
                let file = &self.files[first.parse::<usize>().unwrap()].file;
                while !begins_with(file, second.as_bytes()) {
                    pause(10);
                }
            }
            "cancel" => {
                say("running");
                while !self.cancel.load(Ordering::Relaxed) {
                    pause(10);
                }
                return Some(ended(Outcome::Cancelled, 1));
            }
            "crash" => std::process::abort(),
            "code" => return Some(ended(Outcome::Done, first.parse().unwrap())),
            _ => panic!("no such step"),
        }
        None
    }
}

/// Asks for the backing file of the image in slot `parent`.
fn open(parent: &str, name: &str, host: &mut dyn OperationHost) {
    let mut request = FileRequest::new_zeroed();
    request.slot = 9.into();
    request.role = FileRole::Backing.raw().into();
    request.access = FileAccess::Read.raw().into();
    request.parent_slot = parent.parse::<u32>().unwrap().into();
    request.name_len = u32::try_from(name.len()).unwrap().into();
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    match host.open_file(&request) {
        Ok(opened) => say(&format!("opened {}", opened.len_bytes)),
        Err(answer) => say(&format!(
            "answer {} {}",
            answer.status.get(),
            answer.errno.get()
        )),
    }
}

impl Machine for Fake {
    fn run(self, host: &mut dyn OperationHost) -> Result<Completed, RunError> {
        for step in &self.steps {
            if step == "fail" {
                return Err(RunError::Protocol("as it was told to".into()));
            }
            if let Some(completed) = self.step(step, host) {
                return Ok(completed);
            }
        }
        Ok(ended(Outcome::Done, 0))
    }
}

fn input(argument: &str) -> InputFile {
    let (kind, path) = argument.split_once('=').expect("KIND=PATH");
    let layout = Layout::USUAL;
    let create = |raw, durable| Access::Create {
        raw,
        durable,
        layout,
    };
    let access = match kind {
        "read" => Access::Read(Reads::Source),
        "create" => create(false, false),
        "raw" => create(true, false),
        "durable" => create(false, true),
        "change" => Access::Change,
        _ => panic!("no such kind"),
    };
    InputFile {
        described: None,
        direct: false,
        secrets: Vec::new(),
        path: path.into(),
        share: false,
        access,
        growth: Growth::default(),
    }
}

/// Makes the system calls named in `failures` fail, in this process and its children.
fn inject(failures: &str) {
    for failure in failures.split(',') {
        let (name, errno) = failure.split_once('=').expect("NAME=ERRNO");
        let temporary = u64::from(libc::O_TMPFILE.cast_unsigned());
        let condition = SeccompCondition::new(
            2,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::MaskedEq(temporary),
            temporary,
        );
        let always = Vec::new();
        let (call, rules) = match name {
            "tmpfile" => {
                let rule = SeccompRule::new(vec![condition.unwrap()]).unwrap();
                (libc::SYS_openat, vec![rule])
            }
            "linkat" => (libc::SYS_linkat, always),
            "renameat2" => (libc::SYS_renameat2, always),
            "fsync" => (libc::SYS_fsync, always),
            "ftruncate" => (libc::SYS_ftruncate, always),
            "pwritev2" => (libc::SYS_pwritev2, always),
            _ => panic!("no such call"),
        };
        let filter: BpfProgram = SeccompFilter::new(
            [(call, rules)].into_iter().collect(),
            SeccompAction::Allow,
            SeccompAction::Errno(errno.parse().unwrap()),
            std::env::consts::ARCH.try_into().unwrap(),
        )
        .unwrap()
        .try_into()
        .unwrap();
        seccompiler::apply_filter(&filter).unwrap();
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let inputs: Vec<InputFile> = arguments
        .by_ref()
        .take_while(|argument| argument != "--")
        .map(|argument| input(&argument))
        .collect();
    let steps: Vec<String> = arguments.collect();
    let job = Job {
        elf: &[],
        config: Vec::new(),
        inputs,
        secrets: Vec::new(),
        limits: Limits {
            memory_bytes: 0,
            stall: Duration::from_secs(60),
            timeout: None,
            spent: Duration::ZERO,
            threads: instar_vmm::operation::Threads::default(),
        },
        policy: Policy::default(),
        repair: None,
        fuller: None,
        sequel: None,
    };
    if let Ok(failures) = std::env::var("FAIL") {
        inject(&failures);
    }
    let prepare = |spec: OperationSpec| {
        Ok(Fake {
            steps,
            cancel: spec.cancel,
            files: spec.files,
        })
    };
    std::process::exit(run_job_on(job, Box::new(Words), prepare).into())
}
