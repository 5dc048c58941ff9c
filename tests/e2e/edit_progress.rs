//! Changes that take long: percentages, a bar on a terminal, and an end on request that leaves the old image.

use anyhow::{Result, ensure};
use instar_tests::image;
use instar_tests::live::{Live, soon};
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::terminal::{OnTerminal, Seen, run, shortly};
use instar_tests::{crafted, tools, twins};
use rustix::process::Signal;

use crate::Outcome;

const NAME: &str = "disk.qcow2";
/// What both print last, when all is done.
const ALL: &str = "    (100.00/100%)\r\n";
/// L1 entries of an image whose repair takes two seconds or more.
const LONG_TABLES: u64 = 3 << 15;
/// L1 entries of an image whose repair takes half a minute.
const LONGEST_TABLES: u64 = 1 << 20;
/// L2 tables of an image that is changed for longer than a signal takes.
const TABLES: u64 = 1000;
/// The image.
const LONG_IMAGE: &str = "wide.qcow2";

fn said(program: &std::path::Path, args: &[&str], options: &[&str]) -> Result<String> {
    let scratch = Scratch::new()?;
    image::create_rich(&scratch, NAME, options)?;
    let done = Run::new(program, scratch.path()).args(args).go()?;
    Ok(format!("{:?} {}", done.code, done.out()))
}

/// Text without the percentages between the first and the last.
fn ends(text: &str) -> Vec<String> {
    let all: Vec<String> = text.split('\r').map(str::to_owned).collect();
    match all.as_slice() {
        [first, .., last, end] => vec![first.clone(), last.clone(), end.clone()],
        _ => all,
    }
}

#[test]
fn percentages_of_amend_are_those_of_the_oracle() -> Outcome {
    for args in [
        &["amend", "-p", "-o", "refcount_bits=64", NAME][..],
        &["amend", "-p", "-o", "compat=0.10", NAME],
        &["amend", "-p", "-o", "lazy_refcounts=on", NAME],
        &["amend", "-p", "-q", "-o", "refcount_bits=64", NAME],
        &["amend", "-p", "-o", "refcount_bits=3", NAME],
        &["amend", "-p", "-o", "refcount_bits=1", NAME],
        &["amend", "-p", "-o", "bogus=1", NAME],
        &["amend", "-p", "-o", "size=0", NAME],
        &["amend", "-p", "-o", "compat=1.1", "missing.qcow2"],
    ] {
        let want = said(&tools::qemu_img()?, args, &["cluster_size=4k"])?;
        let got = said(&tools::instar()?, args, &["cluster_size=4k"])?;
        ensure!(
            ends(&want) == ends(&got),
            "{args:?}: {got:?}, with qemu-img {want:?}"
        );
    }
    Ok(())
}

#[test]
fn percentages_rise() -> Outcome {
    let args = ["amend", "-p", "-o", "refcount_bits=8", NAME];
    let text = said(&tools::instar()?, &args, &["cluster_size=512"])?;
    ensure!(text.ends_with(ALL), "{text:?}");
    let numbers: Vec<f64> = text
        .split('\r')
        .filter_map(|part| part.rsplit_once('(')?.1.split_once('/')?.0.parse().ok())
        .collect();
    ensure!(numbers.len() >= 2 && numbers.is_sorted(), "{text:?}");
    Ok(())
}

fn on_terminal(scratch: &Scratch, args: &[&str]) -> Result<Seen> {
    run(&tools::instar()?, args, scratch.path(), OnTerminal::Stderr)
}

#[test]
fn a_long_repair_shows_a_bar_and_takes_it_away() -> Outcome {
    let scratch = Scratch::new()?;
    crafted::create_long(&scratch, "long.qcow2", LONG_TABLES)?;
    for (args, bar) in [
        (&["check", "-r", "leaks", "long.qcow2"][..], true),
        (&["check", "-q", "-r", "all", "long.qcow2"], false),
    ] {
        let seen = on_terminal(&scratch, args)?;
        let took = seen.took;
        ensure!(
            seen.code == Some(0) && seen.piped.is_empty() != bar,
            "{seen:?}"
        );
        ensure!(
            took.as_millis() > 1300,
            "it took {took:?}: too short for this test"
        );
        ensure!(seen.terminal.contains('%') == bar, "{args:?}: {seen:?}");
        let left = seen.terminal.rsplit("\r\x1b[2K").next().unwrap_or_default();
        ensure!(left.is_empty(), "{left:?} is left: {seen:?}");
    }
    Ok(())
}

#[test]
fn a_short_change_shows_no_bar() -> Outcome {
    for (args, text) in [
        (&["snapshot", "-c", "new", NAME][..], ""),
        (&["resize", NAME, "+1M"], "Image resized.\n"),
        (&["amend", "-o", "lazy_refcounts=on", NAME], ""),
        (&["bitmap", "--add", NAME, "x"], ""),
    ] {
        let seen = shortly(|| {
            let scratch = Scratch::new()?;
            image::create_rich(&scratch, NAME, &[])?;
            on_terminal(&scratch, args)
        })?;
        let right = seen.code == Some(0) && seen.terminal.is_empty() && seen.piped == text;
        ensure!(right, "{args:?}: {seen:?}");
    }
    Ok(())
}

/// A signal in the middle of a change: an orderly end, and the image is what it was.
fn stopped(
    make: impl Fn(&Scratch) -> Outcome,
    args: &[&str],
    signal: Signal,
    code: i32,
) -> Outcome {
    let ended = soon(|| {
        let scratch = Scratch::new()?;
        make(&scratch)?;
        let old = sum(&scratch)?;
        let run = Run::new(&tools::instar()?, scratch.path()).args(args);
        let mut live = Live::watch(&run)?;
        live.signal(live.broker()?, signal)?;
        let ended = live.end()?;
        let is_old = old == sum(&scratch)?;
        let is_over = ended.code == Some(0);
        ensure!(is_old || is_over, "{args:?}: the image is another one");
        Ok(ended)
    })?;
    ended.expect_code(code)?;
    ensure!(ended.stdout.is_empty(), "{}", ended.describe());
    let lines = ended.err().lines().count();
    ensure!(
        lines == 1,
        "{args:?}: one sentence expected: {}",
        ended.describe()
    );
    Ok(())
}

/// A number for the bytes of the image.
fn sum(scratch: &Scratch) -> Result<u64> {
    twins::sum(&std::fs::File::open(scratch.file(LONG_IMAGE))?)
}

#[test]
fn interrupt_of_a_snapshot_leaves_the_old_image() -> Outcome {
    let wide = |scratch: &Scratch| crafted::create_wide(scratch, LONG_IMAGE, TABLES);
    let args = ["snapshot", "-c", "new", LONG_IMAGE];
    stopped(wide, &args, Signal::INT, 130)
}

#[test]
fn termination_of_a_repair_leaves_the_old_image() -> Outcome {
    let long = |scratch: &Scratch| crafted::create_long(scratch, LONG_IMAGE, LONGEST_TABLES);
    let args = ["check", "-r", "all", LONG_IMAGE];
    stopped(long, &args, Signal::TERM, 143)
}
