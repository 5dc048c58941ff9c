//! Random images and random chains of changes, each made by both programs and compared after every step.
//!
//! `INSTAR_SEED` repeats a run, `INSTAR_CHAINS` says how many chains there are.

use anyhow::{Context, Result};
use instar_tests::rng::{Rng, count};
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::totals::total;
use instar_tests::twins::Twins;
use instar_tests::{image, tools};

use crate::Outcome;

/// Chains of one test; the four tests together take about three minutes.
const CHAINS: u64 = 45;
/// Virtual sizes in bytes, some of them not multiples of a cluster.
const SIZES: [u64; 6] = [0, 512, 1 << 20, (5 << 20) + 1536, 8 << 20, 24 << 20];
const NAME: &str = "disk.qcow2";
const TAGS: [&str; 4] = ["a", "b", "c", "1"];
const BITMAPS: [&str; 3] = ["x", "y", "z"];

/// Options of an image, and what can be done to it.
struct Shape {
    options: Vec<String>,
    size: u64,
    cluster: u64,
    version: u32,
    data_file: bool,
    /// The oracle takes minutes to change the width of refcounts: they are narrow, and the clusters large.
    slow_width: bool,
}

fn shape(rng: &mut Rng) -> Shape {
    let version = if rng.below(4) == 0 { 2 } else { 3 };
    let bits = *rng.pick(&[9, 10, 12, 12, 14, 16, 16, 16, 18, 21]);
    let cluster = 1_u64 << bits;
    let mut options = vec![format!("cluster_size={cluster}")];
    let mut data_file = false;
    let mut slow_width = false;
    if version == 2 {
        options.push("compat=0.10".into());
    } else {
        let width = rng.below(7);
        slow_width = bits > 12 && width < 4;
        options.push(format!("refcount_bits={}", 1 << width));
        if bits >= 14 && rng.below(3) == 0 {
            options.push("extended_l2=on".into());
        }
        if rng.below(3) == 0 {
            options.push("compression_type=zstd".into());
        }
        if rng.below(4) == 0 {
            options.push("lazy_refcounts=on".into());
        }
        data_file = rng.below(8) == 0;
    }
    if data_file {
        options.push("data_file=data.raw".into());
        if rng.below(2) == 0 {
            options.push("data_file_raw=on".into());
        }
    } else if rng.below(6) == 0 {
        options.push("preallocation=metadata".into());
    }
    Shape {
        options,
        size: *rng.pick(&SIZES),
        cluster,
        version,
        data_file,
        slow_width,
    }
}

/// A `qemu-io` command that is valid for an image of `size` bytes.
fn io_command(rng: &mut Rng, shape: &Shape, size: u64) -> Option<String> {
    let sectors = size / 512;
    if sectors == 0 {
        return None;
    }
    let start = rng.below(sectors);
    let len = 1 + rng.below((sectors - start).min(1024));
    let (start, len) = (start * 512, len * 512);
    let pattern = 1 + rng.below(250);
    Some(match rng.below(8) {
        0 => format!("write -z {start} {len}"),
        1 if shape.version == 3 => format!("write -z -u {start} {len}"),
        2 => format!("discard {start} {len}"),
        3 if !shape.data_file && size >= 2 * shape.cluster => {
            let start = start / shape.cluster * shape.cluster;
            if start + shape.cluster > size {
                return None;
            }
            format!("write -c -P {pattern} {start} {}", shape.cluster)
        }
        _ => format!("write -P {pattern} {start} {len}"),
    })
}

/// Arguments of one change.
fn change(rng: &mut Rng, shape: &Shape, size: u64) -> Vec<String> {
    let words = |text: String| text.split(' ').map(str::to_owned).collect();
    match rng.below(12) {
        0..=2 => words(format!("snapshot -c {} {NAME}", rng.pick(&TAGS))),
        3 => words(format!("snapshot -a {} {NAME}", rng.pick(&TAGS))),
        4 => words(format!("snapshot -d {} {NAME}", rng.pick(&TAGS))),
        5 | 6 => words(resize(rng, size)),
        7 | 8 => words(amend(rng, shape, size)),
        9 | 10 => words(bitmap(rng)),
        _ => words(format!(
            "check -q -r {} {NAME}",
            rng.pick(&["leaks", "all"])
        )),
    }
}

