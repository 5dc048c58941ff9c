//! `blockd` in a real microVM, asked through its channel: this process moves the data as it says, and `qemu-img` judges
//! the image that is left.

use anyhow::{Context, Result, bail, ensure};
use instar_microvm_tests::{Failed, alone, limits, operation_file, writable_file};
use instar_shared::control::{FileAccess, FileRequest, FileResponse, FileStatus, SizeStatus};
use instar_shared::live::{BLOCKD_READ_ONLY, BlockdConfig, BlockdResult};
use instar_shared::op::Outcome;
use instar_shared::record::RecordKind;
use instar_tests::judge::{compress, ok};
use instar_tests::rng::Rng;
use instar_vmm::live::channel::{Asker, Port};
use instar_vmm::live::source::{
    Answer, DiskInfo, Extent, ExtentKind, ExtentSource, MAX_BATCH, Question,
};
use instar_vmm::operation::{Operation, OperationFile, OperationHost, OperationSpec, Resident};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::time::Duration;
use zerocopy::{FromBytes, IntoBytes};

const SIZE: u64 = 40 << 20;
const NAME: &str = "a.qcow2";

/// The owner of the microVM: opens what the image names, in its folder, and asks what comes over the channel.
struct Owner {
    dir: PathBuf,
    port: Port,
    opened: mpsc::Sender<File>,
    said: Vec<String>,
}

impl OperationHost for Owner {
    fn open_file(&mut self, request: &FileRequest) -> Result<OperationFile, FileResponse> {
        let refused = || FileResponse {
            status: FileStatus::Refused.raw().into(),
            errno: 0.into(),
        };
        let len = request.name_len.get() as usize;
        let name = std::str::from_utf8(&request.name[..len]).map_err(|_| refused())?;
        let write = request.access.get() == FileAccess::ReadWrite.raw();
        let path = self.dir.join(name);
        let file = File::options().read(true).write(write).open(path);
        let file = file.map_err(|_| refused())?;
        let shared = file.try_clone().map_err(|_| refused())?;
        self.opened.send(shared).map_err(|_| refused())?;
        if write {
            writable_file(file, 1 << 30).map_err(|_| refused())
        } else {
            operation_file(file).map_err(|_| refused())
        }
    }

    fn announce_size(&mut self, _: u16, _: u64) -> Result<u64, (SizeStatus, u32)> {
        Ok(1 << 30)
    }

    fn record(&mut self, kind: RecordKind, payload: &[u8]) -> Result<(), String> {
        let text = String::from_utf8_lossy(payload).into_owned();
        self.said.push(format!("{kind:?}: {text}"));
        Ok(())
    }

    fn resident(&mut self) -> Option<&mut dyn Resident> {
        Some(&mut self.port)
    }
}

/// Runs `body` with the end of the channel and the files of the disk, the image first, while the guest runs here.
fn with_blockd(
    dir: &Path,
    name: &str,
    flags: u32,
    body: impl FnOnce(Disk) -> Result<()> + Send + 'static,
) -> Result<()> {
    static NEVER: AtomicBool = AtomicBool::new(false);
    let (here, there) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let write = flags & BLOCKD_READ_ONLY == 0;
    let file = File::options()
        .read(true)
        .write(write)
        .open(dir.join(name))?;
    let (opened, files) = mpsc::channel();
    opened.send(file.try_clone()?)?;
    let config = BlockdConfig {
        flags: flags.into(),
        ..BlockdConfig::zeroed()
    };
    let file = if write {
        writable_file(file, 1 << 30)?
    } else {
        operation_file(file)?
    };
    let spec = OperationSpec {
        elf: instar_op_images::BLOCKD,
        config: config.as_bytes().to_vec(),
        files: vec![file],
        secrets: Vec::new(),
        limits: limits(10_000, 90_000),
        resident: true,
        cancel: &NEVER,
    };
    let mut owner = Owner {
        dir: dir.to_owned(),
        port: Port::new(there),
        opened,
        said: Vec::new(),
    };
    let operation = Operation::prepare(spec)?;
    let user = std::thread::spawn(move || body(Disk::open(Asker::new(here), &files)?));
    let ended = operation.run(&mut owner);
    let said = owner.said.join("; ");
    drop(owner);
    let used = user.join().ok().context("the user of the disk panicked")?;
    used.with_context(|| format!("the guest said: {said}"))?;
    let result = ended.map_err(|e| anyhow::anyhow!("{e}"))?.result;
    let (result, _) = BlockdResult::read_from_prefix(&result)
        .ok()
        .context("a result")?;
    let outcome = Outcome::try_from(result.outcome.get());
    ensure!(outcome == Ok(Outcome::Done), "{outcome:?}: {said}");
    Ok(())
}

/// A disk in use.
struct Disk {
    source: Asker,
    info: DiskInfo,
    files: Vec<File>,
}

impl Disk {
    fn open(mut source: Asker, files: &mpsc::Receiver<File>) -> Result<Self> {
        let info = source.open()?;
        let files = files.try_iter().collect();
        Ok(Self {
            source,
            info,
            files,
        })
    }

