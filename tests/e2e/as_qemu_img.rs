//! Started as `qemu-img`, through a link of that name: the same bytes on both streams and the same exit codes.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use instar_tests::run::{self, Run};
use instar_tests::scratch::Scratch;
use instar_tests::{image, tools};

use crate::Outcome;

/// Calls one after the other: each program makes its own files with them.
const CALLS: &[&[&str]] = &[
    // Wrong use.
    &[],
    &["bogus"],
    &["completions", "bash"],
    &["manual", "--bogus"],
    &["-x"],
    &["--bogus"],
    &["--trace"],
    &["-T"],
    &["info"],
    &["info", "a", "b"],
    &["info", "--bogus", "a"],
    &["info", "--bogus=3", "a"],
    &["info", "-z", "a"],
    &["info", "-f"],
    &["info", "--output"],
    &["info", "--output=xml", "a"],
    &["check", "--quiet=3", "a"],
    &["check", "-T"],
    &["check", "-T", "bogus", "a"],
    &["check", "-r", "bogus", "a"],
    &["check", "--f", "a"],
    &["compare", "a"],
    &["create"],
    &["create", "-f"],
    &["create", "-f", "bogus", "a", "1M"],
    &["create", "-f", "qcow2", "-o", "bogus=3", "a", "1M"],
    &["convert", "a"],
    &["convert", "--bogus=3", "a"],
    &["convert", "--target-image-opts", "a", "b"],
    &["dd"],
    &["dd", "if=a"],
    &["resize", "a"],
    &["resize", "--shrink"],
    &["resize", "a", "b", "c"],
    &["resize", "-U", "a", "1M"],
    &["snapshot"],
    &["snapshot", "-c"],
    &["snapshot", "-l", "-c", "x", "a"],
    &["amend", "a"],
    &["amend", "-o", "size=3"],
    &["bitmap", "a"],
    &["bitmap", "--add", "a"],
    &["map"],
    &["measure"],
    &["bench"],
    // What is not there.
    &["info", "missing"],
    &["check", "missing"],
    &["map", "missing"],
    &["compare", "missing", "missing"],
    &["convert", "missing", "new"],
    &["resize", "missing", "1M"],
    &["snapshot", "-l", "missing"],
    &["info", "-f", "raw", "."],
    &["create", "-f", "qcow2", "no/such", "1M"],
    // The call lines of libvirt.
    &[
        "create",
        "-f",
        "qcow2",
        "-o",
        "preallocation=metadata,compat=1.1,lazy_refcounts",
        "vol",
        "1048576K",
    ],
    &["create", "-f", "raw", "flat", "64M"],
    &[
        "info",
        "--force-share",
        "--output=json",
        "--backing-chain",
        "vol",
    ],
    &[
        "create",
        "-f",
        "qcow2",
        "-o",
        "backing_fmt=qcow2,compat=1.1",
        "-b",
        "vol",
        "top",
        "1048576K",
    ],
    &["resize", "-f", "qcow2", "top", "2G"],
    &["resize", "--shrink", "top", "1G"],
    &["snapshot", "-c", "first", "top"],
    &["snapshot", "-a", "first", "top"],
    &["snapshot", "-d", "first", "top"],
    &["snapshot", "-d", "first", "top"],
    // And of nova.
    &["info", "flat", "--force-share", "--output=json"],
    &[
        "convert", "-t", "none", "-O", "qcow2", "-f", "raw", "flat", "copy",
    ],
    &[
        "convert",
        "-O",
        "qcow2",
        "-f",
        "raw",
        "-o",
        "preallocation=metadata",
        "flat",
        "copy2",
    ],
    &["convert", "-f", "qcow2", "-O", "raw", "-p", "copy", "flat2"],
    &["resize", "-q", "flat", "65M"],
    &["resize", "copy", "10M"],
    &[
        "create",
        "-f",
        "qcow2",
        "-o",
        "backing_file=flat,backing_fmt=raw,size=68157440",
        "overlay",
    ],
    &[
        "convert", "-t", "none", "-O", "raw", "-f", "qcow2", "overlay", "flat4",
    ],
    &[
        "convert", "-t", "none", "-O", "qcow2", "-c", "-f", "qcow2", "overlay", "copy5",
    ],
    &[
        "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "flat2", "overlay",
    ],
    &["rebase", "-b", "flat", "-F", "raw", "overlay"],
    &["rebase", "-u", "-b", "", "-F", "raw", "overlay"],
    &[
        "rebase", "-f", "qcow2", "-u", "-b", "flat", "-F", "raw", "overlay",
    ],
    &["commit", "-t", "none", "overlay"],
    &[
        "convert",
        "-n",
        "-t",
        "directsync",
        "-f",
        "raw",
        "-O",
        "raw",
        "flat",
        "flat4",
    ],
    // The rest.
    &["check", "-q", "copy"],
    &["check", "--output=json", "copy"],
    &["check", "flat"],
    &["compare", "copy", "flat2"],
    &["compare", "-s", "copy", "flat"],
    &["map", "--output=json", "top"],
    &["measure", "-O", "qcow2", "copy"],
    &["bitmap", "--add", "copy", "bits"],
    &["bitmap", "--add", "copy", "bits"],
    &["bitmap", "--remove", "copy", "bits"],
    &["amend", "-o", "compat=0.10", "copy"],
    &["amend", "-p", "-o", "lazy_refcounts=on", "copy"],
    &[
        "dd", "-f", "raw", "-O", "raw", "bs=1M", "count=2", "if=flat2", "of=flat3",
    ],
    &["--trace", "qcow2_*", "info", "--output=json", "flat3"],
    // Names that the help does not tell.
    &[
        "convert",
        "--output-format=qcow2",
        "--options",
        "cluster_size=4k",
        "--output-cache",
        "unsafe",
        "flat3",
        "copy3",
    ],
    &["convert", "--snapshot", "bogus", "copy3", "copy4"],
    &["convert", "-p", "copy3", "copy4"],
    &[
        "compare",
        "--left-format=qcow2",
        "--right-format",
        "raw",
        "copy3",
        "flat3",
    ],
    &["amend", "-q", "--options", "compat=0.10", "copy3"],
];

