//! Wrong use and wrong values of the commands that change images, their JSON, and files that cannot be changed.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use anyhow::{Context, Result, ensure};
use instar_tests::compare::{Bench, manners};
use instar_tests::holder::Holder;
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::twins::Twins;
use instar_tests::{image, tools};

use crate::Outcome;

const NAME: &str = "disk.qcow2";
/// One change of each kind, as far as the name of the image.
const CHANGES: [&[&str]; 8] = [
    &["check", "-r", "leaks"],
    &["check", "-r", "all"],
    &["snapshot", "-c", "new"],
    &["snapshot", "-a", "snap"],
    &["snapshot", "-d", "snap"],
    &["resize"],
    &["amend", "-o", "lazy_refcounts=on"],
    &["bitmap", "--add"],
];

/// The words of a change to an image of this name.
fn change<'a>(words: &[&'a str], name: &'a str) -> Vec<&'a str> {
    let last = match words[0] {
        "resize" => Some("20M"),
        "bitmap" => Some("new"),
        _ => None,
    };
    words.iter().copied().chain([name]).chain(last).collect()
}

/// An image with a snapshot and bitmaps, with which every one of these is refused in the oracle's words.
fn all_refused(cases: &[&[&str]]) -> Outcome {
    let scratch = Scratch::new()?;
    image::create_rich(&scratch, NAME, &[])?;
    image::create(&scratch, "v2.qcow2", &["compat=0.10"], "1M")?;
    scratch.set_len("disk.raw", 1 << 20)?;
    let mut bench = Bench::new(&scratch);
    for case in cases {
        let want = bench.qemu_img(case)?;
        ensure!(want.code == Some(1), "{case:?}: {}", want.describe());
        bench.same("refused", case)?;
    }
    bench.finish()
}

/// The same change to twins, compared.
fn all_same(options: &[&str], cases: &[&[&str]]) -> Outcome {
    let mut twins = Twins::new()?;
    twins.build(|folder| image::create_rich(folder, NAME, options))?;
    for case in cases {
        twins.run(case)?;
    }
    twins.compare(NAME)
}

#[test]
fn wrong_numbers_of_names() -> Outcome {
    all_refused(&[
        &["snapshot"],
        &["snapshot", "-l"],
        &["snapshot", "-c", "x"],
        &["snapshot", "-c", "x", NAME, NAME],
        &["snapshot", "-c", "x", "-d", "y", NAME],
        &["snapshot", "-l", "-d", "y", NAME],
        &["snapshot", "-a", "x", "-a", "x", NAME],
        &["resize"],
        &["resize", NAME],
        &["resize", NAME, "1M", "2M"],
        &["amend"],
        &["amend", NAME],
        &["amend", "-o", "size=20M"],
        &["amend", "-o", "size=20M", NAME, NAME],
        &["bitmap"],
        &["bitmap", NAME],
        &["bitmap", "--add"],
        &["bitmap", "--add", NAME],
        &["bitmap", "--add", NAME, "a", "b"],
        &["bitmap", NAME, "a"],
        &["check", "-r", "all", NAME, NAME],
    ])
}

#[test]
fn unknown_options_of_changes_are_refused() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_rich(&scratch, NAME, &[])?;
    let mut bench = Bench::new(&scratch);
    for args in [
        &["snapshot", "--nonsense", NAME][..],
        &["snapshot", NAME, "-c"],
        &["resize", "-z", NAME, "1M"],
        &["resize", NAME, "1M", "--preallocation"],
        &["resize", "-U", NAME, "20M"],
        &["amend", "-U", "-o", "compat=1.1", NAME],
        &["amend", NAME, "-o"],
        &["bitmap", "-U", "--add", NAME, "x"],
        &["bitmap", "--add", NAME, "x", "-g"],
        &["bitmap", "-q", "--add", NAME, "x"],
    ] {
        bench.refused("option", args, &["instar"])?;
    }
    bench.finish()
}

#[test]
fn names_that_are_no_images() -> Outcome {
    let scratch = Scratch::new()?;
    std::fs::create_dir(scratch.file("folder"))?;
    let _socket = UnixListener::bind(scratch.file("socket"))?;
    scratch.set_len("disk.raw", 1 << 20)?;
    symlink("loop", scratch.file("loop"))?;
    symlink("nowhere", scratch.file("dangling"))?;
    let mut bench = Bench::new(&scratch);
    let long = "n".repeat(300);
    for words in CHANGES {
        for name in [
            "missing.qcow2",
            "folder/missing.qcow2",
            "missing/missing.qcow2",
            "",
            "folder",
            ".",
            "socket",
            "loop",
            "dangling",
            "/dev/null",
            &long,
        ] {
            bench.same("no image", &change(words, name))?;
        }
        for format in ["nonsense", "qcow2", ""] {
            let mut args = change(words, "disk.raw");
            args.splice(1..1, ["-f", format]);
            bench.same("no image", &args)?;
        }
    }
    bench.finish()
}

