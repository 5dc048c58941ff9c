//! Well-behaved guests over real files: what arrives, what it costs, and what a user can stop.

use anyhow::{Context, Result, bail, ensure};
use instar_microvm_tests::{Failed, Guest, alone, limits, operation_file};
use instar_shared::control::FileRequest;
use instar_shared::record::RecordKind;
use instar_test_guests::{Case, Hash};
use instar_tests::rng::Rng;
use instar_vmm::operation::{OperationFile, RunError, Said};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Longer than any piece that the guest reads, and odd.
const LEN: usize = (12 << 20) + 777;

fn random_bytes(name: &str, len: usize) -> Vec<u8> {
    let mut rng = Rng::for_test(name);
    let mut bytes: Vec<u8> = (0..len.div_ceil(8))
        .flat_map(|_| rng.next_u64().to_le_bytes())
        .collect();
    bytes.truncate(len);
    bytes
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hash = Hash::default();
    hash.add(bytes);
    hash.0
}

/// A file in the build folder, which is on a real file system, unlike some `/tmp`.
fn disk_file() -> Result<File> {
    let this = std::env::current_exe()?;
    let folder = this.parent().context("a test has a folder")?;
    Ok(tempfile::tempfile_in(folder)?)
}

fn checksum(file: OperationFile) -> Guest {
    Guest::new(Case::Checksum)
        .file(file)
        .limits(limits(5000, 60_000))
}

#[test]
fn every_byte_of_a_cached_file_arrives() -> Result<(), Failed> {
    alone(|| {
        let bytes = random_bytes("cached", LEN);
        let mut file = disk_file()?;
        file.write_all(&bytes)?;
        let (answer, completed, host) = checksum(operation_file(file)?).finish()?;
        ensure!(answer == hash(&bytes), "other bytes arrived");
        ensure!(host.records.len() == 2, "lines: {:?}", host.records);
        println!(
            "{} exits, set-up {:?}",
            completed.stats.exits, completed.stats.setup
        );
        // One kick per batch, one drain, one exit; a tick of the timer now and then.
        let kicks = 2 + 8 * (LEN as u64 / 6_700_000 + 1);
        ensure!(
            (3..kicks + 200).contains(&completed.stats.exits),
            "{} exits",
            completed.stats.exits
        );
        Ok(())
    })
}

#[test]
fn bytes_that_are_not_cached_arrive() -> Result<(), Failed> {
    alone(|| {
        let bytes = random_bytes("uncached", LEN);
        let mut file = disk_file()?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        let (answer, _, _) = checksum(operation_file(file)?).finish()?;
        ensure!(answer == hash(&bytes), "other bytes arrived");
        Ok(())
    })
}

/// A process's memory as a file is never read without sleeping, so no request is done inside its kick.
#[test]
fn requests_of_a_file_that_always_sleeps_are_waited_for() -> Result<(), Failed> {
    alone(|| {
        let bytes = random_bytes("always-sleeps", LEN);
        let start = bytes.as_ptr().addr() as u64;
        let file = OperationFile {
            direct_align: 0,
            said: Said::default(),
            file: File::open("/proc/self/mem")?,
            read_only: true,
            block_device: false,
            len_bytes: start + LEN as u64,
            max_len_bytes: 0,
        };
        let (answer, completed, _) = checksum(file).argument(start).finish()?;
        ensure!(answer == hash(&bytes), "other bytes arrived");
        println!("{} exits", completed.stats.exits);
        // Kick and wait for each batch.
        ensure!(
            completed.stats.exits >= 2 * 16 + 2,
            "only {} exits: nothing was waited for",
            completed.stats.exits
        );
        Ok(())
    })
}

#[test]
fn a_file_that_shrank_before_the_run_ends_in_zeros() -> Result<(), Failed> {
    alone(|| {
        let mut bytes = random_bytes("shrank", LEN);
        let mut file = disk_file()?;
        file.write_all(&bytes)?;
        let disk = operation_file(file.try_clone()?)?;
        file.set_len(70_001)?;
        bytes[70_001..].fill(0);
        let (answer, _, _) = checksum(disk).finish()?;
        ensure!(answer == hash(&bytes), "no zeros past the new end");
        Ok(())
    })
}