    fn ask(&mut self, question: Question) -> Result<Answer> {
        let mut answers = self.source.ask(&[question])?;
        answers.pop().context("an answer")
    }

    fn done(&mut self, question: Question) -> Result<()> {
        match self.ask(question)? {
            Answer::Done => Ok(()),
            other => bail!("{question:?}: {other:?}"),
        }
    }

    fn read(&mut self, start: u64, len: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0xee; usize::try_from(len)?];
        let (mut at, end) = (start, start + len);
        while at < end {
            let question = Question::Lookup {
                start: at,
                len: end - at,
            };
            let Answer::Extents(extents) = self.ask(question)? else {
                bail!("no extents");
            };
            for extent in extents {
                let (low, high) = (extent.start.max(at), extent.end().min(end));
                if low < high {
                    let range = usize::try_from(low - start)?..usize::try_from(high - start)?;
                    let read = self.read_extent(&extent, low, high - low)?;
                    bytes[range].copy_from_slice(&read);
                    at = high;
                }
            }
        }
        Ok(bytes)
    }

    fn read_extent(&mut self, extent: &Extent, low: u64, len: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(len)?];
        match extent.kind {
            ExtentKind::Zero => {}
            ExtentKind::Data { file, offset, .. } => {
                let mut at = offset + (low - extent.start);
                let mut rest = &mut bytes[..];
                while !rest.is_empty() {
                    let read = self.files[usize::from(file)].read_at(rest, at)?;
                    if read == 0 {
                        break;
                    }
                    at += read as u64;
                    rest = &mut rest[read..];
                }
            }
            ExtentKind::Fetch => {
                for (index, piece) in bytes.chunks_mut(2 << 20).enumerate() {
                    let question = Question::Fetch {
                        start: low + ((index as u64) << 21),
                        len: piece.len() as u64,
                    };
                    let Answer::Bytes(read) = self.ask(question)? else {
                        bail!("no bytes");
                    };
                    piece.copy_from_slice(&read);
                }
            }
        }
        Ok(bytes)
    }

    /// Writes by allocating all of it.
    fn write(&mut self, start: u64, bytes: &[u8], link: bool) -> Result<()> {
        let len = bytes.len() as u64;
        let answer = self.ask(Question::Allocate { start, len })?;
        let Answer::Allocated { ticket, extents } = answer else {
            bail!("{start}+{len}: {answer:?}");
        };
        for extent in extents {
            let ExtentKind::Data {
                file,
                offset,
                in_place: true,
            } = extent.kind
            else {
                bail!("{extent:?} is not to be written");
            };
            let (low, high) = (extent.start.max(start), extent.end().min(start + len));
            if low < high {
                let part = &bytes[usize::try_from(low - start)?..usize::try_from(high - start)?];
                let at = offset + (low - extent.start);
                if link {
                    self.files[usize::from(file)].write_all_at(part, at)?;
                }
            }
        }
        match (ticket, link) {
            (0, _) => Ok(()),
            (ticket, true) => self.done(Question::Link { ticket }),
            (ticket, false) => self.done(Question::Abandon { ticket }),
        }
    }
}

/// A folder with an image of a kind, and what a guest reads of it.
fn image(kind: &str, rng: &mut Rng) -> Result<(tempfile::TempDir, Vec<u8>)> {
    let this = std::env::current_exe()?;
    let folder = tempfile::tempdir_in(this.parent().context("a test has a folder")?)?;
    let dir = folder.path();
    // Compressible, and longer than a fetch may be.
    let base: Vec<u8> = (0..5_000_000_u64)
        .map(|n| ((n / 700) ^ (rng.seed() & 7)).to_le_bytes()[0])
        .collect();
    std::fs::write(dir.join("base.raw"), &base)?;
    compress(dir, "base.raw", "base.qcow2");
    let size = SIZE.to_string();
    let mut create = vec!["create", "-q", "-f", "qcow2"];
    match kind {
        "raw backing" => create.extend(["-b", "base.raw", "-F", "raw"]),
        "compressed backing" => create.extend(["-b", "base.qcow2", "-F", "qcow2"]),
        options => create.extend(["-o", options]),
    }
    create.extend([NAME, &size]);
    ok(dir, "qemu-img", &create);
    let mut model = vec![0; usize::try_from(SIZE)?];
    if kind.contains("backing") {
        model[..base.len()].copy_from_slice(&base);
    }
    Ok((folder, model))
}

