//! Options that `qemu-img` does not have, and long names of it that its help does not tell.

use anyhow::{Context, Result, ensure};
use instar_tests::image;
use instar_tests::run::{Outcome as Done, Run};
use instar_tests::scratch::Scratch;
use instar_tests::tools;

use crate::Outcome;

fn instar(scratch: &Scratch, args: &[&str]) -> Result<Done> {
    Run::new(&tools::instar()?, scratch.path()).args(args).go()
}

#[test]
fn json_where_qemu_img_has_none() -> Outcome {
    let scratch = Scratch::new()?;
    image::create(&scratch, "base.qcow2", &[], "1M")?;
    for (args, code) in [
        (
            &[
                "create",
                "-f",
                "qcow2",
                "-b",
                "base.qcow2",
                "-F",
                "qcow2",
                "top.qcow2",
            ][..],
            0,
        ),
        (&["convert", "-O", "qcow2", "top.qcow2", "copy.qcow2"], 0),
        (&["compare", "top.qcow2", "copy.qcow2"], 0),
        (&["commit", "top.qcow2"], 0),
        (&["bench", "-c", "4", "top.qcow2"], 0),
    ] {
        let done = instar(&scratch, &[args, &["--output", "json"]].concat())?;
        done.expect_code(code)?;
        let parsed: serde_json::Value = serde_json::from_slice(&done.stdout)
            .with_context(|| format!("{args:?}: {}", done.describe()))?;
        ensure!(parsed.is_object(), "{args:?}: {parsed}");
    }
    Ok(())
}

#[test]
fn growth_has_a_limit() -> Outcome {
    let scratch = Scratch::new()?;
    image::create(&scratch, "disk.qcow2", &[], "1M")?;
    let grow = [
        "resize",
        "--preallocation=full",
        "disk.qcow2",
        "64M",
        "--max-growth",
    ];
    let before = scratch.read("disk.qcow2")?;
    let done = instar(&scratch, &[&grow[..], &["1M"]].concat())?;
    done.expect_code(1)?;
    ensure!(scratch.read("disk.qcow2")? == before, "refused and changed");
    instar(&scratch, &[&grow[..], &["100M"]].concat())?.expect_code(0)?;
    Ok(())
}

#[test]
fn reflinks_copy_where_there_are_none() -> Outcome {
    let scratch = Scratch::new()?;
    let bytes: Vec<u8> = (0..300_001_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(scratch.file("disk.raw"), &bytes)?;
    let args = [
        "convert",
        "--reflink",
        "-f",
        "raw",
        "-O",
        "raw",
        "disk.raw",
        "copy.raw",
    ];
    instar(&scratch, &args)?.expect_code(0)?;
    let copy = scratch.read("copy.raw")?;
    ensure!(
        copy.starts_with(&bytes) && copy.len() == bytes.len().next_multiple_of(512),
        "{} bytes",
        copy.len()
    );
    Ok(())
}
