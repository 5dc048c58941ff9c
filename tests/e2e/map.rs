//! `instar map` against `qemu-img map`: text and JSON, whole chains, every kind of cluster, damages.
//!
//! `INSTAR_SEED` repeats a run, `INSTAR_CASES` says how many random chains there are.

use anyhow::{Result, ensure};
use instar_tests::compare::{Bench, normal_stderr};
use instar_tests::image;
use instar_tests::rng::Rng;
use instar_tests::scratch::Scratch;

use crate::Outcome;
use crate::map_chains::{DAMAGES, cases, chain};

/// Both forms of a map.
fn same_map(bench: &mut Bench<'_>, label: &str, args: &[&str]) -> Result<()> {
    bench.same(label, &[&["map"], args].concat())?;
    bench.same(label, &[&["map", "--output=json"], args].concat())
}

#[test]
fn options_are_those_of_the_oracle() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_filled(&scratch, "disk", &[])?;
    scratch.set_len("raw", 100_000)?;
    let mut bench = Bench::new(&scratch);
    for args in [
        &["disk"][..],
        &["-f", "qcow2", "disk"],
        &["-f", "raw", "disk"],
        &["-f", "qcow2", "raw"],
        &["-f", "bogus", "disk"],
        &["-s", "100", "disk"],
        &["-s", "1.5k", "-l", "0x10", "disk"],
        &["--start-offset=128K", "--max-length=1M", "disk"],
        &["-l", "0", "disk"],
        &["-s", "8M", "disk"],
        &["-s", "7E", "disk"],
        &["-s", "8E", "disk"],
        &["-s", "16E", "disk"],
        &["-s", "-1", "disk"],
        &["-s", "abc", "disk"],
        &["-s", "", "disk"],
        &["-l", "-5", "disk"],
        &["-l", "1e3", "disk"],
        &["-l", "9223372036854775807", "disk"],
        &["-s", "3k", "-l", "9223372036854775807", "disk"],
        &["-s", "60k", "-l", "30000", "raw"],
        &["-U", "disk"],
        &["missing"],
        &["."],
        &[],
        &["disk", "raw"],
    ] {
        same_map(&mut bench, "options", args)?;
    }
    bench.same("form", &["map", "--output=xml", "disk"])?;
    bench.finish()
}

#[test]
fn clusters_of_every_kind_are_shown_alike() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    let writes = [
        "write -P 1 2k 5k",
        "write -z 4k 2k",
        "write -P 1 128k 192k",
        "write -z 192k 64k",
        "write -z 512k 64k",
        "discard 256k 64k",
    ];
    for (index, options) in [
        "",
        "compat=0.10",
        "extended_l2=on",
        "cluster_size=2M,extended_l2=on",
        "cluster_size=512",
        "data_file=a.dat",
        "data_file=b.dat,data_file_raw=on",
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("disk{index}");
        let options = if options.is_empty() {
            vec![]
        } else {
            vec![options]
        };
        image::create(&scratch, &name, &options, "3M")?;
        same_map(&mut bench, "empty", &[&name])?;
        image::io(&scratch, &name, &writes)?;
        same_map(&mut bench, "written", &[&name])?;
    }
    image::create_compressed(&scratch, "compressed", &[])?;
    same_map(&mut bench, "compressed", &["compressed"])?;
    image::create_encrypted(&scratch, "luks", &["encrypt.format=luks"])?;
    let key = ["'encrypt.key-secret' is required"];
    bench.refused("encrypted", &["map", "luks"], &key)?;
    bench.finish()
}

#[test]
fn names_are_those_of_the_chain() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    std::fs::create_dir(scratch.file("sub"))?;
    // The base lies outside its overlay's folder.
    bench.env("INSTAR_ALLOW_PATH", scratch.path());
    image::create_filled(&scratch, "base \"q\"", &[])?;
    image::create_filled(&scratch, "sub/mid", &["data_file=data.raw"])?;
    let relative = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "../base \"q\"",
        "-F",
        "qcow2",
        "sub/top",
    ];
    image::qemu_img(&scratch, &relative)?;
    let path = scratch.file("sub/top");
    for name in [
        "base \"q\"",
        "sub/mid",
        "sub/top",
        "./sub/top",
        "file:sub/top",
    ] {
        same_map(&mut bench, "names", &[name])?;
    }
    same_map(&mut bench, "absolute", &[&path.to_string_lossy()])?;
    bench.finish()
}

#[test]
fn random_chains_are_mapped_alike() -> Outcome {
    let scratch = Scratch::new()?;
    let mut rng = Rng::for_test("map");
    let mut bench = Bench::new(&scratch);
    for case in 0..cases(24) {
        let top = chain(&scratch, &mut rng, "i", 8)?;
        let label = format!("case {case} of seed {}", rng.seed());
        let args = ["-f", top.format, &top.name];
        same_map(&mut bench, &label, &args)?;
        let (start, len) = (rng.below(top.size), rng.below(top.size));
        let (start, len) = (start.to_string(), len.to_string());
        let args = [&["-s", &start, "-l", &len], &args[..]].concat();
        same_map(&mut bench, &label, &args)?;
    }
    bench.finish()
}

#[test]
fn damage_is_told_and_json_is_whole_or_not_there() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    for (index, damage) in DAMAGES.iter().enumerate() {
        let (name, label) = (format!("disk{index}"), format!("damage {index}"));
        damage.image(&scratch, &name)?;
        bench.same(&label, &["map", &name])?;
        let args = ["map", "--output=json", &name];
        let (want, got) = (bench.qemu_img(&args)?, bench.instar(&args)?);
        ensure!(want.code == got.code, "{label}: {}", got.describe());
        if want.code == Some(0) {
            bench.same(&label, &args)?;
        } else {
            ensure!(got.stdout.is_empty(), "{label}: {}", got.describe());
            let (want, got) = (normal_stderr(&want.stderr), normal_stderr(&got.stderr));
            ensure!(want == got, "{label}: {:?}", String::from_utf8_lossy(&got));
        }
    }
    bench.finish()
}

#[test]
fn long_chains_and_large_disks_are_mapped_alike() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    image::create(&scratch, "layer0", &[], "64M")?;
    for index in 1..=100_u64 {
        let (name, below) = (format!("layer{index}"), format!("layer{}", index - 1));
        let args = [
            "create", "-q", "-f", "qcow2", "-u", "-b", &below, "-F", "qcow2", &name, "64M",
        ];
        image::qemu_img(&scratch, &args)?;
        if index % 10 == 0 {
            image::io(
                &scratch,
                &name,
                &[&format!("write -P 3 {} 70000", index * 65536)],
            )?;
        }
    }
    same_map(&mut bench, "long", &["layer100"])?;
    for (name, options, size) in [
        ("wide", "cluster_size=2M", "1P"),
        ("narrow", "cluster_size=512", "64G"),
        ("metadata", "preallocation=metadata", "16G"),
    ] {
        image::create(&scratch, name, &[options], size)?;
        image::io(&scratch, name, &["write -P 3 5G 70000"])?;
        same_map(&mut bench, name, &[name])?;
    }
    scratch.set_len("holes", 1 << 43)?;
    same_map(&mut bench, "holes", &["-f", "raw", "holes"])?;
    bench.finish()
}
