//! `convert -n`: into images that exist.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use instar_tests::compare::Bench;
use instar_tests::faults::{self, Victim};
use instar_tests::hidden::hidden;
use instar_tests::image;
use instar_tests::rng::{Rng, count};
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::tools;
use instar_tests::totals::total;
use instar_tests::twins::Twins;

use crate::Outcome;

/// The target, and images to copy.
const TARGET: &str = "target";

/// Sources of 4 MiB and of a size that is no multiple of a cluster, a chain, and one with bitmaps.
fn sources(folder: &Scratch) -> Result<()> {
    image::create(folder, "plain", &[], "4M")?;
    let commands = ["write -P 1 0 300k", "write -P 2 1M 20k", "write -z 2M 300k"];
    image::io(folder, "plain", &commands)?;
    image::create(folder, "small", &["cluster_size=4k"], "1025k")?;
    image::io(
        folder,
        "small",
        &["write -P 3 4k 30k", "write -P 4 1000k 25k"],
    )?;
    let below = "backing_file=plain,backing_fmt=qcow2,cluster_size=4k";
    image::create(folder, "over", &[below], "4M")?;
    image::io(folder, "over", &["write -P 5 512k 77k", "write -z 64k 64k"])?;
    image::create(folder, "marked", &[], "4M")?;
    for bitmap in [
        &["bitmap", "--add", "marked", "one"][..],
        &["bitmap", "--add", "--disable", "-g", "32k", "marked", "two"],
    ] {
        image::qemu_img(folder, bitmap)?.expect_code(0)?;
    }
    image::io(folder, "marked", &["write -P 6 100k 200k"])
}

/// Kinds of targets: options, whether it lies over a backing file, and what is done to it.
const KINDS: [(&str, &[&str], bool, &[&str]); 15] = [
    ("data", &[], false, &["write -P 9 0 4M"]),
    ("empty", &[], false, &[]),
    ("version 2", &["compat=0.10"], false, &["write -P 9 64k 2M"]),
    ("backed", &[], true, &["write -P 9 512k 1M"]),
    (
        "backed, version 2",
        &["compat=0.10"],
        true,
        &["write -P 9 512k 1M"],
    ),
    (
        "small clusters",
        &["cluster_size=512,refcount_bits=1"],
        false,
        &["write -P 9 5k 1M", "write -z 2M 1M"],
    ),
    (
        "large clusters",
        &["cluster_size=2M"],
        true,
        &["write -P 9 1M 64k"],
    ),
    ("compressed", &[], false, &["write -c -P 9 0 4M"]),
    (
        "subclusters",
        &["extended_l2=on,cluster_size=64k"],
        true,
        &["write -P 9 10k 900k", "write -z 3M 6k"],
    ),
    (
        "snapshot",
        &["cluster_size=4k"],
        false,
        &["write -P 9 0 3M", "snapshot"],
    ),
    ("bitmaps", &[], false, &["bitmaps", "write -P 9 0 64k"]),
    ("lazy", &["lazy_refcounts=on"], false, &["write -P 9 0 1M"]),
    (
        "data file",
        &["data_file=target.data"],
        false,
        &["write -P 9 0 3M"],
    ),
    (
        "raw data file",
        &["data_file=target.data,data_file_raw=on"],
        false,
        &["write -P 9 0 3M"],
    ),
    (
        "reserved",
        &["preallocation=metadata"],
        false,
        &["write -P 9 0 64k"],
    ),
];

/// Makes a target.
fn target(folder: &Scratch, kind: usize) -> Result<()> {
    let (name, options, backed, steps) = KINDS[kind % KINDS.len()];
    let mut all = options.to_vec();
    if backed {
        all.push("backing_file=plain,backing_fmt=qcow2");
    }
    let joined = all.join(",");
    let options: &[&str] = if joined.is_empty() { &[] } else { &[&joined] };
    image::create(folder, TARGET, options, "4M").context(name)?;
    for step in steps {
        match *step {
            "snapshot" => image::snapshot(folder, TARGET, "kept")?,
            "bitmaps" => {
                for words in [
                    "--add target b",
                    "--add --disable target c",
                    "--add -g 4k target d",
                ] {
                    let words = format!("bitmap {words}");
                    let words: Vec<&str> = words.split(' ').collect();
                    image::qemu_img(folder, &words)?.expect_code(0)?;
                }
            }
            command => image::io(folder, TARGET, &[command])?,
        }
    }
    Ok(())
}

