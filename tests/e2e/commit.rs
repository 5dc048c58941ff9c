//! `commit` beside `qemu-img commit`: texts, exit codes, and everything that is seen of all files afterwards.

use std::os::unix::fs::{FileExt, PermissionsExt};

use anyhow::{Context, Result, ensure};
use instar_tests::holder::Holder;
use instar_tests::image::{bitmap, io, qemu_img, snapshot};
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::tools;
use instar_tests::twins::Twins;

use crate::Outcome;

const BASE: &str = "base.qcow2";
const MID: &str = "mid.qcow2";
const TOP: &str = "top.qcow2";

/// An image of the chain: name, options, backing file with its format, size, writes.
struct Part<'a> {
    name: &'a str,
    options: &'a str,
    below: Option<(&'a str, &'a str)>,
    size: &'a str,
    writes: &'a [&'a str],
}

fn make(scratch: &Scratch, part: &Part<'_>) -> Result<()> {
    let raw = part.options == "raw";
    let format = if raw { "raw" } else { "qcow2" };
    let mut args = vec!["create", "-q", "-f", format];
    if !raw && !part.options.is_empty() {
        args.extend(["-o", part.options]);
    }
    if let Some((name, format)) = part.below {
        args.extend(["-b", name, "-F", format]);
    }
    args.extend([part.name, part.size]);
    qemu_img(scratch, &args)?;
    if part.writes.is_empty() {
        return Ok(());
    }
    if !raw {
        return io(scratch, part.name, part.writes);
    }
    let mut args = vec!["-f", "raw"];
    args.extend(part.writes.iter().flat_map(|command| ["-c", command]));
    args.push(part.name);
    let done = Run::new(&tools::qemu_io()?, scratch.path())
        .args(&args)
        .go()?;
    done.expect_code(0).map(drop)
}

/// Base, mid and top of 8 MiB each, with data, zeros and holes.
fn three(scratch: &Scratch, options: [&str; 3]) -> Result<()> {
    let [base, mid, top] = options;
    let format = if base == "raw" { "raw" } else { "qcow2" };
    make(
        scratch,
        &Part {
            name: BASE,
            options: base,
            below: None,
            size: "8M",
            writes: &["write -P 1 0 2M", "write -P 4 7M 1M"],
        },
    )?;
    make(
        scratch,
        &Part {
            name: MID,
            options: mid,
            below: Some((BASE, format)),
            size: "8M",
            writes: &["write -P 2 512k 1M", "write -P 9 5000k 12k"],
        },
    )?;
    make(
        scratch,
        &Part {
            name: TOP,
            options: top,
            below: Some((MID, "qcow2")),
            size: "8M",
            writes: &[
                "write -P 3 1M 1M",
                "write -z 3M 1M",
                "write -P 5 6001k 3k",
                "write -z 1900k 40k",
                "write -P 6 8187k 5k",
            ],
        },
    )
}

/// Builds a chain in both folders, commits with both programs, and compares all files.
fn judged(
    build: impl FnOnce(&Scratch) -> Result<()>,
    args: &[&str],
    names: &[&str],
) -> Result<Twins> {
    let mut twins = Twins::new()?;
    twins.build(build)?;
    let args = [&["commit"], args].concat();
    twins.run(&args)?;
    for name in names {
        twins.compare(name).with_context(|| (*name).to_owned())?;
    }
    Ok(twins)
}

const NAMES: &[&str] = &[BASE, MID, TOP];

#[test]
fn content_goes_to_the_nearest_or_the_named_base() -> Outcome {
    for args in [
        &[TOP][..],
        &["-q", TOP],
        &["-p", "-q", TOP],
        &["-d", TOP],
        &["--drop", "-f", "qcow2", TOP],
        &["-b", BASE, TOP],
        &["-b", MID, TOP],
        &["-b", "./base.qcow2", TOP],
        &["-r", "1G", TOP],
        &["-r", "0", "-t", "none", TOP],
        &["-t", "unsafe", MID],
    ] {
        judged(|s| three(s, ["", "", ""]), args, NAMES).with_context(|| format!("{args:?}"))?;
    }
    Ok(())
}

