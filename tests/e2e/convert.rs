//! Random sources, converted in random ways by both programs.
//!
//! `INSTAR_SEED` repeats a run, `INSTAR_CONVERSIONS` says how many conversions there are.

use anyhow::{Context, Result, ensure};
use instar_tests::rng::Rng;
use instar_tests::run::{Outcome as Ran, Run};
use instar_tests::scratch::Scratch;
use instar_tests::{image, tools};
use serde_json::Value;

use crate::Outcome;

/// Conversions of the random test.
const CONVERSIONS: u64 = 40;
/// Virtual sizes in bytes, some of them not multiples of a cluster.
const SIZES: [u64; 7] = [
    0,
    512,
    70 << 10,
    1 << 20,
    (5 << 20) + 1536,
    8 << 20,
    24 << 20,
];
/// What each program makes.
const OURS: &str = "ours.img";
const THEIRS: &str = "theirs.img";

/// Options of an image that can be a source or a target.
fn image_options(rng: &mut Rng) -> String {
    let bits = *rng.pick(&[9, 10, 12, 14, 16, 16, 16, 18, 21]);
    let mut options = vec![format!("cluster_size={}", 1_u64 << bits)];
    if rng.below(4) == 0 {
        options.push("compat=0.10".into());
    } else {
        options.push(format!("refcount_bits={}", 1 << rng.below(7)));
        if bits >= 14 && rng.below(3) == 0 {
            options.push("extended_l2=on".into());
        }
        if rng.below(3) == 0 {
            options.push("compression_type=zstd".into());
        }
        if rng.below(4) == 0 {
            options.push("lazy_refcounts=on".into());
        }
    }
    options.join(",")
}

/// `qemu-io` commands that fill a disk of `size` bytes in places.
fn fill(rng: &mut Rng, scratch: &Scratch, name: &str, size: u64, compress: bool) -> Result<()> {
    let sectors = size / 512;
    let mut commands = Vec::new();
    for _ in 0..rng.below(12) {
        if sectors == 0 {
            break;
        }
        let start = rng.below(sectors);
        let len = 1 + rng.below((sectors - start).min(3000));
        let (start, len) = (start * 512, len * 512);
        let pattern = rng.below(5);
        commands.push(match rng.below(6) {
            0 => format!("write -z {start} {len}"),
            1 => format!("discard {start} {len}"),
            // QEMU compresses only into clusters that are not allocated.
            2 if compress && size >= 4 << 20 && commands.is_empty() => {
                let start = start / (2 << 20) * (2 << 20);
                let len = (2 << 20).min(size - start) & !511;
                format!("write -c -P {pattern} {start} {len}")
            }
            _ => format!("write -P {pattern} {start} {len}"),
        });
    }
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    if commands.is_empty() {
        return Ok(());
    }
    image::io(scratch, name, &commands)
}

/// Makes a source with its chain; gives the names from the top down.
fn source(rng: &mut Rng, scratch: &Scratch, number: u64) -> Result<Vec<String>> {
    let size = *rng.pick(&SIZES);
    let depth = rng.below(4);
    let mut names: Vec<String> = Vec::new();
    let base = format!("s{number}-base");
    if rng.below(3) == 0 {
        scratch.set_len(&base, size)?;
        if rng.below(2) == 0 {
            scratch.set_len(&base, size + rng.below(400))?;
        }
        let at = rng.below(size.max(1)) & !511;
        if size > at + 65536 {
            let file = std::fs::File::options()
                .write(true)
                .open(scratch.file(&base))?;
            std::os::unix::fs::FileExt::write_all_at(&file, &[7; 60 << 10], at)?;
        }
        names.push(base);
        if depth == 0 {
            return Ok(names);
        }
    } else {
        let options = image_options(rng);
        image::create(scratch, &base, &[&options], &size.to_string())?;
        fill(rng, scratch, &base, size, true)?;
        names.push(base);
    }
    for level in 0..depth {
        let below = names.first().context("a base")?.clone();
        let format = if names.len() == 1 && image_is_raw(scratch, &below)? {
            "raw"
        } else {
            "qcow2"
        };
        let name = format!("s{number}-{level}");
        let size = if rng.below(3) == 0 {
            *rng.pick(&SIZES)
        } else {
            size
        };
        let options = format!(
            "{},backing_file={below},backing_fmt={format}",
            image_options(rng)
        );
        image::create(scratch, &name, &[&options], &size.to_string())?;
        fill(rng, scratch, &name, size, true)?;
        names.insert(0, name);
    }
    if rng.below(4) == 0 {
        let top = names.first().context("a top")?;
        // Refcounts of one bit allow no snapshot.
        if !image_is_raw(scratch, top)? && image::snapshot(scratch, top, "snap").is_ok() {
            let size = virtual_size(scratch, top)?;
            fill(rng, scratch, top, size, false)?;
        }
    }
    Ok(names)
}

