//! Measures `instar serve` against `qemu-storage-daemon --export vhost-user-blk`, and prints a table for `SPECIFICATION.md`.
//!
//! ```text
//! instar-bench-serve [--runs N] [--only WORD]
//! ```
//!
//! Both serve the same qcow2 image, made anew for each run, to the same driver with one ring. They take turns, `N` times (7 unless told). What is measured is from the first request to the
//! last answer; the flush that follows is told apart. `INSTAR_BIN` names another program.

mod case;
mod server;

use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use case::{CASES, Case, Rates};
use server::Kind;

/// Runs of each program, unless told.
const RUNS: usize = 7;
/// Fewest runs of which there is a median worth telling.
const MIN_RUNS: usize = 5;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("instar-bench-serve: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let (runs, only) = options(std::env::args().skip(1))?;
    println!(
        "| 4 KiB, of {} KiB clusters | at once | instar, MiB/s | its flush, ms | qemu-storage-daemon, MiB/s | its flush, ms | ratio |",
        case::CLUSTER_BYTES >> 10
    );
    println!("|---|---|---|---|---|---|---|");
    let matches = |case: &&Case| only.as_ref().is_none_or(|word| case.name.contains(word));
    for case in CASES.iter().filter(matches) {
        println!("{}", row(case, runs)?);
    }
    Ok(())
}

/// Has both do a case in turn.
fn row(case: &Case, runs: usize) -> Result<String> {
    let mut ours = Rates::default();
    let mut theirs = Rates::default();
    for _ in 0..runs {
        ours.add(case.measure(Kind::Instar)?);
        theirs.add(case.measure(Kind::StorageDaemon)?);
    }
    Ok(format!(
        "| {} | {} | {ours} | {theirs} | {:.2} |",
        case.name,
        case.at_once,
        ours.median() / theirs.median()
    ))
}

fn options(mut words: impl Iterator<Item = String>) -> Result<(usize, Option<String>)> {
    let (mut runs, mut only) = (RUNS, None);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--only" => only = Some(words.next().context("--only WORD")?),
            "--runs" => runs = words.next().context("--runs N")?.parse()?,
            _ => bail!("usage: instar-bench-serve [--runs N] [--only WORD]"),
        }
    }
    ensure!(runs >= MIN_RUNS, "--runs takes {MIN_RUNS} or more");
    Ok((runs, only))
}
