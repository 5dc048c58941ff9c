//! `instar create` beside `qemu-img create`: what is said, and what is made.
//!
//! `INSTAR_SEED` repeats a run, `INSTAR_CASES` says how many random images are made.

use anyhow::{Result, ensure};
use instar_tests::image;
use instar_tests::rng::Rng;
use instar_tests::scratch::Scratch;
use instar_tests::twins::Twins;

use crate::Outcome;
use crate::map_chains::cases;

/// Files that the command lines below name.
fn folder(scratch: &Scratch) -> Result<()> {
    image::create(scratch, "b.qcow2", &[], "64M")?;
    scratch.set_len("b.raw", 33_333)?;
    image::create_overlay(scratch, "c.qcow2", "b.qcow2", "qcow2")?;
    image::create(scratch, "gone", &[], "1M")?;
    image::create_overlay(scratch, "over-gone", "gone", "qcow2")?;
    std::fs::remove_file(scratch.file("gone"))?;
    scratch.write("garbage", b"garbage")?;
    scratch.write("short", b"QFI\xfb\0\0\0\x03")?;
    std::fs::create_dir(scratch.file("dir"))?;
    Ok(())
}

/// Runs both in folders of their own; where an image `x` is made, it has to be the same.
fn same(args: &[&str]) -> Result<()> {
    let mut twins = Twins::new()?;
    twins.build(folder)?;
    let code = twins.run(&[&["create"], args].concat())?;
    let made = twins.ours().file("x").exists();
    let named = args.iter().any(|arg| matches!(*arg, "x" | "file:x"));
    ensure!(
        made == (code == 0 && named && !args.contains(&"help")),
        "{args:?}: made: {made}"
    );
    if made {
        let format = if args.contains(&"qcow2") {
            "qcow2"
        } else {
            "raw"
        };
        lengths(&twins, format, args)?;
        // What is not opened can have any name.
        if format == "qcow2" && !args.contains(&"-u") {
            twins.compare("x")?;
        }
    }
    Ok(())
}

/// Files of the two are equally long, or nearly, where clusters are so small that QEMU moves its tables about.
fn lengths(twins: &Twins, format: &str, args: &[&str]) -> Result<()> {
    for name in ["x", "x.raw"] {
        let len = |scratch: &Scratch| std::fs::metadata(scratch.file(name)).map(|m| m.len()).ok();
        let (theirs, ours) = (len(twins.theirs()), len(twins.ours()));
        let most = theirs.map(|len| len + len / 50);
        let moved = format == "qcow2" && name == "x" && ours <= most;
        ensure!(
            ours == theirs || moved,
            "{args:?}: {name}: {ours:?}, {theirs:?} bytes"
        );
    }
    Ok(())
}

/// What the oracle says of size and backing file.
fn header(scratch: &Scratch) -> Result<Vec<serde_json::Value>> {
    let info = image::qemu_img(scratch, &["info", "--output=json", "x"])?;
    let info: serde_json::Value = serde_json::from_slice(&info.stdout)?;
    let keys = [
        "virtual-size",
        "backing-filename",
        "full-backing-filename",
        "backing-filename-format",
    ];
    Ok(keys.iter().map(|key| info[*key].clone()).collect())
}

