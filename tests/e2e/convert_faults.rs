//! Conversions that fail leave nothing, and a target that is also read is refused before anything is touched.

use anyhow::{Context, Result, ensure};
use instar_tests::faults;
use instar_tests::scratch::Scratch;
use instar_tests::{image, tools};

use crate::Outcome;

fn stage() -> Result<Scratch> {
    let scratch = Scratch::new()?;
    image::create(&scratch, "base.qcow2", &[], "8M")?;
    image::io(&scratch, "base.qcow2", &["write -P 5 0 6M"])?;
    let below = "backing_file=base.qcow2,backing_fmt=qcow2";
    image::create(&scratch, "top.qcow2", &[below], "8M")?;
    image::io(&scratch, "top.qcow2", &["write -P 6 1M 1M"])?;
    Ok(scratch)
}

#[test]
fn a_target_that_is_read_is_refused_and_untouched() -> Outcome {
    let scratch = stage()?;
    std::os::unix::fs::symlink("base.qcow2", scratch.file("link"))?;
    std::fs::hard_link(scratch.file("base.qcow2"), scratch.file("hard"))?;
    let targets = ["top.qcow2", "base.qcow2", "link", "hard", "./top.qcow2"];
    let before = scratch.fingerprints()?;
    for target in targets {
        for format in ["raw", "qcow2"] {
            for extra in [None, Some("-n")] {
                let mut words = vec!["convert", "-O", format];
                words.extend(extra);
                words.extend(["top.qcow2", target]);
                let done = faults::plain(&scratch, &words)?.go()?;
                done.expect_code(1).with_context(|| format!("{words:?}"))?;
                ensure!(done.err().contains("lock"), "{words:?}: {}", done.err());
                ensure!(
                    scratch.fingerprints()? == before,
                    "{words:?} touched a file"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn damaged_sources_leave_no_target() -> Outcome {
    let scratch = stage()?;
    let mut image = instar_tests::places::Image::load(&scratch, "base.qcow2")?;
    let entry = *image.used_l2_entries()?.last().context("an L2 entry")?;
    let value = image.get(entry, 8)?;
    image.set(entry, 8, value | 0x200)?;
    image.save(&scratch, "base.qcow2")?;
    for format in ["raw", "qcow2"] {
        let theirs = image::qemu_img(&scratch, &["convert", "-O", format, "top.qcow2", "theirs"]);
        ensure!(theirs.is_err(), "qemu-img converts a damaged image");
        let words = ["convert", "-O", format, "top.qcow2", "out"];
        let done = faults::plain(&scratch, &words)?.go()?;
        done.expect_code(1)?;
        ensure!(done.err().contains("Input/output error"), "{}", done.err());
        ensure!(!scratch.file("out").exists(), "a target is left");
    }
    tools::qemu_img()?;
    Ok(())
}