fn info(scratch: &Scratch, name: &str) -> Result<Value> {
    let done = image::qemu_img(scratch, &["info", "--output=json", name])?;
    Ok(serde_json::from_slice(&done.stdout)?)
}

fn image_is_raw(scratch: &Scratch, name: &str) -> Result<bool> {
    Ok(info(scratch, name)?["format"] == "raw")
}

fn virtual_size(scratch: &Scratch, name: &str) -> Result<u64> {
    info(scratch, name)?["virtual-size"]
        .as_u64()
        .context("a size")
}

/// Words of a random conversion, but for the target, and whether the target's map can be compared.
fn words(rng: &mut Rng, chains: &[Vec<String>]) -> Vec<String> {
    let mut words: Vec<String> = vec!["convert".into()];
    let mut add = |word: &str| words.push(word.to_owned());
    let qcow2 = rng.below(3) > 0;
    add("-O");
    add(if qcow2 { "qcow2" } else { "raw" });
    let compress = qcow2 && rng.below(4) == 0;
    if compress {
        add("-c");
    }
    if qcow2 && rng.below(3) > 0 {
        let mut options = image_options(rng);
        if !compress && rng.below(4) == 0 {
            options += *rng.pick(&[
                ",preallocation=metadata",
                ",preallocation=falloc",
                ",preallocation=full",
            ]);
        }
        add("-o");
        add(&options);
    }
    match rng.below(6) {
        0 => {
            add("-S");
            let size = *rng.pick(&["0", "512", "1k", "8k", "64k", "1M"]);
            add(size);
        }
        1 if !compress => add("-C"),
        _ => {}
    }
    if rng.below(6) == 0 {
        add("-m");
        let count = *rng.pick(&["1", "3", "16"]);
        add(count);
    }
    if rng.below(6) == 0 {
        add("-W");
    }
    if rng.below(8) == 0 {
        add("--salvage");
    }
    if rng.below(6) == 0 {
        add("-l");
        // Of several sources QEMU refuses the short forms alone.
        let forms = if chains.len() > 1 { 2 } else { 3 };
        let index = usize::try_from(rng.below(forms)).unwrap_or(0);
        add(["snap", "1", "snapshot.name=snap"][index]);
    }
    if let ([chain], true, 0) = (chains, qcow2, rng.below(3))
        && let Some(below) = chain.get(1)
    {
        add("-B");
        add(below);
        add("-F");
        add("qcow2");
    }
    for chain in chains {
        add(chain.first().map_or("", String::as_str));
    }
    words
}

fn run(
    program: &std::path::Path,
    scratch: &Scratch,
    words: &[String],
    target: &str,
) -> Result<Ran> {
    let words = words.iter().map(String::as_str).chain([target]);
    Run::new(program, scratch.path()).args(words).go()
}

/// The first line of an error, without what differs between the programs.
fn first_line(ran: &Ran) -> String {
    let text = String::from_utf8_lossy(&ran.stderr);
    let line = text.lines().next().unwrap_or_default();
    let line = line.replace(OURS, "TARGET").replace(THEIRS, "TARGET");
    let line = line.strip_prefix("instar: ").unwrap_or(&line).to_owned();
    line.strip_prefix("qemu-img: ").unwrap_or(&line).to_owned()
}

/// What `qemu-img map` says, without places.
fn map(scratch: &Scratch, name: &str) -> Result<Vec<Value>> {
    let done = image::qemu_img(scratch, &["map", "--output=json", name])?;
    let mut runs: Vec<Value> = Vec::new();
    for mut run in serde_json::from_slice::<Vec<Value>>(&done.stdout)? {
        let fields = run.as_object_mut().context("a run")?;
        fields.remove("offset");
        let len = fields.remove("length").and_then(|len| len.as_u64());
        let start = fields.remove("start").and_then(|start| start.as_u64());
        let end = start.zip(len).map(|(start, len)| start + len);
        let end = Value::from(end.context("an end")?);
        match runs.last_mut() {
            Some(last) if last["state"] == run => last["end"] = end,
            _ => runs.push(serde_json::json!({ "state": run, "end": end })),
        }
    }
    Ok(runs)
}

