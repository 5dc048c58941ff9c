//! Options that say which files an image is: another backing file or data file, a part of a raw file; and how these
//! are opened.

use anyhow::ensure;
use instar_tests::holder::Holder;
use instar_tests::image;
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::tools;

use crate::Outcome;
use crate::as_qemu_img::same_calls;

const SECRET: &str = "secret,id=s,data=password";

/// What follows `map --image-opts`.
const LISTS: &[&str] = &[
    "driver=qcow2,file.filename=top,backing.driver=raw,backing.file.filename=flat",
    "driver=qcow2,file.filename=top,backing.driver=qcow2,backing.file.filename=disk",
    "driver=qcow2,file.filename=top,backing.file.filename=flat",
    "driver=qcow2,file.filename=top,backing.file.filename=missing",
    "driver=qcow2,file.filename=top,backing.driver=qcow2,backing.file.filename=flat",
    "driver=qcow2,file.filename=top,backing.driver=raw",
    "driver=qcow2,file.filename=top,backing.driver=bogus,backing.file.filename=flat",
    "driver=qcow2,file.filename=top,backing.driver=raw,backing.offset=64k,backing.file.filename=flat",
    "driver=qcow2,file.filename=top,backing.driver=raw,backing.offset=2M,backing.file.filename=flat",
    "driver=qcow2,file.filename=top,backing.driver=raw,backing.bogus=1,backing.file.filename=flat",
    "driver=qcow2,file.filename=top,backing.driver=raw,backing.backing.driver=raw,backing.file.filename=flat",
    "driver=qcow2,file.filename=top,backing.backing.driver=raw,backing.backing.file.filename=flat",
    "driver=qcow2,file.filename=top,backing.bogus=1",
    "driver=qcow2,file.filename=top,backing.read-only=off",
    "driver=qcow2,file.filename=top,backing.file=disk",
    "driver=qcow2,file.filename=top,backing=",
    "driver=qcow2,file.filename=top,backing=,backing.driver=raw",
    "driver=qcow2,file.filename=top,backing.backing=",
    "driver=qcow2,file.filename=top,backing=x",
    "driver=qcow2,file.filename=broken",
    "driver=qcow2,file.filename=broken,backing=",
    "driver=qcow2,file.filename=broken,backing.driver=qcow2,backing.file.filename=disk",
    "driver=qcow2,file.filename=disk,backing.file.filename=flat",
    "driver=qcow2,file.filename=disk,backing.driver=file,backing.filename=flat",
    "driver=qcow2,file.filename=disk,backing.driver=raw",
    "driver=qcow2,file.filename=disk,backing.read-only=on",
    "driver=qcow2,file.filename=disk,backing=",
    "driver=qcow2,file.filename=outside,data-file.filename=flat",
    "driver=qcow2,file.filename=outside,data-file.driver=file,data-file.filename=flat",
    "driver=qcow2,file.filename=outside,data-file.driver=raw,data-file.file.filename=flat",
    "driver=qcow2,file.filename=outside,data-file.driver=raw,data-file.filename=flat",
    "driver=qcow2,file.filename=outside,data-file.filename=missing",
    "driver=qcow2,file.filename=outside,data-file.locking=off",
    "driver=qcow2,file.filename=outside,data-file.bogus=1,data-file.filename=data",
    "driver=qcow2,file.filename=outside,data-file.driver=bogus,data-file.filename=x",
    "driver=qcow2,file.filename=outside,data-file=x",
    "driver=qcow2,file.filename=disk,data-file.filename=flat",
    "driver=raw,offset=64k,file.filename=flat",
    "driver=raw,offset=64k,size=64k,file.filename=flat",
    "driver=raw,size=0,file.filename=flat",
    "driver=raw,offset=1M,file.filename=flat",
    "driver=raw,offset=2M,file.filename=flat",
    "driver=raw,offset=64k,size=1M,file.filename=flat",
    "driver=raw,offset=512,size=1023,file.filename=flat",
    "driver=raw,offset=bogus,file.filename=flat",
    "driver=qcow2,file.filename=top,file.locking=off,backing.file.locking=off",
    "driver=qcow2,file.filename=disk,encrypt.format=luks",
    "driver=qcow2,file.filename=disk,encrypt.format=aes,encrypt.key-secret=s",
    "driver=qcow2,file.filename=locked,encrypt.format=aes,encrypt.key-secret=s",
    "driver=qcow2,file.filename=locked,encrypt.format=luks,encrypt.key-secret=s",
    "driver=qcow2,file.filename=locked,encrypt.format=luks",
    "driver=qcow2,file.filename=above,backing.encrypt.format=aes,backing.encrypt.key-secret=s",
    "driver=qcow2,file.filename=above,backing.encrypt.format=luks,backing.encrypt.key-secret=s",
];