#[test]
fn raw_images() -> Outcome {
    for format in [&[][..], &["-f", "raw"]] {
        for words in CHANGES {
            let mut twins = Twins::new()?;
            twins.build(|folder| folder.set_len("disk.raw", 1 << 20))?;
            let mut args = change(words, "disk.raw");
            args.splice(1..1, format.iter().copied());
            twins.run(&args)?;
            twins.compare("disk.raw")?;
        }
    }
    Ok(())
}

#[test]
fn a_fifo_is_not_changed() -> Outcome {
    let scratch = Scratch::new()?;
    let mkfifo = tools::in_path("mkfifo".as_ref())?;
    let made = Run::new(&mkfifo, scratch.path()).args(["pipe"]).go()?;
    made.expect_code(0)?;
    let mut bench = Bench::new(&scratch);
    for words in CHANGES {
        bench.refused("fifo", &change(words, "pipe"), &["pipe"])?;
    }
    bench.finish()
}

#[test]
fn links_and_odd_names_of_files() -> Outcome {
    let mut twins = Twins::new()?;
    twins.build(|folder| {
        image::create_filled(folder, NAME, &[])?;
        symlink(NAME, folder.file("link.qcow2"))?;
        Ok(())
    })?;
    for words in [
        &["snapshot", "-c", "new", "link.qcow2"][..],
        &["resize", "./link.qcow2", "+1M"],
        &["resize", "file:disk.qcow2", "+1M"],
        &["amend", "-o", "lazy_refcounts=on", "link.qcow2"],
        &["check", "-r", "all", "link.qcow2"],
        &["bitmap", "--add", "link.qcow2", "x"],
    ] {
        twins.run(words)?;
    }
    let is_link = std::fs::symlink_metadata(twins.ours().file("link.qcow2"))?.is_symlink();
    ensure!(is_link, "the link was replaced");
    twins.compare(NAME)
}

#[test]
fn a_file_without_write_permission() -> Outcome {
    // For root, the mode is no obstacle: the answers are the same either way.
    let mut twins = Twins::new()?;
    twins.build(|folder| {
        image::create_filled(folder, NAME, &[])?;
        let mode = std::fs::Permissions::from_mode(0o444);
        Ok(std::fs::set_permissions(folder.file(NAME), mode)?)
    })?;
    for words in CHANGES {
        twins.run(&change(words, NAME))?;
    }
    for (folder, name) in [(twins.theirs(), "theirs"), (twins.ours(), "ours")] {
        let mode = std::fs::metadata(folder.file(NAME))?.permissions().mode() & 0o777;
        ensure!(mode == 0o444, "{name}: mode {mode:o}");
    }
    Ok(())
}

#[test]
fn force_share_is_for_reading() -> Outcome {
    all_refused(&[
        &["snapshot", "-U", "-c", "x", NAME],
        &["snapshot", "-U", "-a", "first", NAME],
        &["snapshot", "-U", "-d", "first", NAME],
        &["snapshot", "-U", "-c", "x", "missing.qcow2"],
        &["check", "-U", "-r", "leaks", NAME],
        &["check", "-U", "-r", "all", "missing.qcow2"],
    ])?;
    let scratch = Scratch::new()?;
    image::create_rich(&scratch, NAME, &[])?;
    let mut bench = Bench::new(&scratch);
    bench.same("list", &["snapshot", "-U", NAME])?;
    bench.same("list", &["snapshot", "-U", "-l", "-q", NAME])?;
    bench.finish()
}

#[test]
fn an_image_in_use_is_not_changed() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_rich(&scratch, NAME, &[])?;
    image::create(&scratch, "split.qcow2", &["data_file=split.data"], "1M")?;
    let mut bench = Bench::new(&scratch);
    for options in [&["-f", "qcow2"][..], &["-r", "-f", "qcow2"]] {
        let _holder = Holder::open(&scratch, options, NAME)?;
        for words in CHANGES {
            bench.same("in use", &change(words, NAME))?;
        }
        bench.same("in use", &["resize", "-f", "raw", NAME, "20M"])?;
        let reads = options.contains(&"-r");
        if !reads {
            bench.same("list", &["snapshot", "-l", NAME])?;
        }
        bench.same("list", &["snapshot", "-l", "-U", NAME])?;
    }
    let _holder = Holder::open(&scratch, &["-f", "raw"], "split.data")?;
    bench.same("data file", &["snapshot", "-c", "x", "split.qcow2"])?;
    bench.finish()
}