/// Both targets are the same image.
fn judge(scratch: &Scratch, words: &[String]) -> Result<()> {
    let mut both = Vec::new();
    for name in [OURS, THEIRS] {
        let mut info = info(scratch, name)?;
        let fields = info.as_object_mut().context("info")?;
        for field in ["filename", "actual-size", "children"] {
            fields.remove(field);
        }
        both.push(info);
    }
    ensure!(
        both[0] == both[1],
        "info differs:\n{}\n{}",
        both[0],
        both[1]
    );
    image::qemu_img(scratch, &["compare", OURS, THEIRS])?;
    let raw = both[0]["format"] == "raw";
    if !raw {
        image::qemu_img(scratch, &["check", OURS])?;
    }
    // Preallocated space may be told as data or as zeros: that depends on the file system. With -C, QEMU looks for
    // zeros as soon as one copy has failed; with -B, zeros in short pieces become data; what is left out with a large -S
    // depends on where QEMU's requests begin and end.
    let untold = |word: &String| {
        word.contains("preallocation") || ["-C", "-B", "64k", "1M"].contains(&word.as_str())
    };
    if words.iter().any(untold) {
        return Ok(());
    }
    let (ours, theirs) = (map(scratch, OURS)?, map(scratch, THEIRS)?);
    ensure!(ours == theirs, "map differs:\n{ours:?}\n{theirs:?}");
    let len = |name: &str| std::fs::metadata(scratch.file(name)).map(|data| data.len());
    let (ours, theirs) = (len(OURS)?, len(THEIRS)?);
    let cluster = both[0]["cluster-size"].as_u64().unwrap_or(0);
    ensure!(
        ours <= theirs + theirs / 50 + 2 * cluster,
        "{ours} bytes instead of {theirs}"
    );
    Ok(())
}

#[test]
fn random_conversions_agree() -> Outcome {
    let mut rng = Rng::for_test("random_conversions_agree");
    let count = std::env::var("INSTAR_CONVERSIONS").ok();
    let count = count
        .and_then(|text| text.parse().ok())
        .unwrap_or(CONVERSIONS);
    let (ours, theirs) = (tools::instar()?, tools::qemu_img()?);
    for round in 0..count {
        let scratch = Scratch::new()?;
        let sources = if rng.below(4) == 0 {
            2 + rng.below(2)
        } else {
            1
        };
        let mut chains = Vec::new();
        for number in 0..sources {
            chains.push(source(&mut rng, &scratch, number)?);
        }
        let words = words(&mut rng, &chains);
        let told = || format!("round {round}, seed {}: {words:?}", rng.seed());
        let want = run(&theirs, &scratch, &words, THEIRS)?;
        let got = run(&ours, &scratch, &words, OURS)?;
        ensure!(
            want.code == got.code && first_line(&want) == first_line(&got),
            "{}\n{}\n{}",
            told(),
            want.describe(),
            got.describe()
        );
        if got.code == Some(0) {
            judge(&scratch, &words).with_context(told)?;
        } else {
            ensure!(!scratch.file(OURS).exists(), "{}: a file is left", told());
        }
    }
    Ok(())
}

#[test]
fn existing_targets_are_written_in_place() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_filled(&scratch, "a.qcow2", &[])?;
    let size = virtual_size(&scratch, "a.qcow2")?;
    let ours = tools::instar()?;
    for (len, zero, code) in [
        (size, false, 0),
        (size + 4096, false, 0),
        (size - 512, false, 1),
    ] {
        let len = usize::try_from(len)?;
        scratch.write(OURS, &vec![0xee; len])?;
        let mut words: Vec<String> = ["convert", "-n", "-O", "raw"].map(String::from).to_vec();
        if zero {
            words.push("--target-is-zero".into());
        }
        words.push("a.qcow2".into());
        let before = std::fs::metadata(scratch.file(OURS))?;
        let done = run(&ours, &scratch, &words, OURS)?;
        done.expect_code(code)?;
        let bytes = scratch.read(OURS)?;
        ensure!(bytes.len() == len, "its length changed");
        if code == 1 {
            ensure!(bytes.iter().all(|byte| *byte == 0xee), "it was touched");
            continue;
        }
        image::qemu_img(&scratch, &["convert", "-O", "raw", "a.qcow2", THEIRS])?;
        let content = scratch.read(THEIRS)?;
        ensure!(bytes.starts_with(&content), "its content differs");
        let rest = bytes.get(content.len()..).unwrap_or_default();
        ensure!(
            rest.iter().all(|byte| *byte == 0xee),
            "what is past the source's end was touched"
        );
        use std::os::unix::fs::MetadataExt;
        ensure!(
            before.ino() == std::fs::metadata(scratch.file(OURS))?.ino(),
            "another inode"
        );
    }
    Ok(())
}