#[test]
fn a_file_that_shrinks_during_the_run_ends_in_zeros() -> Result<(), Failed> {
    alone(|| {
        let bytes = random_bytes("shrinks", LEN);
        let mut file = disk_file()?;
        file.write_all(&bytes)?;
        let disk = operation_file(file.try_clone()?)?;
        let cut = 11 << 20;
        let shrink = move |kind, payload: &[u8]| {
            if kind == RecordKind::Line && payload == b"past the middle" {
                let _ = file.set_len(cut);
            }
        };
        let (answer, _, _) = checksum(disk).on_record(shrink).finish()?;
        let kept = usize::try_from(cut)?;
        let expected = [&bytes[..kept], &vec![0; LEN - kept]].concat();
        ensure!(answer == hash(&expected), "no zeros past the new end");
        Ok(())
    })
}

#[test]
fn a_failing_read_gives_the_guest_its_errno() -> Result<(), Failed> {
    alone(|| {
        // Nothing is mapped at address 0 of this process.
        let memory = OperationFile {
            direct_align: 0,
            said: Said::default(),
            file: File::open("/proc/self/mem")?,
            read_only: true,
            block_device: false,
            len_bytes: 1 << 20,
            max_len_bytes: 0,
        };
        let (errno, _, _) = Guest::new(Case::ReadFails).file(memory).finish()?;
        ensure!(errno == libc::EIO as u64, "errno {errno}");
        let folder = OperationFile {
            direct_align: 0,
            said: Said::default(),
            file: File::open("/")?,
            read_only: true,
            block_device: false,
            len_bytes: 1 << 20,
            max_len_bytes: 0,
        };
        let (errno, _, _) = Guest::new(Case::ReadFails).file(folder).finish()?;
        ensure!(errno == libc::EISDIR as u64, "errno {errno}");
        let write_only = OpenOptions::new().write(true).open("/dev/null")?;
        let disk = OperationFile {
            direct_align: 0,
            said: Said::default(),
            file: write_only,
            read_only: true,
            block_device: false,
            len_bytes: 1 << 20,
            max_len_bytes: 0,
        };
        let (errno, _, _) = Guest::new(Case::ReadFails).file(disk).finish()?;
        ensure!(errno == libc::EBADF as u64, "errno {errno}");
        Ok(())
    })
}

#[test]
fn holes_are_reported_as_the_file_system_has_them() -> Result<(), Failed> {
    alone(|| {
        let mut file = disk_file()?;
        // More runs than one request asks for.
        for index in 0..150_u64 {
            file.write_all_at(&[1; 4096], index * (1 << 20))?;
        }
        file.set_len(200 << 20)?;
        let len = file.metadata()?.len();
        let mut expected = Hash::default();
        let (mut at, mut runs) = (0, 0);
        while at < len {
            let data = data_at(&mut file, at)?;
            let end = next_change(&mut file, at, data)?.min(len);
            for word in [at, end - at, u64::from(data)] {
                expected.add(&word.to_le_bytes());
            }
            (at, runs) = (end, runs + 1);
        }
        ensure!(runs == 300, "this file system keeps no holes: {runs} runs");
        let (answer, _, _) = Guest::new(Case::Extents)
            .file(operation_file(file)?)
            .finish()?;
        ensure!(answer == expected.0, "other runs");
        Ok(())
    })
}

