//! `instar rebase` against `qemu-img rebase`: texts, percentages, names, and what becomes the image's own.

use anyhow::{Result, ensure};
use instar_tests::compare::Bench;
use instar_tests::image::{self, qemu_img};
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::tools;
use instar_tests::twins::Twins;

use crate::Outcome;

/// An overlay, two backing files, and others that do not fit.
fn folder(scratch: &Scratch) -> Result<()> {
    std::fs::create_dir(scratch.file("d"))?;
    for name in ["base", "other", "d/base"] {
        image::create(scratch, name, &[], "1M")?;
    }
    image::io(
        scratch,
        "base",
        &["write -P 1 0 64k", "write -P 1 256k 300k"],
    )?;
    image::io(
        scratch,
        "other",
        &["write -P 2 0 64k", "write -P 2 700k 3k"],
    )?;
    let over = |name: &str, below: &str, options: &[&str]| -> Result<()> {
        let mut args = vec!["create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2"];
        args.extend(options.iter().flat_map(|option| ["-o", option]));
        args.push(name);
        qemu_img(scratch, &args).map(drop)
    };
    over("ov", "base", &[])?;
    image::io(scratch, "ov", &["write -P 3 128k 64k"])?;
    over("mid", "base", &[])?;
    over("top", "mid", &[])?;
    over("d/ov", "base", &[])?;
    over("v2", "base", &["compat=0.10"])?;
    image::create(scratch, "alone", &[], "1M")?;
    image::create(scratch, "external", &["data_file=ext.dat"], "1M")?;
    let raw = ["data_file=all.dat", "data_file_raw=on"];
    image::create(scratch, "standalone", &raw, "1M")?;
    image::create(scratch, "small", &["cluster_size=512"], "1M")?;
    image::create_overlay(scratch, "orphan", "gone", "qcow2")?;
    image::create_overlay(scratch, "grandchild", "orphan", "qcow2")?;
    scratch.set_len("raw", 1 << 20)
}

#[test]
fn refusals_read_as_the_oracles() -> Outcome {
    let scratch = Scratch::new()?;
    folder(&scratch)?;
    let mut bench = Bench::new(&scratch);
    let long = "a".repeat(1024);
    for args in [
        &[][..],
        &["ov"],
        &["-F", "foo", "ov"],
        &["-b", "base"],
        &["-b", "base", "-F", "qcow2", "ov", "ov"],
        &["-b", "base", "-F", "qcow2", "missing"],
        &["-b", "nope", "-F", "qcow2", "ov"],
        &["-b", "nope", "ov"],
        &["-b", "nope", "-F", "qcow2", "d/ov"],
        &["-b", "other", "-F", "qcow2", "d/ov"],
        &["-b", "/nonexistent/base", "ov"],
        &["-b", "d", "ov"],
        &["-b", "d", "-F", "raw", "ov"],
        &["-b", "raw", "-F", "qcow2", "ov"],
        &["-b", "foo:bar", "-F", "raw", "ov"],
        &["-b", "base", "-F", "foo", "ov"],
        &["-b", "base", "-F", "", "ov"],
        &["-b", "", "-F", "foo", "ov"],
        &["-u", "-b", "base", "-F", "foo", "ov"],
        &["-u", "-b", "base", "-F", "foo", "missing"],
        &["-b", "base", "-F", "foo", "orphan"],
        &["-u", "-b", "base", "ov"],
        &["-u", "-b", "nope", "ov"],
        &["-u", "-b", &long, "-F", "raw", "ov"],
        &["-u", "-b", &long[..500], "-F", "raw", "small"],
        &["-t", "bad", "-b", "base", "-F", "qcow2", "ov"],
        &["-T", "bad", "-b", "base", "-F", "qcow2", "ov"],
        &["-u", "-T", "bad", "ov"],
        &["-f", "foo", "-b", "base", "-F", "qcow2", "ov"],
        &["-u", "-f", "foo", "-F", "bar", "ov"],
        &["-f", "qcow2", "-b", "base", "-F", "qcow2", "raw"],
        &["-b", "base", "-F", "qcow2", "raw"],
        &["-b", "base", "raw"],
        &["-u", "-b", "base", "-F", "qcow2", "raw"],
        &["-f", "raw", "-u", "-b", "", "raw"],
        &["-f", "raw", "-b", "", "raw"],
        &["-f", "raw", "-b", "nope", "raw"],
        &["-b", "base", "-F", "qcow2", "orphan"],
        &["-b", "base", "-F", "qcow2", "grandchild"],
        &["-b", "orphan", "-F", "qcow2", "ov"],
        &["-b", "grandchild", "-F", "qcow2", "ov"],
        &["-b", "ov", "-F", "qcow2", "ov"],
        &["-b", "top", "-F", "qcow2", "mid"],
        &["-b", "top", "-F", "qcow2", "base"],
        &["-u", "-b", "base", "-F", "qcow2", "standalone"],
        &["-b", "other", "-F", "qcow2", "standalone"],
        &["--image-opts", "-f", "raw", "-b", "base", "ov"],
    ] {
        bench.same("refused", &[&["rebase"], args].concat())?;
        // Percentages begin before all that needs a file.
        bench.same("refused", &[&["rebase", "-p"], args].concat())?;
    }
    bench.finish()
}

