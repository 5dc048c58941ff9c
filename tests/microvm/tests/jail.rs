//! Guests beside which threads work, in the worker: its filters leave each thread what it needs.

use anyhow::{Context, Result, ensure};
use instar_microvm_tests::{Failed, TEST_GUEST, alone, limits};
use instar_sandbox::{Access, FileTable, Growth, InputFile, Job, JobError, Output, Policy, Reads};
use instar_shared::record::RecordKind;
use instar_test_guests::{Case, DONE_MAGIC, GuestConfig};
use instar_tests::rng::Rng;
use instar_vmm::operation::{Limits, RESULT_BYTES, Threads};
use std::path::{Path, PathBuf};
use zerocopy::IntoBytes;

/// Exit code of a guest that came to its end, of one that left another result, and of anything else.
const DONE: u8 = 0;
const OTHER: u8 = 3;
const FAILED: u8 = 4;

/// Looks only at how it ended.
struct Ending;

impl Output for Ending {
    fn record(&mut self, _: RecordKind, _: &[u8], _: &FileTable) -> Result<(), String> {
        Ok(())
    }

    fn finish(self: Box<Self>, result: &[u8; RESULT_BYTES], _: &FileTable) -> u8 {
        if result.starts_with(&DONE_MAGIC.to_le_bytes()) {
            DONE
        } else {
            OTHER
        }
    }

    fn failed(self: Box<Self>, error: &JobError, _: &FileTable) -> u8 {
        eprintln!("{error}");
        FAILED
    }
}

/// Runs `case` with these files, the second of which is changed, as the command line does.
fn run(case: Case, argument: u64, files: &[PathBuf], threads: Threads) -> u8 {
    let mut config = GuestConfig::new(case);
    config.argument.set(argument);
    let accesses = [Access::Read(Reads::Contents), Access::ChangeRaw];
    let inputs = files.iter().zip(accesses);
    let inputs = inputs.map(|(path, access)| InputFile {
        described: None,
        direct: false,
        secrets: Vec::new(),
        path: path.clone(),
        share: false,
        access,
        growth: Growth::default(),
    });
    let job = Job {
        elf: TEST_GUEST,
        config: config.as_bytes().to_vec(),
        inputs: inputs.collect(),
        secrets: Vec::new(),
        limits: Limits {
            threads,
            ..limits(10_000, 60_000)
        },
        policy: Policy {
            allowed: Vec::new(),
            base: None,
        },
        repair: None,
        fuller: None,
        sequel: None,
    };
    instar_sandbox::run_job(job, Box::new(Ending))
}

/// [`run`] in a process of its own, which is left confined; its exit code.
fn ended(case: Case, argument: u64, files: &[PathBuf], threads: Threads) -> Result<u8> {
    // SAFETY: this process has one thread; the child ends by `_exit`.
    let child = unsafe { libc::fork() };
    ensure!(child >= 0, "fork: {}", std::io::Error::last_os_error());
    if child == 0 {
        let code = run(case, argument, files, threads);
        // SAFETY: ends the process without running the parent's exit handlers.
        unsafe { libc::_exit(code.into()) };
    }
    let mut status = 0;
    // SAFETY: our own child; the status is a local.
    while unsafe { libc::waitpid(child, &raw mut status, 0) } != child {}
    ensure!(libc::WIFEXITED(status), "{}: status {status}", case.name());
    Ok(u8::try_from(libc::WEXITSTATUS(status))?)
}

fn folder() -> Result<tempfile::TempDir> {
    let this = std::env::current_exe()?;
    let folder = this.parent().context("a test has a folder")?;
    Ok(tempfile::tempdir_in(folder)?)
}

fn random_file(path: &Path, len: usize) -> Result<Vec<u8>> {
    let mut rng = Rng::for_test("jailed threads");
    let bytes: Vec<u8> = (0..len / 8)
        .flat_map(|_| rng.next_u64().to_le_bytes())
        .collect();
    std::fs::write(path, &bytes)?;
    Ok(bytes)
}

#[test]
fn jailed_threads_copy_files() -> Result<(), Failed> {
    alone(|| {
        let folder = folder()?;
        let files = ["source", "target"].map(|name| folder.path().join(name));
        let bytes = random_file(&files[0], 20 << 20)?;
        let threads = Threads { io: 2, vcpus: 0 };
        for (case, argument) in [(Case::CopyThrough, 2 << 20), (Case::CopyRange, 0)] {
            std::fs::write(&files[1], b"")?;
            let code = ended(case, argument, &files, threads)?;
            ensure!(code == DONE, "{}: exit code {code}", case.name());
            ensure!(std::fs::read(&files[1])? == bytes, "other bytes arrived");
        }
        Ok(())
    })
}

#[test]
fn a_jailed_second_vcpu_does_jobs_and_its_faults_are_told() -> Result<(), Failed> {
    alone(|| {
        let folder = folder()?;
        let source = folder.path().join("source");
        random_file(&source, 2 << 20)?;
        let threads = Threads { io: 1, vcpus: 1 };
        for (case, expected) in [
            (Case::CrewWorks, DONE),
            (Case::CrewFaults, FAILED),
            (Case::CrewPanics, FAILED),
        ] {
            let code = ended(case, 0, std::slice::from_ref(&source), threads)?;
            ensure!(code == expected, "{}: exit code {code}", case.name());
        }
        Ok(())
    })
}
