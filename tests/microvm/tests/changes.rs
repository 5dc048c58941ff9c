//! Well-behaved guests that change real files, judged by the host that reads them.

use anyhow::{Context, Result, bail, ensure};
use instar_microvm_tests::{Failed, Guest, alone, limits, operation_file, writable_file};
use instar_storage::{MemStorage, Storage};
use instar_test_guests::{Case, FAILING_BYTES, FIXED_LEN, SEED_FIXED, change};
use instar_tests::rng::Rng;
use instar_vmm::operation::{OperationFile, RunError, Said};
use std::fs::File;
use std::io::Write;
use std::process::Command;

/// A file in the build folder, which is on a real file system, unlike some `/tmp`.
fn disk_file(bytes: &[u8]) -> Result<File> {
    let this = std::env::current_exe()?;
    let folder = this.parent().context("a test has a folder")?;
    let mut file = tempfile::tempfile_in(folder)?;
    file.write_all(bytes)?;
    Ok(file)
}

/// A guest and this process do the same changes, the guest to a file and this process to memory.
fn changes_arrive(file: &File, seed: u64) -> Result<()> {
    let seed = seed & !SEED_FIXED;
    let disk = writable_file(file.try_clone()?, 1 << 30)?;
    same_changes(disk, file, seed)
}

/// The same of any disk, whose bytes are those of `file`.
fn same_changes(disk: OperationFile, file: &File, seed: u64) -> Result<()> {
    let expected = MemStorage::load(file)?;
    let hash = change(&expected, seed).context("the store in memory failed")?;
    let (answer, completed, _) = Guest::new(Case::ChangeDisk)
        .argument(seed)
        .file(disk)
        .limits(limits(10_000, 90_000))
        .finish()?;
    println!("seed {seed}: {} exits", completed.stats.exits);
    ensure!(answer == hash, "the guest read other bytes (seed {seed})");
    let len = file.metadata()?.len();
    ensure!(
        len == expected.len_bytes(),
        "the file has {len} bytes (seed {seed})"
    );
    ensure!(
        MemStorage::load(file)? == expected,
        "the file holds other bytes (seed {seed})"
    );
    Ok(())
}

#[test]
fn every_change_of_a_file_arrives() -> Result<(), Failed> {
    alone(|| {
        let mut rng = Rng::for_test("changes");
        for _ in 0..3 {
            let bytes: Vec<u8> = (0..40_000)
                .flat_map(|_| rng.next_u64().to_le_bytes())
                .collect();
            changes_arrive(&disk_file(&bytes)?, rng.next_u64())?;
        }
        Ok(())
    })
}

/// `tmpfs` has other calls than a disk's file system: no zeroed ranges, for one.
#[test]
fn every_change_of_a_file_in_memory_arrives() -> Result<(), Failed> {
    alone(|| {
        let mut rng = Rng::for_test("changes-in-memory");
        let memory = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC)?;
        changes_arrive(&File::from(memory), rng.next_u64())
    })
}

/// A loop device over a file, detached when dropped.
struct LoopDevice {
    path: String,
}

impl LoopDevice {
    fn over(path: &std::path::Path) -> Result<Self> {
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(path)
            .output()
            .context("losetup")?;
        ensure!(
            output.status.success(),
            "this test needs root and a free loop device; losetup says: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let path = String::from_utf8(output.stdout)?.trim().to_owned();
        Ok(Self { path })
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.path]).status();
    }
}

