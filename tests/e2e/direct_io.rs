//! Cache modes that pass by the page cache: the descriptors have `O_DIRECT`, the content is the same to the byte, and
//! a file system without direct I/O refuses it in `qemu-img`'s words.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use instar_tests::compare::Bench;
use instar_tests::rng::Rng;
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::{image, live, tools};

use crate::Outcome;
use crate::block_device::Loop;

/// How long a process may take to open its files.
const PATIENCE: Duration = Duration::from_secs(120);

fn go(scratch: &Scratch, program: &Path, args: &[&str]) -> Outcome {
    let done = Run::new(program, scratch.path()).args(args).go()?;
    done.expect_code(0).with_context(|| format!("{args:?}"))?;
    Ok(())
}

fn instar(scratch: &Scratch, args: &[&str]) -> Outcome {
    go(scratch, &tools::instar()?, args)
}

fn qemu_img(scratch: &Scratch, args: &[&str]) -> Outcome {
    go(scratch, &tools::qemu_img()?, args)
}

fn random_bytes(rng: &mut Rng, len: usize) -> Vec<u8> {
    let words = std::iter::repeat_with(|| rng.next_u64().to_le_bytes());
    words.take(len.div_ceil(8)).flatten().take(len).collect()
}

/// The files of the folder that a process has open, and whether past the page cache.
fn open_files(folder: &Path, pid: u32) -> Result<BTreeMap<String, bool>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let Ok(path) = std::fs::read_link(entry.path()) else {
            continue;
        };
        let (Ok(name), Some(number)) = (
            path.strip_prefix(folder),
            entry.file_name().into_string().ok(),
        ) else {
            continue;
        };
        let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"))?;
        let flags = info
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .context("flags")?;
        let flags = u32::from_str_radix(flags.trim(), 8)?;
        // What has no name yet is the target.
        let name = name.to_string_lossy();
        let name = if name.starts_with('#') {
            "target".to_owned()
        } else {
            name.into_owned()
        };
        found.insert(name, flags & rustix::fs::OFlags::DIRECT.bits() != 0);
    }
    Ok(found)
}

fn child_of(parent: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok();
    if let Some(children) = children {
        return children.split(' ').find_map(|pid| pid.parse().ok());
    }
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| live::status(*pid, "PPid").is_ok_and(|ppid| ppid == parent.to_string()))
}

/// The files that the worker of a long run has open, once there are `count`.
fn held_by(scratch: &Scratch, args: &[&str], count: usize) -> Result<BTreeMap<String, bool>> {
    let folder = scratch.path().canonicalize()?;
    let mut child = Run::new(&tools::instar()?, scratch.path())
        .args(args)
        .start()?;
    let started = Instant::now();
    let mut seen = BTreeMap::new();
    while started.elapsed() < PATIENCE && seen.len() < count && child.try_wait()?.is_none() {
        std::thread::sleep(Duration::from_millis(5));
        let worker = child_of(child.id());
        seen = worker
            .map_or(Ok(seen), |worker| open_files(&folder, worker))
            .unwrap_or_default();
    }
    let _ = child.kill();
    child.wait()?;
    if seen.len() < count {
        bail!("{args:?}: {count} files expected: {seen:?}");
    }
    Ok(seen)
}

#[test]
fn descriptors_pass_by_the_page_cache() -> Outcome {
    let scratch = Scratch::new()?;
    let bytes = random_bytes(&mut Rng::for_test("direct descriptors"), 16 << 20);
    scratch.write("base", &bytes)?;
    for top in ["top", "other"] {
        qemu_img(
            &scratch,
            &[
                "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", top,
            ],
        )?;
    }
    let convert = ["convert", "-r", "1M", "-O", "raw", "top", "target"];
    let bench = ["bench", "-c", "100000000", "top"];
    for (args, modes, direct) in [
        (&convert[..], &["-T", "none"][..], &["base", "top"][..]),
        (&convert, &["-t", "none"], &["target"]),
        (
            &convert,
            &["-T", "directsync", "-t", "off"],
            &["base", "top", "target"],
        ),
        (&convert, &["-T", "unsafe", "-t", "writethrough"], &[]),
        (&bench, &["-t", "none"], &["base", "top"]),
        (&bench, &[], &[]),
    ] {
        let args = [args, modes].concat();
        let count = if args.contains(&"target") { 3 } else { 2 };
        for (name, is_direct) in held_by(&scratch, &args, count)? {
            ensure!(
                is_direct == direct.contains(&name.as_str()),
                "{args:?}: {name}: {is_direct}"
            );
        }
    }
    Ok(())
}