fn resize(rng: &mut Rng, size: u64) -> String {
    let by = 512 * (1 + rng.below(8192));
    match rng.below(6) {
        0 => format!("resize {NAME} +{by}"),
        1 => format!("resize --shrink {NAME} -{by}"),
        2 => format!("resize --shrink {NAME} {}", by * 2),
        3 => format!("resize {NAME} {}", size / 512 * 512 + by),
        4 => format!(
            "resize --preallocation={} {NAME} +{by}",
            rng.pick(&["metadata", "falloc", "full"])
        ),
        _ => format!("resize {NAME} {by}"),
    }
}

fn amend(rng: &mut Rng, shape: &Shape, size: u64) -> String {
    // The oracle takes up to half a minute to leave narrow refcounts behind where clusters are large.
    let narrowest = if shape.cluster > 4096 { 4 } else { 0 };
    let width = |rng: &mut Rng| 1 << (narrowest + rng.below(8 - narrowest));
    let option = match rng.below(6) {
        // Version 2 has refcounts of 16 bits.
        0 | 2 | 5 if shape.slow_width => "compat=1.1".to_owned(),
        0 => "compat=0.10".to_owned(),
        1 => "compat=1.1".to_owned(),
        2 => format!("refcount_bits={}", width(rng)),
        3 => format!("lazy_refcounts={}", rng.pick(&["on", "off"])),
        4 => format!("size={}", size / 512 * 512 + 512 * rng.below(4096)),
        _ => format!("compat=1.1,refcount_bits={}", width(rng)),
    };
    format!("amend -o {option} {NAME}")
}

fn bitmap(rng: &mut Rng) -> String {
    let name = *rng.pick(&BITMAPS);
    let action = match rng.below(9) {
        0..=2 => format!("--add -g {}", 512 << rng.below(12)),
        3 => "--add --disable".to_owned(),
        4 => "--remove".to_owned(),
        5 => "--clear".to_owned(),
        6 => "--enable".to_owned(),
        7 => "--disable".to_owned(),
        _ => format!("--merge {}", rng.pick(&BITMAPS)),
    };
    format!("bitmap {action} {NAME} {name}")
}

fn virtual_size(twins: &Twins) -> Result<u64> {
    let info = image::qemu_img(twins.theirs(), &["info", "--output=json", NAME])?;
    let value: serde_json::Value = serde_json::from_slice(&info.stdout)?;
    value["virtual-size"].as_u64().context("no size")
}

/// `check -r` on both copies. Where the oracle has left leaks that we have not, what the two say differs, and
/// where there are snapshots and bitmaps the oracle's repair deletes the snapshots (docs/qemu-img-differences.md):
/// then only our copy is repaired, and has to be sound and what the other one is.
fn repair(twins: &mut Twins, args: &[String]) -> Result<()> {
    let words = ["check", NAME];
    let before = oracle_code(twins.theirs(), &words)?;
    let info = image::qemu_img(twins.theirs(), &["info", "--output=json", NAME])?;
    let value: serde_json::Value = serde_json::from_slice(&info.stdout)?;
    let bitmaps = &value["format-specific"]["data"]["bitmaps"];
    let deletes = !value["snapshots"].is_null() && !bitmaps.is_null();
    if before == Some(0) && !deletes {
        return twins.run(args).map(|_| ());
    }
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let want = if deletes {
        Some(0)
    } else {
        oracle_code(twins.theirs(), &words)?
    };
    let got = Run::new(&tools::instar()?, twins.ours().path())
        .args(args)
        .go()?;
    let after = oracle_code(twins.ours(), &["check", NAME])?;
    anyhow::ensure!(
        got.code == want && got.code == after,
        "{args:?}: {want:?} wanted, {after:?} left: {}",
        got.describe()
    );
    Ok(())
}

