//! Images that are not in the page cache: reads wait for the disk.

use std::fs::File;
use std::io::IoSliceMut;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use instar_tests::compare::{Bench, differences, manners};
use instar_tests::image;
use instar_tests::scratch::Scratch;
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::Outcome;

/// Drops a file from the page cache, and makes sure of it.
fn make_cold(scratch: &Scratch, name: &str) -> Outcome {
    let file = File::open(scratch.file(name))?;
    let mut read = Ok(0);
    // The kernel keeps pages that it is busy with.
    for _ in 0..1000 {
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        let mut byte = [0];
        let mut parts = [IoSliceMut::new(&mut byte)];
        read = preadv2(&file, &mut parts, 0, ReadWriteFlags::NOWAIT);
        if read == Err(Errno::AGAIN) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("{name} is still cached ({read:?}): the target folder must be on a disk")
}

#[test]
fn image_that_is_not_cached_gives_the_same_result() -> Outcome {
    // The system's temporary folder may be in memory.
    let scratch = Scratch::new_in(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    image::create_rich(&scratch, "base.qcow2", &["cluster_size=4k"])?;
    image::create_rich(&scratch, "top.qcow2", &["cluster_size=512"])?;
    image::qemu_img(
        &scratch,
        &[
            "rebase",
            "-u",
            "-b",
            "base.qcow2",
            "-F",
            "qcow2",
            "top.qcow2",
        ],
    )?;
    let mut bench = Bench::new(&scratch);
    for args in [
        &["info", "base.qcow2"][..],
        &["check", "base.qcow2"],
        &["info", "--backing-chain", "--output=json", "top.qcow2"],
        &["check", "--output=json", "top.qcow2"],
    ] {
        bench.same("cached", args)?;
        let want = bench.qemu_img(args)?;
        for name in ["base.qcow2", "top.qcow2"] {
            make_cold(&scratch, name).context("dropping the cache")?;
        }
        let got = bench.instar(args)?;
        let mut found = differences(&want, &got);
        found.extend(manners(&got));
        if !found.is_empty() {
            bench.fail(format!("{args:?}: {found:?}\n{}", got.describe()));
        }
    }
    bench.finish()
}
