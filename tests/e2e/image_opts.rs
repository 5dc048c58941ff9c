//! Images that are described by options, and the secrets that options name.

use anyhow::ensure;
use instar_tests::compare::Bench;
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::{image, tools};

use crate::Outcome;
use crate::as_qemu_img::same_calls;

const QCOW2: &str = "driver=qcow2,file.filename=disk";
const RAW: &str = "driver=raw,file.filename=flat";
const OVERLAY: &str = "driver=qcow2,file.driver=file,file.filename=top";
const JSON: &str = r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"disk"}}"#;
const SECRET: &str = "secret,id=s,data=password";

/// What follows `info --image-opts`: described well, or wrong in `qemu-img`'s words.
const LISTS: &[&str] = &[
    QCOW2,
    RAW,
    OVERLAY,
    "file.filename=disk",
    "driver=qcow2,file.filename=disk,",
    "driver=raw,file.filename=disk",
    "driver=raw,driver=qcow2,file.filename=disk",
    "driver=qcow2,file.filename=locked",
    "driver=qcow2,file.filename=locked,encrypt.key-secret=s",
    "driver=qcow2,file.filename=locked,encrypt.format=luks,encrypt.key-secret=s",
    "filename=disk",
    "driver=qcow2,filename=disk",
    "disk",
    "",
    "driver=qcow2",
    "driver=file",
    "driver=host_device",
    "driver=bogus,file.filename=disk",
    "driver=qcow2,file.driver=bogus,file.filename=disk",
    "driver=qcow2,file.driver=host_device,file.filename=disk",
    "driver=qcow2,file=disk",
    "driver=qcow2,file=disk,file.filename=disk",
    "driver=qcow2,file.filename=",
    "driver=qcow2,file.locking=off",
    "driver=qcow2,file.filename=missing",
    "driver=qcow2,file.filename=flat",
    "driver=qcow2,file.filename=disk,bogus=3",
    "driver=qcow2,file.filename=disk,file.bogus=3",
    "driver=raw,file.filename=flat,lazy-refcounts=on",
    "driver=qcow2,file.filename=disk,read-only=on",
    "driver=qcow2,file.filename=disk,read-only=yes,force-share=true",
    "driver=qcow2,file.filename=disk,read-only=bogus",
    "driver=qcow2,file.filename=disk,read-only",
    "driver=qcow2,file.filename=disk,noread-only",
    "driver=qcow2,file.filename=disk,id=1",
    "driver=qcow2,file.filename=disk,cache.direct=off,cache.no-flush=on",
    "driver=qcow2,file.filename=disk,cache.direct=bogus",
    "driver=qcow2,file.filename=disk,cache.bogus=on",
    "driver=qcow2,file.filename=disk,file.cache.direct=bogus",
    "driver=qcow2,file.filename=disk,discard=unmap,detect-zeroes=unmap",
    "driver=qcow2,file.filename=disk,detect-zeroes=unmap",
    "driver=qcow2,file.filename=disk,discard=bogus",
    "driver=qcow2,file.filename=disk,detect-zeroes=bogus",
    "driver=qcow2,file.filename=disk,file.locking=auto,file.aio=threads",
    "driver=qcow2,file.filename=disk,file.locking=bogus",
    "driver=qcow2,file.filename=disk,file.aio=bogus",
    "driver=qcow2,file.filename=disk,file.aio=native",
    "driver=qcow2,file.filename=disk,node-name=n,file.node-name=f",
    "driver=qcow2,file.filename=disk,node-name=1",
    "driver=qcow2,file.filename=disk,lazy-refcounts=on,overlap-check=all",
    "driver=qcow2,file.filename=disk,lazy-refcounts=bogus",
    "driver=qcow2,file.filename=disk,overlap-check=bogus",
    "driver=qcow2,file.filename=disk,overlap-check.template=bogus",
    "driver=qcow2,file.filename=disk,overlap-check.inactive-l2=bogus",
    "driver=qcow2,file.filename=disk,l2-cache-size=1M,cache-clean-interval=60",
    "driver=qcow2,file.filename=disk,l2-cache-size=bogus",
    "driver=qcow2,file.filename=disk,cache-size=2M,l2-cache-size=1M,refcount-cache-size=1M",
    "driver=qcow2,file.filename=disk,cache-clean-interval=bogus",
    "driver=qcow2,file.filename=top,backing.file.filename=flat",
    "driver=qcow2,file.filename=top,backing.encrypt.key-secret=s",
];