#[test]
fn parts_by_dd_agree() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_filled(&scratch, "a.qcow2", &["cluster_size=4k"])?;
    scratch.write("odd.raw", &vec![3; 1000])?;
    let (ours, theirs) = (tools::instar()?, tools::qemu_img()?);
    for words in [
        "if=a.qcow2",
        "if=a.qcow2 bs=1M count=1",
        "if=a.qcow2 bs=700 count=3",
        "if=a.qcow2 bs=700 skip=3",
        "if=a.qcow2 bs=1M count=4 skip=1",
        "if=a.qcow2 bs=1M count=1 skip=1",
        "if=a.qcow2 bs=1M skip=5000",
        "-O qcow2 if=a.qcow2 bs=64k",
        "-O qcow2 if=odd.raw bs=700 skip=1",
        "-f raw if=odd.raw",
        "if=a.qcow2 count=0",
        "if=nope",
        "-O bogus if=a.qcow2",
        "if=a.qcow2 of=nodir/x",
    ] {
        let mut all: Vec<String> = vec!["dd".into()];
        all.extend(words.split(' ').map(String::from));
        let target = |name: &str| format!("of={name}");
        let both = |name| {
            let mut words = all.clone();
            if !words.iter().any(|word| word.starts_with("of=")) {
                words.push(target(name));
            }
            words
        };
        let want = Run::new(&theirs, scratch.path()).args(both(THEIRS)).go()?;
        let got = Run::new(&ours, scratch.path()).args(both(OURS)).go()?;
        ensure!(
            want.code == got.code && first_line(&want) == first_line(&got),
            "{words}\n{}\n{}",
            want.describe(),
            got.describe()
        );
        if got.code == Some(0) {
            judge(&scratch, &all).with_context(|| words.to_owned())?;
        }
    }
    Ok(())
}

#[test]
fn what_the_top_image_holds_goes_onto_a_backing_file() -> Outcome {
    let scratch = Scratch::new()?;
    image::create(&scratch, "base", &[], "1M")?;
    image::io(&scratch, "base", &["write -P 1 0 256k"])?;
    image::create(
        &scratch,
        "mid",
        &["backing_file=base,backing_fmt=qcow2"],
        "1M",
    )?;
    image::io(&scratch, "mid", &["write -P 2 256k 128k", "write -z 0 64k"])?;
    image::create(
        &scratch,
        "top",
        &["backing_file=mid,backing_fmt=qcow2"],
        "1500k",
    )?;
    let commands = [
        "write -P 3 512k 128k",
        "write -z 64k 64k",
        "write -P 0 128k 64k",
    ];
    image::io(&scratch, "top", &commands)?;
    let (ours, theirs) = (tools::instar()?, tools::qemu_img()?);
    for words in [
        "-O qcow2 -B mid -F qcow2 top",
        "-O qcow2 -B base -F qcow2 top",
        "-O qcow2 -B base -F qcow2 base",
        "-S 0 -O qcow2 -B mid -F qcow2 top",
        "-c -S 0 -O qcow2 -B base -F qcow2 mid",
        "-O qcow2 -o cluster_size=512k -B mid -F qcow2 top",
        "-O qcow2 -o extended_l2=on -B mid -F qcow2 top",
    ] {
        let all: Vec<String> = ["convert"]
            .into_iter()
            .chain(words.split(' '))
            .map(String::from)
            .collect();
        run(&theirs, &scratch, &all, THEIRS)?.expect_code(0)?;
        run(&ours, &scratch, &all, OURS)?.expect_code(0)?;
        judge(&scratch, &all).with_context(|| words.to_owned())?;
        let (got, want) = (map(&scratch, OURS)?, map(&scratch, THEIRS)?);
        ensure!(got == want, "{words}: map differs:\n{got:?}\n{want:?}");
    }
    Ok(())
}
