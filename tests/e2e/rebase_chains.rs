//! Random chains, rebased by both programs: what is read, what is allocated, names, snapshots and bitmaps.
//!
//! `INSTAR_SEED` repeats a run, `INSTAR_CASES` says how many chains there are.

use anyhow::{Context, Result, ensure};
use instar_tests::image::qemu_img;
use instar_tests::rng::Rng;
use instar_tests::scratch::Scratch;
use instar_tests::twins::{Twins, sum};

use crate::Outcome;
use crate::map_chains::{Image, cases, chain, fill};

/// The image that is rebased.
const NAME: &str = "ov";
/// Files of the longest chain below it.
const FILES: u64 = 3;

/// Makes the image on top of `below`.
fn overlay(scratch: &Scratch, rng: &mut Rng, below: Option<&Image>, compress: bool) -> Result<()> {
    let cluster = *rng.pick(&["512", "4k", "64k", "64k", "64k", "2M"]);
    let mut options = vec![format!("cluster_size={cluster}")];
    let mut data_file = false;
    if rng.below(5) == 0 {
        options.push("compat=0.10".into());
    } else {
        options.push(format!("refcount_bits={}", 1 << (rng.below(4) + 3)));
        if matches!(cluster, "64k" | "2M") && !compress && rng.below(3) == 0 {
            options.push("extended_l2=on".into());
        }
        match rng.below(6) {
            0 => options.push("compression_type=zstd".into()),
            1 => options.push("lazy_refcounts=on".into()),
            2 if !compress => {
                options.push("data_file=ov.dat".into());
                data_file = true;
            }
            _ => {}
        }
    }
    let size = match rng.below(4) {
        0 => (4 << 20) - 512 * (1 + rng.below(3000)),
        1 => 6 << 20,
        _ => 4 << 20,
    };
    let (options, bytes) = (options.join(","), size.to_string());
    let mut args = vec!["create", "-q", "-f", "qcow2", "-o", &options];
    if let Some(below) = below {
        args.extend(["-b", &below.name, "-F", below.format]);
    }
    args.extend([NAME, &bytes]);
    qemu_img(scratch, &args)?;
    let image = Image {
        name: NAME.into(),
        format: "qcow2",
        size,
    };
    fill(scratch, rng, &image, !data_file)?;
    let version_2 = options.contains("compat");
    if !data_file && rng.below(3) == 0 {
        qemu_img(scratch, &["snapshot", "-c", "one", NAME])?;
        fill(scratch, rng, &image, false)?;
    }
    if !version_2 && rng.below(3) == 0 {
        qemu_img(scratch, &["bitmap", "--add", "-g", "4k", NAME, "bits"])?;
        fill(scratch, rng, &image, false)?;
    }
    Ok(())
}

/// What is read through the image.
fn content(scratch: &Scratch) -> Result<u64> {
    qemu_img(scratch, &["convert", "-O", "raw", NAME, "content.raw"])?;
    let path = scratch.file("content.raw");
    let found = sum(&std::fs::File::open(&path)?)?;
    std::fs::remove_file(&path)?;
    Ok(found)
}

/// One image, rebased up to three times; false if the oracle's shows something else afterwards.
fn one(rng: &mut Rng) -> Result<bool> {
    let mut twins = Twins::new()?;
    twins.allow_fragments(8);
    let compress = rng.below(4) == 0;
    let (mut old, mut new) = (None, None);
    twins.build(|folder| {
        old = Some(chain(folder, rng, "old", FILES)?);
        new = Some(chain(folder, rng, "new", FILES)?);
        let below = old.as_ref().filter(|_| rng.below(6) > 0);
        overlay(folder, rng, below, compress)
    })?;
    let (old, new) = (old.context("no chain")?, new.context("no chain")?);
    let before = content(twins.ours())?;
    for _ in 0..=rng.below(3) {
        let mut words = vec!["rebase".to_owned()];
        if compress {
            words.push("-c".into());
        }
        if rng.below(3) == 0 {
            words.push("-q".into());
        }
        words.push("-b".into());
        match rng.below(6) {
            0 => words.push(String::new()),
            1 => words.extend([old.name.clone(), "-F".into(), old.format.into()]),
            // The lowest of the chain, which may be raw, or the only one.
            2 => words.extend([
                lowest(twins.ours(), &old)?.0,
                "-F".into(),
                lowest(twins.ours(), &old)?.1,
            ]),
            _ => words.extend([new.name.clone(), "-F".into(), new.format.into()]),
        }
        words.push(NAME.into());
        let code = twins.run(&words)?;
        ensure!(code == 0, "{words:?}: exit code {code}");
        ensure!(
            content(twins.ours())? == before,
            "{words:?}: what is read has changed"
        );
        if content(twins.theirs())? != before {
            // Seen of qemu-img 10.0 with images of several sizes: there is nothing to compare with then.
            return Ok(false);
        }
        twins.compare(NAME)?;
    }
    Ok(true)
}

/// The lowest image of a chain, and its format.
fn lowest(scratch: &Scratch, top: &Image) -> Result<(String, String)> {
    let info = qemu_img(
        scratch,
        &[
            "info",
            "--backing-chain",
            "--output=json",
            "-f",
            top.format,
            &top.name,
        ],
    )?;
    let info: serde_json::Value = serde_json::from_slice(&info.stdout)?;
    let last = info.as_array().and_then(|all| all.last());
    let text = |key: &str| last.and_then(|last| last[key].as_str()).map(str::to_owned);
    let name = text("filename").context("no name")?;
    Ok((name, text("format").context("no format")?))
}

#[test]
fn random_chains_are_rebased_as_by_the_oracle() -> Outcome {
    let mut rng = Rng::for_test("rebase chains");
    let count = cases(25);
    let (mut failures, mut broken) = (Vec::new(), 0);
    for number in 0..count {
        match one(&mut rng) {
            Ok(kept) => broken += u64::from(!kept),
            Err(e) => failures.push(format!("chain {number}: {e:#}")),
        }
    }
    println!("{count} chains; qemu-img changed what {broken} of them show");
    ensure!(broken * 4 <= count, "{broken} of {count} cannot be judged");
    ensure!(
        failures.is_empty(),
        "seed {}: {} of {count} chains failed:\n{}",
        rng.seed(),
        failures.len(),
        failures.join("\n==========\n")
    );
    Ok(())
}