/// What follows `info json:`.
const NAMES: &[&str] = &[
    r#"{"driver":"qcow2","file":{"driver":"file","filename":"disk"}}"#,
    "{'driver':'qcow2','file':{'driver':'file','filename':'disk'}}",
    r#"{"driver":"qcow2","file.filename":"disk"}"#,
    r#"{"file":{"filename":"disk"}}"#,
    r#"{"driver":"raw","file":{"driver":"file","filename":"d\u0069sk"}}"#,
    r#"{"driver":"qcow2","read-only":true,"l2-cache-size":65536,"file.filename":"disk"}"#,
    r#"{"filename":"disk"}"#,
    "{}",
    "",
    "{",
    "[]",
    "1",
    "\"x\"",
    "bogus",
    r#"{"driver":qcow2}"#,
    r#"{"driver":"qcow2" "x"}"#,
    r#"{"driver":"qcow2"}}"#,
    r#"{"driver":"qcow2","driver":"raw"}"#,
    r#"{"driver":1}"#,
    r#"{"driver":null}"#,
    r#"{"driver":"bogus"}"#,
    r#"{"driver":"qcow2","file":1}"#,
    r#"{"driver":"qcow2","file":null}"#,
    r#"{"driver":"qcow2","file":[]}"#,
    r#"{"driver":"qcow2","file":["a"]}"#,
    r#"{"driver":"qcow2","file":"disk"}"#,
    r#"{"driver":"qcow2","file":{"driver":"file","filename":1}}"#,
    r#"{"driver":"qcow2","file":{"driver":"file","filename":"missing"}}"#,
    r#"{"driver":"qcow2","read-only":1,"file.filename":"disk"}"#,
    r#"{"driver":"qcow2","l2-cache-size":1.5,"file.filename":"disk"}"#,
    r#"{"driver":"qcow2","l2-cache-size":-1,"file.filename":"disk"}"#,
    r#"{"driver":"qcow2","bogus":{"a":1},"file.filename":"disk"}"#,
];

/// Calls that change what they made before.
const CALLS: &[&[&str]] = &[
    &["check", "--image-opts", QCOW2],
    &["check", "--image-opts", RAW],
    &["check", JSON],
    &["check", "-f", "raw", "--image-opts", QCOW2],
    &["map", "--output=json", "--image-opts", OVERLAY],
    &["map", JSON],
    &["map", "--image-opts", QCOW2, "more"],
    &["measure", "-O", "qcow2", "--image-opts", QCOW2],
    &["measure", "-O", "qcow2", "--image-opts", "--size", "1M"],
    &["compare", "--image-opts", QCOW2, RAW],
    &[
        "compare",
        "--image-opts",
        QCOW2,
        "driver=raw,file.filename=missing",
    ],
    &["compare", "--image-opts", "-f", "raw", QCOW2, RAW],
    &["compare", JSON, "flat"],
    &["convert", "--image-opts", QCOW2, "copy"],
    &[
        "convert",
        "--source-image-opts",
        OVERLAY,
        "-O",
        "qcow2",
        "copy2",
    ],
    &["convert", "--source-image-opts", "-f", "raw", RAW, "copy3"],
    &["convert", JSON, "copy4"],
    &["convert", "-n", "--target-image-opts", "disk", RAW],
    &["convert", "-n", "--target-image-opts", "flat", QCOW2],
    &[
        "convert",
        "-n",
        "disk",
        r#"json:{"driver":"raw","file.filename":"flat"}"#,
    ],
    &["convert", "--target-image-opts", "disk", RAW],
    &[
        "convert",
        "-n",
        "--target-image-opts",
        "disk",
        "driver=bogus,file.filename=flat",
    ],
    &[
        "convert",
        "-n",
        "--target-image-opts",
        "disk",
        "driver=raw,file.filename=missing",
    ],
    &[
        "convert",
        "-n",
        "--target-image-opts",
        "disk",
        "driver=raw,file.filename=flat,read-only=on",
    ],
    &[
        "dd",
        "--image-opts",
        "if=driver=qcow2,file.filename=disk",
        "of=copy5",
    ],
    &[
        "dd",
        "-f",
        "raw",
        "--image-opts",
        "if=driver=qcow2,file.filename=disk",
        "of=copy6",
    ],
    &["snapshot", "-c", "one", "--image-opts", QCOW2],
    &[
        "snapshot",
        "-a",
        "one",
        "--image-opts",
        "driver=qcow2,file.filename=disk,read-only=on",
    ],
    &["snapshot", "-d", "one", JSON],
    &["amend", "-o", "lazy_refcounts=on", "--image-opts", QCOW2],
    &["bitmap", "--add", "--image-opts", QCOW2, "bits"],
    &["bitmap", "--remove", JSON, "bits"],
    &["resize", "--image-opts", QCOW2, "2M"],
    &[
        "resize",
        "--image-opts",
        "driver=qcow2,file.filename=disk,read-only=on",
        "3M",
    ],
    &[
        "resize",
        "--image-opts",
        "driver=qcow2,file.filename=disk,force-share=on",
        "3M",
    ],
    &["resize", JSON, "2M"],
    &[
        "check",
        "-r",
        "all",
        "--image-opts",
        "driver=qcow2,file.filename=disk,read-only=on",
    ],
    &["check", "-r", "all", "--image-opts", QCOW2],
    &["commit", "--image-opts", OVERLAY],
    &[
        "rebase",
        "--image-opts",
        "-b",
        "disk",
        "-F",
        "qcow2",
        OVERLAY,
    ],
    &["rebase", "--image-opts", "-u", "-b", "", OVERLAY],
];