fn used_disk_is_sound(kind: &str) -> Result<()> {
    let mut rng = Rng::for_test(kind);
    let (folder, model) = image(kind, &mut rng)?;
    let (sender, receiver) = mpsc::channel();
    with_blockd(folder.path(), NAME, 0, move |mut disk| {
        let mut model = model;
        ensure!(disk.info.len_bytes == SIZE && !disk.info.read_only);
        ensure!(
            disk.read(0, 6 << 20)? == model[..6 << 20],
            "before any write"
        );
        for _ in 0..60 {
            let start = rng.below(SIZE / 512) * 512;
            let most = if rng.below(4) == 0 { 4 << 20 } else { 20_000 };
            let len = (rng.below(most) / 512 * 512 + 512).min(SIZE - start);
            let range = usize::try_from(start)?..usize::try_from(start + len)?;
            match rng.below(6) {
                0 => {
                    let unmap = rng.below(2) == 0;
                    disk.done(Question::WriteZeroes { start, len, unmap })?;
                    model[range.clone()].fill(0);
                }
                1 => disk.write(start, &vec![9; range.len()], false)?,
                2 => disk.done(Question::Flush)?,
                _ => {
                    let byte = rng.below(255).to_le_bytes()[0];
                    disk.write(start, &vec![byte; range.len()], true)?;
                    model[range.clone()].fill(byte);
                }
            }
            ensure!(disk.read(start, len)? == model[range], "{start}+{len}");
        }
        // A whole batch.
        let lookup = Question::Lookup { start: 0, len: 512 };
        let answers = disk.source.ask(&[lookup; MAX_BATCH])?;
        ensure!(answers.iter().all(|answer| *answer == answers[0]));
        disk.done(Question::Close)?;
        sender.send(model)?;
        Ok(())
    })?;
    let dir = folder.path();
    ok(dir, "qemu-img", &["check", NAME]);
    std::fs::write(dir.join("model.raw"), receiver.recv()?)?;
    let compare = ["compare", "-f", "qcow2", "-F", "raw", NAME, "model.raw"];
    ok(dir, "qemu-img", &compare);
    Ok(())
}

#[test]
fn plain_image_is_used() -> Result<(), Failed> {
    alone(|| used_disk_is_sound("cluster_size=64k"))
}

#[test]
fn image_with_subclusters_is_used() -> Result<(), Failed> {
    alone(|| used_disk_is_sound("cluster_size=128k,extended_l2=on"))
}

#[test]
fn image_with_small_clusters_of_version_2_is_used() -> Result<(), Failed> {
    alone(|| used_disk_is_sound("cluster_size=4k,compat=0.10"))
}

#[test]
fn image_over_a_raw_file_is_used() -> Result<(), Failed> {
    alone(|| used_disk_is_sound("raw backing"))
}

#[test]
fn image_over_compressed_clusters_is_used() -> Result<(), Failed> {
    alone(|| used_disk_is_sound("compressed backing"))
}

#[test]
fn image_with_a_data_file_is_used() -> Result<(), Failed> {
    alone(|| used_disk_is_sound("data_file=d.raw"))
}

#[test]
fn image_that_is_only_read_says_so_and_refuses_writes() -> Result<(), Failed> {
    alone(|| {
        let mut rng = Rng::for_test("only read");
        let (folder, model) = image("compressed backing", &mut rng)?;
        with_blockd(folder.path(), NAME, BLOCKD_READ_ONLY, move |mut disk| {
            ensure!(disk.info.read_only);
            ensure!(disk.read(0, 8 << 20)? == model[..8 << 20]);
            let answer = disk.ask(Question::Allocate { start: 0, len: 512 })?;
            ensure!(matches!(answer, Answer::Refused(errno) if errno.0 == 30));
            disk.done(Question::Close)
        })
    })
}

/// Whoever uses the disk is gone without a word: what was flushed or linked is in the image, and nothing is wrong with it.
#[test]
fn image_is_closed_when_its_user_is_gone() -> Result<(), Failed> {
    alone(|| {
        let mut rng = Rng::for_test("gone");
        let (folder, _) = image("cluster_size=64k", &mut rng)?;
        with_blockd(folder.path(), NAME, 0, |mut disk| {
            disk.write(1 << 20, &[7; 4096], true)?;
            // A ticket stays open.
            let answer = disk.ask(Question::Allocate {
                start: 9 << 20,
                len: 1 << 20,
            })?;
            ensure!(matches!(answer, Answer::Allocated { ticket, .. } if ticket != 0));
            Ok(())
        })?;
        ok(folder.path(), "qemu-img", &["check", NAME]);
        Ok(())
    })
}

/// It waits for half a second, and is as it was. The kernel may count what others do as this process's time, but not each
/// time.
#[test]
fn guest_that_nobody_asks_uses_no_time_and_meets_no_limit() -> Result<(), Failed> {
    alone(|| {
        let mut rng = Rng::for_test("idle");
        let (folder, _) = image("cluster_size=64k", &mut rng)?;
        with_blockd(folder.path(), NAME, 0, |mut disk| {
            disk.done(Question::Flush)?;
            let mut spent = Vec::new();
            for _ in 0..20 {
                let before = cpu_time()?;
                std::thread::sleep(Duration::from_millis(500));
                let more = cpu_time()?.saturating_sub(before);
                if more < Duration::from_millis(50) {
                    return disk.done(Question::Close);
                }
                spent.push(more);
            }
            bail!("it spends {spent:?}")
        })
    })
}

/// CPU time of this process.
fn cpu_time() -> Result<Duration> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Ok(Duration::new(
        u64::try_from(now.tv_sec)?,
        u32::try_from(now.tv_nsec)?,
    ))
}
