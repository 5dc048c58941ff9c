//! A person's terminal: names cannot drive it, and a long run shows how far it is.

use anyhow::ensure;
use instar_tests::crafted;
use instar_tests::image;
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::terminal::{BAR_DELAY, COLUMNS, OnTerminal, Seen, run, shortly};
use instar_tests::tools;

use crate::Outcome;

/// L1 entries of an image whose check takes two to four seconds where nothing else runs.
const TABLES: u64 = 3 << 15;
/// A name that turns a terminal red, renames its window and moves the cursor.
const NASTY: &str = "a\x1b[31mb\x1b]0;title\x07c\r\x7fd\u{9b}2Je\u{202e}f";
/// Takes a line off the screen.
const CLEAR: &str = "\r\x1b[2K";

/// Control characters but the line feed.
fn controls(text: &str) -> Vec<char> {
    let found = text.chars().filter(|c| c.is_control() && *c != '\n');
    found
        .chain(text.chars().filter(|c| *c == '\u{202e}'))
        .collect()
}

fn on_terminal(scratch: &Scratch, args: &[&str], streams: OnTerminal) -> anyhow::Result<Seen> {
    run(&tools::instar()?, args, scratch.path(), streams)
}

#[test]
fn names_do_not_drive_the_terminal() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_overlay(&scratch, "top.qcow2", NASTY, "raw")?;
    image::snapshot(&scratch, "top.qcow2", NASTY).or_else(|_| {
        // The backing file is not there, which a snapshot asks for.
        image::create(&scratch, "snap.qcow2", &[], "1M")?;
        image::snapshot(&scratch, "snap.qcow2", NASTY)
    })?;
    for args in [
        &["info", "top.qcow2"][..],
        &["info", "snap.qcow2"],
        &["info", "--backing-chain", "top.qcow2"],
        &["check", "top.qcow2"],
        &["info", NASTY],
        &["info", "-f", NASTY, "top.qcow2"],
        &["info", "--output", NASTY, "top.qcow2"],
        &[NASTY],
    ] {
        let seen = on_terminal(&scratch, args, OnTerminal::Both)?;
        let found = controls(&seen.terminal);
        ensure!(found.is_empty(), "{args:?}: {found:?} in {seen:?}");
        ensure!(
            seen.terminal.contains("a\\u{1b}[31mb"),
            "{args:?}: the name is not shown: {seen:?}"
        );
    }
    Ok(())
}

#[test]
fn names_are_bytes_in_a_pipe() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_overlay(&scratch, "top.qcow2", NASTY, "raw")?;
    // Standard error being a terminal changes nothing for standard output.
    let seen = on_terminal(&scratch, &["info", "top.qcow2"], OnTerminal::Stderr)?;
    let want = image::qemu_img(&scratch, &["info", "top.qcow2"])?;
    ensure!(seen.piped == want.out(), "{seen:?}");
    ensure!(seen.piped.contains(NASTY), "{seen:?}");
    Ok(())
}

/// What is left on a screen whose lines are rewritten from their first column.
fn left_on_screen(text: &str) -> String {
    let lines = text.split('\n').map(|line| match line.rsplit_once(CLEAR) {
        Some((_, after)) => after,
        None => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn long_check_shows_a_bar_and_takes_it_away() -> Outcome {
    let scratch = Scratch::new()?;
    crafted::create_long(&scratch, "long.qcow2", TABLES)?;
    let plain = Run::new(&tools::instar()?, scratch.path())
        .args(["check", "long.qcow2"])
        .go()?;
    plain.expect_code(0)?;
    ensure!(plain.stderr.is_empty(), "{}", plain.describe());
    for streams in [OnTerminal::Both, OnTerminal::Stderr] {
        let seen = on_terminal(&scratch, &["check", "long.qcow2"], streams)?;
        ensure!(seen.code == Some(0), "{seen:?}");
        let long = seen.took > BAR_DELAY.mul_f32(1.3);
        ensure!(long, "{:?}: too short for this test", seen.took);
        ensure!(seen.terminal.contains('%'), "no bar: {seen:?}");
        let bars = seen.terminal.split(CLEAR).filter(|bar| bar.contains('='));
        for bar in bars.filter(|bar| bar.ends_with('%')) {
            ensure!(bar.chars().count() <= COLUMNS.into(), "too wide: {bar:?}");
        }
        let left = match streams {
            OnTerminal::Both => left_on_screen(&seen.terminal),
            OnTerminal::Stderr => left_on_screen(&seen.terminal) + &seen.piped,
        };
        ensure!(left == plain.out(), "{left:?} is left: {seen:?}");
    }
    Ok(())
}

#[test]
fn quiet_and_short_checks_show_no_bar() -> Outcome {
    let scratch = Scratch::new()?;
    crafted::create_long(&scratch, "long.qcow2", TABLES)?;
    image::create_rich(&scratch, "short.qcow2", &[])?;
    for args in [
        &["check", "-q", "long.qcow2"][..],
        &["check", "short.qcow2"],
    ] {
        let run = || on_terminal(&scratch, args, OnTerminal::Stderr);
        let is_quiet = args.contains(&"-q");
        let seen = if is_quiet { run()? } else { shortly(run)? };
        ensure!(
            seen.code == Some(0) && seen.terminal.is_empty(),
            "{args:?}: {seen:?}"
        );
    }
    Ok(())
}