/// A qcow2 image, an overlay of it, and a raw image.
fn images(scratch: &Scratch) -> Outcome {
    image::create(scratch, "disk", &[], "1M")?;
    image::create_overlay(scratch, "top", "disk", "qcow2")?;
    std::fs::write(scratch.file("flat"), vec![7; 1 << 20])?;
    Ok(())
}

/// These, and an encrypted one, which takes the oracle seconds to make.
fn images_and_locked(scratch: &Scratch) -> Outcome {
    images(scratch)?;
    image::create_encrypted(scratch, "locked", &["encrypt.format=luks"])
}

#[test]
fn lists_of_options_name_images() -> Outcome {
    let described = LISTS
        .iter()
        .map(|list| ["info", "--object", SECRET, "--image-opts", *list]);
    let described: Vec<[&str; 5]> = described.collect();
    let calls: Vec<&[&str]> = described.iter().map(<[&str; 5]>::as_slice).collect();
    let scratch = Scratch::new()?;
    images_and_locked(&scratch)?;
    same_calls(&calls, &scratch)?;
    same_calls(CALLS, &scratch)
}

#[test]
fn json_names_images() -> Outcome {
    let scratch = Scratch::new()?;
    images(&scratch)?;
    let mut bench = Bench::new(&scratch);
    for name in NAMES {
        let name = format!("json:{name}");
        bench.same("json", &["info", "--output=json", &name])?;
    }
    for format in ["qcow2", "raw"] {
        bench.same("json", &["info", "-f", format, JSON])?;
    }
    bench.finish()
}

#[test]
fn what_is_not_there_is_refused_by_name() -> Outcome {
    let scratch = Scratch::new()?;
    images(&scratch)?;
    let mut bench = Bench::new(&scratch);
    for (list, word) in [
        (
            "driver=qcow2,file.filename=disk,data-file.driver=qcow2,data-file.file.filename=disk",
            "'qcow2'",
        ),
        (
            "driver=qcow2,file.filename=disk,data-file.driver=raw,data-file.offset=512,\
             data-file.file.filename=flat",
            "'data-file.offset'",
        ),
        ("driver=qcow2,file.filename=disk,encrypt.bogus=s", "'bogus'"),
        ("driver=blkdebug,image.filename=disk", "'blkdebug'"),
        (
            "driver=qcow2,file.driver=throttle,file.file.filename=disk",
            "'throttle'",
        ),
        (
            "driver=qcow2,file.driver=raw,file.file.filename=disk",
            "'raw'",
        ),
    ] {
        bench.refused("--image-opts", &["map", "--image-opts", list], &[word])?;
    }
    bench.refused(
        "--object",
        &["map", "--object", "throttle-group,id=a", "disk"],
        &["'throttle-group'"],
    )?;
    bench.finish()
}