/// What follows `map json:`.
const NAMES: &[&str] = &[
    r#"{"driver":"qcow2","file.filename":"top","backing":null}"#,
    r#"{"driver":"qcow2","file.filename":"top","backing":""}"#,
    r#"{"driver":"qcow2","file.filename":"top","backing":{}}"#,
    r#"{"driver":"qcow2","file.filename":"top","backing":1}"#,
    r#"{"driver":"qcow2","file.filename":"top","backing":{"driver":"raw","file":{"driver":"file","filename":"flat"}}}"#,
    r#"{"driver":"qcow2","file.filename":"outside","data-file":null}"#,
    r#"{"driver":"qcow2","file.filename":"outside","data-file":""}"#,
    r#"{"driver":"raw","offset":65536,"size":"64k","file":{"driver":"file","filename":"flat"}}"#,
];

/// Lists of which `info` looks at nothing but the image.
const SHOWN: &[&str] = &[
    "driver=raw,offset=64k,file.filename=flat",
    "driver=raw,size=64k,file.filename=flat",
    "driver=raw,offset=0,size=1024,file.filename=flat",
    "driver=qcow2,file.filename=top,backing=",
    "driver=qcow2,file.filename=top,backing=x",
    "driver=qcow2,file.filename=top,backing.backing=",
    "driver=qcow2,file.filename=outside,data-file.filename=missing",
    "driver=qcow2,file.filename=top,data-file=x",
    "driver=qcow2,file.filename=locked,encrypt.format=aes",
    "driver=qcow2,file.filename=locked,encrypt.format=luks,encrypt.key-secret=s",
    "driver=qcow2,file.filename=disk,encrypt.format=luks,encrypt.key-secret=s",
];

