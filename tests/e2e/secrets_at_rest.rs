//! Where a password is while an operation goes on: in no command line, no environment, and in the memory of none of
//! the processes that are at work.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use instar_tests::family;
use instar_tests::image;
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::tools;

use crate::Outcome;

/// The password; its half is looked for.
pub const WORD: &str = "aSecretThatIsNowhereElse-aSecretThatIsNowhereElse";
/// How long a run may take to get to its work.
const PATIENCE: Duration = Duration::from_secs(120);
const PAGE: u64 = 4096;
/// Pages that are read at once.
const CHUNK: u64 = 512;

fn has(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}

/// Whether `word` is in a page of the process that is there: what was never touched is not read.
fn memory_has(pid: u32, word: &[u8]) -> Result<bool> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut pages = File::open(format!("/proc/{pid}/pagemap"))?;
    let mut looked = 0;
    for line in maps.lines() {
        let (range, _) = line.split_once(' ').context("a map without a range")?;
        let (start, end) = range.split_once('-').context("a range without an end")?;
        let (start, end) = (
            u64::from_str_radix(start, 16)?,
            u64::from_str_radix(end, 16)?,
        );
        let mut at = start;
        while at < end {
            let count = CHUNK.min((end - at) / PAGE);
            let mut entries = vec![0; usize::try_from(count * 8)?];
            pages.seek(SeekFrom::Start(at / PAGE * 8))?;
            let read = pages.read(&mut entries)?;
            let present = |entry: &[u8]| entry[7] & 0xc0 != 0;
            if entries[..read].chunks(8).any(present) {
                let mut bytes = vec![0; usize::try_from(count * PAGE)?];
                memory.seek(SeekFrom::Start(at))?;
                // What the kernel does not give is no memory of the process.
                let read = memory.read(&mut bytes).unwrap_or(0);
                looked += read;
                if has(&bytes[..read], word) {
                    return Ok(true);
                }
            }
            at += count * PAGE;
        }
    }
    ensure!(
        looked > 1 << 20,
        "only {looked} bytes of {pid} could be read"
    );
    Ok(false)
}

/// Waits until a run has written some of `target`: it is at work then, and has its keys.
pub fn wait_until_it_writes(scratch: &Scratch, child: &mut Child, target: &str) -> Outcome {
    let started = Instant::now();
    let before = blocks(scratch, target);
    while blocks(scratch, target) <= before + 256 {
        ensure!(started.elapsed() < PATIENCE, "nothing is written");
        ensure!(child.try_wait()?.is_none(), "it ended");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Where the password is in a run, once `target` has become `len` bytes of data or longer.
fn look(scratch: &Scratch, args: &[&str], target: &str) -> Outcome {
    let mut child = Run::new(&tools::instar()?, scratch.path())
        .args(args)
        .start()?;
    wait_until_it_writes(scratch, &mut child, target).with_context(|| format!("{args:?}"))?;
    let mut found = family::of(child.id());
    // Who has ended has no memory.
    found.retain(|pid| family::is_there(*pid));
    let half = &WORD.as_bytes()[..WORD.len() / 2];
    let mut outcome = Ok(());
    for (index, pid) in found.iter().enumerate() {
        for file in ["cmdline", "environ"] {
            let bytes = std::fs::read(format!("/proc/{pid}/{file}"))?;
            ensure!(!has(&bytes, half), "{args:?}: in {file} of process {index}");
        }
        if outcome.is_ok() && memory_has(*pid, half)? {
            outcome = Err(anyhow::anyhow!(
                "{args:?}: in the memory of process {index}"
            ));
        }
    }
    family::kill(&mut child)?;
    ensure!(found.len() > 1, "{args:?}: there is no worker");
    outcome
}

/// Blocks that the file has, 0 if it is not there yet.
fn blocks(scratch: &Scratch, name: &str) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(scratch.file(name)).map_or(0, |seen| seen.blocks())
}

#[test]
fn a_password_is_not_kept_while_data_is_copied() -> Outcome {
    let scratch = Scratch::new()?;
    std::fs::write(scratch.file("word"), WORD)?;
    let secret = ["--object", "secret,id=s,file=word"];
    let create = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "--object",
        "secret,id=s,file=word",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
        "locked",
        "64M",
    ];
    image::qemu_img(&scratch, &create)?;
    std::fs::write(scratch.file("flat"), vec![7; 64 << 20])?;
    let list = "driver=qcow2,file.filename=locked,encrypt.key-secret=s";
    let fill = [
        &["convert", "-n"][..],
        &secret,
        &["--target-image-opts", "flat", list],
    ]
    .concat();
    let full = Run::new(&tools::instar()?, scratch.path())
        .args(&fill)
        .go()?;
    full.expect_code(0)?;
    std::fs::write(scratch.file("empty"), "")?;
    File::options()
        .write(true)
        .open(scratch.file("empty"))?
        .set_len(64 << 20)?;
    let from = [
        &["convert", "-n", "-r", "1M"][..],
        &secret,
        &["--image-opts", list, "empty"],
    ]
    .concat();
    look(&scratch, &from, "empty")?;
    image::qemu_img(&scratch, &create)?;
    let into = [
        &["convert", "-n", "-r", "1M"][..],
        &secret,
        &["--target-image-opts", "flat", list],
    ]
    .concat();
    look(&scratch, &into, "locked")?;
    image::qemu_img(&scratch, &create)?;
    image::qemu_img(&scratch, &["convert", "-O", "qcow2", "flat", "over"])?;
    let rebase = ["rebase", "-u", "-F", "qcow2", "-b", "locked", "over"];
    image::qemu_img(&scratch, &rebase)?;
    let over = "driver=qcow2,file.filename=over,backing.encrypt.key-secret=s";
    let commit = [
        &["commit", "-r", "1M"][..],
        &secret,
        &["--image-opts", over],
    ]
    .concat();
    look(&scratch, &commit, "locked")
}
