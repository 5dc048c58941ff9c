//! Changes to block devices: a qcow2 image in a loop device, and raw ones. Root only, as `block_device`.

use std::os::unix::fs::symlink;

use anyhow::{Result, ensure};
use instar_tests::image;
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::tools;
use instar_tests::twins::Twins;

use crate::Outcome;
use crate::block_device::Loop;

const NAME: &str = "disk.qcow2";

/// Puts a file into a loop device, `len` bytes long at least, and a link to the device in its place, so that the
/// name of the device does not show.
pub fn into_device(folder: &Scratch, name: &str, more: &[&str], len: u64) -> Result<Loop> {
    let inner = "inner";
    std::fs::rename(folder.file(name), folder.file(inner))?;
    let old = std::fs::metadata(folder.file(inner))?.len();
    // A loop device ends with the last whole sector.
    folder.set_len(inner, old.max(len).next_multiple_of(512))?;
    let device = Loop::attach(folder, more, inner)?;
    symlink(device.path(), folder.file(name))?;
    Ok(device)
}

/// Runs these on twins in devices, and compares after each. The exit codes.
fn on_devices(options: &[&str], len: u64, cases: &[&[&str]]) -> Result<Vec<i32>> {
    let mut twins = Twins::new()?;
    twins.build(|folder| image::create_rich(folder, NAME, options))?;
    let _theirs = into_device(twins.theirs(), NAME, &[], len)?;
    let _ours = into_device(twins.ours(), NAME, &[], len)?;
    let mut codes = Vec::new();
    for case in cases {
        codes.push(twins.run(case)?);
        twins.compare(NAME)?;
    }
    Ok(codes)
}

const CHANGES: [&[&str]; 9] = [
    &["snapshot", "-c", "new", NAME],
    &["snapshot", "-c", "newer", NAME],
    &["snapshot", "-d", "first", NAME],
    &["bitmap", "--add", "--merge", "nightly", NAME, "x"],
    &["bitmap", "--remove", NAME, "nightly"],
    &["resize", NAME, "+16M"],
    &["resize", "--shrink", NAME, "-3M"],
    &["amend", "-o", "refcount_bits=32", NAME],
    &["amend", "-o", "size=9M,lazy_refcounts=on", NAME],
];

#[test]
fn qcow2_in_a_device_is_changed() -> Outcome {
    for options in [
        &[][..],
        &["cluster_size=4k", "extended_l2=off"],
        &["cluster_size=512"],
    ] {
        let codes = on_devices(options, 64 << 20, &CHANGES)?;
        ensure!(
            codes.iter().all(|code| *code == 0),
            "{options:?}: {codes:?}"
        );
    }
    Ok(())
}

#[test]
fn snapshots_of_version_2_in_a_device_are_applied() -> Outcome {
    let cases: [&[&str]; 3] = [
        &["snapshot", "-c", "new", NAME],
        &["snapshot", "-a", "first", NAME],
        &["snapshot", "-d", "second", NAME],
    ];
    let codes = on_devices(&["compat=0.10"], 16 << 20, &cases)?;
    ensure!(codes == [0, 0, 0], "{codes:?}");
    Ok(())
}

#[test]
fn nothing_is_reserved_in_a_device() -> Outcome {
    let cases: [&[&str]; 4] = [
        &["resize", "--preallocation=falloc", NAME, "+2M"],
        &["resize", "--preallocation=full", NAME, "+2M"],
        &["resize", "--preallocation=falloc", NAME, "+64M"],
        &["resize", "--preallocation=full", NAME, "+64M"],
    ];
    let codes = on_devices(&[], 16 << 20, &cases)?;
    ensure!(codes == [1; 4], "{codes:?}");
    Ok(())
}

/// What the guest sees of the image.
fn raw_content(folder: &Scratch) -> Result<Vec<u8>> {
    image::qemu_img(folder, &["convert", "-O", "raw", NAME, "raw"])?;
    folder.read("raw")
}