/// Calls that write, each of which both programs do to the same images, and what must then show the same.
const WRITES: &[(&[&str], &[&str])] = &[
    (
        &[
            "commit",
            "--image-opts",
            "driver=qcow2,file.filename=top,backing.driver=raw,backing.file.filename=flat",
        ],
        &["flat"],
    ),
    (
        &[
            "commit",
            "--image-opts",
            "driver=qcow2,file.filename=top,backing.driver=raw,backing.offset=64k,backing.file.filename=long",
        ],
        &["long"],
    ),
    (
        &[
            "commit",
            "--image-opts",
            "driver=qcow2,file.filename=top,backing.driver=raw,backing.offset=64k,backing.size=1M,\
             backing.file.filename=long",
        ],
        &["long"],
    ),
    (
        &[
            "commit",
            "--image-opts",
            "driver=qcow2,file.filename=top,backing=",
        ],
        &["top"],
    ),
    (
        &[
            "rebase",
            "--image-opts",
            "-b",
            "",
            "driver=qcow2,file.filename=top,backing.driver=raw,backing.file.filename=flat",
        ],
        &["top"],
    ),
    (
        &[
            "convert",
            "--image-opts",
            "-O",
            "raw",
            "driver=raw,offset=1000,size=2048,file.filename=long",
            "copy",
        ],
        &["copy"],
    ),
    (
        &[
            "convert",
            "--image-opts",
            "-O",
            "qcow2",
            "driver=raw,offset=64k,file.filename=long",
            "copy",
        ],
        &["copy"],
    ),
    (
        &[
            "convert",
            "-n",
            "--target-image-opts",
            "top",
            "driver=raw,offset=64k,file.filename=long",
        ],
        &["long"],
    ),
    (
        &[
            "convert",
            "-n",
            "--target-image-opts",
            "top",
            "driver=raw,offset=64k,size=1M,file.filename=long",
        ],
        &["long"],
    ),
    (
        &[
            "convert",
            "-n",
            "--target-image-opts",
            "top",
            "driver=raw,offset=64k,size=512k,file.filename=long",
        ],
        &["long"],
    ),
    (
        &[
            "convert",
            "-n",
            "--target-image-opts",
            "top",
            "driver=qcow2,file.filename=outside,data-file.filename=flat",
        ],
        &["flat", "data"],
    ),
    (
        &[
            "resize",
            "--image-opts",
            "driver=raw,offset=64k,file.filename=flat",
            "2M",
        ],
        &["flat"],
    ),
    (
        &[
            "resize",
            "--shrink",
            "--image-opts",
            "driver=raw,offset=64k,file.filename=flat",
            "64k",
        ],
        &["flat"],
    ),
    (
        &[
            "resize",
            "--image-opts",
            "driver=raw,size=64k,file.filename=flat",
            "2M",
        ],
        &["flat"],
    ),
    (
        &[
            "dd",
            "--image-opts",
            "if=driver=raw,offset=64k,file.filename=long",
            "of=copy",
            "bs=100k",
            "count=3",
        ],
        &["copy"],
    ),
    (
        &[
            "check",
            "--image-opts",
            "driver=qcow2,file.filename=broken,backing=",
        ],
        &[],
    ),
    (
        &[
            "amend",
            "-o",
            "lazy_refcounts=on",
            "--image-opts",
            "driver=qcow2,file.filename=broken,backing.driver=raw,backing.file.filename=flat",
        ],
        &[],
    ),
];

/// A qcow2 image, overlays, an image with a data file, and raw images.
fn images(scratch: &Scratch) -> Outcome {
    image::create(scratch, "disk", &[], "1M")?;
    image::io(scratch, "disk", &["write -P 1 0 256k"])?;
    image::create_overlay(scratch, "top", "disk", "qcow2")?;
    image::io(scratch, "top", &["write -P 3 64k 64k"])?;
    let broken = [
        "create", "-q", "-u", "-f", "qcow2", "-b", "gone", "-F", "qcow2", "broken", "1M",
    ];
    image::qemu_img(scratch, &broken)?;
    image::create(scratch, "outside", &["data_file=data"], "1M")?;
    image::io(scratch, "outside", &["write -P 5 0 64k"])?;
    std::fs::write(scratch.file("flat"), vec![7; 1 << 20])?;
    let long: Vec<u8> = (0..2_u32 << 20).map(|at| (at % 251) as u8).collect();
    std::fs::write(scratch.file("long"), long)?;
    Ok(())
}

#[test]
fn options_describe_what_lies_below() -> Outcome {
    let scratch = Scratch::new()?;
    images(&scratch)?;
    image::create_encrypted(&scratch, "locked", &["encrypt.format=luks"])?;
    let above = [
        "create", "-q", "-u", "-f", "qcow2", "-b", "locked", "-F", "qcow2", "above", "1M",
    ];
    image::qemu_img(&scratch, &above)?;
    let names: Vec<String> = NAMES.iter().map(|name| format!("json:{name}")).collect();
    let mut calls: Vec<Vec<&str>> = Vec::new();
    for list in LISTS {
        calls.push(vec!["map", "--object", SECRET, "--image-opts", list]);
        calls.push(vec![
            "map",
            "--output=json",
            "--object",
            SECRET,
            "--image-opts",
            list,
        ]);
    }
    for list in SHOWN {
        calls.push(vec!["info", "--object", SECRET, "--image-opts", list]);
    }
    for name in &names {
        calls.push(vec!["map", "--output=json", name]);
    }
    let calls: Vec<&[&str]> = calls.iter().map(Vec::as_slice).collect();
    same_calls(&calls, &scratch)
}