#[test]
fn sizes_that_are_refused() -> Outcome {
    let mut cases = Vec::new();
    for size in [
        "",
        "abc",
        "1X",
        "+",
        "-",
        "M",
        "1MB",
        "1e3M",
        "0x",
        " ",
        "1 M",
        "+-1M",
        "--1M",
        "++1M",
        "1.5",
        "1..5M",
        "9E",
        "8E",
        "16E",
        "+8E",
        "-9M",
        "-8M",
        "-100P",
        "99999999999999999999",
        "-99999999999999999999",
        "0",
        "4M",
        "-1M",
        "8388609",
        "+1",
        "+100",
        "+511",
        "7E",
        "1P",
        "nan",
        "inf",
        "1M\u{e9}",
    ] {
        cases.push(vec!["resize", "--", NAME, size]);
    }
    for size in ["0", "-8M", "-1", "1M", "5E", "+7E"] {
        cases.push(vec![
            "resize",
            "--shrink",
            "--preallocation=full",
            NAME,
            size,
        ]);
    }
    for mode in ["bogus", "", "Full", "OFF"] {
        cases.push(vec!["resize", "--preallocation", mode, NAME, "20M"]);
    }
    cases.push(vec![
        "resize",
        "--preallocation=metadata",
        "-f",
        "raw",
        "disk.raw",
        "20M",
    ]);
    cases.push(vec!["resize", "-f", "raw", "disk.raw", "1k"]);
    cases.push(vec!["resize", "--preallocation=bogus", "missing", "1M"]);
    cases.push(vec!["resize", "missing", "abc"]);
    // An image that is opened and refused is marked as changed by both.
    let mut twins = Twins::new()?;
    twins.build(|folder| {
        image::create(folder, NAME, &["cluster_size=4k"], "8M")?;
        image::io(folder, NAME, &["write 0 64k"])?;
        folder.set_len("disk.raw", 1 << 20)
    })?;
    for case in cases {
        twins.run(&case)?;
    }
    twins.compare(NAME)
}

#[test]
fn sizes_in_every_form() -> Outcome {
    for size in [
        "10M",
        "10m",
        "10240k",
        "10240K",
        "10485760",
        "10485760b",
        "10485760B",
        "0.5G",
        "1.5G",
        "0xa00000",
        "0XA00000",
        "1e1M",
        "+2M",
        "+2097152",
        "+0",
        "-0",
        "-512",
        "-4M",
        "-1.5M",
        " 9M",
        "+ 1M",
        "9.001953125M",
        "1T",
        "010M",
        "8389120",
        "+512",
        "+1k",
    ] {
        for options in [&[][..], &["--shrink"], &["-q"]] {
            let mut twins = Twins::new()?;
            twins.build(|folder| image::create(folder, NAME, &["cluster_size=4k"], "8M"))?;
            let args = [&["resize"][..], options, &[NAME, size]].concat();
            twins.run(&args)?;
            twins.compare(NAME)?;
        }
    }
    Ok(())
}

#[test]
fn snapshot_names() -> Outcome {
    let long = "x".repeat(300);
    let most = "y".repeat(255);
    let more = "z".repeat(1000);
    let odd = "a b\tc\u{e9}\u{1f4be}\"\\%s\x1b[1m";
    let mut cases: Vec<Vec<&str>> = Vec::new();
    for name in [
        "", " ", "-", odd, &most, &long, &more, "1", "2", "7", "first", "no such", "a\nb",
    ] {
        for action in ["-d", "-a"] {
            cases.push(vec!["snapshot", action, name, NAME]);
        }
        cases.push(vec!["snapshot", "-c", name, NAME]);
        cases.push(vec!["snapshot", "-c", name, NAME]);
        cases.push(vec!["snapshot", "-d", name, NAME]);
        cases.push(vec!["snapshot", "-q", "-c", name, NAME]);
    }
    let mut twins = Twins::new()?;
    twins.build(|folder| {
        image::create(folder, NAME, &["cluster_size=4k"], "8M")?;
        image::snapshot(folder, NAME, "first")?;
        image::io(folder, NAME, &["write 0 64k"])
    })?;
    for case in cases {
        twins.run(&case)?;
    }
    twins.compare(NAME)
}