#[test]
fn content_is_the_same_to_the_byte() -> Outcome {
    let scratch = Scratch::new()?;
    let mut rng = Rng::for_test("direct content");
    let past = ["-t", "none", "-T", "none"];
    for (round, cluster) in ["512", "4k", "64k", "2M"].into_iter().enumerate() {
        let len = 3_000_000 + usize::try_from(rng.below(5000))?;
        scratch.write("a.raw", &random_bytes(&mut rng, len))?;
        let options = format!("cluster_size={cluster}");
        let to = [
            "convert", "-f", "raw", "-O", "qcow2", "-o", &options, "a.raw", "b.qcow2",
        ];
        let packed = if round % 2 == 0 { &["-c"][..] } else { &[] };
        instar(&scratch, &[&to[..], &past, packed].concat())?;
        qemu_img(&scratch, &["check", "-q", "b.qcow2"])?;
        qemu_img(
            &scratch,
            &["compare", "-f", "raw", "-F", "qcow2", "a.raw", "b.qcow2"],
        )?;
        instar(
            &scratch,
            &[&["convert", "-O", "raw", "b.qcow2", "c.raw"][..], &past].concat(),
        )?;
        qemu_img(&scratch, &["convert", "-O", "raw", "b.qcow2", "d.raw"])?;
        ensure!(
            scratch.read("c.raw")? == scratch.read("d.raw")?,
            "seed {}: {cluster}",
            rng.seed()
        );
        instar(&scratch, &["check", "-q", "-T", "none", "b.qcow2"])?;
        instar(&scratch, &["compare", "-T", "none", "c.raw", "b.qcow2"])?;
        changed_past_the_cache(&scratch)?;
    }
    Ok(())
}

/// Overlays of `b.qcow2` and `d.raw`, committed, rebased and amended, against what the oracle makes of them.
fn changed_past_the_cache(scratch: &Scratch) -> Outcome {
    let overlay = [
        "create", "-q", "-f", "qcow2", "-b", "b.qcow2", "-F", "qcow2", "o.qcow2",
    ];
    let write = ["write -P 7 1000 70000", "write -P 9 2999000 1000"];
    qemu_img(scratch, &overlay)?;
    image::io(scratch, "o.qcow2", &write)?;
    qemu_img(scratch, &["convert", "-O", "raw", "o.qcow2", "e.raw"])?;
    instar(
        scratch,
        &["rebase", "-t", "none", "-T", "none", "-b", "", "o.qcow2"],
    )?;
    qemu_img(scratch, &["check", "-q", "o.qcow2"])?;
    qemu_img(scratch, &["compare", "o.qcow2", "e.raw"])?;
    qemu_img(scratch, &overlay)?;
    image::io(scratch, "o.qcow2", &write)?;
    instar(scratch, &["commit", "-q", "-t", "none", "o.qcow2"])?;
    instar(
        scratch,
        &[
            "amend",
            "-t",
            "directsync",
            "-o",
            "lazy_refcounts=on",
            "b.qcow2",
        ],
    )?;
    qemu_img(scratch, &["check", "-q", "b.qcow2"])?;
    qemu_img(scratch, &["compare", "b.qcow2", "e.raw"])
}

#[test]
fn small_writes_leave_what_is_beside_them() -> Outcome {
    let scratch = Scratch::new()?;
    let bytes = random_bytes(&mut Rng::for_test("direct writes"), 1_000_960);
    let plan = [
        "bench",
        "-w",
        "-t",
        "none",
        "-c",
        "300",
        "-d",
        "8",
        "-s",
        "1000",
        "-S",
        "3001",
        "-o",
        "100",
        "--pattern",
        "65",
        "-f",
        "raw",
        "disk",
    ];
    let mut results = Vec::new();
    for program in [tools::qemu_img()?, tools::instar()?] {
        scratch.write("disk", &bytes)?;
        go(&scratch, &program, &plan)?;
        results.push(scratch.read("disk")?);
    }
    ensure!(
        results[0] != bytes && results[0] == results[1],
        "other bytes"
    );
    Ok(())
}

#[test]
fn devices_with_large_sectors_are_written() -> Outcome {
    let scratch = Scratch::new()?;
    let bytes = random_bytes(&mut Rng::for_test("direct device"), 5 << 20);
    scratch.write("a.raw", &bytes)?;
    scratch.set_len("backing", 16 << 20)?;
    let device = Loop::attach(&scratch, &["--sector-size", "4096"], "backing")?;
    for format in ["raw", "qcow2"] {
        if format == "qcow2" {
            qemu_img(
                &scratch,
                &["create", "-q", "-f", "qcow2", device.path(), "5M"],
            )?;
        }
        instar(
            &scratch,
            &[
                "convert",
                "-n",
                "-t",
                "none",
                "-T",
                "none",
                "-f",
                "raw",
                "-O",
                format,
                "a.raw",
                device.path(),
            ],
        )?;
        if format == "qcow2" {
            instar(
                &scratch,
                &[
                    "compare",
                    "-T",
                    "none",
                    "-f",
                    "raw",
                    "-F",
                    format,
                    "a.raw",
                    device.path(),
                ],
            )?;
            qemu_img(
                &scratch,
                &["compare", "-f", "raw", "-F", format, "a.raw", device.path()],
            )?;
        } else {
            let there = std::fs::read(device.path())?;
            ensure!(there.starts_with(&bytes), "other bytes");
        }
    }
    Ok(())
}

