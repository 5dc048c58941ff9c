//! New images when writing them fails: an error or death at any call leaves no file that looks whole, and a disk
//! that is full is told in the words of `qemu-img`.
//!
//! `INSTAR_KILLS` lets every single call fail instead of some.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use instar_tests::compare::{differences, manners};
use instar_tests::run::{Outcome as Ran, Run};
use instar_tests::scratch::Scratch;
use instar_tests::totals::total;
use instar_tests::{faults, image, tools};

use crate::Outcome;
use crate::block_device::Loop;

/// What a target held that was there before.
const OLD: &[u8] = b"what was there";
/// What is made.
const OUT: &str = "out";
/// Calls that no command below gets to.
const FAR: u64 = 2000;

/// Commands that make [`OUT`], by the kinds of writing that they do.
const MAKERS: [&str; 15] = [
    "convert -O raw top.qcow2 out",
    "convert -O raw -S 0 -m 1 top.qcow2 out",
    "convert -O raw -C base.raw out",
    "convert -O raw -o preallocation=falloc top.qcow2 out",
    "convert -O qcow2 top.qcow2 out",
    "convert -O qcow2 -W -o cluster_size=4k top.qcow2 out",
    "convert -O qcow2 -o preallocation=metadata top.qcow2 out",
    "convert -c -O qcow2 top.qcow2 out",
    "convert -c -O qcow2 -o compression_type=zstd top.qcow2 out",
    "convert --bitmaps -O qcow2 top.qcow2 out",
    "create -f qcow2 -o preallocation=full out 8M",
    "create -f qcow2 -o cluster_size=512,preallocation=metadata out 8M",
    "create -f raw -o preallocation=full out 8M",
    "dd if=top.qcow2 of=out bs=512k",
    "dd -O qcow2 if=top.qcow2 of=out bs=512k",
];

/// Errors by number, and how they read.
const ERRNOS: [(i32, &str); 3] = [
    (libc::ENOSPC, "No space left on device"),
    (libc::EIO, "Input/output error"),
    (libc::EDQUOT, "Disk quota exceeded"),
];

fn stage() -> Result<Scratch> {
    let scratch = Scratch::new()?;
    scratch.write("base.raw", &vec![5; 3 << 20])?;
    image::create(&scratch, "top.qcow2", &[], "6M")?;
    let commands = ["write -P 6 1M 2M", "write -P 7 4M 700k"];
    image::io(&scratch, "top.qcow2", &commands)?;
    image::qemu_img(&scratch, &["bitmap", "--add", "top.qcow2", "bits"])?;
    image::io(&scratch, "top.qcow2", &["write -P 8 5M 300k"])?;
    Ok(scratch)
}

/// One command in one folder.
struct Bed<'a> {
    scratch: &'a Scratch,
    words: Vec<&'a str>,
    /// The files but for the target.
    others: BTreeSet<String>,
    /// What is made when nothing fails.
    whole: Vec<u8>,
}

impl<'a> Bed<'a> {
    fn new(scratch: &'a Scratch, words: &'a str) -> Result<Self> {
        let words: Vec<&str> = words.split(' ').collect();
        faults::plain(scratch, &words)?.go()?.expect_code(0)?;
        let whole = Self::content(scratch)?;
        std::fs::remove_file(scratch.file(OUT))?;
        let others = scratch.names()?;
        Ok(Self {
            scratch,
            words,
            others,
            whole,
        })
    }

    /// The raw content of the target, which is sound.
    fn content(scratch: &Scratch) -> Result<Vec<u8>> {
        let format = if scratch.read(OUT)?.starts_with(b"QFI\xfb") {
            image::qemu_img(scratch, &["check", "-q", OUT])?;
            "qcow2"
        } else {
            "raw"
        };
        image::qemu_img(scratch, &["convert", "-f", format, "-O", "raw", OUT, "raw"])?;
        let bytes = scratch.read("raw")?;
        std::fs::remove_file(scratch.file("raw"))?;
        Ok(bytes)
    }

    /// Runs it with a fault, and looks at what is left.
    fn fail(&self, fault: &str, existing: bool) -> Result<Ran> {
        let _ = std::fs::remove_file(self.scratch.file(OUT));
        if existing {
            self.scratch.write(OUT, OLD)?;
        }
        let done = faults::with_fault(self.scratch, &self.words, fault)?;
        self.judge(&done, existing)
            .with_context(|| format!("{fault}, existing {existing}: {}", done.describe()))?;
        Ok(done)
    }