#[test]
fn every_kind_of_image_is_committed_from_and_to() -> Outcome {
    for options in [
        ["cluster_size=4k", "cluster_size=64k", "cluster_size=2k"],
        ["cluster_size=512", "cluster_size=4k", "cluster_size=128k"],
        ["compat=0.10", "compat=0.10", ""],
        ["", "", "compat=0.10"],
        ["extended_l2=on", "extended_l2=on", "extended_l2=on"],
        ["extended_l2=on,cluster_size=2M", "cluster_size=4k", ""],
        ["raw", "lazy_refcounts=on", "refcount_bits=1"],
        [
            "data_file=base.data",
            "data_file=mid.data",
            "data_file=top.data",
        ],
        ["data_file=base.data,data_file_raw=on", "", ""],
        ["preallocation=metadata", "", "compression_type=zstd"],
    ] {
        for args in [&[TOP][..], &["-b", BASE, TOP]] {
            let told = || format!("{options:?} {args:?}");
            // Where QEMU writes zeros around what it copies, subclusters can say so.
            let finer = options
                .iter()
                .any(|options| options.contains("extended_l2"));
            let names = if finer { &[] } else { NAMES };
            let twins = judged(|s| three(s, options), args, names).with_context(told)?;
            for name in NAMES {
                twins.compare_shown(name).with_context(told)?;
            }
        }
    }
    Ok(())
}

#[test]
fn sizes_of_base_and_overlay_differ() -> Outcome {
    let part = |name, below, size, writes| Part {
        name,
        options: "",
        below,
        size,
        writes,
    };
    for (base, mid, top) in [
        ("4M", "4M", "8M"),
        ("8M", "4M", "4M"),
        ("8M", "4M", "8M"),
        ("3000k", "8M", "5001k"),
    ] {
        for (kind, args) in [
            ("qcow2", &[TOP][..]),
            ("qcow2", &["-b", BASE, TOP]),
            ("raw", &["-b", BASE, TOP]),
        ] {
            let build = |s: &Scratch| {
                let writes = &["write -P 7 0 2900k"];
                let options = if kind == "raw" { "raw" } else { "" };
                make(
                    s,
                    &Part {
                        options,
                        ..part(BASE, None, base, writes)
                    },
                )?;
                make(
                    s,
                    &part(MID, Some((BASE, kind)), mid, &["write -P 5 1M 2M"]),
                )?;
                make(
                    s,
                    &part(
                        TOP,
                        Some((MID, "qcow2")),
                        top,
                        &["write -P 2 3M 900k", "write -z 64k 64k"],
                    ),
                )
            };
            let told = || format!("{base} {mid} {top} {kind} {args:?}");
            judged(build, args, NAMES).with_context(told)?;
        }
    }
    Ok(())
}

#[test]
fn snapshots_bitmaps_and_compressed_clusters_are_as_with_qemu_img() -> Outcome {
    let rich = |s: &Scratch| -> Result<()> {
        three(s, ["", "", ""])?;
        io(
            s,
            MID,
            &["write -c -P 21 4M 64k", "write -c -P 22 4160k 64k"],
        )?;
        io(s, TOP, &["write -c -P 23 5M 64k"])?;
        for name in [BASE, MID, TOP] {
            bitmap(s, name, "on", true)?;
            bitmap(s, name, "off", false)?;
        }
        io(s, TOP, &["write -P 31 2200k 70k"])?;
        snapshot(s, MID, "before")?;
        io(s, MID, &["write -P 32 4M 3k"])?;
        io(s, TOP, &["write -P 33 4100k 100k"])
    };
    for args in [&[TOP][..], &["-d", TOP], &["-b", BASE, TOP]] {
        judged(rich, args, NAMES).with_context(|| format!("{args:?}"))?;
    }
    Ok(())
}

#[test]
fn an_overlay_with_snapshots_keeps_them() -> Outcome {
    let mut twins = Twins::new()?;
    twins.build(|s| {
        three(s, ["", "", ""])?;
        snapshot(s, TOP, "before")?;
        io(s, TOP, &["write -P 32 4M 300k"])
    })?;
    twins.run(&["commit", TOP])?;
    // QEMU keeps a table of the active state that says nothing.
    twins.compare_shown(TOP)?;
    twins.compare(MID)?;
    twins.run(&["snapshot", "-a", "before", TOP])?;
    twins.compare_shown(TOP)
}

#[test]
fn dirty_images_are_committed() -> Outcome {
    for (dirty, args) in [(MID, &[TOP][..]), (TOP, &[TOP])] {
        let mut twins = Twins::new()?;
        twins.build(|s| {
            three(s, ["", "", ""])?;
            let file = std::fs::File::options().write(true).open(s.file(dirty))?;
            Ok(file.write_all_at(&[1], 79)?)
        })?;
        let args = [&["commit"], args].concat();
        twins.run(&args)?;
        twins.compare_shown(TOP)?;
        twins.compare_shown(MID).with_context(|| dirty)?;
    }
    Ok(())
}