#[test]
fn every_change_of_a_block_device_arrives() -> Result<(), Failed> {
    alone(|| {
        let mut rng = Rng::for_test("changes-device");
        let this = std::env::current_exe()?;
        let folder = this.parent().context("a test has a folder")?;
        let mut under = tempfile::NamedTempFile::new_in(folder)?;
        under.write_all(&vec![0x5a; usize::try_from(FIXED_LEN)?])?;
        let device = LoopDevice::over(under.path())?;
        let open = || File::options().read(true).write(true).open(&device.path);
        let disk = OperationFile {
            direct_align: 0,
            said: Said::default(),
            file: open()?,
            read_only: false,
            block_device: true,
            len_bytes: FIXED_LEN,
            max_len_bytes: FIXED_LEN,
        };
        same_changes(disk, under.as_file(), rng.next_u64() | SEED_FIXED)?;
        let disk = OperationFile {
            direct_align: 0,
            said: Said::default(),
            file: open()?,
            read_only: false,
            block_device: true,
            len_bytes: FIXED_LEN,
            max_len_bytes: u64::MAX,
        };
        // The device takes what fits, and then has no space left.
        let told = write_fails(disk, FIXED_LEN - 1000)?;
        ensure!(told == (libc::ENOSPC, FIXED_LEN), "{told:?}");
        Ok(())
    })
}

/// The errno of a write of [`FAILING_BYTES`] at `offset`, and how long the guest thinks the disk is.
fn write_fails(file: OperationFile, offset: u64) -> Result<(i32, u64)> {
    let (answer, _, _) = Guest::new(Case::WriteFails)
        .argument(offset)
        .file(file)
        .finish()?;
    Ok((i32::try_from(answer & 0xffff)?, answer >> 32))
}

#[test]
fn a_failing_write_gives_the_guest_its_errno_and_the_true_length() -> Result<(), Failed> {
    alone(|| {
        let failing = FAILING_BYTES as u64;
        let file = disk_file(b"0123456789")?;
        let limited = writable_file(file.try_clone()?, failing + 9)?;
        ensure!(write_fails(limited, 10)? == (libc::EFBIG, (4 << 20) + 10));
        ensure!(
            file.metadata()?.len() == (4 << 20) + 10,
            "the first request is whole"
        );
        let file = disk_file(b"0123456789")?;
        let read_only = operation_file(file.try_clone()?)?;
        ensure!(write_fails(read_only, 0)? == (libc::EROFS, 10));
        ensure!(MemStorage::load(&file)?.to_vec() == b"0123456789");
        let full = File::options().read(true).write(true).open("/dev/full")?;
        ensure!(write_fails(writable_file(full, u64::MAX)?, 0)?.0 == libc::ENOSPC);
        Ok(())
    })
}

/// A request that the host works on without end is stopped by either limit.
#[test]
fn endless_zeros_are_stopped_by_the_limits() -> Result<(), Failed> {
    alone(|| {
        for (limits, stalls) in [(limits(300, 60_000), true), (limits(60_000, 300), false)] {
            let sink = File::options().read(true).write(true).open("/dev/null")?;
            let (outcome, _) = Guest::new(Case::ZerosForever)
                .file(writable_file(sink, u64::MAX)?)
                .limits(limits)
                .run()?;
            match outcome {
                Err(RunError::Stalled { .. }) if stalls => {}
                Err(RunError::TimedOut { .. }) if !stalls => {}
                other => bail!("it ended otherwise: {other:?}"),
            }
        }
        Ok(())
    })
}

/// The process's limit on file sizes makes the kernel write less than it was asked to.
#[test]
fn a_short_write_goes_on_until_the_kernel_says_why() -> Result<(), Failed> {
    alone(|| {
        const MOST: u64 = (1 << 20) + 100;
        let file = disk_file(&[])?;
        let disk = writable_file(file.try_clone()?, u64::MAX)?;
        // SAFETY: ignores a signal of this process, which runs only this test.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        let mut limit = rustix::process::getrlimit(rustix::process::Resource::Fsize);
        limit.current = Some(MOST);
        rustix::process::setrlimit(rustix::process::Resource::Fsize, limit)?;
        let told = write_fails(disk, 1000)?;
        ensure!(told == (libc::EFBIG, MOST), "{told:?}");
        let mut expected = vec![0; 1000];
        expected.resize(usize::try_from(MOST)?, 0xb5);
        ensure!(MemStorage::load(&file)?.to_vec() == expected);
        Ok(())
    })
}
