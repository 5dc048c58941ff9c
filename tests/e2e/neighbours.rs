//! Programs that call `qemu-img` and read what it prints: oslo.utils as it is installed from PyPI, and Nova's limits.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use instar_tests::run::{Outcome as Done, Run};
use instar_tests::scratch::Scratch;
use instar_tests::tools;
use serde_json::{Value, json};

use crate::Outcome;

/// Reads outputs as OpenStack does: the JSON by the public class, the text by the parser that older releases use.
const PARSE: &str = r#"
import json, sys
from oslo_utils.imageutils import QemuImgInfo
def read(pair):
    info = QemuImgInfo(pair["json"], format="json")
    fields = dict(vars(info), text=str(info))
    return {"json": fields, "human": QemuImgInfo()._parse(pair["human"])}
print(json.dumps([read(pair) for pair in json.load(open(sys.argv[1]))]))
"#;

/// How an image is made: calls of `qemu-img`.
type Recipe = &'static [&'static str];

/// An image for each feature that `info` shows.
const IMAGES: &[(&str, &[Recipe])] = &[
    ("raw", &[&["create", "-f", "raw", "raw", "3M"]]),
    (
        "v2",
        &[&["create", "-f", "qcow2", "-o", "compat=0.10", "v2", "1G"]],
    ),
    ("v3", &[&["create", "-f", "qcow2", "v3", "20G"]]),
    (
        "large",
        &[&[
            "create",
            "-f",
            "qcow2",
            "-o",
            "cluster_size=2M",
            "large",
            "1P",
        ]],
    ),
    (
        "ext",
        &[&[
            "create",
            "-f",
            "qcow2",
            "-o",
            "extended_l2=on,cluster_size=128k",
            "ext",
            "1G",
        ]],
    ),
    (
        "lazy",
        &[&[
            "create",
            "-f",
            "qcow2",
            "-o",
            "lazy_refcounts=on,refcount_bits=1",
            "lazy",
            "1G",
        ]],
    ),
    (
        "zstd",
        &[&[
            "create",
            "-f",
            "qcow2",
            "-o",
            "compression_type=zstd",
            "zstd",
            "1G",
        ]],
    ),
    (
        "data",
        &[&[
            "create",
            "-f",
            "qcow2",
            "-o",
            "data_file=data.raw,data_file_raw=on",
            "data",
            "1M",
        ]],
    ),
    (
        "full",
        &[&[
            "create",
            "-f",
            "qcow2",
            "-o",
            "preallocation=full",
            "full",
            "1M",
        ]],
    ),
    (
        "top",
        &[&["create", "-f", "qcow2", "-b", "v3", "-F", "qcow2", "top"]],
    ),
    (
        "folder/top",
        &[&[
            "create",
            "-f",
            "qcow2",
            "-b",
            "../raw",
            "-F",
            "raw",
            "folder/top",
        ]],
    ),
    (
        "snapshots",
        &[
            &["create", "-f", "qcow2", "snapshots", "1M"],
            &["snapshot", "-c", "first", "snapshots"],
            &["snapshot", "-c", "second", "snapshots"],
        ],
    ),
    (
        "bitmaps",
        &[
            &["create", "-f", "qcow2", "bitmaps", "1M"],
            &["bitmap", "--add", "-g", "32k", "bitmaps", "one"],
            &["bitmap", "--add", "--disable", "bitmaps", "two"],
        ],
    ),
    (
        "luks",
        &[&[
            "create",
            "--object",
            "secret,id=s,data=x",
            "-f",
            "qcow2",
            "-o",
            "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
            "luks",
            "1M",
        ]],
    ),
    (
        "aes",
        &[&[
            "create",
            "--object",
            "secret,id=s,data=x",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "encrypt.format=aes,encrypt.key-secret=s",
            "aes",
            "1M",
        ]],
    ),
];

fn qemu_img(scratch: &Scratch, args: &[&str]) -> Outcome {
    let done = Run::new(&tools::qemu_img()?, scratch.path())
        .args(args)
        .go()?;
    done.expect_code(0)?;
    Ok(())
}