/// A program with a folder of its own, found by its name as scripts find it.
struct Party {
    /// What `PATH` says.
    folder: PathBuf,
    scratch: Scratch,
}

impl Party {
    fn new(program: PathBuf) -> Result<Self> {
        let folder = program
            .parent()
            .context("a program in no folder")?
            .to_owned();
        let scratch = Scratch::new()?;
        Ok(Self { folder, scratch })
    }

    fn run(&self, args: &[&str]) -> Result<run::Outcome> {
        Run::new(Path::new("qemu-img"), self.scratch.path())
            .env("PATH", &self.folder)
            .args(args)
            .go()
    }
}

/// Without what depends on time and on where blocks landed on the host's disk: percentages between the first and what
/// follows the last, and sizes on the disk.
fn lasting(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = match (text.split_once('\r'), text.rsplit_once('\r')) {
        (Some((first, _)), Some((_, end))) => format!("{first}\r{end}"),
        _ => text.into_owned(),
    };
    let kept = text.split_inclusive('\n').filter(|line| {
        let line = line.trim_start();
        !line.starts_with("disk size: ") && !line.starts_with("\"actual-size\": ")
    });
    kept.collect()
}

fn link_to_instar(folder: &Scratch) -> Result<PathBuf> {
    let link = folder.file("qemu-img");
    symlink(std::path::absolute(tools::instar()?)?, &link).context("making the link")?;
    Ok(link)
}

#[test]
fn streams_and_exit_codes_are_the_oracles() -> Outcome {
    same_calls(CALLS, &Scratch::new()?)
}

/// Has both programs do the calls one after the other, each in a copy of the folder `images`, and
/// compares streams and exit codes.
pub fn same_calls(calls: &[&[&str]], images: &Scratch) -> Outcome {
    let bin = Scratch::new()?;
    let oracle = Party::new(tools::qemu_img()?)?;
    let ours = Party::new(link_to_instar(&bin)?)?;
    for party in [&oracle, &ours] {
        for file in std::fs::read_dir(images.path())? {
            let file = file?;
            std::fs::copy(file.path(), party.scratch.path().join(file.file_name()))?;
        }
    }
    let mut failures = Vec::new();
    for args in calls {
        let (want, got) = (oracle.run(args)?, ours.run(args)?);
        let same = want.code == got.code
            && lasting(&want.stdout) == lasting(&got.stdout)
            && want.stderr == got.stderr;
        if !same {
            failures.push(format!(
                "{args:?}\nqemu-img {}\ninstar {}",
                want.describe(),
                got.describe()
            ));
        }
    }
    ensure!(
        failures.is_empty(),
        "{} of {} calls differ:\n{}",
        failures.len(),
        calls.len(),
        failures.join("\n==========\n")
    );
    Ok(())
}

#[test]
fn version_and_help_name_both() -> Outcome {
    let bin = Scratch::new()?;
    let party = Party::new(link_to_instar(&bin)?)?;
    let number = env!("CARGO_PKG_VERSION");
    let first = format!("qemu-img version 10.0.2 (instar {number})");
    for args in [&["--version"][..], &["-V"], &["--help"], &["-h"]] {
        let done = party.run(args)?;
        done.expect_code(0)?;
        ensure!(
            done.out().lines().next() == Some(&first),
            "{}",
            done.describe()
        );
    }
    let help = party.run(&["info", "--help"])?;
    ensure!(help.out().contains("qemu-img info "), "{}", help.describe());
    Ok(())
}

#[test]
fn hints_are_not_given() -> Outcome {
    let bin = Scratch::new()?;
    let party = Party::new(link_to_instar(&bin)?)?;
    image::create(&party.scratch, "disk.qcow2", &[], "1M")?;
    for args in [&["resize", "disk.qcow2", "-5M"][..], &["info", "missing"]] {
        let done = party.run(args)?;
        done.expect_code(1)?;
        ensure!(!done.err().contains("hint: "), "{}", done.describe());
    }
    Ok(())
}