#[test]
fn refusals_equal_qemu_img() -> Outcome {
    for args in [
        &["-b", TOP, TOP][..],
        &["-b", "nothere", TOP],
        &["-b", "", TOP],
        &["-p", "-b", "nothere", TOP],
        &["-p", "-q", "-b", "nothere", TOP],
        &[BASE],
        &["-p", BASE],
        &["-d", BASE],
        &["-b", BASE, BASE],
        &["-f", "raw", TOP],
        &["nothere.qcow2"],
        &["-p", "nothere.qcow2"],
    ] {
        judged(|s| three(s, ["", "", ""]), args, NAMES).with_context(|| format!("{args:?}"))?;
    }
    for gone in [BASE, MID] {
        let build = |s: &Scratch| {
            three(s, ["", "", ""])?;
            Ok(std::fs::remove_file(s.file(gone))?)
        };
        judged(build, &[TOP], &[])?;
        judged(build, &["-b", BASE, TOP], &[])?;
    }
    Ok(())
}

#[test]
fn data_that_cannot_be_read_or_has_no_room_stops_it() -> Outcome {
    let damaged = |s: &Scratch| {
        three(s, ["", "", ""])?;
        io(s, TOP, &["write -c -P 23 5M 64k"])?;
        let file = std::fs::File::options().write(true).open(s.file(TOP))?;
        let len = file.metadata()?.len();
        Ok(file.write_all_at(&[0xff; 64], len / 65536 * 65536)?)
    };
    judged(damaged, &[TOP], &[]).map(drop)?;
    judged(
        |s| {
            make(
                s,
                &Part {
                    name: BASE,
                    options: "compat=0.10",
                    below: None,
                    size: "1M",
                    writes: &[],
                },
            )?;
            snapshot(s, BASE, "s")?;
            make(
                s,
                &Part {
                    name: TOP,
                    options: "",
                    below: Some((BASE, "qcow2")),
                    size: "4M",
                    writes: &["write 0 4M"],
                },
            )
        },
        &[TOP],
        &[BASE, TOP],
    )
    .map(drop)
}

/// The files of a folder that may be changed are all but `closed`; its owner is root, whom nothing stops, so the programs
/// run without that right.
fn without_rights(
    folder: &Scratch,
    program: &std::path::Path,
    args: &[&str],
) -> Result<(Option<i32>, String)> {
    let program = program
        .to_str()
        .context("a program whose name is no text")?;
    let rights = "-dac_override,-dac_read_search";
    let words = ["--bounding-set", rights, "--inh-caps", rights, program];
    let done = Run::new(&tools::in_path("setpriv".as_ref())?, folder.path())
        .args([&words[..], args].concat())
        .go()?;
    let first = done.err().lines().next().unwrap_or_default().to_owned();
    let text = first
        .split_once(": ")
        .map_or(first.as_str(), |(_, text)| text);
    Ok((done.code, text.to_owned()))
}

#[test]
fn images_that_may_not_be_written_are_refused_in_the_same_words() -> Outcome {
    for (closed, args) in [
        (MID, &[TOP][..]),
        (TOP, &[TOP]),
        (BASE, &[TOP]),
        (BASE, &["-b", BASE, TOP]),
    ] {
        let twins = Twins::new()?;
        twins.build(|s| three(s, ["", "", ""]))?;
        let args = [&["commit"], args].concat();
        let mut said = Vec::new();
        for (program, folder) in [
            (tools::qemu_img()?, twins.theirs()),
            (tools::instar()?, twins.ours()),
        ] {
            std::fs::set_permissions(folder.file(closed), std::fs::Permissions::from_mode(0o444))?;
            said.push(without_rights(folder, &program, &args)?);
        }
        let refused = closed == TOP || args.contains(&BASE) || closed == MID;
        ensure!(said[0].0 == Some(i32::from(refused)), "{said:?}");
        ensure!(said[0] == said[1], "{closed} {args:?}: {said:?}");
    }
    Ok(())
}

#[test]
fn images_in_use_are_refused_in_the_same_words() -> Outcome {
    for read_only in [false, true] {
        for held in NAMES {
            for args in [&[TOP][..], &["-b", BASE, TOP]] {
                let mut twins = Twins::new()?;
                twins.build(|s| three(s, ["", "", ""]))?;
                let access = if read_only {
                    &["-f", "qcow2", "-r"][..]
                } else {
                    &["-f", "qcow2", "-d", "off"]
                };
                let hold = |folder| Holder::open(folder, access, held);
                let holders = [hold(twins.theirs())?, hold(twins.ours())?];
                let args = [&["commit"], args].concat();
                let ran = twins.run(&args);
                drop(holders);
                ran.with_context(|| format!("{held} is held, read only: {read_only}"))?;
            }
        }
    }
    Ok(())
}