/// What the oracle says, whatever that is.
fn oracle(scratch: &Scratch, args: &[&str]) -> anyhow::Result<instar_tests::run::Outcome> {
    Run::new(&tools::qemu_img()?, scratch.path())
        .args(args)
        .go()
}

/// The bytes that a program sees in an image, all by the oracle's reader.
fn shown(scratch: &Scratch, name: &str) -> anyhow::Result<Vec<u8>> {
    let convert = ["convert", "-O", "raw", name, "shown"];
    image::qemu_img(scratch, &convert)?;
    Ok(std::fs::read(scratch.file("shown"))?)
}

#[test]
fn what_lies_below_is_written_as_the_oracle_writes_it() -> Outcome {
    for (args, files) in WRITES {
        let (theirs, ours) = (Scratch::new()?, Scratch::new()?);
        images(&theirs)?;
        images(&ours)?;
        let want = oracle(&theirs, args)?;
        let got = Run::new(&tools::instar()?, ours.path()).args(*args).go()?;
        ensure!(
            want.code == got.code,
            "{args:?}: {} {}",
            want.describe(),
            got.describe()
        );
        for file in *files {
            ensure!(
                shown(&theirs, file)? == shown(&ours, file)?,
                "{args:?}: {file} differs"
            );
        }
    }
    Ok(())
}

/// A backing file that options name is read and compared, not the one of the same name that the image names.
#[test]
fn rebase_reads_the_backing_file_that_options_name() -> Outcome {
    let scratch = Scratch::new()?;
    images(&scratch)?;
    let mut want = vec![7; 1 << 20];
    want[64 << 10..128 << 10].fill(3);
    let list = "driver=qcow2,file.filename=top,backing.driver=raw,backing.file.filename=flat";
    let args = ["rebase", "--image-opts", "-b", "disk", "-F", "qcow2", list];
    let done = Run::new(&tools::instar()?, scratch.path())
        .args(args)
        .go()?;
    done.expect_code(0)?;
    ensure!(shown(&scratch, "top")? == want, "another disk than before");
    Ok(())
}

/// `locking=off` counts for the one file; other files are locked as ever.
#[test]
fn files_without_locks_are_opened_beside_a_writer() -> Outcome {
    let scratch = Scratch::new()?;
    images(&scratch)?;
    let _writer = Holder::open(&scratch, &["-f", "qcow2"], "disk")?;
    same_calls_in_place(
        &scratch,
        &[
            "driver=qcow2,file.filename=disk",
            "driver=qcow2,file.filename=disk,file.locking=on",
            "driver=qcow2,file.filename=disk,file.locking=off",
            "driver=qcow2,file.filename=top",
            "driver=qcow2,file.filename=top,file.locking=off",
            "driver=qcow2,file.filename=top,backing.file.locking=off",
        ],
    )
}

/// `check` with each list, by both programs in one folder.
fn same_calls_in_place(scratch: &Scratch, lists: &[&str]) -> Outcome {
    for list in lists {
        let args = ["check", "--image-opts", list];
        let want = oracle(scratch, &args)?;
        let got = Run::new(&tools::instar()?, scratch.path())
            .args(args)
            .go()?;
        let err = got.err().replace("instar: ", "qemu-img: ");
        ensure!(
            want.code == got.code && want.out() == got.out() && err.starts_with(&want.err()),
            "{list}: {} {}",
            want.describe(),
            got.describe()
        );
    }
    Ok(())
}