#[test]
fn backing_files_in_json_are_opened_and_named_as_by_the_oracle() -> Outcome {
    const NODE: &str = r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"b.qcow2"}}"#;
    for backing in [
        NODE,
        r#"json:{"driver":"qcow2","file.filename":"c.qcow2"}"#,
        r#"json:{"driver":"raw","file.filename":"b.raw"}"#,
        r#"json:{"file.filename":"b.qcow2"}"#,
        r#"json:{"driver":"qcow2","file.filename":"missing"}"#,
        r#"json:{"driver":"qcow2","file.filename":"garbage"}"#,
        r#"json:{"driver":"bogus","file.filename":"b.qcow2"}"#,
        "json:{bad",
        "json:[]",
        "json:{}",
    ] {
        for format in [&["-F", "qcow2"][..], &["-F", "raw"], &[]] {
            let words = [&["-f", "qcow2", "-b", backing][..], format, &["x"]].concat();
            let mut twins = Twins::new()?;
            twins.build(folder)?;
            let code = twins.run(&[&["create"], &words[..]].concat())?;
            ensure!(twins.ours().file("x").exists() == (code == 0), "{words:?}");
            if code == 0 {
                // No image names its backing file so for instar, so the oracle looks at both.
                let [theirs, ours] = [twins.theirs(), twins.ours()].map(header);
                ensure!(theirs? == ours?, "{words:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn options_of_qcow2_images_are_those_of_the_oracle() -> Outcome {
    for options in [
        "cluster_size=0",
        "cluster_size=4M",
        "cluster_size=abc",
        "cluster_size=-1",
        "refcount_bits=0",
        "refcount_bits=0x10",
        "compat=0.9",
        "compat=",
        "compat=v2",
        "compat=0.10,refcount_bits=1",
        "compression_type=zstd,lazy_refcounts=yes,preallocation=off,compat=1.1",
        "compression_type=foo",
        "preallocation=foo",
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full",
        "extended_l2=on,preallocation=metadata",
        "extended_l2=on,cluster_size=8k",
        "data_file=x.raw",
        "data_file=x.raw,data_file_raw=on",
        "data_file=x.raw,preallocation=falloc",
        "data_file_raw=on",
        "data_file=",
        "bogus=1",
        "size=5M",
        "size=-1",
        "backing_fmt=raw",
        "backing_file=missing",
        "lazy_refcounts",
        "nolazy_refcounts",
        "lazy_refcounts=maybe",
        "encryption=off",
        "id=foo,cluster_size=65536,cluster_size=4k",
        "nocow=on,extent_size_hint=1M",
    ] {
        same(&["-f", "qcow2", "-o", options, "x", "10M"])?;
    }
    Ok(())
}

#[test]
fn command_lines_are_those_of_the_oracle() -> Outcome {
    for line in [
        "",
        "-f qcow2",
        "x",
        "-f qcow2 x",
        "-f qcow2 x 1M 2M",
        "-f bogus x 1M",
        "x 1M",
        "x 1000",
        "x 0",
        "-q -f qcow2 x 1M",
        "-f qcow2 x abc",
        "-f qcow2 x 8E",
        "-f qcow2 x 9223372036854775807",
        "-f qcow2 x 9223372035781033985",
        "-f qcow2 x 4E",
        "-f qcow2 x 16E",
        "-f qcow2 x 0",
        "-f qcow2 x 12345",
        "-f qcow2 -o size=5M x",
        "-f qcow2 file:x 1M",
        "-f qcow2 missing/x 1M",
        "missing/x 1M",
        "-f qcow2 dir 1M",
        "-f qcow2 -o help",
        "-f qcow2 -o help x",
        "-f raw -o help x",
        "-o help",
        "-f bogus -o help",
        "-f qcow2 -o , x 1M",
        "-f raw -o preallocation=falloc x 1M",
        "-f raw -o preallocation=full x 1M",
        "-f raw -o preallocation=foo x 1M",
        "-f raw -o extent_size_hint=1M,nocow=on x 1M",
        "-f raw -o cluster_size=4k x 1M",
    ] {
        same(&line.split_whitespace().collect::<Vec<_>>())?;
    }
    same(&["-f", "qcow2", "", "1M"])?;
    same(&["-f", "qcow2", "x", ""])
}

#[test]
fn backing_files_are_judged_as_by_the_oracle() -> Outcome {
    for line in [
        "-b b.qcow2 -F qcow2 x",
        "-b b.qcow2 -F qcow2 x 128M",
        "-b b.qcow2 x",
        "-b b.raw x",
        "-b b.raw -F raw x",
        "-b b.raw -F qcow2 x",
        "-b b.qcow2 -F bogus x",
        "-u -b missing x 1M",
        "-u -b missing -F qcow2 x",
        "-u -b missing -F qcow2 x 1M",
        "-u -b missing -F vmdk x 1M",
        "-u -b missing -F bogus x 1M",
        "-b missing -F qcow2 x",
        "-b missing x 1M",
        "-b x -F qcow2 x 1M",
        "-b c.qcow2 -F qcow2 x",
        "-b c.qcow2 -F qcow2 dir/y",
        "-b ../c.qcow2 -F qcow2 dir/y",
        "-b over-gone -F qcow2 x",
        "-b over-gone x",
        "-b garbage -F qcow2 x",
        "-b short -F qcow2 x",
        "-b short x",
        "-b dir -F raw x",
        "-F raw x 1M",
        "-u x",
        "-o backing_file=b.raw -b b.qcow2 -F qcow2 x",
        "-o preallocation=metadata -b b.qcow2 -F qcow2 x",
        "-o preallocation=metadata,extended_l2=on -b b.qcow2 -F qcow2 x",
        "-o data_file=x.raw,data_file_raw=on -b b.qcow2 -F qcow2 x",
        "-o data_file=x.raw -b b.qcow2 -F qcow2 x",
        "-o cluster_size=3 -b c.qcow2 -F qcow2 x",
        "-u -o backing_file=a,,b,backing_fmt=raw x 1M",
    ] {
        let words = line.split_whitespace();
        same(&["-f", "qcow2"].into_iter().chain(words).collect::<Vec<_>>())?;
    }
    same(&["-f", "qcow2", "-b", "", "x", "1M"])?;
    same(&["-f", "raw", "-b", "b.raw", "-F", "raw", "x", "1M"])
}

/// Options that go together, as both take them.
fn options(rng: &mut Rng) -> Vec<String> {
    let old = rng.below(4) == 0;
    let bits = 9 + rng.below(13);
    let extended = !old && bits >= 14 && rng.below(3) == 0;
    let data = !old && rng.below(4) == 0;
    let below = rng.below(4) == 0;
    let mut words = vec![format!("cluster_size={}", 1_u64 << bits)];
    words.push(format!("compat={}", if old { "0.10" } else { "1.1" }));
    if !old {
        words.push(format!("refcount_bits={}", 1 << rng.below(7)));
        words.push(format!("lazy_refcounts={}", rng.pick(&["on", "off"])));
        words.push(format!("compression_type={}", rng.pick(&["zlib", "zstd"])));
    }
    if extended {
        words.push("extended_l2=on".into());
    }
    if data {
        words.push("data_file=x.raw".into());
    }
    if data && !below && rng.below(2) == 0 {
        words.push("data_file_raw=on".into());
    }
    if below {
        words.push("backing_file=b.qcow2,backing_fmt=qcow2".into());
    }
    if !below || extended {
        let mode = rng.pick(&["off", "metadata", "falloc", "full"]);
        words.push(format!("preallocation={mode}"));
    }
    words
}

#[test]
fn random_images_are_those_of_the_oracle() -> Outcome {
    let mut rng = Rng::for_test("create");
    for _ in 0..cases(25) {
        let list = options(&mut rng).join(",");
        let size = (rng.below(40_000) * 512 + rng.below(2)).to_string();
        same(&["-f", "qcow2", "-o", &list, "x", &size])?;
    }
    Ok(())
}

#[test]
fn a_file_that_exists_is_replaced_and_one_that_cannot_be_is_kept() -> Outcome {
    let mut twins = Twins::new()?;
    twins.build(|scratch| image::create_filled(scratch, "x", &[]))?;
    let before = twins.ours().read("x")?;
    twins.run(&["create", "-f", "qcow2", "x", "5M"])?;
    twins.compare("x")?;
    ensure!(twins.ours().read("x")? != before, "it is the old image");
    let before = twins.ours().read("x")?;
    // QEMU deletes the file.
    twins.run(&["create", "-f", "qcow2", "-o", "cluster_size=3", "x", "5M"])?;
    ensure!(twins.ours().read("x")? == before, "it was changed");
    Ok(())
}
