//! `instar bench` against `qemu-img bench`: texts but for the time, exit codes, and what writes leave behind.

use anyhow::{Result, ensure};
use instar_tests::compare::{Bench, differences};
use instar_tests::image;
use instar_tests::run::Outcome as Ran;
use instar_tests::scratch::Scratch;

use crate::Outcome;

/// The output with the time that the run took replaced.
fn timeless(mut ran: Ran) -> Ran {
    let text = ran.out();
    if let Some((head, _)) = text.split_once("Run completed in ") {
        ran.stdout = format!("{head}Run completed in TIME\n").into_bytes();
        let tail = &text[head.len()..];
        let time = tail.strip_prefix("Run completed in ").unwrap_or_default();
        let time = time.strip_suffix(" seconds.\n").unwrap_or_default();
        let (seconds, rest) = time.split_once('.').unwrap_or_default();
        if seconds.parse::<u64>().is_err() || rest.len() != 3 || rest.parse::<u64>().is_err() {
            ran.stdout = text.into_bytes();
        }
    }
    ran
}

/// Both programs, told the same; what differs.
fn same(bench: &Bench<'_>, args: &[&str]) -> Result<Vec<String>> {
    let all = [&["bench"][..], args].concat();
    let want = timeless(bench.qemu_img(&all)?);
    let got = timeless(bench.instar(&all)?);
    let found = differences(&want, &got).into_iter();
    Ok(found.map(|what| format!("{all:?}: {what}")).collect())
}

#[test]
fn lines_and_refusals_are_those_of_the_oracle() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_filled(&scratch, "a", &[])?;
    scratch.set_len("raw", 64 << 10)?;
    scratch.set_len("odd", 10_000)?;
    scratch.set_len("none", 0)?;
    let bench = Bench::new(&scratch);
    let mut found = Vec::new();
    for args in [
        &["a"][..],
        &["-c", "100", "a"],
        &["-c", "100", "-f", "raw", "raw"],
        &["-c", "100", "raw"],
        &[
            "-q", "-c", "010", "-d", "1", "-s", "1k", "-S", "0x200", "-o", "4k", "a",
        ],
        &["-c", "10", "-s", "4096", "-f", "raw", "odd"],
        &["-c", "1", "-s", "10240", "-f", "raw", "odd"],
        &["-c", "1", "-f", "raw", "none"],
        &["-c", "2", "-o", "64k", "-f", "raw", "raw"],
        &["-c", "0", "a"],
        &["-d", "0", "a"],
        &["-c", "x", "a"],
        &["-s", "2G", "a"],
        &["-S", "-1", "a"],
        &["-o", "8E", "a"],
        &["--pattern", "256", "a"],
        &["--flush-interval", "70", "a"],
        &["-w", "--flush-interval", "7", "a"],
        &["-t", "foo", "a"],
        &["-i", "foo", "a"],
        &["-i", "native", "a"],
        &["-n", "-t", "none", "-c", "1", "a"],
        &["-w", "-U", "a"],
        &["-U", "-c", "1", "a"],
        &["missing"],
        &["-w", "missing"],
        &["-f", "bogus", "a"],
        &["-f", "qcow2", "raw"],
        &[],
        &["a", "raw"],
    ] {
        found.extend(same(&bench, args)?);
    }
    ensure!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}

/// Writes by both programs into copies of the same image; both show the same disk then.
fn same_writes(scratch: &Scratch, name: &str, args: &[&str]) -> Result<()> {
    let (ours, theirs) = (format!("{name}.ours"), format!("{name}.theirs"));
    for copy in [&ours, &theirs] {
        std::fs::copy(scratch.file(name), scratch.file(copy))?;
    }
    let bench = Bench::new(scratch);
    let told = |file: &str| [&["bench", "-w"][..], args, &[file]].concat().join(" ");
    let words = told(&theirs);
    let want = timeless(bench.qemu_img(&words.split(' ').collect::<Vec<_>>())?);
    let words = told(&ours);
    let got = timeless(bench.instar(&words.split(' ').collect::<Vec<_>>())?);
    let found = differences(&want, &got);
    ensure!(found.is_empty(), "{words}: {}", found.join("\n"));
    let format = if name.starts_with("raw") {
        "raw"
    } else {
        "qcow2"
    };
    let compared = ["compare", "-f", format, "-F", format, &ours, &theirs];
    image::qemu_img(scratch, &compared)?.expect_code(0)?;
    if format == "qcow2" {
        image::qemu_img(scratch, &["check", &ours])?.expect_code(0)?;
    }
    Ok(())
}

#[test]
fn writes_leave_what_the_oracle_leaves() -> Outcome {
    let scratch = Scratch::new()?;
    scratch.set_len("raw", 1 << 20)?;
    image::create(&scratch, "empty", &[], "8M")?;
    image::create(&scratch, "small", &["cluster_size=512"], "8M")?;
    image::create_filled(&scratch, "base", &[])?;
    image::create_overlay(&scratch, "overlay", "base", "qcow2")?;
    image::create_compressed(&scratch, "packed", &["cluster_size=4k"])?;
    image::create_filled(&scratch, "frozen", &["cluster_size=16k,extended_l2=on"])?;
    image::snapshot(&scratch, "frozen", "one")?;
    for name in ["raw", "empty", "small", "overlay", "packed", "frozen"] {
        let f: &[&str] = if name == "raw" {
            &["-f", "raw"]
        } else {
            &["-f", "qcow2"]
        };
        for args in [
            &["-c", "500", "--pattern", "7"][..],
            &[
                "-c",
                "300",
                "-s",
                "512",
                "-S",
                "3000",
                "-o",
                "1000",
                "--pattern",
                "0xa5",
                "-d",
                "3",
            ],
            &[
                "-c",
                "64",
                "-s",
                "16k",
                "-d",
                "4",
                "--pattern",
                "9",
                "--flush-interval",
                "8",
            ],
            &[
                "-c",
                "64",
                "-d",
                "4",
                "--pattern",
                "9",
                "--flush-interval",
                "8",
                "--no-drain",
            ],
        ] {
            same_writes(&scratch, name, &[args, f].concat())?;
        }
    }
    Ok(())
}

#[test]
fn json_says_how_long_it_took() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_filled(&scratch, "a", &[])?;
    let bench = Bench::new(&scratch);
    let ran = bench.instar(&["bench", "--output", "json", "-c", "1000", "a"])?;
    ran.expect_code(0)?;
    let said: serde_json::Value = serde_json::from_str(&ran.out())?;
    ensure!(said["count"] == 1000 && said["request"] == "read", "{said}");
    ensure!(
        said["elapsed-ns"].as_u64().is_some_and(|ns| ns > 0),
        "{said}"
    );
    Ok(())
}
