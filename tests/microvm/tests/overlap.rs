//! Guests beside which other threads work: what arrives, and that limits hold.

use anyhow::{Context, Result, ensure};
use instar_microvm_tests::{Failed, Guest, alone, limits, operation_file, writable_file};
use instar_test_guests::{Case, Hash};
use instar_tests::rng::Rng;
use instar_vmm::operation::{OperationFile, RunError, Said};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::AtomicBool;

/// Longer than all buffers of the guest together, and odd.
const LEN: usize = (37 << 20) + 777;

fn random_bytes(name: &str, len: usize) -> Vec<u8> {
    let mut rng = Rng::for_test(name);
    let words = (0..len.div_ceil(8)).flat_map(|_| rng.next_u64().to_le_bytes());
    let mut bytes: Vec<u8> = words.collect();
    bytes.truncate(len);
    bytes
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hash = Hash::default();
    hash.add(bytes);
    hash.0
}

/// A file in the build folder, which is on a real file system, unlike some `/tmp`.
fn disk_file(content: &[u8]) -> Result<File> {
    let this = std::env::current_exe()?;
    let folder = this.parent().context("a test has a folder")?;
    let mut file = tempfile::tempfile_in(folder)?;
    file.write_all(content)?;
    Ok(file)
}

fn content(file: &File) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len())?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Runs `case` from a file of `bytes` to an empty one; the second file and the answer.
fn copied(case: Case, argument: u64, bytes: &[u8], threads: u8) -> Result<(File, u64)> {
    let (source, target) = (disk_file(bytes)?, disk_file(&[])?);
    let (answer, completed, _) = Guest::new(case)
        .argument(argument)
        .file(operation_file(source)?)
        .file(writable_file(target.try_clone()?, bytes.len() as u64)?)
        .limits(limits(5000, 60_000))
        .threads(threads, 0)
        .finish()?;
    println!(
        "{} with {threads} threads: {} exits",
        case.name(),
        completed.stats.exits
    );
    Ok((target, answer))
}

#[test]
fn overlapped_reads_and_writes_copy_a_file() -> Result<(), Failed> {
    alone(|| {
        let bytes = random_bytes("overlapped", LEN);
        for (size, threads) in [(2 << 20, 2), (2 << 20, 0), (5000, 1), (6 << 20, 3)] {
            let part = &bytes[..if size == 5000 { 1 << 20 } else { LEN }];
            let (target, answer) = copied(Case::CopyThrough, size, part, threads)?;
            ensure!(answer == part.len() as u64, "{answer} bytes");
            ensure!(content(&target)? == part, "other bytes, size {size}");
        }
        Ok(())
    })
}

#[test]
fn the_host_copies_ranges_with_and_without_threads() -> Result<(), Failed> {
    alone(|| {
        let bytes = random_bytes("ranges", LEN);
        for threads in [0, 2] {
            let (target, answer) = copied(Case::CopyRange, 0, &bytes, threads)?;
            ensure!(answer == LEN as u64, "slot 1 has {answer} bytes");
            ensure!(content(&target)? == bytes, "other bytes");
        }
        Ok(())
    })
}

/// The source is on another kind of file system, and its length is more than it has.
#[test]
fn a_copy_that_the_host_refuses_is_made_by_hand_and_ends_in_zeros() -> Result<(), Failed> {
    alone(|| {
        let bytes = random_bytes("by hand", LEN);
        let memory = rustix::fs::memfd_create("source", rustix::fs::MemfdFlags::CLOEXEC)?;
        let mut source = File::from(memory);
        source.write_all(&bytes)?;
        let target = disk_file(&[])?;
        let longer = LEN as u64 + 100_000;
        let device = OperationFile {
            direct_align: 0,
            said: Said::default(),
            len_bytes: longer,
            ..operation_file(source)?
        };
        let (answer, _, _) = Guest::new(Case::CopyRange)
            .file(device)
            .file(writable_file(target.try_clone()?, longer)?)
            .limits(limits(5000, 60_000))
            .finish()?;
        ensure!(answer == longer, "slot 1 has {answer} bytes");
        let mut expected = bytes;
        expected.resize(usize::try_from(longer)?, 0);
        ensure!(content(&target)? == expected, "other bytes");
        Ok(())
    })
}