/// Each program on its copy of the folder; then the image must be the same.
fn same(args: &[&str], name: &str) -> Result<()> {
    let mut twins = Twins::new()?;
    twins.build(folder)?;
    let code = twins.run(&[&["rebase"], args].concat())?;
    ensure!(code == 0, "{args:?}: exit code {code}");
    if name.is_empty() {
        return Ok(());
    }
    twins.compare(name)
}

#[test]
fn names_and_content_are_the_oracles() -> Outcome {
    let long = "./".repeat(400) + "other";
    for (args, name) in [
        (&["-b", "other", "-F", "qcow2", "ov"][..], "ov"),
        (&["-b", "./other", "-F", "qcow2", "-q", "-p", "ov"], "ov"),
        (&["-b", &long, "-F", "qcow2", "ov"], "ov"),
        (&["-b", "file:other", "-F", "qcow2", "ov"], "ov"),
        (
            &["-b", "raw", "-F", "raw", "-t", "none", "-T", "none", "ov"],
            "ov",
        ),
        (&["-b", "other", "-F", "raw", "ov"], "ov"),
        (&["-b", "", "ov"], "ov"),
        (&["-b", "", "-F", "qcow2", "ov"], "ov"),
        (&["-c", "-b", "", "ov"], "ov"),
        (&["-c", "-b", "other", "-F", "qcow2", "v2"], "v2"),
        (&["-b", "other", "-F", "qcow2", "v2"], "v2"),
        (&["-b", "base", "-F", "qcow2", "ov"], "ov"),
        (&["-b", "base", "-F", "qcow2", "top"], "top"),
        (&["-b", "top", "-F", "qcow2", "alone"], "alone"),
        (&["-U", "-b", "other", "-F", "qcow2", "top"], "top"),
        (&["-b", "../other", "-F", "qcow2", "d/ov"], "d/ov"),
        (&["-b", "other", "-F", "qcow2", "external"], "external"),
        (&["-b", "", "standalone"], "standalone"),
        (&["-u", "-b", "", "ov"], "ov"),
        (&["-u", "ov"], "ov"),
        (&["-u", "-F", "raw", "ov"], "ov"),
        (&["-u", "-c", "-b", "other", "-F", "qcow2", "ov"], "ov"),
        (&["-u", "-b", "other", "-F", "raw", "orphan"], "orphan"),
        // Nothing that can be opened: the names are all that can be compared.
        (&["-u", "-b", "nope", "-F", "qcow2", "ov"], ""),
        (&["-u", "-b", "nbd:nope", "-F", "vmdk", "ov"], ""),
        (&["-u", "-b", "ov", "-F", "qcow2", "ov"], ""),
    ] {
        same(args, name)?;
    }
    Ok(())
}

