//! Conversions that do not come to their end leave nothing that looks whole, and a target that is also read is
//! refused before anything is touched.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use instar_tests::faults::{self, Victim};
use instar_tests::rng::Rng;
use instar_tests::scratch::Scratch;
use instar_tests::{image, tools};

use crate::Outcome;

/// Times that a conversion is killed.
const KILLS: u64 = 12;

fn stage() -> Result<Scratch> {
    let scratch = Scratch::new()?;
    image::create(&scratch, "base.qcow2", &[], "48M")?;
    image::io(&scratch, "base.qcow2", &["write -P 5 0 40M"])?;
    let below = "backing_file=base.qcow2,backing_fmt=qcow2";
    image::create(&scratch, "top.qcow2", &[below], "48M")?;
    image::io(&scratch, "top.qcow2", &["write -P 6 1M 8M"])?;
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
fn a_killed_conversion_leaves_no_target() -> Outcome {
    let scratch = stage()?;
    let mut rng = Rng::for_test("a_killed_conversion_leaves_no_target");
    for round in 0..KILLS {
        let format = *rng.pick(&["raw", "qcow2"]);
        let victim = *rng.pick(&[Victim::Broker, Victim::Worker]);
        let existing = rng.below(2) == 0;
        let _ = std::fs::remove_file(scratch.file("out"));
        if existing {
            scratch.write("out", b"what was there")?;
        }
        let words = ["convert", "-O", format, "top.qcow2", "out"];
        let delay = Duration::from_millis(rng.below(60));
        faults::killed(&scratch, &words, victim, delay)?;
        let told = || format!("round {round}, seed {}: {words:?}", rng.seed());
        // A killed broker may still be survived by its worker for a moment.
        std::thread::sleep(Duration::from_millis(50));
        let Ok(bytes) = scratch.read("out") else {
            ensure!(!existing, "{}: the old file is gone", told());
            continue;
        };
        let whole = image::qemu_img(
            &scratch,
            &["compare", "-f", "qcow2", "-F", format, "top.qcow2", "out"],
        );
        let old = bytes == b"what was there";
        let none = bytes.is_empty();
        let partial = existing && victim == Victim::Broker && !bytes.starts_with(b"QFI");
        ensure!(
            old || none || whole.is_ok() || partial,
            "{}: {} bytes are left",
            told(),
            bytes.len()
        );
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
