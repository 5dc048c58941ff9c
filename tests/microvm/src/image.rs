//! Runs the operations of the product over an image, and damages images.

use crate::guest::{limits, operation_file};
use anyhow::{Context, Result, bail, ensure};
use instar_shared::check::{CheckConfig, CheckResult};
use instar_shared::control::{FileRequest, FileResponse, FileStatus};
use instar_shared::info::{InfoConfig, InfoResult};
use instar_shared::op::Outcome;
use instar_shared::record::{Failure, FailureKind, RecordKind};
use instar_shared::zerocopy::{FromBytes, IntoBytes};
use instar_tests::rng::Rng;
use instar_vmm::operation::{Operation, OperationFile, OperationHost, OperationSpec, RunError};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::process::Command;
use std::sync::atomic::AtomicBool;

/// How an operation ended: what it said of the image, and how many records it sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Of `info`.
    pub info: Outcome,
    /// Of `check`.
    pub check: Outcome,
    /// Records of both.
    pub records: usize,
}

/// The owner of a microVM that runs an operation: no other file is opened.
#[derive(Default)]
struct Strict {
    records: usize,
    failures: usize,
}

impl OperationHost for Strict {
    fn open_file(&mut self, _: &FileRequest) -> Result<OperationFile, FileResponse> {
        Err(FileResponse {
            status: FileStatus::Refused.raw().into(),
            errno: 0.into(),
        })
    }

    fn record(&mut self, kind: RecordKind, payload: &[u8]) -> Result<(), String> {
        self.records = self.records.saturating_add(1);
        if kind == RecordKind::Failure {
            let (head, text) =
                Failure::read_from_prefix(payload).map_err(|_| "a failure cut short")?;
            FailureKind::try_from(head.kind.get()).map_err(|_| "a failure of no kind")?;
            let text = std::str::from_utf8(text).map_err(|_| "a failure that is no text")?;
            if text.is_empty() {
                return Err("a failure without a reason".into());
            }
            self.failures = self.failures.saturating_add(1);
        }
        Ok(())
    }
}

/// Runs `info` and `check` over `image` in a microVM each.
///
/// # Errors
/// The operation crashed, panicked, made no progress or broke its contract; or it says that it is
/// done and gives a reason for a failure, or the other way round.
pub fn run_image(image: &File) -> Result<Verdict> {
    let config = InfoConfig::zeroed();
    let (info, first) = run(instar_op_images::INFO, config.as_bytes(), image).context("info")?;
    let config = CheckConfig::zeroed();
    let (check, second) =
        run(instar_op_images::CHECK, config.as_bytes(), image).context("check")?;
    Ok(Verdict {
        info,
        check,
        records: first + second,
    })
}

fn run(elf: &'static [u8], config: &[u8], image: &File) -> Result<(Outcome, usize)> {
    static NEVER: AtomicBool = AtomicBool::new(false);
    let spec = OperationSpec {
        elf,
        config: config.to_vec(),
        files: vec![operation_file(image.try_clone()?)?],
        secrets: Vec::new(),
        limits: limits(10_000, 60_000),
        resident: false,
        cancel: &NEVER,
    };
    let mut host = Strict::default();
    let operation = Operation::prepare(spec)?;
    let completed = operation
        .run(&mut host)
        .map_err(|error: RunError| anyhow::anyhow!("{error}"))?;
    let outcome = match outcome_of(&completed.result) {
        Some(Outcome::None) | None => bail!("the result says nothing"),
        Some(outcome) => outcome,
    };
    ensure!(
        (outcome == Outcome::Failed) == (host.failures > 0),
        "outcome {outcome:?} with {} failure records",
        host.failures
    );
    Ok((outcome, host.records))
}

/// Both results start with their outcome.
fn outcome_of(result: &[u8]) -> Option<Outcome> {
    const { assert!(std::mem::offset_of!(InfoResult, outcome) == 0) };
    const { assert!(std::mem::offset_of!(CheckResult, outcome) == 0) };
    let raw: [u8; 4] = result.get(..4)?.try_into().ok()?;
    Outcome::try_from(u32::from_le_bytes(raw)).ok()
}

/// Small images by `qemu-img`, by name: plain, with snapshots, bitmaps, LUKS, wide refcounts and more.
///
/// # Errors
/// `qemu-img` is missing, of another version, or refuses.
pub fn seed_images() -> Result<BTreeMap<&'static str, Vec<u8>>> {
    let tool = instar_tests::tools::qemu_img()?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("seed.qcow2");
    let mut images = BTreeMap::new();
    for (name, options, steps) in SEEDS {
        let mut create = Command::new(&tool);
        create.args(["create", "-q", "-f", "qcow2"]);
        create.args(options.iter()).arg(&path).arg("300K");
        succeed(&mut create)?;
        for step in *steps {
            let mut command = Command::new(if step[0] == "qemu-io" {
                instar_tests::tools::qemu_io()?
            } else {
                tool.clone()
            });
            let words = step.iter().skip(1).map(|word| match *word {
                "IMAGE" => path.as_os_str(),
                word => word.as_ref(),
            });
            succeed(command.args(words))?;
        }
        images.insert(*name, std::fs::read(&path)?);
        std::fs::remove_file(&path)?;
    }
    Ok(images)
}