    fn judge(&self, done: &Ran, existing: bool) -> Result<()> {
        let mut left = self.scratch.names()?;
        let is_there = left.remove(OUT);
        ensure!(left == self.others, "{left:?} are left");
        if done.code == Some(0) {
            let same = Self::content(self.scratch)? == self.whole;
            ensure!(same, "success, and the content is another");
            return Ok(());
        }
        done.expect_code(1)?;
        let wrong = manners(done);
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        ensure!(is_there == existing, "the target is there: {is_there}");
        if existing {
            let bytes = self.scratch.read(OUT)?;
            let kept = bytes.is_empty() || bytes == OLD;
            ensure!(kept, "{} bytes are left", bytes.len());
        }
        Ok(())
    }

    /// Lets all calls from one on fail, or one of them, or the process die at it; from the first call until it
    /// makes no difference any more. The number of failures.
    fn every_call(&self) -> Result<usize> {
        let all = std::env::var_os("INSTAR_KILLS").is_some();
        let (mut nth, mut failures) = (0, 0);
        let turns = ERRNOS.iter().cycle().zip(["kill", "tear"].iter().cycle());
        for (turn, ((errno, text), death)) in turns.enumerate() {
            let existing = turn % 2 == 0;
            let done = self.fail(&format!("{nth}+:{errno}"), existing)?;
            if done.code == Some(0) {
                return Ok(failures);
            }
            ensure!(nth < FAR, "call {nth} still fails");
            let first = done.err().lines().next().unwrap_or_default().to_owned();
            ensure!(first.ends_with(text), "{nth}+:{errno}: {first}");
            failures += 1;
            self.fail(&format!("{nth}:{errno}"), !existing)?;
            self.fail(&format!("{nth}:{death}"), turn % 4 < 2)?;
            nth += if all { 1 } else { 1 + 2 * nth };
        }
        Ok(failures)
    }
}

fn part(number: usize) -> Outcome {
    let scratch = stage()?;
    for words in MAKERS.iter().skip(number).step_by(2) {
        let failures = Bed::new(&scratch, words)
            .and_then(|bed| bed.every_call())
            .context(*words)?;
        ensure!(failures > 1, "{words}: {failures} failures");
        let command = words.split(' ').next().unwrap_or_default();
        total(3 * failures as u64, &format!("failing calls of {command}"));
    }
    Ok(())
}

#[test]
fn failing_calls_leave_no_new_image_first() -> Outcome {
    part(0)
}

#[test]
fn failing_calls_leave_no_new_image_second() -> Outcome {
    part(1)
}

/// A small file system, unmounted when dropped. Root only.
pub struct Small {
    folder: PathBuf,
    /// The device that it is on.
    _device: Option<Loop>,
}

impl Small {
    /// In the folder `small` of `scratch`.
    pub fn mount(scratch: &Scratch, kind: &str) -> Result<Self> {
        let folder = scratch.file("small");
        std::fs::create_dir(&folder)?;
        // The least that they are made in.
        let made: Option<(u64, &[&str])> = match kind {
            "ext4" => Some((12 << 20, &["-q", "-F", "-O", "^has_journal"])),
            "xfs" => Some((320 << 20, &["-q"])),
            "btrfs" => Some((128 << 20, &["-q"])),
            _ => None,
        };
        let device = match made {
            Some((len, options)) => {
                scratch.set_len(kind, len)?;
                let make = format!("mkfs.{kind}");
                go(scratch, &make, &[options, &[kind]].concat())?;
                Some(Loop::attach(scratch, &[], kind)?)
            }
            None => None,
        };
        let source = device.as_ref().map_or("none", Loop::path);
        let options = if kind == "tmpfs" {
            "size=8M"
        } else {
            "noatime"
        };
        go(
            scratch,
            "mount",
            &["-t", kind, "-o", options, source, "small"],
        )?;
        let _device = device;
        Ok(Self { folder, _device })
    }

    /// Bytes that can still be written.
    fn free(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.folder)?;
        Ok(stat.f_bfree * stat.f_frsize)
    }

    /// What is in it, but for what `mkfs` made.
    fn files(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.retain(|name| name != "lost+found");
        Ok(names)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}