/// The oracle's exit code, run in a folder.
fn oracle_code(folder: &Scratch, args: &[&str]) -> Result<Option<i32>> {
    let run = Run::new(&tools::qemu_img()?, folder.path());
    Ok(run.args(args).go()?.code)
}

fn one_chain(rng: &mut Rng) -> Result<()> {
    let shape = shape(rng);
    let mut twins = Twins::new()?;
    twins.build(|folder| {
        let options: Vec<&str> = shape.options.iter().map(String::as_str).collect();
        image::create(folder, NAME, &options, &shape.size.to_string())
    })?;
    let label = format!("{:?} of {} bytes", shape.options, shape.size);
    for _ in 0..=rng.below(5) {
        if let Some(command) = io_command(rng, &shape, shape.size) {
            twins.io(NAME, &[&command]).context(label.clone())?;
        }
    }
    for _ in 0..=rng.below(6) {
        let size = virtual_size(&twins)?;
        let args = change(rng, &shape, size);
        if args.iter().any(|word| word.starts_with("--preallocation=")) {
            // A directory of bitmaps keeps its place until the commit: a run of new clusters may begin behind it.
            twins.allow_fragments(1);
        }
        if args.first().is_some_and(|word| word == "check") {
            repair(&mut twins, &args).context(label.clone())?;
        } else {
            twins.run(&args).context(label.clone())?;
        }
        if let Err(e) = twins.compare(NAME) {
            if args.iter().any(|word| word == "--preallocation=metadata") && stale(&twins, size)? {
                return Ok(());
            }
            return Err(e.context(label));
        }
        let size = virtual_size(&twins)?;
        if let (Some(command), true) = (io_command(rng, &shape, size), rng.below(2) == 0) {
            twins.io(NAME, &[&command]).context(label.clone())?;
            twins.compare_after_io(NAME).context(label.clone())?;
        }
    }
    Ok(())
}

/// Whether the oracle's image shows, beyond its old size, what its file held at freed places: it preallocates such
/// clusters as they are. Ours must show zeros.
fn stale(twins: &Twins, old_size: u64) -> Result<bool> {
    let [theirs, ours] = [twins.theirs(), twins.ours()].map(|folder| -> Result<bool> {
        image::qemu_img(folder, &["convert", "-O", "raw", NAME, "grown.raw"])?;
        let bytes = folder.read("grown.raw")?;
        std::fs::remove_file(folder.file("grown.raw"))?;
        let new = bytes.get(usize::try_from(old_size)?..).unwrap_or_default();
        Ok(new.iter().all(|byte| *byte == 0))
    });
    Ok(ours? && !theirs?)
}

/// Four tests with seeds of their own, so that all cores are used.
fn chains(test: &str) -> Outcome {
    let mut rng = Rng::for_test(test);
    let count = count("INSTAR_CHAINS", CHAINS);
    let mut failures = Vec::new();
    for chain in 0..count {
        if let Err(e) = one_chain(&mut rng) {
            failures.push(format!("chain {chain}: {e:#}"));
        }
    }
    println!("{} chains failed", failures.len());
    total(count, "chains of changes");
    anyhow::ensure!(
        failures.is_empty(),
        "seed {}: {} chains failed; the first:\n{}",
        rng.seed(),
        failures.len(),
        failures
            .iter()
            .take(4)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n==========\n")
    );
    Ok(())
}

#[test]
fn random_chains_first() -> Outcome {
    chains("first")
}

#[test]
fn random_chains_second() -> Outcome {
    chains("second")
}

#[test]
fn random_chains_third() -> Outcome {
    chains("third")
}

#[test]
fn random_chains_fourth() -> Outcome {
    chains("fourth")
}