#[test]
fn objects_are_secrets() -> Outcome {
    let scratch = Scratch::new()?;
    images(&scratch)?;
    same_calls(
        &[
            &["info", "--object", SECRET, "disk"],
            &["info", "--object", "secret,id=s", "missing"],
            &["info", "--object", "secret,id=s,file=missing", "disk"],
            &["info", "--object", "secret,help"],
            &["check", "--object", SECRET, "--object", SECRET, "disk"],
            &["create", "--object", "secret,id=1", "new", "1M"],
            &["snapshot", "--object", "bogus,id=s", "disk"],
            &[
                "convert",
                "--object",
                "secret,id=s,data=!,format=base64",
                "disk",
                "copy",
            ],
            &["map", "--object", "{\"qom-type\":\"secret\"}", "disk"],
        ],
        &scratch,
    )
}

/// The password is in no output.
#[test]
fn a_secret_goes_nowhere_else() -> Outcome {
    const WORD: &str = "aSecretThatIsNowhereElse";
    let scratch = Scratch::new()?;
    images(&scratch)?;
    image::create_encrypted(&scratch, "locked", &["encrypt.format=aes"])?;
    std::fs::write(scratch.file("word"), WORD)?;
    for (image, command) in [
        ("locked", "map"),
        ("locked", "compare"),
        ("disk", "check"),
        ("missing", "map"),
    ] {
        let list = format!("driver=qcow2,file.filename={image},encrypt.key-secret=s");
        let mut args = vec![
            command,
            "--object",
            "secret,id=s,file=word",
            "--image-opts",
            &list,
        ];
        if command == "compare" {
            args.push(RAW);
        }
        let done = Run::new(&tools::instar()?, scratch.path())
            .args(&args)
            .go()?;
        ensure!(
            !done.out().contains(WORD) && !done.err().contains(WORD),
            "{}",
            done.describe()
        );
    }
    Ok(())
}

const LOCKED: &str = "driver=qcow2,file.filename=locked,encrypt.key-secret=s";
const ABOVE: &str = "driver=qcow2,file.filename=above,backing.encrypt.key-secret=s";
const TWICE: &str = r#"json:{"driver":"qcow2","file.filename":"twice",
    "backing":{"backing":{"encrypt":{"format":"luks","key-secret":"s"}}}}"#;
const WRONG: &str = "secret,id=s,data=wrong";

/// Calls with images that have a password, on their own and as backing files.
const KEYED_CALLS: &[&[&str]] = &[
    &[
        "map",
        "--output=json",
        "--object",
        SECRET,
        "--image-opts",
        LOCKED,
    ],
    &[
        "map",
        "--output=json",
        "--object",
        SECRET,
        "--image-opts",
        ABOVE,
    ],
    &["map", "--output=json", "--object", SECRET, TWICE],
    &["map", "--object", WRONG, "--image-opts", LOCKED],
    &["map", "--object", WRONG, "--image-opts", ABOVE],
    &[
        "map",
        "--object",
        "secret,id=t,data=x",
        "--image-opts",
        ABOVE,
    ],
    &["map", "--image-opts", "driver=qcow2,file.filename=above"],
    &["compare", "--object", SECRET, "--image-opts", LOCKED, ABOVE],
    &[
        "measure",
        "-O",
        "qcow2",
        "--object",
        SECRET,
        "--image-opts",
        ABOVE,
    ],
    &[
        "convert",
        "--object",
        SECRET,
        "--image-opts",
        ABOVE,
        "plain",
    ],
    &[
        "convert", "--object", SECRET, TWICE, "-O", "qcow2", "plain2",
    ],
    &["compare", "plain", "plain2"],
    &[
        "convert",
        "-n",
        "--object",
        SECRET,
        "--target-image-opts",
        "flat",
        LOCKED,
    ],
    &["compare", "--object", SECRET, "--image-opts", LOCKED, RAW],
];

/// Secrets open the image that is named, and those below it by their depth.
#[test]
fn secrets_open_the_images_that_they_are_given_for() -> Outcome {
    let scratch = Scratch::new()?;
    images_and_locked(&scratch)?;
    let write = [
        "-c",
        "write -P 9 0 300k",
        "--object",
        SECRET,
        "--image-opts",
        LOCKED,
    ];
    let wrote = Run::new(&tools::qemu_io()?, scratch.path())
        .args(write)
        .go()?;
    wrote.expect_code(0)?;
    image::create_overlay(&scratch, "above", "locked", "qcow2")?;
    image::create_overlay(&scratch, "twice", "above", "qcow2")?;
    same_calls(KEYED_CALLS, &scratch)
}