/// Whether there is data at `at`.
fn data_at(file: &mut File, at: u64) -> Result<bool> {
    match rustix::fs::seek(&*file, rustix::fs::SeekFrom::Data(at)) {
        Ok(data) => Ok(data == at),
        Err(rustix::io::Errno::NXIO) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn next_change(file: &mut File, at: u64, data: bool) -> Result<u64> {
    let to = if data {
        rustix::fs::SeekFrom::Hole(at)
    } else {
        rustix::fs::SeekFrom::Data(at)
    };
    match rustix::fs::seek(&*file, to) {
        Ok(change) => Ok(change),
        Err(rustix::io::Errno::NXIO) => Ok(file.seek(SeekFrom::End(0))?),
        Err(e) => Err(e.into()),
    }
}

#[test]
fn all_1024_slots_can_hold_a_file() -> Result<(), Failed> {
    alone(|| {
        raise_file_limit()?;
        let folder = tempfile::tempdir()?;
        let body = |number: u64| -> Vec<u8> {
            let bytes = (0..100 + number).map(|i| i.wrapping_mul(31).wrapping_add(number * 7));
            bytes.map(|word| word.to_le_bytes()[0]).collect()
        };
        let mut expected = Hash::default();
        expected.add(&body(0));
        for number in 1..1024_u64 {
            std::fs::write(folder.path().join(format!("file-{number}")), body(number))?;
            expected.add(&body(number));
        }
        let mut first = tempfile::tempfile()?;
        first.write_all(&body(0))?;
        let path = folder.path().to_owned();
        let (answer, _, host) = Guest::new(Case::OpenMany)
            .argument(1023)
            .file(operation_file(first)?)
            .limits(limits(5000, 60_000))
            .opener(move |request| open_in(&path, request))
            .finish()?;
        ensure!(host.opens == 1023, "{} files were asked for", host.opens);
        ensure!(answer == expected.0, "other bytes arrived");
        Ok(())
    })
}

#[test]
fn a_guest_that_wants_file_1025_is_not_given_one() -> Result<(), Failed> {
    alone(|| {
        raise_file_limit()?;
        let null = |_: &FileRequest| {
            File::open("/dev/null")
                .map_err(anyhow::Error::from)
                .and_then(operation_file)
                .map_err(|_| failed())
        };
        let (outcome, host) = Guest::new(Case::OpenMany)
            .argument(1024)
            .file(operation_file(tempfile::tempfile()?)?)
            .limits(limits(5000, 60_000))
            .opener(null)
            .run()?;
        match outcome {
            Err(RunError::Panicked(text)) => ensure!(text.contains("was not opened"), "{text}"),
            other => bail!("it ended otherwise: {other:?}"),
        }
        ensure!(host.opens == 1023, "{} files were asked for", host.opens);
        Ok(())
    })
}

fn failed() -> instar_shared::control::FileResponse {
    instar_shared::control::FileResponse {
        status: instar_shared::control::FileStatus::Failed.raw().into(),
        errno: 2.into(),
    }
}

/// The file of the requested name, which must be a plain one.
fn open_in(
    folder: &Path,
    request: &FileRequest,
) -> Result<OperationFile, instar_shared::control::FileResponse> {
    let len = usize::try_from(request.name_len.get()).unwrap_or(0);
    let name = request.name.get(..len).unwrap_or_default();
    std::str::from_utf8(name)
        .ok()
        .filter(|name| !name.contains('/'))
        .and_then(|name| File::open(folder.join(name)).ok())
        .and_then(|file| operation_file(file).ok())
        .ok_or_else(failed)
}

/// Makes room for 1,024 open files and those of the test itself.
fn raise_file_limit() -> Result<()> {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit)?;
    ensure!(
        limit.maximum.is_none_or(|most| most >= 1100),
        "the hard limit of open files is {:?}: raise it to 1100 (ulimit -Hn)",
        limit.maximum
    );
    Ok(())
}

#[test]
fn a_working_guest_sees_the_cancel_word() -> Result<(), Failed> {
    static CANCEL: AtomicBool = AtomicBool::new(false);
    alone(|| {
        // It works once it says how far it is.
        let cancel = |kind, _: &[u8]| {
            if kind == RecordKind::Progress {
                CANCEL.store(true, Ordering::Relaxed);
            }
        };
        let guest = Guest::new(Case::UntilCancelled)
            .cancel(&CANCEL)
            .on_record(cancel)
            .limits(limits(10_000, 60_000));
        let (answer, _, _) = guest.finish()?;
        ensure!(answer == 1, "answer {answer}");
        Ok(())
    })
}

#[test]
fn a_cancel_before_the_start_ends_the_guest_at_once() -> Result<(), Failed> {
    static CANCELLED: AtomicBool = AtomicBool::new(true);
    alone(|| {
        let guest = Guest::new(Case::UntilCancelled).cancel(&CANCELLED);
        let (answer, _, _) = guest.finish()?;
        ensure!(answer == 1, "answer {answer}");
        Ok(())
    })
}

#[test]
fn a_short_run_costs_few_exits() -> Result<(), Failed> {
    alone(|| {
        // The exit doorbell, which takes the line along; a tick may come between, and many where others work, but not
        // each time.
        let mut seen = Vec::new();
        for _ in 0..20 {
            let (_, completed, _) = Guest::new(Case::Behave).finish()?;
            ensure!(completed.stats.setup > Duration::ZERO, "no set-up time");
            seen.push(completed.stats.exits);
            if (1..=5).contains(&completed.stats.exits) {
                return Ok(());
            }
        }
        bail!("{seen:?} exits")
    })
}
