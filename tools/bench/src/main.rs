//! Measures instar against `qemu-img` and prints a table for `SPECIFICATION.md`.
//!
//! ```text
//! instar-bench [--runs N] [--only WORD] [--check]
//! ```
//!
//! Each case is one command line for both programs. Both must first give the
//! same output; then they run in turn, `N` times each (15 unless told), every
//! run a new process on files that are in the page cache. A case whose runs take
//! `qemu-img` many seconds runs three times. `--check` ends with
//! exit code 1 if a promise is missed. `INSTAR_BIN` names another program.

mod cases;
mod cases_content;
mod host;
mod images;
mod measure;
mod memory;
mod report;
mod stats;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use cases::Case;
use measure::Program;

/// Fewest runs of each program that a median is taken of.
const MIN_RUNS: usize = 15;

/// What the command line says.
struct Options {
    runs: usize,
    only: Option<String>,
    check: bool,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("instar-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let options = options(std::env::args().skip(1))?;
    let folder = tempfile::Builder::new().prefix("instar-bench-").tempdir()?;
    let instar = Program::new(subject()?, folder.path());
    let qemu_img = Program::new(PathBuf::from("qemu-img"), folder.path());
    println!("{}", host::facts(&qemu_img, options.runs)?);
    let mut missed = Vec::new();
    let mut rows = Vec::new();
    for case in cases::all() {
        if options
            .only
            .as_ref()
            .is_some_and(|word| !case.name.contains(word))
        {
            continue;
        }
        eprintln!("instar-bench: {}", case.name);
        let row = measure_case(&case, &instar, &qemu_img, options.runs)?;
        missed.extend(report::missed(&case, &row));
        rows.push((case, row));
    }
    ensure!(!rows.is_empty(), "no case has that word in its name");
    println!("{}", report::table(&rows));
    for sentence in &missed {
        println!("missed: {sentence}");
    }
    Ok(missed.is_empty() || !options.check)
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options {
        runs: MIN_RUNS,
        only: None,
        check: false,
    };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--check" => options.check = true,
            "--only" => options.only = Some(words.next().context("--only WORD")?),
            "--runs" => options.runs = words.next().context("--runs N")?.parse()?,
            _ => bail!("usage: instar-bench [--runs N] [--only WORD] [--check]"),
        }
    }
    ensure!(options.runs >= MIN_RUNS, "--runs takes {MIN_RUNS} or more");
    Ok(options)
}

/// The program to measure: `INSTAR_BIN`, or the `instar` beside this one.
fn subject() -> Result<PathBuf> {
    let path = match std::env::var_os("INSTAR_BIN") {
        Some(path) => PathBuf::from(path),
        None => std::env::current_exe()?.with_file_name("instar"),
    };
    let path = path.canonicalize().with_context(|| {
        let path = Path::new(&path).display();
        format!("{path}: build it with `cargo build --release -p instar`")
    })?;
    Ok(path)
}

fn measure_case(
    case: &Case,
    instar: &Program,
    qemu_img: &Program,
    runs: usize,
) -> Result<report::Row> {
    let runs = if case.slow { cases::SLOW_RUNS } else { runs };
    images::make(case.image, qemu_img)?;
    instar.keep(case.changes())?;
    qemu_img.keep(case.changes())?;
    let ours = instar.answer(case.args)?;
    let theirs = qemu_img.answer(case.args)?;
    ensure!(
        ours == theirs,
        "{}: the programs disagree.\ninstar: {ours}\nqemu-img: {theirs}",
        case.name
    );
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for turn in 0..runs {
        // Who runs first changes, so that neither always follows the other.
        if turn % 2 == 0 {
            ours.push(instar.run(case.args)?);
            theirs.push(qemu_img.run(case.args)?);
        } else {
            theirs.push(qemu_img.run(case.args)?);
            ours.push(instar.run(case.args)?);
        }
    }
    let watched = if case.slow { 0 } else { memory::RUNS };
    let row = report::Row {
        instar: stats::Summary::of(&ours),
        qemu_img: stats::Summary::of(&theirs),
        instar_memory: memory::peak(instar, case.args, &ours, memory::RUNS.min(runs))?,
        // `qemu-img` is one process, of which the timed runs say enough where each takes long.
        qemu_img_memory: memory::peak(qemu_img, case.args, &theirs, watched)?,
        own: instar.own_statistics(case.args, runs)?,
    };
    instar.keep(None)?;
    qemu_img.keep(None)?;
    images::remove(qemu_img)?;
    Ok(row)
}