fn corpus() -> Result<Scratch> {
    let scratch = Scratch::new()?;
    std::fs::create_dir(scratch.file("folder"))?;
    for (_, recipes) in IMAGES {
        for recipe in *recipes {
            qemu_img(&scratch, recipe)?;
        }
    }
    Ok(scratch)
}

/// What a program says of each image, in both forms.
fn said(scratch: &Scratch, program: &Path) -> Result<Value> {
    let mut all = Vec::new();
    for (name, _) in IMAGES {
        let of = |args: &[&str]| -> Result<String> {
            let done = Run::new(program, scratch.path()).args(args).go()?;
            done.expect_code(0)?;
            Ok(done.out())
        };
        let json = of(&["info", name, "--force-share", "--output=json"])?;
        let human = of(&["info", name, "--force-share"])?;
        all.push(json!({ "json": json, "human": human }));
    }
    Ok(all.into())
}

/// What oslo.utils reads out of it.
fn read(scratch: &Scratch, said: &Value) -> Result<Vec<Value>> {
    std::fs::write(scratch.file("said.json"), said.to_string())?;
    let done = Run::new(&tools::python()?, scratch.path())
        .args(["-c", PARSE, "said.json"])
        .go()?;
    done.expect_code(0)?;
    serde_json::from_slice(&done.stdout).with_context(|| done.describe())
}

#[test]
fn oslo_utils_reads_the_same_out_of_both() -> Outcome {
    let scratch = corpus()?;
    let want = read(&scratch, &said(&scratch, &tools::qemu_img()?)?)?;
    let got = read(&scratch, &said(&scratch, &tools::instar()?)?)?;
    ensure!(got.len() == IMAGES.len(), "{got:?}");
    for ((name, _), (want, got)) in IMAGES.iter().zip(want.iter().zip(&got)) {
        ensure!(want == got, "{name}\nqemu-img {want:#}\ninstar {got:#}");
        let (json, human) = (&got["json"], &got["human"]);
        ensure!(
            json["virtual_size"].is_u64() && human["virtual_size"].is_u64(),
            "{name}: {got:#}"
        );
        let format = if *name == "raw" { "raw" } else { "qcow2" };
        ensure!(
            json["file_format"] == format && human["file_format"] == format,
            "{name}: {got:#}"
        );
        let snapshots = json["snapshots"].as_array().map(Vec::len);
        ensure!(
            snapshots == Some(if *name == "snapshots" { 2 } else { 0 }),
            "{name}: {got:#}"
        );
        let encrypted = ["luks", "aes"].contains(name);
        ensure!((json["encrypted"] == "yes") == encrypted, "{name}: {got:#}");
        ensure!(
            json["backing_file"].is_string() == name.ends_with("top"),
            "{name}: {got:#}"
        );
    }
    Ok(())
}

/// Runs instar within the limits that a program sets for `qemu-img`.
fn limited(scratch: &Scratch, limits: &[&str], args: &[&str]) -> Result<Done> {
    Run::new(&tools::in_path(Path::new("prlimit"))?, scratch.path())
        .args(limits)
        .args([tools::instar()?])
        .args(args)
        .go()
}

#[test]
fn limits_of_nova_and_cinder_are_enough() -> Outcome {
    let scratch = Scratch::new()?;
    qemu_img(&scratch, &["create", "-f", "qcow2", "disk", "1T"])?;
    // nova.virt.images.QEMU_IMG_LIMITS; cinder.image.image_utils.QEMU_IMG_LIMITS has the same.
    let limits = ["--as=1073741824", "--cpu=30", "--"];
    let info = ["info", "disk", "--force-share", "--output=json"];
    let done = limited(&scratch, &limits, &info)?;
    done.expect_code(0)?;
    let free = Run::new(&tools::instar()?, scratch.path())
        .args(info)
        .go()?;
    ensure!(
        done.stdout == free.stdout && done.stderr.is_empty(),
        "{}",
        done.describe()
    );
    for args in [
        &["check", "disk"][..],
        &["resize", "disk", "+1G"],
        &["create", "-f", "qcow2", "-b", "disk", "-F", "qcow2", "top"],
        &["convert", "-O", "qcow2", "-c", "top", "copy"],
    ] {
        limited(&scratch, &limits, args)?.expect_code(0)?;
    }
    Ok(())
}