/// A file system without direct I/O, unmounted when dropped.
struct Ramfs<'a>(&'a Scratch);

impl<'a> Ramfs<'a> {
    fn mount(scratch: &'a Scratch) -> Result<Self> {
        std::fs::create_dir(scratch.file("ram"))?;
        let mount = tools::in_path("mount".as_ref())?;
        go(scratch, &mount, &["-t", "ramfs", "ramfs", "ram"])?;
        Ok(Self(scratch))
    }
}

impl Drop for Ramfs<'_> {
    fn drop(&mut self) {
        if let Ok(umount) = tools::in_path("umount".as_ref()) {
            let _ = go(self.0, &umount, &["ram"]);
        }
    }
}

#[test]
fn a_file_system_without_it_refuses_in_the_oracles_words() -> Outcome {
    let scratch = Scratch::new()?;
    let _ramfs = Ramfs::mount(&scratch)?;
    image::create(&scratch, "ram/x.qcow2", &[], "1M")?;
    scratch.set_len("ram/r.raw", 1 << 20)?;
    qemu_img(
        &scratch,
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            "ram/r.raw",
            "-F",
            "raw",
            "top.qcow2",
        ],
    )?;
    let mut bench = Bench::new(&scratch);
    for args in [
        &["check", "-T", "none", "ram/x.qcow2"][..],
        &["bench", "-t", "none", "-c", "1", "ram/x.qcow2"],
        &[
            "convert",
            "-T",
            "none",
            "-O",
            "raw",
            "ram/x.qcow2",
            "out.raw",
        ],
        &[
            "convert",
            "-t",
            "directsync",
            "-O",
            "raw",
            "ram/x.qcow2",
            "ram/new.raw",
        ],
        &[
            "convert",
            "-n",
            "-t",
            "none",
            "-O",
            "raw",
            "ram/x.qcow2",
            "ram/r.raw",
        ],
        &["compare", "-T", "off", "ram/x.qcow2", "ram/r.raw"],
        &[
            "amend",
            "-t",
            "none",
            "-o",
            "lazy_refcounts=on",
            "ram/x.qcow2",
        ],
        &["commit", "-t", "none", "top.qcow2"],
        &["rebase", "-t", "none", "-b", "", "top.qcow2"],
        &["check", "-T", "none", "top.qcow2"],
        &["check", "-T", "writeback", "ram/x.qcow2"],
    ] {
        bench.same("ramfs", args)?;
    }
    bench.finish()
}

#[test]
fn a_file_system_without_fallocate_has_its_blocks_written() -> Outcome {
    let scratch = Scratch::new()?;
    let _ramfs = Ramfs::mount(&scratch)?;
    let falloc = "preallocation=falloc";
    for (format, options) in [
        ("raw", falloc.to_owned()),
        ("qcow2", falloc.to_owned()),
        ("qcow2", format!("{falloc},extended_l2=on")),
    ] {
        let make = |program: &dyn Fn(&Scratch, &[&str]) -> Outcome, name: &str| {
            let words = ["create", "-q", "-f", format, "-o", &options, name, "3M"];
            program(&scratch, &words)?;
            if format == "qcow2" {
                image::io(&scratch, name, &["write -P 7 1M 4k"])?;
            }
            let words = ["resize", "-q", "-f", format, "--preallocation=falloc"];
            program(&scratch, &[&words[..], &[name, "5M"]].concat())?;
            let metadata = std::fs::metadata(scratch.file(name))?;
            anyhow::Ok((metadata.blocks(), metadata.len()))
        };
        let ours = make(&instar, "ram/ours")?;
        let theirs = make(&qemu_img, "ram/theirs")?;
        // Where tables lie may differ.
        let taken = |(blocks, _): (u64, u64)| blocks * 512 >= 5 << 20;
        let same = ours == theirs || format == "qcow2";
        let right = same && taken(ours) && taken(theirs);
        ensure!(right, "{format} {options}: {ours:?}, {theirs:?}");
        qemu_img(&scratch, &["compare", "-q", "ram/ours", "ram/theirs"])?;
        for name in ["ram/ours", "ram/theirs"] {
            std::fs::remove_file(scratch.file(name))?;
        }
    }
    Ok(())
}
