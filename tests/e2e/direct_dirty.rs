//! Images that are marked dirty, changed past the page cache: the repair before the change goes the same way.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::{image, tools};

use crate::Outcome;
use crate::block_device::Loop;

/// Content of the images, with refcounts that are not written when the program is killed.
const WRITES: [&str; 3] = ["write -P 7 100k 300k", "write -P 8 1M 70k", "abort"];

/// Commands that change an image, `X` or `FILE`, past the page cache.
const CHANGES: [&[&str]; 7] = [
    &["amend", "-t", "none", "-o", "lazy_refcounts=off", "X"],
    &[
        "bench", "-w", "-t", "none", "-c", "40", "-s", "3000", "-S", "5001", "-f", "qcow2", "X",
    ],
    &["commit", "-t", "none", "top"],
    &[
        "convert", "-n", "-t", "none", "-T", "none", "-O", "qcow2", "other", "X",
    ],
    &[
        "rebase", "-t", "none", "-T", "none", "-F", "raw", "-b", "FLAT", "X",
    ],
    &[
        "snapshot",
        "-c",
        "one",
        "--image-opts",
        "driver=qcow2,FILE,cache.direct=on",
    ],
    &["check", "-q", "-T", "none", "-r", "all", "X"],
];

/// Whether the image says that its refcounts may be wrong.
fn is_dirty(scratch: &Scratch, name: &str) -> Result<bool> {
    use std::os::unix::fs::FileExt;
    let mut bits = [0];
    std::fs::File::open(scratch.file(name))?.read_exact_at(&mut bits, 79)?;
    Ok(bits[0] & 1 == 1)
}

/// Makes an image dirty, by a program that is killed.
fn make_dirty(scratch: &Scratch, name: &str) -> Outcome {
    let commands = WRITES.iter().flat_map(|command| ["-c", command]);
    let run = Run::new(&tools::qemu_io()?, scratch.path()).args(["-f", "qcow2"]);
    let done = run.args(commands).args([name]).go()?;
    ensure!(done.signal.is_some(), "{}", done.describe());
    ensure!(is_dirty(scratch, name)?, "{name} is not dirty");
    Ok(())
}

/// A dirty image with a backing file, an overlay of it, and another image.
struct Files {
    // Detached before its file goes.
    device: Option<Loop>,
    scratch: Scratch,
}

impl Files {
    fn build(cluster: &str, device: bool) -> Result<Self> {
        let scratch = Scratch::new()?;
        scratch.set_len("base", 3 << 20)?;
        scratch.write("flat", &vec![3; 2 << 20])?;
        scratch.set_len("disk", 16 << 20)?;
        let attach = || Loop::attach(&scratch, &["--sector-size", "4096"], "disk");
        let device = device.then(attach).transpose()?;
        let files = Self { device, scratch };
        let (scratch, name) = (&files.scratch, files.name());
        let options = format!("lazy_refcounts=on,cluster_size={cluster}");
        let base = scratch.file("base").to_string_lossy().into_owned();
        let make = |more: &[&str]| {
            let head = ["create", "-q", "-f", "qcow2"];
            image::qemu_img(scratch, &[&head[..], more].concat())
        };
        make(&["-o", &options, "-b", &base, "-F", "raw", name, "3M"])?;
        make(&["-b", name, "-F", "qcow2", "top"])?;
        image::io(scratch, "top", &["write -P 9 200k 90k"])?;
        make(&["other", "3M"])?;
        image::io(scratch, "other", &["write -P 4 50k 900k"])?;
        make_dirty(scratch, name)?;
        Ok(files)
    }

    /// The dirty image: a file of the folder, or the device over it.
    fn name(&self) -> &str {
        self.device.as_ref().map_or("disk", Loop::path)
    }

    /// What is read of an image.
    fn shown(&self, name: &str) -> Result<Vec<u8>> {
        image::qemu_img(&self.scratch, &["convert", "-O", "raw", name, "shown"])?;
        self.scratch.read("shown")
    }

    /// Runs a program.
    fn change(&self, program: &Path, args: &[&str]) -> Outcome {
        let name = self.name();
        let flat = self.scratch.file("flat").to_string_lossy().into_owned();
        let driver = self.device.as_ref().map_or("file", |_| "host_device");
        let file = format!("file.driver={driver},file.filename={name}");
        let word = |word: &&str| match *word {
            "X" => name.to_owned(),
            "FLAT" => flat.clone(),
            word => word.replace("FILE", &file),
        };
        let args: Vec<String> = args.iter().map(word).collect();
        let folder = self.scratch.path().to_string_lossy();
        let run = Run::new(program, self.scratch.path()).args(&args);
        let done = run
            .env("INSTAR_ALLOW_PATH", format!("{folder}:{name}"))
            .go()?;
        done.expect_code(0).with_context(|| format!("{args:?}"))?;
        Ok(())
    }
}

/// What the image shows after a change by the oracle; by `commit`, what the overlay shows before: the oracle commits to a
/// dirty image without repairing it, and harms it.
fn wanted(cluster: &str, args: &[&str], device: bool) -> Result<Vec<u8>> {
    let files = Files::build(cluster, device)?;
    if args[0] == "commit" {
        return files.shown("top");
    }
    files.change(&tools::qemu_img()?, args)?;
    files.shown(files.name())
}

fn compare(cluster: &str, device: bool) -> Outcome {
    for args in CHANGES {
        let wanted = wanted(cluster, args, device)?;
        let files = Files::build(cluster, device)?;
        files.change(&tools::instar()?, args)?;
        let (scratch, name) = (&files.scratch, files.name());
        ensure!(!is_dirty(scratch, name)?, "{args:?}: it is dirty still");
        image::qemu_img(scratch, &["check", "-q", name]).with_context(|| format!("{args:?}"))?;
        let same = files.shown(name)? == wanted;
        ensure!(same, "{args:?}, {cluster}: other bytes");
    }
    Ok(())
}

#[test]
fn dirty_files_are_repaired_and_changed_past_the_page_cache() -> Outcome {
    compare("512", false)?;
    compare("64k", false)
}

#[test]
fn dirty_devices_with_large_sectors_are_repaired_and_changed_past_the_page_cache() -> Outcome {
    compare("4k", true)
}