/// One command on both sides, into a target of this kind.
fn same(kind: usize, words: &str) -> Result<()> {
    copied(kind, words, |folder| {
        sources(folder)?;
        target(folder, kind)
    })
}

/// Guest clusters that the target has, zeros not counted.
fn clusters(folder: &Scratch) -> Result<u64> {
    let done = image::qemu_img(folder, &["check", "--output=json", TARGET])?;
    let found: serde_json::Value = serde_json::from_slice(&done.stdout)?;
    Ok(found["allocated-clusters"].as_u64().unwrap_or(0))
}

/// One command on both sides: the same texts and codes; then the same content, and sound images.
fn copied(kind: usize, words: &str, make: impl FnOnce(&Scratch) -> Result<()>) -> Result<()> {
    let mut twins = Twins::new()?;
    twins.build(make)?;
    let args: Vec<&str> = words.split(' ').collect();
    let told = || format!("{}: {words}", KINDS[kind % KINDS.len()].0);
    let code = twins.run(&args).with_context(told)?;
    // After a failure qemu-img has written a part, instar what it had committed.
    if code == 0 {
        let ours = twins.ours().file(TARGET);
        let ours = ours.to_str().context("a folder whose name is no text")?;
        image::qemu_img(twins.theirs(), &["compare", TARGET, ours]).with_context(told)?;
        let [most, has] = [twins.theirs(), twins.ours()].map(clusters);
        let (most, has) = (most?, has?);
        // The source's last cluster, of which it has a part, may be data rather than zeros.
        ensure!(
            has <= most + 1,
            "{}: {has} clusters, with qemu-img {most}",
            told()
        );
        let [theirs, ours] = [twins.theirs(), twins.ours()].map(|f| hidden(&f.file(TARGET)));
        let (theirs, ours) = (theirs?, ours?);
        ensure!(theirs == ours, "{}: {theirs:#?}\n{ours:#?}", told());
    }
    image::qemu_img(twins.ours(), &["check", TARGET])
        .with_context(told)
        .map(drop)
}