#[test]
fn snapshot_names_of_any_bytes() -> Outcome {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::OsStr::from_bytes(b"\xff\xfe\x80bytes\xc3");
    let words = |action: &'static str| [action.as_ref(), name, NAME.as_ref()];
    let mut twins = Twins::new()?;
    twins.build(|folder| image::create(folder, NAME, &[], "1M"))?;
    for action in ["-d", "-c", "-a", "-c", "-d"] {
        let args: Vec<_> = [std::ffi::OsStr::new("snapshot")]
            .into_iter()
            .chain(words(action))
            .collect();
        twins.run(&args)?;
    }
    twins.compare(NAME)
}

#[test]
fn amend_options_that_are_refused() -> Outcome {
    let mut cases: Vec<Vec<&str>> = Vec::new();
    for option in [
        "",
        "=",
        ",",
        "bogus",
        "bogus=1",
        "size",
        "size=",
        "size=abc",
        "size=-1",
        "size=8E",
        "size=1000",
        "size=7E",
        "compat=2",
        "compat=",
        "compat=0.11",
        "refcount_bits=3",
        "refcount_bits=0",
        "refcount_bits=128",
        "refcount_bits=-1",
        "refcount_bits=abc",
        "refcount_bits=16x",
        "refcount_bits=4294967312",
        "refcount_bits=99999999999999999999",
        "refcount_bits=1",
        "lazy_refcounts=maybe",
        "lazy_refcounts=1",
        "lazy_refcounts=",
        "data_file=x",
        "data_file_raw=on",
        "data_file_raw=maybe",
        "backing_file=x",
        "backing_fmt=raw",
        "backing_file=x,backing_fmt=raw",
        "cluster_size=64k",
        "cluster_size=4k",
        "preallocation=metadata",
        "encryption=on",
        "encrypt.format=luks",
        "encrypt.state=active",
        "encrypt.key-secret=x",
        "extended_l2=on",
        "compression_type=zstd",
        "compat=0.10,lazy_refcounts=on",
        "compat=0.10,refcount_bits=8",
        "compat=0.10,refcount_bits=8,lazy_refcounts=on",
        "refcount_bits=3,compat=2",
        "size=1000,refcount_bits=3",
        "lazy_refcounts=on,bogus=1",
        "size=10M,backing_file=x",
        "compat=1.1,,size=1",
    ] {
        cases.push(vec!["amend", "-o", option, NAME]);
    }
    for option in [
        "lazy_refcounts=on",
        "refcount_bits=8",
        "refcount_bits=8,lazy_refcounts=on",
        "size=20M,lazy_refcounts=on",
    ] {
        cases.push(vec!["amend", "-o", option, "v2.qcow2"]);
        cases.push(vec!["amend", "-o", option, "disk.raw"]);
        cases.push(vec!["amend", "-f", "raw", "-o", option, "disk.raw"]);
    }
    cases.push(vec!["amend", "-t", "bogus", "-o", "compat=1.1", NAME]);
    cases.push(vec!["amend", "-t", "", "-o", "compat=1.1", NAME]);
    cases.push(vec!["amend", "-t", "bogus", NAME]);
    cases.push(vec!["amend", "-o", "bogus=1", "missing.qcow2"]);
    cases.push(vec!["amend", "-f", "raw", "-o", "help"]);
    for words in cases {
        let mut twins = Twins::new()?;
        twins.build(|folder| {
            image::create(folder, NAME, &["cluster_size=4k"], "8M")?;
            image::snapshot(folder, NAME, "s")?;
            image::io(folder, NAME, &["write 0 64k"])?;
            image::create(folder, "v2.qcow2", &["compat=0.10"], "1M")?;
            folder.set_len("disk.raw", 1 << 20)
        })?;
        twins.run(&words)?;
        twins.compare(NAME)?;
        twins.compare("v2.qcow2")?;
    }
    Ok(())
}