#[test]
fn copies_onto_the_same_bytes_are_refused() -> Result<(), Failed> {
    alone(|| {
        for threads in [0, 2] {
            let bytes = random_bytes("onto", 16 << 10);
            let disk = disk_file(&bytes)?;
            let (answer, _, _) = Guest::new(Case::CopyOntoItself)
                .file(writable_file(disk.try_clone()?, 1 << 20)?)
                .threads(threads, 0)
                .finish()?;
            ensure!(answer == 1, "the copy that may be did not arrive");
            let expected = [&bytes[..8192], &bytes[..8192]].concat();
            ensure!(content(&disk)? == expected, "a refused copy changed bytes");
        }
        Ok(())
    })
}

/// Two slots hold the same file by two names.
#[test]
fn a_copy_onto_itself_by_another_slot_is_refused() -> Result<(), Failed> {
    alone(|| {
        let bytes = random_bytes("other slot", 1 << 20);
        let disk = disk_file(&bytes)?;
        ensure!(disk.metadata()?.ino() != 0, "a file system without inodes");
        let (outcome, _) = Guest::new(Case::CopyRange)
            .file(operation_file(disk.try_clone()?)?)
            .file(writable_file(disk.try_clone()?, 2 << 20)?)
            .run()?;
        let refused =
            matches!(&outcome, Err(RunError::Panicked(text)) if text.contains("a copy failed"));
        ensure!(refused, "it ended otherwise: {outcome:?}");
        ensure!(content(&disk)? == bytes, "the file was changed");
        Ok(())
    })
}

#[test]
fn synchronous_calls_work_beside_threads() -> Result<(), Failed> {
    alone(|| {
        let bytes = random_bytes("synchronous", LEN);
        let file = disk_file(&bytes)?;
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        for _ in ["not cached", "cached"] {
            let (answer, _, _) = Guest::new(Case::Checksum)
                .file(operation_file(file.try_clone()?)?)
                .limits(limits(5000, 60_000))
                .threads(2, 0)
                .finish()?;
            ensure!(answer == hash(&bytes), "other bytes arrived");
        }
        Ok(())
    })
}

#[test]
fn changes_are_the_same_with_threads() -> Result<(), Failed> {
    alone(|| {
        let seed = Rng::for_test("changes with threads").next_u64();
        let mut hashes = Vec::new();
        for threads in [0, 2] {
            let disk = disk_file(&random_bytes("changed", 1 << 20))?;
            let (answer, _, _) = Guest::new(Case::ChangeDisk)
                .argument(seed)
                .file(writable_file(disk.try_clone()?, 64 << 20)?)
                .limits(limits(5000, 60_000))
                .threads(threads, 0)
                .finish()?;
            hashes.push((answer, hash(&content(&disk)?)));
        }
        ensure!(hashes.first() == hashes.last(), "{hashes:?}");
        Ok(())
    })
}

#[test]
fn zeros_past_the_limit_are_refused_beside_threads() -> Result<(), Failed> {
    alone(|| {
        let disk = disk_file(&[])?;
        let (outcome, _) = Guest::new(Case::ZerosForever)
            .file(writable_file(disk, 64 << 20)?)
            .threads(2, 0)
            .limits(limits(5000, 60_000))
            .run()?;
        // Past the limit: the guest sees the errno.
        ensure!(
            matches!(&outcome, Err(RunError::Panicked(_))),
            "it ended otherwise: {outcome:?}"
        );
        Ok(())
    })
}

#[test]
fn a_user_can_cancel_a_guest_beside_threads() -> Result<(), Failed> {
    static CANCELLED: AtomicBool = AtomicBool::new(true);
    alone(|| {
        let guest = Guest::new(Case::UntilCancelled)
            .cancel(&CANCELLED)
            .threads(2, 1);
        let (answer, _, _) = guest.finish()?;
        ensure!(answer == 1, "answer {answer}");
        Ok(())
    })
}

#[test]
fn a_second_vcpu_does_jobs() -> Result<(), Failed> {
    alone(|| {
        let disk = disk_file(&random_bytes("beside jobs", 2 << 20))?;
        let (cores, completed, _) = Guest::new(Case::CrewWorks)
            .file(operation_file(disk)?)
            .limits(limits(5000, 60_000))
            .finish()?;
        ensure!(cores == 1, "{cores} cores");
        println!(
            "{} exits, set-up {:?}",
            completed.stats.exits, completed.stats.setup
        );
        Ok(())
    })
}