#[test]
fn targets_of_every_kind_hold_what_was_copied() -> Outcome {
    let mut failures = Vec::new();
    for kind in 0..KINDS.len() {
        for words in [
            "convert -n -O qcow2 plain target",
            "convert -n -O qcow2 small target",
            "convert -n -O qcow2 over target",
        ] {
            if let Err(error) = same(kind, words) {
                failures.push(format!("{error:#}"));
            }
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n==========\n"));
    Ok(())
}

#[test]
fn every_option_does_what_it_does_for_the_oracle() -> Outcome {
    let mut failures = Vec::new();
    for (kind, words) in [
        (1, "convert -n -c -O qcow2 plain target"),
        (1, "convert -n -c -W -O qcow2 over target"),
        (7, "convert -n -c -O qcow2 plain target"),
        (12, "convert -n -c -O qcow2 plain target"),
        (1, "convert -n -c -O qcow2 small target"),
        (0, "convert -n -S 0 -O qcow2 plain target"),
        (3, "convert -n -S 64k -O qcow2 over target"),
        (8, "convert -n -C -O qcow2 over target"),
        (1, "convert -n --target-is-zero -O qcow2 over target"),
        (9, "convert -n -W -m 4 -O qcow2 over target"),
        (3, "convert -n -B plain -F qcow2 -O qcow2 over target"),
        (1, "convert -n -B plain -F qcow2 -O qcow2 over target"),
        (1, "convert -n -o compat=1.1 -O qcow2 plain target"),
        (1, "convert -n --bitmaps -O qcow2 marked target"),
        (10, "convert -n --bitmaps -O qcow2 marked target"),
        (2, "convert -n --bitmaps -O qcow2 marked target"),
        (1, "convert -n --bitmaps -O qcow2 plain target"),
        (1, "convert -n -O qcow2 plain small target"),
        (1, "convert -n -O qcow2 small small target"),
        (1, "convert -n -O qcow2 plain missing"),
        (1, "convert -n -f raw -O qcow2 small target"),
        (1, "convert -n -O raw plain target"),
    ] {
        if let Err(error) = same(kind, words) {
            failures.push(format!("{error:#}"));
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n==========\n"));
    Ok(())
}

#[test]
fn a_target_that_is_zero_has_no_backing_file() -> Outcome {
    let scratch = Scratch::new()?;
    sources(&scratch)?;
    target(&scratch, 1)?;
    let bench = Bench::new(&scratch);
    let words = "convert -n --target-is-zero -B plain -O qcow2 over target";
    let args: Vec<&str> = words.split(' ').collect();
    let (want, got) = (bench.qemu_img(&args)?, bench.instar(&args)?);
    let said = "Cannot use --target-is-zero when the destination image has a backing file";
    for ran in [&want, &got] {
        ensure!(ran.err().contains(said), "{}", ran.describe());
    }
    // The oracle has not copied anything, either.
    ensure!(want.code == Some(0), "qemu-img says now that it failed");
    got.expect_code(1).map(drop)
}

#[test]
fn an_empty_target_grows_as_much_as_it_has_to() -> Outcome {
    let scratch = Scratch::new()?;
    image::create(&scratch, "source", &[], "200M")?;
    image::io(&scratch, "source", &["write -P 7 0 190M"])?;
    let bench = Bench::new(&scratch);
    for options in [&[][..], &["cluster_size=512"], &["data_file=grown.data"]] {
        image::create(&scratch, "grown", options, "201M")?;
        let args = ["convert", "-n", "-O", "qcow2", "source", "grown"];
        bench.instar(&args)?.expect_code(0)?;
        image::qemu_img(&scratch, &["compare", "source", "grown"])?.expect_code(0)?;
        image::qemu_img(&scratch, &["check", "grown"])?.expect_code(0)?;
    }
    Ok(())
}

#[test]
fn bitmaps_that_are_there_are_not_overwritten() -> Outcome {
    let scratch = Scratch::new()?;
    sources(&scratch)?;
    let bench = Bench::new(&scratch);
    for (name, ours) in [("a", true), ("b", false)] {
        image::create(&scratch, name, &[], "4M")?;
        image::qemu_img(&scratch, &["bitmap", "--add", name, "one"])?.expect_code(0)?;
        let args = ["convert", "-n", "--bitmaps", "-O", "qcow2", "marked", name];
        let ran = if ours {
            bench.instar(&args)?
        } else {
            bench.qemu_img(&args)?
        };
        ran.expect_code(1)?;
        let said = ran.err();
        let expected = "Failed to create bitmap one: Bitmap already exists: one";
        ensure!(said.contains(expected), "{said}");
        let info = image::qemu_img(&scratch, &["info", name])?.out();
        ensure!(info.matches("name: two").count() == 1, "{info}");
        ensure!(!info.contains("in-use"), "{info}");
    }
    Ok(())
}

/// Copies of the seeded test; `INSTAR_COPIES` says another number.
const COPIES: u64 = 20;

/// A source of any size and kind, and more in the target.
fn random_images(folder: &Scratch, rng: &mut Rng, kind: usize) -> Result<()> {
    sources(folder)?;
    target(folder, kind)?;
    let sectors = 1 + rng.below(8192);
    let options = image::random_options(rng, &[9, 12, 14, 16, 16, 21]);
    image::create(folder, "random", &[&options], &(sectors * 512).to_string())?;
    for name in ["random", "random", "random", TARGET] {
        let most = if name == TARGET { 8192 } else { sectors };
        let start = rng.below(most);
        let len = 1 + rng.below((most - start).min(1500));
        let (start, len) = (start * 512, len * 512);
        let command = match rng.below(4) {
            0 => format!("write -z {start} {len}"),
            1 => format!("discard {start} {len}"),
            _ => format!("write -P {} {start} {len}", 1 + rng.below(200)),
        };
        image::io(folder, name, &[&command])?;
    }
    Ok(())
}

#[test]
fn random_copies_leave_what_the_oracle_leaves() -> Outcome {
    let mut rng = Rng::for_test("convert -n");
    let mut failures = Vec::new();
    let copies = count("INSTAR_COPIES", COPIES);
    for _ in 0..copies {
        let kind = usize::try_from(rng.below(KINDS.len() as u64))?;
        let manner = rng.pick(&["", "-S 0 ", "-S 64k ", "-W -m 4 ", "-C ", "-T none "]);
        let words = format!("convert -n {manner}-O qcow2 random target");
        let make = |folder: &Scratch| random_images(folder, &mut rng, kind);
        if let Err(error) = copied(kind, &words, make) {
            failures.push(format!("{error:#}"));
        }
    }
    ensure!(
        failures.is_empty(),
        "seed {}: {} of {copies} failed:\n{}",
        rng.seed(),
        failures.len(),
        failures.join("\n==========\n")
    );
    total(copies, "copies into images beside qemu-img");
    Ok(())
}

/// Kills of a copy; `INSTAR_KILLS` says another number.
const KILLS: u64 = 12;
/// Bytes of the disk that is copied over.
const KILLED_BYTES: usize = 24 << 20;

#[test]
fn a_killed_copy_leaves_each_sector_old_or_new() -> Outcome {
    let scratch = Scratch::new()?;
    let size = KILLED_BYTES.to_string();
    image::create(&scratch, "source", &["cluster_size=4k"], &size)?;
    let old_and_new = ["write -P 1 0 24M", "write -z 6M 3M", "write -P 1 15M 9M"];
    image::io(&scratch, "source", &old_and_new)?;
    image::create(&scratch, "before", &["cluster_size=4k"], &size)?;
    image::io(&scratch, "before", &["write -P 9 0 20M"])?;
    image::snapshot(&scratch, "before", "kept")?;
    image::io(&scratch, "before", &["write -P 8 3M 2M"])?;
    let (old, new) = (raw_of(&scratch, "before")?, raw_of(&scratch, "source")?);
    let mut rng = Rng::for_test("kills of convert -n");
    let args = ["convert", "-n", "-O", "qcow2", "source", "killed"];
    let mut between = 0;
    let kills = count("INSTAR_KILLS", KILLS);
    for _ in 0..kills {
        std::fs::copy(scratch.file("before"), scratch.file("killed"))?;
        let victim = *rng.pick(&[Victim::Broker, Victim::Worker]);
        let delay = Duration::from_micros(rng.below(250_000));
        faults::killed(&scratch, &args, victim, delay)?;
        let told = || format!("seed {}: {victim:?} killed after {delay:?}", rng.seed());
        let check = Run::new(&tools::qemu_img()?, scratch.path());
        let check = check.args(["check", "killed"]).go()?;
        ensure!(
            matches!(check.code, Some(0 | 3)),
            "{}: {}",
            told(),
            check.describe()
        );
        let now = raw_of(&scratch, "killed")?;
        let sectors = now.chunks(512).zip(old.chunks(512)).zip(new.chunks(512));
        for (index, ((is, was), will)) in sectors.enumerate() {
            ensure!(is == was || is == will, "{}: sector {index}", told());
        }
        between += usize::from(now != old && now != new);
    }
    println!("{between} of {kills} were killed between the first and the last commit");
    total(kills, "kills of convert -n");
    Ok(())
}

/// The disk's bytes.
fn raw_of(scratch: &Scratch, name: &str) -> Result<Vec<u8>> {
    image::qemu_img(scratch, &["convert", "-O", "raw", name, "content.raw"])?;
    Ok(std::fs::read(scratch.file("content.raw"))?)
}