#[test]
fn new_clusters_of_a_device_are_zeros() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_rich(&scratch, NAME, &[])?;
    let mut bytes = scratch.read(NAME)?;
    bytes.resize(64 << 20, 0xaa);
    scratch.write(NAME, &bytes)?;
    let _device = into_device(&scratch, NAME, &[], 0)?;
    let before = raw_content(&scratch)?.len();
    let done = Run::new(&tools::instar()?, scratch.path())
        .args(["resize", "--preallocation=metadata", NAME, "+16M"])
        .go()?;
    done.expect_code(0)?;
    let raw = raw_content(&scratch)?;
    let new = raw.get(before..).unwrap_or_default();
    ensure!(new.len() == 16 << 20, "{} bytes are new", new.len());
    ensure!(new.iter().all(|byte| *byte == 0), "old data is seen");
    Ok(())
}

#[test]
fn a_full_device_keeps_its_image() -> Outcome {
    // Nothing fits after the last cluster of the file. The oracle leaves an image with leaks then; ours is the old one.
    let scratch = Scratch::new()?;
    image::create_rich(&scratch, NAME, &["cluster_size=4k"])?;
    let _device = into_device(&scratch, NAME, &[], 0)?;
    let old = scratch.read(NAME)?;
    for words in [
        &["resize", "--preallocation=metadata", NAME, "+6G"][..],
        &["resize", NAME, "+64G"],
    ] {
        let done = Run::new(&tools::instar()?, scratch.path())
            .args(words)
            .go()?;
        done.expect_code(1)?;
        ensure!(
            done.err().contains("No space left on device"),
            "{}",
            done.describe()
        );
        if !tools::subject_is_oracle() {
            ensure!(
                old == scratch.read(NAME)?,
                "{words:?}: the image is another one"
            );
        }
    }
    Ok(())
}

#[test]
fn a_device_that_is_read_only_is_refused() -> Outcome {
    let mut twins = Twins::new()?;
    twins.build(|folder| image::create_rich(folder, NAME, &[]))?;
    let _theirs = into_device(twins.theirs(), NAME, &["--read-only"], 16 << 20)?;
    let _ours = into_device(twins.ours(), NAME, &["--read-only"], 16 << 20)?;
    for case in CHANGES {
        let code = twins.run(case)?;
        ensure!(code == 1, "{case:?}: {code}");
    }
    twins.run(&["snapshot", "-l", NAME])?;
    twins.compare(NAME)
}

#[test]
fn raw_devices_have_their_size() -> Outcome {
    let mut twins = Twins::new()?;
    twins.build(|folder| folder.write("disk.raw", &vec![7; 3 << 20]))?;
    let _theirs = into_device(twins.theirs(), "disk.raw", &[], 0)?;
    let _ours = into_device(twins.ours(), "disk.raw", &[], 0)?;
    for format in [&[][..], &["-f", "raw"]] {
        for words in [
            &["resize", "disk.raw", "3M"][..],
            &["resize", "disk.raw", "+0"],
            &["resize", "disk.raw", "+1M"],
            &["resize", "disk.raw", "2M"],
            &["resize", "--shrink", "disk.raw", "2M"],
            &["resize", "--preallocation=full", "disk.raw", "4M"],
            &["resize", "--preallocation=metadata", "disk.raw", "4M"],
            &["snapshot", "-c", "x", "disk.raw"],
            &["snapshot", "-l", "disk.raw"],
            &["snapshot", "-a", "x", "disk.raw"],
            &["amend", "-o", "size=4M", "disk.raw"],
            &["bitmap", "--add", "disk.raw", "x"],
            &["check", "-r", "all", "disk.raw"],
        ] {
            let mut args = words.to_vec();
            args.splice(1..1, format.iter().copied());
            twins.run(&args)?;
        }
    }
    twins.compare("disk.raw")
}