#[test]
fn amend_help_and_repeated_options() -> Outcome {
    all_same(
        &["cluster_size=4k"],
        &[
            &["amend", "-f", "qcow2", "-o", "help"],
            &["amend", "-o", "help", NAME],
            &["amend", "-o", "?", NAME],
            &["amend", "-o", "compat=1.1,help", NAME],
            &[
                "amend",
                "-o",
                "lazy_refcounts=off",
                "-o",
                "lazy_refcounts=on",
                NAME,
            ],
            &["amend", "-o", "size=9M,size=10M", NAME],
            &["amend", "-q", "-o", "refcount_bits=32", NAME],
            &["amend", "-t", "none", "-o", "refcount_bits=64", NAME],
            &["amend", "-t", "unsafe", "-o", "compat=v3", NAME],
            &[
                "amend",
                "-o",
                "lazy_refcounts=off,refcount_bits=16,compat=1.1,size=8M",
                NAME,
            ],
            &["amend", "--force", "-o", "size=8M", NAME],
        ],
    )
}

#[test]
fn bitmap_names_and_granularities() -> Outcome {
    let most = "n".repeat(1023);
    let long = "n".repeat(1024);
    let mut cases: Vec<Vec<String>> = Vec::new();
    for name in ["", " ", "a,b", "\u{e9}\"\\", &most, &long, "nightly", "x"] {
        for action in [
            "--clear",
            "--remove",
            "--enable",
            "--add",
            "--disable",
            "--add",
        ] {
            cases.push(["bitmap", action, NAME, name].map(str::to_owned).to_vec());
        }
    }
    for granularity in [
        "0",
        "1",
        "3",
        "256",
        "511",
        "512",
        "513",
        "64k",
        "1M",
        "2G",
        "4G",
        "7E",
        "8E",
        "-1",
        "",
        "abc",
        "64kk",
        "1.5k",
        "0x1000",
        "100000000000000000000",
    ] {
        let option = format!("--granularity={granularity}");
        // A name that looks like an option would be another test.
        let name = format!("g{granularity}");
        cases.push(
            ["bitmap", "--add", &option, NAME, name.as_str()]
                .map(str::to_owned)
                .to_vec(),
        );
    }
    for words in [
        "--merge nope DISK x",
        "--merge x DISK nope",
        "--merge x --clear --merge nope --add DISK x",
        "--add --enable --disable --clear DISK many",
        "--add --add DISK twice",
        "--remove --remove DISK twice",
        "-g 64k --clear DISK x",
        "-b other.qcow2 --clear DISK x",
        "-F qcow2 --clear DISK x",
        "-F qcow2 --merge x DISK x",
        "-b missing.qcow2 --merge x DISK x",
        "-b disk.qcow2 --merge x DISK x",
        "-F nonsense -b missing.qcow2 --merge x DISK x",
        "-F raw -b disk.raw --merge x DISK x",
        "-b disk.raw --merge x DISK x",
        "-b other.qcow2 --merge there DISK x",
        "-b other.qcow2 -F qcow2 --merge nope DISK x",
        "-b small.qcow2 --merge there DISK x",
        "--merge x DISK x",
        "--add disk.raw x",
        "--add -f raw disk.raw x",
        "--add v2.qcow2 x",
        "--clear v2.qcow2 x",
    ] {
        let words = words.split(' ').map(|w| if w == "DISK" { NAME } else { w });
        let words = ["bitmap"].into_iter().chain(words);
        cases.push(words.map(str::to_owned).collect());
    }
    let mut twins = Twins::new()?;
    twins.build(|folder| {
        image::create_rich(folder, NAME, &["cluster_size=4k"])?;
        image::create(folder, "v2.qcow2", &["compat=0.10"], "1M")?;
        for (name, size) in [("other.qcow2", "8M"), ("small.qcow2", "1M")] {
            image::create(folder, name, &[], size)?;
            image::bitmap(folder, name, "there", true)?;
            image::io(folder, name, &["write 100k 64k"])?;
        }
        folder.set_len("disk.raw", 1 << 20)
    })?;
    for case in &cases {
        twins.run(case)?;
    }
    twins.compare(NAME)
}

#[test]
fn repairs_with_wrong_values() -> Outcome {
    all_refused(&[
        &["check", "-r", "bogus", NAME],
        &["check", "-r", "", NAME],
        &["check", "--repair", "ALL", NAME],
        &["check", "-r", "bogus", "-T", "bogus", NAME],
        &["check", "-r", "all", "-T", "bogus", NAME],
        &["check", "-r", "all", "-f", "nonsense", NAME],
        &["check", "-r", "all", "-f", "qcow2", "disk.raw"],
        &["check", "-r", "all", "--output=xml", NAME],
    ])
}