type Steps = &'static [&'static [&'static str]];

const FILL: &[&str] = &[
    "qemu-io",
    "-f",
    "qcow2",
    "-c",
    "write 3K 20K",
    "-c",
    "write 200K 9K",
    "IMAGE",
];
const SNAPSHOT: &[&str] = &["qemu-img", "snapshot", "-c", "first", "IMAGE"];
const BITMAP: &[&str] = &["qemu-img", "bitmap", "--add", "IMAGE", "bitmap0"];

/// Name, options of `create`, and what is done to the image then.
const SEEDS: &[(&str, &[&str], Steps)] = &[
    ("plain", &["-o", "cluster_size=512"], &[FILL]),
    (
        "v2",
        &["-o", "compat=0.10,cluster_size=512"],
        &[FILL, SNAPSHOT],
    ),
    (
        "snapshots",
        &["-o", "cluster_size=512"],
        &[FILL, SNAPSHOT, FILL, SNAPSHOT, SNAPSHOT],
    ),
    (
        "bitmaps",
        &["-o", "cluster_size=4096"],
        &[FILL, BITMAP, SNAPSHOT],
    ),
    (
        "narrow",
        &["-o", "cluster_size=512,refcount_bits=1"],
        &[FILL],
    ),
    (
        "wide",
        &["-o", "cluster_size=1024,refcount_bits=64,lazy_refcounts=on"],
        &[FILL],
    ),
    (
        "extended",
        &["-o", "cluster_size=16384,extended_l2=on"],
        &[FILL],
    ),
    (
        "zstd",
        &["-o", "cluster_size=512,compression_type=zstd"],
        &[FILL],
    ),
    (
        "luks",
        &[
            "--object",
            "secret,id=s,data=abc",
            "-o",
            "cluster_size=512,encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
        ],
        &[],
    ),
    (
        "backing",
        &[
            "-u",
            "-b",
            "base.raw",
            "-F",
            "raw",
            "-o",
            "cluster_size=512",
        ],
        &[],
    ),
];

fn succeed(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Damages `image`: a few bytes, words or pieces, most of them near the front or where tables lie.
pub fn mutate(image: &mut Vec<u8>, rng: &mut Rng) {
    for _ in 0..=rng.below(4) {
        let len = image.len() as u64;
        let at = match rng.below(3) {
            0 => rng.below(112.min(len)),
            1 => rng.below(4096.min(len)),
            _ => rng.below(len),
        };
        let at = usize::try_from(at).unwrap_or(0);
        match rng.below(8) {
            0 => flip(image, at, 1 << rng.below(8)),
            1 => put(image, at, &[rng.next_u64().to_le_bytes()[0]]),
            2 => put(image, at & !7, &rng.next_u64().to_be_bytes()),
            3 => put(image, at & !3, &interesting(rng).to_be_bytes()[4..]),
            4 => put(image, at & !7, &interesting(rng).to_be_bytes()),
            5 => put(image, at & !7, &entry(rng, len).to_be_bytes()),
            6 => image.truncate(at.max(1)),
            _ => {
                let from = usize::try_from(rng.below(len)).unwrap_or(0) & !7;
                let piece: Vec<u8> = image.iter().skip(from).take(64).copied().collect();
                put(image, at & !7, &piece);
            }
        }
    }
}

fn flip(image: &mut [u8], at: usize, bits: u8) {
    if let Some(byte) = image.get_mut(at) {
        *byte ^= bits;
    }
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in image.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

fn interesting(rng: &mut Rng) -> u64 {
    let edge = *rng.pick(&[0_u64, 1, 7, 8, 9, 21, 31, 32, 56, 62, 63]);
    let power = 1_u64 << edge;
    *rng.pick(&[
        power,
        power - 1,
        power + 1,
        u64::MAX,
        u64::MAX - power,
        u64::from(u32::MAX),
    ])
}

/// Something like a table entry: an offset in or just past the image, with flags.
fn entry(rng: &mut Rng, len: u64) -> u64 {
    let flags = *rng.pick(&[0, 1 << 63, 1 << 62, 1, 3 << 62]);
    (rng.below(len * 2) & !511) | flags
}

/// `bytes` as an open file.
///
/// # Errors
/// What the system says.
pub fn image_file(bytes: &[u8]) -> Result<File> {
    let mut file = tempfile::tempfile()?;
    file.write_all(bytes)?;
    Ok(file)
}