/// Between the first and the last percentage, QEMU counts steps of its own.
#[test]
fn percentages_begin_and_end_as_the_oracles() -> Outcome {
    for args in [
        &["-p", "-b", "other", "-F", "qcow2", "ov"][..],
        &["-p", "-b", "base", "-F", "qcow2", "ov"],
        &["-p", "-b", "", "alone"],
        &["-p", "-u", "-b", "", "ov"],
        &["-p", "-q", "-b", "other", "-F", "qcow2", "ov"],
    ] {
        let scratch = Scratch::new()?;
        folder(&scratch)?;
        let mut shown = Vec::new();
        for program in [tools::qemu_img()?, tools::instar()?] {
            std::fs::copy(scratch.file("ov"), scratch.file("kept"))?;
            let done = Run::new(&program, scratch.path())
                .args(["rebase"])
                .args(args)
                .go()?;
            done.expect_code(0)?;
            std::fs::copy(scratch.file("kept"), scratch.file("ov"))?;
            let text = done.out();
            let marks: Vec<String> = text.split('\r').map(str::to_owned).collect();
            let last = marks.len().saturating_sub(2);
            shown.push([
                marks.first().cloned(),
                marks.get(last).cloned(),
                marks.last().cloned(),
            ]);
        }
        ensure!(shown.first() == shown.last(), "{args:?}: {shown:?}");
    }
    Ok(())
}

#[test]
fn unusable_names_stand_in_the_image_as_typed() -> Outcome {
    let scratch = Scratch::new()?;
    folder(&scratch)?;
    for (name, format, kept) in [
        ("nope", "qcow2", "qcow2"),
        ("nbd:nope", "copy-before-write", "copy-before-wri"),
        ("ov", "raw", "raw"),
    ] {
        let done = Run::new(&tools::instar()?, scratch.path())
            .args(["rebase", "-u", "-b", name, "-F", format, "ov"])
            .go()?;
        done.expect_code(0)?;
        let info = qemu_img(&scratch, &["info", "--output=json", "ov"])?;
        let info: serde_json::Value = serde_json::from_slice(&info.stdout)?;
        ensure!(info["backing-filename"] == name, "{info:#}");
        ensure!(info["backing-filename-format"] == kept, "{info:#}");
    }
    Ok(())
}

/// A rebase between layers of one chain reads nothing that both have: what is not there to be read is not missed.
#[test]
fn what_both_chains_share_is_not_read() -> Outcome {
    let scratch = Scratch::new()?;
    folder(&scratch)?;
    // 4 GiB of data that would take a second to read, twice.
    scratch.set_len("large", 4 << 30)?;
    let fill = std::fs::OpenOptions::new()
        .write(true)
        .open(scratch.file("large"))?;
    rustix::fs::fallocate(&fill, rustix::fs::FallocateFlags::empty(), 0, 4 << 30)?;
    let over = ["create", "-q", "-f", "qcow2", "-b"];
    qemu_img(
        &scratch,
        &[&over[..], &["large", "-F", "raw", "one"]].concat(),
    )?;
    qemu_img(
        &scratch,
        &[&over[..], &["one", "-F", "qcow2", "two"]].concat(),
    )?;
    let done = Run::new(&tools::instar()?, scratch.path())
        .args(["rebase", "-b", "large", "-F", "raw", "two"])
        .env("INSTAR_STATS", "1")
        .go()?;
    done.expect_code(0)?;
    let exits = done.err();
    let exits = exits.split("exits=").nth(1).unwrap_or_default();
    let exits: u64 = exits.split(' ').next().unwrap_or_default().parse()?;
    ensure!(exits < 100, "{exits} exits: {}", done.describe());
    Ok(())
}