#[test]
fn a_bitmap_s_source_in_use_is_not_read() -> Outcome {
    let mut twins = Twins::new()?;
    twins.build(|folder| {
        image::create_rich(folder, NAME, &[])?;
        image::create(folder, "other.qcow2", &[], "8M")?;
        image::bitmap(folder, "other.qcow2", "there", true)
    })?;
    let held = [twins.theirs(), twins.ours()].map(|f| Holder::open(f, &["-f", "qcow2"], NAME));
    for words in [
        &[
            "bitmap",
            "--merge",
            "nightly",
            "-b",
            NAME,
            "other.qcow2",
            "there",
        ][..],
        &[
            "bitmap",
            "--add",
            "--merge",
            "x",
            "-b",
            NAME,
            "other.qcow2",
            "x",
        ],
    ] {
        let code = twins.run(words)?;
        ensure!(code == 1, "{words:?}: {code}");
    }
    drop(held);
    twins.compare("other.qcow2")
}

/// Runs the program under test; its standard output is one JSON document.
fn json(scratch: &Scratch, args: &[&str]) -> Result<serde_json::Value> {
    let done = Run::new(&tools::instar()?, scratch.path())
        .args(args)
        .go()?;
    let told = || format!("{args:?}: {}", done.describe());
    done.expect_code(0).with_context(told)?;
    ensure!(
        done.stderr.is_empty() && manners(&done).is_empty(),
        "{}",
        told()
    );
    serde_json::from_slice(&done.stdout).with_context(told)
}

#[test]
fn json_of_the_commands_that_qemu_img_has_no_json_for() -> Outcome {
    if tools::subject_is_oracle() {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    image::create_rich(&scratch, NAME, &[])?;
    let list = json(&scratch, &["snapshot", "-l", "--output=json", NAME])?;
    let info = image::qemu_img(&scratch, &["info", "--output=json", NAME])?;
    let info: serde_json::Value = serde_json::from_slice(&info.stdout)?;
    ensure!(list == info["snapshots"], "{list:#}");
    for (args, key, value) in [
        (&["snapshot", "-c", "s"][..], "snapshot", "s"),
        (&["snapshot", "-d", "s"], "action", "delete"),
        (&["resize"], "format", "qcow2"),
        (&["amend", "-o", "lazy_refcounts=on"], "filename", NAME),
        (&["bitmap", "--add"], "bitmap", "new"),
        (&["bitmap", "--clear"], "filename", NAME),
    ] {
        let mut args = change(args, NAME);
        args.splice(1..1, ["--output=json"]);
        let said = json(&scratch, &args)?;
        ensure!(said[key] == value, "{args:?}: {said:#}");
        ensure!(
            said["virtual-size"].is_u64() && said["old-virtual-size"].is_u64(),
            "{said:#}"
        );
    }
    let said = json(&scratch, &["resize", "--output", "json", NAME, "+1M"])?;
    ensure!(
        said["old-virtual-size"] == 20 << 20 && said["virtual-size"] == 21 << 20,
        "{said:#}"
    );
    let said = json(&scratch, &["check", "-r", "all", "--output=json", NAME])?;
    ensure!(said["check-errors"] == 0, "{said:#}");
    Ok(())
}

#[test]
fn nothing_is_printed_when_json_was_asked_for_and_it_failed() -> Outcome {
    if tools::subject_is_oracle() {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    image::create_rich(&scratch, NAME, &[])?;
    let mut bench = Bench::new(&scratch);
    for args in [
        &["snapshot", "--output=json", "-l", "missing"][..],
        &["snapshot", "--output=json", "-d", "nope", NAME],
        &["snapshot", "--output=json", "-a", "nope", NAME],
        &["resize", "--output=json", NAME, "1M"],
        &["resize", "--output=json", NAME, "x"],
        &["amend", "--output=json", "-o", "refcount_bits=3", NAME],
        &["amend", "--output=json", "-o", "bogus=1", NAME],
        &["bitmap", "--output=json", "--add", NAME, "nightly"],
        &["bitmap", "--output=xml", "--add", NAME, "x"],
        &["check", "-r", "all", "--output=json", "missing"],
    ] {
        let before = scratch.fingerprints()?;
        let done = bench.instar(args)?;
        let right =
            done.code == Some(1) && done.stdout.is_empty() && done.err().starts_with("instar");
        if !right || !manners(&done).is_empty() || before != scratch.fingerprints()? {
            bench.fail(format!("{args:?}: {}", done.describe()));
        }
    }
    bench.same("oracle", &["snapshot", "-l", NAME])?;
    bench.finish()
}
