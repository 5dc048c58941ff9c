//! Images through every option of `convert` and back: what comes back is what went in.

use anyhow::{Context, Result, ensure};
use instar_tests::image;
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::tools;
use instar_tests::twins::{Twins, sum};

use crate::Outcome;

/// The image that is copied.
const SOURCE: &str = "source.qcow2";
/// What is made of it.
const OUT: &str = "out.img";

/// Words of `convert` for each option with each of its values.
const WAYS: [&str; 56] = [
    "-O raw",
    "-O raw -S 0",
    "-O raw -S 512",
    "-O raw -S 1M",
    "-O raw -C",
    "-O raw -m 1",
    "-O raw -m 16 -W",
    "-O raw -r 200M",
    "-O raw -t none -T none",
    "-O raw -t writeback -T writeback",
    "-O raw -t writethrough -T directsync",
    "-O raw -t unsafe -T unsafe",
    "-O raw --salvage",
    "-O raw -U",
    "-O raw -o preallocation=off",
    "-O raw -o preallocation=falloc",
    "-O raw -o preallocation=full",
    "-O qcow2",
    "-O qcow2 -S 0",
    "-O qcow2 -S 64k",
    "-O qcow2 -C",
    "-O qcow2 -W -m 4",
    "-O qcow2 -o compat=0.10",
    "-O qcow2 -o compat=v2",
    "-O qcow2 -o compat=1.1",
    "-O qcow2 -o compat=v3",
    "-O qcow2 -o cluster_size=512",
    "-O qcow2 -o cluster_size=4k",
    "-O qcow2 -o cluster_size=128k",
    "-O qcow2 -o cluster_size=2M",
    "-O qcow2 -o refcount_bits=1",
    "-O qcow2 -o refcount_bits=2",
    "-O qcow2 -o refcount_bits=4",
    "-O qcow2 -o refcount_bits=8",
    "-O qcow2 -o refcount_bits=32",
    "-O qcow2 -o refcount_bits=64",
    "-O qcow2 -o extended_l2=on",
    "-O qcow2 -o extended_l2=on,cluster_size=16k",
    "-O qcow2 -o extended_l2=on,preallocation=metadata",
    "-O qcow2 -o lazy_refcounts=on",
    "-O qcow2 -o nocow=on",
    "-O qcow2 -o data_file=out.data",
    "-O qcow2 -o data_file=out.data,data_file_raw=on",
    "-O qcow2 -o data_file=out.data,data_file_raw=on,preallocation=metadata",
    "-O qcow2 -o preallocation=off",
    "-O qcow2 -o preallocation=metadata",
    "-O qcow2 -o preallocation=falloc",
    "-O qcow2 -o preallocation=full",
    "-c -O qcow2",
    "-c -O qcow2 -o compat=0.10",
    "-c -O qcow2 -o compression_type=zlib,cluster_size=4k",
    "-c -O qcow2 -o compression_type=zstd",
    "-c -O qcow2 -o compression_type=zstd,cluster_size=512",
    "-c -O qcow2 -o compression_type=zstd,cluster_size=2M",
    "-c -O qcow2 -o extended_l2=on",
    "-c -O qcow2 -o compression_type=zstd -W -m 8",
];

/// Data of all kinds, in one image over another one.
fn stage(folder: &Scratch) -> Result<()> {
    image::create(folder, "base.qcow2", &["cluster_size=4k"], "7M")?;
    image::io(
        folder,
        "base.qcow2",
        &["write -P 3 0 1M", "write -P 4 3M 2M"],
    )?;
    let below = "backing_file=base.qcow2,backing_fmt=qcow2,compression_type=zstd";
    image::create(folder, SOURCE, &[below], "9M")?;
    let noise: Vec<u8> = {
        let mut rng = instar_tests::rng::Rng::for_test("noise");
        std::iter::repeat_with(|| rng.next_u64().to_le_bytes())
            .take(40_000)
            .flatten()
            .collect()
    };
    folder.write("noise", &noise)?;
    image::io(
        folder,
        SOURCE,
        &[
            "write -c -P 5 512k 64k",
            "write -z 3200k 300k",
            "write -s noise 6M 320000",
            "write -P 6 8704k 40k",
        ],
    )
}

fn ours(twins: &Twins, words: &[&str]) -> Result<()> {
    let done = Run::new(&tools::instar()?, twins.ours().path())
        .args(words)
        .go()?;
    done.expect_code(0).map(drop)
}

fn sum_of(folder: &Scratch, name: &str) -> Result<u64> {
    sum(&std::fs::File::open(folder.file(name))?)
}

fn trip(way: &str, expected: u64) -> Result<()> {
    let mut twins = Twins::new()?;
    twins.build(stage)?;
    let mut words = vec!["convert"];
    words.extend(way.split(' '));
    words.extend([SOURCE, OUT]);
    let code = twins.run(&words)?;
    ensure!(code == 0, "both refuse");
    twins.compare(OUT)?;
    // Back by both programs: theirs reads what we have written, ours too.
    ours(&twins, &["convert", "-O", "raw", OUT, "back.ours"])?;
    image::qemu_img(twins.ours(), &["convert", "-O", "raw", OUT, "back.theirs"])?;
    for back in ["back.ours", "back.theirs"] {
        let found = sum_of(twins.ours(), back)?;
        ensure!(found == expected, "{back} is not what was converted");
    }
    Ok(())
}

fn part(number: usize) -> Outcome {
    let folder = Scratch::new()?;
    stage(&folder)?;
    image::qemu_img(&folder, &["convert", "-O", "raw", SOURCE, "content.raw"])?;
    let expected = sum_of(&folder, "content.raw")?;
    let mut failures = Vec::new();
    for way in WAYS.iter().skip(number).step_by(2) {
        if let Err(e) = trip(way, expected).with_context(|| (*way).to_owned()) {
            failures.push(format!("{e:#}"));
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n==========\n"));
    Ok(())
}

#[test]
fn through_every_option_and_back_first() -> Outcome {
    part(0)
}

#[test]
fn through_every_option_and_back_second() -> Outcome {
    part(1)
}