fn go(scratch: &Scratch, program: &str, args: &[&str]) -> Result<()> {
    let done = Run::new(&tools::in_path(program.as_ref())?, scratch.path())
        .args(args)
        .go()?;
    done.expect_code(0)
        .with_context(|| format!("{program} {args:?}: this test needs root"))
        .map(drop)
}

/// Commands for which the small file system has no room.
const TOO_LARGE: [&str; 14] = [
    "convert -O raw big.qcow2 small/out",
    "convert -O raw -C big.raw small/out",
    "convert -O raw -o preallocation=falloc big.qcow2 small/out",
    "convert -O raw -o preallocation=full big.qcow2 small/out",
    "convert -O qcow2 big.qcow2 small/out",
    "convert -O qcow2 -o preallocation=falloc big.qcow2 small/out",
    "convert -O qcow2 -o preallocation=full big.qcow2 small/out",
    "convert -c -O qcow2 noise.raw small/out",
    "create -f qcow2 -o preallocation=falloc small/out 24M",
    "create -f qcow2 -o preallocation=full small/out 24M",
    "create -f raw -o preallocation=falloc small/out 24M",
    "create -f raw -o preallocation=full small/out 24M",
    "dd if=big.qcow2 of=small/out bs=1M",
    "dd -O qcow2 if=big.qcow2 of=small/out bs=1M",
];

/// Where writing failed depends on the size of requests.
fn without_place(mut ran: Ran) -> Ran {
    let text = ran.err();
    if let Some((before, after)) = text.split_once("at byte ") {
        let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
        ran.stderr = format!("{before}at byte N{after}").into_bytes();
    }
    ran
}

fn full(kind: &str) -> Outcome {
    let scratch = Scratch::new()?;
    scratch.write("big.raw", &vec![5; 24 << 20])?;
    image::create(&scratch, "big.qcow2", &[], "24M")?;
    image::io(&scratch, "big.qcow2", &["write -P 5 0 24M"])?;
    let mut rng = instar_tests::rng::Rng::for_test("noise");
    let words = std::iter::repeat_with(|| rng.next_u64().to_le_bytes());
    scratch.write(
        "noise.raw",
        &words.take(2 << 20).flatten().collect::<Vec<u8>>(),
    )?;
    let small = Small::mount(&scratch, kind)?;
    let free = small.free()?;
    for line in TOO_LARGE {
        let words: Vec<&str> = line.split(' ').collect();
        for existing in [false, true] {
            if existing {
                scratch.write("small/out", OLD)?;
            }
            let got = Run::new(&tools::instar()?, scratch.path())
                .args(&words)
                .go()?;
            let wrong = manners(&got);
            ensure!(wrong.is_empty(), "{line}: {wrong:?}\n{}", got.describe());
            let files = small.files()?;
            ensure!(files.len() == usize::from(existing), "{line}: {files:?}");
            if existing {
                let bytes = scratch.read("small/out")?;
                ensure!(bytes.is_empty() || bytes == OLD, "{line}: {}", bytes.len());
                std::fs::remove_file(scratch.file("small/out"))?;
            }
            let missing = free.saturating_sub(small.free()?);
            ensure!(missing <= 64 << 10, "{line}: {missing} bytes are lost");
            let want = Run::new(&tools::qemu_img()?, scratch.path())
                .args(&words)
                .go()?;
            let _ = std::fs::remove_file(scratch.file("small/out"));
            let (want, got) = (without_place(want), without_place(got));
            let wrong = differences(&want, &got);
            let (want, got) = (want.describe(), got.describe());
            ensure!(wrong.is_empty(), "{line}: {wrong:?}\n{want}\n{got}");
        }
    }
    // And there is room for what is small.
    let words = ["convert", "-O", "qcow2", "-c", "big.qcow2", "small/out"];
    let done = faults::plain(&scratch, &words)?.go()?;
    done.expect_code(0)?;
    image::qemu_img(&scratch, &["compare", "big.qcow2", "small/out"]).map(drop)
}

#[test]
fn a_full_tmpfs_is_told_and_left_empty() -> Outcome {
    full("tmpfs")
}

#[test]
fn a_full_ext4_is_told_and_left_empty() -> Outcome {
    full("ext4")
}
